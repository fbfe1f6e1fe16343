/* Matrix memories that descend an inner loss chunk by chunk (TTT, arXiv 2407.04620; Titans, arXiv 2501.00663; MIRAS, arXiv
 * 2504.13173): ops/ops.h has the recurrence, docs/memory.md how it is computed. */
#include "scan/memory.h"

#include "ops/extent.h"

static int64_t chunk_of(const comba_memory_attributes *attributes) {
  return attributes->chunk ? attributes->chunk : 16;
}

typedef struct memory_size {
  int64_t sequences, tokens, length; /* N; B T; tokens of each sequence, with cu_seqlens of all of them */
  int64_t heads, K, V, rows, parts;
  int64_t chunk, saved; /* saved memories a head */
  bool mapped;
} memory_size;

/* Of operands of the right ranks. */
static memory_size size_of(const comba_memory_attributes *attributes, const comba_shape *q, const comba_shape *v,
                           bool bias, bool momentum, const comba_shape *cu_seqlens) {
  memory_size s = {.tokens = q->size[0] * q->size[1], .heads = q->size[2], .K = q->size[3], .V = v->size[3]};
  s.length = q->size[1];
  s.sequences = cu_seqlens->rank ? cu_seqlens->size[0] - 1 : q->size[0];
  s.rows = s.K + bias;
  s.parts = momentum ? 3 : 2;
  s.chunk = chunk_of(attributes);
  /* a sequence that starts at token s saves from s / chunk + 2 its number on: they cannot overlap */
  s.saved = s.tokens / s.chunk + 2 * s.sequences;
  s.mapped = attributes->map != COMBA_MEMORY_LINEAR;
  return s;
}

static memory_size size_of_call(const comba_call *call) {
  return size_of(call->attributes, &call->input[Q].shape, &call->input[VALUE].shape, call->input[BIAS].data,
                 call->input[MOMENTUM].data, &call->input[CU_SEQLENS].shape);
}

static int64_t scratch_size(const memory_size *s, bool backward) {
  return COMBA_VARIANT(comba_memory_scan_scratch)(s->chunk, s->rows, s->V, s->mapped, backward);
}

/* ---- Shapes -------------------------------------------------------------------------------------------------------- */

