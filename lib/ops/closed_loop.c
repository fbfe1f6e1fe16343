/* Query, key and feedback vector of Comba (arXiv 2506.02475, Eq. 5) from q and k (B,T,H,K), norm(x) = x / sqrt(sum(x^2) + epsilon):
 *
 *   b = sigmoid(s_h), 1 without s;  m = D_h, 0 without D;  f = b with feedback_decay, else 1
 *   q' = norm(q - m b k),  k' = norm(k),  p' = norm(f k)         as released
 *   q' = norm(q) - m b k',                p' = norm(f k')        with after_norm
 *                                         p' = f k'              without p_normalize
 *
 * All three are q and k times factors of the row (closed_loop.h), and so are the gradients with those of the results. Nothing is saved:
 * backward reads q and k and takes their inner products again. */
#include "ops/closed_loop.h"

#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { Q, K, S, D };
enum { QUERY, KEY, FEEDBACK };

static comba_status infer(comba_signature *s) {
  const comba_closed_loop_attributes *attributes = s->attributes;
  const comba_shape *q = &s->input[Q], *k = &s->input[K];
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, K)");
  if (!comba_shape_equal(q, k)) return comba_fail_shape(s, K, "the shape of input 0");
  for (int i = S; i <= D; i++)
    if (s->input[i].rank && (s->input[i].rank != 1 || s->input[i].size[0] != q->size[2]))
      return comba_fail_shape(s, i, "(H)");
  s->outputs = 3;
  for (int i = 0; i < s->outputs; i++) s->output[i] = *q;
  s->backward_workspace =
      comba_row_blocks(q->size[0] * q->size[1], q->size[2] * q->size[3]) * (2 * q->size[2] + 4 * q->size[3]);
  return comba_infer_epsilon(s, attributes->epsilon);
}

static comba_loop loop_of(const comba_call *call, int64_t h) {
  const real *s = call->input[S].data, *d = call->input[D].data;
  return comba_loop_of(call->attributes, s ? comba_sigmoid(s[h]) : 1, d ? d[h] : 0);
}

static void forward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t rows = comba_rows(shape), heads = shape->size[2], n = shape->size[3];
#pragma omp parallel for if (rows * n > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const comba_loop loop = loop_of(call, row % heads);
    const real *restrict q = (const real *)call->input[Q].data + row * n;
    const real *restrict k = (const real *)call->input[K].data + row * n;
    real *restrict query = (real *)call->output[QUERY].data + row * n;
    real *restrict key = (real *)call->output[KEY].data + row * n;
    real *restrict feedback = (real *)call->output[FEEDBACK].data + row * n;
    real kk = 0, ww = 0;
#pragma omp simd reduction(+ : kk, ww)
    for (int64_t i = 0; i < n; i++) {
      const real w = q[i] - loop.c * k[i];
      kk += k[i] * k[i];
      ww += w * w;
    }
    const comba_loop_forward by = comba_loop_run(&loop, kk, ww);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      query[i] = by.q_q * q[i] + by.q_k * k[i];
      key[i] = by.k_k * k[i];
      feedback[i] = by.p_k * k[i];
    }
  }
}

/* A row of a gradient; `zeros` where there is none */
static const real *row_of(const comba_view *gradient, int64_t at, const real *zeros) {
  return gradient->data ? (const real *)gradient->data + at : zeros;
}

/* Row `row` of dq and dk, where they are wanted; adds to ds_h and dd_h. `scratch` (3, n), behind n zeros. */
static void row_gradient(const comba_call *call, int64_t row, int64_t h, int64_t n, real *scratch, real *ds, real *dd) {
  const comba_loop loop = loop_of(call, h);
  const int64_t at = row * n;
  const real *zeros = scratch - n;
  const real *restrict q = (const real *)call->input[Q].data + at, *restrict k = (const real *)call->input[K].data + at;
  const real *restrict dquery = row_of(&call->output_gradient[QUERY], at, zeros);
  const real *restrict dkey = row_of(&call->output_gradient[KEY], at, zeros);
  const real *restrict dfeedback = row_of(&call->output_gradient[FEEDBACK], at, zeros);
  real *restrict w = scratch, *restrict to_q = w + n, *restrict to_k = to_q + n;
  real kk = 0, ww = 0, kw = 0, k_dq = 0, k_dk = 0, k_dp = 0, w_dq = 0;
#pragma omp simd reduction(+ : kk, ww, kw, k_dq, k_dk, k_dp, w_dq)
  for (int64_t i = 0; i < n; i++) {
    w[i] = q[i] - loop.c * k[i];
    kk += k[i] * k[i];
    ww += w[i] * w[i];
    kw += k[i] * w[i];
    k_dq += k[i] * dquery[i];
    k_dk += k[i] * dkey[i];
    k_dp += k[i] * dfeedback[i];
    w_dq += w[i] * dquery[i];
  }
  const comba_loop_products products = {kk, ww, kw, k_dq, k_dk, k_dp, w_dq};
  const comba_loop_backward by = comba_loop_return(&loop, &products);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    to_q[i] = by.q_dq * dquery[i] + by.q_w * w[i];
    to_k[i] = by.k_dq * dquery[i] + by.k_dk * dkey[i] + by.k_dp * dfeedback[i] + by.k_w * w[i] + by.k_k * k[i];
  }
  real *dq = call->input_gradient[Q].data, *dk = call->input_gradient[K].data;
  if (dq) comba_store(dq + at, to_q, n, call->accumulate[Q]);
  if (dk) comba_store(dk + at, to_k, n, call->accumulate[K]);
  *ds += by.db * loop.b * (1 - loop.b);
  *dd += by.dm;
}

