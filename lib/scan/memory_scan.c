/* The chunks of one sequence and head. The rows n_t of a chunk's gradient are all taken at the memory the chunk starts with;
 * what then reads and gathers is memory_linear.c, or memory_mapped.c through a map. */
#include "scan/chunk_product.h"
#include "scan/memory.h"

static bool is_mapped(const memory_head *h) {
  return h->map != COMBA_MEMORY_LINEAR;
}

/* ---- Chunks -------------------------------------------------------------------------------------------------------- */

static int64_t chunk_count(const memory_head *h) {
  return h->length ? (h->phase + h->length + h->chunk - 1) / h->chunk : 0;
}

/* First token of chunk c. */
static int64_t chunk_start(const memory_head *h, int64_t c) {
  return c ? c * h->chunk - h->phase : 0;
}

static real *take(real **at, int64_t size) {
  real *const place = *at;
  *at += size;
  return place;
}

/* Scratch of a chunk; returns where it ends. */
static real *lay_out(memory_chunk *x, real *base, int64_t chunk, int64_t R, int64_t V, bool mapped) {
  *x = (memory_chunk){.R = R, .V = V};
  x->q = take(&base, chunk * R);
  x->k = take(&base, chunk * R);
  x->target = take(&base, chunk * V);
  x->z = take(&base, chunk * V);
  x->gradient = take(&base, chunk * V);
  x->frozen = take(&base, R * V);
  x->running = take(&base, R * V);
  x->velocity = take(&base, R * V);
  x->map = mapped ? take(&base, R * V) : x->frozen;
  return base;
}

static real *lay_out_gradient(memory_chunk_gradient *g, real **dz, real **dtarget, real *base, int64_t chunk, int64_t R,
                              int64_t V) {
  g->o = take(&base, chunk * V);
  g->q = take(&base, chunk * R);
  g->k = take(&base, chunk * R);
  g->gradient = take(&base, chunk * V);
  g->running = take(&base, R * V);
  g->velocity = take(&base, R * V);
  g->frozen = take(&base, R * V);
  *dz = take(&base, chunk * V);
  *dtarget = take(&base, chunk * V);
  return base;
}

int64_t COMBA_VARIANT(comba_memory_scan_scratch)(int64_t chunk, int64_t R, int64_t V, bool mapped, bool backward) {
  int64_t size = chunk * (2 * R + 3 * V) + 4 * R * V;
  if (backward) size += chunk * (2 * R + 4 * V) + 4 * R * V;
  size += mapped ? COMBA_VARIANT(comba_memory_mapped_scratch)(chunk, R, V, backward)
                 : COMBA_VARIANT(comba_memory_linear_scratch)(chunk, R, V);
  return (size + 15) / 16 * 16;
}

/* to (n,R) = rows of from and, with a bias, a 1 */
static void load_rows(const memory_head *h, int64_t n, const real *from, real *to) {
  for (int64_t i = 0; i < n; i++) {
    memcpy(to + i * h->rows, from + i * h->key_stride, (size_t)h->K * sizeof(real));
    if (h->rows > h->K) to[i * h->rows + h->K] = 1;
  }
}

static bool is_complete(const memory_head *h, const memory_chunk *x) {
  return x->phase + x->n == h->chunk;
}

static void fetch_rows(const real *rows, int64_t start, int64_t end, int64_t width, int64_t stride) {
  for (int64_t i = start; rows && i < end; i++)
    for (int64_t c = 0; c < width; c += 64 / (int64_t)sizeof(real)) __builtin_prefetch(rows + i * stride + c);
}

/* Starts to bring the tokens of chunk c into the cache: a head's rows lie too far apart for the processor to see them coming. */
static void fetch_chunk(const memory_head *h, int64_t c) {
  const int64_t start = chunk_start(h, c), next = chunk_start(h, c + 1), end = next < h->length ? next : h->length;
  fetch_rows(h->q, start, end, h->K, h->key_stride);
  fetch_rows(h->k, start, end, h->K, h->key_stride);
  fetch_rows(h->v, start, end, h->V, h->value_stride);
  fetch_rows(h->output_gradient, start, end, h->V, h->value_stride);
}

