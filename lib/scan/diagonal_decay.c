/* Diagonal decay, with or without a low-rank term (GLA, arXiv 2312.06635; RWKV-7, arXiv 2503.14456; Kimi Delta Attention,
 * arXiv 2510.26692), for each head:
 *   S_t = diag(e^{g_t}) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,  o_t = scale S_t^T q_t,  b = -k where it is absent
 * computed in chunks of 64 tokens by matrix products (diagonal_decay_chunk.c), or token by token
 * (diagonal_decay_recurrent.c). */
#include "scan/diagonal_decay.h"

#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/sequences.h"

/* ---- Shapes ------------------------------------------------------------------------------------------------------- */

/* input: Q to CU_SEQLENS, of the right ranks. */
static diagonal_decay_size size_of(const comba_shape *input) {
  const comba_shape *q = &input[Q], *cu_seqlens = &input[CU_SEQLENS];
  diagonal_decay_size s = {.tokens = q->size[0] * q->size[1], .K = q->size[3], .V = input[VALUE].size[3]};
  s.readers = 1 + (input[A].rank > 0);
  s.writers = 1 + (input[B].rank > 0);
  s.most = s.least = q->size[2];
  for (int i = 0; i < OPERANDS; i++) {
    s.heads[i] = input[i].size[2];
    if (!input[i].rank) continue;
    s.most = s.heads[i] > s.most ? s.heads[i] : s.most;
    s.least = s.heads[i] < s.least ? s.heads[i] : s.least;
  }
  s.sequences = cu_seqlens->rank ? cu_seqlens->size[0] - 1 : q->size[0];
  s.length = q->size[1];
  s.states = scan_states(cu_seqlens->rank, s.sequences, s.length);
  return s;
}

enum { LEAST_STATE = 1024, LEAST_STATE_LOW_RANK = 8192 }; /* of the chunk form, see scan_in_chunks */

/* How a call is cut into tasks: in forward heads in chunks, and tiles of a head's columns token by token. */
typedef struct task_context {
  const comba_call *call;
  diagonal_decay_size size;
  bool chunks;
  int64_t width, tiles;
} task_context;

static task_context context_of(const void *attributes, const comba_shape *input, const comba_call *call) {
  const comba_mode mode = ((const comba_diagonal_decay_attributes *)attributes)->mode;
  task_context x = {.call = call, .size = size_of(input)};
  const int64_t length = x.size.tokens / x.size.sequences, K = x.size.K, V = x.size.V;
  x.chunks =
      scan_in_chunks(mode, length, K, V, x.size.readers > 1 ? LEAST_STATE_LOW_RANK : LEAST_STATE, CHUNK_MIN_WORK);
  x.width = x.chunks ? V : scan_tile_width(length, K, V);
  x.tiles = (x.size.V + x.width - 1) / x.width;
  return x;
}

static int64_t forward_tasks(const task_context *x) {
  return x->size.sequences * x->size.most * x->tiles;
}

static int64_t backward_tasks(const task_context *x) {
  return x->size.sequences * x->size.least;
}

static int64_t scratch_size(const task_context *x, int64_t width, bool backward) {
  return x->chunks ? COMBA_VARIANT(comba_diagonal_decay_chunk_scratch)(x->size.K, width, backward)
                   : COMBA_VARIANT(comba_diagonal_decay_recurrent_scratch)(x->size.K, width, backward);
}

