/* The losses that memories descend while they read (inner_loss.c has the formulas), for a block of threads, a warp to each row. */
#ifndef COMBA_SCAN_CUDA_INNER_LOSS_H
#define COMBA_SCAN_CUDA_INNER_LOSS_H

#include "scan/cuda_block.h"

typedef struct cuda_inner_loss {
  comba_loss kind;
  float epsilon, exponent, sharpness, smoothing;
  int64_t V, stride;          /* channels of a row, and from one row to the next in every matrix (rows,V) */
  const float *weight, *bias; /* (V) of the head, of the layer norm's loss */
} cuda_inner_loss;

static inline cuda_inner_loss cuda_inner_loss_of(const comba_inner_loss_attributes *a, int64_t V) {
  cuda_inner_loss loss = {a->kind, 1e-6f, 3, 10, 1e-6f, V, V, NULL, NULL};
  if (a->epsilon != 0) loss.epsilon = (float)a->epsilon;
  if (a->exponent != 0) loss.exponent = (float)a->exponent;
  if (a->sharpness != 0) loss.sharpness = (float)a->sharpness;
  if (a->smoothing != 0) loss.smoothing = (float)a->smoothing;
  return loss;
}

/* ---- Layer norm: each function is run by a warp, for a row --------------------------------------------------------- */

typedef struct norm_row {
  float mean, r;         /* of z: x = (z - mean) r */
  float u_mean, ux_mean; /* u = weight (weight x + bias - t) */
} norm_row;

static inline __device__ float normed(const norm_row &m, float z) {
  return (z - m.mean) * m.r;
}
static inline __device__ float norm_error(const cuda_inner_loss &loss, int64_t i, float x, float t) {
  return loss.weight[i] * x + loss.bias[i] - t;
}

static inline __device__ norm_row norm_row_of(const cuda_inner_loss &loss, const float *z, const float *t) {
  const int64_t V = loss.V, lane = threadIdx.x % 32;
  norm_row m;
  float sum = 0, square = 0, u_sum = 0, ux_sum = 0;
  for (int64_t i = lane; i < V; i += 32) sum += z[i];
  m.mean = warp_sum(sum) / V;
  for (int64_t i = lane; i < V; i += 32) square += (z[i] - m.mean) * (z[i] - m.mean);
  m.r = 1 / sqrtf(warp_sum(square) / V + loss.epsilon);
  for (int64_t i = lane; i < V; i += 32) {
    const float x = normed(m, z[i]), u = loss.weight[i] * norm_error(loss, i, x, t[i]);
    u_sum += u;
    ux_sum += u * x;
  }
  m.u_mean = warp_sum(u_sum) / V;
  m.ux_mean = warp_sum(ux_sum) / V;
  return m;
}

/* dz and dtarget of a row; means: of N and of N x. */
static inline __device__ void norm_row_backward(const cuda_inner_loss &loss, const norm_row &m, const float *z,
                                                const float *t, const float *upstream, float *dz, float *dtarget,
                                                float means[2]) {
  const int64_t V = loss.V, lane = threadIdx.x % 32;
  float N_sum = 0, Nx_sum = 0, Nu = 0, dx_sum = 0, dxx_sum = 0;
  for (int64_t i = lane; i < V; i += 32) {
    const float x = normed(m, z[i]);
    N_sum += upstream[i];
    Nx_sum += upstream[i] * x;
    Nu += upstream[i] * loss.weight[i] * norm_error(loss, i, x, t[i]);
  }
  N_sum = warp_sum(N_sum), Nx_sum = warp_sum(Nx_sum), Nu = warp_sum(Nu);
  const float dr = Nu - N_sum * m.u_mean - Nx_sum * m.ux_mean; /* <N, n> / r */
  const float N_mean = N_sum / V, Nx_mean = Nx_sum / V;
  for (int64_t i = lane; i < V; i += 32) {
    const float x = normed(m, z[i]), w = loss.weight[i], u = w * norm_error(loss, i, x, t[i]), N = upstream[i];
    const float dy = w * m.r * (N - N_mean - x * Nx_mean), dx = w * dy - m.r * (N * m.ux_mean + u * Nx_mean);
    dtarget[i] = -dy;
    dz[i] = dx;
    dx_sum += dx;
    dxx_sum += dx * x;
  }
  const float dx_mean = warp_sum(dx_sum) / V, dxx_mean = warp_sum(dxx_sum) / V;
  for (int64_t i = lane; i < V; i += 32) {
    const float x = normed(m, z[i]);
    dz[i] = m.r * (dz[i] - dx_mean - x * dxx_mean) - m.r * m.r * x * dr / V;
  }
  means[0] = N_mean;
  means[1] = Nx_mean;
}

/* ---- The others ---------------------------------------------------------------------------------------------------- */

/* p tanh(s e) (e^2 + smoothing)^{(p-1)/2}, and its derivative by e */
static inline __device__ float power_gradient(const cuda_inner_loss &loss, float e, float *slope) {
  const float p = loss.exponent, s = loss.sharpness, square = e * e + loss.smoothing, sign = tanhf(s * e);
  const float length = p * expf((p - 1) / 2 * logf(square));
  if (slope) *slope = length * (s * (1 - sign * sign) + sign * (p - 1) * e / square);
  return length * sign;
}

static inline __device__ float sign_of(float x) {
  return (float)((x > 0) - (x < 0));
}

