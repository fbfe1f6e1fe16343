/* s4d: a diagonal state space model for each channel (arXiv 2206.11893).
 *
 *   y = sum_j K_j x_{t-j} + D x,  K_j = 2 Re sum_m C_m (e^{dt A_m} - 1) / A_m e^{dt A_m j},  A_m = -e^{log_A_real} + i A_imag
 *   W_1 gelu(y) * sigmoid(W_2 gelu(y)), W_1 and W_2 one matrix o_proj
 *
 * B is 1: only its product with C is seen. As a convolution in chunks, or as a recurrence over state_size / 2 complex states a
 * channel, which stand for as many conjugate pairs. */
#include <math.h>
#include <stddef.h>

#include "mixers/delta_heads.h"
#include "mixers/mixer.h"
#include "mixers/projection.h"

enum { LIN, INV };

typedef struct config {
  int64_t state_size;
  double dt_min, dt_max;
  int A_init;
} config;

/* Of element n: state n % M of a channel. S4D-Lin: pi m;  S4D-Inv: N/pi (N / (2 m + 1) - 1), N = 2 M */
static double linear_frequency(int64_t n, int64_t count, double M, double unused) {
  (void)count, (void)unused;
  return M_PI * fmod((double)n, M);
}
static double inverse_frequency(int64_t n, int64_t count, double M, double unused) {
  (void)count, (void)unused;
  return 2 * M / M_PI * (2 * M / (2 * fmod((double)n, M) + 1) - 1);
}
/* The channels' time steps, even on the logarithmic scale */
static double log_step(int64_t n, int64_t count, double low, double high) {
  const double x = count > 1 ? (double)n / (double)(count - 1) : 0.5;
  return (1 - x) * log(low) + x * log(high);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = x->shape.size[2], M = c->state_size / 2;
  const comba_shape states = COMBA_SHAPE(d, M);

  const comba_s4d_parameters parameters = {
      .log_dt = comba_build_ramp(build, "log_dt", COMBA_SHAPE(d), (comba_ramp){log_step, c->dt_min, c->dt_max}),
      .log_rate = comba_build_parameter(build, "log_A_real", states, COMBA_ROLE_SCALAR,
                                        (comba_initial){COMBA_DRAW_CONSTANT, log(0.5)}),
      .frequency = comba_build_ramp(
          build, "A_imag", states, (comba_ramp){c->A_init == INV ? inverse_frequency : linear_frequency, (double)M, 0}),
      .C = comba_build_parameter(build, "C", COMBA_SHAPE(d, M, 2), COMBA_ROLE_MATRIX,
                                 (comba_initial){COMBA_DRAW_NORMAL, sqrt(0.5)}),
  };
  comba_tensor *before = comba_build_state(build, "recurrent", COMBA_SHAPE(B, d, 2, M)), *after = NULL;
  comba_tensor *y = comba_s4d(graph, x, parameters, before, build->cu_seqlens, build->mode, &after);
  comba_build_update(build, before, after);

  const comba_shape channels = COMBA_SHAPE(B, T, d, 1);
  comba_tensor *D = comba_build_head_scalar(build, "D", d, COMBA_DRAW_CONSTANT, 1);
  y = comba_head_skip(graph, comba_reshape(graph, y, channels), comba_reshape(graph, x, channels), D);
  y = comba_activation(graph, comba_reshape(graph, y, x->shape), COMBA_GELU, 1);
  y = comba_linear(graph, y, comba_build_residual_weight(build, "o_proj.weight", COMBA_SHAPE(2 * d, d)), NULL);
  comba_tensor *gate[2] = {NULL, NULL};
  y = comba_split(graph, y, (comba_split_attributes){2, {d, d}}, gate);
  return comba_product(graph, y, comba_activation(graph, gate[0], COMBA_SIGMOID, 1));
}

static const char *const initials[] = {"lin", "inv", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    {"state_size", COMBA_FIELD_INTEGER, FIELD(state_size), .default_value = 64, .minimum = 2, .maximum = 4096,
     .help = "states N of a channel, in conjugate pairs: even"},
    {"A_init", COMBA_FIELD_CHOICE, FIELD(A_init), .default_value = LIN, .choices = initials,
     .help = "initial A_m: \"lin\" -1/2 + i pi m, \"inv\" -1/2 + i N/pi (N / (2 m + 1) - 1)"},
    {"dt_min", COMBA_FIELD_NUMBER, FIELD(dt_min), .default_value = 1e-3, .minimum = 1e-8, .maximum = 100,
     .help = "initial time step of the first channel"},
    {"dt_max", COMBA_FIELD_NUMBER, FIELD(dt_max), .default_value = 0.1, .minimum = 1e-8, .maximum = 100,
     .help = "of the last; those between are even on the logarithmic scale"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  (void)hidden_size;
  const config *c = opaque;
  if (c->state_size % 2)
    return comba_fail(COMBA_ERROR_ARGUMENT, "state_size is %lld, expected an even number", (long long)c->state_size);
  if (c->dt_min > c->dt_max)
    return comba_fail(COMBA_ERROR_ARGUMENT, "dt_min is %g, expected at most dt_max %g", c->dt_min, c->dt_max);
  return COMBA_OK;
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const double state = (double)(((const config *)opaque)->state_size * hidden_size);
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 6 * state};
}

const comba_mixer_row comba_mixer_s4d = {
    .model_type = "s4d",
    .recurrence = "s_t = e^{dt A} s_{t-1} + x_t;  y_t = 2 Re(C (e^{dt A} - 1) / A . s_t) + D x_t",
    .source = "On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
