/* The weights of a model: named, with a role and an initial distribution, in two contiguous slabs of float32 (those that
 * weight decay acts on, and the others), each beside its gradient and the two moments of AdamW. */
#ifndef COMBA_MODEL_PARAMETERS_H
#define COMBA_MODEL_PARAMETERS_H

#include "core/device_memory.h"
#include "core/op.h"

/* What a parameter is for; weight decay acts on the first three. */
typedef enum comba_role {
  COMBA_ROLE_MATRIX,
  COMBA_ROLE_CONVOLUTION,
  COMBA_ROLE_EMBEDDING,
  COMBA_ROLE_POSITION, /* position embeddings */
  COMBA_ROLE_VECTOR,   /* norm weights, biases */
  COMBA_ROLE_SCALAR,   /* one number a head: A_log, dt_bias, D, decay */
} comba_role;

typedef enum comba_distribution {
  COMBA_DRAW_CONSTANT,         /* a */
  COMBA_DRAW_NORMAL,           /* mean 0, standard deviation a */
  COMBA_DRAW_TRUNCATED_NORMAL, /* the same, cut at +-2 (not 2 a): what trunc_normal_ does by default */
  COMBA_DRAW_UNIFORM,          /* in [-a, a] */
  COMBA_DRAW_A_LOG,            /* ln U(a, 16): Mamba2's decay rates */
  COMBA_DRAW_DT_BIAS,          /* inverse softplus of a time step log-uniform in [1e-3, 1e-1], at least 1e-4 */
  COMBA_DRAW_ORTHOGONAL,       /* a times a matrix of orthonormal rows, or columns where it has fewer */
  COMBA_DRAW_RAMP,             /* by the channel, see comba_ramp */
  COMBA_DRAW_FORGET_BIAS,      /* U(3, 6): a forget gate's logit at which it keeps 95 to 99.8 % */
} comba_distribution;

typedef struct comba_initial {
  comba_distribution distribution;
  double a;
} comba_initial;

/* Initial values that are a function of the element's number n of `count`. */
typedef struct comba_ramp {
  double (*value)(int64_t n, int64_t count, double a, double b);
  double a, b;
} comba_ramp;

typedef struct comba_weight {
  char *name;
  comba_shape shape;
  comba_role role;
  comba_initial initial;
  comba_ramp ramp; /* of COMBA_DRAW_RAMP */
  int64_t offset;  /* in its slab, in elements */
} comba_weight;

enum { COMBA_SLAB_DECAYED, COMBA_SLAB_OTHER, COMBA_SLABS };

/* What a slab holds for each weight. */
typedef enum comba_array {
  COMBA_ARRAY_WEIGHT,
  COMBA_ARRAY_GRADIENT,
  COMBA_ARRAY_MOMENT1,
  COMBA_ARRAY_MOMENT2,
  COMBA_ARRAYS
} comba_array;

typedef struct comba_slab {
  int64_t elements;          /* each weight padded to a multiple of 16; the padding is 0 and stays 0 */
  float *data[COMBA_ARRAYS]; /* what kernels work on */
  float
      *host[COMBA_ARRAYS]; /* the same memory, or where the host cannot reach that, a copy made when first asked for */
} comba_slab;

typedef struct comba_parameters {
  const comba_device_memory *memory; /* of `data`; set before comba_parameters_allocate */
  int count, capacity;
  comba_weight *weight;
  comba_slab slab[COMBA_SLABS];
} comba_parameters;

/* Declares a parameter; the same name again must come with the same shape. Before comba_parameters_allocate only. */
comba_status comba_parameters_declare(comba_parameters *parameters, const char *name, comba_shape shape,
                                      comba_role role, comba_initial initial);
/* The ramp of a declared parameter. */
void comba_parameters_set_ramp(comba_parameters *parameters, const char *name, comba_ramp ramp);
/* Memory for everything declared, zero. The moments are allocated by comba_parameters_allocate_moments. */
comba_status comba_parameters_allocate(comba_parameters *parameters);
comba_status comba_parameters_allocate_moments(comba_parameters *parameters);
/* The host's copy of an array to the kernels and back. */
comba_status comba_parameters_upload(comba_parameters *parameters, comba_array array);
comba_status comba_parameters_download(comba_parameters *parameters, comba_array array);
/* Draws every parameter from (seed, its name). */
comba_status comba_parameters_initialize(comba_parameters *parameters, uint64_t seed);
comba_status comba_parameters_zero_gradient(comba_parameters *parameters);
void comba_parameters_release(comba_parameters *parameters);

/* NULL if there is none of that name. */
const comba_weight *comba_parameters_find(const comba_parameters *parameters, const char *name);
int comba_weight_slab(const comba_weight *weight);
/* Where kernels find a weight's values, and where the host does after comba_parameters_download. */
float *comba_parameters_data(const comba_parameters *parameters, const comba_weight *weight, comba_array array);
float *comba_parameters_host(const comba_parameters *parameters, const comba_weight *weight, comba_array array);
int64_t comba_parameters_elements(const comba_parameters *parameters);

/* The public view of parameter `index`, on the host's copies as they are. */
comba_status comba_parameters_describe(const comba_parameters *parameters, size_t index, comba_parameter *out);

#endif
