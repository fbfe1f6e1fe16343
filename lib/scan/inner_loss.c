/* With e = z - t, n = d loss / dz and, from N = dL/dn, the way back through n:
 *
 *   square         1/2 |e|^2                n = e                                       dz = N
 *   layer norm     1/2 |y - t|^2            n = r (u - mean u - x mean(u x))            below
 *                  x = (z - mean z) r, r = 1 / sqrt(variance z + epsilon), y = weight x + bias, u = weight (y - t)
 *   power          sum |e|^p                n = p sgn(e) |e|^{p-1}                      dz = n'(e) N
 *                  smooth: sgn(e) ~ tanh(sharpness e), |e| ~ sqrt(e^2 + smoothing)
 *   huber          Huber's of |e|           n = e where |e| <= c, else c e / |e|        dz = N, c / |e| (N - e <e,N> / |e|^2)
 *   huber channel  the same of each e_i     n_i = e_i where |e_i| <= c, else c sgn(e_i) dz_i = N_i, 0
 *   huber sign                              n = e where |e| <= c, else c sgn(e)         dz = N, 0
 *
 * with |e| the length of e and c the row's threshold; dt = -dz, but for the layer norm dt = -dy. */
#include "scan/inner_loss.h"

#include "scan/scan.h"

inner_loss COMBA_VARIANT(comba_inner_loss_of)(const comba_inner_loss_attributes *attributes, int64_t V,
                                              const real *weight, const real *bias) {
  inner_loss loss = {*attributes, V, weight, bias};
  comba_inner_loss_attributes *a = &loss.attributes;
  if (a->epsilon == 0) a->epsilon = 1e-6;
  if (a->exponent == 0) a->exponent = 3;
  if (a->sharpness == 0) a->sharpness = 10;
  if (a->smoothing == 0) a->smoothing = 1e-6;
  return loss;
}

comba_status COMBA_VARIANT(comba_inner_loss_check)(const comba_inner_loss_attributes *attributes, const char *op) {
  const comba_inner_loss_attributes *a = attributes;
  if ((unsigned)a->kind > COMBA_LOSS_HUBER_SIGN)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: loss is %d, expected 0 to %d", op, (int)a->kind,
                      COMBA_LOSS_HUBER_SIGN);
  const bool fits = a->epsilon >= 0 && a->epsilon < HUGE_VAL && a->smoothing >= 0 && a->smoothing < HUGE_VAL &&
                    a->sharpness >= 0 && a->sharpness < HUGE_VAL && (a->exponent == 0 || a->exponent >= 1) &&
                    a->exponent <= 64;
  if (fits) return COMBA_OK;
  return comba_fail(COMBA_ERROR_ARGUMENT,
                    "%s: exponent %g, sharpness %g, smoothing %g, epsilon %g; expected an exponent from 1 to 64 and "
                    "finite numbers >= 0",
                    op, a->exponent, a->sharpness, a->smoothing, a->epsilon);
}

/* ---- Layer norm ---------------------------------------------------------------------------------------------------- */

typedef struct moments {
  real mean, r; /* of z: x = (z - mean) r */
} moments;

static moments moments_of(const inner_loss *loss, const real *z) {
  const int64_t V = loss->V;
  real sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < V; i++) sum += z[i];
  const real mean = sum / (real)V;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < V; i++) square += (z[i] - mean) * (z[i] - mean);
  return (moments){mean, 1 / comba_real_sqrt(square / (real)V + (real)loss->attributes.epsilon)};
}

static void layer_norm_forward(const inner_loss *loss, const real *z, const real *t, real *n) {
  const int64_t V = loss->V;
  const real *weight = loss->weight, *bias = loss->bias;
  const moments m = moments_of(loss, z);
  real u_mean = 0, ux_mean = 0;
#pragma omp simd reduction(+ : u_mean, ux_mean)
  for (int64_t i = 0; i < V; i++) {
    const real x = (z[i] - m.mean) * m.r, u = weight[i] * (weight[i] * x + bias[i] - t[i]);
    u_mean += u;
    ux_mean += u * x;
  }
  u_mean /= (real)V, ux_mean /= (real)V;
  for (int64_t i = 0; i < V; i++) {
    const real x = (z[i] - m.mean) * m.r, u = weight[i] * (weight[i] * x + bias[i] - t[i]);
    n[i] = m.r * (u - u_mean - x * ux_mean);
  }
}

