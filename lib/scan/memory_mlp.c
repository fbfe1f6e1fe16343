/* A memory of two layers that descends an inner loss while it reads (TTT-MLP, arXiv 2407.04620), for each head. In chunks of C
 * tokens, at the memory of a chunk's start,
 *   f(x) = gelu(x w1 + b1) w2 + b2,  loss_j = 1/2 |LN(f(k_j)) - (v_j - k_j)|^2, LN with norm_weight and norm_bias
 *   memory_i = memory - max(1/i + token_offset_i, 0) sum_{j <= i} rate_j d loss_j / d memory,  i = 1 .. C
 *   o_i = f_i(q_i), f_i with memory_i; memory_C is the next chunk's.
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
  comba_sequences sequences;
  int64_t tokens, heads, F, M, chunk;
  int64_t blocks; /* of sequences, for each head in backward */
} problem;

static int64_t sequence_blocks(int64_t sequences, int64_t heads) {
  const int64_t most = heads < COMBA_BLOCKS ? COMBA_BLOCKS / heads : 1;
  return sequences < most ? sequences : most;
}

static problem problem_of(const comba_call *call) {
  const comba_shape *q = &call->input[Q].shape;
  problem p = {.call = call,
               .sequences = comba_sequences_of(&call->input[Q], &call->input[CU_SEQLENS]),
               .tokens = q->size[0] * q->size[1],
               .heads = q->size[2],
               .F = q->size[3],
               .M = call->input[W1].shape.size[2],
               .chunk = call->input[TOKEN_OFFSET].shape.size[0]};
  p.blocks = sequence_blocks(p.sequences.count, p.heads);
  return p;
}

/* Saved memories: a sequence that starts at token t uses those from (t + n C) / (GROUP C) + n on, n its number. It has at most
 * (length + C - 1) / (GROUP C) + 1, so they do not overlap. */
static int64_t memory_slot(int64_t chunk, int64_t sequence, int64_t first) {
  return (first + sequence * chunk) / (GROUP * chunk) + sequence;
}

static comba_status infer(comba_signature *s) {
  const comba_memory_mlp_attributes *attributes = s->attributes;
  const comba_shape *q = &s->input[Q], *offset = &s->input[TOKEN_OFFSET], *w1 = &s->input[W1];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, F)");
  const int64_t H = q->size[2], F = q->size[3];
  if (!comba_shape_equal(&s->input[KEY], q)) return comba_fail_shape(s, KEY, "(B, T, H, F), as q");
  if (!comba_shape_equal(&s->input[VALUE], q)) return comba_fail_shape(s, VALUE, "(B, T, H, F), as q");
  if (!comba_shape_equal(&s->input[RATE], &COMBA_SHAPE(q->size[0], q->size[1], H)))
    return comba_fail_shape(s, RATE, "(B, T, H), as q");
  if (!comba_extent_fits(offset, 1)) return comba_fail_shape(s, TOKEN_OFFSET, "(C)");
  for (int i = NORM_WEIGHT; i <= NORM_BIAS; i++)
    if (!comba_shape_equal(&s->input[i], &COMBA_SHAPE(H, F))) return comba_fail_shape(s, i, "(H, F), as q");
  if (!comba_extent_fits(w1, 3) || w1->size[0] != H || w1->size[1] != F)
    return comba_fail_shape(s, W1, "(H, F, M) with H and F of q");
  const int64_t M = w1->size[2], C = offset->size[0];
  if (!comba_shape_equal(&s->input[B1], &COMBA_SHAPE(H, M))) return comba_fail_shape(s, B1, "(H, M), as w1");
  if (!comba_shape_equal(&s->input[W2], &COMBA_SHAPE(H, M, F))) return comba_fail_shape(s, W2, "(H, M, F), as w1");
  if (!comba_shape_equal(&s->input[B2], &COMBA_SHAPE(H, F))) return comba_fail_shape(s, B2, "(H, F), as w1");
  if (!(attributes->epsilon >= 0 && attributes->epsilon < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: epsilon is %g, expected a finite number >= 0", s->op,
                      attributes->epsilon);
  int64_t N;
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, q->size[0], &N);
  if (status != COMBA_OK) return status;

  /* the larger of a slot's scratch and the saved memories, each factor far below the limit before they are multiplied */
  const comba_shape widths = COMBA_SHAPE(16, F + C + 1, 2 * M + C + 1);
  if (!comba_extent_fits(&widths, 0)) return comba_fail_extent(s, &widths);
  const int64_t P = memory_mlp_size(F, M), tokens = q->size[0] * q->size[1];
  const comba_shape states = COMBA_SHAPE(N, H, 2 * P);
  const comba_shape memories = COMBA_SHAPE(memory_slot(C, N, tokens), H, P);
  if (!comba_extent_fits(&states, 0)) return comba_fail_extent(s, &states);
  if (!comba_extent_fits(&memories, 0)) return comba_fail_extent(s, &memories);
  if (s->input[INITIAL_STATE].rank && !comba_shape_equal(&s->input[INITIAL_STATE], &states))
    return comba_fail_shape(s, INITIAL_STATE, "(N, H, 2 (2 F M + M + F)), N = B without cu_seqlens");
  if (s->input[POSITION].rank && !comba_shape_equal(&s->input[POSITION], &COMBA_SHAPE(1)))
    return comba_fail_shape(s, POSITION, "(1)");
  s->outputs = 2;
  s->output[OUTPUT] = *q;
  s->output[FINAL_STATE] = states;
  s->saved = 1;
  s->saved_shape[MEMORIES] = memories;

  const int64_t tasks = H * sequence_blocks(N, H);
  s->forward_workspace = scan_slots(N * H) * COMBA_VARIANT(comba_memory_mlp_scratch)(F, M, C, false);
  s->backward_workspace = scan_slots(tasks) * COMBA_VARIANT(comba_memory_mlp_scratch)(F, M, C, true) +
                          tasks * memory_mlp_parameters(F, M, C);
  const double heads = (double)tokens * (double)H, product = (double)F * (double)M;
  const double scores = (double)C * (double)(F + M);
  s->forward_flops = heads * (14 * product + 4 * scores);
  s->backward_flops = heads * (45 * product + 12 * scores);
  return COMBA_OK;
}