/* The tokens of chunk c, and the rows n_t at x->frozen. */
static void load_chunk(const memory_head *h, int64_t c, memory_chunk *x) {
  const int64_t start = chunk_start(h, c), end = chunk_start(h, c + 1), V = h->V;
  x->n = (end < h->length ? end : h->length) - start;
  x->phase = c ? 0 : h->phase;
  x->fresh = !x->phase || !h->initial_state;
  x->in_place = x->fresh && is_complete(h, x) && !is_mapped(h);
  x->momentum = h->momentum;
  x->gated = h->retention || h->momentum;
  x->token_weight = h->token_offset;
  for (int64_t i = 0; i < x->n; i++) {
    const int64_t gate = (start + i) * h->gate_stride, token = x->phase + i;
    x->rate[i] = h->rate[gate];
    x->retain[i] = h->retention ? scan_decay(h->retention[gate]) : 1;
    x->keep[i] = h->momentum ? scan_decay(h->momentum[gate]) : 0;
    x->weight[i] = 1;
    if (!h->token_offset) continue;
    x->weight[i] = 1 / (real)(token + 1) + h->token_offset[token];
    if (x->weight[i] < 0) x->weight[i] = 0;
  }
  load_rows(h, x->n, h->q + start * h->key_stride, x->q);
  load_rows(h, x->n, h->k + start * h->key_stride, x->k);
  real threshold[CHUNK];
  for (int64_t i = 0; i < x->n; i++) {
    const real *v = h->v + (start + i) * h->value_stride, *k = x->k + i * x->R;
    real *target = x->target + i * V;
    memcpy(target, v, (size_t)V * sizeof(real));
    for (int64_t j = 0; h->residual && j < V; j++) target[j] -= k[j];
    threshold[i] = h->threshold ? h->threshold[(start + i) * h->gate_stride] : 0;
  }
  if (is_mapped(h)) COMBA_VARIANT(comba_memory_map)(h, x->frozen, x->map);
  chunk_product('N', 'N', x->n, V, x->R, 1, x->k, x->R, x->map, V, 0, x->z, V);
  COMBA_VARIANT(comba_inner_loss_forward)(&h->loss, x->n, x->z, x->target, threshold, x->gradient);
}

/* ---- States -------------------------------------------------------------------------------------------------------- */

/* Row r of the learned memory, or NULL for zeros. */
static const real *learned_row(const memory_head *h, int64_t r) {
  if (r == h->K) return h->bias;
  return h->memory ? h->memory + r * h->V : NULL;
}

static void load_state(const memory_head *h, memory_chunk *x) {
  const int64_t size = h->rows * h->V;
  scan_load_state(x->frozen, h->initial_state, size);
  for (int64_t r = 0; r < h->rows; r++)
    if (learned_row(h, r)) scan_add(x->frozen + r * h->V, learned_row(h, r), h->V);
  memcpy(x->running, x->frozen, (size_t)size * sizeof(real));
  if (h->phase && h->initial_state) scan_add(x->running, h->initial_state + size, size);
  if (h->momentum) scan_load_state(x->velocity, h->initial_state ? h->initial_state + 2 * size : NULL, size);
}

static void store_state(const memory_head *h, const memory_chunk *x) {
  const int64_t size = h->rows * h->V;
  real *offset = h->final_state, *gathered = offset + size;
  for (int64_t i = 0; i < size; i++) {
    offset[i] = x->frozen[i];
    gathered[i] = x->running[i] - x->frozen[i];
  }
  for (int64_t r = 0; r < h->rows; r++)
    for (int64_t c = 0; learned_row(h, r) && c < h->V; c++) offset[r * h->V + c] -= learned_row(h, r)[c];
  if (h->momentum) memcpy(offset + 2 * size, x->velocity, (size_t)size * sizeof(real));
}

/* At the end of a chunk what its last token reads becomes the memory. */
static void commit(memory_chunk *x) {
  const real weight = x->weight[x->n - 1];
  const int64_t size = x->R * x->V;
  if (x->token_weight)
    for (int64_t i = 0; i < size; i++) x->running[i] = x->frozen[i] + weight * (x->running[i] - x->frozen[i]);
  memcpy(x->frozen, x->running, (size_t)size * sizeof(real));
}

static int64_t state_parts(const memory_head *h) {
  return h->momentum ? 3 : 2;
}