static void backward(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const int64_t tokens = shape->size[0] * shape->size[1], heads = shape->size[2], n = shape->size[3];
  const int64_t blocks = comba_row_blocks(tokens, heads * n);
  real *ds = call->input_gradient[S].data, *dd = call->input_gradient[D].data;
  real *of_s = call->workspace, *of_d = of_s + blocks * heads,
       *scratch = of_d + blocks * heads; /* (blocks, H), the same, (blocks, 4, K) */
#pragma omp parallel for if (tokens * heads * n > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1);
    real *own = scratch + block * 4 * n;
    memset(of_s + block * heads, 0, (size_t)heads * sizeof(real));
    memset(of_d + block * heads, 0, (size_t)heads * sizeof(real));
    memset(own, 0, (size_t)n * sizeof(real));
    for (int64_t token = comba_block_start(tokens, blocks, block); token < end; token++)
      for (int64_t h = 0; h < heads; h++)
        row_gradient(call, token * heads + h, h, n, own + n, of_s + block * heads + h, of_d + block * heads + h);
  }
  if (ds) comba_store_blocks(ds, of_s, blocks, heads, call->accumulate[S]);
  if (dd) comba_store_blocks(dd, of_d, blocks, heads, call->accumulate[D]);
}

#define LOOP(...) (&(const comba_closed_loop_attributes){.epsilon = 1e-6, __VA_ARGS__})
#define RELEASED .p_normalize = true, .feedback_decay = true
static const comba_case cases[] = {
    {.name = "as released",
     .attributes = LOOP(RELEASED),
     .input = {{COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(2, 9, 3, 21)}, {COMBA_SHAPE(3)}, {COMBA_SHAPE(3)}}},
    {.name = "as released, more than one block",
     .attributes = LOOP(RELEASED),
     .input = {{COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(3, 50, 2, 64)}, {COMBA_SHAPE(2)}, {COMBA_SHAPE(2)}}},
    {.name = "feedback not normalised",
     .attributes = LOOP(.feedback_decay = true),
     .input = {{COMBA_SHAPE(1, 11, 2, 16)}, {COMBA_SHAPE(1, 11, 2, 16)}, {COMBA_SHAPE(2)}, {COMBA_SHAPE(2)}}},
    {.name = "after the norms, large epsilon",
     .attributes = &(const comba_closed_loop_attributes){.epsilon = 0.5, .after_norm = true, RELEASED},
     .input = {{COMBA_SHAPE(1, 11, 2, 40)}, {COMBA_SHAPE(1, 11, 2, 40)}, {COMBA_SHAPE(2)}, {COMBA_SHAPE(2)}}},
    {.name = "after the norms, feedback not normalised",
     .attributes = LOOP(.after_norm = true, .feedback_decay = true),
     .input = {{COMBA_SHAPE(1, 11, 2, 16)}, {COMBA_SHAPE(1, 11, 2, 16)}, {COMBA_SHAPE(2)}, {COMBA_SHAPE(2)}}},
    {.name = "feedback without decay, large epsilon",
     .attributes = &(const comba_closed_loop_attributes){.epsilon = 0.5, .p_normalize = true},
     .input = {{COMBA_SHAPE(1, 7, 3, 300)}, {COMBA_SHAPE(1, 7, 3, 300)}, {COMBA_SHAPE(3)}, {COMBA_SHAPE(3)}}},
    {.name = "no correction",
     .attributes = LOOP(RELEASED),
     .input = {{COMBA_SHAPE(2, 5, 3, 8)}, {COMBA_SHAPE(2, 5, 3, 8)}, {COMBA_SHAPE(3)}}},
    {.name = "no decay", /* dD is what is left where <k, dq'> and <k, w> <w, dq'> nearly cancel */
     .tolerance = 5e-5,
     .attributes = LOOP(RELEASED),
     .input = {{COMBA_SHAPE(2, 5, 3, 256)}, {COMBA_SHAPE(2, 5, 3, 256)}, {0}, {COMBA_SHAPE(3)}}},
    {.name = "one token, saturated",
     .attributes = LOOP(RELEASED),
     .input = {{COMBA_SHAPE(1, 1, 5, 3)},
               {COMBA_SHAPE(1, 1, 5, 3)},
               {COMBA_SHAPE(5), COMBA_FILL_UNIFORM, .low = -110, .high = 110},
               {COMBA_SHAPE(5)}}},
    {.name = "2048 x 4 x 256",
     .attributes = LOOP(RELEASED),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 4, 256)}, {COMBA_SHAPE(2, 1024, 4, 256)}, {COMBA_SHAPE(4)}, {COMBA_SHAPE(4)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_closed_loop) = {
    .name = "closed_loop",
    .formula = "q = norm(q - d_h sigmoid(s_h) k), k = norm(k), p = norm(sigmoid(s_h) k)",
    .inputs = 4,
    .outputs = 3,
    .optional_inputs = 1u << S | 1u << D,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_closed_loop_attributes),
    .backward_inputs = 1u << Q | 1u << K | 1u << S | 1u << D,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
