/* What the state engines share: chunk length, saved states, how tasks are dealt to slots, small kernels.
 *
 * Scratch: the tasks are dealt to at most COMBA_BLOCKS slots, for each of which call->workspace has scratch, and a slot
 * runs its tasks one after the other. So the size is known to `infer`, does not grow with the batch beyond COMBA_BLOCKS
 * tasks, and neither it nor the result depends on the number of threads. */
#ifndef COMBA_SCAN_SCAN_H
#define COMBA_SCAN_SCAN_H

#include "core/op.h"
#include "core/parallel.h"

enum {
  CHUNK = 64, /* tokens between saved states, in both forms */
  BLOCK = 16, /* tokens of a block inside a chunk */
  WIDTH_MIN = 16,
  WIDTH_MAX = 256,     /* columns of a tile in the recurrent forward pass */
  TILE = 8192,         /* numbers of a state tile that stays in the first-level cache */
  BACKWARD_WIDTH = 16, /* columns for which backward keeps the states of one segment */
};

/* Whether a call runs in chunks. The rule of COMBA_MODE_AUTO, from the times in docs/scalar_decay.md, delta_rule.md and
 * diagonal_decay.md: where the state has at least `least_state` numbers and a sequence, on average, `least_work` numbers times tokens to pay for
 * what a chunk costs at any length: bounds of each engine. It looks at shapes alone: a run is the same on every machine. */
enum { CHUNK_MIN_LENGTH = 4, CHUNK_MIN_WORK = 1 << 16 };

static inline bool scan_in_chunks(comba_mode mode, int64_t length, int64_t K, int64_t V, int64_t least_state,
                                  int64_t least_work) {
  if (mode != COMBA_MODE_AUTO) return mode == COMBA_MODE_CHUNK;
  return K * V >= least_state && length >= CHUNK_MIN_LENGTH && length >= least_work / (K * V);
}

static inline real scan_dot(const real *a, const real *b, int64_t n) {
  real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* Asks for rows of `width` numbers, `stride` apart, ahead of their use: those of one head lie further apart than the core looks
 * ahead by itself. Inlined always: gcc drops calls of a function that does nothing else. */
static inline __attribute__((always_inline)) void scan_fetch(const real *from, int64_t rows, int64_t width,
                                                             int64_t stride) {
  for (int64_t i = 0; i < rows && from; i++)
    for (int64_t c = 0; c < width; c += (int64_t)(64 / sizeof(real))) __builtin_prefetch(from + i * stride + c);
}

/* e^x for x <= 0; what is too small for a normal float is 0: denormal numbers would only slow the products down. */
static inline real scan_decay(real x) {
  const real power = comba_exp(x);
  return x < -87 ? 0 : power;
}

/* Saved states a head. A packed sequence that starts at token s saves its states from slot s / CHUNK + its number on: they
 * cannot overlap. */
static inline int64_t scan_states(bool packed, int64_t sequences, int64_t length) {
  return packed ? length / CHUNK + sequences : sequences * ((length + CHUNK - 1) / CHUNK);
}
static inline int64_t scan_state_slot(bool packed, int64_t sequence, int64_t length, int64_t first) {
  return packed ? first / CHUNK + sequence : sequence * ((length + CHUNK - 1) / CHUNK);
}

/* Columns of a tile of the recurrent forward pass. One token needs no tile of its own: wide rows of the state, read and
 * written in order. */
static inline int64_t scan_tile_width(int64_t length, int64_t K, int64_t V) {
  int64_t width = length > 1 ? TILE / K / WIDTH_MIN * WIDTH_MIN : WIDTH_MAX;
  width = width < WIDTH_MIN ? WIDTH_MIN : (width > WIDTH_MAX ? WIDTH_MAX : width);
  return width < V ? width : V;
}

static inline void scan_copy_columns(int64_t K, int64_t width, const real *from, int64_t from_stride, real *to,
                                     int64_t to_stride) {
  for (int64_t i = 0; i < K; i++) memcpy(to + i * to_stride, from + i * from_stride, (size_t)width * sizeof(real));
}

/* to (width,K) = columns of from (K,V) */
static inline void scan_load_columns(int64_t K, int64_t V, int64_t width, const real *from, real *to) {
  for (int64_t c = 0; c < width; c++)
    for (int64_t i = 0; i < K; i++) to[c * K + i] = from[i * V + c];
}

/* Zero, where the gradient is wanted and not added to; `rows` of `width`, `stride` apart. */
static inline void scan_clear(real *gradient, bool accumulate, int64_t rows, int64_t width, int64_t stride) {
  if (!gradient || accumulate) return;
  for (int64_t i = 0; i < rows; i++) memset(gradient + i * stride, 0, (size_t)width * sizeof(real));
}

static inline void scan_add(real *to, const real *from, int64_t n) {
  if (!to) return;
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

/* The state (K V) before the first token, or the gradient of the one after the last: zero where absent. */
static inline void scan_load_state(real *state, const real *from, int64_t size) {
  if (from)
    memcpy(state, from, (size_t)size * sizeof(real));
  else
    memset(state, 0, (size_t)size * sizeof(real));
}

static inline void scan_store_gradient(real *gradient, const real *state, int64_t size, bool accumulate) {
  if (!gradient) return;
  if (accumulate)
    scan_add(gradient, state, size);
  else
    memcpy(gradient, state, (size_t)size * sizeof(real));
}

/* Slots for `tasks`. */
static inline int64_t scan_slots(int64_t tasks) {
  return comba_blocks(tasks, 1);
}
/* Runs the tasks 0 to tasks - 1, each with `scratch_size` reals. */
static inline void scan_deal(int64_t tasks, real *workspace, int64_t scratch_size,
                             void (*run)(const void *context, int64_t task, real *scratch), const void *context) {
  const int64_t slots = scan_slots(tasks);
#pragma omp parallel for schedule(dynamic)
  for (int64_t slot = 0; slot < slots; slot++) {
    real *const scratch = workspace + comba_scratch_of(slot, slots) * scratch_size;
    const int64_t end = comba_block_start(tasks, slots, slot + 1);
    for (int64_t task = comba_block_start(tasks, slots, slot); task < end; task++) run(context, task, scratch);
  }
}

/* inverse (CHUNK,CHUNK) = (I + L)^{-1} of the first n rows, L (CHUNK,CHUNK) strictly lower with zero rows from n up to the next
 * multiple of BLOCK; `product` is scratch of the same size. */
void COMBA_VARIANT(comba_unit_lower_inverse)(int64_t n, const real *L, real *inverse, real *product);

#endif
