/* MesaNet's query (arXiv 2506.05233), for each head, with lambda = softplus(parameter) + lower bound:
 *   H_t = e^{g_t} H_{t-1} + beta_t k_t k_t^T;  x_t = (H_t + diag(lambda))^{-1} q_t by conjugate gradients (mesa_solve.c)
 * What x reads from a state of values with the same decay is the least-squares answer to q.
 *
 * Backward takes x as the exact solution: y_t solves the same system for dx_t (the matrix is symmetric), and then
 *   dq = y;  dH_t = -x_t y_t^T;  dlambda = -sum x y
 * so that k, beta and g get the gradients of scalar decay that reads with x, writes beta k and k, and whose output has the
 * gradient -y. Saved: the state before every 64th token; with it the systems of every chunk stand alone. */
#include "scan/mesa.h"

#include "core/gemm.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "scan/scalar_decay.h"

/* Operands are numbered as scalar decay's; beta takes the place of v. */
enum { BETA = VALUE, LAMBDA = INPUTS, MESA_INPUTS };
enum { DEFAULT_STEPS = 30 };
enum { LEAST_STATE = 1024 }; /* of the chunk form, as scalar_decay has it */

/* Of one call: sizes, lambda (H,K), and the states before the chunks (slots,H,K,K). */
typedef struct problem {
  const comba_call *call;
  scalar_tasks tasks; /* with V = K */
  int64_t steps;
  real *lambda, *states;
  /* of a solve: right-hand sides and solutions (B,T,H,K) */
  const real *b;
  real *x;
  /* backward, as k: beta k, its gradient, and -y */
  real *written, *written_gradient, *read_gradient;
} problem;

static scalar_size size_of(const comba_shape *k, const comba_shape *cu_seqlens) {
  return scalar_size_of(k, k, k, cu_seqlens);
}

static int64_t solve_scratch(const scalar_tasks *x) {
  return x->chunks ? COMBA_VARIANT(comba_mesa_chunk_scratch)(x->size.K)
                   : COMBA_VARIANT(comba_mesa_recurrent_scratch)(x->size.K);
}

/* The pass over the states of a head holds the state, the decays of a chunk, and the rows that it leaves. */
static int64_t states_scratch(int64_t K) {
  return K * K + CHUNK * CHUNK + CHUNK * K;
}

static int64_t scan_scratch(const scalar_tasks *x) {
  return x->chunks ? COMBA_VARIANT(comba_scalar_decay_chunk_scratch)(x->size.K, x->size.K, true)
                   : COMBA_VARIANT(comba_scalar_decay_recurrent_scratch)(x->size.K, x->size.K, true);
}

static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static int64_t heads_of(const scalar_size *size) {
  return size->sequences * size->heads;
}
static int64_t systems_of(const scalar_size *size) {
  return size->states * size->heads;
}

static comba_status infer(comba_signature *s) {
  static const scalar_operands operands = {Q, KEY, KEY, GATE, INITIAL_STATE, CU_SEQLENS, .gates_optional = false};
  const comba_mesa_attributes *attributes = s->attributes;
  const comba_shape *q = &s->input[Q];
  const comba_status status = scalar_infer(s, &operands);
  if (status != COMBA_OK) return status;
  if (!comba_shape_equal(&s->input[BETA], &s->input[GATE])) return comba_fail_shape(s, BETA, "(B, T, H), as g");
  if (!comba_shape_equal(&s->input[LAMBDA], &COMBA_SHAPE(q->size[2], q->size[3])))
    return comba_fail_shape(s, LAMBDA, "(H, K)");
  if (attributes->steps < 0 || !(attributes->lower_bound >= 0 && attributes->lower_bound < HUGE_VAL))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: steps is %lld, lower_bound %g, expected finite numbers >= 0", s->op,
                      (long long)attributes->steps, attributes->lower_bound);

  const scalar_size size = size_of(&s->input[KEY], &s->input[CU_SEQLENS]);
  const scalar_tasks x = scalar_tasks_of(&size, attributes->mode, LEAST_STATE, CHUNK_MIN_WORK, NULL);
  const int64_t parameters = size.heads * size.K, rows = size.tokens * parameters;
  const int64_t solve = scan_slots(systems_of(&size)) * solve_scratch(&x);
  s->forward_workspace = parameters + systems_of(&size) * size.K * size.K +
                         larger(solve, scan_slots(heads_of(&size)) * states_scratch(size.K));
  s->backward_workspace = parameters + 3 * rows + comba_row_blocks(size.tokens, parameters) * parameters +
                          larger(solve, scan_slots(heads_of(&size)) * scan_scratch(&x));

  const double K = (double)size.K, heads = (double)size.tokens * (double)size.heads;
  const double steps = (double)(attributes->steps ? attributes->steps : DEFAULT_STEPS);
  const double solving = steps * (x.chunks ? 2 * K * K + 4 * CHUNK * K : 2 * K * K);
  s->forward_flops = heads * (2 * K * K + solving);
  s->backward_flops = heads * (solving + (x.chunks ? 8 * K * K + 10 * CHUNK * K : 13 * K * K));
  return COMBA_OK;
}

