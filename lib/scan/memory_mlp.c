/* A memory of two layers, f(x) = gelu(x w1 + b1) w2 + b2, that descends an inner loss while it reads (TTT-MLP, arXiv 2407.04620;
 * MIRAS, arXiv 2504.13173): ops/ops.h has the recurrence.
 *
 * Chunks follow each other; within one, all is matrix products (memory_mlp_chunk.c). Sequences and heads are independent: a
 * task is one (sequence, head) in forward. In backward it is one head over a block of sequences, which adds to a gradient of
 * the head's parameters of its own; these are summed in the order of the blocks. */
#include "scan/memory_mlp.h"

#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/sequences.h"

typedef struct problem {
  const comba_call *call;
  const comba_memory_mlp_attributes *attributes;
  comba_sequences sequences;
  int64_t tokens, heads, F, M, chunk;
  int64_t blocks; /* of sequences, for each head in backward */
} problem;

static int64_t sequence_blocks(int64_t sequences, int64_t heads) {
  const int64_t most = heads < COMBA_BLOCKS ? COMBA_BLOCKS / heads : 1;
  return sequences < most ? sequences : most;
}

static int64_t chunk_of(const comba_memory_mlp_attributes *attributes) {
  return attributes->chunk ? attributes->chunk : 16;
}

static bool is_mapped(const comba_memory_mlp_attributes *attributes) {
  return attributes->map != COMBA_MEMORY_LINEAR;
}

static int64_t scratch_size(const comba_memory_mlp_attributes *attributes, int64_t F, int64_t M, bool backward) {
  return COMBA_VARIANT(comba_memory_mlp_scratch)(F, M, chunk_of(attributes), is_mapped(attributes), backward);
}

static int64_t state_size(int64_t F, int64_t M, bool retention) {
  return 2 * memory_mlp_size(F, M) + retention;
}

static problem problem_of(const comba_call *call) {
  const comba_shape *q = &call->input[Q].shape;
  problem p = {.call = call,
               .attributes = call->attributes,
               .sequences = comba_sequences_of(&call->input[Q], &call->input[CU_SEQLENS]),
               .tokens = q->size[0] * q->size[1],
               .heads = q->size[2],
               .F = q->size[3],
               .M = call->input[W1].shape.size[2],
               .chunk = chunk_of(call->attributes)};
  p.blocks = sequence_blocks(p.sequences.count, p.heads);
  return p;
}

/* Saved memories: a sequence that starts at token t uses those from (t + n C) / (GROUP C) + n on, n its number. It has at most
 * (length + C - 1) / (GROUP C) + 1, so they do not overlap. */
static int64_t memory_slot(int64_t chunk, int64_t sequence, int64_t first) {
  return (first + sequence * chunk) / (GROUP * chunk) + sequence;
}

static comba_status check_attributes(const comba_signature *s) {
  const comba_memory_mlp_attributes *a = s->attributes;
  if (a->chunk < 0 || a->chunk > CHUNK)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: chunk is %lld, expected 1 to %d, or 0 for 16", s->op,
                      (long long)a->chunk, CHUNK);
  if ((unsigned)a->map > COMBA_MEMORY_SOFTMAX_ROW)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: map is %d, expected 0 to %d", s->op, (int)a->map,
                      COMBA_MEMORY_SOFTMAX_ROW);
  if (!(a->map_exponent == 0 || (a->map_exponent >= 2 && a->map_exponent <= 64)))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: map_exponent is %g, expected 2 to 64, or 0 for 4", s->op,
                      a->map_exponent);
  if (!(a->map_total >= 0 && a->map_total < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: map_total is %g, expected a positive number, or 0", s->op,
                      a->map_total);
  if (a->normalize && inner_loss_normalizes(a->loss.kind))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: normalize is set, expected a loss without a norm of its own", s->op);
  return COMBA_VARIANT(comba_inner_loss_check)(&a->loss, s->op);
}

