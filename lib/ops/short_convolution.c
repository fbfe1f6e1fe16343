/* u[t] = bias + sum_j weight[j] x[t - (W-1) + j],  y = f(u), f silu or identity, for each channel
 * with du = dy f'(u):  dx[t] = sum_j weight[j] du[t + (W-1) - j];  dweight[j] += du[t] x[t - (W-1) + j];  dbias += du
 *
 * Times before the first token of a sequence read the state, and its gradient gets what theirs would be. Rows are tokens,
 * (B T) of them; the weight is transposed to (W,C) first, so that inner loops run along channels. */
#include "ops/extent.h"
#include "ops/gradient.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { X, WEIGHT, BIAS, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };
enum { CHANNELS = 256 }; /* worked on together: their taps, sums and gradients stay in the first-level cache */

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *weight = &s->input[WEIGHT], *bias = &s->input[BIAS], *state = &s->input[STATE];
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, T, C)");
  const int64_t channels = x->size[2];
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
  return COMBA_OK;
}

typedef struct problem {
  int64_t rows, channels, width; /* B T, C, W */
  comba_sequences sequences;
  bool silu;
  const real *x, *bias, *state;
  const real *taps;      /* (W,C) */
  const real *dy, *dnew; /* NULL in a forward pass, and where there is no such gradient */
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
               .dy = call->output_gradient[Y].data,
               .dnew = call->output_gradient[NEW_STATE].data};
  for (int64_t c = 0; c < p.channels; c++)
    for (int64_t j = 0; j < p.width; j++) taps[j * p.channels + c] = weight[c * p.width + j];
  return p;
}

/* What sequence n, which starts at row `start`, has as its input `row`, row >= start - (W-1). NULL: zeros. */
static const real *source(const problem *p, int64_t n, int64_t start, int64_t row) {
  if (row >= start) return p->x + row * p->channels;
  return p->state ? p->state + ((n + 1) * (p->width - 1) + row - start) * p->channels : NULL;
}

/* u (count) of one row, channels from c on */
static void preactivation(const problem *p, int64_t n, int64_t start, int64_t row, int64_t c, int64_t count,
                          real *restrict u) {
  if (p->bias)
    memcpy(u, p->bias + c, (size_t)count * sizeof(real));
  else
    memset(u, 0, (size_t)count * sizeof(real));
  for (int64_t j = 0; j < p->width; j++) {
    const real *restrict input = source(p, n, start, row - (p->width - 1) + j), *restrict tap =
                                                                                    p->taps + j * p->channels + c;
    if (input)
      for (int64_t i = 0; i < count; i++) u[i] += tap[i] * input[c + i];
  }
}

static void forward(const comba_call *call) {
  const problem p = measure(call, call->workspace);
  const int64_t blocks = comba_blocks(p.rows, 1), carried = p.width - 1;
#pragma omp parallel for if (p.rows * p.channels > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = comba_block_start(p.rows, blocks, block + 1);
    int64_t row = comba_block_start(p.rows, blocks, block);
    for (int64_t n = comba_sequence_at(&p.sequences, row); row < end; n++) {
      const int64_t start = comba_sequence_start(&p.sequences, n), stop = comba_sequence_start(&p.sequences, n + 1);
      for (; row < stop && row < end; row++)
        for (int64_t c = 0; c < p.channels; c += CHANNELS) {
          const int64_t count = p.channels - c < CHANNELS ? p.channels - c : CHANNELS;
          real *y = (real *)call->output[Y].data + row * p.channels + c;
          preactivation(&p, n, start, row, c, count, y);
          if (p.silu)
            for (int64_t i = 0; i < count; i++) y[i] *= comba_sigmoid(y[i]);
        }
    }
  }
  /* After all reads of the state, whose memory the new one may share. Entries move towards the front, so ascending order
   * reads each before it is overwritten. */
  real *new_state = call->output[NEW_STATE].data;
  for (int64_t n = 0; n < p.sequences.count; n++) {
    const int64_t start = comba_sequence_start(&p.sequences, n), stop = comba_sequence_start(&p.sequences, n + 1);
    for (int64_t i = 0; i < carried; i++) {
      const real *from = source(&p, n, start, stop - carried + i);
      real *to = new_state + (n * carried + i) * p.channels;
      if (from)
        memmove(to, from, (size_t)p.channels * sizeof(real));
      else
        memset(to, 0, (size_t)p.channels * sizeof(real));
    }
  }
}

