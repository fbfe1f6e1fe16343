/* Softmax attention: o_t = sum_j p_tj v_j over the keys j that token t sees, p_t = softmax(scale q_t k_j).
 * With dp_tj = do_t v_j and delta_t = do_t o_t (= sum_j p_tj dp_tj):
 *   ds_tj = p_tj (dp_tj - delta_t);  dq_t = scale sum_j ds_tj k_j;  dk_j = scale sum_t ds_tj q_t;  dv_j = sum_t p_tj do_t
 * Scores are made in blocks of 64 queries x 512 keys and never stored whole; forward saves ln sum_j e^{score}, from which
 * backward makes p again. */
#include "scan/attention_block.h"

#include "core/parallel.h"
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/sequences.h"

enum { Q, KEY, VALUE, CU_SEQLENS };
enum { LSE }; /* saved: ln sum_j e^score (B,T,H) */

/* ---- Shapes ------------------------------------------------------------------------------------------------------- */

/* Blocks of queries, over all sequences. A packed sequence that starts at row s takes blocks from s / 64 + its number:
 * they cannot overlap, and some are empty. */
static int64_t query_blocks(const comba_shape *q, const comba_shape *cu_seqlens) {
  if (cu_seqlens->rank) return q->size[1] / QUERY_BLOCK + cu_seqlens->size[0] - 1;
  return q->size[0] * ((q->size[1] + QUERY_BLOCK - 1) / QUERY_BLOCK);
}

/* Pairs of query and key in one sequence of `length` tokens. */
static double pairs(const comba_attention_attributes *attributes, int64_t length) {
  const double T = (double)length, window = (double)attributes->window;
  if (!attributes->causal) return T * T;
  if (attributes->window == 0 || attributes->window >= length) return T * (T + 1) / 2;
  return window * T - window * (window - 1) / 2;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *q = &s->input[Q], *k = &s->input[KEY];
  const comba_attention_attributes *attributes = s->attributes;
  if (!comba_extent_fits(q, 4)) return comba_fail_shape(s, Q, "(B, T, H, D)");
  if (!comba_extent_fits(k, 4) || k->size[0] != q->size[0] || k->size[1] != q->size[1] || k->size[3] != q->size[3] ||
      q->size[2] % k->size[2])
    return comba_fail_shape(s, KEY, "(B, T, HKV, D) with B, T and D of q and its H a multiple of HKV");
  if (!comba_shape_equal(&s->input[VALUE], k)) return comba_fail_shape(s, VALUE, "(B, T, HKV, D), as k");
  int64_t sequences;
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, q->size[0], &sequences);
  if (status != COMBA_OK) return status;
  if (attributes->window < 0 || (attributes->window && !attributes->causal))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: window is %lld, expected 0%s", s->op, (long long)attributes->window,
                      attributes->causal ? " or more" : " without causal");
  s->outputs = 1;
  s->output[0] = *q;
  s->saved = 1;
  s->saved_shape[LSE] = COMBA_SHAPE(q->size[0], q->size[1], q->size[2]);
  const int64_t scores = QUERY_BLOCK * attention_score_stride(q->size[1]);
  s->forward_workspace = comba_blocks(query_blocks(q, &s->input[CU_SEQLENS]) * q->size[2], 1) * scores;
  s->backward_workspace = comba_blocks(sequences * k->size[2], 1) * 2 * scores;
  const double products = (double)q->size[0] * (double)q->size[2] * pairs(attributes, q->size[1]);
  s->forward_flops = 4 * products * (double)q->size[3];
  s->backward_flops = 10 * products * (double)q->size[3];
  return COMBA_OK;
}

typedef struct problem {
  const comba_attention_attributes *attributes;
  comba_sequences sequences;
  int64_t blocks, heads, key_heads, group, D;
  int64_t stride, key_stride; /* between tokens */
  int64_t score_stride;
} problem;

