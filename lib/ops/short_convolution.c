/* u[t] = bias + sum_j weight[j] x[t - (W-1) + j],  z = f(u), f silu or identity, for each channel
 * y = z, or for each head of some channels y = r z, r = 1 / sqrt(sum(z^2) + epsilon), where dz = r (dy - y <y, dy>)
 * with du = dz f'(u):  dx[t] = sum_j weight[j] du[t + (W-1) - j];  dweight[j] += du[t] x[t - (W-1) + j];  dbias += du
 *
 * Saved where there are heads: r (B T, C / head).
 * Times before the first token of a sequence read the state, and its gradient gets what theirs would be. Rows are tokens,
 * (B T) of them; the weight is transposed to (W,C) first, so that inner loops run along channels. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { X, WEIGHT, BIAS, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };
enum {
  CHANNELS = 256, /* worked on together: their taps, sums and gradients stay in the first-level cache */
  GROUP = 4,      /* taps added in one pass over them */
};

static comba_status infer(comba_signature *s) {
  const comba_short_convolution_attributes *attributes = s->attributes;
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS], *state = &s->input[STATE];
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, T, C)");
  const int64_t channels = x->size[2], head = attributes->head;
  if (head < 0 || (head && channels % head))
    return comba_fail(COMBA_ERROR_ARGUMENT, "short_convolution: head is %lld, expected 0 or a divisor of %lld channels",
                      (long long)head, (long long)channels);
  if (!comba_extent_fits(weight, 3) || weight->size[0] != channels || weight->size[1] != 1)
    return comba_fail_shape(s, WEIGHT, "(C, 1, W) with C the channels of input 0");
  if (bias->rank && (bias->rank != 1 || bias->size[0] != channels)) return comba_fail_shape(s, BIAS, "(C)");
  int64_t sequences;
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, x->size[0], &sequences);
  if (status != COMBA_OK) return status;
  const int64_t width = weight->size[2], blocks = comba_blocks(x->size[0] * x->size[1], 32);
  const comba_shape carried = COMBA_SHAPE(sequences, width - 1, channels);
  if (width > 1 && !comba_extent_fits(&carried, 3)) return comba_fail_extent(s, &carried);
  if (state->rank && !comba_shape_equal(state, &carried))
    return comba_fail_shape(s, STATE, "(N, W - 1, C), N the number of sequences");
  s->outputs = 2;
  s->output[Y] = *x;
  s->output[NEW_STATE] = carried;
  s->forward_workspace = channels * width;
  s->backward_workspace = channels * width + blocks * ((width + 1) * channels + width * CHANNELS);
  s->forward_flops = 2.0 * (double)comba_shape_elements(x) * (double)width;
  s->backward_flops = 3 * s->forward_flops;
  s->spared_outputs = head ? 0 : 1u << Y;
  if (!head) return COMBA_OK;
  s->saved = 1;
  s->saved_shape[0] = COMBA_SHAPE(x->size[0] * x->size[1], channels / head);
  s->backward_workspace += comba_shape_elements(x);
  return comba_infer_epsilon(s, attributes->epsilon);
}

typedef struct problem {
  int64_t rows, channels, width; /* B T, C, W */
  comba_sequences sequences;
  bool silu;
  const real *x, *bias, *state;
  const real *taps;      /* (W,C) */
  const real *dz, *dnew; /* NULL in a forward pass, and where there is no such gradient */
} problem;

static problem measure(const comba_call *call, real *taps) {
  const comba_shape *x = &call->input[X].shape;
  const real *weight = call->input[WEIGHT].data;
  problem p = {.rows = x->size[0] * x->size[1],
               .channels = x->size[2],
               .width = call->input[WEIGHT].shape.size[2],
               .sequences = comba_sequences_of(&call->input[X], &call->input[CU_SEQLENS]),
               .silu = ((const comba_short_convolution_attributes *)call->attributes)->silu,
               .x = call->input[X].data,
               .bias = call->input[BIAS].data,
               .state = call->input[STATE].data,
               .taps = taps,
               .dz = call->output_gradient[Y].data,
               .dnew = call->output_gradient[NEW_STATE].data};
  for (int64_t c = 0; c < p.channels; c++)
    for (int64_t j = 0; j < p.width; j++) taps[j * p.channels + c] = weight[c * p.width + j];
  return p;
}

