/* What the forward code of mixers, blocks and models needs while it appends nodes: the graph, the sizes, and where
 * parameters and states come from.
 *
 * The same code runs in three ways: once to declare all parameters and states (nothing is allocated or planned), then once
 * for every plan. A parameter is asked for by its name below the current prefix, so a mixer says
 *     comba_tensor *w = comba_build_weight(build, "q_proj.weight", COMBA_SHAPE(n, d));
 * and gets model.layers.0.attn.q_proj.weight. */
#ifndef COMBA_MODEL_BUILD_H
#define COMBA_MODEL_BUILD_H

#include "core/graph.h"
#include "model/config.h"
#include "model/parameters.h"

enum { COMBA_MAX_NAME = 192 };

/* Recurrent state of one decoder: named float32 tensors that outlive its plans. */
typedef struct comba_state {
  char name[COMBA_MAX_NAME];
  comba_shape shape;
  float *data;
} comba_state;
typedef struct comba_states {
  const comba_device_memory *memory; /* of their data */
  int count, capacity;
  comba_state *state;
} comba_states;

/* Tokens that a layer sees in several orders: `all` (directions B, N, d) = scan_order of `once` (B,N,d). */
typedef struct comba_scanned {
  comba_tensor *once, *all;
  int order; /* comba_scan */
  int64_t height, width;
} comba_scanned;

typedef struct comba_build {
  comba_graph *graph;
  const comba_config *config; /* NULL for a mixer alone */
  comba_parameters *parameters;
  bool declaring;
  int64_t batch, length;
  int64_t layer; /* that is being built, from 0 */
  comba_mode mode;
  bool training;                                     /* dropout is active, gradients are wanted */
  bool causal;                                       /* false in vision models: softmax attention sees every token */
  comba_initial matrix_initial, convolution_initial; /* of the model */
  double norm_eps;
  double label_smoothing;   /* vision, training */
  float *class_weights;     /* likewise: (num_classes) or NULL */
  comba_tensor *cu_seqlens; /* (N+1) or NULL */
  comba_tensor
      *first_value;      /* (B,T,d) v of RWKV-7's first layer, which the later ones mix in; NULL before it is there */
  comba_scanned scanned; /* vision: of the layer that is being built */
  /* decoding only */
  comba_states *states;   /* NULL: sequences start from zero and end without a trace */
  comba_tensor *position; /* (1): tokens before this piece; NULL: 0 */
  int64_t capacity;       /* rows of a key/value cache without a window */
  char prefix[COMBA_MAX_NAME];
} comba_build;

/* Appends "NAME." to the prefix and returns the old length, to be given to comba_build_leave. */
size_t comba_build_enter(comba_build *build, const char *format, ...) __attribute__((format(printf, 2, 3)));
void comba_build_leave(comba_build *build, size_t length);

comba_tensor *comba_build_parameter(comba_build *build, const char *name, comba_shape shape, comba_role role,
                                    comba_initial initial);
/* A parameter of the whole model, asked for by one of its layers: named below the first part of the prefix. */
comba_tensor *comba_build_model_parameter(comba_build *build, const char *name, comba_shape shape, comba_role role,
                                          comba_initial initial);
/* A matrix (out, in) with the model's initial distribution. */
comba_tensor *comba_build_weight(comba_build *build, const char *name, comba_shape shape);
/* The last matrix of a residual branch (o_proj, down_proj): rescaled by depth under the paper's initialisation. */
comba_tensor *comba_build_residual_weight(comba_build *build, const char *name, comba_shape shape);
/* Norm weight (1) or bias (0). */
comba_tensor *comba_build_vector(comba_build *build, const char *name, int64_t size, double value);

/* A vector whose initial values are a ramp. */
comba_tensor *comba_build_ramp(comba_build *build, const char *name, comba_shape shape, comba_ramp ramp);

/* A state's tensor, whose memory a node updates in place through comba_graph_store; NULL where there is no state. */
comba_tensor *comba_build_state(comba_build *build, const char *name, comba_shape shape);
/* `result` becomes the next value of `state`; nothing happens where state is NULL. */
void comba_build_update(comba_build *build, comba_tensor *state, comba_tensor *result);

/* (B,T,n) = x (B,T,m) NAME.weight (n,m)^T, with NAME.bias if `bias`. Tokens in several orders are multiplied once and ordered
 * afterwards. */
comba_tensor *comba_build_linear(comba_build *build, const char *name, comba_tensor *x, int64_t outputs, bool bias);

/* COMBA_ERROR_ARGUMENT unless cu_seqlens (sequences + 1) rises from 0 to `length` and batch is 1. */
comba_status comba_check_sequences(const int32_t *cu_seqlens, int64_t sequences, int64_t batch, int64_t length);

comba_status comba_states_allocate(comba_states *states, const comba_device_memory *memory);
void comba_states_release(comba_states *states);

#endif