static memory_mlp_head head_of(const problem *p, int64_t sequence, int64_t head) {
  const comba_call *call = p->call;
  const comba_memory_mlp_attributes *attributes = call->attributes;
  const comba_inner_loss_attributes loss = {.kind = COMBA_LOSS_LAYER_NORM, .epsilon = attributes->epsilon};
  const int64_t F = p->F, M = p->M, P = memory_mlp_size(F, M);
  const int64_t first = comba_sequence_start(&p->sequences, sequence);
  const int64_t row = first * p->heads + head, state = (sequence * p->heads + head) * 2 * P;
  const int32_t *position = call->input[POSITION].data;
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  memory_mlp_head h = {
      .length = comba_sequence_start(&p->sequences, sequence + 1) - first,
      .F = F,
      .M = M,
      .chunk = p->chunk,
      .phase = position ? *position % p->chunk : 0,
      .stride = p->heads * F,
      .rate_stride = p->heads,
      .memory_stride = p->heads * P,
      .by_token = attributes->mode == COMBA_MODE_RECURRENT,
      .q = AT(call->input[Q], row * F),
      .k = AT(call->input[KEY], row * F),
      .v = AT(call->input[VALUE], row * F),
      .rate = AT(call->input[RATE], row),
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
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
  };
#undef AT
  h.loss = COMBA_VARIANT(comba_inner_loss_of)(&loss, F, (const real *)call->input[NORM_WEIGHT].data + head * F,
                                              (const real *)call->input[NORM_BIAS].data + head * F);
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
  scan_deal(p.sequences.count * p.heads, call->workspace,
            COMBA_VARIANT(comba_memory_mlp_scratch)(p.F, p.M, p.chunk, false), forward_task, &p);
}

