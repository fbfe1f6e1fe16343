/* The matrix memory on a GPU (memory.h has the names, docs/memory.md what is where): what has to go chunk by chunk in kernels with a
 * block to each sequence and head, all else in kernels with a block to each chunk. What is saved for backward, the memory before every
 * chunk, is laid out as on the CPU. */
#include "scan/cuda_memory_gradient.h"

static memory_problem problem_of(const comba_shape *shapes, const comba_memory_attributes *attributes) {
  const comba_shape *q = &shapes[Q], *v = &shapes[VALUE];
  memory_problem p = {};
  p.sequences = shapes[CU_SEQLENS].rank ? shapes[CU_SEQLENS].size[0] - 1 : q->size[0];
  p.length = q->size[1];
  p.heads = q->size[2];
  p.tokens = q->size[0] * q->size[1];
  p.chunk = attributes->chunk ? attributes->chunk : 16;
  p.slots = p.tokens / p.chunk + 2 * p.sequences; /* as memory.c has it */
  p.K = (int)q->size[3];
  p.V = (int)v->size[3];
  p.R = p.K + (shapes[BIAS].rank ? 1 : 0);
  p.residual = attributes->residual;
  p.momentum = shapes[MOMENTUM].rank;
  p.mapped = attributes->map != COMBA_MEMORY_LINEAR;
  p.key_row = row_stride(p.R);
  p.value_row = row_stride(p.V);
  p.token_row = row_stride(p.chunk + 1);
  p.matrix_row = p.mapped ? p.V : p.value_row; /* maps go over all of a matrix */
  p.map.kind = attributes->map;
  p.map.exponent = attributes->map_exponent != 0 ? attributes->map_exponent : 4;
  p.map.total = attributes->map_total != 0 ? attributes->map_total : (double)p.V * sqrt((double)p.K);
  p.loss = cuda_inner_loss_of(&attributes->loss, p.V);
  p.loss.stride = p.value_row;
  p.parameters = matrix_size(p);
  p.room = (comba_cuda_shared_bytes() - 8192 /* static */) / (int64_t)sizeof(float);
  return p;
}

/* Blocks of a kernel, and the memory that each of them takes. */
struct kernel_size {
  int64_t blocks;
  int threads;
  block_arena used;
};
enum { WALK, READ, FORWARD_KERNELS };
static void forward_sizes(const memory_problem &p, kernel_size *size) {
  const block_arena none = {NULL, NULL, p.room, 0, 0};
  size[WALK] = {p.sequences * p.heads, WALK_THREADS, walk_memory_of(p, none).used};
  size[READ] = {p.slots * p.heads, THREADS, read_memory_of(p, none).used};
}
enum { PREPARE, WALK_BACK, FINISH, BACKWARD_KERNELS };
static void backward_sizes(const memory_problem &p, kernel_size *size) {
  const block_arena none = {NULL, NULL, p.room, 0, 0};
  size[PREPARE] = {p.slots * p.heads, THREADS, prepare_memory_of(p, none).used};
  size[WALK_BACK] = {p.sequences * p.heads, WALK_THREADS, walk_back_memory_of(p, none).used};
  size[FINISH] = {p.slots * p.heads, THREADS, finish_memory_of(p, none).used};
}

static int64_t most_scratch(const kernel_size *kernels, int count) {
  int64_t most = 0;
  for (int i = 0; i < count; i++) {
    const int64_t floats = kernels[i].blocks * kernels[i].used.global_used;
    if (floats > most) most = floats;
  }
  return most;
}

/* Hands out the workspace; without one it only counts floats. */
static float *take(float *base, int64_t *used, int64_t floats) {
  float *const part = base ? base + *used : NULL;
  *used += (floats + 3) / 4 * 4;
  return part;
}

/* What the kernels pass on, and behind it room for what their blocks do not have in shared memory; returns the floats of all. */
static int64_t lay_out_forward(memory_problem *p, float *base) {
  kernel_size size[FORWARD_KERNELS];
  int64_t used = 0;
  float *const memories = take(base, &used, p->slots * p->heads * matrices(*p) * matrix_size(*p));
  if (!p->memories) p->memories = memories;
  p->n = take(base, &used, p->tokens * p->heads * p->V);
  p->scratch = take(base, &used, 0);
  forward_sizes(*p, size);
  return used + most_scratch(size, FORWARD_KERNELS);
}