static problem problem_of(const comba_call *call, real *lambda) {
  const comba_mesa_attributes *attributes = call->attributes;
  const scalar_size size = size_of(&call->input[KEY].shape, &call->input[CU_SEQLENS].shape);
  problem p = {.call = call,
               .tasks = scalar_tasks_of(&size, attributes->mode, LEAST_STATE, CHUNK_MIN_WORK, call),
               .lambda = lambda};
  p.steps = attributes->steps ? attributes->steps : DEFAULT_STEPS;
  p.states = call->saved[STATES].data;
  for (int64_t i = 0; i < size.heads * size.K; i++)
    lambda[i] = comba_softplus(((const real *)call->input[LAMBDA].data)[i]) + (real)attributes->lower_bound;
  return p;
}

/* First token and length of a sequence, and the first of its saved states. */
typedef struct stretch {
  int64_t first, length, slot;
} stretch;

static stretch stretch_of(const problem *p, int64_t sequence) {
  const scalar_size *size = &p->tasks.size;
  const int32_t *cu_seqlens = p->call->input[CU_SEQLENS].data;
  const int64_t first = cu_seqlens ? cu_seqlens[sequence] : sequence * size->length;
  return (stretch){first, cu_seqlens ? cu_seqlens[sequence + 1] - first : size->length,
                   scan_state_slot(cu_seqlens, sequence, size->length, first)};
}

static int64_t chunk_length(const stretch *s, int64_t start) {
  return s->length - start < CHUNK ? s->length - start : CHUNK;
}

/* ---- States ------------------------------------------------------------------------------------------------------- */

/* The states before the chunks of one sequence and head, and the final one. */
static void pass_states(const void *context, int64_t task, real *scratch) {
  const problem *p = context;
  const comba_call *call = p->call;
  const scalar_size *size = &p->tasks.size;
  const int64_t H = size->heads, K = size->K, head = task % H, square = K * K;
  const stretch s = stretch_of(p, task / H);
  real *state = scratch, *matrix = state + square, *left = matrix + CHUNK * CHUNK;
  const real *initial = call->input[INITIAL_STATE].data;
  scan_load_state(state, initial ? initial + task * square : NULL, square);
  for (int64_t start = 0; start < s.length; start += CHUNK) {
    const int64_t n = chunk_length(&s, start), at = (s.first + start) * H + head;
    const real *k = (const real *)call->input[KEY].data + at * K, *beta = (const real *)call->input[BETA].data + at;
    chunk_decay d;
    memcpy(p->states + ((s.slot + start / CHUNK) * H + head) * square, state, (size_t)square * sizeof(real));
    chunk_find_decay(n, (const real *)call->input[GATE].data + at, H, &d, matrix);
    for (int64_t i = 0; i < n; i++) comba_store_scaled(left + i * K, d.out[i] * beta[i * H], k + i * H * K, K, false);
    comba_gemm_serial('T', 'N', K, K, n, 1, k, H * K, left, K, d.total, state, K);
  }
  memcpy((real *)call->output[FINAL_STATE].data + task * square, state, (size_t)square * sizeof(real));
}

