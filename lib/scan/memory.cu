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
  return p;
}

/* The workspace: what the kernels pass on, and behind it room for blocks whose matrices do not fit into shared memory. */
struct kernel_size {
  int64_t blocks, floats;
};
static const int64_t STATIC_BYTES = 8192; /* of shared memory, at most */

static bool fits(const kernel_size &k) {
  return k.floats * (int64_t)sizeof(float) + STATIC_BYTES <= comba_cuda_shared_bytes();
}

static int64_t room_for(const kernel_size *kernels, int count) {
  int64_t most = 0;
  for (int i = 0; i < count; i++) {
    const int64_t floats = kernels[i].blocks * kernels[i].floats;
    if (!fits(kernels[i]) && floats > most) most = floats;
  }
  return most;
}

enum { WALK, READ, FORWARD_KERNELS };
static void forward_sizes(const memory_problem &p, kernel_size *size) {
  size[WALK] = {p.sequences * p.heads, walk_memory_of(p, {}).size};
  size[READ] = {p.slots * p.heads, read_memory_of(p, {}).size};
}
enum { PREPARE, WALK_BACK, FINISH, BACKWARD_KERNELS };
static void backward_sizes(const memory_problem &p, kernel_size *size) {
  size[PREPARE] = {p.slots * p.heads, prepare_memory_of(p, {}).size};
  size[WALK_BACK] = {p.sequences * p.heads, walk_back_memory_of(p, {}).size};
  size[FINISH] = {p.slots * p.heads, finish_memory_of(p, {}).size};
}

static int64_t lay_out_forward(memory_problem *p, float *base) {
  kernel_size size[FORWARD_KERNELS];
  memory_arena arena = {base, 0};
  float *const memories = arena.take(p->slots * p->heads * matrices(*p) * matrix_size(*p));
  if (!p->memories) p->memories = memories;
  p->n = arena.take(p->tokens * p->heads * p->V);
  forward_sizes(*p, size);
  p->scratch = arena.take(room_for(size, FORWARD_KERNELS));
  return arena.used;
}

static int64_t lay_out_backward(memory_problem *p, float *base) {
  kernel_size size[BACKWARD_KERNELS];
  memory_arena arena = {base, 0};
  const int64_t rows = p->tokens * p->heads, states = p->slots * p->heads, mapped = p->mapped;
  p->z = arena.take(rows * p->V);
  p->n = arena.take(rows * p->V);
  p->dn = arena.take(rows * p->V);
  p->read_gradient = arena.take(states * matrices(*p) * matrix_size(*p));
  p->end_gradient = arena.take(states * matrices(*p) * matrix_size(*p));
  p->gathered_gradient = arena.take(p->sequences * p->heads * matrix_size(*p));
  p->parameter_gradients = arena.take(p->sequences * p->heads * p->parameters);
  p->dk = arena.take(mapped * rows * p->R);
  p->drate = arena.take(mapped * rows);
  p->dretain = arena.take(mapped * rows);
  p->dweight = arena.take(states * p->V);
  p->dbias = arena.take(states * p->V);
  p->dtoken_offset = arena.take(states * p->chunk);
  backward_sizes(*p, size);
  p->scratch = arena.take(room_for(size, BACKWARD_KERNELS));
  return arena.used;
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
  const int bytes = fits(size) ? (int)(size.floats * (int64_t)sizeof(float)) : 0;
  if (bytes) p.scratch = NULL;
  p.scratch_size = size.floats;
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<(unsigned)size.blocks, THREADS, bytes, comba_cuda_stream()>>>(p);
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
