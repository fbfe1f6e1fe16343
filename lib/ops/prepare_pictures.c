/* y (B,C,S,S)[b, c, v, u] = scale[c] pixel[b, v + crop_y, w + crop_x, c] + shift[c],  w = u, or S-1-u in a mirrored picture;
 * 0 where that lies beside the picture. Pictures are bytes (B,S,S,C), four in an index; crops (B,3): x, y, mirrored */
#include <string.h>

#include "ops/extent.h"
#include "ops/ops.h"

enum { PICTURES, CROPS };
enum { CROP_X, CROP_Y, MIRRORED, CROP_NUMBERS };

static comba_status infer(comba_signature *s) {
  const comba_prepare_pictures_attributes *a = s->attributes;
  const comba_shape *crops = &s->input[CROPS];
  if (a->channels < 1 || a->channels > 3)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: %lld channels, expected 1 to 3", s->op, (long long)a->channels);
  if (!comba_extent_fits(crops, 2) || crops->size[1] != CROP_NUMBERS) return comba_fail_shape(s, CROPS, "(B, 3)");
  s->outputs = 1;
  s->output[0] = COMBA_SHAPE(crops->size[0], a->channels, a->side, a->side);
  if (!comba_extent_fits(&s->output[0], 4)) return comba_fail_extent(s, &s->output[0]);
  const comba_shape words = COMBA_SHAPE((comba_shape_elements(&s->output[0]) + 3) / 4);
  if (!comba_shape_equal(&s->input[PICTURES], &words)) return comba_fail_shape(s, PICTURES, "a quarter of (B S S C)");
  return COMBA_OK;
}

static void forward(const comba_call *call) {
  const comba_prepare_pictures_attributes *a = call->attributes;
  const int64_t batch = call->input[CROPS].shape.size[0], C = a->channels, S = a->side;
  const uint8_t *pictures = call->input[PICTURES].data;
  real *out = call->output[0].data;
#pragma omp parallel for collapse(2)
  for (int64_t b = 0; b < batch; b++)
    for (int64_t v = 0; v < S; v++) {
      const int32_t *crop = (const int32_t *)call->input[CROPS].data + b * CROP_NUMBERS;
      const int64_t x = crop[CROP_X], y = v + crop[CROP_Y];
      /* the columns of the crop that lie on the picture */
      const int64_t first = x < 0 ? (-x < S ? -x : S) : 0, last = x > 0 ? (x < S ? S - x : 0) : S;
      for (int64_t c = 0; c < C; c++) {
        const real scale = (real)a->scale[c], shift = (real)a->shift[c];
        real *to = out + ((b * C + c) * S + v) * S;
        memset(to, 0, (size_t)S * sizeof *to);
        if (y < 0 || y >= S) continue;
        const uint8_t *from = pictures + (b * S + y) * S * C + c;
        for (int64_t w = first; w < last; w++)
          to[crop[MIRRORED] ? S - 1 - w : w] = (real)from[(w + x) * C] * scale + shift;
      }
    }
}

#define BYTES(count)                                                                                                   \
  { COMBA_SHAPE((count)), .fill = COMBA_FILL_INDEX, .low = INT32_MIN, .high = INT32_MAX }
#define CROPPED(batch)                                                                                                 \
  { COMBA_SHAPE(batch, CROP_NUMBERS), .fill = COMBA_FILL_VALUES, .values = crops }

/* whole, moved, mirrored, mirrored and moved, far beside the picture, just beside it */
static const int32_t crops[] = {0, 0, 0, 2, -1, 0, 0, 0, 1, -3, 2, 1, INT32_MAX, 0, 0, 0, INT32_MIN, 1, -7, 0, 0};
static const comba_prepare_pictures_attributes color = {3, 7, {0.017f, 0.0175f, 0.0174f}, {-2.1f, -2.0f, -1.8f}};
static const comba_prepare_pictures_attributes grey = {1, 5, {0.01f}, {-1}};
static const comba_prepare_pictures_attributes wide = {3, 224, {0.017f, 0.0175f, 0.0174f}, {-2.1f, -2.0f, -1.8f}};

static const comba_case cases[] = {
    {.name = "colour, odd number of bytes",
     .attributes = &color,
     .input = {BYTES((7 * 7 * 7 * 3 + 3) / 4), CROPPED(7)}},
    {.name = "grey", .attributes = &grey, .input = {BYTES((4 * 5 * 5 + 3) / 4), CROPPED(4)}},
    {.name = "128 pictures of 224 x 224",
     .attributes = &wide,
     .benchmark = true,
     .input = {BYTES(128 * 224 * 224 * 3 / 4),
               {COMBA_SHAPE(128, CROP_NUMBERS), .fill = COMBA_FILL_INDEX, .low = 0, .high = 2}}},
    {0}};

const comba_op COMBA_VARIANT(comba_op_prepare_pictures) = {
    .name = "prepare_pictures",
    .formula = "y = scale crop(pictures) + shift",
    .inputs = 2,
    .outputs = 1,
    .input_class = {COMBA_INDEX, COMBA_INDEX},
    .output_class = {COMBA_ACTIVATION},
    .attributes_size = sizeof(comba_prepare_pictures_attributes),
    .infer = infer,
    .forward = forward,
    .cases = cases,
};