void COMBA_VARIANT(comba_memory_scan_forward)(const memory_head *h, real *scratch) {
  const int64_t size = h->rows * h->V, chunks = chunk_count(h);
  memory_chunk x;
  real *rest = lay_out(&x, scratch, h->chunk, h->rows, h->V, is_mapped(h));
  if (!h->length) {
    scan_load_state(h->final_state, h->initial_state, state_parts(h) * size);
    return;
  }
  load_state(h, &x);
  real *const running = x.running;
  for (int64_t c = 0; c < chunks; c++) {
    real *o = h->o + chunk_start(h, c) * h->value_stride;
    load_chunk(h, c, &x);
    if (c + 1 < chunks) fetch_chunk(h, c + 1);
    x.scratch = rest;
    x.running = x.in_place ? x.frozen : running;
    if (c && !x.in_place) memcpy(running, x.frozen, (size_t)size * sizeof(real));
    if (h->memories) {
      real *saved = h->memories + c * h->memory_stride;
      memcpy(saved, x.frozen, (size_t)size * sizeof(real));
      if (h->momentum) memcpy(saved + size, x.velocity, (size_t)size * sizeof(real));
    }
    if (is_mapped(h))
      COMBA_VARIANT(comba_memory_mapped_forward)(h, &x, o, h->value_stride);
    else
      COMBA_VARIANT(comba_memory_linear_forward)(&x, o, h->value_stride);
    if (is_complete(h, &x) && !x.in_place) commit(&x);
  }
  store_state(h, &x);
}

/* ---- Backward ------------------------------------------------------------------------------------------------------ */

/* Rows of `from`, `width` of every `from_stride` numbers, to their place among the rows of all heads. */
static void store_rows(real *to, bool accumulate, int64_t n, int64_t width, int64_t stride, const real *from,
                       int64_t from_stride) {
  for (int64_t i = 0; to && i < n; i++) scan_store_gradient(to + i * stride, from + i * from_stride, width, accumulate);
}

/* to_t = factor_t from_t (factor NULL: 1) at tokens `start` on. */
static void store_gates(const memory_head *h, real *to, int input, int64_t start, int64_t n, const real *from,
                        const real *factor) {
  for (int64_t i = 0; to && i < n; i++) {
    real *place = to + (start + i) * h->gate_stride;
    *place = (h->accumulate[input] ? *place : 0) + from[i] * (factor ? factor[i] : 1);
  }
}

/* The parts of h->parameter_gradient. */
typedef struct parameter_gradient {
  real *memory, *norm_weight, *norm_bias, *token_offset;
} parameter_gradient;

static parameter_gradient parameters_of(const memory_head *h) {
  real *const memory = h->parameter_gradient, *const norm = memory + h->rows * h->V;
  return (parameter_gradient){memory, norm, norm + h->V, norm + 2 * h->V};
}

/* Chunk c from the gradients of its end in g->running and g->velocity to those of its start; g->frozen is all that reaches
 * the memory it starts with, g->running of it what came through the tokens gathered before. In place it is g->running alone. */
static void chunk_backward(const memory_head *h, int64_t c, memory_chunk *x, memory_chunk_gradient *g, real *dz,
                           real *dtarget) {
  const int64_t start = chunk_start(h, c), R = x->R, V = x->V, n = x->n, size = R * V;
  const parameter_gradient p = parameters_of(h);
  real dthreshold[CHUNK] = {0}, threshold[CHUNK];
  for (int64_t i = 0; i < n; i++) {
    if (h->output_gradient)
      memcpy(g->o + i * V, h->output_gradient + (start + i) * h->value_stride, (size_t)V * sizeof(real));
    else
      memset(g->o + i * V, 0, (size_t)V * sizeof(real));
    threshold[i] = h->threshold ? h->threshold[(start + i) * h->gate_stride] : 0;
  }
  g->committed = is_complete(h, x);
  g->end = g->committed && x->token_weight ? x->weight[n - 1] : 1;
  if (is_mapped(h))
    COMBA_VARIANT(comba_memory_mapped_backward)(h, x, g);
  else
    COMBA_VARIANT(comba_memory_linear_backward)(x, g);

  const inner_loss_gradients loss = {dz, dtarget, h->dthreshold ? dthreshold : NULL, p.norm_weight, p.norm_bias};
  COMBA_VARIANT(comba_inner_loss_backward)(&h->loss, n, x->z, x->target, threshold, g->gradient, &loss);
  chunk_product('N', 'T', n, R, V, 1, dz, V, x->map, V, 1, g->k, R);
  if (is_mapped(h)) {
    real *through_map = x->scratch; /* (R,V) */
    chunk_product('T', 'N', R, V, n, 1, x->k, R, dz, V, 0, through_map, V);
    COMBA_VARIANT(comba_memory_map_backward)(h, x->frozen, x->map, through_map);
    scan_add(g->frozen, through_map, size);
  } else {
    chunk_product('T', 'N', R, V, n, 1, x->k, R, dz, V, 1, x->in_place ? g->running : g->frozen, V);
  }
  if (!x->in_place) scan_add(g->frozen, g->running, size);

  if (h->residual)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < V; j++) g->k[i * R + j] -= dtarget[i * V + j];