static int64_t lay_out_backward(memory_problem *p, float *base) {
  const int64_t rows = p->tokens * p->heads, states = p->slots * p->heads, mapped = p->mapped;
  const struct {
    float **at;
    int64_t size;
  } part[] = {{&p->z, rows * p->V},
              {&p->n, rows * p->V},
              {&p->dn, rows * p->V},
              {&p->read_gradient, states * matrices(*p) * matrix_size(*p)},
              {&p->end_gradient, states * matrices(*p) * matrix_size(*p)},
              {&p->gathered_gradient, p->sequences * p->heads * matrix_size(*p)},
              {&p->parameter_gradients, p->sequences * p->heads * p->parameters},
              {&p->dk, mapped * rows * p->R},
              {&p->drate, mapped * rows},
              {&p->dretain, mapped * rows},
              {&p->dweight, states * p->V},
              {&p->dbias, states * p->V},
              {&p->dtoken_offset, states * p->chunk},
              {&p->scratch, 0}};
  kernel_size size[BACKWARD_KERNELS];
  int64_t used = 0;
  for (const auto &x : part) *x.at = take(base, &used, x.size);
  backward_sizes(*p, size);
  return used + most_scratch(size, BACKWARD_KERNELS);
}

static comba_status infer(comba_signature *s) {
  memory_problem p = problem_of(s->input, (const comba_memory_attributes *)s->attributes);
  s->forward_workspace = lay_out_forward(&p, NULL);
  s->backward_workspace = lay_out_backward(&p, NULL);
  return COMBA_OK;
}

static memory_problem operands_of(const comba_call *call) {
  comba_shape shapes[INPUTS];
  for (int i = 0; i < INPUTS; i++) shapes[i] = call->input[i].shape;
  memory_problem p = problem_of(shapes, (const comba_memory_attributes *)call->attributes);
  take_operands(call, &p);
  return p;
}

static void launch(void (*kernel)(memory_problem), memory_problem p, const kernel_size &size, const char *what) {
  const int bytes = (int)(size.used.shared_used * (int64_t)sizeof(float));
  p.scratch_size = size.used.global_used;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<(unsigned)size.blocks, size.threads, bytes, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), what);
}

template <class T> static void forward(const comba_call *call) {
  memory_problem p = operands_of(call);
  kernel_size size[FORWARD_KERNELS];
  lay_out_forward(&p, (float *)call->workspace);
  forward_sizes(p, size);
  launch(walk<T>, p, size[WALK], "memory, chunk by chunk");
  launch(p.mapped ? read_mapped<T> : read_linear<T>, p, size[READ], "memory, reading");
}

template <class T> static void backward(const comba_call *call) {
  memory_problem p = operands_of(call);
  kernel_size size[BACKWARD_KERNELS];
  lay_out_backward(&p, (float *)call->workspace);
  if (!p.gradient[NORM_WEIGHT]) p.dweight = NULL;
  if (!p.gradient[NORM_BIAS]) p.dbias = NULL;
  if (!p.gradient[TOKEN_OFFSET]) p.dtoken_offset = NULL;
  backward_sizes(p, size);
  launch(p.mapped ? prepare_mapped<T> : prepare_linear<T>, p, size[PREPARE], "memory, what reading leaves");
  launch(walk_back<T>, p, size[WALK_BACK], "memory, backward chunk by chunk");
  launch(finish<T>, p, size[FINISH], "memory, gradients of tokens");
  sum_parameter(p, MEMORY, 0, (int64_t)p.K * p.V, false);
  sum_parameter(p, BIAS, (int64_t)p.K * p.V, p.V, false);
  const struct {
    int input;
    float *of_chunks;
    int64_t rows, n;
  } sums[] = {{NORM_WEIGHT, p.dweight, p.slots, p.heads * p.V},
              {NORM_BIAS, p.dbias, p.slots, p.heads * p.V},
              {TOKEN_OFFSET, p.dtoken_offset, p.slots * p.heads, p.chunk}};
  for (const auto &sum : sums)
    if (sum.of_chunks)
      comba_cuda_sum_rows(sum.of_chunks, sum.rows, sum.n, p.accumulate[sum.input], (float *)p.gradient[sum.input]);
}

COMBA_CUDA_ROW(memory, infer);
