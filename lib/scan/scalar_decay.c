/* Linear attention with scalar decay (RetNet, arXiv 2307.08621; Mamba2, arXiv 2405.21060; without decay: arXiv 2006.16236),
 * for each head:
 *   S_t = e^{g_t} S_{t-1} + k_t v_t^T,  o_t = scale S_t^T q_t
 * computed in chunks of 64 tokens by matrix products (scalar_decay_chunk.c), or token by token (scalar_decay_recurrent.c). */
#include "scan/scalar_decay.h"

#include "ops/ops.h"

enum { LEAST_STATE = 1024 }; /* of the chunk form, see scan_in_chunks */

/* ln(1 - 2^-(retention + head)); no decay without retention */
static real constant_gate(const comba_scalar_decay_attributes *attributes, int64_t head) {
  return attributes->retention ? (real)log1p(-exp2(-(double)(attributes->retention + head))) : 0;
}

static scalar_decay_head head_of(const comba_call *call, const scalar_size *size, int64_t sequence, int64_t head) {
  const comba_scalar_decay_attributes *attributes = call->attributes;
  const int32_t *cu_seqlens = call->input[CU_SEQLENS].data;
  const int64_t first = cu_seqlens ? cu_seqlens[sequence] : sequence * size->length;
  const int64_t slot = scan_state_slot(cu_seqlens, sequence, size->length, first);
  const int64_t gate = first * size->value_heads + head;
  const int64_t state = (sequence * size->value_heads + head) * size->K * size->V;
  int64_t stride[VALUE + 1], at[VALUE + 1];
  bool shared[VALUE + 1]; /* the head of o before this one read the same rows: their gradient is begun */
  for (int i = Q; i <= VALUE; i++) {
    const int64_t *extent = call->input[i].shape.size, readers = size->value_heads / extent[2];
    stride[i] = extent[2] * extent[3];
    at[i] = first * stride[i] + head / readers * extent[3];
    shared[i] = head % readers > 0;
  }
#define AT(view, offset) ((view).data ? (real *)(view).data + (offset) : NULL)
  scalar_decay_head h = {
      .length = cu_seqlens ? cu_seqlens[sequence + 1] - first : size->length,
      .K = size->K,
      .V = size->V,
      .query_stride = stride[Q],
      .key_stride = stride[KEY],
      .value_stride = stride[VALUE],
      .output_stride = size->value_heads * size->V,
      .gate_stride = size->value_heads,
      .state_stride = size->value_heads * size->K * size->V,
      .scale = (real)(attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)size->K)),
      .constant_gate = constant_gate(attributes, head),
      .q = AT(call->input[Q], at[Q]),
      .k = AT(call->input[KEY], at[KEY]),
      .v = AT(call->input[VALUE], at[VALUE]),
      .g = AT(call->input[GATE], gate),
      .initial_state = AT(call->input[INITIAL_STATE], state),
      .o = AT(call->output[OUTPUT], gate * size->V),
      .final_state = AT(call->output[FINAL_STATE], state),
      .states = AT(call->saved[STATES], (slot * size->value_heads + head) * size->K * size->V),
      .output_gradient = AT(call->output_gradient[OUTPUT], gate * size->V),
      .final_state_gradient = AT(call->output_gradient[FINAL_STATE], state),
      .dq = AT(call->input_gradient[Q], at[Q]),
      .dk = AT(call->input_gradient[KEY], at[KEY]),
      .dv = AT(call->input_gradient[VALUE], at[VALUE]),
      .dg = AT(call->input_gradient[GATE], gate),
      .initial_state_gradient = AT(call->input_gradient[INITIAL_STATE], state),
  };
#undef AT
  memcpy(h.accumulate, call->accumulate, sizeof h.accumulate);
  for (int i = Q; i <= VALUE; i++) h.accumulate[i] |= shared[i];
  return h;
}

static int64_t scratch_size(const scalar_tasks *x, int64_t width, bool backward) {
  return x->chunks ? COMBA_VARIANT(comba_scalar_decay_chunk_scratch)(x->size.K, width, backward)
                   : COMBA_VARIANT(comba_scalar_decay_recurrent_scratch)(x->size.K, width, backward);
}