static comba_status infer(comba_signature *s) {
  const comba_shape *q = &s->input[Q], *v = &s->input[VALUE];
  const comba_shape *state = &s->input[INITIAL_STATE], *cu_seqlens = &s->input[CU_SEQLENS];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, heads, K)");
  if (s->input[B].rank && !s->input[A].rank) return comba_fail_shape(s, B, "no b without a");
  for (int i = KEY; i < OPERANDS; i++) {
    const comba_shape *x = &s->input[i];
    if (!x->rank && i >= A) continue;
    if (!comba_extent_fits(x, 4) || x->size[0] != q->size[0] || x->size[1] != q->size[1] ||
        (i != VALUE && x->size[3] != q->size[3]))
      return comba_fail_shape(s, i,
                              i == VALUE ? "(B, T, heads, V), B and T of q" : "(B, T, heads, K), all but heads of q");
  }
  const diagonal_decay_size size = size_of(s->input);
  for (int i = 0; i < OPERANDS; i++)
    if (s->input[i].rank && (size.most % size.heads[i] || size.heads[i] % size.least))
      return comba_fail_shape(s, i, "heads that divide the most heads of an input and are a multiple of the fewest");
  if (cu_seqlens->rank && (!comba_extent_fits(cu_seqlens, 1) || cu_seqlens->size[0] < 2 || q->size[0] != 1))
    return comba_fail_shape(s, CU_SEQLENS, "(N + 1) with N at least 1, and B = 1");

  const comba_shape states = COMBA_SHAPE(size.sequences, size.most, size.K, size.V);
  const comba_shape saved_states = COMBA_SHAPE(size.states, size.most, size.K, size.V);
  const comba_shape output = COMBA_SHAPE(q->size[0], q->size[1], size.most, size.V);
  if (state->rank && !comba_shape_equal(state, &states))
    return comba_fail_shape(s, INITIAL_STATE, "(N, H, K, V), N = B without cu_seqlens, H the most heads of an input");
  /* a slot's scratch is below 256 (64 + K) (64 + V) reals in both forms and both passes */
  const comba_shape scratch_bound = COMBA_SHAPE(256, CHUNK + size.K, CHUNK + size.V);
  const comba_shape *results[] = {&states, &saved_states, &output, &scratch_bound};
  for (int i = 0; i < 4; i++)
    if (!comba_extent_fits(results[i], 0)) return comba_fail_extent(s, results[i]);
  s->outputs = 2;
  s->output[OUTPUT] = output;
  s->output[FINAL_STATE] = states;
  s->saved = size.readers;
  s->saved_shape[STATES] = saved_states;
  s->saved_shape[READS] = output;

  const task_context x = context_of(s->attributes, s->input, NULL);
  s->forward_workspace = scan_slots(forward_tasks(&x)) * scratch_size(&x, x.width, false);
  s->backward_workspace = scan_slots(backward_tasks(&x)) * scratch_size(&x, size.V, true);

  const double K = (double)size.K, V = (double)v->size[3], heads = (double)size.tokens * (double)size.most;
  const double both = size.readers + size.writers, terms = size.readers * size.writers;
  s->forward_flops = heads * (x.chunks ? 2 * both * K * V + CHUNK * terms * (K + V) : (1 + 2 * both) * K * V);
  s->backward_flops = heads * (x.chunks ? 4 * both * K * V + CHUNK * terms * (3 * K + 2 * V) : 6 * both * K * V);
  return COMBA_OK;
}

/* ---- Tasks -------------------------------------------------------------------------------------------------------- */