static comba_status check_operands(const comba_signature *s) {
  const comba_memory_mlp_attributes *a = s->attributes;
  const comba_shape *q = &s->input[Q], *w1 = &s->input[W1];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, F)");
  const int64_t H = q->size[2], F = q->size[3];
  if (!comba_shape_equal(&s->input[KEY], q)) return comba_fail_shape(s, KEY, "(B, T, H, F), as q");
  if (!comba_shape_equal(&s->input[VALUE], q)) return comba_fail_shape(s, VALUE, "(B, T, H, F), as q");
  for (int i = RATE; i <= THRESHOLD; i++)
    if ((s->input[i].rank || i == RATE || (i == THRESHOLD && inner_loss_has_threshold(a->loss.kind))) &&
        !comba_shape_equal(&s->input[i], &COMBA_SHAPE(q->size[0], q->size[1], H)))
      return comba_fail_shape(s, i, "(B, T, H), as q");
  if (s->input[TOKEN_OFFSET].rank && !comba_shape_equal(&s->input[TOKEN_OFFSET], &COMBA_SHAPE(chunk_of(a))))
    return comba_fail_shape(s, TOKEN_OFFSET, "(chunk)");
  for (int i = NORM_WEIGHT; i <= NORM_BIAS; i++)
    if ((s->input[i].rank || a->normalize || inner_loss_normalizes(a->loss.kind)) &&
        !comba_shape_equal(&s->input[i], &COMBA_SHAPE(H, F)))
      return comba_fail_shape(s, i, "(H, F), as q");
  if (!comba_extent_fits(w1, 3) || w1->size[0] != H || w1->size[1] != F)
    return comba_fail_shape(s, W1, "(H, F, M) with H and F of q");
  const int64_t M = w1->size[2];
  if (!comba_shape_equal(&s->input[B1], &COMBA_SHAPE(H, M))) return comba_fail_shape(s, B1, "(H, M), as w1");
  if (!comba_shape_equal(&s->input[W2], &COMBA_SHAPE(H, M, F))) return comba_fail_shape(s, W2, "(H, M, F), as w1");
  if (!comba_shape_equal(&s->input[B2], &COMBA_SHAPE(H, F))) return comba_fail_shape(s, B2, "(H, F), as w1");
  if (s->input[POSITION].rank && !comba_shape_equal(&s->input[POSITION], &COMBA_SHAPE(1)))
    return comba_fail_shape(s, POSITION, "(1)");
  return COMBA_OK;
}

static comba_status infer(comba_signature *s) {
  const comba_memory_mlp_attributes *attributes = s->attributes;
  comba_status status = check_attributes(s);
  if (status == COMBA_OK) status = check_operands(s);
  int64_t N;
  if (status == COMBA_OK) status = comba_infer_sequences(s, CU_SEQLENS, s->input[Q].size[0], &N);
  if (status != COMBA_OK) return status;

  const comba_shape *q = &s->input[Q];
  const int64_t H = q->size[2], F = q->size[3], M = s->input[W1].size[2], C = chunk_of(attributes);
  const int64_t P = memory_mlp_size(F, M), tokens = q->size[0] * q->size[1];
  const comba_shape states = COMBA_SHAPE(N, H, state_size(F, M, s->input[RETENTION].rank));
  const comba_shape memories = COMBA_SHAPE(memory_slot(C, N, tokens), H, P);
  const comba_shape scratch_bound = COMBA_SHAPE(16, F + 2 * C, 2 * M + 2 * C); /* of a slot's */
  const comba_shape *results[] = {&states, &memories, &scratch_bound};
  for (int i = 0; i < 3; i++)
    if (!comba_extent_fits(results[i], 0)) return comba_fail_extent(s, results[i]);
  if (s->input[INITIAL_STATE].rank && !comba_shape_equal(&s->input[INITIAL_STATE], &states))
    return comba_fail_shape(s, INITIAL_STATE,
                            "(N, H, 2 (2 F M + M + F)), 1 more with retention, N = B without cu_seqlens");
  s->outputs = 2;
  s->output[OUTPUT] = *q;
  s->output[FINAL_STATE] = states;
  s->saved = 1;
  s->saved_shape[MEMORIES] = memories;

  const int64_t tasks = H * sequence_blocks(N, H);
  s->forward_workspace = scan_slots(N * H) * scratch_size(attributes, F, M, false);
  s->backward_workspace =
      scan_slots(tasks) * scratch_size(attributes, F, M, true) + tasks * memory_mlp_parameters(F, M, C);
  const double heads = (double)tokens * (double)H, product = (double)F * (double)M;
  const double scores = (double)C * (double)(F + M);
  s->forward_flops = heads * (14 * product + 4 * scores);
  s->backward_flops = heads * (45 * product + 12 * scores);
  return COMBA_OK;
}

