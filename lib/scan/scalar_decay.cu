/* Scalar decay without a delta term. The mode is the engine's to choose: on a GPU a recurrence has too little to do at a time. */
#include "scan/cuda_scalar.h"

enum { Q, KEY, VALUE, GATE, INITIAL_STATE, CU_SEQLENS };

static cuda_scalar problem_of(const comba_shape *shapes, const comba_scalar_decay_attributes *attributes) {
  const comba_shape *q = &shapes[Q], *v = &shapes[VALUE];
  cuda_scalar c = {};
  c.batch = q->size[0];
  c.length = q->size[1];
  c.sequences = shapes[CU_SEQLENS].rank ? shapes[CU_SEQLENS].size[0] - 1 : c.batch;
  c.q_heads = q->size[2];
  c.k_heads = shapes[KEY].size[2];
  c.v_heads = v->size[2];
  for (const int64_t heads : {c.q_heads, c.k_heads, c.v_heads}) c.heads = heads > c.heads ? heads : c.heads;
  c.K = q->size[3];
  c.V = v->size[3];
  c.scale = (float)(attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)c.K));
  c.retention = (int)attributes->retention;
  return c;
}

template <class T> static comba_status infer(comba_signature *s) {
  static const int32_t packed = 0; /* any address: packed sequences need slots of their own */
  cuda_scalar c = problem_of(s->input, (const comba_scalar_decay_attributes *)s->attributes);
  c.cu_seqlens = s->input[CU_SEQLENS].rank ? &packed : NULL;
  return cuda_scalar_infer(s, &c, sizeof(T));
}

static cuda_scalar operands_of(const comba_call *call) {
  comba_shape shapes[CU_SEQLENS + 1];
  for (int i = 0; i <= CU_SEQLENS; i++) shapes[i] = call->input[i].shape;
  cuda_scalar c = problem_of(shapes, (const comba_scalar_decay_attributes *)call->attributes);
  c.q = call->input[Q].data;
  c.k = call->input[KEY].data;
  c.v = call->input[VALUE].data;
  c.g = (const float *)call->input[GATE].data;
  c.initial_state = (const float *)call->input[INITIAL_STATE].data;
  c.cu_seqlens = (const int32_t *)call->input[CU_SEQLENS].data;
  c.o = call->output[0].data;
  c.final_state = (float *)call->output[1].data;
  return c;
}

template <class T> static void forward(const comba_call *call) {
  const cuda_scalar c = operands_of(call);
  cuda_scalar_forward<T>(&c, (float *)call->saved[0].data, (float *)call->workspace);
}

template <class T> static void backward(const comba_call *call) {
  cuda_scalar c = operands_of(call);
  c.output_gradient = call->output_gradient[0].data;
  c.final_state_gradient = (const float *)call->output_gradient[1].data;
  c.dq = call->input_gradient[Q].data;
  c.dk = call->input_gradient[KEY].data;
  c.dv = call->input_gradient[VALUE].data;
  c.dg = (float *)call->input_gradient[GATE].data;
  c.initial_state_gradient = (float *)call->input_gradient[INITIAL_STATE].data;
  c.add_q = call->accumulate[Q];
  c.add_k = call->accumulate[KEY];
  c.add_v = call->accumulate[VALUE];
  c.add_g = call->accumulate[GATE];
  c.add_state = call->accumulate[INITIAL_STATE];
  cuda_scalar_backward<T>(&c, (float *)call->saved[0].data, (float *)call->workspace);
}

COMBA_CUDA_ROW(scalar_decay, infer<float>, 1u << INITIAL_STATE, infer<bfloat16>, 1u << 1);
