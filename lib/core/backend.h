/* A backend: a table of operators and the memory that their operands live in. */
#ifndef COMBA_CORE_BACKEND_H
#define COMBA_CORE_BACKEND_H

#include <stddef.h>

#include "core/device_memory.h"
#include "core/op.h"

/* One enumerator an operator: COMBA_OP_linear, ... */
typedef enum comba_op_id {
#define COMBA_LIST_OP(name) COMBA_OP_##name,
#include "ops/list.h"
#undef COMBA_LIST_OP
  COMBA_OP_COUNT
} comba_op_id;

/* A node's forward, for a backend that sees several of them. Those of one depth do not depend on one another, and none of those that it
 * sees at once lies where another's operands lie. */
enum { COMBA_MOST_TOGETHER = 32, COMBA_BACKEND_LANES = 8 };
typedef struct comba_forward {
  comba_op_id id;
  int depth;
  const comba_call *call;
} comba_forward;

typedef struct comba_backend {
  const char *name;                  /* "CPU, x86-64-v4" */
  const comba_op *const *op;         /* indexed by comba_op_id */
  size_t size[COMBA_INDEX + 1];      /* bytes of one element, by class */
  const comba_device_memory *memory; /* of operands */
  const char *products;  /* what computes them, and attention if another: for reading; NULL: core/gemm.h's */
  size_t products_bytes; /* scratch of matrix products, once for all graphs */
  /* NULL, or how kernels that are always queued in the same order are queued once and replayed. */
  comba_status (*record)(void **recording, void (*run)(void *context), void *context);
  void (*replay)(void *recording);
  void (*forget)(void *recording);
  /* NULL, or, within a recording: what is queued from here on goes to a lane, behind what that has and behind the parts whose numbers are
   * given, and may overlap what other lanes have; and it was the part of this number. Lane 0 is that of all other work. */
  void (*begin_in_lane)(int lane, const int *after, int count);
  void (*end_in_lane)(int number);
  /* NULL, or the seconds that the device takes for what `run` queues, without what the host takes to queue it. */
  double (*time)(void (*run)(void *context), void *context);
  /* NULL, or runs together as many as it can of `count` forwards that follow one another, from the first on. Returns how many those
   * were: 0, and the first is the caller's to run. */
  int (*forward_together)(const comba_forward *forwards, int count);
} comba_backend;

/* The fastest CPU variant that this processor runs; chosen once. */
const comba_backend *comba_backend_cpu(void);

/* The first GPU, with activations and the weights of products in float32 or bfloat16; where the library was built with CUDA. */
comba_status comba_backend_cuda(const comba_backend **backend, bool narrow);

/* Its rows where there may be no GPU: for plans that are described and never run. */
comba_status comba_backend_cuda_planned(const comba_backend **backend, bool narrow);

/* The backend that options->device and options->precision ask for. */
comba_status comba_backend_open(const comba_backend **backend, const comba_options *options);
/* Likewise, to describe what it would run: a GPU that is asked for need not be there. */
comba_status comba_backend_plan(const comba_backend **backend, const comba_options *options);
/* Why device AUTO leaves a GPU alone that is there; NULL where it takes it, or there is none. Valid until the next failure. */
const char *comba_backend_unused_gpu(void);

#endif
