/* y (B,C,S,S) = scale pixel + shift of pictures in bytes (B,S,S,C), cropped and mirrored; a warp a row of y */
#include "ops/cuda_rows.h"

enum { PICTURES, CROPS };
enum { CROP_X, CROP_Y, MIRRORED, CROP_NUMBERS };

template <class T> static void forward(const comba_call *call) {
  const comba_prepare_pictures_attributes a = *(const comba_prepare_pictures_attributes *)call->attributes;
  const int64_t S = a.side, C = a.channels;
  const uint8_t *pictures = (const uint8_t *)call->input[PICTURES].data;
  const int32_t *crops = (const int32_t *)call->input[CROPS].data;
  T *out = (T *)call->output[0].data;
  comba_each_row(call->input[CROPS].shape.size[0] * C * S, [=] __device__(int64_t row, int64_t lane) {
    const int64_t b = row / (C * S), c = row / S % C, v = row % S;
    const int32_t *crop = crops + b * CROP_NUMBERS;
    const int64_t y = v + crop[CROP_Y];
    const bool inside = y >= 0 && y < S;
    const uint8_t *from = pictures + (b * S + y) * S * C + c; /* read only inside */
    for (int64_t u = lane; u < S; u += 32) {
      const int64_t x = (crop[MIRRORED] ? S - 1 - u : u) + crop[CROP_X];
      store(out + row * S + u, inside && x >= 0 && x < S ? from[x * C] * a.scale[c] + a.shift[c] : 0);
    }
  });
}

COMBA_CUDA_ROW_FORWARD(prepare_pictures);