/* Channels [c, c + count) of sequence n, whose rows are [start, stop) */
typedef struct strip {
  const problem *p;
  int64_t n, start, stop, c, count;
} strip;

static const real zeros[CHANNELS];

static strip strip_of(const problem *p, int64_t n, int64_t c) {
  return (strip){p,
                 n,
                 comba_sequence_start(&p->sequences, n),
                 comba_sequence_start(&p->sequences, n + 1),
                 c,
                 p->channels - c < CHANNELS ? p->channels - c : CHANNELS};
}

/* What the strip has as its input `row`, row >= start - (W-1) */
static const real *source(const strip *s, int64_t row) {
  const problem *p = s->p;
  if (row >= s->start) return p->x + row * p->channels + s->c;
  return p->state ? p->state + ((s->n + 1) * (p->width - 1) + row - s->start) * p->channels + s->c : zeros;
}

/* sum (count) = initial + weight[0] input[0] + ... for a number of taps that the compiler knows, so that one pass over memory
 * serves them all; rows of `weight` are `stride` apart. */
static inline __attribute__((always_inline)) void add_taps(int taps, const real *weight, int64_t stride,
                                                           const real *const *input, int64_t count, const real *initial,
                                                           real *sum) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    real value = initial[i];
    for (int j = 0; j < taps; j++) value += weight[j * stride + i] * input[j][i];
    sum[i] = value;
  }
}

static void add_group(int64_t taps, const real *weight, int64_t stride, const real *const input[GROUP], int64_t count,
                      const real *initial, real *sum) {
  switch (taps) {
  case 1: add_taps(1, weight, stride, input, count, initial, sum); break;
  case 2: add_taps(2, weight, stride, input, count, initial, sum); break;
  case 3: add_taps(3, weight, stride, input, count, initial, sum); break;
  default: add_taps(GROUP, weight, stride, input, count, initial, sum); break;
  }
}

/* sums (taps, count) += du input[j], in the same manner */
static inline __attribute__((always_inline)) void add_products(int taps, const real *du, const real *const *input,
                                                               int64_t count, real *sums, int64_t stride) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++)
    for (int j = 0; j < taps; j++) sums[j * stride + i] += du[i] * input[j][i];
}

static void add_product_group(int64_t taps, const real *du, const real *const input[GROUP], int64_t count, real *sums,
                              int64_t stride) {
  switch (taps) {
  case 1: add_products(1, du, input, count, sums, stride); break;
  case 2: add_products(2, du, input, count, sums, stride); break;
  case 3: add_products(3, du, input, count, sums, stride); break;
  default: add_products(GROUP, du, input, count, sums, stride); break;
  }
}

/* u (count) of one row */
static void preactivation(const strip *s, int64_t row, real *u) {
  const problem *p = s->p;
  const real *initial = p->bias ? p->bias + s->c : zeros;
  for (int64_t j = 0; j < p->width; j += GROUP, initial = u) {
    const real *input[GROUP];
    const int64_t taps = p->width - j < GROUP ? p->width - j : GROUP;
    for (int64_t k = 0; k < taps; k++) input[k] = source(s, row - (p->width - 1) + j + k);
    add_group(taps, p->taps + j * p->channels + s->c, p->channels, input, s->count, initial, u);
  }
}

/* y (C) of one row, z so far: its heads divided by their lengths; r (C / head), or NULL */
static void divide_heads(const comba_short_convolution_attributes *attributes, int64_t channels, real *y, real *r) {
  const int64_t head = attributes->head;
  for (int64_t h = 0; h < channels / head; h++, y += head) {
    const real factor = 1 / comba_real_sqrt(comba_dot(y, y, head) + (real)attributes->epsilon);
    for (int64_t i = 0; i < head; i++) y[i] *= factor;
    if (r) r[h] = factor;
  }
}