static comba_status check_attributes(const comba_signature *s) {
  const comba_memory_attributes *a = s->attributes;
  if (a->chunk < 0 || a->chunk > CHUNK)
    return comba_fail(COMBA_ERROR_ARGUMENT, "memory: chunk is %lld, expected 1 to %d, or 0 for 16", (long long)a->chunk,
                      CHUNK);
  if ((unsigned)a->map > COMBA_MEMORY_SOFTMAX_ROW)
    return comba_fail(COMBA_ERROR_ARGUMENT, "memory: map is %d, expected 0 to %d", (int)a->map,
                      COMBA_MEMORY_SOFTMAX_ROW);
  if (!(a->map_exponent == 0 || (a->map_exponent >= 2 && a->map_exponent <= 64)))
    return comba_fail(COMBA_ERROR_ARGUMENT, "memory: map_exponent is %g, expected 2 to 64, or 0 for 4",
                      a->map_exponent);
  if (!(a->map_total >= 0 && a->map_total < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "memory: map_total is %g, expected a positive number, or 0 for V sqrt(K)",
                      a->map_total);
  if (a->map != COMBA_MEMORY_LINEAR && (s->input[MOMENTUM].rank || s->input[TOKEN_OFFSET].rank || s->input[BIAS].rank))
    return comba_fail(COMBA_ERROR_ARGUMENT, "memory: momentum, token_offset and bias need a memory without a map");
  return COMBA_VARIANT(comba_inner_loss_check)(&a->loss, "memory");
}

static comba_status check_operands(const comba_signature *s) {
  const comba_memory_attributes *a = s->attributes;
  const comba_shape *in = s->input, *q = &in[Q], *v = &in[VALUE];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, K)");
  if (!comba_shape_equal(&in[KEY], q)) return comba_fail_shape(s, KEY, "(B, T, H, K), as q");
  const comba_shape value = COMBA_SHAPE(q->size[0], q->size[1], q->size[2], v->size[3]);
  if (!comba_extent_fits(v, 4) || !comba_shape_equal(v, &value)) return comba_fail_shape(s, VALUE, "(B, T, H, V)");
  if (a->residual && v->size[3] != q->size[3]) return comba_fail_shape(s, VALUE, "(B, T, H, K), for the target v - k");
  const comba_shape gate = COMBA_SHAPE(q->size[0], q->size[1], q->size[2]), norm = COMBA_SHAPE(q->size[2], v->size[3]);
  for (int i = RATE; i <= THRESHOLD; i++)
    if ((in[i].rank || i == RATE || (i == THRESHOLD && inner_loss_has_threshold(a->loss.kind))) &&
        !comba_shape_equal(&in[i], &gate))
      return comba_fail_shape(s, i, "(B, T, H)");
  if (in[TOKEN_OFFSET].rank && !comba_shape_equal(&in[TOKEN_OFFSET], &COMBA_SHAPE(chunk_of(a))))
    return comba_fail_shape(s, TOKEN_OFFSET, "(chunk)");
  for (int i = NORM_WEIGHT; i <= NORM_BIAS; i++)
    if ((in[i].rank || inner_loss_normalizes(a->loss.kind)) && !comba_shape_equal(&in[i], &norm))
      return comba_fail_shape(s, i, "(H, V)");
  if (in[MEMORY].rank && !comba_shape_equal(&in[MEMORY], &COMBA_SHAPE(q->size[2], q->size[3], v->size[3])))
    return comba_fail_shape(s, MEMORY, "(H, K, V)");
  if (in[BIAS].rank && !comba_shape_equal(&in[BIAS], &norm)) return comba_fail_shape(s, BIAS, "(H, V)");
  const comba_shape *cu_seqlens = &in[CU_SEQLENS];
  if (cu_seqlens->rank && (!comba_extent_fits(cu_seqlens, 1) || cu_seqlens->size[0] < 2 || q->size[0] != 1))
    return comba_fail_shape(s, CU_SEQLENS, "(N + 1) with N at least 1, and B = 1");
  if (in[POSITION].rank && !comba_shape_equal(&in[POSITION], &COMBA_SHAPE(1)))
    return comba_fail_shape(s, POSITION, "(1)");
  return COMBA_OK;
}

static comba_status infer(comba_signature *s) {
  comba_status status = check_attributes(s);
  if (status == COMBA_OK) status = check_operands(s);
  if (status != COMBA_OK) return status;
  const memory_size x = size_of(s->attributes, &s->input[Q], &s->input[VALUE], s->input[BIAS].rank,
                                s->input[MOMENTUM].rank, &s->input[CU_SEQLENS]);
  const comba_shape states = COMBA_SHAPE(x.sequences, x.heads, x.parts, x.rows, x.V);
  if (s->input[INITIAL_STATE].rank && !comba_shape_equal(&s->input[INITIAL_STATE], &states))
    return comba_fail_shape(s, INITIAL_STATE, "(N, H, 2, R, V), or 3 with momentum, N = B without cu_seqlens");
  /* a slot's scratch is below 128 (64 + R) (64 + V) reals, and every sequence has a gradient of its head's parameters */
  const comba_shape results[] = {states, COMBA_SHAPE(x.saved, x.heads, x.parts - 1, x.rows, x.V),
                                 COMBA_SHAPE(128, COMBA_BLOCKS, CHUNK + x.rows, CHUNK + x.V),
                                 COMBA_SHAPE(x.sequences, x.heads, x.rows + 3, CHUNK + x.V)};
  for (int i = 0; i < 4; i++)
    if (!comba_extent_fits(&results[i], 0)) return comba_fail_extent(s, &results[i]);
  s->outputs = 2;
  s->output[OUTPUT] = s->input[VALUE];
  s->output[FINAL_STATE] = states;
  s->saved = 1;
  s->saved_shape[MEMORIES] = results[1];
  const int64_t slots = scan_slots(x.sequences * x.heads);
  s->forward_workspace = slots * scratch_size(&x, false);
  s->backward_workspace =
      slots * scratch_size(&x, true) + x.sequences * x.heads * memory_parameters(x.rows, x.V, x.chunk);

  const double state = (double)(x.rows * x.V), momentum = x.parts == 3, heads = (double)x.tokens * (double)x.heads;
  const double inside = 2 * (double)x.chunk * (double)(x.rows + x.V);
  s->forward_flops = heads * (x.mapped ? 10 * state : (6 + 4 * momentum) * state + inside);
  s->backward_flops = heads * (x.mapped ? 30 * state : (14 + 8 * momentum) * state + 3 * inside);
  return COMBA_OK;
}