/* Through n to u, x and r, and from there to z, t and the parameters. */
static void layer_norm_backward(const inner_loss *loss, const real *z, const real *t, const real *upstream,
                                const inner_loss_gradients *g, real *dz, real *dtarget) {
  const int64_t V = loss->V;
  const real *weight = loss->weight, *bias = loss->bias;
  const moments m = moments_of(loss, z);
  const real r = m.r;
  real u_mean = 0, ux_mean = 0, N_mean = 0, Nx_mean = 0, Nu = 0;
#pragma omp simd reduction(+ : u_mean, ux_mean, N_mean, Nx_mean, Nu)
  for (int64_t i = 0; i < V; i++) {
    const real x = (z[i] - m.mean) * r, u = weight[i] * (weight[i] * x + bias[i] - t[i]), N = upstream[i];
    u_mean += u;
    ux_mean += u * x;
    N_mean += N;
    Nx_mean += N * x;
    Nu += N * u;
  }
  const real dr = Nu - N_mean * u_mean / (real)V - Nx_mean * ux_mean / (real)V; /* <N, n> / r */
  u_mean /= (real)V, ux_mean /= (real)V, N_mean /= (real)V, Nx_mean /= (real)V;

  real dx_mean = 0, dxx_mean = 0;
#pragma omp simd reduction(+ : dx_mean, dxx_mean)
  for (int64_t i = 0; i < V; i++) {
    const real x = (z[i] - m.mean) * r, u = weight[i] * (weight[i] * x + bias[i] - t[i]), N = upstream[i];
    const real dy = weight[i] * r * (N - N_mean - x * Nx_mean);
    const real dx = weight[i] * dy - r * (N * ux_mean + u * Nx_mean);
    dtarget[i] = -dy;
    dz[i] = dx;
    dx_mean += dx;
    dxx_mean += dx * x;
  }
  dx_mean /= (real)V, dxx_mean /= (real)V;
  for (int64_t i = 0; i < V; i++) {
    const real x = (z[i] - m.mean) * r;
    dz[i] = r * (dz[i] - dx_mean - x * dxx_mean) - r * r * x * dr / (real)V;
  }
  if (g->dweight)
    for (int64_t i = 0; i < V; i++) {
      const real x = (z[i] - m.mean) * r, y = weight[i] * x + bias[i] - t[i];
      g->dweight[i] += y * r * (upstream[i] - N_mean - x * Nx_mean) - x * dtarget[i];
    }
  if (g->dbias)
    for (int64_t i = 0; i < V; i++) g->dbias[i] -= dtarget[i];
}

/* ---- Power --------------------------------------------------------------------------------------------------------- */

/* p tanh(s e) (e^2 + smoothing)^{(p-1)/2}, or its derivative by e. */
static void power_row(const inner_loss *loss, const real *z, const real *t, real *n, const real *upstream) {
  const comba_inner_loss_attributes *a = &loss->attributes;
  const real p = (real)a->exponent, s = (real)a->sharpness, smoothing = (real)a->smoothing;
  for (int64_t i = 0; i < loss->V; i++) {
    const real e = z[i] - t[i], square = e * e + smoothing, sign = comba_real_tanh(s * e);
    const real length = comba_exp((p - 1) / 2 * comba_real_log(square)); /* |e|^{p-1} */
    const real slope = s * (1 - sign * sign) + sign * (p - 1) * e / square;
    n[i] = p * length * (upstream ? slope * upstream[i] : sign);
  }
}

/* ---- Huber --------------------------------------------------------------------------------------------------------- */

static real sign_of(real x) {
  return (real)((x > 0) - (x < 0));
}

static real error_length(const real *z, const real *t, int64_t V) {
  real square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < V; i++) square += (z[i] - t[i]) * (z[i] - t[i]);
  return comba_real_sqrt(square);
}

