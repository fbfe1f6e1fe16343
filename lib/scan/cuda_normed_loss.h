/* An inner loss of what a layer norm makes of z, and the way back through its gradient (normed_loss.c has the formulas), for a block. */
#ifndef COMBA_SCAN_CUDA_NORMED_LOSS_H
#define COMBA_SCAN_CUDA_NORMED_LOSS_H

#include "scan/cuda_inner_loss.h"

typedef struct cuda_normed_loss {
  cuda_inner_loss loss;
  const float *weight, *bias;  /* (V) of the norm; NULL: the loss is of z itself */
  float *x, *y, *u, *g, *more; /* (rows,V), rows loss.stride apart, where there is a norm */
} cuda_normed_loss;

/* to = r (from - mean from - x mean(x from)) of a row, by a warp; returns mean(x from). from and to may be one. */
static inline __device__ float project_row(int64_t V, float r, const float *x, const float *from, float *to) {
  const int64_t lane = threadIdx.x % 32;
  float sum = 0, along = 0;
  for (int64_t i = lane; i < V; i += 32) {
    sum += from[i];
    along += from[i] * x[i];
  }
  sum = warp_sum(sum) / V;
  along = warp_sum(along) / V;
  for (int64_t i = lane; i < V; i += 32) to[i] = r * (from[i] - sum - x[i] * along);
  return along;
}

/* x, y, u, g of all rows; r (rows) is seen by the whole block. */
static inline __device__ void normed_rows(const cuda_normed_loss &l, int64_t rows, const float *z, const float *target,
                                          const float *threshold, float *r) {
  const int64_t V = l.loss.V, stride = l.loss.stride;
  block_rows(rows, [&](int64_t row, int lane) {
    const float *from = z + row * stride;
    float *x = l.x + row * stride, sum = 0, square = 0;
    for (int64_t i = lane; i < V; i += 32) sum += from[i];
    const float mean = warp_sum(sum) / V;
    for (int64_t i = lane; i < V; i += 32) square += (from[i] - mean) * (from[i] - mean);
    const float factor = 1 / sqrtf(warp_sum(square) / V + l.loss.epsilon);
    for (int64_t i = lane; i < V; i += 32) {
      x[i] = (from[i] - mean) * factor;
      l.y[row * stride + i] = l.weight[i] * x[i] + l.bias[i];
    }
    if (!lane) r[row] = factor;
  });
  inner_loss_forward(l.loss, rows, l.y, target, threshold, l.u);
  block_matrix((int)rows, (int)V, [&](int row, int c) { l.g[row * stride + c] = l.weight[c] * l.u[row * stride + c]; });
}

/* As inner_loss_forward and inner_loss_backward; at most ROWS rows. */
template <int ROWS>
static __device__ __noinline__ void normed_loss_forward(cuda_normed_loss l, int64_t rows, const float *z,
                                                        const float *target, const float *threshold, float *gradient) {
  __shared__ float r[ROWS];
  const int64_t V = l.loss.V, stride = l.loss.stride;
  if (!l.weight) {
    inner_loss_forward(l.loss, rows, z, target, threshold, gradient);
    return;
  }
  normed_rows(l, rows, z, target, threshold, r);
  block_rows(rows, [&](int64_t row, int) {
    project_row(V, r[row], l.x + row * stride, l.g + row * stride, gradient + row * stride);
  });
}

template <int ROWS>
static __device__ __noinline__ void normed_loss_backward(cuda_normed_loss l, int64_t rows, const float *z,
                                                         const float *target, const float *threshold,
                                                         const float *upstream, float *dz, float *dtarget,
                                                         float *dthreshold, float *dweight, float *dbias) {
  __shared__ float r[ROWS], along[ROWS], g_along[ROWS], N_along[ROWS]; /* along: <N, n> */
  const int64_t V = l.loss.V, stride = l.loss.stride;
  if (!l.weight) {
    inner_loss_backward<ROWS>(l.loss, rows, z, target, threshold, upstream, dz, dtarget, dthreshold, dweight, dbias);
    return;
  }
  normed_rows(l, rows, z, target, threshold, r);
  block_rows(rows, [&](int64_t row, int lane) {
    const int64_t at = row * stride;
    const float *N = upstream + at, *x = l.x + at;
    float *n = dz + at; /* until dz is known */
    const float of_g = project_row(V, r[row], x, l.g + at, n), both = warp_inner_product(V, N, n);
    const float of_N = project_row(V, r[row], x, N, l.more + at);
    if (lane) return;
    along[row] = both;
    g_along[row] = of_g;
    N_along[row] = of_N;
  });
  block_each(V, [&](int64_t i) {
    for (int64_t at = i; at < rows * stride; at += stride) {
      if (dweight) dweight[i] += l.u[at] * l.more[at];
      l.more[at] *= l.weight[i];
    }
  });
  inner_loss_backward<ROWS>(l.loss, rows, l.y, target, threshold, l.more, dz, dtarget, dthreshold, NULL, NULL);
  if (dweight)
    block_each(V, [&](int64_t i) {
      for (int64_t at = i; at < rows * stride; at += stride) {
        dweight[i] += l.x[at] * dz[at];
        dbias[i] += dz[at];
      }
    });
  block_rows(rows, [&](int64_t row, int lane) {
    const int64_t at = row * stride;
    const float *N = upstream + at, *x = l.x + at, *g = l.g + at;
    for (int64_t i = lane; i < V; i += 32)
      l.u[at + i] = l.weight[i] * dz[at + i] - r[row] * (N[i] * g_along[row] + g[i] * N_along[row]);
    project_row(V, r[row], x, l.u + at, dz + at);
    for (int64_t i = lane; i < V; i += 32) dz[at + i] -= r[row] * x[i] * along[row] / V;
  });
}

#endif