/* ---- Tasks --------------------------------------------------------------------------------------------------------- */

typedef struct memory_tasks {
  const comba_call *call;
  memory_size size;
  real *parameter_gradients; /* (N, H, memory_parameters), backward */
} memory_tasks;

static memory_head head_of(const memory_tasks *x, int64_t task) {
  const comba_call *call = x->call;
  const memory_size *s = &x->size;
  const comba_memory_attributes *attributes = call->attributes;
  const int64_t sequence = task / s->heads, head = task % s->heads;
  const int32_t *cu_seqlens = call->input[CU_SEQLENS].data, *position = call->input[POSITION].data;
  const int64_t first = cu_seqlens ? cu_seqlens[sequence] : sequence * s->length;
  const int64_t key = (first * s->heads + head) * s->K, value = (first * s->heads + head) * s->V;
  const int64_t gate = first * s->heads + head, part = s->rows * s->V, state = task * s->parts * part;
  const int64_t slot = first / s->chunk + 2 * sequence;
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  memory_head h = {
      .length = cu_seqlens ? cu_seqlens[sequence + 1] - first : s->length,
      .K = s->K,
      .V = s->V,
      .rows = s->rows,
      .chunk = s->chunk,
      .phase = position ? *position % s->chunk : 0,
      .key_stride = s->heads * s->K,
      .value_stride = s->heads * s->V,
      .gate_stride = s->heads,
      .memory_stride = s->heads * (s->parts - 1) * part,
      .residual = attributes->residual,
      .map = attributes->map,
      .map_exponent = attributes->map_exponent != 0 ? attributes->map_exponent : 4,
      .map_total = attributes->map_total != 0 ? attributes->map_total : (double)s->V * sqrt((double)s->K),
      .loss = COMBA_VARIANT(comba_inner_loss_of)(&attributes->loss, s->V, AT(call->input[NORM_WEIGHT], head * s->V),
                                                 AT(call->input[NORM_BIAS], head * s->V)),
      .q = AT(call->input[Q], key),
      .k = AT(call->input[KEY], key),
      .v = AT(call->input[VALUE], value),
      .rate = AT(call->input[RATE], gate),
      .retention = AT(call->input[RETENTION], gate),
      .momentum = AT(call->input[MOMENTUM], gate),
      .threshold = AT(call->input[THRESHOLD], gate),
      .token_offset = call->input[TOKEN_OFFSET].data,
      .memory = AT(call->input[MEMORY], head * s->K * s->V),
      .bias = AT(call->input[BIAS], head * s->V),
      .initial_state = AT(call->input[INITIAL_STATE], state),
      .o = AT(call->output[OUTPUT], value),
      .final_state = AT(call->output[FINAL_STATE], state),
      .memories = AT(call->saved[MEMORIES], (slot * s->heads + head) * (s->parts - 1) * part),
      .output_gradient = AT(call->output_gradient[OUTPUT], value),
      .final_state_gradient = AT(call->output_gradient[FINAL_STATE], state),
      .dq = AT(call->input_gradient[Q], key),
      .dk = AT(call->input_gradient[KEY], key),
      .dv = AT(call->input_gradient[VALUE], value),
      .drate = AT(call->input_gradient[RATE], gate),
      .dretention = AT(call->input_gradient[RETENTION], gate),
      .dmomentum = AT(call->input_gradient[MOMENTUM], gate),
      .dthreshold = AT(call->input_gradient[THRESHOLD], gate),
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
      .parameter_gradient =
          x->parameter_gradients ? x->parameter_gradients + task * memory_parameters(s->rows, s->V, s->chunk) : NULL,
  };
#undef AT
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  return h;
}