static void forward(const comba_call *call) {
  const comba_short_convolution_attributes *attributes = call->attributes;
  const problem p = measure(call, call->workspace);
  const int64_t heads = attributes->head ? p.channels / attributes->head : 0;
  real *r = call->saved[0].data, *rows = call->output[Y].data;
  const int64_t blocks = comba_blocks(p.rows, 1), carried = p.width - 1;
#pragma omp parallel for if (p.rows * p.channels > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(p.rows, blocks, block + 1);
    int64_t row = comba_block_start(p.rows, blocks, block);
    for (int64_t n = comba_sequence_at(&p.sequences, row); row < end; n++)
      for (; row < comba_sequence_start(&p.sequences, n + 1) && row < end; row++) {
        for (int64_t c = 0; c < p.channels; c += CHANNELS) {
          const strip s = strip_of(&p, n, c);
          real *y = rows + row * p.channels + c;
          preactivation(&s, row, y);
          if (p.silu)
            for (int64_t i = 0; i < s.count; i++) y[i] *= comba_sigmoid(y[i]);
        }
        if (heads) divide_heads(attributes, p.channels, rows + row * p.channels, r ? r + row * heads : NULL);
      }
  }
  /* After all reads of the state, whose memory the new one may share. Entries move towards the front, so ascending order
   * reads each before it is overwritten. */
  for (int64_t n = 0; n < p.sequences.count; n++)
    for (int64_t c = 0; c < p.channels; c += CHANNELS) {
      const strip s = strip_of(&p, n, c);
      real *new_state = (real *)call->output[NEW_STATE].data + n * carried * p.channels + c;
      for (int64_t i = 0; i < carried; i++)
        memmove(new_state + i * p.channels, source(&s, s.stop - carried + i), (size_t)s.count * sizeof(real));
    }
}

/* du (count) of one row */
static void preactivation_gradient(const strip *s, int64_t row, real *restrict du) {
  const problem *p = s->p;
  const real *restrict dz = p->dz ? p->dz + row * p->channels + s->c : zeros;
  if (!p->dz || !p->silu) {
    memcpy(du, dz, (size_t)s->count * sizeof(real));
    return;
  }
  preactivation(s, row, du);
  for (int64_t i = 0; i < s->count; i++) {
    const real sigmoid = comba_sigmoid(du[i]);
    du[i] = dz[i] * (sigmoid + du[i] * sigmoid * (1 - sigmoid));
  }
}

/* The gradient of input `row` (row < start: of the state): from the du of rows [first, last) that read it, which lie in the
 * ring, row r in slot r modulo W, and from the new state if it was kept there. */
static void input_gradient(const strip *s, int64_t row, int64_t first, int64_t last, const real *ring, real *sum) {
  const problem *p = s->p;
  const int64_t carried = p->width - 1;
  const real *initial = zeros;
  if (p->dnew && row >= s->stop - carried)
    initial = p->dnew + ((s->n + 1) * carried + row - s->stop) * p->channels + s->c;
  if (first >= last) memcpy(sum, initial, (size_t)s->count * sizeof(real));
  for (int64_t reader = first; reader < last; reader += GROUP, initial = sum) {
    const real *du[GROUP];
    const int64_t taps = last - reader < GROUP ? last - reader : GROUP;
    for (int64_t k = 0; k < taps; k++) du[k] = ring + (reader + k) % p->width * CHANNELS;
    add_group(taps, p->taps + (carried + row - reader) * p->channels + s->c, -p->channels, du, s->count, initial, sum);
  }
}

/* Adds one row to sums (W+1, C): the gradients of the taps, then of the bias */
static void weight_gradient(const strip *s, int64_t row, const real *du, real *sums) {
  const problem *p = s->p;
  for (int64_t j = 0; j < p->width; j += GROUP) {
    const real *input[GROUP];
    const int64_t taps = p->width - j < GROUP ? p->width - j : GROUP;
    for (int64_t k = 0; k < taps; k++) input[k] = source(s, row - (p->width - 1) + j + k);
    add_product_group(taps, du, input, s->count, sums + j * p->channels + s->c, p->channels);
  }
  comba_store(sums + p->width * p->channels + s->c, du, s->count, true);
}

