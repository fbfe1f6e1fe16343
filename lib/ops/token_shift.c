/* y[t] = x[t - 1], and the state (0 without one) at the first token of a sequence; new_state = the last x of each
 * dx[t] = dy[t + 1], that of new_state at the last token;  dstate = dy of the first token
 * An empty sequence hands its state on. */
#include "ops/extent.h"
#include "ops/ops.h"
#include "ops/rows.h"
#include "ops/sequences.h"

enum { X, STATE, CU_SEQLENS };
enum { Y, NEW_STATE };

static comba_status infer(comba_signature *s) {
  const comba_shape *x = &s->input[X], *state = &s->input[STATE];
  if (!comba_extent_fits(x, 3)) return comba_fail_shape(s, X, "(B, T, d)");
  int64_t sequences;
  const comba_status status = comba_infer_sequences(s, CU_SEQLENS, x->size[0], &sequences);
  if (status != COMBA_OK) return status;
  const comba_shape carried = COMBA_SHAPE(sequences, x->size[2]);
  if (state->rank && !comba_shape_equal(state, &carried))
    return comba_fail_shape(s, STATE, "(N, d), N the number of sequences");
  s->outputs = 2;
  s->output[Y] = *x;
  s->output[NEW_STATE] = carried;
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const int64_t d = comba_last(&call->input[X].shape);
  const size_t row = (size_t)d * sizeof(real);
  const comba_sequences sequences = comba_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  const real *x = call->input[X].data, *state = call->input[STATE].data;
  real *y = call->output[Y].data, *carried = call->output[NEW_STATE].data;
#pragma omp parallel for if (comba_shape_elements(&call->input[X].shape) > COMBA_SERIAL)
  for (int64_t n = 0; n < sequences.count; n++) {
    const int64_t start = comba_sequence_start(&sequences, n), stop = comba_sequence_start(&sequences, n + 1);
    /* the state may share memory with the new one */
    if (stop == start) {
      if (!state)
        memset(carried + n * d, 0, row);
      else if (state != carried)
        memcpy(carried + n * d, state + n * d, row);
      continue;
    }
    if (state)
      memcpy(y + start * d, state + n * d, row);
    else
      memset(y + start * d, 0, row);
    memcpy(y + (start + 1) * d, x + start * d, (size_t)(stop - start - 1) * row);
    memcpy(carried + n * d, x + (stop - 1) * d, row);
  }
}

/* to (n) = or += from (n), 0 where from is NULL */
static void pass(real *to, const real *from, int64_t n, bool accumulate) {
  if (from)
    comba_store(to, from, n, accumulate);
  else if (!accumulate)
    memset(to, 0, (size_t)n * sizeof(real));
}

static void backward(const comba_call *call) {
  const int64_t d = comba_last(&call->input[X].shape);
  const comba_sequences sequences = comba_sequences_of(&call->input[X], &call->input[CU_SEQLENS]);
  const real *dy = call->output_gradient[Y].data, *dnew = call->output_gradient[NEW_STATE].data;
  real *dx = call->input_gradient[X].data, *dstate = call->input_gradient[STATE].data;
#pragma omp parallel for if (comba_shape_elements(&call->input[X].shape) > COMBA_SERIAL)
  for (int64_t n = 0; n < sequences.count; n++) {
    const int64_t start = comba_sequence_start(&sequences, n), stop = comba_sequence_start(&sequences, n + 1);
    const real *last = dnew ? dnew + n * d : NULL, *first = dy ? dy + start * d : NULL;
    if (dstate) pass(dstate + n * d, stop > start ? first : last, d, call->accumulate[STATE]);
    if (!dx || stop == start) continue;
    pass(dx + start * d, first ? first + d : NULL, (stop - start - 1) * d, call->accumulate[X]);
    pass(dx + (stop - 1) * d, last, d, call->accumulate[X]);
  }
}

static const int32_t packed[] = {0, 1, 1, 6, 9}; /* lengths 1, 0, 5, 3 */
static const comba_case cases[] = {
    {.name = "without a state", .input = {{COMBA_SHAPE(3, 60, 101)}}},
    {.name = "state", .input = {{COMBA_SHAPE(2, 5, 7)}, {COMBA_SHAPE(2, 7)}}},
    {.name = "one token", .input = {{COMBA_SHAPE(2, 1, 7)}, {COMBA_SHAPE(2, 7)}}},
    {.name = "packed",
     .input = {{COMBA_SHAPE(1, 9, 4)}, {COMBA_SHAPE(4, 4)}, {COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed}}},
    {.name = "2048 x 1024", .benchmark = true, .input = {{COMBA_SHAPE(2, 1024, 1024)}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_token_shift) = {
    .name = "token_shift",
    .formula = "y[t] = x[t - 1] inside each sequence",
    .inputs = 3,
    .outputs = 2,
    .optional_inputs = 1u << STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .backward_inputs = 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
