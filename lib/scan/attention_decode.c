/* Causal softmax attention of T new tokens against themselves and a ring of the keys and values before them: token number
 * n lies in row n modulo capacity. Attention comes first and reads the new tokens where they are given, so T may be larger
 * than the ring; then the last tokens are written into it. */
#include "scan/attention_block.h"

#include "core/parallel.h"
#include "ops/extent.h"

enum { Q, KEY, VALUE, CACHE_K, CACHE_V, POSITION };
enum { O, NEW_CACHE_K, NEW_CACHE_V };

typedef struct problem {
  comba_attention_attributes attributes;
  int64_t batch, length, heads, key_heads, group, D, capacity;
  int64_t position;     /* number of the first new token */
  int64_t blocks, rows; /* of queries for one key head: rows are the heads of its group at T = 1, tokens otherwise */
  int64_t score_stride;
} problem;

static problem measure(const comba_shape *q, const comba_shape *k, const comba_shape *cache) {
  problem p = {.batch = q->size[0],
               .length = q->size[1],
               .heads = q->size[2],
               .key_heads = k->size[2],
               .group = q->size[2] / k->size[2],
               .D = q->size[3],
               .capacity = cache->size[1]};
  p.rows = p.length == 1 ? p.group : p.length;
  p.blocks = (p.rows + QUERY_BLOCK - 1) / QUERY_BLOCK * (p.length == 1 ? 1 : p.group);
  p.score_stride = attention_score_stride(p.capacity > p.length ? p.capacity : p.length);
  return p;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *q = &s->input[Q], *k = &s->input[KEY], *cache = &s->input[CACHE_K];
  const comba_attention_attributes *attributes = s->attributes;
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, D)");
  if (!comba_extent_fits(k, 4) || k->size[0] != q->size[0] || k->size[1] != q->size[1] || k->size[3] != q->size[3] ||
      q->size[2] % k->size[2])
    return comba_fail_shape(s, KEY, "(B, T, HKV, D) with B, T and D of q and its H a multiple of HKV");
  if (!comba_shape_equal(&s->input[VALUE], k)) return comba_fail_shape(s, VALUE, "(B, T, HKV, D), as k");
  if (!comba_extent_fits(cache, 4) || cache->size[0] != k->size[0] || cache->size[2] != k->size[2] ||
      cache->size[3] != k->size[3])
    return comba_fail_shape(s, CACHE_K, "(B, capacity, HKV, D) with B, HKV and D of k");
  if (!comba_shape_equal(&s->input[CACHE_V], cache))
    return comba_fail_shape(s, CACHE_V, "(B, capacity, HKV, D), as the cache of k");
  if (!comba_shape_equal(&s->input[POSITION], &COMBA_SHAPE(1))) return comba_fail_shape(s, POSITION, "(1)");
  if (attributes->window < 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: window is %lld, expected 0 or more", s->op,
                      (long long)attributes->window);
  s->outputs = 3;
  s->output[O] = *q;
  s->output[NEW_CACHE_K] = s->output[NEW_CACHE_V] = *cache;
  const problem p = measure(q, k, cache);
  s->forward_workspace = comba_blocks(p.batch * p.key_heads * p.blocks, 1) * QUERY_BLOCK * p.score_stride;
  const double seen = (double)(attributes->window && attributes->window < p.capacity ? attributes->window : p.capacity);
  s->forward_flops = 4 * (double)comba_shape_elements(q) * seen; /* with a full ring */
  return COMBA_OK;
}

/* Adds tokens [first, end), which lie from row `row` of an array (B, length, HKV, D). */
static void add_keys(const problem *p, attention_queries *queries, const comba_view *k, const comba_view *v,
                     int64_t batch, int64_t head, int64_t row, int64_t first, int64_t end) {
  if (end <= first) return;
  const int64_t offset = ((batch * k->shape.size[1] + row) * p->key_heads + head) * p->D;
  const attention_keys keys = {(const real *)k->data + offset, (const real *)v->data + offset, p->key_heads * p->D,
                               first, end - first};
  attention_add(queries, &keys);
}

static int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static void attend(const problem *p, const comba_call *call, int64_t batch, int64_t head, int64_t block, real *scores) {
  const bool single = p->length == 1;
  const int64_t row = (single ? block : block / p->group) * QUERY_BLOCK;
  const int64_t query_head = head * p->group + (single ? row : block % p->group), token = single ? 0 : row;
  const int64_t offset = ((batch * p->length + token) * p->heads + query_head) * p->D;
  attention_queries queries = {.attributes = &p->attributes,
                               .rows = smaller(QUERY_BLOCK, p->rows - row),
                               .D = p->D,
                               .stride = single ? p->D : p->heads * p->D,
                               .token = p->position + token,
                               .step = single ? 0 : 1,
                               .q = (const real *)call->input[Q].data + offset,
                               .o = (real *)call->output[O].data + offset,
                               .score_stride = p->score_stride,
                               .scores = scores};
  const int64_t first = attention_first(&p->attributes, queries.token);
  const int64_t end = queries.token + (queries.rows - 1) * queries.step + 1;
  const int64_t cached = larger(first, larger(0, p->position - p->capacity)), row_of_cached = cached % p->capacity;
  const int64_t wrap = smaller(p->position, cached + p->capacity - row_of_cached), given = larger(first, p->position);
  attention_begin(&queries);
  add_keys(p, &queries, &call->input[CACHE_K], &call->input[CACHE_V], batch, head, row_of_cached, cached, wrap);
  add_keys(p, &queries, &call->input[CACHE_K], &call->input[CACHE_V], batch, head, 0, wrap, p->position);
  add_keys(p, &queries, &call->input[KEY], &call->input[VALUE], batch, head, given - p->position, given, end);
  attention_finish(&queries);
}