/* ---- Systems ------------------------------------------------------------------------------------------------------ */

/* The sequence that a saved state belongs to: the last one whose states begin at or before it. */
static int64_t sequence_of(const problem *p, int64_t slot) {
  int64_t low = 0, high = p->tasks.size.sequences;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (stretch_of(p, middle).slot <= slot)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/* One chunk of one head, task = (slot, head). Packed sequences leave slots unused. */
static void solve_systems(const void *context, int64_t task, real *scratch) {
  const problem *p = context;
  const comba_call *call = p->call;
  const int64_t H = p->tasks.size.heads, K = p->tasks.size.K, slot = task / H, head = task % H;
  const stretch s = stretch_of(p, sequence_of(p, slot));
  const int64_t start = (slot - s.slot) * CHUNK, at = (s.first + start) * H + head;
  if (start >= s.length) return;
  const mesa_systems systems = {.n = chunk_length(&s, start),
                                .K = K,
                                .stride = H * K,
                                .gate_stride = H,
                                .steps = p->steps,
                                .k = (const real *)call->input[KEY].data + at * K,
                                .beta = (const real *)call->input[BETA].data + at,
                                .g = (const real *)call->input[GATE].data + at,
                                .lambda = p->lambda + head * K,
                                .state = p->states + task * K * K,
                                .b = p->b + at * K,
                                .x = p->x + at * K};
  if (p->tasks.chunks)
    COMBA_VARIANT(comba_mesa_chunk_solve)(&systems, scratch);
  else
    COMBA_VARIANT(comba_mesa_recurrent_solve)(&systems, scratch);
}

static void forward(const comba_call *call) {
  real *lambda = call->workspace;
  problem p = problem_of(call, lambda);
  const scalar_size *size = &p.tasks.size;
  real *own_states = lambda + size->heads * size->K, *scratch = own_states + systems_of(size) * size->K * size->K;
  if (!p.states) p.states = own_states;
  scan_deal(heads_of(size), scratch, states_scratch(size->K), pass_states, &p);
  p.b = call->input[Q].data;
  p.x = call->output[OUTPUT].data;
  scan_deal(systems_of(size), scratch, solve_scratch(&p.tasks), solve_systems, &p);
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* Gradients of k, beta, g and the initial state in one sequence and head. */
static void backward_head(const void *context, int64_t task, real *scratch) {
  const problem *p = context;
  const comba_call *call = p->call;
  const int64_t H = p->tasks.size.heads, K = p->tasks.size.K, head = task % H, square = K * K;
  const stretch s = stretch_of(p, task / H);
  const int64_t gate = s.first * H + head, row = gate * K;
  const real *k = (const real *)call->input[KEY].data + row, *beta = (const real *)call->input[BETA].data + gate;
  real *written = p->written + row, *written_gradient = p->written_gradient + row;
  for (int64_t t = 0; t < s.length; t++) comba_store_scaled(written + t * H * K, beta[t * H], k + t * H * K, K, false);
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  scalar_decay_head h = {.length = s.length,
                         .K = K,
                         .V = K,
                         .query_stride = H * K,
                         .key_stride = H * K,
                         .value_stride = H * K,
                         .output_stride = H * K,
                         .gate_stride = H,
                         .state_stride = H * square,
                         .scale = 1,
                         .q = (const real *)call->output[OUTPUT].data + row,
                         .k = written,
                         .v = k,
                         .g = (const real *)call->input[GATE].data + gate,
                         .states = p->states + (s.slot * H + head) * square,
                         .output_gradient = p->read_gradient + row,
                         .final_state_gradient = AT(call->output_gradient[FINAL_STATE], task * square),
                         .dk = written_gradient,
                         .dv = AT(call->input_gradient[KEY], row),
                         .dg = AT(call->input_gradient[GATE], gate),
                         .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], task * square)};
  real *dk = h.dv, *dbeta = AT(call->input_gradient[BETA], gate);
#undef AT
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  h.accumulate[VALUE] = call->accumulate[KEY];
  h.accumulate[KEY] = false;
  if (p->tasks.chunks)
    COMBA_VARIANT(comba_scalar_decay_chunk_backward)(&h, scratch);
  else
    COMBA_VARIANT(comba_scalar_decay_recurrent_backward)(&h, scratch);
  for (int64_t t = 0; t < s.length; t++) {
    const int64_t at = t * H * K;
    if (dk) comba_store_scaled(dk + at, beta[t * H], written_gradient + at, K, true);
    if (dbeta) dbeta[t * H] = (call->accumulate[BETA] ? dbeta[t * H] : 0) + scan_dot(written_gradient + at, k + at, K);
  }
}

