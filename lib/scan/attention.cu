/* Softmax attention by tiles (FlashAttention, arXiv 2205.14135): o_t = sum_j p_tj v_j, p_t = softmax(scale q_t k_j), and with
 * dp_tj = do_t v_j and delta_t = do_t o_t:
 *   ds_tj = p_tj (dp_tj - delta_t);  dq_t = scale sum_j ds_tj k_j;  dk_j = scale sum_t ds_tj q_t;  dv_j = sum_t p_tj do_t
 *
 * A block has a tile of rows, each warp 16 of them, and walks over tiles of columns: queries over keys in forward and for dq, keys over
 * queries for dk and dv. So each sum belongs to one thread. Channels are padded to 32, 64, 128 or 256; beyond 128 a block
 * computes 128 channels of its results, and another the rest, so that they fit in registers.
 *
 * Powers are of two: scores are scaled by log2(e) as well.
 *
 * In bfloat16 cuDNN computes what it has a plan for (attention_cudnn.cu), to the same saved tensor. */
#include <type_traits>

#include "ops/cuda_sequences.h"
#include "scan/cuda_attention.h"
#include "scan/cuda_tile.h"

enum { Q, KEY, VALUE, CU_SEQLENS };
enum { LSE }; /* saved: ln sum_j e^score (B,T,H) */
enum { D_MAX = 256, PART = 128 };
static constexpr float LOG2_E = 1.44269504f;

/* Rows and columns of the tiles for D channels: what fits in 99 KiB of shared memory. */
template <class T, int D> struct tiles {
  static constexpr int bytes = D * (int)sizeof(T);
  static constexpr int rows = bytes <= 256 ? 64 : 32, columns = bytes <= 128 ? 64 : (bytes <= 512 ? 32 : 8);
  static constexpr int threads = rows / TILE_ROWS * 32;
  static constexpr int part = D < PART ? D : PART; /* channels of its results that a block computes */
  static constexpr int stride = tile_stride<T, D>, part_stride = tile_stride<T, part>;
  static constexpr int score_stride = tile_stride<T, columns>;
  static constexpr int forward_size = (rows + columns) * stride + columns * part_stride + rows * score_stride;
  static constexpr int backward_size = 2 * (rows + columns) * stride + 2 * rows * score_stride;
};

/* ---- Problems ------------------------------------------------------------------------------------------------------- */

template <class T> struct problem {
  cuda_sequences sequences;
  int64_t batch, heads, group, D;
  int64_t stride, key_stride; /* between tokens of q, of k */
  float scale, power_scale;   /* power_scale: scale log2(e) */
  bool causal, aligned;
  int64_t window;
  const T *q, *k, *v, *output_gradient;
  T *o, *dq, *dk, *dv;
  float *lse, *delta; /* (B,T,H) */
  bool add_q, add_k, add_v;

  __device__ bool visible(int64_t token, int64_t key, int64_t length) const {
    return token < length && key < length && (!causal || (key <= token && (!window || key > token - window)));
  }
  /* Whether all of `tokens` from `token` on see all of `keys` from `key` on. */
  __device__ bool all_visible(int64_t token, int tokens, int64_t key, int keys, int64_t length) const {
    return visible(token, key + keys - 1, length) && visible(token + tokens - 1, key, length);
  }
};

template <class T> static problem<T> problem_of(const comba_call *call) {
  const comba_attention_attributes *attributes = (const comba_attention_attributes *)call->attributes;
  const comba_shape *q = &call->input[Q].shape, *k = &call->input[KEY].shape;
  problem<T> p = {};
  p.sequences = cuda_sequences_of(&call->input[Q], &call->input[CU_SEQLENS]);
  p.batch = q->size[0];
  p.heads = q->size[2];
  p.group = q->size[2] / k->size[2];
  p.D = q->size[3];
  p.stride = p.heads * p.D;
  p.key_stride = k->size[2] * p.D;
  const double scale = attributes->scale != 0 ? attributes->scale : 1 / sqrt((double)p.D);
  p.scale = (float)scale;
  p.power_scale = (float)(scale * M_LOG2E);
  p.causal = attributes->causal;
  p.window = attributes->window < p.sequences.length ? attributes->window : 0;
  p.q = (const T *)call->input[Q].data;
  p.k = (const T *)call->input[KEY].data;
  p.v = (const T *)call->input[VALUE].data;
  p.output_gradient = (const T *)call->output_gradient[0].data;
  p.o = (T *)call->output[0].data;
  p.lse = (float *)call->saved[LSE].data;
  const uintptr_t addresses = (uintptr_t)p.q | (uintptr_t)p.k | (uintptr_t)p.v | (uintptr_t)p.output_gradient;
  p.aligned = p.D * sizeof(T) % 16 == 0 && addresses % 16 == 0;
  return p;
}