/* du (count) of one row */
static void preactivation_gradient(const problem *p, int64_t n, int64_t start, int64_t row, int64_t c, int64_t count,
                                   real *restrict du) {
  const real *restrict dy = p->dy ? p->dy + row * p->channels + c : NULL;
  if (!dy) {
    memset(du, 0, (size_t)count * sizeof(real));
  } else if (!p->silu) {
    memcpy(du, dy, (size_t)count * sizeof(real));
  } else {
    preactivation(p, n, start, row, c, count, du);
    for (int64_t i = 0; i < count; i++) {
      const real s = comba_sigmoid(du[i]);
      du[i] = dy[i] * (s + du[i] * s * (1 - s));
    }
  }
}

/* The gradient of input `row` of sequence n (row < start: of its state): from the du of rows [first, last) that read it, which
 * lie in the ring, row r in slot r modulo W, and from the new state if it was kept there. */
static void input_gradient(const problem *p, int64_t n, int64_t row, int64_t first, int64_t last, int64_t c,
                           int64_t count, const real *ring, real *restrict sum) {
  const int64_t carried = p->width - 1, stop = comba_sequence_start(&p->sequences, n + 1);
  if (p->dnew && row >= stop - carried)
    memcpy(sum, p->dnew + ((n + 1) * carried + row - stop) * p->channels + c, (size_t)count * sizeof(real));
  else
    memset(sum, 0, (size_t)count * sizeof(real));
  for (int64_t reader = first; reader < last; reader++) {
    const real *restrict tap = p->taps + (carried + row - reader) * p->channels + c;
    const real *restrict du = ring + reader % p->width * CHANNELS;
    for (int64_t i = 0; i < count; i++) sum[i] += tap[i] * du[i];
  }
}

/* Adds one row to sums (W+1, C): the gradients of the taps, then of the bias */
static void weight_gradient(const problem *p, int64_t n, int64_t start, int64_t row, int64_t c, int64_t count,
                            const real *restrict du, real *restrict sums) {
  for (int64_t j = 0; j < p->width; j++) {
    const real *restrict input = source(p, n, start, row - (p->width - 1) + j);
    real *restrict sum = sums + j * p->channels + c;
    if (input)
      for (int64_t i = 0; i < count; i++) sum[i] += du[i] * input[c + i];
  }
  comba_store(sums + p->width * p->channels + c, du, count, true);
}

/* Rows [row, end) of sequence n, channels from c on: dx, if it is wanted, and what the rows add to `sums`. A row's dx is due W-1
 * rows later, when all that read it are in the ring; so du runs on past `end`, where it adds to no sum. */
static void piece_gradient(const problem *p, int64_t n, int64_t row, int64_t end, int64_t c, int64_t count, real *ring,
                           real *sums, real *dx, bool accumulate) {
  const int64_t start = comba_sequence_start(&p->sequences, n), stop = comba_sequence_start(&p->sequences, n + 1);
  const int64_t carried = p->width - 1;
  real sum[CHANNELS];
  for (int64_t now = row; now < end + carried; now++) {
    real *du = ring + now % p->width * CHANNELS;
    if (now < stop) preactivation_gradient(p, n, start, now, c, count, du);
    if (now < end) weight_gradient(p, n, start, now, c, count, du, sums);
    const int64_t due = now - carried;
    if (!dx || due < row) continue;
    input_gradient(p, n, due, due, now + 1 < stop ? now + 1 : stop, c, count, ring, sum);
    comba_store(dx + due * p->channels + c, sum, count, accumulate);
  }
}

