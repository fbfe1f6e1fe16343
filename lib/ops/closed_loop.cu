/* Comba's query, key and feedback vector from q and k, as closed_loop.c says: forward moves five values an element, backward seven. */
#include "ops/cuda_row_span.h"
extern "C" {
#include "ops/closed_loop.h"
}

enum { Q, K, S, D };
enum { QUERY, KEY, FEEDBACK };

struct problem {
  comba_closed_loop_attributes attributes;
  const float *s, *d;
  int64_t rows, heads, n; /* B T H, H, K */

  __device__ comba_loop loop(int64_t h) const {
    return comba_loop_of(&attributes, s ? sigmoid(s[h]) : 1, d ? d[h] : 0);
  }
};

static problem problem_of(const comba_call *call) {
  const comba_shape *shape = &call->input[Q].shape;
  const problem p = {*(const comba_closed_loop_attributes *)call->attributes,
                     (const float *)call->input[S].data,
                     (const float *)call->input[D].data,
                     comba_shape_elements(shape) / shape->size[3],
                     shape->size[2],
                     shape->size[3]};
  return p;
}

/* Each block leaves two sums, for ds and dd. */
static comba_status infer(comba_signature *s) {
  const int64_t *size = s->input[Q].size;
  s->backward_workspace = 2 * row_parts(size[0] * size[1] * size[2], size[2], size[3]);
  return COMBA_OK;
}

template <class L, class T>
static __global__ void run(problem p, const T *q, const T *k, T *query, T *key, T *feedback) {
  const int64_t row = own_row<L>(), at = row * p.n;
  if (row >= p.rows) return;
  const comba_loop loop = p.loop(row % p.heads);
  row_span<L, T> a, b;
  float kk = 0, ww = 0;
  for (int64_t first = 0; first < p.n; first += L::SPAN) {
    a.load(q + at, first, p.n);
    b.load(k + at, first, p.n);
#pragma unroll
    for (int i = 0; i < L::N * L::PACKETS; i++) {
      const float w = a[i] - loop.c * b[i];
      kk += b[i] * b[i];
      ww += w * w;
    }
  }
  const comba_loop_forward by = comba_loop_run(&loop, row_sum<L>(kk, 0), row_sum<L>(ww, 1));
  for (int64_t first = 0; first < p.n; first += L::SPAN) {
    if (p.n > L::SPAN) {
      a.load(q + at, first, p.n);
      b.load(k + at, first, p.n);
    }
    put_span<L>(query + at, first, p.n, false, [&](int i) { return by.q_q * a[i] + by.q_k * b[i]; });
    put_span<L>(key + at, first, p.n, false, [&](int i) { return by.k_k * b[i]; });
    put_span<L>(feedback + at, first, p.n, false, [&](int i) { return by.p_k * b[i]; });
  }
}

/* What a thread has of a row backward; gradients that are absent are zero */
template <class L, class T> struct gradient_span {
  row_span<L, T> q, k, dquery, dkey, dfeedback;

  __device__ void load(const T *const (&from)[5], int64_t at, int64_t first, int64_t n) {
    q.load(from[0] + at, first, n);
    k.load(from[1] + at, first, n);
    dquery.load(from[2] + at, first, from[2] ? n : 0);
    dkey.load(from[3] + at, first, from[3] ? n : 0);
    dfeedback.load(from[4] + at, first, from[4] ? n : 0);
  }
};
template <class T> struct gradient_rows {
  const T *from[5]; /* q, k and the gradients of the results */
  map_target<T> dq, dk;
};

