/* How pictures become a model's input: preprocessor_config.json, with transformers' field names where it has them.
 *
 * Read: size (a number, {"height", "width"} alike, or {"shortest_edge"}), image_mean, image_std, do_resize, do_rescale,
 * rescale_factor, do_normalize, resample, and ours: fit, num_channels. What this library cannot do (another filter, another factor,
 * no resizing) is refused. A missing fit is "stretch", what transformers' ViT does; other missing fields have the values of
 * comba_preprocess_default. Unknown fields are ignored. */
#ifndef COMBA_DATA_PREPROCESS_H
#define COMBA_DATA_PREPROCESS_H

#include "data/augment.h"
#include "data/resize.h"

typedef struct comba_preprocess {
  int64_t size; /* side of the square, in pixels */
  int channels; /* 1 or 3 */
  comba_fit fit;
  bool normalize;         /* otherwise values stay in [0, 1] */
  double mean[3], std[3]; /* of pixels in [0, 1]; `channels` of them */
} comba_preprocess;

/* size 224, three channels, crop, normalised with mean and std 0.5. */
void comba_preprocess_default(comba_preprocess *preprocess);
comba_status comba_preprocess_read(comba_preprocess *preprocess, const char *path);
/* The same from text in memory; `name` is for messages. */
comba_status comba_preprocess_parse(comba_preprocess *preprocess, const char *text, size_t size, const char *name);
comba_status comba_preprocess_write(const comba_preprocess *preprocess, const char *path);

/* What augmentation and loader need of it. */
comba_normalization comba_preprocess_normalization(const comba_preprocess *preprocess);
/* One picture file to the model's input, out (channels, size, size). */
comba_status comba_preprocess_picture(const comba_preprocess *preprocess, const char *path, float *out);

#endif
