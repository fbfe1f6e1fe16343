/* The inside of a graph, for graph.c and plan.c. */
#ifndef COMBA_CORE_GRAPH_PRIVATE_H
#define COMBA_CORE_GRAPH_PRIVATE_H

#include "core/graph.h"

/* A piece of memory: of a value (shared by its views), a gradient, a saved tensor or a workspace. It is needed from time
 * `first` to `last`; time is the place in the schedule. */
typedef struct comba_storage {
  size_t bytes, offset;
  int first, last; /* -1: never needed */
  int gradient;    /* storage of the gradient, -1 without one */
  int again;       /* storage of the same value when it is computed again for backward, -1 where it is not */
  bool external;   /* the caller's memory, `data` */
  bool whole_life, keep, seed, keep_gradient;
  int readers;       /* while planning: how often nodes take it as an input */
  bool written;      /* while planning: a gradient that a node has written already */
  bool read;         /* likewise: a value that a node or the caller reads */
  bool held, wanted; /* likewise: a value that stays until backward, one that backward reads */
  void *data;
} comba_storage;

/* The ways in which a node runs; AGAIN is forward once more, during backward. */
typedef enum comba_run_kind { COMBA_RUN_FORWARD, COMBA_RUN_BACKWARD, COMBA_RUN_AGAIN, COMBA_RUNS } comba_run_kind;

typedef struct comba_step {
  int node;
  comba_run_kind kind;
} comba_step;

typedef struct comba_node {
  comba_op_id id;
  const comba_op *op;
  void *attributes;
  comba_signature signature;
  comba_tensor *input[COMBA_MAX_INPUTS], *output[COMBA_MAX_OUTPUTS];
  int block; /* 0: none */
  int depth; /* with COMBA_GRAPH_TOGETHER */
  bool runs[COMBA_RUNS];
  comba_call call[COMBA_RUNS];
  double bytes[COMBA_RUNS]; /* moved, counting each operand once */
  /* while planning */
  int saved[COMBA_MAX_SAVED], workspace[COMBA_RUNS];
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
  int block, blocks;     /* that nodes are appended to, and how many there were */
  comba_recompute level; /* of the first level_blocks blocks; of the others the one below */
  int level_blocks;
  bool in_lanes;        /* the passes that are recorded */
  comba_step *schedule; /* forward_steps of forward, then what backward runs */
  int forward_steps, steps;
  void *arena;
  const comba_run *run; /* the caller's */
  void *device_run;     /* what kernels read where that is out of their reach */
  void *recording[2];   /* of forward and backward, where the backend replays */
  comba_graph_cost cost;
};

/* The outputs that the node's backward reads, bit i = output i. */
static inline uint32_t comba_node_backward_outputs(const comba_node *node) {
  return node->op->backward_outputs & ~node->signature.spared_outputs;
}
/* How much the node's block computes again. */
comba_recompute comba_graph_level(const comba_graph *graph, const comba_node *node);
/* Decides which nodes run again, gives what they write its second storage, and makes the schedule. */
comba_status comba_graph_schedule(comba_graph *graph);
/* Puts the forward steps of the schedule into the order of depth. */
comba_status comba_graph_order_by_depth(comba_graph *graph);
/* Whether passes run in lanes: where the backend has them and steps are small. What a step reads or writes stays for so many steps longer,
 * or those that take its memory would have to wait. */
bool comba_graph_has_lanes(const comba_graph *graph);
enum { COMBA_LANE_STEPS = 16 };
/* Runs steps first to end - 1 of the schedule in lanes; false where there is no memory to do so, and nothing has run. */
bool comba_graph_run_in_lanes(const comba_graph *graph, int first, int end);
/* Appends a storage; -1 with the graph failed if there is no memory. */
int comba_graph_add_storage(comba_graph *graph, size_t bytes);

#endif