/* Rows [row, end) of the strip: dx, if it is wanted, and what the rows add to `sums`. A row's dx is due W-1 rows later, when
 * all that read it are in the ring; so du runs on past `end`, where it adds to no sum. */
static void piece_gradient(const strip *s, int64_t row, int64_t end, real *ring, real *sums, real *dx,
                           bool accumulate) {
  const int64_t width = s->p->width;
  real sum[CHANNELS];
  for (int64_t now = row; now < end + width - 1; now++) {
    real *du = ring + now % width * CHANNELS;
    if (now < s->stop) preactivation_gradient(s, now, du);
    if (now < end) weight_gradient(s, now, du, sums);
    const int64_t due = now - (width - 1);
    if (!dx || due < row) continue;
    input_gradient(s, due, due, now + 1 < s->stop ? now + 1 : s->stop, ring, sum);
    comba_store(dx + due * s->p->channels + s->c, sum, s->count, accumulate);
  }
}

/* dstate (N, W-1, C): what the first W-1 rows of each sequence pass back, and entries that are still in the new state */
static void state_gradient(const problem *p, real *ring, real *dstate, bool accumulate) {
  const int64_t carried = p->width - 1;
  real sum[CHANNELS];
  for (int64_t n = 0; n < p->sequences.count; n++)
    for (int64_t c = 0; c < p->channels; c += CHANNELS) {
      const strip s = strip_of(p, n, c);
      for (int64_t i = 0; i < carried; i++) {
        const int64_t newest = s.start + i; /* the last row that reads entry i */
        if (newest < s.stop) preactivation_gradient(&s, newest, ring + newest % p->width * CHANNELS);
        input_gradient(&s, newest - carried, s.start, newest + 1 < s.stop ? newest + 1 : s.stop, ring, sum);
        comba_store(dstate + (n * carried + i) * p->channels + c, sum, s.count, accumulate);
      }
    }
}

/* dz (rows, C) of heads that were divided by their lengths */
static void undivided_gradient(const comba_call *call, const problem *p, real *dz) {
  const int64_t head = ((const comba_short_convolution_attributes *)call->attributes)->head;
  const real *y = call->output[Y].data, *dy = call->output_gradient[Y].data, *r = call->saved[0].data;
  const int64_t heads = p->rows * (p->channels / head);
#pragma omp parallel for if (p->rows * p->channels > COMBA_SERIAL)
  for (int64_t h = 0; h < heads; h++) {
    const int64_t at = h * head;
    const real projection = comba_dot(y + at, dy + at, head);
    for (int64_t i = at; i < at + head; i++) dz[i] = r[h] * (dy[i] - y[i] * projection);
  }
}