/* Tiles of rows, over all sequences. A packed sequence that starts at row s takes tiles from s / rows + its number: they cannot
 * overlap, and some are empty. */
static int64_t row_tiles(const cuda_sequences &s, int64_t batch, int64_t rows) {
  return s.cu_seqlens ? s.length / rows + s.count : batch * ((s.length + rows - 1) / rows);
}

typedef struct tile_place {
  int64_t start, length; /* the sequence's first row, and its length */
  int64_t token;         /* the tile's first token; not below length if the tile is empty */
} tile_place;

template <int rows> static __device__ tile_place place_of(const cuda_sequences &s, int64_t tile) {
  int64_t n, token;
  if (s.cu_seqlens) {
    int64_t high = s.count; /* the last sequence whose first tile is not after this one */
    n = 0;
    while (high - n > 1) {
      const int64_t middle = (n + high) / 2;
      if (s.cu_seqlens[middle] / rows + middle <= tile)
        n = middle;
      else
        high = middle;
    }
    token = (tile - s.cu_seqlens[n] / rows - n) * rows;
  } else {
    const int64_t each = (s.length + rows - 1) / rows;
    n = tile / each;
    token = tile % each * rows;
  }
  const int64_t start = sequence_start(s, n);
  return {start, sequence_start(s, n + 1) - start, token};
}

/* ---- Forward -------------------------------------------------------------------------------------------------------- */

/* The maximum and the sum over a row, in all lanes of its quad. */
static __device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
static __device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

/* A tile of queries of one head. A row keeps its largest score so far and the sum of 2^(score - largest); what it has summed up
 * shrinks when a larger score comes. */