/* dstate (N, W-1, C): what the first W-1 rows of each sequence pass back, and entries that are still in the new state */
static void state_gradient(const problem *p, real *ring, real *dstate, bool accumulate) {
  const int64_t carried = p->width - 1;
  real sum[CHANNELS];
  for (int64_t n = 0; n < p->sequences.count; n++) {
    const int64_t start = comba_sequence_start(&p->sequences, n), stop = comba_sequence_start(&p->sequences, n + 1);
    for (int64_t c = 0; c < p->channels; c += CHANNELS) {
      const int64_t count = p->channels - c < CHANNELS ? p->channels - c : CHANNELS;
      for (int64_t i = 0; i < carried; i++) {
        const int64_t newest = start + i; /* the last row that reads entry i */
        if (newest < stop) preactivation_gradient(p, n, start, newest, c, count, ring + newest % p->width * CHANNELS);
        input_gradient(p, n, newest - carried, start, newest + 1 < stop ? newest + 1 : stop, c, count, ring, sum);
        comba_store(dstate + (n * carried + i) * p->channels + c, sum, count, accumulate);
      }
    }
  }
}

static void backward(const comba_call *call) {
  real *taps = call->workspace;
  const problem p = measure(call, taps);
  const int64_t blocks = comba_blocks(p.rows, 32), size = (p.width + 1) * p.channels;
  real *partial = taps + p.width * p.channels,
       *rings = partial + blocks * size; /* (blocks, W+1, C), (blocks, W, CHANNELS) */
  real *dx = call->input_gradient[X].data, *dstate = call->input_gradient[STATE].data;
  real *dweight = call->input_gradient[WEIGHT].data, *dbias = call->input_gradient[BIAS].data;
#pragma omp parallel for if (p.rows * p.channels > COMBA_SERIAL)
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t first = comba_block_start(p.rows, blocks, block), end = comba_block_start(p.rows, blocks, block + 1);
    real *sums = partial + block * size, *ring = rings + block * p.width * CHANNELS;
    memset(sums, 0, (size_t)size * sizeof(real));
    for (int64_t c = 0; c < p.channels; c += CHANNELS) {
      const int64_t count = p.channels - c < CHANNELS ? p.channels - c : CHANNELS;
      int64_t row = first;
      for (int64_t n = comba_sequence_at(&p.sequences, row); row < end; n++) {
        const int64_t stop = comba_sequence_start(&p.sequences, n + 1), last = stop < end ? stop : end;
        if (row < last) piece_gradient(&p, n, row, last, c, count, ring, sums, dx, call->accumulate[X]);
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

#define SILU (&(const comba_short_convolution_attributes){true})
#define IDENTITY (&(const comba_short_convolution_attributes){false})
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
    {.name = "one tap",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(2, 5, 3)}, {COMBA_SHAPE(3, 1, 1)}, {COMBA_SHAPE(3)}}},
    {.name = "two taps, saturated",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(1, 5, 7), COMBA_FILL_UNIFORM, .low = -110, .high = 110}, {COMBA_SHAPE(7, 1, 2)}}},
    {.name = "one token, state",
     .attributes = SILU,
     .input = {{COMBA_SHAPE(3, 1, 11)}, {COMBA_SHAPE(11, 1, 4)}, {0}, {COMBA_SHAPE(3, 3, 11)}}},
    {.name = "2048 x 1024, 4 taps",
     .attributes = SILU,
     .benchmark = true,
     .input = {{COMBA_SHAPE(2, 1024, 1024)}, {COMBA_SHAPE(1024, 1, 4)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_short_convolution) = {
    .name = "short_convolution",
    .formula = "y[t] = f(bias + sum_j weight[j] x[t - (W-1) + j]), f silu or identity",
    .inputs = 5,
    .outputs = 2,
    .optional_inputs = 1u << BIAS | 1u << STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_PARAMETER, COMBA_PARAMETER, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_short_convolution_attributes),
    .backward_inputs = 1u << X | 1u << WEIGHT | 1u << BIAS | 1u << STATE | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