static void forward_task(const void *context, int64_t task, real *scratch) {
  const memory_head head = head_of(context, task);
  COMBA_VARIANT(comba_memory_scan_forward)(&head, scratch);
}

static void forward(const comba_call *call) {
  const memory_tasks x = {call, size_of_call(call), NULL};
  scan_deal(x.size.sequences * x.size.heads, call->workspace, scratch_size(&x.size, false), forward_task, &x);
}

static void backward_task(const void *context, int64_t task, real *scratch) {
  const memory_head head = head_of(context, task);
  COMBA_VARIANT(comba_memory_scan_backward)(&head, scratch);
}

/* A parameter's gradient (H, n), n numbers a head, = or += the sums over sequences, at `offset` of each task's. */
static void sum_parameter(const memory_tasks *x, int input, int64_t offset, int64_t n) {
  real *gradient = x->call->input_gradient[input].data;
  const memory_size *s = &x->size;
  const int64_t stride = memory_parameters(s->rows, s->V, s->chunk);
  if (!gradient) return;
  scan_clear(gradient, x->call->accumulate[input], 1, s->heads * n, s->heads * n);
  for (int64_t task = 0; task < s->sequences * s->heads; task++)
    scan_add(gradient + task % s->heads * n, x->parameter_gradients + task * stride + offset, n);
}

static void backward(const comba_call *call) {
  memory_tasks x = {call, size_of_call(call), NULL};
  const memory_size *s = &x.size;
  const int64_t tasks = s->sequences * s->heads, scratch = scratch_size(s, true), matrix = s->rows * s->V;
  const int64_t token_offset = matrix + 2 * s->V, stride = token_offset + s->chunk;
  x.parameter_gradients = (real *)call->workspace + scan_slots(tasks) * scratch;
  scan_deal(tasks, call->workspace, scratch, backward_task, &x);
  sum_parameter(&x, MEMORY, 0, s->K * s->V);
  sum_parameter(&x, BIAS, s->K * s->V, s->V);
  sum_parameter(&x, NORM_WEIGHT, matrix, s->V);
  sum_parameter(&x, NORM_BIAS, matrix + s->V, s->V);
  real *to_token = call->input_gradient[TOKEN_OFFSET].data; /* one for all heads */
  if (!to_token) return;
  scan_clear(to_token, call->accumulate[TOKEN_OFFSET], 1, s->chunk, s->chunk);
  for (int64_t task = 0; task < tasks; task++)
    scan_add(to_token, x.parameter_gradients + task * stride + token_offset, s->chunk);
}

/* ---- Cases --------------------------------------------------------------------------------------------------------- */

#define KEYS(B, T, H, K)                                                                                               \
  { COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT }
#define GATE(B, T, H, from, to)                                                                                        \
  { COMBA_SHAPE(B, T, H), COMBA_FILL_UNIFORM, .low = from, .high = to }
#define TENSOR(size, ...)                                                                                              \
  { COMBA_SHAPE(__VA_ARGS__), .scale = size }
#define NEAR_ONE(...)                                                                                                  \
  { COMBA_SHAPE(__VA_ARGS__), COMBA_FILL_UNIFORM, .low = 0.5, .high = 1.5 }
#define INDICES(n, numbers)                                                                                            \
  { COMBA_SHAPE(n), COMBA_FILL_VALUES, .values = numbers }
/* q, k, v and the rate */
#define TOKENS(B, T, H, K, V)                                                                                          \
  [Q] = KEYS(B, T, H, K), [KEY] = KEYS(B, T, H, K), [VALUE] = TENSOR(1, B, T, H, V), [RATE] = GATE(B, T, H, 0, 1)
#define RETAINED(B, T, H, K, V) TOKENS(B, T, H, K, V), [RETENTION] = GATE(B, T, H, -0.5, 0)
#define LEARNED(H, K, V, size) [MEMORY] = TENSOR(size, H, K, V)
#define STATE(N, H, parts, R, V) [INITIAL_STATE] = TENSOR(0.3, N, H, parts, R, V)