static memory_mlp_head head_of(const problem *p, int64_t sequence, int64_t head) {
  const comba_call *call = p->call;
  const comba_memory_mlp_attributes *attributes = p->attributes;
  const int64_t F = p->F, M = p->M, P = memory_mlp_size(F, M);
  const int64_t first = comba_sequence_start(&p->sequences, sequence);
  const int64_t row = first * p->heads + head, S = state_size(F, M, call->input[RETENTION].data);
  const int64_t state = (sequence * p->heads + head) * S;
  const int32_t *position = call->input[POSITION].data;
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  memory_mlp_head h = {
      .length = comba_sequence_start(&p->sequences, sequence + 1) - first,
      .F = F,
      .M = M,
      .chunk = p->chunk,
      .phase = position ? *position % p->chunk : 0,
      .stride = p->heads * F,
      .gate_stride = p->heads,
      .memory_stride = p->heads * P,
      .by_token = attributes->mode == COMBA_MODE_RECURRENT,
      .mapped = is_mapped(attributes),
      .map = {attributes->map, attributes->map_exponent, attributes->map_total},
      .q = AT(call->input[Q], row * F),
      .k = AT(call->input[KEY], row * F),
      .v = AT(call->input[VALUE], row * F),
      .rate = AT(call->input[RATE], row),
      .retention = AT(call->input[RETENTION], row),
      .threshold = AT(call->input[THRESHOLD], row),
      .token_offset = call->input[TOKEN_OFFSET].data,
      .w1 = AT(call->input[W1], head * F * M),
      .b1 = AT(call->input[B1], head * M),
      .w2 = AT(call->input[W2], head * M * F),
      .b2 = AT(call->input[B2], head * F),
      .initial_state = AT(call->input[INITIAL_STATE], state),
      .o = AT(call->output[OUTPUT], row * F),
      .final_state = AT(call->output[FINAL_STATE], state),
      .memories = AT(call->saved[MEMORIES], (memory_slot(p->chunk, sequence, first) * p->heads + head) * P),
      .output_gradient = AT(call->output_gradient[OUTPUT], row * F),
      .final_state_gradient = AT(call->output_gradient[FINAL_STATE], state),
      .dq = AT(call->input_gradient[Q], row * F),
      .dk = AT(call->input_gradient[KEY], row * F),
      .dv = AT(call->input_gradient[VALUE], row * F),
      .drate = AT(call->input_gradient[RATE], row),
      .dretention = AT(call->input_gradient[RETENTION], row),
      .dthreshold = AT(call->input_gradient[THRESHOLD], row),
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
  };
  const real *weight = AT(call->input[NORM_WEIGHT], head * F), *bias = AT(call->input[NORM_BIAS], head * F);
#undef AT
  h.loss.loss = COMBA_VARIANT(comba_inner_loss_of)(&attributes->loss, F, weight, bias);
  if (attributes->normalize) h.loss.weight = weight, h.loss.bias = bias;
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  return h;
}

static void forward_task(const void *context, int64_t task, real *scratch) {
  const problem *p = context;
  const memory_mlp_head head = head_of(p, task / p->heads, task % p->heads);
  COMBA_VARIANT(comba_memory_mlp_forward)(&head, scratch);
}