/* Rows of a block share a head; part (2, blocks): what they add to the gradients of its s and d. */
template <class L, class T>
static __global__ void __launch_bounds__(L::LANES *L::GROUPS, row_blocks_at_once<L, T>())
    run_gradient(problem p, gradient_rows<T> rows, float *part) {
  const comba_loop loop = p.loop(blockIdx.x % p.heads);
  float db = 0, dm = 0;
  int turn = 0;                /* of the sums */
  gradient_span<L, T> a, next; /* the first span of the next row */
  int64_t row = part_row<L>(p.heads);
  next.load(rows.from, row * p.n, 0, row < p.rows ? p.n : 0);
  for (; row < p.rows; row += part_step<L>()) {
    const int64_t at = row * p.n, later = row + part_step<L>();
    comba_loop_products of = {};
    a = next;
    next.load(rows.from, later * p.n, 0, later < p.rows ? p.n : 0);
    for (int64_t first = 0; first < p.n; first += L::SPAN) {
      if (first) a.load(rows.from, at, first, p.n);
#pragma unroll
      for (int i = 0; i < L::N * L::PACKETS; i++) {
        const float k = a.k[i], w = a.q[i] - loop.c * k;
        of.kk += k * k;
        of.ww += w * w;
        of.kw += k * w;
        of.k_dq += k * a.dquery[i];
        of.k_dk += k * a.dkey[i];
        of.k_dp += k * a.dfeedback[i];
        of.w_dq += w * a.dquery[i];
      }
    }
    of = {row_sum<L>(of.kk, turn),       row_sum<L>(of.ww, turn + 1),   row_sum<L>(of.kw, turn + 2),
          row_sum<L>(of.k_dq, turn + 3), row_sum<L>(of.k_dk, turn + 4), row_sum<L>(of.k_dp, turn + 5),
          row_sum<L>(of.w_dq, turn + 6)};
    turn += 7;
    const comba_loop_backward by = comba_loop_return(&loop, &of);
    db += by.db;
    dm += by.dm;
    for (int64_t first = 0; first < p.n; first += L::SPAN) {
      if (p.n > L::SPAN) a.load(rows.from, at, first, p.n);
      const auto w = [&](int i) { return a.q[i] - loop.c * a.k[i]; };
      if (rows.dq.data)
        put_span<L>(rows.dq.data + at, first, p.n, rows.dq.accumulate,
                    [&](int i) { return by.q_dq * a.dquery[i] + by.q_w * w(i); });
      if (rows.dk.data)
        put_span<L>(rows.dk.data + at, first, p.n, rows.dk.accumulate, [&](int i) {
          return by.k_dq * a.dquery[i] + by.k_dk * a.dkey[i] + by.k_dp * a.dfeedback[i] + by.k_w * w(i) +
                 by.k_k * a.k[i];
        });
    }
  }
  __shared__ float meet[2][L::GROUPS];
  if (!threadIdx.x) {
    meet[0][threadIdx.y] = db * loop.b * (1 - loop.b);
    meet[1][threadIdx.y] = dm;
  }
  __syncthreads();
  if (threadIdx.y || threadIdx.x >= 2) return;
  float sum = 0;
  for (int group = 0; group < L::GROUPS; group++) sum += meet[threadIdx.x][group];
  part[threadIdx.x * gridDim.x + blockIdx.x] = sum;
}

/* ds, dd (heads): the sums of what the blocks left for each head; a warp a sum */
static __global__ void sum_parts(const float *part, int64_t blocks, int64_t heads, map_target<float> ds,
                                 map_target<float> dd) {
  const map_target<float> to = blockIdx.y ? dd : ds;
  if (!to.data) return;
  float sum = 0;
  for (int64_t i = threadIdx.x * heads + blockIdx.x; i < blocks; i += 32 * heads) sum += part[blockIdx.y * blocks + i];
  sum = warp_sum(sum);
  if (!threadIdx.x) put(to.data + blockIdx.x, sum, to.accumulate);
}

template <class T> static void forward(const comba_call *call) {
  const problem p = problem_of(call);
  const T *q = (const T *)call->input[Q].data, *k = (const T *)call->input[K].data;
  T *query = (T *)call->output[QUERY].data, *key = (T *)call->output[KEY].data;
  T *feedback = (T *)call->output[FEEDBACK].data;
  with_row_layout(p.n, cuda_rows_pack(p.n, q, k, query, key, feedback), [&](auto layout) {
    typedef decltype(layout) L;
    run<L><<<row_blocks<L>(p.rows), row_threads<L>(), 0, comba_cuda_stream()>>>(p, q, k, query, key, feedback);
  });
  comba_cuda_note(cudaGetLastError(), "closed_loop");
}

template <class T> static void backward(const comba_call *call) {
  const problem p = problem_of(call);
  const gradient_rows<T> rows = {
      {(const T *)call->input[Q].data, (const T *)call->input[K].data, (const T *)call->output_gradient[QUERY].data,
       (const T *)call->output_gradient[KEY].data, (const T *)call->output_gradient[FEEDBACK].data},
      {(T *)call->input_gradient[Q].data, call->accumulate[Q]},
      {(T *)call->input_gradient[K].data, call->accumulate[K]}};
  const map_target<float> ds = {(float *)call->input_gradient[S].data, call->accumulate[S]};
  const map_target<float> dd = {(float *)call->input_gradient[D].data, call->accumulate[D]};
  float *part = (float *)call->workspace;
  const int64_t parts = row_parts(p.rows, p.heads, p.n);
  const bool packs = cuda_rows_pack(p.n, rows.from[0], rows.from[1], rows.from[2], rows.from[3], rows.from[4],
                                    rows.dq.data, rows.dk.data);
  with_row_layout(p.n, packs, [&](auto layout) {
    typedef decltype(layout) L;
    run_gradient<L><<<(unsigned)parts, row_threads<L>(), 0, comba_cuda_stream()>>>(p, rows, part);
  });
  comba_cuda_note(cudaGetLastError(), "closed_loop, backward");
  if (!ds.data && !dd.data) return;
  sum_parts<<<dim3((unsigned)p.heads, 2), 32, 0, comba_cuda_stream()>>>(part, parts, p.heads, ds, dd);
  comba_cuda_note(cudaGetLastError(), "closed_loop, sums of heads");
}

COMBA_CUDA_ROW(closed_loop, infer);