static const int32_t five[] = {5}, packed[] = {0, 1, 1, 40, 44}; /* lengths 1, 0, 39, 4 */
#define TTT(B, T, H, K, C)                                                                                             \
  TOKENS(B, T, H, K, K), LEARNED(H, K, K, 0.3), [TOKEN_OFFSET] = TENSOR(0.2, C), [NORM_WEIGHT] = NEAR_ONE(H, K),       \
                                                [NORM_BIAS] = TENSOR(0.3, H, K), [BIAS] = TENSOR(0.3, H, K)

static const comba_memory_attributes plain,
    chunk_1 = {.chunk = 1}, chunk_5 = {.chunk = 5}, chunk_64 = {.chunk = 64},
    ttt = {.loss = {.kind = COMBA_LOSS_LAYER_NORM}, .residual = true},
    ttt_5 = {.chunk = 5, .loss = {.kind = COMBA_LOSS_LAYER_NORM}, .residual = true},
    huber = {.loss = {.kind = COMBA_LOSS_HUBER}}, huber_channel = {.loss = {.kind = COMBA_LOSS_HUBER_CHANNEL}},
    huber_sign = {.loss = {.kind = COMBA_LOSS_HUBER_SIGN}},
    moneta = {.loss = {.kind = COMBA_LOSS_POWER}, .map = COMBA_MEMORY_POWER},
    moneta_1 = {.chunk = 1,
                .loss = {.kind = COMBA_LOSS_POWER, .exponent = 2.5},
                .map = COMBA_MEMORY_POWER,
                .map_exponent = 3},
    mirror = {.loss = {.kind = COMBA_LOSS_POWER}, .map = COMBA_MEMORY_MIRROR}, memora = {.map = COMBA_MEMORY_SOFTMAX},
    memora_column = {.map = COMBA_MEMORY_SOFTMAX_COLUMN, .map_total = 3},
    memora_row = {.map = COMBA_MEMORY_SOFTMAX_ROW, .map_total = 2};

