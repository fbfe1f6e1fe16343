/* A model as a static graph: forward code appends nodes, the reverse pass is derived from the operators' backward.
 *
 *     comba_graph *graph;                      comba_graph_create(&graph, backend, COMBA_GRAPH_BACKWARD)
 *     comba_tensor *x = comba_graph_input(graph, "x", COMBA_ACTIVATION, COMBA_SHAPE(B, T, d));
 *     comba_tensor *y = comba_linear(graph, x, weight, NULL);      (builders: ops/ops.h)
 *     comba_graph_keep(graph, y);
 *     comba_graph_plan(graph)                  one arena, buffers reused by liveness
 *     comba_graph_forward(graph), comba_graph_backward(graph)
 *
 * Shapes are known when a node is appended. The first failure while building is kept in the graph: builders then return
 * NULL and accept NULL, so a mixer reads as plain code, and comba_graph_plan reports that failure.
 *
 * Values live in the arena, except parameters and states, whose memory the caller owns and which outlive the graph. */
#ifndef COMBA_CORE_GRAPH_H
#define COMBA_CORE_GRAPH_H

#include "comba.h"
#include "core/backend.h"
#include "core/op.h"

typedef struct comba_graph comba_graph;

typedef struct comba_tensor {
  const char *name; /* of inputs, parameters, states; NULL for results of nodes */
  comba_class kind;
  comba_shape shape;
  void *data;     /* valid after comba_graph_plan (inputs and results) or from the start (parameters, states) */
  void *gradient; /* likewise; NULL where no gradient flows */
  /* the rest is the graph's own */
  int producer; /* node, or -1 */
  int storage;  /* views share one */
  bool needs_gradient;
} comba_tensor;

enum {
  COMBA_GRAPH_BACKWARD = 1, /* keep what the reverse pass needs and plan it */
  COMBA_GRAPH_TOGETHER =
      2, /* forward alone, in an order in which a backend may run several nodes at once: for small steps */
};

comba_status comba_graph_create(comba_graph **graph, const comba_backend *backend, unsigned flags);
void comba_graph_free(comba_graph *graph);
/* For builders that find something wrong themselves: stores the failure (with the current comba_last_error()). */
void comba_graph_fail(comba_graph *graph, comba_status status);
comba_status comba_graph_status(const comba_graph *graph);

/* Memory of the arena that lives as long as the graph; the caller writes data before each run. With `wants_gradient`
 * the reverse pass leaves the gradient in ->gradient. */
comba_tensor *comba_graph_input(comba_graph *graph, const char *name, comba_class kind, comba_shape shape);
comba_tensor *comba_graph_input_with_gradient(comba_graph *graph, const char *name, comba_shape shape);
/* Memory of the caller. A parameter's gradient is added to, never overwritten; NULL: not trained. */
comba_tensor *comba_graph_parameter(comba_graph *graph, const char *name, comba_shape shape, void *data,
                                    void *gradient);
comba_tensor *comba_graph_external(comba_graph *graph, const char *name, comba_class kind, comba_shape shape,
                                   void *data);

/* Appends a node and returns its first output; `more` (or NULL) receives the others. `input` may hold NULL for optional
 * inputs. `attributes` is copied. An input whose type differs from what the operator takes there is converted first. */
comba_tensor *comba_graph_append(comba_graph *graph, comba_op_id op, const void *attributes, int inputs,
                                 comba_tensor *const *input, comba_tensor **more);
/* What `op` made the tensor from, as its first result; NULL where another operator, or none, made it. */
comba_tensor *const *comba_graph_operands(const comba_graph *graph, const comba_tensor *tensor, comba_op_id op);
/* The same values under another shape, without a copy. */
comba_tensor *comba_reshape(comba_graph *graph, comba_tensor *x, comba_shape shape);

/* Copies between the caller's values, float32 or for an index int32, and what a planned graph holds. Reading waits for the
 * graph's work; on the CPU tensor->data and tensor->gradient may be used directly instead. */
comba_status comba_tensor_write(const comba_graph *graph, comba_tensor *tensor, const void *values);
comba_status comba_tensor_read(const comba_graph *graph, const comba_tensor *tensor, void *values);
comba_status comba_tensor_write_gradient(const comba_graph *graph, comba_tensor *tensor, const float *values);
comba_status comba_tensor_read_gradient(const comba_graph *graph, const comba_tensor *tensor, float *values);

/* Keeps the value readable after a run. A node runs only if one of its results is read: by a node that runs or, kept, stored or a
 * seed, by the caller. */
void comba_graph_keep(comba_graph *graph, comba_tensor *tensor);
/* The node writes this result into the memory of `target` (an external tensor of equal shape): how a state is updated
 * in place. */
void comba_graph_store(comba_graph *graph, comba_tensor *tensor, comba_tensor *target);
/* The reverse pass starts here: the caller writes tensor->gradient before comba_graph_backward. */
void comba_graph_seed(comba_graph *graph, comba_tensor *tensor);
/* Whether activations are of a narrower type than parameters here. */
bool comba_graph_is_narrow(const comba_graph *graph);
/* A number that differs for each random node of the graph, the same in every graph of one model. */
uint64_t comba_graph_stream(comba_graph *graph);

/* What is appended in between is a block, a layer say, whose values may be computed again for backward. */
void comba_graph_begin_block(comba_graph *graph);
void comba_graph_end_block(comba_graph *graph);
/* How much backward computes again: `level` in the first `blocks` blocks, the level below it in the others; AUTO counts as NONE.
 * Before the graph is laid out. */
void comba_graph_set_recompute(comba_graph *graph, comba_recompute level, int blocks);

/* Decides what runs and assigns offsets: what the graph costs is known, nothing is allocated. Nothing is appended afterwards. */
comba_status comba_graph_layout(comba_graph *graph);
/* The same where it has not been done, and allocates the arena. */
comba_status comba_graph_plan(comba_graph *graph);

typedef struct comba_graph_cost {
  size_t arena_bytes;     /* peak of the plan = size of the arena */
  size_t unshared_bytes;  /* what separate buffers would take */
  size_t workspace_bytes; /* the largest scratch of one call, part of the arena */
  double forward_flops, backward_flops;
  double again_flops; /* of forward computed again */
  int nodes, blocks;
  comba_recompute recompute; /* in the first recompute_blocks blocks; in the others the level below it */
  int recompute_blocks;
} comba_graph_cost;
void comba_graph_describe(const comba_graph *graph, comba_graph_cost *cost);

/* Where the kernels read seed and step; the caller's memory, set before the first run. */
void comba_graph_bind_run(comba_graph *graph, const comba_run *run);
void comba_graph_forward(comba_graph *graph);
void comba_graph_backward(comba_graph *graph);

/* Time by operator since the process started, over all graphs; off until comba_profile_enable. */
typedef struct comba_profile_row {
  const char *op;
  const char *pass; /* "forward", "backward" or "again" */
  int64_t calls;
  double seconds, flops, bytes;
} comba_profile_row;
void comba_profile_enable(bool enabled);
enum { COMBA_PROFILE_ROWS = 3 * COMBA_OP_COUNT };
/* Fills in up to `capacity` rows with calls > 0, the slowest first; returns how many there are. */
int comba_profile_rows(comba_profile_row *rows, int capacity);

#endif