template <class T, int D> static __global__ void __launch_bounds__(tiles<T, D>::threads) attend(const problem<T> p) {
  typedef tiles<T, D> t;
  extern __shared__ int4 shared[];
  T *q = (T *)shared, *k = q + t::rows * t::stride, *v = k + t::columns * t::stride;
  const tile_place at = place_of<t::rows>(p.sequences, blockIdx.x);
  if (at.token >= at.length) return;
  const int64_t head = blockIdx.y, first_channel = blockIdx.z * t::part;
  const int first_row = threadIdx.x / 32 * TILE_ROWS; /* of this warp */
  T *weights = v + t::columns * t::part_stride + first_row * t::score_stride;
  tile_load<t::rows, D>(q, p.q + (at.start + at.token) * p.stride + head * p.D, p.stride, at.length - at.token, p.D,
                        p.aligned);

  float o[t::part / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  const int64_t end = p.causal ? min(at.token + t::rows, at.length) : at.length;
  for (int64_t key = p.window ? max((int64_t)0, at.token - p.window + 1) : 0; key < end; key += t::columns) {
    const int64_t offset = (at.start + key) * p.key_stride + head / p.group * p.D;
    __syncthreads();
    tile_load<t::columns, D>(k, p.k + offset, p.key_stride, at.length - key, p.D, p.aligned);
    tile_load<t::columns, t::part>(v, p.v + offset + first_channel, p.key_stride, at.length - key, p.D - first_channel,
                                   p.aligned);
    __syncthreads();
    float score[t::columns / 8][4] = {};
    tile_multiply<t::columns, D, true>(score, q + first_row * t::stride, t::stride, k, t::stride);

    const bool all = p.all_visible(at.token, t::rows, key, t::columns, at.length);
    float top[2] = {largest[0], largest[1]};
    tile_each<t::columns>([&](int n, int i, int row, int column) {
      const bool seen = all || p.visible(at.token + first_row + row, key + column, at.length);
      score[n][i] = seen ? score[n][i] * p.power_scale : -INFINITY;
      top[i / 2] = fmaxf(top[i / 2], score[n][i]);
    });
    float base[2], shrink[2], added[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      top[half] = quad_max(top[half]);
      base[half] = top[half] == -INFINITY ? 0 : top[half]; /* a row that has seen nothing yet */
      shrink[half] = exp2f(largest[half] - base[half]);
      largest[half] = top[half];
    }
    tile_each<t::columns>([&](int n, int i, int, int) {
      score[n][i] = exp2f(score[n][i] - base[i / 2]);
      added[i / 2] += score[n][i];
    });
    tile_store<t::columns>(weights, score);
#pragma unroll
    for (int half = 0; half < 2; half++) sum[half] = sum[half] * shrink[half] + added[half];
    tile_each<t::part>([&](int n, int i, int, int) { o[n][i] *= shrink[i / 2]; });
    __syncwarp();
    tile_multiply<t::part, t::columns, false>(o, weights, t::score_stride, v, t::part_stride);
  }

#pragma unroll
  for (int half = 0; half < 2; half++) sum[half] = quad_sum(sum[half]);
  tile_each<t::part>([&](int n, int i, int row, int column) {
    const int64_t token = at.token + first_row + row, channel = first_channel + column;
    if (token >= at.length || channel >= p.D) return;
    store(p.o + (at.start + token) * p.stride + head * p.D + channel, o[n][i] / sum[i / 2]);
    if (p.lse && channel == 0)
      p.lse[(at.start + token) * p.heads + head] = (largest[i / 2] + log2f(sum[i / 2])) / LOG2_E;
  });
}

/* ---- Backward ------------------------------------------------------------------------------------------------------- */

/* dq of a tile of queries of one head. */
template <class T, int D>
static __global__ void __launch_bounds__(tiles<T, D>::threads) find_query_gradient(const problem<T> p) {
  typedef tiles<T, D> t;
  extern __shared__ int4 shared[];
  T *q = (T *)shared, *output_gradient = q + t::rows * t::stride;
  T *k = output_gradient + t::rows * t::stride, *v = k + t::columns * t::stride;
  const tile_place at = place_of<t::rows>(p.sequences, blockIdx.x);
  if (at.token >= at.length) return;
  const int64_t head = blockIdx.y, first_channel = blockIdx.z * t::part;
  const int first_row = threadIdx.x / 32 * TILE_ROWS;
  T *score_gradient = v + t::columns * t::stride + first_row * t::score_stride;
  const int64_t row_offset = (at.start + at.token) * p.stride + head * p.D;
  tile_load<t::rows, D>(q, p.q + row_offset, p.stride, at.length - at.token, p.D, p.aligned);
  tile_load<t::rows, D>(output_gradient, p.output_gradient + row_offset, p.stride, at.length - at.token, p.D,
                        p.aligned);
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int64_t token = min(at.token + first_row + threadIdx.x % 32 / 4 + half * 8, at.length - 1);
    lse[half] = p.lse[(at.start + token) * p.heads + head] * LOG2_E;
    delta[half] = p.delta[(at.start + token) * p.heads + head];
  }

  float dq[t::part / 8][4] = {};
  const int64_t end = p.causal ? min(at.token + t::rows, at.length) : at.length;
  for (int64_t key = p.window ? max((int64_t)0, at.token - p.window + 1) : 0; key < end; key += t::columns) {
    const int64_t offset = (at.start + key) * p.key_stride + head / p.group * p.D;
    __syncthreads();
    tile_load<t::columns, D>(k, p.k + offset, p.key_stride, at.length - key, p.D, p.aligned);
    tile_load<t::columns, D>(v, p.v + offset, p.key_stride, at.length - key, p.D, p.aligned);
    __syncthreads();
    float score[t::columns / 8][4] = {}, product[t::columns / 8][4] = {};
    tile_multiply<t::columns, D, true>(score, q + first_row * t::stride, t::stride, k, t::stride);
    tile_multiply<t::columns, D, true>(product, output_gradient + first_row * t::stride, t::stride, v, t::stride);
    const bool all = p.all_visible(at.token, t::rows, key, t::columns, at.length);
    tile_each<t::columns>([&](int n, int i, int row, int column) {
      const bool seen = all || p.visible(at.token + first_row + row, key + column, at.length);
      const float weight = seen ? exp2f(score[n][i] * p.power_scale - lse[i / 2]) : 0;
      product[n][i] = weight * (product[n][i] - delta[i / 2]);
    });
    tile_store<t::columns>(score_gradient, product);
    __syncwarp();
    tile_multiply<t::part, t::columns, false>(dq, score_gradient, t::score_stride, k + first_channel, t::stride);
  }
  tile_each<t::part>([&](int n, int i, int row, int column) {
    const int64_t token = at.token + first_row + row, channel = first_channel + column;
    if (token < at.length && channel < p.D)
      put(p.dq + (at.start + token) * p.stride + head * p.D + channel, p.scale * dq[n][i], p.add_q);
  });
}

/* dk and dv of a tile of keys of one head: the shares of the query heads that read it are added in order. Scores are transposed here,
 * keys by queries. */
