/* The CUDA backend as the rest of the library sees it. */
#ifndef COMBA_CORE_CUDA_H
#define COMBA_CORE_CUDA_H

#ifdef __cplusplus
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
extern "C" {
#endif
#include "core/backend.h"

/* Types of activations, and of weights in products. */
typedef enum comba_cuda_type { COMBA_CUDA_FLOAT32, COMBA_CUDA_BFLOAT16, COMBA_CUDA_TYPES } comba_cuda_type;

/* An operator's kernels, by type; comba_cuda_NAME in NAME.cu beside NAME.c, one for each name of ops/list.h. Shapes, classes and cases are
 * those of the CPU's row. */
typedef struct comba_cuda_op {
  void (*forward[COMBA_CUDA_TYPES])(const comba_call *call);
  void (*backward[COMBA_CUDA_TYPES])(const comba_call *call);
  /* NULL, or called after the row's own: saved tensors and workspaces where they differ. */
  comba_status (*infer)(comba_signature *signature);
  uint32_t backward_inputs;                                 /* that backward reads besides those which the CPU's does */
  comba_status (*infer_narrow)(comba_signature *signature); /* NULL, or in its place for bfloat16 */
  uint32_t optional_outputs;                                /* as the row's */
} comba_cuda_op;

/* Makes the first GPU ready for the calling process; once. */
comba_status comba_cuda_open(void);
/* Whether there is a driver and, as far as it can tell, a GPU. */
bool comba_cuda_is_there(void);
/* "NVIDIA H200, sm_90, CUDA 13.0": after comba_cuda_open. */
const char *comba_cuda_name(void);
/* Of matrix products, allocated when the GPU is opened. */
enum { COMBA_CUDA_PRODUCTS_BYTES = 128 << 20 };
/* What computes softmax attention in bfloat16: "cuDNN 9.19.0 where it has a plan, else comba". */
const char *comba_cuda_attention_kernel(void);
/* Several nodes in one launch, by type of activations (comba_backend.forward_together). */
extern int (*const comba_cuda_forward_together[COMBA_CUDA_TYPES])(const comba_forward *forwards, int count);
extern const comba_device_memory comba_cuda_device_memory[COMBA_CUDA_TYPES];
/* Records what `run` queues and replays it; the recording belongs to the caller. */
comba_status comba_cuda_record(void **recording, void (*run)(void *context), void *context);
void comba_cuda_replay(void *recording);
void comba_cuda_forget(void *recording);
/* comba_backend.begin_in_lane and end_in_lane, where COMBA_CUDA_LANES=1 in the environment asks for them. */
bool comba_cuda_has_lanes(void);
void comba_cuda_begin_in_lane(int lane, const int *after, int count);
void comba_cuda_end_in_lane(int number);
double comba_cuda_time(void (*run)(void *context), void *context);

/* For measurements: products from now on take answer `rank` of cuBLASLt's heuristic, 0 the best as it expects; and how the last product
 * was computed, in cuBLASLt's numbers. */
enum { COMBA_CUDA_PRODUCT_RANKS = 8 };
void comba_cuda_rank_products(int rank);
const char *comba_cuda_last_product(void);

#ifdef __cplusplus
}
#endif
#endif