static diagonal_decay_head head_of(const task_context *x, int64_t sequence, int64_t head) {
  const comba_call *call = x->call;
  const diagonal_decay_size *size = &x->size;
  const comba_diagonal_decay_attributes *attributes = call->attributes;
  const comba_sequences sequences = comba_sequences_of(&call->input[Q], &call->input[CU_SEQLENS]);
  const int64_t first = comba_sequence_start(&sequences, sequence), state_size = size->K * size->V;
  const int64_t slot = scan_state_slot(sequences.cu_seqlens, sequence, size->length, first);
  const int64_t output = (first * size->most + head) * size->V, state = (sequence * size->most + head) * state_size;
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  diagonal_decay_head h = {
      .length = comba_sequence_start(&sequences, sequence + 1) - first,
      .K = size->K,
      .V = size->V,
      .output_stride = size->most * size->V,
      .state_stride = size->most * state_size,
      .scale = (real)(attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)size->K)),
      .readers = size->readers,
      .writers = size->writers,
      .after_decay = attributes->read_after_decay,
      .initial_state = AT(call->input[INITIAL_STATE], state),
      .o = AT(call->output[OUTPUT], output),
      .final_state = AT(call->output[FINAL_STATE], state),
      .states = AT(call->saved[STATES], (slot * size->most + head) * state_size),
      .reads = size->readers > 1 ? AT(call->saved[READS], output) : NULL,
      .output_gradient = AT(call->output_gradient[OUTPUT], output),
      .final_state_gradient = AT(call->output_gradient[FINAL_STATE], state),
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
  };
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  for (int i = 0; i < OPERANDS; i++) {
    if (!size->heads[i]) continue;
    const int64_t width = i == VALUE ? size->V : size->K, group = size->most / size->heads[i];
    const int64_t offset = (first * size->heads[i] + head / group) * width;
    h.stride[i] = size->heads[i] * width;
    h.operand[i] = AT(call->input[i], offset);
    h.gradient[i] = AT(call->input_gradient[i], offset);
    h.accumulate[i] |= head % group > 0; /* the first head of the group has written this gradient */
  }
#undef AT
  return h;
}

static void forward_task(const void *context, int64_t task, real *scratch) {
  const task_context *x = context;
  const int64_t first = task % x->tiles * x->width, index = task / x->tiles, left = x->size.V - first;
  const diagonal_decay_head head = head_of(x, index / x->size.most, index % x->size.most);
  if (x->chunks)
    COMBA_VARIANT(comba_diagonal_decay_chunk_forward)(&head, scratch);
  else
    COMBA_VARIANT(comba_diagonal_decay_recurrent_forward)(&head, first, left < x->width ? left : x->width, scratch);
}

static void backward_task(const void *context, int64_t task, real *scratch) {
  const task_context *x = context;
  const int64_t members = x->size.most / x->size.least, first = task % x->size.least * members;
  for (int64_t member = 0; member < members; member++) {
    const diagonal_decay_head head = head_of(x, task / x->size.least, first + member);
    if (x->chunks)
      COMBA_VARIANT(comba_diagonal_decay_chunk_backward)(&head, scratch);
    else
      COMBA_VARIANT(comba_diagonal_decay_recurrent_backward)(&head, scratch);
  }
}

static task_context context_of_call(const comba_call *call) {
  comba_shape shape[INPUTS];
  for (int i = 0; i < INPUTS; i++) shape[i] = call->input[i].shape;
  return context_of(call->attributes, shape, call);
}

static void forward(const comba_call *call) {
  const task_context x = context_of_call(call);
  scan_deal(forward_tasks(&x), call->workspace, scratch_size(&x, x.width, false), forward_task, &x);
}