/* dlambda (H,K) = sum over tokens of x (-y), and through softplus to the parameter. */
static void backward_lambda(const problem *p, real *partial) {
  const comba_call *call = p->call;
  const int64_t tokens = p->tasks.size.tokens, n = p->tasks.size.heads * p->tasks.size.K;
  const int64_t blocks = comba_row_blocks(tokens, n);
  const real *x = call->output[OUTPUT].data, *parameter = call->input[LAMBDA].data;
  if (!call->input_gradient[LAMBDA].data) return;
#pragma omp parallel for if (tokens * n > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    real *sum = partial + block * n;
    memset(sum, 0, (size_t)n * sizeof(real));
    for (int64_t t = comba_block_start(tokens, blocks, block); t < comba_block_start(tokens, blocks, block + 1); t++)
      for (int64_t c = 0; c < n; c++) sum[c] += x[t * n + c] * p->read_gradient[t * n + c];
    for (int64_t c = 0; c < n; c++) sum[c] *= comba_sigmoid(parameter[c]);
  }
  comba_store_blocks(call->input_gradient[LAMBDA].data, partial, blocks, n, call->accumulate[LAMBDA]);
}

static void backward(const comba_call *call) {
  real *lambda = call->workspace;
  problem p = problem_of(call, lambda);
  const scalar_size *size = &p.tasks.size;
  const int64_t parameters = size->heads * size->K, count = size->tokens * parameters;
  real *partial = lambda + parameters + 3 * count;
  real *scratch = partial + comba_row_blocks(size->tokens, parameters) * parameters;
  p.written = lambda + parameters;
  p.written_gradient = p.written + count;
  p.read_gradient = p.written_gradient + count;
  if (call->output_gradient[OUTPUT].data) {
    p.b = call->output_gradient[OUTPUT].data;
    p.x = p.read_gradient;
    scan_deal(systems_of(size), scratch, solve_scratch(&p.tasks), solve_systems, &p);
  } else {
    memset(p.read_gradient, 0, (size_t)count * sizeof(real));
  }
  if (call->input_gradient[Q].data)
    comba_store(call->input_gradient[Q].data, p.read_gradient, count, call->accumulate[Q]);
#pragma omp parallel for if (count > COMBA_SERIAL)
  for (int64_t i = 0; i < count; i++) p.read_gradient[i] = -p.read_gradient[i];
  scan_deal(heads_of(size), scratch, scan_scratch(&p.tasks), backward_head, &p);
  backward_lambda(&p, partial);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

#define HEADS(B, T, H, K)                                                                                              \
  {COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT}, {COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT}, {                            \
    COMBA_SHAPE(B, T, H), COMBA_FILL_UNIFORM, .low = 0, .high = 1                                                      \
  }
#define OPEN(B, T, H)                                                                                                  \
  { COMBA_SHAPE(B, T, H), COMBA_FILL_UNIFORM, .low = -0.5, .high = 0 }
#define ABSENT                                                                                                         \
  {                                                                                                                    \
    { 0 }                                                                                                              \
  }
#define ALONE(B, T, H, K)                                                                                              \
  HEADS(B, T, H, K), OPEN(B, T, H), ABSENT, ABSENT, {                                                                  \
    COMBA_SHAPE(H, K)                                                                                                  \
  }

static const comba_mesa_attributes chunk = {.lower_bound = 0.25, .steps = 60, .mode = COMBA_MODE_CHUNK};
static const comba_mesa_attributes recurrent = {.lower_bound = 0.25, .steps = 60, .mode = COMBA_MODE_RECURRENT};
/* So few steps that all are taken, as the operations are counted. */
static const comba_mesa_attributes timed_chunk = {.lower_bound = 0.25, .steps = 6, .mode = COMBA_MODE_CHUNK};
static const comba_mesa_attributes timed_recurrent = {.lower_bound = 0.25, .steps = 6, .mode = COMBA_MODE_RECURRENT};

/* A state is symmetric and has no negative eigenvalue: here one of two outer products. */
static const int32_t state[] = {2, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 2, 0, 0, 2, 4};
static const int32_t states[] = {2, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 5, 2, 2, 1};
static const int32_t packed[] = {0, 1, 1, 66, 70}; /* lengths 1, 0, 65, 4 */
static const int32_t gates[] = {0, 0, -100, 0, 0, -1, 0, -100, -100, 0, 0, -50, 0, 0, 0, 0, -100};

#define CASES(form)                                                                                                    \
  {.name = #form ", T 1", .attributes = &form, .input = {ALONE(2, 1, 1, 16)}},                                         \
      {.name = #form ", T 65", .attributes = &form, .input = {ALONE(1, 65, 2, 8)}},                                    \
      {.name = #form ", T 150", .attributes = &form, .input = {ALONE(2, 150, 1, 24)}},                                 \
      {.name = #form ", from a state",                                                                                 \
       .attributes = &form,                                                                                            \
       .input = {HEADS(1, 70, 1, 4),                                                                                   \
                 OPEN(1, 70, 1),                                                                                       \
                 {COMBA_SHAPE(1, 1, 4, 4), COMBA_FILL_VALUES, .values = state, .no_gradient = true},                   \
                 ABSENT,                                                                                               \
                 {COMBA_SHAPE(1, 4)}}},                                                                                \
      {.name = #form ", packed",                                                                                       \
       .attributes = &form,                                                                                            \
       .input = {HEADS(1, 70, 1, 2),                                                                                   \
                 OPEN(1, 70, 1),                                                                                       \
                 {COMBA_SHAPE(4, 1, 2, 2), COMBA_FILL_VALUES, .values = states, .no_gradient = true},                  \
                 {COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed},                                                \
                 {COMBA_SHAPE(1, 2)}}},                                                                                \
  {                                                                                                                    \
    .name = #form ", saturated", .attributes = &form, .tolerance = 1e-4, .input = {                                    \
      HEADS(1, 17, 1, 8),                                                                                              \
      {COMBA_SHAPE(1, 17, 1), COMBA_FILL_VALUES, .values = gates},                                                     \
      ABSENT,                                                                                                          \
      ABSENT,                                                                                                          \
      {COMBA_SHAPE(1, 8), .scale = 30}                                                                                 \
    }                                                                                                                  \
  }

static const comba_case cases[] = {
    CASES(chunk),
    CASES(recurrent),
    {.name = "chunk, 64", .benchmark = true, .attributes = &timed_chunk, .input = {ALONE(2, 1024, 4, 64)}},
    {.name = "recurrent, 64", .benchmark = true, .attributes = &timed_recurrent, .input = {ALONE(2, 1024, 4, 64)}},
    {.name = "chunk, 128", .benchmark = true, .attributes = &timed_chunk, .input = {ALONE(1, 1024, 4, 128)}},
    {.name = "recurrent, 128", .benchmark = true, .attributes = &timed_recurrent, .input = {ALONE(1, 1024, 4, 128)}},
    {.name = "decode, 128", .benchmark = true, .attributes = &timed_recurrent, .input = {ALONE(8, 1, 4, 128)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_mesa) = {
    .name = "mesa",
    .formula = "H_t = e^g H_{t-1} + beta k k^T, x_t = (H_t + diag(lambda))^{-1} q",
    .inputs = MESA_INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << INITIAL_STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_GATE, COMBA_STATE, COMBA_INDEX,
                    COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_mesa_attributes),
    .backward_inputs = 1u << KEY | 1u << BETA | 1u << GATE | 1u << CU_SEQLENS | 1u << LAMBDA,
    .backward_outputs = 1u << OUTPUT,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