static void backward(const comba_call *call) {
  real *taps = call->workspace;
  problem p = measure(call, taps);
  const int64_t blocks = comba_blocks(p.rows, 32), size = (p.width + 1) * p.channels;
  /* (blocks, W+1, C) and (blocks, W, CHANNELS) */
  real *partial = taps + p.width * p.channels, *rings = partial + blocks * size;
  real *dx = call->input_gradient[X].data, *dstate = call->input_gradient[STATE].data;
  real *dweight = call->input_gradient[WEIGHT].data, *dbias = call->input_gradient[BIAS].data;
  if (((const comba_short_convolution_attributes *)call->attributes)->head && p.dz) {
    real *dz = rings + blocks * p.width * CHANNELS;
    undivided_gradient(call, &p, dz);
    p.dz = dz;
  }
#pragma omp parallel for if (p.rows * p.channels > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t first = comba_block_start(p.rows, blocks, block), end = comba_block_start(p.rows, blocks, block + 1);
    real *sums = partial + block * size, *ring = rings + block * p.width * CHANNELS;
    memset(sums, 0, (size_t)size * sizeof(real));
    for (int64_t c = 0; c < p.channels; c += CHANNELS) {
      int64_t row = first;
      for (int64_t n = comba_sequence_at(&p.sequences, row); row < end; n++) {
        const strip s = strip_of(&p, n, c);
        const int64_t last = s.stop < end ? s.stop : end;
        if (row < last) piece_gradient(&s, row, last, ring, sums, dx, call->accumulate[X]);
        row = last;
      }
    }
  }
  if (dstate) state_gradient(&p, rings, dstate, call->accumulate[STATE]);
  for (int64_t block = 1; block < blocks; block++) comba_store(partial, partial + block * size, size, true);
  if (dweight)
    for (int64_t c = 0; c < p.channels; c++)
      for (int64_t j = 0; j < p.width; j++) {
        real *gradient = dweight + c * p.width + j;
        *gradient = (call->accumulate[WEIGHT] ? *gradient : 0) + partial[j * p.channels + c];
      }
  if (dbias) comba_store(dbias, partial + p.width * p.channels, p.channels, call->accumulate[BIAS]);
}

#define SILU (&(const comba_short_convolution_attributes){.silu = true})
#define IDENTITY (&(const comba_short_convolution_attributes){.silu = false})
#define HEADS(silu, head) (&(const comba_short_convolution_attributes){silu, head, 1e-6})
#define OFFSETS(...)                                                                                                   \
  COMBA_FILL_VALUES, .values = (const int32_t[]) {                                                                     \
    __VA_ARGS__                                                                                                        \
  }