static void forward(const comba_call *call) {
  const problem p = problem_of(call);
  scan_deal(p.sequences.count * p.heads, call->workspace, scratch_size(p.attributes, p.F, p.M, false), forward_task,
            &p);
}

/* Of each task, behind the scratch of all slots. */
static real *parameter_gradients(const problem *p, int64_t task) {
  const int64_t scratch = scratch_size(p->attributes, p->F, p->M, true);
  return (real *)p->call->workspace + scan_slots(p->heads * p->blocks) * scratch +
         task * memory_mlp_parameters(p->F, p->M, p->chunk);
}

static void backward_task(const void *context, int64_t task, real *scratch) {
  const problem *p = context;
  const int64_t block = task % p->blocks, end = comba_block_start(p->sequences.count, p->blocks, block + 1);
  real *gradient = parameter_gradients(p, task);
  memset(gradient, 0, (size_t)memory_mlp_parameters(p->F, p->M, p->chunk) * sizeof(real));
  for (int64_t n = comba_block_start(p->sequences.count, p->blocks, block); n < end; n++) {
    memory_mlp_head head = head_of(p, n, task / p->blocks);
    head.parameter_gradient = gradient;
    COMBA_VARIANT(comba_memory_mlp_backward)(&head, scratch);
  }
}

/* Gradient of a parameter of `size` numbers a head, which lie at `offset` of a task's; `shared` by all heads. */
static void store_parameter(const problem *p, int input, int64_t offset, int64_t size, bool shared) {
  real *to = p->call->input_gradient[input].data;
  if (!to) return;
  for (int64_t task = 0; task < p->heads * p->blocks; task++) {
    real *of_head = to + (shared ? 0 : task / p->blocks * size);
    const bool later = shared ? task > 0 : task % p->blocks > 0;
    scan_store_gradient(of_head, parameter_gradients(p, task) + offset, size, later || p->call->accumulate[input]);
  }
}