/* |z - t| where the kind of Huber's loss goes by it, in every lane */
static inline __device__ float error_length(const cuda_inner_loss &loss, const float *z, const float *t) {
  float square = 0;
  if (loss.kind == COMBA_LOSS_HUBER_CHANNEL) return 0;
  for (int64_t i = threadIdx.x % 32; i < loss.V; i += 32) square += (z[i] - t[i]) * (z[i] - t[i]);
  return sqrtf(warp_sum(square));
}

/* gradient (rows,V) = d loss / dz of z against target (rows,V); threshold (rows) */
static __device__ __noinline__ void inner_loss_forward(cuda_inner_loss loss, int64_t rows, const float *z_,
                                                       const float *target, const float *threshold, float *gradient) {
  const int64_t V = loss.V;
  block_rows(rows, [&](int64_t row, int lane) {
    const float *z = z_ + row * loss.stride, *t = target + row * loss.stride;
    float *n = gradient + row * loss.stride;
    const bool norm = loss.kind == COMBA_LOSS_LAYER_NORM, huber = loss.kind >= COMBA_LOSS_HUBER;
    const norm_row m = norm ? norm_row_of(loss, z, t) : norm_row{};
    const float limit = threshold[row], length = huber ? error_length(loss, z, t) : 0;
    const bool far = length > limit;
    for (int64_t i = lane; i < V; i += 32) {
      const float e = z[i] - t[i];
      if (norm) {
        const float x = normed(m, z[i]), u = loss.weight[i] * norm_error(loss, i, x, t[i]);
        n[i] = m.r * (u - m.u_mean - x * m.ux_mean);
      } else if (loss.kind == COMBA_LOSS_POWER) {
        n[i] = power_gradient(loss, e, NULL);
      } else if (loss.kind == COMBA_LOSS_HUBER) {
        n[i] = far ? limit / length * e : e;
      } else {
        const bool clipped = huber && (far || (loss.kind == COMBA_LOSS_HUBER_CHANNEL && fabsf(e) > limit));
        n[i] = clipped ? limit * sign_of(e) : e;
      }
    }
  });
}

/* The gradient of the threshold in every lane; dz of a row. */
static inline __device__ float huber_backward(const cuda_inner_loss &loss, const float *z, const float *t, float limit,
                                              const float *upstream, float *dz) {
  const int64_t V = loss.V, lane = threadIdx.x % 32;
  const float length = error_length(loss, z, t);
  const bool far = length > limit;
  float sum = 0;
  if (loss.kind == COMBA_LOSS_HUBER && far) {
    for (int64_t i = lane; i < V; i += 32) sum += (z[i] - t[i]) * upstream[i];
    const float along = warp_sum(sum) / length; /* <e, N> / |e| */
    for (int64_t i = lane; i < V; i += 32) dz[i] = limit / length * (upstream[i] - (z[i] - t[i]) / length * along);
    return along;
  }
  for (int64_t i = lane; i < V; i += 32) {
    const float e = z[i] - t[i];
    const bool clipped = far || (loss.kind == COMBA_LOSS_HUBER_CHANNEL && fabsf(e) > limit);
    sum += clipped ? sign_of(e) * upstream[i] : 0;
    dz[i] = clipped ? 0 : upstream[i];
  }
  return warp_sum(sum);
}

/* From upstream (rows,V), the gradient of what forward wrote: dz, dtarget (rows,V) and dthreshold (rows) are overwritten, dweight and
 * dbias (V) added to, or NULL. At most ROWS rows. */
template <int ROWS>
static __device__ __noinline__ void inner_loss_backward(cuda_inner_loss loss, int64_t rows, const float *z_,
                                                        const float *target, const float *threshold,
                                                        const float *upstream_, float *dz_, float *dtarget_,
                                                        float *dthreshold, float *dweight, float *dbias) {
  __shared__ norm_row moments[ROWS];
  __shared__ float means[ROWS][2];
  const int64_t V = loss.V;
  const bool norm = loss.kind == COMBA_LOSS_LAYER_NORM, huber = loss.kind >= COMBA_LOSS_HUBER;
  block_rows(rows, [&](int64_t row, int lane) {
    const int64_t at = row * loss.stride;
    const float *z = z_ + at, *t = target + at, *upstream = upstream_ + at;
    float *dz = dz_ + at, *dtarget = dtarget_ + at, slope, mean[2];
    if (norm) {
      const norm_row m = norm_row_of(loss, z, t);
      norm_row_backward(loss, m, z, t, upstream, dz, dtarget, mean);
      if (lane) return;
      moments[row] = m;
      means[row][0] = mean[0], means[row][1] = mean[1];
      return;
    }
    const float to_threshold = huber ? huber_backward(loss, z, t, threshold[row], upstream, dz) : 0;
    if (!lane) dthreshold[row] = to_threshold;
    for (int64_t i = lane; i < V; i += 32) {
      if (loss.kind == COMBA_LOSS_SQUARE) dz[i] = upstream[i];
      if (loss.kind == COMBA_LOSS_POWER) {
        power_gradient(loss, z[i] - t[i], &slope);
        dz[i] = slope * upstream[i];
      }
      dtarget[i] = -dz[i];
    }
  });
  if (!norm || (!dweight && !dbias)) return;
  block_each(V, [&](int64_t i) {
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = row * loss.stride + i;
      const float x = normed(moments[row], z_[at]), y = norm_error(loss, i, x, target[at]);
      if (dweight)
        dweight[i] += y * moments[row].r * (upstream_[at] - means[row][0] - x * means[row][1]) - x * dtarget_[at];
      if (dbias) dbias[i] -= dtarget_[at];
    }
  });
}

#endif