static const comba_case cases[] = {
    {.name = "silu", .attributes = SILU, .input = {{COMBA_SHAPE(2, 9, 5)}, {COMBA_SHAPE(5, 1, 4)}}},
    {.name = "identity, bias, state",
     .attributes = IDENTITY,
     .input = {{COMBA_SHAPE(2, 9, 5)}, {COMBA_SHAPE(5, 1, 4)}, {COMBA_SHAPE(5)}, {COMBA_SHAPE(2, 3, 5)}}},
    {.name = "silu, bias, state, fewer tokens than taps",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(3, 2, 5)}, {COMBA_SHAPE(5, 1, 4)}, {COMBA_SHAPE(5)}, {COMBA_SHAPE(3, 3, 5)}}},
    {.name = "packed, empty and short sequences, state",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 14, 3)},
               {COMBA_SHAPE(3, 1, 4)},
               {COMBA_SHAPE(3)},
               {COMBA_SHAPE(6, 3, 3)},
               {COMBA_SHAPE(7), OFFSETS(0, 0, 2, 7, 7, 8, 14)}}},
    {.name = "packed, no state, last sequence empty",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 6, 3)}, {COMBA_SHAPE(3, 1, 3)}, {0}, {0}, {COMBA_SHAPE(4), OFFSETS(0, 5, 6, 6)}}},
    {.name = "more than one block and tile of channels",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 100, 261)},
               {COMBA_SHAPE(261, 1, 4)},
               {COMBA_SHAPE(261)},
               {0},
               {COMBA_SHAPE(5), OFFSETS(0, 31, 33, 34, 100)}}},
    {.name = "channels in fours, sequences longer and shorter than a run, state",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 150, 12)},
               {COMBA_SHAPE(12, 1, 4)},
               {COMBA_SHAPE(12)},
               {COMBA_SHAPE(6, 3, 12)},
               {COMBA_SHAPE(7), OFFSETS(0, 32, 33, 33, 63, 131, 150)}}},
    {.name = "channels in fours, a sequence of several runs, bias",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 330, 8)},
               {COMBA_SHAPE(8, 1, 4)},
               {COMBA_SHAPE(8)},
               {0},
               {COMBA_SHAPE(3), OFFSETS(0, 17, 330)}}},
    {.name = "channels in fours, three taps, identity",
     .attributes = IDENTITY,
     .input = {{COMBA_SHAPE(2, 70, 8)}, {COMBA_SHAPE(8, 1, 3)}}},
    {.name = "one tap",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(2, 5, 3)}, {COMBA_SHAPE(3, 1, 1)}, {COMBA_SHAPE(3)}}},
    {.name = "six taps, packed, state",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 19, 5)},
               {COMBA_SHAPE(5, 1, 6)},
               {0},
               {COMBA_SHAPE(3, 5, 5)},
               {COMBA_SHAPE(4), OFFSETS(0, 3, 11, 19)}}},
    {.name = "two taps, saturated",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 5, 7), COMBA_FILL_UNIFORM, .low = -110, .high = 110}, {COMBA_SHAPE(7, 1, 2)}}},
    {.name = "one token, state",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(3, 1, 11)}, {COMBA_SHAPE(11, 1, 4)}, {0}, {COMBA_SHAPE(3, 3, 11)}}},
    {.name = "one token, three taps, bias, no state",
     .attributes = IDENTITY,
     .input = {{COMBA_SHAPE(5, 1, 131)}, {COMBA_SHAPE(131, 1, 3)}, {COMBA_SHAPE(131)}}},
    {.name = "one token, one tap", .attributes = SILU, .input = {{COMBA_SHAPE(2, 1, 8)}, {COMBA_SHAPE(8, 1, 1)}}},
    {.name = "heads of 5, bias, state",
     .attributes = HEADS(true, 5),
     .input = {{COMBA_SHAPE(2, 9, 15)}, {COMBA_SHAPE(15, 1, 4)}, {COMBA_SHAPE(15)}, {COMBA_SHAPE(2, 3, 15)}}},
    {.name = "heads of 32, packed, state",
     .attributes = HEADS(true, 32),
     .input = {{COMBA_SHAPE(1, 70, 96)},
               {COMBA_SHAPE(96, 1, 4)},
               {0},
               {COMBA_SHAPE(5, 3, 96)},
               {COMBA_SHAPE(6), OFFSETS(0, 1, 1, 18, 67, 70)}}},
    {.name = "heads of 64, identity",
     .attributes = HEADS(false, 64),
     .input = {{COMBA_SHAPE(2, 19, 128)}, {COMBA_SHAPE(128, 1, 4)}}},
    {.name = "heads of 128, three taps",
     .attributes = HEADS(true, 128),
     .input = {{COMBA_SHAPE(1, 35, 256)}, {COMBA_SHAPE(256, 1, 3)}}},
    {.name = "heads of 128",
     .attributes = HEADS(true, 128),
     .input = {{COMBA_SHAPE(1, 35, 256)}, {COMBA_SHAPE(256, 1, 4)}}},
    {.name = "heads of 256, packed, state",
     .attributes = HEADS(true, 256),
     .input = {{COMBA_SHAPE(1, 45, 512)},
               {COMBA_SHAPE(512, 1, 4)},
               {0},
               {COMBA_SHAPE(3, 3, 512)},
               {COMBA_SHAPE(4), OFFSETS(0, 2, 33, 45)}}},
    {.name = "heads of 4, one token, state",
     .attributes = HEADS(true, 4),
     .input = {{COMBA_SHAPE(3, 1, 12)}, {COMBA_SHAPE(12, 1, 4)}, {0}, {COMBA_SHAPE(3, 3, 12)}}},
    {.name = "2048 x 1024, 4 taps",
     .attributes = SILU,
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024, 1, 4)}}},
    {.name = "2048 x 1024, 4 taps, heads of 256",
     .attributes = HEADS(true, 256),
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024, 1, 4)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_short_convolution) = {
    .name = "short_convolution",
    .formula =
        "y[t] = f(bias + sum_j weight[j] x[t - (W-1) + j]), f silu or identity; heads divided by their length if asked",
    .inputs = 5,
    .outputs = 2,
    .optional_inputs = 1u << BIAS | 1u << STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_short_convolution_attributes),
    .backward_inputs = 1u << X | 1u << WEIGHT | 1u << BIAS | 1u << STATE | 1u << CU_SEQLENS,
    .backward_outputs = 1u << Y,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