static void backward(const comba_call *call) {
  const problem p = problem_of(call);
  const int64_t F = p.F, M = p.M, P = memory_mlp_size(F, M);
  scan_deal(p.heads * p.blocks, call->workspace, scratch_size(p.attributes, F, M, true), backward_task, &p);
  store_parameter(&p, W1, 0, F * M, false);
  store_parameter(&p, B1, F * M, M, false);
  store_parameter(&p, W2, F * M + M, M * F, false);
  store_parameter(&p, B2, 2 * F * M + M, F, false);
  store_parameter(&p, NORM_WEIGHT, P, F, false);
  store_parameter(&p, NORM_BIAS, P + F, F, false);
  store_parameter(&p, TOKEN_OFFSET, P + 2 * F, p.chunk, true);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

#define ROWS(B, T, H, F)                                                                                               \
  { COMBA_SHAPE(B, T, H, F) }
#define SMALL(scale_, ...)                                                                                             \
  { COMBA_SHAPE(__VA_ARGS__), .scale = scale_ }
#define ABSENT                                                                                                         \
  {                                                                                                                    \
    { 0 }                                                                                                              \
  }
#define BETWEEN(low_, high_, ...)                                                                                      \
  { COMBA_SHAPE(__VA_ARGS__), COMBA_FILL_UNIFORM, .low = low_, .high = high_ }
#define VALUES(...)                                                                                                    \
  COMBA_FILL_VALUES, .values = (const int32_t[]) {                                                                     \
    __VA_ARGS__                                                                                                        \
  }
#define POSITION_AT(n)                                                                                                 \
  { COMBA_SHAPE(1), VALUES(n) }
#define MEMORY_OF(H, F, M) SMALL(0.3, H, F, M), SMALL(0.3, H, M), SMALL(0.3, H, M, F), SMALL(0.3, H, F)
#define NORM_OF(H, F) BETWEEN(0.5, 1.5, H, F), SMALL(0.3, H, F)
#define QKV_RATE(B, T, H, F) ROWS(B, T, H, F), ROWS(B, T, H, F), ROWS(B, T, H, F), BETWEEN(0.02, 0.1, B, T, H)
/* TTT: some places of a chunk may have no weight */
#define TTT(B, T, H, F, M, C) QKV_RATE(B, T, H, F), ABSENT, ABSENT, SMALL(0.1, C), NORM_OF(H, F), MEMORY_OF(H, F, M)
/* MIRAS, with the loss of a norm, and with a threshold */
#define RETAINED(B, T, H, F, M)                                                                                        \
  QKV_RATE(B, T, H, F), BETWEEN(-0.5, 0, B, T, H), ABSENT, ABSENT, NORM_OF(H, F), MEMORY_OF(H, F, M)
#define ROBUST(B, T, H, F, M)                                                                                          \
  QKV_RATE(B, T, H, F), BETWEEN(-0.5, 0, B, T, H), BETWEEN(1, 3, B, T, H), ABSENT, ABSENT, ABSENT, MEMORY_OF(H, F, M)
#define NORMED(B, T, H, F, M)                                                                                          \
  QKV_RATE(B, T, H, F), BETWEEN(-0.5, 0, B, T, H), BETWEEN(1, 3, B, T, H), ABSENT, NORM_OF(H, F), MEMORY_OF(H, F, M)
#define STATE(N, H, F, M, more) SMALL(0.1, N, H, 2 * (2 * F * M + M + F) + more)

#define TTT_OF(chunk_, ...)                                                                                            \
  (&(const comba_memory_mlp_attributes){.chunk = chunk_, .loss = {.kind = COMBA_LOSS_LAYER_NORM}, __VA_ARGS__})
#define LOSS_OF(chunk_, loss_, ...)                                                                                    \
  (&(const comba_memory_mlp_attributes){.chunk = chunk_, .loss = {.kind = loss_}, __VA_ARGS__})

static const comba_case cases[] = {
    {.name = "T 1", .attributes = TTT_OF(4, ), .input = {TTT(2, 1, 2, 6, 10, 4)}},
    {.name = "one chunk", .attributes = TTT_OF(0, ), .input = {TTT(1, 16, 1, 8, 32, 16)}},
    {.name = "T 3, short chunk", .attributes = TTT_OF(16, ), .input = {TTT(1, 3, 2, 8, 32, 16)}},
    {.name = "T 20, two groups", .attributes = TTT_OF(4, ), .input = {TTT(2, 20, 2, 5, 7, 4)}},
    {.name = "T 70, state", .attributes = TTT_OF(16, ), .input = {TTT(2, 70, 2, 8, 12, 16), STATE(2, 2, 8, 12, 0)}},
    {.name = "state inside a chunk",
     .attributes = TTT_OF(4, ),
     .input = {TTT(1, 9, 2, 6, 10, 4), STATE(1, 2, 6, 10, 0), POSITION_AT(7)}},
    {.name = "state inside a chunk that goes on",
     .attributes = TTT_OF(5, ),
     .input = {TTT(2, 2, 1, 6, 10, 5), STATE(2, 1, 6, 10, 0), POSITION_AT(11)}},
    /* few channels: their variance comes near 0, where the norm is steep */
    {.name = "position without a state",
     .tolerance = 1e-4,
     .attributes = TTT_OF(4, ),
     .input = {TTT(1, 6, 1, 6, 10, 4), ABSENT, POSITION_AT(2)}},
    {.name = "recurrent",
     .attributes = TTT_OF(4, .mode = COMBA_MODE_RECURRENT),
     .input = {TTT(1, 11, 2, 6, 10, 4), STATE(1, 2, 6, 10, 0)}},
    {.name = "packed, empty sequences, inside chunks",
     .tolerance = 1e-4,
     .attributes = TTT_OF(3, ),
     .input = {TTT(1, 40, 2, 8, 6, 3),
               STATE(5, 2, 8, 6, 0),
               POSITION_AT(2),
               {COMBA_SHAPE(6), VALUES(0, 0, 13, 14, 14, 40)}}},
    {.name = "more heads than blocks", .tolerance = 1e-4, .attributes = TTT_OF(2, ), .input = {TTT(2, 3, 65, 4, 3, 2)}},
    {.name = "retention", .attributes = TTT_OF(4, ), .input = {RETAINED(2, 11, 2, 6, 10)}},
    {.name = "retention, recurrent, state inside a chunk",
     .attributes = TTT_OF(5, .mode = COMBA_MODE_RECURRENT),
     .input = {RETAINED(1, 9, 2, 6, 10), STATE(1, 2, 6, 10, 1), POSITION_AT(3)}},
    {.name = "retention, state inside a chunk that goes on",
     .attributes = TTT_OF(8, ),
     .input = {RETAINED(2, 3, 1, 6, 10), STATE(2, 1, 6, 10, 1), POSITION_AT(4)}},
    {.name = "power, its map",
     .attributes = LOSS_OF(4, COMBA_LOSS_POWER, .map = COMBA_MEMORY_POWER),
     .input = {ROBUST(1, 11, 2, 6, 10), STATE(1, 2, 6, 10, 1), POSITION_AT(2)}},
    {.name = "mirror map",
     .attributes = LOSS_OF(4, COMBA_LOSS_SQUARE, .map = COMBA_MEMORY_MIRROR),
     .input = {ROBUST(1, 6, 1, 6, 10)}},
    {.name = "Huber",
     .attributes = LOSS_OF(4, COMBA_LOSS_HUBER, ),
     .input = {ROBUST(2, 11, 1, 6, 10), STATE(2, 1, 6, 10, 1)}},
    {.name = "Huber of a norm",
     .attributes = LOSS_OF(4, COMBA_LOSS_HUBER, .normalize = true),
     .input = {NORMED(2, 11, 1, 6, 10), STATE(2, 1, 6, 10, 1)}},
    {.name = "power of a norm",
     .attributes = LOSS_OF(4, COMBA_LOSS_POWER, .normalize = true),
     .input = {NORMED(1, 7, 2, 6, 10)}},
    {.name = "square of a norm",
     .attributes = LOSS_OF(4, COMBA_LOSS_SQUARE, .normalize = true),
     .input = {NORMED(1, 7, 2, 6, 10)}},
    {.name = "softmax",
     .attributes = LOSS_OF(4, COMBA_LOSS_SQUARE, .map = COMBA_MEMORY_SOFTMAX),
     .input = {ROBUST(1, 11, 1, 6, 10), STATE(1, 1, 6, 10, 1), POSITION_AT(2)}},
    {.name = "64, 4 heads", .benchmark = true, .attributes = TTT_OF(16, ), .input = {TTT(2, 1024, 4, 64, 256, 16)}},
    {.name = "128, 4 heads", .benchmark = true, .attributes = TTT_OF(16, ), .input = {TTT(1, 512, 4, 128, 512, 16)}},
    {.name = "decode, 64",
     .benchmark = true,
     .attributes = TTT_OF(16, ),
     .input = {TTT(8, 1, 4, 64, 256, 16), STATE(8, 4, 64, 256, 0), POSITION_AT(3)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_memory_mlp) = {
    .name = "memory_mlp",
    .formula = "o = f(q), f two layers that descend a loss of f(k) against v - k chunk by chunk",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << RETENTION | 1u << THRESHOLD | 1u << TOKEN_OFFSET | 1u << NORM_WEIGHT | 1u << NORM_BIAS |
                       1u << INITIAL_STATE | 1u << POSITION | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_GATE, COMBA_GATE,
                    COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER,
                    COMBA_PARAMETER, COMBA_PARAMETER, COMBA_STATE, COMBA_INDEX, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_memory_mlp_attributes),
    .backward_inputs = (1u << INPUTS) - 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