#define ROWS(gradient, input, width, stride, from, from_stride)                                                        \
  store_rows(h->gradient ? h->gradient + start *(stride) : NULL, h->accumulate[input], n, width, stride, from,         \
             from_stride)
  ROWS(dq, Q, h->K, h->key_stride, g->q, R);
  ROWS(dk, KEY, h->K, h->key_stride, g->k, R);
  ROWS(dv, VALUE, V, h->value_stride, dtarget, V);
#undef ROWS
  store_gates(h, h->drate, RATE, start, n, g->rate, NULL);
  store_gates(h, h->dretention, RETENTION, start, n, g->retain, x->retain);
  store_gates(h, h->dmomentum, MOMENTUM, start, n, g->keep, x->keep);
  store_gates(h, h->dthreshold, THRESHOLD, start, n, dthreshold, NULL);
  for (int64_t i = 0; x->token_weight && i < n; i++)
    if (x->weight[i] > 0) p.token_offset[x->phase + i] += g->weight[i];
}

/* The gradients of the last chunk's end: the state holds frozen - learned, running - frozen and velocity. Where the chunk is
 * complete, frozen is running. */
static void load_end_gradient(const memory_head *h, bool complete, memory_chunk_gradient *g) {
  const int64_t size = h->rows * h->V;
  const real *offset = h->final_state_gradient, *gathered = offset ? offset + size : NULL;
  scan_load_state(g->running, complete ? offset : gathered, size);
  scan_load_state(g->velocity, h->momentum && offset ? offset + 2 * size : NULL, size);
  scan_load_state(g->frozen, complete ? NULL : offset, size);
  for (int64_t i = 0; offset && !complete && i < size; i++) g->frozen[i] -= gathered[i];
}

static void store_state_gradient(const memory_head *h, const memory_chunk_gradient *g, bool fresh) {
  const int64_t size = h->rows * h->V;
  real *offset = h->initial_state_gradient;
  const bool accumulate = h->accumulate[INITIAL_STATE];
  if (!offset) return;
  scan_store_gradient(offset, g->frozen, size, accumulate);
  if (!fresh)
    scan_store_gradient(offset + size, g->running, size, accumulate);
  else
    scan_clear(offset + size, accumulate, 1, size, size);
  if (h->momentum) scan_store_gradient(offset + 2 * size, g->velocity, size, accumulate);
}

static void exchange(memory_chunk_gradient *g) {
  real *const frozen = g->frozen;
  g->frozen = g->running;
  g->running = frozen;
}

void COMBA_VARIANT(comba_memory_scan_backward)(const memory_head *h, real *scratch) {
  const int64_t size = h->rows * h->V, chunks = chunk_count(h);
  const parameter_gradient p = parameters_of(h);
  memory_chunk x;
  memory_chunk_gradient g;
  real *dz, *dtarget;
  memset(h->parameter_gradient, 0, (size_t)memory_parameters(h->rows, h->V, h->chunk) * sizeof(real));
  real *rest = lay_out(&x, scratch, h->chunk, h->rows, h->V, is_mapped(h));
  rest = lay_out_gradient(&g, &dz, &dtarget, rest, h->chunk, h->rows, h->V);
  if (!h->length) {
    scan_load_state(scratch, h->final_state_gradient, state_parts(h) * size);
    scan_store_gradient(h->initial_state_gradient, scratch, state_parts(h) * size, h->accumulate[INITIAL_STATE]);
    return;
  }
  real *const running = x.running;
  for (int64_t c = chunks - 1; c >= 0; c--) {
    if (c < chunks - 1 && !x.in_place) { /* the last chunk, which is not complete, or with a map */
      exchange(&g);
      memset(g.frozen, 0, (size_t)size * sizeof(real));
    }
    x.frozen = h->memories + c * h->memory_stride; /* only read */
    x.velocity = x.frozen + size;
    if (!is_mapped(h)) x.map = x.frozen;
    load_chunk(h, c, &x);
    if (c) fetch_chunk(h, c - 1);
    x.scratch = rest;
    x.running = x.frozen;
    if (!x.fresh) {
      x.running = running;
      memcpy(running, x.frozen, (size_t)size * sizeof(real));
      scan_add(running, h->initial_state + size, size);
    }
    if (c == chunks - 1) load_end_gradient(h, is_complete(h, &x), &g);
    chunk_backward(h, c, &x, &g, dz, dtarget);
  }
  if (x.in_place) exchange(&g);
  for (int64_t i = 0; i < size; i++)
    p.memory[i] += g.frozen[i] - (h->final_state_gradient ? h->final_state_gradient[i] : 0);
  store_state_gradient(h, &g, x.fresh);
}