/* Of each task, behind the scratch of all slots. */
static real *parameter_gradients(const problem *p, int64_t task) {
  const int64_t scratch = COMBA_VARIANT(comba_memory_mlp_scratch)(p->F, p->M, p->chunk, true);
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
  scan_deal(p.heads * p.blocks, call->workspace, COMBA_VARIANT(comba_memory_mlp_scratch)(F, M, p.chunk, true),
            backward_task, &p);
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
/* all but state, position and cu_seqlens; some places of a chunk may have no weight */
#define OPERANDS(B, T, H, F, M, C)                                                                                     \
  ROWS(B, T, H, F), ROWS(B, T, H, F), ROWS(B, T, H, F),                                                                \
      {COMBA_SHAPE(B, T, H), COMBA_FILL_UNIFORM, .low = 0.02, .high = 0.1}, SMALL(0.1, C),                             \
      {COMBA_SHAPE(H, F), COMBA_FILL_UNIFORM, .low = 0.5, .high = 1.5}, SMALL(0.3, H, F), SMALL(0.3, H, F, M),         \
      SMALL(0.3, H, M), SMALL(0.3, H, M, F), SMALL(0.3, H, F)
#define STATE(N, H, F, M) SMALL(0.1, N, H, 2 * (2 * F * M + M + F))
#define ABSENT                                                                                                         \
  {                                                                                                                    \
    { 0 }                                                                                                              \
  }
#define VALUES(...)                                                                                                    \
  COMBA_FILL_VALUES, .values = (const int32_t[]) {                                                                     \
    __VA_ARGS__                                                                                                        \
  }
#define POSITION_AT(n)                                                                                                 \
  { COMBA_SHAPE(1), VALUES(n) }

static const comba_memory_mlp_attributes recurrent = {.mode = COMBA_MODE_RECURRENT};
static const comba_memory_mlp_attributes epsilon = {.epsilon = 0.1};

static const comba_case cases[] = {
    {.name = "T 1", .input = {OPERANDS(2, 1, 2, 6, 10, 4)}},
    {.name = "one chunk", .input = {OPERANDS(1, 16, 1, 8, 32, 16)}},
    {.name = "T 3, short chunk", .input = {OPERANDS(1, 3, 2, 8, 32, 16)}},
    {.name = "T 20, two groups, epsilon", .attributes = &epsilon, .input = {OPERANDS(2, 20, 2, 5, 7, 4)}},
    {.name = "T 70, state", .input = {OPERANDS(2, 70, 2, 8, 12, 16), STATE(2, 2, 8, 12)}},
    {.name = "state inside a chunk", .input = {OPERANDS(1, 9, 2, 6, 10, 4), STATE(1, 2, 6, 10), POSITION_AT(7)}},
    {.name = "state inside a chunk that goes on",
     .input = {OPERANDS(2, 2, 1, 6, 10, 5), STATE(2, 1, 6, 10), POSITION_AT(11)}},
    /* few channels: their variance comes near 0, where the norm is steep */
    {.name = "position without a state",
     .tolerance = 1e-4,
     .input = {OPERANDS(1, 6, 1, 6, 10, 4), ABSENT, POSITION_AT(2)}},
    {.name = "recurrent", .attributes = &recurrent, .input = {OPERANDS(1, 11, 2, 6, 10, 4), STATE(1, 2, 6, 10)}},
    {.name = "packed, empty sequences, inside chunks",
     .input = {OPERANDS(1, 40, 2, 4, 6, 3),
               STATE(5, 2, 4, 6),
               POSITION_AT(2),
               {COMBA_SHAPE(6), VALUES(0, 0, 13, 14, 14, 40)}}},
    {.name = "more heads than blocks", .tolerance = 1e-4, .input = {OPERANDS(2, 3, 65, 4, 3, 2)}},
    {.name = "64, 4 heads", .benchmark = true, .input = {OPERANDS(2, 1024, 4, 64, 256, 16)}},
    {.name = "128, 4 heads", .benchmark = true, .input = {OPERANDS(1, 512, 4, 128, 512, 16)}},
    {.name = "decode, 64", .benchmark = true, .input = {OPERANDS(8, 1, 4, 64, 256, 16), STATE(8, 4, 64, 256)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_memory_mlp) = {
    .name = "memory_mlp",
    .formula = "o = f(q), f two layers that descend 1/2 |LN(f(k)) - (v - k)|^2 chunk by chunk",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << INITIAL_STATE | 1u << POSITION | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_PARAMETER, COMBA_PARAMETER,
                    COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_STATE,
                    COMBA_INDEX, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_memory_mlp_attributes),
    .backward_inputs = (1u << INPUTS) - 1,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
