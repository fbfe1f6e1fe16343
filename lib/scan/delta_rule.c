/* The delta rule with scalar decay (arXiv 2506.02475, Eq. 5; Gated DeltaNet, arXiv 2412.06464), for each value head:
 *   x_t = S_{t-1}^T p_t (times e^{g_t} with feedback after decay)
 *   S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - x_t)^T
 *   o_t = scale S_t^T q_t
 * computed in chunks of 64 tokens by matrix products (delta_rule_chunk.c), or token by token (delta_rule_recurrent.c). */
#include "scan/delta_rule.h"

#include "ops/ops.h"

/* Of the chunk form, see scan_in_chunks. The passes choose on their own: either backward can follow either forward, and
 * token by token backward loses more than forward. */
enum { LEAST_STATE = 4096, LEAST_STATE_BACKWARD = 1024, LEAST_WORK_BACKWARD = 1 << 14 };

static delta_rule_head head_of(const comba_call *call, const scalar_size *size, int64_t sequence, int64_t head) {
  const comba_delta_rule_attributes *attributes = call->attributes;
  const int32_t *cu_seqlens = call->input[CU_SEQLENS].data;
  const int64_t first = cu_seqlens ? cu_seqlens[sequence] : sequence * size->length;
  const int64_t slot = scan_state_slot(cu_seqlens, sequence, size->length, first);
  const int64_t key = (first * size->heads + head / size->group) * size->K;
  const int64_t value = (first * size->value_heads + head) * size->V, gate = first * size->value_heads + head;
  const int64_t state = (sequence * size->value_heads + head) * size->K * size->V;
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  delta_rule_head h = {
      .length = cu_seqlens ? cu_seqlens[sequence + 1] - first : size->length,
      .K = size->K,
      .V = size->V,
      .key_stride = size->heads * size->K,
      .value_stride = size->value_heads * size->V,
      .value_heads = size->value_heads,
      .state_stride = size->value_heads * size->K * size->V,
      .scale = (real)(attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)size->K)),
      .after_decay = attributes->feedback_after_decay,
      .q = AT(call->input[Q], key),
      .k = AT(call->input[KEY], key),
      .p = AT(call->input[call->input[P].data ? P : KEY], key),
      .v = AT(call->input[VALUE], value),
      .beta = AT(call->input[BETA], gate),
      .g = AT(call->input[GATE], gate),
      .initial_state = AT(call->input[INITIAL_STATE], state),
      .o = AT(call->output[OUTPUT], value),
      .final_state = AT(call->output[FINAL_STATE], state),
      .states = AT(call->saved[STATES], (slot * size->value_heads + head) * size->K * size->V),
      .errors = AT(call->saved[ERRORS], value),
      .output_gradient = AT(call->output_gradient[OUTPUT], value),
      .final_state_gradient = AT(call->output_gradient[FINAL_STATE], state),
      .dq = AT(call->input_gradient[Q], key),
      .dk = AT(call->input_gradient[KEY], key),
      .dp = AT(call->input_gradient[call->input[P].data ? P : KEY], key),
      .dv = AT(call->input_gradient[VALUE], value),
      .dbeta = AT(call->input_gradient[BETA], gate),
      .dg = AT(call->input_gradient[GATE], gate),
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
  };
#undef AT
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  const bool later = head % size->group > 0; /* the first head of the group has written these */
  h.accumulate[Q] |= later;
  h.accumulate[KEY] |= later;
  h.accumulate[P] |= later || !call->input[P].data; /* without p, its gradient is added to dk, after dk */
  return h;
}

static int64_t scratch_size(const scalar_tasks *x, int64_t width, bool backward) {
  return x->chunks ? COMBA_VARIANT(comba_delta_rule_chunk_scratch)(x->size.K, width, backward)
                   : COMBA_VARIANT(comba_delta_rule_recurrent_scratch)(x->size.K, width, backward);
}