template <class T, int D>
static __global__ void __launch_bounds__(tiles<T, D>::threads) find_key_gradients(const problem<T> p) {
  typedef tiles<T, D> t;
  extern __shared__ int4 shared[];
  __shared__ float lse[t::columns], delta[t::columns];
  T *k = (T *)shared, *v = k + t::rows * t::stride, *q = v + t::rows * t::stride;
  T *output_gradient = q + t::columns * t::stride;
  const tile_place at = place_of<t::rows>(p.sequences, blockIdx.x);
  if (at.token >= at.length) return;
  const int64_t key_head = blockIdx.y, first_channel = blockIdx.z * t::part;
  const int first_row = threadIdx.x / 32 * TILE_ROWS;
  T *weights = output_gradient + t::columns * t::stride + first_row * t::score_stride;
  T *score_gradient = weights + t::rows * t::score_stride;
  const int64_t row_offset = (at.start + at.token) * p.key_stride + key_head * p.D;
  tile_load<t::rows, D>(k, p.k + row_offset, p.key_stride, at.length - at.token, p.D, p.aligned);
  tile_load<t::rows, D>(v, p.v + row_offset, p.key_stride, at.length - at.token, p.D, p.aligned);

  float dk[t::part / 8][4] = {}, dv[t::part / 8][4] = {};
  const int64_t first = p.causal ? at.token : 0;
  const int64_t end = p.window ? min(at.token + t::rows - 1 + p.window, at.length) : at.length;
  for (int64_t head = key_head * p.group; head < (key_head + 1) * p.group; head++)
    for (int64_t token = first; token < end; token += t::columns) {
      const int64_t offset = (at.start + token) * p.stride + head * p.D;
      __syncthreads();
      tile_load<t::columns, D>(q, p.q + offset, p.stride, at.length - token, p.D, p.aligned);
      tile_load<t::columns, D>(output_gradient, p.output_gradient + offset, p.stride, at.length - token, p.D,
                               p.aligned);
      if (threadIdx.x < t::columns) {
        const int64_t row = (at.start + min(token + threadIdx.x, at.length - 1)) * p.heads + head;
        lse[threadIdx.x] = p.lse[row] * LOG2_E;
        delta[threadIdx.x] = p.delta[row];
      }
      __syncthreads();
      float score[t::columns / 8][4] = {}, product[t::columns / 8][4] = {};
      tile_multiply<t::columns, D, true>(score, k + first_row * t::stride, t::stride, q, t::stride);
      tile_multiply<t::columns, D, true>(product, v + first_row * t::stride, t::stride, output_gradient, t::stride);
      const bool all = p.all_visible(token, t::columns, at.token, t::rows, at.length);
      tile_each<t::columns>([&](int n, int i, int row, int column) {
        const bool seen = all || p.visible(token + column, at.token + first_row + row, at.length);
        score[n][i] = seen ? exp2f(score[n][i] * p.power_scale - lse[column]) : 0;
        product[n][i] = score[n][i] * (product[n][i] - delta[column]);
      });
      tile_store<t::columns>(weights, score);
      tile_store<t::columns>(score_gradient, product);
      __syncwarp();
      tile_multiply<t::part, t::columns, false>(dv, weights, t::score_stride, output_gradient + first_channel,
                                                t::stride);
      tile_multiply<t::part, t::columns, false>(dk, score_gradient, t::score_stride, q + first_channel, t::stride);
    }
  tile_each<t::part>([&](int n, int i, int row, int column) {
    const int64_t token = at.token + first_row + row, channel = first_channel + column;
    if (token >= at.length || channel >= p.D) return;
    const int64_t to = (at.start + token) * p.key_stride + key_head * p.D + channel;
    if (p.dk) put(p.dk + to, p.scale * dk[n][i], p.add_k);
    if (p.dv) put(p.dv + to, dv[n][i], p.add_v);
  });
}

/* ---- Row ------------------------------------------------------------------------------------------------------------ */

static comba_status infer(comba_signature *s) {
  const comba_shape *q = &s->input[Q];
  if (q->size[3] > D_MAX)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: heads of %lld channels, expected at most %d on a GPU", s->op,
                      (long long)q->size[3], D_MAX);
  s->forward_workspace = 0;
  s->backward_workspace = comba_shape_elements(&s->saved_shape[LSE]);
  return COMBA_OK;
}

/* Whole sequences of equal length, and no window: what cuDNN is asked for. */
static bool plain(const void *opaque, const comba_shape *q, const comba_shape *k, bool packed, attention_shape *shape) {
  const comba_attention_attributes *attributes = (const comba_attention_attributes *)opaque;
  const int64_t length = q->size[1], D = q->size[3];
  if (packed || (attributes->window && attributes->window < length)) return false;
  *shape = {q->size[0],        length, q->size[2], k->size[2], D, attributes->scale != 0 ? (float)attributes->scale : 0,
            attributes->causal};
  if (shape->scale == 0) shape->scale = (float)(1 / sqrt((double)D));
  return true;
}

