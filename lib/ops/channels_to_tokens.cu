/* y (B, H W, C)[b, n, c] = x (B, C, H, W)[b, c, n];  dx[b, c, n] = dy[b, n, c]. A block moves a square through shared memory, so that
 * reads and writes both run along rows. */
#include "core/cuda_kernel.h"

enum { X };
enum { TILE = 32, LINES = 8 }; /* side of a square; lines of it in flight */

template <class T>
static __global__ void transpose_kernel(const T *from, int64_t rows, int64_t columns, int64_t tile_rows,
                                        int64_t tile_columns, bool accumulate, T *to) {
  __shared__ T tile[TILE][TILE + 1]; /* one column more: neighbours of a column lie in different banks */
  const int64_t image = blockIdx.x / (tile_rows * tile_columns) * rows * columns;
  const int64_t top = blockIdx.x / tile_columns % tile_rows * TILE, left = blockIdx.x % tile_columns * TILE;
  for (int line = threadIdx.y; line < TILE; line += LINES)
    if (top + line < rows && left + threadIdx.x < columns)
      tile[line][threadIdx.x] = from[image + (top + line) * columns + left + threadIdx.x];
  __syncthreads();
  for (int line = threadIdx.y; line < TILE; line += LINES)
    if (left + line < columns && top + threadIdx.x < rows)
      put(to + image + (left + line) * rows + top + threadIdx.x, (float)tile[threadIdx.x][line], accumulate);
}

/* to (batch, columns, rows) = or += from (batch, rows, columns) with the last two swapped */
template <class T>
static void transpose(const T *from, int64_t batch, int64_t rows, int64_t columns, bool accumulate, T *to) {
  const int64_t tile_rows = (rows + TILE - 1) / TILE, tile_columns = (columns + TILE - 1) / TILE;
  transpose_kernel<<<(unsigned)(batch * tile_rows * tile_columns), dim3(TILE, LINES), 0, comba_cuda_stream()>>>(
      from, rows, columns, tile_rows, tile_columns, accumulate, to);
  comba_cuda_note(cudaGetLastError(), "channels_to_tokens");
}

template <class T> static void forward(const comba_call *call) {
  const int64_t *x = call->input[X].shape.size;
  transpose((const T *)call->input[X].data, x[0], x[1], x[2] * x[3], false, (T *)call->output[0].data);
}

template <class T> static void backward(const comba_call *call) {
  if (comba_cuda_gradient_absent<T>(call, 1, 0) || !call->input_gradient[X].data) return;
  const int64_t *x = call->input[X].shape.size;
  transpose((const T *)call->output_gradient[0].data, x[0], x[2] * x[3], x[1], call->accumulate[X],
            (T *)call->input_gradient[X].data);
}

COMBA_CUDA_ROW(channels_to_tokens);