static void backward(const comba_call *call) {
  const task_context x = context_of_call(call);
  scan_deal(backward_tasks(&x), call->workspace, scratch_size(&x, x.size.V, true), backward_task, &x);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

#define UNIT(B, T, H, K)                                                                                               \
  { COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT }
#define VALUES(B, T, H, V)                                                                                             \
  { COMBA_SHAPE(B, T, H, V) }
#define GATES(B, T, H, K)                                                                                              \
  { COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIFORM, .low = -1, .high = 0 }
/* q, k, v, g, then a and b; more inputs may follow */
#define PLAIN(B, T, H, K, V) UNIT(B, T, H, K), UNIT(B, T, H, K), VALUES(B, T, H, V), GATES(B, T, H, K)
#define LOW_RANK(B, T, H, K, V) PLAIN(B, T, H, K, V), UNIT(B, T, H, K), UNIT(B, T, H, K)
#define ABSENT                                                                                                         \
  {                                                                                                                    \
    { 0 }                                                                                                              \
  }
#define DELTA(B, T, H, K, V) PLAIN(B, T, H, K, V), UNIT(B, T, H, K), ABSENT
#define STATE(N, H, K, V)                                                                                              \
  { COMBA_SHAPE(N, H, K, V) }

static const comba_diagonal_decay_attributes chunk = {.mode = COMBA_MODE_CHUNK};
static const comba_diagonal_decay_attributes recurrent = {.mode = COMBA_MODE_RECURRENT};
static const comba_diagonal_decay_attributes chunk_after = {.read_after_decay = true, .mode = COMBA_MODE_CHUNK};
static const comba_diagonal_decay_attributes recurrent_after = {.read_after_decay = true, .mode = COMBA_MODE_RECURRENT};
static const comba_diagonal_decay_attributes scaled = {.scale = 0.3};

static const int32_t packed[] = {0, 1, 1, 66, 70}; /* lengths 1, 0, 65, 4 */
#define PACKED                                                                                                         \
  LOW_RANK(1, 70, 2, 16, 24), STATE(4, 2, 16, 24), {                                                                   \
    COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed                                                                \
  }
/* q and a of two heads, v of one, the others of four */
#define GROUPS                                                                                                         \
  UNIT(2, 70, 2, 16), UNIT(2, 70, 4, 16), VALUES(2, 70, 1, 24), GATES(2, 70, 4, 16), UNIT(2, 70, 2, 16),               \
      UNIT(2, 70, 4, 16), STATE(2, 4, 16, 24)
/* 18 tokens of 4 channels: saturated gates among open ones */
static const int32_t gates[] = {0, -100, -1, 0, -100, 0,    0,  0, 0,  -1, -100, 0, -100, -100, -100, -100, 0,    0,
                                0, 0,    -1, 0, 0,    -100, 0,  0, -2, 0,  0,    0, 0,    0,    0,    -1,   0,    0,
                                0, 0,    0,  0, 0,    0,    -1, 0, 0,  0,  0,    0, -50,  0,    0,    0,    0,    0,
                                0, 0,    0,  0, -2,   0,    0,  0, 0,  -1, -100, 0, 0,    0,    0,    0,    -100, 0};
#define SATURATED                                                                                                      \
  UNIT(1, 18, 1, 4), UNIT(1, 18, 1, 4), VALUES(1, 18, 1, 5),                                                           \
      {COMBA_SHAPE(1, 18, 1, 4), COMBA_FILL_VALUES, .values = gates}, UNIT(1, 18, 1, 4), UNIT(1, 18, 1, 4),            \
      STATE(1, 1, 4, 5)

#define SATURATED_DELTA                                                                                                \
  UNIT(1, 18, 1, 4), UNIT(1, 18, 1, 4), VALUES(1, 18, 1, 5),                                                           \
      {COMBA_SHAPE(1, 18, 1, 4), COMBA_FILL_VALUES, .values = gates}, UNIT(1, 18, 1, 4), ABSENT, STATE(1, 1, 4, 5)

#define CASES(form, after)                                                                                             \
  {.name = #form ", T 1", .attributes = &form, .input = {LOW_RANK(2, 1, 1, 16, 16), STATE(2, 1, 16, 16)}},             \
      {.name = #form ", T 2, without a", .attributes = &form, .input = {PLAIN(1, 2, 2, 24, 16)}},                      \
      {.name = #form ", T 64", .attributes = &form, .input = {LOW_RANK(1, 64, 1, 64, 24)}},                            \
      {.name = #form ", T 65, without a, state",                                                                       \
       .attributes = &form,                                                                                            \
       .input = {PLAIN(1, 65, 2, 24, 40), ABSENT, ABSENT, STATE(1, 2, 24, 40)}},                                       \
      {.name = #form ", T 150, state",                                                                                 \
       .attributes = &form,                                                                                            \
       .input = {LOW_RANK(1, 150, 1, 16, 24), STATE(1, 1, 16, 24)}},                                                   \
      {.name = #form ", T 150, read after decay, state",                                                               \
       .attributes = &after,                                                                                           \
       .input = {LOW_RANK(1, 150, 1, 16, 24), STATE(1, 1, 16, 24)}},                                                   \
      {.name = #form ", T 150, delta rule, state",                                                                     \
       .attributes = &form,                                                                                            \
       .input = {DELTA(1, 150, 2, 16, 24), STATE(1, 2, 16, 24)}},                                                      \
      {.name = #form ", T 70, delta rule after decay", .attributes = &after, .input = {DELTA(2, 70, 1, 24, 40)}},      \
      {.name = #form ", T 1, delta rule",                                                                              \
       .attributes = &after,                                                                                           \
       .input = {DELTA(2, 1, 1, 16, 16), STATE(2, 1, 16, 16)}},                                                        \
      {.name = #form ", saturated, delta rule", .attributes = &after, .tolerance = 1e-4, .input = {SATURATED_DELTA}},  \
      {.name = #form ", K 100, V 24", .attributes = &form, .input = {LOW_RANK(1, 35, 1, 100, 24)}},                    \
      {.name = #form ", K 1, V 3", .attributes = &form, .input = {LOW_RANK(1, 70, 2, 1, 3)}},                          \
      {.name = #form ", shared heads", .attributes = &form, .input = {GROUPS}},                                        \
      {.name = #form ", packed", .attributes = &form, .input = {PACKED}},                                              \
      {.name = #form ", saturated", .attributes = &form, .tolerance = 1e-4, .input = {SATURATED}}, {                   \
    .name = #form ", saturated, read after decay", .attributes = &after, .tolerance = 1e-4, .input = { SATURATED }     \
  }

static const comba_case cases[] = {
    CASES(chunk, chunk_after),
    CASES(recurrent, recurrent_after),
    {.name = "auto, scale", .attributes = &scaled, .input = {LOW_RANK(1, 70, 1, 64, 24)}},
    {.name = "chunk, 64", .benchmark = true, .attributes = &chunk, .input = {PLAIN(2, 1024, 4, 64, 64)}},
    {.name = "chunk, 128", .benchmark = true, .attributes = &chunk, .input = {PLAIN(2, 1024, 4, 128, 128)}},
    {.name = "chunk, low rank, 64", .benchmark = true, .attributes = &chunk, .input = {LOW_RANK(2, 1024, 4, 64, 64)}},
    {.name = "chunk, low rank, 128",
     .benchmark = true,
     .attributes = &chunk,
     .input = {LOW_RANK(2, 1024, 4, 128, 128)}},
    {.name = "chunk, delta rule, 64",
     .benchmark = true,
     .attributes = &chunk_after,
     .input = {DELTA(2, 1024, 4, 64, 64)}},
    {.name = "chunk, delta rule, 128",
     .benchmark = true,
     .attributes = &chunk_after,
     .input = {DELTA(2, 1024, 4, 128, 128)}},
    {.name = "recurrent, 32", .benchmark = true, .attributes = &recurrent, .input = {PLAIN(2, 1024, 4, 32, 32)}},
    {.name = "recurrent, low rank, 64",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {LOW_RANK(2, 1024, 4, 64, 64)}},
    {.name = "decode, low rank, 128",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {LOW_RANK(8, 1, 4, 128, 128), STATE(8, 4, 128, 128)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_diagonal_decay) = {
    .name = "diagonal_decay",
    .formula = "S_t = diag(e^g) S_{t-1} + b (a^T S_{t-1}) + k v^T, o_t = scale S_t^T q; b = -k if absent",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << A | 1u << B | 1u << INITIAL_STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_ACTIVATION,
                    COMBA_ACTIVATION, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_diagonal_decay_attributes),
    .backward_inputs = 1u << Q | 1u << KEY | 1u << VALUE | 1u << GATE | 1u << A | 1u << B | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
