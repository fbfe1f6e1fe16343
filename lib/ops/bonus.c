/* y = o + c v,  c (B,T,H) = sum_i r_i k_i w_hi (RWKV-7): what the current token adds to the output beside the state
 * do = dy;  dv = c dy;  with e = <dy, v>:  dr = e k w;  dk = e r w;  dw_h += e r k over B and T */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/rows.h"

enum { O, R, KEY, V, W };

static comba_status infer(comba_signature *s) {
  const comba_shape *o = &s->input[O], *r = &s->input[R], *w = &s->input[W];
  if (!comba_extent_fits(o, 4)) return comba_fail_shape(s, O, "(B, T, H, V)");
  if (!comba_extent_fits(r, 4) || comba_rows(r) != comba_rows(o) || r->size[1] != o->size[1] ||
      r->size[2] != o->size[2])
    return comba_fail_shape(s, R, "(B, T, H, K), all but K of input 0");
  if (!comba_shape_equal(r, &s->input[KEY])) return comba_fail_shape(s, KEY, "the shape of input 1");
  if (!comba_shape_equal(o, &s->input[V])) return comba_fail_shape(s, V, "the shape of input 0");
  if (w->rank != 2 || w->size[0] != r->size[2] || w->size[1] != r->size[3]) return comba_fail_shape(s, W, "(H, K)");
  s->outputs = 1;
  s->output[0] = *o;
  s->backward_workspace = comba_row_blocks(o->size[0] * o->size[1], o->size[2] * r->size[3]) * o->size[2] * r->size[3];
  return COMBA_OK;
}

static real amount(const real *r, const real *k, const real *w, int64_t K) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < K; i++) sum += r[i] * k[i] * w[i];
  return sum;
}

static void forward(const comba_call *call) {
  const int64_t rows = comba_rows(&call->input[R].shape), heads = call->input[R].shape.size[2];
  const int64_t K = comba_last(&call->input[R].shape), size = comba_last(&call->input[O].shape);
  const real *r = call->input[R].data, *k = call->input[KEY].data, *w = call->input[W].data;
#pragma omp parallel for if (rows * (K + size) > COMBA_SERIAL)
  for (int64_t row = 0; row < rows; row++) {
    const real *o = (const real *)call->input[O].data + row * size, *v = (const real *)call->input[V].data + row * size;
    real *y = (real *)call->output[0].data + row * size;
    const real c = amount(r + row * K, k + row * K, w + row % heads * K, K);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) y[i] = o[i] + c * v[i];
  }
}

/* gradient (K) = or += e a b */
static void store_product(real *gradient, real e, const real *a, const real *b, int64_t K, bool accumulate) {
  if (!gradient) return;
  if (accumulate)
    for (int64_t i = 0; i < K; i++) gradient[i] += e * a[i] * b[i];
  else
    for (int64_t i = 0; i < K; i++) gradient[i] = e * a[i] * b[i];
}

static void backward(const comba_call *call) {
  const int64_t tokens = call->input[R].shape.size[0] * call->input[R].shape.size[1];
  const int64_t heads = call->input[R].shape.size[2], K = comba_last(&call->input[R].shape);
  const int64_t size = comba_last(&call->input[O].shape), blocks = comba_row_blocks(tokens, heads * K);
  real *d_o = call->input_gradient[O].data, *dr = call->input_gradient[R].data, *dk = call->input_gradient[KEY].data;
  real *dv = call->input_gradient[V].data, *dw = call->input_gradient[W].data;
  real *partial = call->workspace; /* (blocks, H, K) */
  if (comba_gradient_absent(call, 5)) return;
#pragma omp parallel for if (tokens * heads * (K + size) > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(tokens, blocks, block + 1) * heads;
    real *sum = partial + block * heads * K;
    memset(sum, 0, (size_t)(heads * K) * sizeof(real));
    for (int64_t row = comba_block_start(tokens, blocks, block) * heads; row < end; row++) {
      const int64_t at = row * K, value = row * size, head = row % heads * K;
      const real *r = (const real *)call->input[R].data + at, *k = (const real *)call->input[KEY].data + at;
      const real *w = (const real *)call->input[W].data + head;
      const real *dy = (const real *)call->output_gradient[0].data + value;
      const real e = comba_dot(dy, (const real *)call->input[V].data + value, size);
      if (d_o) comba_store(d_o + value, dy, size, call->accumulate[O]);
      if (dv) comba_store_scaled(dv + value, amount(r, k, w, K), dy, size, call->accumulate[V]);
      store_product(dr ? dr + at : NULL, e, k, w, K, call->accumulate[R]);
      store_product(dk ? dk + at : NULL, e, r, w, K, call->accumulate[KEY]);
      store_product(sum + head, e, r, k, K, true);
    }
  }
  if (dw) comba_store_blocks(dw, partial, blocks, heads * K, call->accumulate[W]);
}

#define HEADS(B, T, H, K, V)                                                                                           \
  {COMBA_SHAPE(B, T, H, V)}, {COMBA_SHAPE(B, T, H, K)}, {COMBA_SHAPE(B, T, H, K)}, {COMBA_SHAPE(B, T, H, V)}, {        \
    COMBA_SHAPE(H, K)                                                                                                  \
  }
static const comba_case cases[] = {{.name = "odd heads", .input = {HEADS(2, 9, 3, 21, 13)}},
                                   {.name = "more than one block", .input = {HEADS(2, 90, 2, 48, 64)}},
                                   {.name = "one number", .input = {HEADS(1, 1, 1, 1, 1)}},
                                   {.name = "2048 x 16 x 64", .benchmark = true, .input = {HEADS(2, 1024, 16, 64, 64)}},
                                   {0}};

const comba_op COMBA_VARIANT(comba_op_bonus) = {
    .name = "bonus",
    .formula = "y = o + (sum_i r_i k_i w_hi) v",
    .inputs = 5,
    .outputs = 1,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_PARAMETER},
    .output_class = {COMBA_ACTIVATION},
    .backward_inputs = 1u << R | 1u << KEY | 1u << V | 1u << W,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