static comba_status infer(comba_signature *s) {
  static const scalar_operands operands = {
      Q, KEY, VALUE, GATE, INITIAL_STATE, CU_SEQLENS, .gates_optional = true, .separate_heads = true};
  const comba_scalar_decay_attributes *attributes = s->attributes;
  const comba_status status = scalar_infer(s, &operands);
  if (status != COMBA_OK) return status;

  const scalar_size size = scalar_size_of(&s->input[Q], &s->input[KEY], &s->input[VALUE], &s->input[CU_SEQLENS]);
  const scalar_tasks x = scalar_tasks_of(&size, attributes->mode, LEAST_STATE, CHUNK_MIN_WORK, NULL);
  s->forward_workspace = scan_slots(scalar_forward_tasks(&x)) * scratch_size(&x, x.width, false);
  s->backward_workspace = scan_slots(scalar_backward_tasks(&x)) * scratch_size(&x, size.V, true);

  const double K = (double)size.K, V = (double)size.V, heads = (double)size.tokens * (double)size.value_heads;
  s->forward_flops = heads * (x.chunks ? 4 * K * V + 2 * CHUNK * (K + V) : 5 * K * V);
  s->backward_flops = heads * (x.chunks ? 8 * K * V + CHUNK * (6 * K + 4 * V) : 13 * K * V);
  return COMBA_OK;
}

static scalar_tasks tasks_of(const comba_call *call) {
  const comba_scalar_decay_attributes *attributes = call->attributes;
  const scalar_size size = scalar_size_of(&call->input[Q].shape, &call->input[KEY].shape, &call->input[VALUE].shape,
                                          &call->input[CU_SEQLENS].shape);
  return scalar_tasks_of(&size, attributes->mode, LEAST_STATE, CHUNK_MIN_WORK, call);
}

static void forward_task(const void *context, int64_t task, real *scratch) {
  const scalar_tasks *x = context;
  const scalar_part part = scalar_part_of(x, task);
  const scalar_decay_head head = head_of(x->call, &x->size, part.sequence, part.head);
  if (x->chunks)
    COMBA_VARIANT(comba_scalar_decay_chunk_forward)(&head, scratch);
  else
    COMBA_VARIANT(comba_scalar_decay_recurrent_forward)(&head, part.first, part.width, scratch);
}

static void forward(const comba_call *call) {
  const scalar_tasks x = tasks_of(call);
  scan_deal(scalar_forward_tasks(&x), call->workspace, scratch_size(&x, x.width, false), forward_task, &x);
}

static void backward_task(const void *context, int64_t task, real *scratch) {
  const scalar_tasks *x = context;
  const scalar_size *size = &x->size;
  for (int64_t member = 0; member < size->group; member++) {
    const scalar_decay_head head =
        head_of(x->call, size, task / size->heads, task % size->heads * size->group + member);
    if (x->chunks)
      COMBA_VARIANT(comba_scalar_decay_chunk_backward)(&head, scratch);
    else
      COMBA_VARIANT(comba_scalar_decay_recurrent_backward)(&head, scratch);
  }
}

static void backward(const comba_call *call) {
  const scalar_tasks x = tasks_of(call);
  scan_deal(scalar_backward_tasks(&x), call->workspace, scratch_size(&x, x.size.V, true), backward_task, &x);
}

/* ---- Cases -------------------------------------------------------------------------------------------------------- */

#define QUERY(B, T, H, K)                                                                                              \
  { COMBA_SHAPE(B, T, H, K), COMBA_FILL_UNIT }
#define VALUES(B, T, HV, V)                                                                                            \
  { COMBA_SHAPE(B, T, HV, V) }
#define GATES(B, T, HV)                                                                                                \
  { COMBA_SHAPE(B, T, HV), COMBA_FILL_UNIFORM, .low = -1, .high = 0 }
#define STATE(N, HV, K, V)                                                                                             \
  { COMBA_SHAPE(N, HV, K, V) }
#define ABSENT                                                                                                         \
  {                                                                                                                    \
    { 0 }                                                                                                              \
  }
/* q, k, v, and g: more inputs may follow */
#define PLAIN(B, T, H, HV, K, V) QUERY(B, T, H, K), QUERY(B, T, H, K), VALUES(B, T, HV, V)
#define GATED(B, T, H, HV, K, V) PLAIN(B, T, H, HV, K, V), GATES(B, T, HV)

static const comba_scalar_decay_attributes chunk = {.mode = COMBA_MODE_CHUNK};
static const comba_scalar_decay_attributes recurrent = {.mode = COMBA_MODE_RECURRENT};
static const comba_scalar_decay_attributes chunk_retention = {.retention = 2, .mode = COMBA_MODE_CHUNK};
static const comba_scalar_decay_attributes recurrent_retention = {.retention = 2, .mode = COMBA_MODE_RECURRENT};
static const comba_scalar_decay_attributes scaled = {.scale = 0.3};

static const int32_t packed[] = {0, 1, 1, 66, 70}; /* lengths 1, 0, 65, 4 */
#define PACKED                                                                                                         \
  GATED(1, 70, 1, 2, 16, 24), STATE(4, 2, 16, 24), {                                                                   \
    COMBA_SHAPE(5), COMBA_FILL_VALUES, .values = packed                                                                \
  }
