/* g (B,T,H) = max(-100, ungated g), the gates and their gradients as decay_gate.c has them. */
#include "core/cuda_map.h"
#include "ops/cuda_gates.h"

enum { A, A_LOG, DT_BIAS };
static const float FLOOR = -100;

enum { TO_BIAS, TO_A_LOG, SUMS };
enum { THREADS = 256, PARTS = 256 };

/* Blocks that a head's tokens are cut into, one round of threads each where there are few */
static int64_t parts_of(int64_t tokens) {
  const int64_t parts = (tokens + THREADS - 1) / THREADS;
  return parts < PARTS ? parts : PARTS;
}

static comba_status infer(comba_signature *s) {
  const comba_shape *a = &s->input[A];
  s->forward_workspace = 0;
  s->backward_workspace = SUMS * a->size[2] * parts_of(a->size[0] * a->size[1]);
  return COMBA_OK;
}

template <class T> static void forward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const int64_t heads = call->input[A].shape.size[2];
  const T *a = (const T *)call->input[A].data;
  const float *a_log = (const float *)call->input[A_LOG].data, *bias = (const float *)call->input[DT_BIAS].data;
  float *g = (float *)call->output[0].data;
  comba_each(comba_shape_elements(&call->input[A].shape), [=] __device__(int64_t i) {
    const int64_t h = i % heads;
    g[i] = decay_gate_value(kind, load(a + i), a_log + h, bias + h);
  });
}

/* da, and sums (SUMS, heads, parts): what a block, tokens of one head, adds to the gradients of its parameters */
template <class T>
static __global__ void gate_gradient(comba_decay_kind kind, const T *a, const float *a_log, const float *bias,
                                     const float *g, const float *dg, int64_t tokens, int64_t heads, bool accumulate,
                                     T *da, float *sums) {
  const int64_t h = blockIdx.x, parts = gridDim.y;
  float to_bias = 0, to_a_log = 0;
  for (int64_t t = (int64_t)blockIdx.y * THREADS + threadIdx.x; t < tokens; t += parts * THREADS) {
    const int64_t i = t * heads + h;
    float du = 0, slope = 0;
    if (g[i] > FLOOR) switch (kind) {
      case COMBA_DECAY_MAMBA2:
        du = -dg[i] * expf(a_log[h]) * precise_sigmoid(load(a + i) + bias[h]);
        slope = g[i] * dg[i];
        break;
      case COMBA_DECAY_SIGMOID: du = dg[i] * precise_sigmoid(-load(a + i) - bias[h]); break;
      case COMBA_DECAY_CONSTANT:
        du = -dg[i] * expf(a_log[h]) * precise_sigmoid(bias[h]);
        slope = g[i] * dg[i];
        break;
      case COMBA_DECAY_ONE: break;
      }
    to_bias += du;
    to_a_log += slope;
    if (da) put(da + i, kind == COMBA_DECAY_MAMBA2 || kind == COMBA_DECAY_SIGMOID ? du : 0, accumulate);
  }
  to_bias = block_sum(to_bias);
  to_a_log = block_sum(to_a_log);
  if (threadIdx.x) return;
  sums[(TO_BIAS * heads + h) * parts + blockIdx.y] = to_bias;
  sums[(TO_A_LOG * heads + h) * parts + blockIdx.y] = to_a_log;
}

/* A block a head and sum */
static __global__ void add_parts(const float *sums, int64_t parts, int64_t heads, map_target<float> dbias,
                                 map_target<float> da_log) {
  const int64_t h = blockIdx.x;
  const map_target<float> to = blockIdx.y == TO_BIAS ? dbias : da_log;
  float total = 0;
  for (int64_t i = threadIdx.x; i < parts; i += PARTS) total += sums[(blockIdx.y * heads + h) * parts + i];
  total = block_sum(total);
  if (!threadIdx.x && to.data) put(to.data + h, total, to.accumulate);
}

template <class T> static void backward(const comba_call *call) {
  const comba_decay_kind kind = ((const comba_decay_gate_attributes *)call->attributes)->kind;
  const comba_shape *shape = &call->input[A].shape;
  const int64_t heads = shape->size[2], tokens = shape->size[0] * shape->size[1], parts = parts_of(tokens);
  const float *a_log = (const float *)call->input[A_LOG].data, *bias = (const float *)call->input[DT_BIAS].data;
  const map_target<float> da_log = {(float *)call->input_gradient[A_LOG].data, call->accumulate[A_LOG]};
  const map_target<float> dbias = {(float *)call->input_gradient[DT_BIAS].data, call->accumulate[DT_BIAS]};
  float *sums = (float *)call->workspace;
  if (comba_cuda_gradient_absent<T>(call, 3, 1u << A_LOG | 1u << DT_BIAS)) return;
  gate_gradient<<<dim3((unsigned)heads, (unsigned)parts), THREADS, 0, comba_cuda_stream()>>>(
      kind, (const T *)call->input[A].data, a_log, bias, (const float *)call->output[0].data,
      (const float *)call->output_gradient[0].data, tokens, heads, call->accumulate[A],
      (T *)call->input_gradient[A].data, sums);
  comba_cuda_note(cudaGetLastError(), "decay_gate, backward");
  if (!dbias.data && !da_log.data) return;
  add_parts<<<dim3((unsigned)heads, SUMS), PARTS, 0, comba_cuda_stream()>>>(sums, parts, heads, dbias, da_log);
  comba_cuda_note(cudaGetLastError(), "decay_gate, backward");
}

COMBA_CUDA_ROW(decay_gate, infer);