static scalar_tasks tasks_of(const scalar_size *size, const comba_delta_rule_attributes *attributes, bool backward,
                             const comba_call *call) {
  return backward ? scalar_tasks_of(size, attributes->mode, LEAST_STATE_BACKWARD, LEAST_WORK_BACKWARD, call)
                  : scalar_tasks_of(size, attributes->mode, LEAST_STATE, CHUNK_MIN_WORK, call);
}

static comba_status infer(comba_signature *s) {
  static const scalar_operands operands = {Q, KEY, VALUE, GATE, INITIAL_STATE, CU_SEQLENS, .gates_optional = false};
  const comba_delta_rule_attributes *attributes = s->attributes;
  const comba_status status = scalar_infer(s, &operands);
  if (status != COMBA_OK) return status;
  const comba_shape *q = &s->input[Q], *v = &s->input[VALUE];
  if (s->input[P].rank && !comba_shape_equal(&s->input[P], q)) return comba_fail_shape(s, P, "(B, T, H, K), as q");
  if (!comba_shape_equal(&s->input[BETA], &COMBA_SHAPE(v->size[0], v->size[1], v->size[2])))
    return comba_fail_shape(s, BETA, "(B, T, HV), as v");
  s->saved = 2;
  s->saved_shape[ERRORS] = *v;

  const scalar_size size = scalar_size_of(q, q, v, &s->input[CU_SEQLENS]);
  const scalar_tasks x = tasks_of(&size, attributes, false, NULL), y = tasks_of(&size, attributes, true, NULL);
  s->forward_workspace = scan_slots(scalar_forward_tasks(&x)) * scratch_size(&x, x.width, false);
  s->backward_workspace = scan_slots(scalar_backward_tasks(&y)) * scratch_size(&y, size.V, true);

  const double K = (double)size.K, V = (double)size.V, heads = (double)size.tokens * (double)size.value_heads;
  const double C = fmin(CHUNK, (double)size.tokens / (double)size.sequences);
  /* the share of tokens in the first chunk of a sequence, which has no state to read, and in the last, which leaves none */
  const double ends = C * (double)size.sequences / fmax((double)size.tokens, 1),
               empty = s->input[INITIAL_STATE].rank ? 0 : ends;
  s->forward_flops = heads * (x.chunks ? (6 - 4 * empty) * K * V + 4 * C * (K + V) : 7 * K * V);
  s->backward_flops = heads * (y.chunks ? (12 - 8 * empty - 4 * ends) * K * V + C * (12 * K + 8 * V) : 17 * K * V);
  return COMBA_OK;
}

static scalar_tasks tasks_of_call(const comba_call *call, bool backward) {
  const scalar_size size = scalar_size_of(&call->input[Q].shape, &call->input[KEY].shape, &call->input[VALUE].shape,
                                          &call->input[CU_SEQLENS].shape);
  return tasks_of(&size, call->attributes, backward, call);
}

static void forward_task(const void *context, int64_t task, real *scratch) {
  const scalar_tasks *x = context;
  const scalar_part part = scalar_part_of(x, task);
  const delta_rule_head head = head_of(x->call, &x->size, part.sequence, part.head);
  if (x->chunks)
    COMBA_VARIANT(comba_delta_rule_chunk_forward)(&head, scratch);
  else
    COMBA_VARIANT(comba_delta_rule_recurrent_forward)(&head, part.first, part.width, scratch);
}

static void forward(const comba_call *call) {
  const scalar_tasks x = tasks_of_call(call, false);
  scan_deal(scalar_forward_tasks(&x), call->workspace, scratch_size(&x, x.width, false), forward_task, &x);
}

static void backward_task(const void *context, int64_t task, real *scratch) {
  const scalar_tasks *x = context;
  const scalar_size *size = &x->size;
  for (int64_t member = 0; member < size->group; member++) {
    const delta_rule_head head = head_of(x->call, size, task / size->heads, task % size->heads * size->group + member);
    if (x->chunks)
      COMBA_VARIANT(comba_delta_rule_chunk_backward)(&head, scratch);
    else
      COMBA_VARIANT(comba_delta_rule_recurrent_backward)(&head, scratch);
  }
}