/* Ring `output` = ring `cache` with the last tokens of `given` written in. */
static void store(const problem *p, const comba_view *cache, const comba_view *given, const comba_view *output) {
  const int64_t width = p->key_heads * p->D, kept = smaller(p->length, p->capacity);
  const size_t row_bytes = (size_t)width * sizeof(real);
#pragma omp parallel for
  for (int64_t batch = 0; batch < p->batch; batch++) {
    const real *from = (const real *)given->data + batch * p->length * width;
    const real *old = (const real *)cache->data + batch * p->capacity * width;
    real *ring = (real *)output->data + batch * p->capacity * width;
    if (ring != old) memcpy(ring, old, (size_t)p->capacity * row_bytes);
    for (int64_t t = p->length - kept; t < p->length; t++)
      memcpy(ring + (p->position + t) % p->capacity * width, from + t * width, row_bytes);
  }
}

static void forward(const comba_call *call) {
  problem p = measure(&call->input[Q].shape, &call->input[KEY].shape, &call->input[CACHE_K].shape);
  p.attributes = *(const comba_attention_attributes *)call->attributes;
  p.attributes.causal = true;
  p.position = *(const int32_t *)call->input[POSITION].data;
  const int64_t tasks = p.batch * p.key_heads * p.blocks, slots = comba_blocks(tasks, 1);
#pragma omp parallel for schedule(dynamic)
  for (int64_t slot = 0; slot < slots; slot++) {
    real *scores = (real *)call->workspace + comba_scratch_of(slot, slots) * QUERY_BLOCK * p.score_stride;
    for (int64_t task = slot; task < tasks; task += slots) {
      const int64_t pair = task / p.blocks;
      attend(&p, call, pair / p.key_heads, pair % p.key_heads, task % p.blocks, scores);
    }
  }
  store(&p, &call->input[CACHE_K], &call->input[KEY], &call->output[NEW_CACHE_K]);
  store(&p, &call->input[CACHE_V], &call->input[VALUE], &call->output[NEW_CACHE_V]);
}

#define WINDOW(w) (&(comba_attention_attributes){.causal = true, .window = w})
#define NEW(B, T, H, HKV, D)                                                                                           \
  {COMBA_SHAPE(B, T, H, D)}, {COMBA_SHAPE(B, T, HKV, D)}, {                                                            \
    COMBA_SHAPE(B, T, HKV, D)                                                                                          \
  }
#define RING(B, capacity, HKV, D, position)                                                                            \
  {COMBA_SHAPE(B, capacity, HKV, D)}, {COMBA_SHAPE(B, capacity, HKV, D)}, {                                            \
    COMBA_SHAPE(1), COMBA_FILL_VALUES, .values = (const int32_t[]) {                                                   \
      position                                                                                                         \
    }                                                                                                                  \
  }

static const comba_case cases[] = {
    {.name = "first token", .input = {NEW(2, 1, 3, 3, 16), RING(2, 8, 3, 16, 0)}},
    {.name = "one token, ring not full", .input = {NEW(2, 1, 4, 2, 24), RING(2, 70, 2, 24, 65)}},
    {.name = "one token, ring wrapped", .input = {NEW(2, 1, 6, 1, 64), RING(2, 70, 1, 64, 200)}},
    {.name = "one token, ring full to the end", .input = {NEW(1, 1, 2, 2, 100), RING(1, 10, 2, 100, 10)}},
    {.name = "one token, more heads than a block", .input = {NEW(1, 1, 65, 1, 16), RING(1, 9, 1, 16, 7)}},
    {.name = "one token, window below capacity",
     .attributes = WINDOW(5),
     .input = {NEW(2, 1, 2, 2, 16), RING(2, 8, 2, 16, 18)}},
    {.name = "one token, window of 1", .attributes = WINDOW(1), .input = {NEW(1, 1, 2, 1, 16), RING(1, 8, 1, 16, 3)}},
    {.name = "one token, two blocks of keys", .input = {NEW(1, 1, 2, 1, 16), RING(1, 700, 1, 16, 1000)}},
    {.name = "prefill", .input = {NEW(2, 65, 2, 1, 24), RING(2, 150, 1, 24, 0)}},
    {.name = "prefill longer than the ring",
     .attributes = WINDOW(40),
     .input = {NEW(2, 150, 2, 2, 16), RING(2, 40, 2, 16, 0)}},
    {.name = "second piece, wrapped",
     .attributes = WINDOW(40),
     .input = {NEW(1, 63, 4, 2, 16), RING(1, 40, 2, 16, 150)}},
    {.name = "second piece, no window", .input = {NEW(1, 3, 2, 2, 256), RING(1, 16, 2, 256, 14)}},
    {.name = "window above capacity",
     .attributes = WINDOW(100),
     .input = {NEW(1, 2, 2, 2, 128), RING(1, 16, 2, 128, 63)}},
    {.name = "one token, 8 heads of 128 on 2, 4096 cached",
     .benchmark = true,
     .input = {NEW(4, 1, 8, 2, 128), RING(4, 4096, 2, 128, 4096)}},
    {.name = "512 tokens, 8 heads of 64, 2048 cached",
     .benchmark = true,
     .input = {NEW(1, 512, 8, 8, 64), RING(1, 4096, 8, 64, 2048)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_attention_decode) = {
    .name = "attention_decode",
    .formula = "attention of new tokens over a ring of cached keys and values",
    .inputs = 6,
    .outputs = 3,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_STATE, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE, COMBA_STATE},
    .attributes_size = sizeof(comba_attention_attributes),
    .infer = infer,
    .forward = forward,
    .cases = cases,
};
