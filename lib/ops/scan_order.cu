/* y[direction B + b, i] = x[b, token(direction, i)];  dx[b, n] = sum over directions of dy[direction B + b, i], i the place of n
 *
 * A random order is that of scan_order.c, draw for draw: the block of a sample makes all draws at once, then one thread
 * exchanges. */
#include "core/random.h"
#include "ops/cuda_grid.h"

enum { X };
enum { THREADS = 256 };

static bool is_random(const void *attributes) {
  return ((const comba_scan_attributes *)attributes)->scan == COMBA_SCAN_RANDOM;
}

static comba_status infer(comba_signature *s) {
  if (is_random(s->attributes))
    s->forward_workspace = s->backward_workspace = 2 * s->input[X].size[0] * s->input[X].size[1];
  return COMBA_OK;
}

/* orders (B,N): a permutation of the tokens a sample. draws (B,N) */
static __global__ void draw_orders(const comba_run *run, uint64_t stream, int64_t n, int32_t *orders, int32_t *draws) {
  const int64_t first = blockIdx.x * n;
  for (int64_t i = threadIdx.x; i < n; i += THREADS) {
    orders[first + i] = (int32_t)i;
    draws[first + i] =
        (int32_t)comba_random_below(run->seed, stream + (run->step << 32), (uint64_t)(first + i), (uint64_t)i + 1);
  }
  __syncthreads();
  if (threadIdx.x) return;
  int32_t *tokens = orders + first;
  for (int64_t i = n - 1; i > 0; i--) {
    const int32_t other = draws[first + i], token = tokens[i];
    tokens[i] = tokens[other];
    tokens[other] = token;
  }
}

/* Into the workspace */
static const int32_t *draw(const comba_call *call) {
  const int64_t batch = call->input[X].shape.size[0], tokens = call->input[X].shape.size[1];
  int32_t *orders = (int32_t *)call->workspace;
  draw_orders<<<(unsigned)batch, THREADS, 0, comba_cuda_stream()>>>(
      call->run, ((const comba_scan_attributes *)call->attributes)->stream, tokens, orders, orders + batch * tokens);
  comba_cuda_note(cudaGetLastError(), "scan_order");
  return orders;
}

template <class T> static void forward(const comba_call *call) {
  const comba_grid_scan g =
      comba_scan_order_grid((const comba_scan_attributes *)call->attributes, &call->input[X].shape);
  const T *x = (const T *)call->input[X].data;
  T *y = (T *)call->output[0].data;
  if (!is_random(call->attributes)) {
    cuda_grid_spread(g, x, 1, false, y);
    return;
  }
  const int32_t *orders = draw(call);
  comba_each_row(g.batch * g.tokens, [=] __device__(int64_t row, int64_t lane) {
    const T *in = x + (row / g.tokens * g.tokens + orders[row]) * g.channels;
    for (int64_t j = lane; j < g.channels; j += 32) y[row * g.channels + j] = in[j];
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const comba_grid_scan g =
      comba_scan_order_grid((const comba_scan_attributes *)call->attributes, &call->input[X].shape);
  const T *dy = (const T *)call->output_gradient[0].data;
  T *dx = (T *)call->input_gradient[X].data;
  const bool accumulate = call->accumulate[X];
  if (!is_random(call->attributes)) {
    cuda_grid_gather(g, dy, 1, accumulate, dx);
    return;
  }
  const int32_t *orders = draw(call);
  comba_each_row(g.batch * g.tokens, [=] __device__(int64_t row, int64_t lane) {
    T *out = dx + (row / g.tokens * g.tokens + orders[row]) * g.channels;
    for (int64_t j = lane; j < g.channels; j += 32) put(out + j, load(dy + row * g.channels + j), accumulate);
  });
}

COMBA_CUDA_ROW(scan_order, infer);