static void backward(const comba_call *call) {
  const scalar_tasks x = tasks_of_call(call, true);
  scan_deal(scalar_backward_tasks(&x), call->workspace, scratch_size(&x, x.size.V, true), backward_task, &x);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

/* q, k, p, v, beta, g of one shape; more inputs may follow. p is about 0.7 k in Comba; any vector is right. */
#define QUERY(B, T, H, K)                                                                                              \
  { COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT }
#define VALUES(B, T, HV, V)                                                                                            \
  { COMBA_SHAPE(B, T, HV, V) }
#define BETAS(B, T, HV)                                                                                                \
  { COMBA_SHAPE(B, T, HV), COMBA_FILL_UNIFORM, .low = 0, .high = 1 }
#define GATES(B, T, HV)                                                                                                \
  { COMBA_SHAPE(B, T, HV), COMBA_FILL_UNIFORM, .low = -1, .high = 0 }
#define CASE(B, T, H, HV, K, V)                                                                                        \
  QUERY(B, T, H, K), QUERY(B, T, H, K), QUERY(B, T, H, K), VALUES(B, T, HV, V), BETAS(B, T, HV), GATES(B, T, HV)

static const comba_delta_rule_attributes chunk = {.mode = COMBA_MODE_CHUNK};
static const comba_delta_rule_attributes recurrent = {.mode = COMBA_MODE_RECURRENT};
static const comba_delta_rule_attributes chunk_after = {.feedback_after_decay = true, .mode = COMBA_MODE_CHUNK};
static const comba_delta_rule_attributes recurrent_after = {.feedback_after_decay = true, .mode = COMBA_MODE_RECURRENT};
static const comba_delta_rule_attributes scaled = {.scale = 0.3};
static const comba_delta_rule_attributes automatic = {0};

static const int32_t packed[] = {0, 1, 1, 66, 70}; /* lengths 1, 0, 65, 4 */
/* 66 gates: saturated ones among open ones */
static const int32_t gates[] = {0, 0, -100, 0, 0,    0, -1, 0, -100, -100, 0, 0,   0, 0, 0, 0, 0, 0, 0, 0,    0, 0,
                                0, 0, 0,    0, 0,    0, -1, 0, 0,    0,    0, -50, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0,
                                0, 0, 0,    0, -100, 0, 0,  0, 0,    0,    0, 0,   0, 0, 0, 0, 0, 0, 0, -100, 0, 0};
static const int32_t betas[] = {0, 1, 2, 1, 1, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 0, 2, 1, 0, 0, 1,
                                1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 1, 0, 1, 2, 0, 2, 1, 0, 1, 1,
                                0, 1, 2, 1, 1, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 0, 2, 1, 0, 0, 1};
#define SATURATED                                                                                                      \
  QUERY(1, 66, 1, 16), QUERY(1, 66, 1, 16), {{0}}, VALUES(1, 66, 1, 24),                                               \
      {COMBA_SHAPE(1, 66, 1), COMBA_FILL_VALUES, .values = betas},                                                     \
      {COMBA_SHAPE(1, 66, 1), COMBA_FILL_VALUES, .values = gates}, {                                                   \
    COMBA_SHAPE(1, 1, 16, 24)                                                                                          \
  }
/* every key is (1/4, ..., 1/4) and hardly anything decays */
#define EQUAL                                                                                                          \
  { COMBA_SHAPE(1, 130, 1, 16), COMBA_FILL_UNIFORM, .low = 0.25, .high = 0.25 }
#define IDENTICAL                                                                                                      \
  QUERY(1, 130, 1, 16), EQUAL, EQUAL, VALUES(1, 130, 1, 24),                                                           \
      {COMBA_SHAPE(1, 130, 1), COMBA_FILL_UNIFORM, .low = 0.9, .high = 1}, {                                           \
    COMBA_SHAPE(1, 130, 1), COMBA_FILL_UNIFORM, .low = -0.001, .high = 0                                               \
  }

static const comba_case cases[] = {
    {.name = "chunk, T 1", .attributes = &chunk, .input = {CASE(2, 1, 1, 1, 16, 16)}},
    {.name = "chunk, T 2", .attributes = &chunk, .input = {CASE(1, 2, 2, 2, 24, 16)}},
    {.name = "chunk, T 63", .attributes = &chunk, .input = {CASE(1, 63, 1, 1, 100, 24)}},
    {.name = "chunk, T 64, after decay", .attributes = &chunk_after, .input = {CASE(1, 64, 1, 2, 64, 64)}},
    {.name = "chunk, T 64, 2 heads", .attributes = &chunk, .input = {CASE(2, 64, 2, 2, 64, 64)}},
    {.name = "chunk, T 33, after decay, without p",
     .attributes = &chunk_after,
     .input =
         {QUERY(3, 33, 2, 24), QUERY(3, 33, 2, 24), {{0}}, VALUES(3, 33, 2, 40), BETAS(3, 33, 2), GATES(3, 33, 2)}},
    {.name = "chunk, T 50, K 7, V 13", .attributes = &chunk, .input = {CASE(1, 50, 2, 2, 7, 13)}},
    {.name = "chunk, T 65", .attributes = &chunk, .input = {CASE(1, 65, 1, 2, 24, 128)}},
    {.name = "chunk, T 150, groups, state",
     .attributes = &chunk,
     .input = {CASE(2, 150, 2, 4, 16, 24), {COMBA_SHAPE(2, 4, 16, 24)}}},
    {.name = "chunk, T 150, groups, state, after decay",
     .attributes = &chunk_after,
     .input = {CASE(2, 150, 2, 4, 16, 24), {COMBA_SHAPE(2, 4, 16, 24)}}},
    {.name = "chunk, K 128, V 256", .attributes = &chunk, .input = {CASE(1, 70, 1, 1, 128, 256)}},
    {.name = "chunk, K 256, V 100", .attributes = &chunk, .input = {CASE(1, 70, 1, 1, 256, 100)}},
    {.name = "chunk, K 1, V 3", .attributes = &chunk, .input = {CASE(1, 70, 1, 2, 1, 3)}},
    {.name = "chunk, packed",
     .attributes = &chunk,
     .input = {CASE(1, 70, 1, 2, 16, 24),
               {COMBA_SHAPE(4, 2, 16, 24)},
               {COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed}}},
    {.name = "chunk, saturated", .attributes = &chunk, .tolerance = 1e-4, .input = {SATURATED}},
    {.name = "chunk, saturated, after decay", .attributes = &chunk_after, .tolerance = 1e-4, .input = {SATURATED}},
    {.name = "chunk, identical keys", .attributes = &chunk, .tolerance = 1e-4, .input = {IDENTICAL}},
    {.name = "recurrent, T 1",
     .attributes = &recurrent,
     .input = {CASE(2, 1, 1, 1, 16, 300), {COMBA_SHAPE(2, 1, 16, 300)}}},
    {.name = "recurrent, T 1, 65 sequences",
     .attributes = &recurrent,
     .input = {CASE(65, 1, 2, 4, 8, 20), {COMBA_SHAPE(65, 4, 8, 20)}}},
    {.name = "recurrent, T 3, after decay",
     .attributes = &recurrent_after,
     .input = {CASE(2, 3, 1, 2, 200, 23), {COMBA_SHAPE(2, 2, 200, 23)}}},
    {.name = "recurrent, T 2", .attributes = &recurrent, .input = {CASE(1, 2, 2, 2, 24, 16)}},
    {.name = "recurrent, T 64, after decay", .attributes = &recurrent_after, .input = {CASE(1, 64, 1, 2, 64, 64)}},
    {.name = "recurrent, T 150, groups, state",
     .attributes = &recurrent,
     .input = {CASE(2, 150, 2, 4, 16, 24), {COMBA_SHAPE(2, 4, 16, 24)}}},
    {.name = "recurrent, T 150, groups, state, after decay",
     .attributes = &recurrent_after,
     .input = {CASE(2, 150, 2, 4, 16, 24), {COMBA_SHAPE(2, 4, 16, 24)}}},
    {.name = "recurrent, K 256, V 100", .attributes = &recurrent, .input = {CASE(1, 66, 1, 1, 256, 100)}},
    {.name = "recurrent, K 1, V 3", .attributes = &recurrent, .input = {CASE(1, 70, 1, 2, 1, 3)}},
    {.name = "recurrent, packed",
     .attributes = &recurrent,
     .input = {CASE(1, 70, 1, 2, 16, 24),
               {COMBA_SHAPE(4, 2, 16, 24)},
               {COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed}}},
    {.name = "recurrent, saturated", .attributes = &recurrent, .tolerance = 1e-4, .input = {SATURATED}},
    {.name = "recurrent, identical keys", .attributes = &recurrent, .tolerance = 1e-4, .input = {IDENTICAL}},
    {.name = "auto, scale, without p",
     .attributes = &scaled,
     .input =
         {QUERY(1, 70, 1, 64), QUERY(1, 70, 1, 64), {{0}}, VALUES(1, 70, 1, 24), BETAS(1, 70, 1), GATES(1, 70, 1)}},
    {.name = "auto, T 49, K 32: forward token by token, backward in chunks",
     .attributes = &automatic,
     .input = {CASE(2, 49, 3, 3, 32, 32)}},
    {.name = "chunk, 32", .benchmark = true, .attributes = &chunk, .input = {CASE(2, 1024, 4, 4, 32, 32)}},
    {.name = "chunk, 64", .benchmark = true, .attributes = &chunk, .input = {CASE(2, 1024, 4, 4, 64, 64)}},
    {.name = "chunk, 128", .benchmark = true, .attributes = &chunk, .input = {CASE(2, 1024, 4, 4, 128, 128)}},
    {.name = "chunk, 256", .benchmark = true, .attributes = &chunk, .input = {CASE(1, 1024, 4, 4, 256, 256)}},
    {.name = "chunk, T 16, 128", .benchmark = true, .attributes = &chunk, .input = {CASE(2, 16, 4, 4, 128, 128)}},
    {.name = "recurrent, 32", .benchmark = true, .attributes = &recurrent, .input = {CASE(2, 1024, 4, 4, 32, 32)}},
    {.name = "recurrent, 64", .benchmark = true, .attributes = &recurrent, .input = {CASE(2, 1024, 4, 4, 64, 64)}},
    {.name = "recurrent, 128", .benchmark = true, .attributes = &recurrent, .input = {CASE(2, 1024, 4, 4, 128, 128)}},
    {.name = "recurrent, T 16, 128",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {CASE(2, 16, 4, 4, 128, 128)}},
    {.name = "decode, 128",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {CASE(8, 1, 4, 4, 128, 128), {COMBA_SHAPE(8, 4, 128, 128)}}},
    {.name = "decode, 64 sequences, 256",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {CASE(64, 1, 4, 4, 256, 256), {COMBA_SHAPE(64, 4, 256, 256)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_delta_rule) = {
    .name = "delta_rule",
    .formula = "S_t = e^g S_{t-1} + beta k (v - S_{t-1}^T p)^T, o_t = scale S_t^T q",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << P | 1u << INITIAL_STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_GATE,
                    COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_delta_rule_attributes),
    .backward_inputs = 1u << Q | 1u << KEY | 1u << P | 1u << BETA | 1u << GATE | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