static problem measure(const comba_call *call) {
  const comba_shape *q = &call->input[Q].shape, *k = &call->input[KEY].shape;
  problem p = {.attributes = call->attributes,
               .sequences = comba_sequences_of(&call->input[Q], &call->input[CU_SEQLENS]),
               .blocks = query_blocks(q, &call->input[CU_SEQLENS].shape),
               .heads = q->size[2],
               .key_heads = k->size[2],
               .group = q->size[2] / k->size[2],
               .D = q->size[3],
               .score_stride = attention_score_stride(q->size[1])};
  p.stride = p.heads * p.D, p.key_stride = p.key_heads * p.D;
  return p;
}

static int64_t first_block(const problem *p, int64_t sequence) {
  const int64_t length = p->sequences.length;
  if (!p->sequences.cu_seqlens) return sequence * ((length + QUERY_BLOCK - 1) / QUERY_BLOCK);
  return p->sequences.cu_seqlens[sequence] / QUERY_BLOCK + sequence;
}

/* The last sequence whose first block is not after `block`. */
static int64_t sequence_of_block(const problem *p, int64_t block) {
  int64_t low = 0, high = p->sequences.count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (first_block(p, middle) <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/* Queries from token number `token` of the sequence at rows [start, start + length). */
static attention_queries queries_of(const problem *p, const comba_call *call, int64_t start, int64_t length,
                                    int64_t head, int64_t token, real *scores) {
  const int64_t offset = (start + token) * p->stride + head * p->D, rest = length - token;
  return (attention_queries){.attributes = p->attributes,
                             .rows = rest < QUERY_BLOCK ? rest : QUERY_BLOCK,
                             .D = p->D,
                             .stride = p->stride,
                             .token = token,
                             .step = 1,
                             .q = (const real *)call->input[Q].data + offset,
                             .o = (real *)call->output[0].data + offset,
                             .score_stride = p->score_stride,
                             .scores = scores};
}

/* All keys that some of the queries see. */
static attention_keys keys_of(const problem *p, const comba_call *call, int64_t start, int64_t length, int64_t head,
                              const attention_queries *queries) {
  const int64_t first = attention_first(p->attributes, queries->token);
  const int64_t end = attention_end(p->attributes, queries->token + queries->rows - 1, length);
  const int64_t offset = (start + first) * p->key_stride + head / p->group * p->D;
  return (attention_keys){(const real *)call->input[KEY].data + offset, (const real *)call->input[VALUE].data + offset,
                          p->key_stride, first, end - first};
}

/* ---- Forward ------------------------------------------------------------------------------------------------------ */

static void attend(const problem *p, const comba_call *call, int64_t block, int64_t head, real *scores) {
  const int64_t sequence = sequence_of_block(p, block), start = comba_sequence_start(&p->sequences, sequence);
  const int64_t length = comba_sequence_start(&p->sequences, sequence + 1) - start;
  const int64_t token = (block - first_block(p, sequence)) * QUERY_BLOCK;
  if (token >= length) return;
  attention_queries queries = queries_of(p, call, start, length, head, token, scores);
  const attention_keys keys = keys_of(p, call, start, length, head, &queries);
  attention_begin(&queries);
  attention_add(&queries, &keys);
  attention_finish(&queries);
  real *lse = call->saved[LSE].data;
  for (int64_t row = 0; row < queries.rows && lse; row++)
    lse[(start + token + row) * p->heads + head] = queries.largest[row] + comba_real_log(queries.sum[row]);
}

static void forward(const comba_call *call) {
  const problem p = measure(call);
  const int64_t tasks = p.blocks * p.heads, slots = comba_blocks(tasks, 1);
#pragma omp parallel for schedule(dynamic)
  for (int64_t slot = 0; slot < slots; slot++) {
    real *scores = (real *)call->workspace + comba_scratch_of(slot, slots) * QUERY_BLOCK * p.score_stride;
    for (int64_t task = slot; task < tasks; task += slots) attend(&p, call, task / p.heads, task % p.heads, scores);
  }
}

/* ---- Backward ----------------------------------------------------------------------------------------------------- */

/* What belongs to a block of queries in backward; gradients are added to, NULL where not wanted. */
typedef struct query_gradients {
  attention_queries queries;
  real *products;              /* (rows, score_stride): do v^T, then ds */
  const real *output_gradient; /* as queries.o */
  const real *lse;
  int64_t lse_stride;
  real delta[QUERY_BLOCK];
  real *dq; /* as queries.q */
} query_gradients;

/* A row of scores becomes p, of products ds; zero where masked. */
static void differentiate_row(const query_gradients *g, int64_t row, const attention_keys *keys) {
  real *score = g->queries.scores + row * g->queries.score_stride;
  real *product = g->products + row * g->queries.score_stride;
  const real lse = g->lse[row * g->lse_stride], delta = g->delta[row];
  int64_t first, end;
  attention_columns(&g->queries, row, keys, &first, &end);
  if (end < first) first = end = 0;
  memset(score, 0, (size_t)first * sizeof(real));
  memset(product, 0, (size_t)first * sizeof(real));
#pragma omp simd
  for (int64_t j = first; j < end; j++) {
    score[j] = comba_exp(score[j] - lse);
    product[j] = score[j] * (product[j] - delta);
  }
  memset(score + end, 0, (size_t)(keys->count - end) * sizeof(real));
  memset(product + end, 0, (size_t)(keys->count - end) * sizeof(real));
}

/* One block of queries with one of keys; dk, dv as keys->k. */
static void differentiate(const query_gradients *g, const attention_keys *keys, real *dk, real *dv) {
  const attention_queries *queries = &g->queries;
  const int64_t rows = queries->rows, D = queries->D, stride = queries->stride, score_stride = queries->score_stride;
  const real scale = attention_scale(queries->attributes, D);
  attention_scores(queries, keys);
  comba_gemm_serial('N', 'T', rows, keys->count, D, 1, g->output_gradient, stride, keys->v, keys->stride, 0,
                    g->products, score_stride);
  for (int64_t row = 0; row < rows; row++) differentiate_row(g, row, keys);
  if (dv)
    comba_gemm_serial('T', 'N', keys->count, D, rows, 1, queries->scores, score_stride, g->output_gradient, stride, 1,
                      dv, keys->stride);
  if (dk)
    comba_gemm_serial('T', 'N', keys->count, D, rows, scale, g->products, score_stride, queries->q, stride, 1, dk,
                      keys->stride);
  if (g->dq)
    comba_gemm_serial('N', 'N', rows, D, keys->count, scale, g->products, score_stride, keys->k, keys->stride, 1, g->dq,
                      stride);
}

/* The gradient of input `i` at (row, head), zeroed over `length` rows where it is not added to; NULL: not wanted. */
static real *begin_gradient(const comba_call *call, int i, int64_t row, int64_t head, int64_t length) {
  const comba_shape *shape = &call->input_gradient[i].shape;
  const int64_t D = shape->size[3], stride = shape->size[2] * D;
  real *gradient = call->input_gradient[i].data;
  if (!gradient) return NULL;
  gradient += row * stride + head * D;
  for (int64_t t = 0; t < length && !call->accumulate[i]; t++)
    memset(gradient + t * stride, 0, (size_t)D * sizeof(real));
  return gradient;
}

/* All query heads of one key head: their shares of dk and dv are added in order. */
static void differentiate_head(const problem *p, const comba_call *call, int64_t sequence, int64_t key_head,
                               real *scores) {
  const int64_t start = comba_sequence_start(&p->sequences, sequence);
  const int64_t length = comba_sequence_start(&p->sequences, sequence + 1) - start;
  real *dk = begin_gradient(call, KEY, start, key_head, length);
  real *dv = begin_gradient(call, VALUE, start, key_head, length);
  for (int64_t head = key_head * p->group; head < (key_head + 1) * p->group; head++) {
    real *dq = begin_gradient(call, Q, start, head, length);
    for (int64_t token = 0; token < length; token += QUERY_BLOCK) {
      query_gradients g = {.queries = queries_of(p, call, start, length, head, token, scores),
                           .products = scores + QUERY_BLOCK * p->score_stride,
                           .lse = (const real *)call->saved[LSE].data + (start + token) * p->heads + head,
                           .lse_stride = p->heads,
                           .dq = dq ? dq + token * p->stride : NULL};
      g.output_gradient = (const real *)call->output_gradient[0].data + (g.queries.o - (real *)call->output[0].data);
      for (int64_t row = 0; row < g.queries.rows; row++) {
        const real *o = g.queries.o + row * p->stride, *d_o = g.output_gradient + row * p->stride;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < p->D; d++) sum += o[d] * d_o[d];
        g.delta[row] = sum;
      }
      const attention_keys keys = keys_of(p, call, start, length, head, &g.queries);
      for (int64_t first = 0; first < keys.count; first += KEY_BLOCK) {
        const attention_keys block = attention_key_block(&keys, first);
        const int64_t offset = block.token * p->key_stride;
        differentiate(&g, &block, dk ? dk + offset : NULL, dv ? dv + offset : NULL);
      }
    }
  }
}

static void backward(const comba_call *call) {
  if (comba_gradient_absent(call, CU_SEQLENS)) return;
  const problem p = measure(call);
  const int64_t tasks = p.sequences.count * p.key_heads, slots = comba_blocks(tasks, 1);
#pragma omp parallel for schedule(dynamic)
  for (int64_t slot = 0; slot < slots; slot++) {
    real *scores = (real *)call->workspace + comba_scratch_of(slot, slots) * 2 * QUERY_BLOCK * p.score_stride;
    for (int64_t task = slot; task < tasks; task += slots)
      differentiate_head(&p, call, task / p.key_heads, task % p.key_heads, scores);
  }
}

/* ---- Row ---------------------------------------------------------------------------------------------------------- */

#define CAUSAL (&(comba_attention_attributes){.causal = true})
#define WINDOW(w) (&(comba_attention_attributes){.causal = true, .window = w})
#define QKV(B, T, H, HKV, D)                                                                                           \
  {COMBA_SHAPE(B, T, H, D)}, {COMBA_SHAPE(B, T, HKV, D)}, {                                                            \
    COMBA_SHAPE(B, T, HKV, D)                                                                                          \
  }
#define PACKED(n, ...)                                                                                                 \
  {                                                                                                                    \
    COMBA_SHAPE(n), COMBA_FILL_VALUES, .values = (const int32_t[n]) {                                                  \
      __VA_ARGS__                                                                                                      \
    }                                                                                                                  \
  }

static const comba_case cases[] = {
    {.name = "one token",
     .attributes = CAUSAL,
     .tolerance = 1e-4,
     .input = {QKV(2, 1, 3, 3, 16)}}, /* dq, dk cancel to 0 */
    {.name = "two tokens, one channel", .attributes = CAUSAL, .input = {QKV(1, 2, 1, 1, 1)}},
    {.name = "63 tokens, groups of three", .attributes = CAUSAL, .input = {QKV(2, 63, 6, 2, 24)}},
    {.name = "64 tokens, not causal", .input = {QKV(2, 64, 2, 2, 64)}},
    {.name = "65 tokens", .attributes = CAUSAL, .input = {QKV(1, 65, 2, 1, 100)}},
    {.name = "128 tokens, heads of 64", .attributes = CAUSAL, .input = {QKV(2, 128, 2, 2, 64)}},
    {.name = "256 tokens, groups of three, not causal", .input = {QKV(1, 256, 6, 2, 32)}},
    {.name = "150 tokens, not causal, scale",
     .attributes = &(comba_attention_attributes){.scale = 0.25},
     .input = {QKV(1, 150, 2, 2, 24)}},
    {.name = "D = 128", .attributes = CAUSAL, .input = {QKV(1, 65, 2, 2, 128)}},
    {.name = "D = 160", .attributes = CAUSAL, .input = {QKV(1, 65, 2, 1, 160)}},
    {.name = "D = 256", .attributes = CAUSAL, .input = {QKV(1, 2, 2, 2, 256)}},
    {.name = "window of 1", .attributes = WINDOW(1), .input = {QKV(1, 65, 1, 1, 16)}},
    {.name = "window of 40", .attributes = WINDOW(40), .input = {QKV(2, 150, 2, 1, 16)}},
    {.name = "window above T", .attributes = WINDOW(1000), .input = {QKV(1, 65, 1, 1, 16)}},
    {.name = "two blocks of keys", .attributes = CAUSAL, .input = {QKV(1, 700, 2, 1, 16)}},
    {.name = "two blocks of keys, window", .attributes = WINDOW(550), .input = {QKV(1, 700, 1, 1, 16)}},
    {.name = "two blocks of keys, not causal", .input = {QKV(1, 520, 1, 1, 16)}},
    {.name = "packed, two of them empty",
     .attributes = CAUSAL,
     .input = {QKV(1, 150, 2, 1, 24), PACKED(7, 0, 0, 1, 66, 66, 130, 150)}},
    {.name = "packed, window", .attributes = WINDOW(40), .input = {QKV(1, 150, 2, 2, 24), PACKED(3, 0, 65, 150)}},
    {.name = "packed, not causal", .input = {QKV(1, 70, 1, 1, 16), PACKED(4, 0, 3, 70, 70)}},
    /* scores up to 80 and more in size: a row sees little more than one key; whole numbers, exact in bfloat16 too: rounding
     * such a score would multiply its weight */
    {.name = "large scores",
     .attributes = CAUSAL,
     .tolerance = 1e-4,
     .input = {{COMBA_SHAPE(1, 150, 1, 64), COMBA_FILL_INDEX, .low = -8, .high = 9},
               {COMBA_SHAPE(1, 150, 1, 64), COMBA_FILL_INDEX, .low = -8, .high = 9},
               {COMBA_SHAPE(1, 150, 1, 64)}}},
    {.name = "equal keys",
     .attributes = CAUSAL,
     .input = {{COMBA_SHAPE(1, 65, 1, 16)},
               {COMBA_SHAPE(1, 65, 1, 16), COMBA_FILL_UNIFORM, .low = 1, .high = 1},
               {COMBA_SHAPE(1, 65, 1, 16)}}},
    {.name = "4 x 1024, 8 heads of 64", .benchmark = true, .attributes = CAUSAL, .input = {QKV(4, 1024, 8, 8, 64)}},
    {.name = "2 x 2048, 16 heads of 64", .benchmark = true, .attributes = CAUSAL, .input = {QKV(2, 2048, 16, 16, 64)}},
    {.name = "4096, 8 heads of 128 on 2, window 1024",
     .benchmark = true,
     .attributes = WINDOW(1024),
     .input = {QKV(1, 4096, 8, 2, 128)}},
    {.name = "64 x 64, 4 heads of 48, not causal", .benchmark = true, .input = {QKV(64, 64, 4, 4, 48)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_attention) = {
    .name = "attention",
    .formula = "o_t = sum_j softmax_j(scale q_t k_j) v_j",
    .inputs = 4,
    .outputs = 1,
    .optional_inputs = 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_attention_attributes),
    .backward_inputs = 1u << Q | 1u << KEY | 1u << VALUE | 1u << CU_SEQLENS,
    .backward_outputs = 1u << 0,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