static void huber_forward(const inner_loss *loss, const real *z, const real *t, real threshold, real *n) {
  const int64_t V = loss->V;
  const comba_loss kind = loss->attributes.kind;
  const real length = kind == COMBA_LOSS_HUBER_CHANNEL ? 0 : error_length(z, t, V);
  const bool far = length > threshold;
  const real scale = far ? threshold / length : 1;
  for (int64_t i = 0; i < V; i++) {
    const real e = z[i] - t[i];
    if (kind == COMBA_LOSS_HUBER)
      n[i] = scale * e;
    else
      n[i] = far || (kind == COMBA_LOSS_HUBER_CHANNEL && comba_real_abs(e) > threshold) ? threshold * sign_of(e) : e;
  }
}

/* Returns the gradient of the threshold. */
static real huber_backward(const inner_loss *loss, const real *z, const real *t, real threshold, const real *upstream,
                           real *dz) {
  const int64_t V = loss->V;
  const comba_loss kind = loss->attributes.kind;
  const real length = kind == COMBA_LOSS_HUBER_CHANNEL ? 0 : error_length(z, t, V);
  const bool far = length > threshold;
  real dthreshold = 0;
  if (kind == COMBA_LOSS_HUBER && far) {
    real along = 0; /* <e, N> / |e| */
    for (int64_t i = 0; i < V; i++) along += (z[i] - t[i]) * upstream[i];
    along /= length;
    for (int64_t i = 0; i < V; i++) dz[i] = threshold / length * (upstream[i] - (z[i] - t[i]) / length * along);
    return along;
  }
  for (int64_t i = 0; i < V; i++) {
    const real e = z[i] - t[i];
    const bool clipped = far || (kind == COMBA_LOSS_HUBER_CHANNEL && comba_real_abs(e) > threshold);
    dthreshold += clipped ? sign_of(e) * upstream[i] : 0;
    dz[i] = clipped ? 0 : upstream[i];
  }
  return dthreshold;
}

/* ---- All ----------------------------------------------------------------------------------------------------------- */

void COMBA_VARIANT(comba_inner_loss_forward)(const inner_loss *loss, int64_t rows, const real *z, const real *target,
                                             const real *threshold, real *gradient) {
  const int64_t V = loss->V;
  for (int64_t row = 0; row < rows; row++, z += V, target += V, gradient += V) switch (loss->attributes.kind) {
    case COMBA_LOSS_SQUARE:
      for (int64_t i = 0; i < V; i++) gradient[i] = z[i] - target[i];
      break;
    case COMBA_LOSS_LAYER_NORM: layer_norm_forward(loss, z, target, gradient); break;
    case COMBA_LOSS_POWER: power_row(loss, z, target, gradient, NULL); break;
    case COMBA_LOSS_HUBER:
    case COMBA_LOSS_HUBER_CHANNEL:
    case COMBA_LOSS_HUBER_SIGN: huber_forward(loss, z, target, threshold[row], gradient); break;
    }
}

void COMBA_VARIANT(comba_inner_loss_backward)(const inner_loss *loss, int64_t rows, const real *z, const real *target,
                                              const real *threshold, const real *upstream,
                                              const inner_loss_gradients *g) {
  const int64_t V = loss->V;
  for (int64_t row = 0; row < rows; row++, z += V, target += V, upstream += V) {
    real *dz = g->dz + row * V, *dtarget = g->dtarget + row * V;
    switch (loss->attributes.kind) {
    case COMBA_LOSS_LAYER_NORM: layer_norm_backward(loss, z, target, upstream, g, dz, dtarget); continue;
    case COMBA_LOSS_SQUARE: memcpy(dz, upstream, (size_t)V * sizeof(real)); break;
    case COMBA_LOSS_POWER: power_row(loss, z, target, dz, upstream); break;
    case COMBA_LOSS_HUBER:
    case COMBA_LOSS_HUBER_CHANNEL:
    case COMBA_LOSS_HUBER_SIGN: {
      const real dthreshold = huber_backward(loss, z, target, threshold[row], upstream, dz);
      if (g->dthreshold) g->dthreshold[row] += dthreshold;
      break;
    }
    }
    for (int64_t i = 0; i < V; i++) dtarget[i] = -dz[i];
  }
}