/* 66 gates: saturated ones among open ones */
static const int32_t gates[] = {0, 0, -100, 0, 0,    0, -1, 0, -100, -100, 0, 0,   0, 0, 0, 0, 0, 0, 0, 0,    0, 0,
                                0, 0, 0,    0, 0,    0, -1, 0, 0,    0,    0, -50, 0, 0, 0, 0, 0, 0, 0, 0,    0, 0,
                                0, 0, 0,    0, -100, 0, 0,  0, 0,    0,    0, 0,   0, 0, 0, 0, 0, 0, 0, -100, 0, 0};
#define SATURATED                                                                                                      \
  PLAIN(1, 66, 1, 1, 16, 24), {COMBA_SHAPE(1, 66, 1), COMBA_FILL_VALUES, .values = gates}, STATE(1, 1, 16, 24)

#define CASES(form)                                                                                                    \
  {.name = #form ", T 1", .attributes = &form, .input = {GATED(2, 1, 1, 1, 16, 300), STATE(2, 1, 16, 300)}},           \
      {.name = #form ", T 2", .attributes = &form, .input = {GATED(1, 2, 2, 2, 24, 16)}},                              \
      {.name = #form ", T 64", .attributes = &form, .input = {GATED(1, 64, 1, 2, 64, 64)}},                            \
      {.name = #form ", T 65, without g", .attributes = &form, .input = {PLAIN(1, 65, 1, 2, 24, 40)}},                 \
      {.name = #form ", T 150, groups, state",                                                                         \
       .attributes = &form,                                                                                            \
       .input = {GATED(2, 150, 2, 4, 16, 24), STATE(2, 4, 16, 24)}},                                                   \
      {.name = #form ", T 70, more heads of q",                                                                        \
       .attributes = &form,                                                                                            \
       .input = {QUERY(2, 70, 4, 16), QUERY(2, 70, 2, 16), VALUES(2, 70, 1, 24), GATES(2, 70, 4),                      \
                 STATE(2, 4, 16, 24)}},                                                                                \
      {.name = #form ", T 70, retention, groups, state",                                                               \
       .attributes = &form##_retention,                                                                                \
       .input = {PLAIN(2, 70, 1, 3, 16, 24), ABSENT, STATE(2, 3, 16, 24)}},                                            \
      {.name = #form ", K 256, V 100", .attributes = &form, .input = {GATED(1, 66, 1, 1, 256, 100)}},                  \
      {.name = #form ", K 1, V 3", .attributes = &form, .input = {GATED(1, 70, 1, 2, 1, 3)}},                          \
      {.name = #form ", packed", .attributes = &form, .input = {PACKED}}, {                                            \
    .name = #form ", saturated", .attributes = &form, .tolerance = 1e-4, .input = { SATURATED }                        \
  }

static const comba_case cases[] = {
    CASES(chunk),
    CASES(recurrent),
    {.name = "auto, scale", .attributes = &scaled, .input = {GATED(1, 70, 1, 1, 64, 24)}},
    {.name = "chunk, 32", .benchmark = true, .attributes = &chunk, .input = {GATED(2, 1024, 4, 4, 32, 32)}},
    {.name = "chunk, 64", .benchmark = true, .attributes = &chunk, .input = {GATED(2, 1024, 4, 4, 64, 64)}},
    {.name = "chunk, 128", .benchmark = true, .attributes = &chunk, .input = {GATED(2, 1024, 4, 4, 128, 128)}},
    {.name = "recurrent, 32", .benchmark = true, .attributes = &recurrent, .input = {GATED(2, 1024, 4, 4, 32, 32)}},
    {.name = "recurrent, 64", .benchmark = true, .attributes = &recurrent, .input = {GATED(2, 1024, 4, 4, 64, 64)}},
    {.name = "recurrent, T 16, 128",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {GATED(2, 16, 4, 4, 128, 128)}},
    {.name = "decode, 128",
     .benchmark = true,
     .attributes = &recurrent,
     .input = {GATED(8, 1, 4, 4, 128, 128), STATE(8, 4, 128, 128)}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_scalar_decay) = {
    .name = "scalar_decay",
    .formula = "S_t = e^g S_{t-1} + k v^T, o_t = scale S_t^T q",
    .inputs = INPUTS,
    .outputs = 2,
    .optional_inputs = 1u << GATE | 1u << INITIAL_STATE | 1u << CU_SEQLENS,
    .input_class = {COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_ACTIVATION, COMBA_GATE, COMBA_STATE, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION, COMBA_STATE},
    .attributes_size = sizeof(comba_scalar_decay_attributes),
    .backward_inputs = 1u << Q | 1u << KEY | 1u << VALUE | 1u << GATE | 1u << CU_SEQLENS,
    .infer = infer,
    .forward = forward,
    .backward = backward,
    .cases = cases,
};
