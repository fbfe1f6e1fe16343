/* With x = (z - mean z) r, r = 1 / sqrt(variance z + epsilon), y = weight x + bias, u = d loss / dy and g = weight u:
 *   n = d loss / dz = P g,  P g = r (g - mean g - x mean(x g))
 * P is symmetric, so that from N = dL/dn, with h = P N:
 *   du = weight h, through the loss to dy and dt;  dx = weight dy - r (N mean(x g) + g mean(x N))
 *   dz = P dx - r x <N, n> / V;  dweight = u h + x dy;  dbias = dy */
#include "scan/normed_loss.h"

#include "scan/scan.h"

/* One row's x, y, u and g. */
typedef struct row {
  real r, *x, *y, *u, *g, *more;
} row;

static row row_of(const normed_loss *loss, const real *z, const real *target, const real *threshold, real *scratch) {
  const int64_t V = loss->loss.V;
  row a = {0, scratch, scratch + V, scratch + 2 * V, scratch + 3 * V, scratch + 4 * V};
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < V; i++) sum += z[i];
  const real mean = sum / (real)V;
  for (int64_t i = 0; i < V; i++) a.x[i] = z[i] - mean;
  a.r = 1 / comba_real_sqrt(scan_dot(a.x, a.x, V) / (real)V + (real)loss->loss.attributes.epsilon);
  for (int64_t i = 0; i < V; i++) {
    a.x[i] *= a.r;
    a.y[i] = loss->weight[i] * a.x[i] + loss->bias[i];
  }
  COMBA_VARIANT(comba_inner_loss_forward)(&loss->loss, 1, a.y, target, threshold, a.u);
  for (int64_t i = 0; i < V; i++) a.g[i] = loss->weight[i] * a.u[i];
  return a;
}

/* to = P from; returns mean(x from) */
static real project(const row *a, int64_t V, const real *from, real *to) {
  real sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
  for (int64_t i = 0; i < V; i++) {
    sum += from[i];
    along += from[i] * a->x[i];
  }
  sum /= (real)V, along /= (real)V;
  for (int64_t i = 0; i < V; i++) to[i] = a->r * (from[i] - sum - a->x[i] * along);
  return along;
}

void COMBA_VARIANT(comba_normed_loss_forward)(const normed_loss *loss, int64_t rows, const real *z, const real *target,
                                              const real *threshold, real *gradient, real *scratch) {
  const int64_t V = loss->loss.V;
  if (!loss->weight) {
    COMBA_VARIANT(comba_inner_loss_forward)(&loss->loss, rows, z, target, threshold, gradient);
    return;
  }
  for (int64_t i = 0; i < rows; i++) {
    const row a = row_of(loss, z + i * V, target + i * V, threshold + i, scratch);
    project(&a, V, a.g, gradient + i * V);
  }
}

void COMBA_VARIANT(comba_normed_loss_backward)(const normed_loss *loss, int64_t rows, const real *z, const real *target,
                                               const real *threshold, const real *upstream,
                                               const inner_loss_gradients *gradients, real *scratch) {
  const int64_t V = loss->loss.V;
  if (!loss->weight) {
    COMBA_VARIANT(comba_inner_loss_backward)(&loss->loss, rows, z, target, threshold, upstream, gradients);
    return;
  }
  for (int64_t i = 0; i < rows; i++) {
    const real *N = upstream + i * V;
    real *dz = gradients->dz + i * V, *n = dz; /* until dz is known */
    row a = row_of(loss, z + i * V, target + i * V, threshold + i, scratch);
    const real g_along = project(&a, V, a.g, n), N_n = scan_dot(N, n, V);
    real *h = a.more, *dy = dz;
    const real N_along = project(&a, V, N, h);
    for (int64_t c = 0; c < V; c++) {
      gradients->dweight[c] += a.u[c] * h[c];
      h[c] *= loss->weight[c];
    }
    const inner_loss_gradients inner = {.dz = dy,
                                        .dtarget = gradients->dtarget + i * V,
                                        .dthreshold = gradients->dthreshold ? gradients->dthreshold + i : NULL};
    COMBA_VARIANT(comba_inner_loss_backward)(&loss->loss, 1, a.y, target + i * V, threshold + i, h, &inner);
    real *dx = a.u;
    for (int64_t c = 0; c < V; c++) {
      gradients->dweight[c] += a.x[c] * dy[c];
      gradients->dbias[c] += dy[c];
      dx[c] = loss->weight[c] * dy[c] - a.r * (N[c] * g_along + a.g[c] * N_along);
    }
    project(&a, V, dx, dz);
    for (int64_t c = 0; c < V; c++) dz[c] -= a.r * a.x[c] * N_n / (real)V;
  }
}