static const comba_case cases[] = {
    {.name = "square, T 1", .attributes = &plain, .input = {TOKENS(2, 1, 1, 8, 20), STATE(2, 1, 2, 8, 20)}},
    {.name = "square, T 70, retention, learned, state",
     .attributes = &plain,
     .input = {RETAINED(2, 70, 2, 16, 24), LEARNED(2, 16, 24, 0.3), STATE(2, 2, 2, 16, 24)}},
    {.name = "square, chunk 1", .attributes = &chunk_1, .input = {RETAINED(1, 9, 2, 8, 12), STATE(1, 2, 2, 8, 12)}},
    {.name = "square, chunk 64", .attributes = &chunk_64, .input = {RETAINED(1, 130, 1, 32, 24)}},
    {.name = "momentum, T 40, state",
     .attributes = &plain,
     .input = {RETAINED(2, 40, 2, 16, 24), [MOMENTUM] = GATE(2, 40, 2, -1, 0), STATE(2, 2, 3, 16, 24)}},
    {.name = "momentum, inside a chunk of 5",
     .attributes = &chunk_5,
     .input = {RETAINED(1, 23, 2, 8, 12), [MOMENTUM] = GATE(1, 23, 2, -1, 0), LEARNED(2, 8, 12, 0.3),
               STATE(1, 2, 3, 8, 12), [POSITION] = INDICES(1, five)}},
    {.name = "layer norm, T 40, bias", .attributes = &ttt, .tolerance = 3e-5, .input = {TTT(2, 40, 2, 24, 16)}},
    {.name = "layer norm, chunk 5, inside, state",
     .attributes = &ttt_5,
     .tolerance = 3e-5,
     .input = {TTT(2, 18, 2, 12, 5), STATE(2, 2, 2, 13, 12), [POSITION] = INDICES(1, packed + 3)}},
    {.name = "layer norm, inside the first chunk, state",
     .attributes = &ttt,
     .tolerance = 3e-5,
     .input = {TTT(1, 6, 2, 12, 16), STATE(1, 2, 2, 13, 12), [POSITION] = INDICES(1, five)}},
    {.name = "layer norm, packed",
     .attributes = &ttt,
     .tolerance = 3e-5,
     .input = {TTT(1, 44, 2, 12, 16), STATE(4, 2, 2, 13, 12), [CU_SEQLENS] = INDICES(5, packed)}},
    {.name = "huber",
     .attributes = &huber,
     .input = {RETAINED(2, 40, 2, 16, 24), [THRESHOLD] = GATE(2, 40, 2, 3, 7), LEARNED(2, 16, 24, 0.3)}},
    {.name = "huber channel",
     .attributes = &huber_channel,
     .input = {RETAINED(1, 20, 2, 8, 12), [THRESHOLD] = GATE(1, 20, 2, 0.5, 1)}},
    {.name = "huber sign",
     .attributes = &huber_sign,
     .input = {RETAINED(1, 20, 2, 8, 12), [THRESHOLD] = GATE(1, 20, 2, 2, 5)}},
    {.name = "power of a power map, packed",
     .attributes = &moneta,
     .tolerance = 1e-4,
     .input = {RETAINED(1, 44, 2, 8, 12), LEARNED(2, 8, 12, 1),
               STATE(4, 2, 2, 8, 12), [CU_SEQLENS] = INDICES(5, packed)}},
    {.name = "power map, chunk 1",
     .attributes = &moneta_1,
     .tolerance = 1e-4,
     .input = {RETAINED(1, 9, 2, 8, 12), LEARNED(2, 8, 12, 1)}},
    {.name = "mirror map",
     .attributes = &mirror,
     .tolerance = 1e-4,
     .input = {RETAINED(1, 20, 2, 8, 12), LEARNED(2, 8, 12, 1)}},
    {.name = "softmax, inside a chunk",
     .attributes = &memora,
     .input = {RETAINED(2, 40, 2, 16, 24), STATE(2, 2, 2, 16, 24), [POSITION] = INDICES(1, five)}},
    {.name = "softmax of columns",
     .attributes = &memora_column,
     .input = {RETAINED(1, 20, 2, 8, 12), LEARNED(2, 8, 12, 1)}},
    {.name = "softmax of rows", .attributes = &memora_row, .input = {RETAINED(1, 20, 2, 8, 12), LEARNED(2, 8, 12, 1)}},
    {.name = "layer norm, 64", .benchmark = true, .attributes = &ttt, .input = {TTT(2, 1024, 4, 64, 16)}},
    {.name = "layer norm, 128", .benchmark = true, .attributes = &ttt, .input = {TTT(1, 1024, 4, 128, 16)}},
    {.name = "square, 128", .benchmark = true, .attributes = &chunk_64, .input = {RETAINED(2, 1024, 4, 128, 128)}},
    {.name = "momentum, 64",
     .benchmark = true,
     .attributes = &plain,
     .input = {RETAINED(2, 1024, 4, 64, 64), [MOMENTUM] = GATE(2, 1024, 4, -1, 0)}},
    {.name = "power map, 64",
     .benchmark = true,
     .attributes = &moneta,
     .input = {RETAINED(2, 1024, 4, 64, 64), LEARNED(4, 64, 64, 1)}},
    {.name = "softmax, 64", .benchmark = true, .attributes = &memora, .input = {RETAINED(2, 1024, 4, 64, 64)}},
    {.name = "decode, 64",
     .benchmark = true,
     .attributes = &ttt,
     .input = {TTT(8, 1, 4, 64, 16), STATE(8, 4, 2, 65, 64), [POSITION] = INDICES(1, five)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_memory) = {
    .name = "memory",
    .formula =
        "W_t = e^g W_{t-1} - rate k_t n_t^T, n_t the inner loss's gradient at the chunk's start, o_t = f(W_t)^T q_t",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = ((1u << INPUTS) - 1) & ~(1u << Q | 1u << KEY | 1u << VALUE | 1u << RATE),
    .input_class = {[Q] = COMBA_ACTIVATION,
                    COMBA_ACTIVATION,
                    COMBA_ACTIVATION,
                    COMBA_GATE,
                    COMBA_GATE,
                    COMBA_GATE,
                    COMBA_GATE,
                    COMBA_PARAMETER,
                    COMBA_PARAMETER,
                    COMBA_PARAMETER,
                    COMBA_PARAMETER,
                    COMBA_PARAMETER,
                    COMBA_STATE,
                    COMBA_INDEX,
                    COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_memory_attributes),
    .backward_inputs = (1u << INPUTS) - 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
