/* What the row of the matrix memory and its kernels share: the operands of one call, the part of them that one task works on,
 * and one chunk of it.
 *
 * A memory is a matrix of R rows and V columns: K rows for the channels of the key, and with a bias one more, for which
 * every key and query has a 1. A state is two or three such matrices, one after the other:
 *   offset    the memory at the start of the current chunk, less the learned initial one: a state of zeros is the beginning;
 *   gathered  what the tokens of this chunk have changed so far; 0 at its start;
 *   velocity  with momentum.
 *
 * Saved for backward: the memory, and the velocity, before every chunk; all else is recomputed. */
#ifndef COMBA_SCAN_MEMORY_H
#define COMBA_SCAN_MEMORY_H

#include "scan/inner_loss.h"
#include "scan/scan.h"

enum {
  Q,
  KEY,
  VALUE,
  RATE,
  RETENTION,
  MOMENTUM,
  THRESHOLD,
  TOKEN_OFFSET,
  NORM_WEIGHT,
  NORM_BIAS,
  MEMORY,
  BIAS,
  INITIAL_STATE,
  POSITION,
  CU_SEQLENS,
  INPUTS
};
enum { OUTPUT, FINAL_STATE };
enum { MEMORIES };

/* One sequence and head. Rows of q, k and their gradients are key_stride apart, those of v and o value_stride, gates
 * gate_stride, saved memories memory_stride. What is not there or not wanted is NULL. */
typedef struct memory_head {
  int64_t length, K, V, rows;
  int64_t chunk; /* tokens of a chunk */
  int64_t phase; /* of the first token in its chunk */
  int64_t key_stride, value_stride, gate_stride, memory_stride;
  bool residual; /* the target is v - k */
  comba_memory_map map;
  double map_exponent, map_total;
  inner_loss loss;
  const real *q, *k, *v, *rate, *retention, *momentum, *threshold, *token_offset, *memory, *bias, *initial_state;
  real *o, *final_state, *memories;
  const real *output_gradient, *final_state_gradient;
  real *dq, *dk, *dv, *drate, *dretention, *dmomentum, *dthreshold, *initial_state_gradient;
  real *parameter_gradient; /* of the memory (R,V), norm_weight (V), norm_bias (V), token_offset (chunk): written */
  bool accumulate[INPUTS];
} memory_head;

static inline int64_t memory_parameters(int64_t rows, int64_t V, int64_t chunk) {
  return rows * V + 2 * V + chunk;
}

/* n tokens of a chunk, from the one at `phase` of it. Matrices are dense. */
typedef struct memory_chunk {
  int64_t n, phase, R, V;
  bool fresh;                                   /* nothing gathered before: running starts as frozen */
  bool in_place;                                /* linear, fresh and complete: frozen becomes the next chunk's memory */
  bool momentum, token_weight, gated;           /* there are such; retention or momentum */
  real rate[CHUNK], retain[CHUNK], keep[CHUNK]; /* eta_t; e^g of retention and of momentum */
  real weight[CHUNK];                           /* of what is gathered, in the memory that token i reads */
  real *q, *k;                                  /* (n,R) */
  real *target, *z, *gradient; /* (n,V) target, what the memory returns, and the rows n_t of its gradient */
  real *frozen;                /* (R,V) memory at the chunk's start */
  real *running;               /* (R,V) with what the tokens up to now have changed; frozen itself in place */
  real *velocity;              /* (R,V) */
  real *map;                   /* (R,V) of the frozen memory; itself where the map is the identity */
  real *scratch;
} memory_chunk;

/* Gradients of a chunk. In backward, those of what is left at its end become those of what it started from. */
typedef struct memory_chunk_gradient {
  real *o;                  /* (n,V), given */
  real *q, *k;              /* (n,R) */
  real *gradient;           /* (n,V) of the rows n_t */
  real *running, *velocity; /* (R,V): of the end, then of the start */
  real *frozen;             /* (R,V): added to, apart from what goes through running or the rows n_t; not in place */
  bool committed;           /* the chunk ends here: running's gradient is that of the next chunk's memory, ... */
  real end;                 /* ... of which running is this share: the last token's weight; 1 otherwise */
  real rate[CHUNK], retain[CHUNK], keep[CHUNK], weight[CHUNK];
} memory_chunk_gradient;

/* Reading and gathering, given the rows n_t: o, rows `stride` apart, and running and velocity moved on by n tokens. By matrix
 * products, where the memory is linear; token by token through a map. */
void COMBA_VARIANT(comba_memory_linear_forward)(const memory_chunk *chunk, real *o, int64_t stride);
void COMBA_VARIANT(comba_memory_linear_backward)(const memory_chunk *chunk, memory_chunk_gradient *gradient);
int64_t COMBA_VARIANT(comba_memory_linear_scratch)(int64_t chunk, int64_t R, int64_t V);
void COMBA_VARIANT(comba_memory_mapped_forward)(const memory_head *head, const memory_chunk *chunk, real *o,
                                                int64_t stride);
void COMBA_VARIANT(comba_memory_mapped_backward)(const memory_head *head, const memory_chunk *chunk,
                                                 memory_chunk_gradient *gradient);
int64_t COMBA_VARIANT(comba_memory_mapped_scratch)(int64_t chunk, int64_t R, int64_t V, bool backward);

/* memory (R,V) = map of A (R,V); the gradient (R,V) of the memory becomes that of A. */
void COMBA_VARIANT(comba_memory_map)(const memory_head *head, const real *A, real *memory);
void COMBA_VARIANT(comba_memory_map_backward)(const memory_head *head, const real *A, const real *memory,
                                              real *gradient);

/* The chunks of one sequence and head, in order and back. */
void COMBA_VARIANT(comba_memory_scan_forward)(const memory_head *head, real *scratch);
void COMBA_VARIANT(comba_memory_scan_backward)(const memory_head *head, real *scratch);
int64_t COMBA_VARIANT(comba_memory_scan_scratch)(int64_t chunk, int64_t R, int64_t V, bool mapped, bool backward);

#endif