static comba_status infer_narrow(comba_signature *s) {
  attention_shape shape;
  const comba_status status = infer(s);
  if (status != COMBA_OK || !plain(s->attributes, &s->input[Q], &s->input[KEY], s->input[CU_SEQLENS].rank, &shape))
    return status;
  const int64_t forward = attention_cudnn_workspace(&shape, ATTENTION_FORWARD);
  const int64_t backward = s->differentiable ? attention_cudnn_workspace(&shape, ATTENTION_BACKWARD) : -1;
  const int64_t size = sizeof(float);
  if (forward > 0) s->forward_workspace = (forward + size - 1) / size;
  if (backward > 0) s->backward_workspace = max(s->backward_workspace, (backward + size - 1) / size);
  return COMBA_OK;
}

/* Whether cuDNN has queued the pass. */
static bool by_cudnn(const comba_call *call, attention_pass pass) {
  attention_shape shape;
  const attention_operands operands = {call->input[Q].data,
                                       call->input[KEY].data,
                                       call->input[VALUE].data,
                                       call->output_gradient[0].data,
                                       call->output[0].data,
                                       call->input_gradient[Q].data,
                                       call->input_gradient[KEY].data,
                                       call->input_gradient[VALUE].data,
                                       (float *)call->saved[LSE].data};
  return plain(call->attributes, &call->input[Q].shape, &call->input[KEY].shape, call->input[CU_SEQLENS].data,
               &shape) &&
         attention_cudnn_run(&shape, pass, &operands, call->workspace);
}

/* run(a constant): the number of channels that D is padded to */
template <class F> static void with_width(int64_t D, F run) {
  if (D <= 32)
    run(std::integral_constant<int, 32>());
  else if (D <= 64)
    run(std::integral_constant<int, 64>());
  else if (D <= 128)
    run(std::integral_constant<int, 128>());
  else
    run(std::integral_constant<int, D_MAX>());
}

/* `size`: elements of shared memory */
template <class T, int D>
static void launch(void (*kernel)(problem<T>), const problem<T> &p, int64_t heads, int size, const char *what) {
  typedef tiles<T, D> t;
  const int bytes = size * (int)sizeof(T);
  const dim3 grid((unsigned)row_tiles(p.sequences, p.batch, t::rows), (unsigned)heads, D / t::part);
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
  kernel<<<grid, t::threads, bytes, comba_cuda_stream()>>>(p);
  comba_cuda_note(cudaGetLastError(), what);
}

template <class T> static void forward(const comba_call *call) {
  if (std::is_same<T, bfloat16>() && by_cudnn(call, ATTENTION_FORWARD)) return;
  const problem<T> p = problem_of<T>(call);
  with_width(p.D, [&](auto width) {
    constexpr int D = decltype(width)::value;
    launch<T, D>(attend<T, D>, p, p.heads, tiles<T, D>::forward_size, "attention");
  });
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, CU_SEQLENS, 0)) return;
  const bool overwrites = call->input_gradient[Q].data && !call->accumulate[Q] && call->input_gradient[KEY].data &&
                          !call->accumulate[KEY] && call->input_gradient[VALUE].data && !call->accumulate[VALUE];
  if (std::is_same<T, bfloat16>() && overwrites && by_cudnn(call, ATTENTION_BACKWARD)) return;
  problem<T> p = problem_of<T>(call);
  p.dq = (T *)call->input_gradient[Q].data;
  p.dk = (T *)call->input_gradient[KEY].data;
  p.dv = (T *)call->input_gradient[VALUE].data;
  p.add_q = call->accumulate[Q];
  p.add_k = call->accumulate[KEY];
  p.add_v = call->accumulate[VALUE];
  p.delta = (float *)call->workspace;
  const int64_t rows = p.batch * p.sequences.length * p.heads;
  comba_head_products_kernel<<<(unsigned)((rows + 7) / 8), dim3(32, 8), 0, comba_cuda_stream()>>>(
      p.output_gradient, p.o, rows, p.D, p.delta);
  comba_cuda_note(cudaGetLastError(), "attention, backward");
  with_width(p.D, [&](auto width) {
    constexpr int D = decltype(width)::value, size = tiles<T, D>::backward_size;
    if (p.dq) launch<T, D>(find_query_gradient<T, D>, p, p.heads, size, "attention, backward");
    if (p.dk || p.dv) launch<T, D>(find_key_gradients<T, D>, p, p.heads / p.group, size, "attention, backward");
  });
}

COMBA_CUDA_ROW(attention, infer, 0, infer_narrow);
