/* The inside of a graph, for graph.c and plan.c. */
#ifndef COMBA_CORE_GRAPH_PRIVATE_H
#define COMBA_CORE_GRAPH_PRIVATE_H

#include "core/graph.h"

/* A piece of memory: of a value (shared by its views), a gradient, a saved tensor or a workspace. It is needed from time
 * `first` to `last`; time runs over the forward nodes, then over the backward nodes in reverse. */
typedef struct comba_storage {
  size_t bytes, offset;
  int first, last; /* -1: never needed */
  int gradient;    /* storage of the gradient, -1 without one */
  bool external;   /* the caller's memory, `data` */
  bool whole_life, keep, seed, keep_gradient;
  bool written; /* while planning: a gradient that a node has written already */
  void *data;
} comba_storage;

typedef struct comba_node {
  comba_op_id id;
  const comba_op *op;
  void *attributes;
  comba_signature signature;
  comba_tensor *input[COMBA_MAX_INPUTS], *output[COMBA_MAX_OUTPUTS];
  bool runs_backward;
  comba_call forward, backward;
  double bytes[2]; /* moved by forward and backward, counting each operand once */
  /* while planning */
  int saved[COMBA_MAX_SAVED], workspace[2];
} comba_node;

struct comba_graph {
  const comba_backend *backend;
  unsigned flags;
  comba_status status; /* the first failure while building, and its message */
  char message[1024];
  comba_tensor **tensor;
  comba_node **node;
  comba_storage *storage;
  int tensors, tensor_capacity, nodes, node_capacity, storages, storage_capacity;
  uint64_t streams;
  void *arena;
  const comba_run *run; /* the caller's */
  void *device_run;     /* what kernels read where that is out of their reach */
  void *recording[2];   /* of forward and backward, where the backend replays */
  comba_graph_cost cost;
};

/* Appends a storage; -1 with the graph failed if there is no memory. */
int comba_graph_add_storage(comba_graph *graph, size_t bytes);

#endif
