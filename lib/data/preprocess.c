#include "data/preprocess.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

enum { MAX_SIZE = 1 << 14, MAX_FILE = 1 << 20, BILINEAR = 2 };

void comba_preprocess_default(comba_preprocess *preprocess) {
  *preprocess = (comba_preprocess){.size = 224,
                                   .channels = 3,
                                   .fit = COMBA_FIT_CROP,
                                   .normalize = true,
                                   .mean = {0.5, 0.5, 0.5},
                                   .std = {0.5, 0.5, 0.5}};
}

/* ---- Reading ---- */

static comba_status fail_field(const char *name, const char *field, const json_t *value, const char *expected) {
  char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
  const comba_status status =
      comba_fail(COMBA_ERROR_FORMAT, "%s: field '%s' is %.80s, expected %s", name, field, text ? text : "?", expected);
  free(text);
  return status;
}

static comba_status read_flag(const json_t *root, const char *name, const char *field, bool *flag) {
  const json_t *value = json_object_get(root, field);
  if (!value) return COMBA_OK;
  if (!json_is_boolean(value)) return fail_field(name, field, value, "true or false");
  *flag = json_is_true(value);
  return COMBA_OK;
}

static comba_status read_size(const json_t *root, const char *name, int64_t *size) {
  const json_t *value = json_object_get(root, "size"), *side = value;
  if (!value) return COMBA_OK;
  if (json_is_object(value)) {
    const json_t *height = json_object_get(value, "height"), *width = json_object_get(value, "width");
    side = height ? height : json_object_get(value, "shortest_edge");
    if (height && !json_equal(height, width)) return fail_field(name, "size", value, "equal height and width");
  }
  if (!json_is_integer(side) || json_integer_value(side) < 1 || json_integer_value(side) > MAX_SIZE)
    return fail_field(name, "size", value, "a number of pixels from 1 to 16384");
  *size = json_integer_value(side);
  return COMBA_OK;
}

/* One number a channel; `channels` of 0 takes the list's length. */
static comba_status read_channels(const json_t *root, const char *name, const char *field, int *channels,
                                  double *values) {
  const json_t *list = json_object_get(root, field);
  if (!list) return COMBA_OK;
  const size_t count = json_array_size(list);
  if (!json_is_array(list) || (count != 1 && count != 3))
    return fail_field(name, field, list, "a list of 1 or 3 numbers");
  if (*channels && count != (size_t)*channels) return fail_field(name, field, list, "one number a channel");
  *channels = (int)count;
  for (size_t c = 0; c < count; c++) {
    const json_t *value = json_array_get(list, c);
    if (!json_is_number(value) || !isfinite(json_number_value(value))) return fail_field(name, field, list, "numbers");
    values[c] = json_number_value(value);
  }
  return COMBA_OK;
}

static comba_status read_fit(const json_t *root, const char *name, comba_fit *fit) {
  const json_t *value = json_object_get(root, "fit");
  *fit = COMBA_FIT_STRETCH;
  if (!value) return COMBA_OK;
  if (!json_is_string(value) || comba_fit_parse(fit, json_string_value(value)) != COMBA_OK)
    return fail_field(name, "fit", value, "crop, pad or stretch");
  return COMBA_OK;
}

/* Fields that transformers has and that have one possible value here. */
static comba_status check_fixed(const json_t *root, const char *name) {
  comba_status status = COMBA_OK;
  bool resize = true, rescale = true;
  COMBA_TRY(read_flag(root, name, "do_resize", &resize));
  COMBA_TRY(read_flag(root, name, "do_rescale", &rescale));
  if (!resize) return fail_field(name, "do_resize", json_object_get(root, "do_resize"), "true");
  if (!rescale) return fail_field(name, "do_rescale", json_object_get(root, "do_rescale"), "true");
  const json_t *factor = json_object_get(root, "rescale_factor"), *filter = json_object_get(root, "resample");
  if (factor && !(fabs(json_number_value(factor) - 1.0 / 255) < 1e-9))
    return fail_field(name, "rescale_factor", factor, "1/255");
  if (filter && !(json_is_integer(filter) && json_integer_value(filter) == BILINEAR))
    return fail_field(name, "resample", filter, "2 (bilinear)");
cleanup:
  return status;
}

comba_status comba_preprocess_parse(comba_preprocess *preprocess, const char *text, size_t size, const char *name) {
  comba_status status = COMBA_OK;
  comba_preprocess p;
  json_error_t error;
  int channels = 0;
  comba_preprocess_default(&p);
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
  if (!root) return comba_fail(COMBA_ERROR_FORMAT, "%s: line %d: %s", name, error.line, error.text);
  if (!json_is_object(root)) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: expected a JSON object", name);
    goto cleanup;
  }
  const json_t *count = json_object_get(root, "num_channels");
  if (count && json_integer_value(count) != 1 && json_integer_value(count) != 3) {
    status = fail_field(name, "num_channels", count, "1 or 3");
    goto cleanup;
  }
  channels = (int)json_integer_value(count); /* 0 where it is absent */
  COMBA_TRY(check_fixed(root, name));
  COMBA_TRY(read_size(root, name, &p.size));
  COMBA_TRY(read_fit(root, name, &p.fit));
  COMBA_TRY(read_flag(root, name, "do_normalize", &p.normalize));
  COMBA_TRY(read_channels(root, name, "image_mean", &channels, p.mean));
  COMBA_TRY(read_channels(root, name, "image_std", &channels, p.std));
  if (channels) p.channels = channels;
  for (int c = 0; c < p.channels; c++)
    if (!(p.std[c] > 0)) {
      status = fail_field(name, "image_std", json_object_get(root, "image_std"), "numbers above 0");
      goto cleanup;
    }
  *preprocess = p;
cleanup:
  json_decref(root);
  return status;
}

comba_status comba_preprocess_read(comba_preprocess *preprocess, const char *path) {
  char *text = NULL;
  size_t size = 0;
  comba_status status = comba_file_read(path, MAX_FILE, &text, &size);
  if (status == COMBA_OK) status = comba_preprocess_parse(preprocess, text, size, path);
  free(text);
  return status;
}

/* ---- Writing ---- */

static json_t *channel_list(const double *values, int channels) {
  json_t *list = json_array();
  for (int c = 0; c < channels; c++) json_array_append_new(list, json_real(values[c]));
  return list;
}

comba_status comba_preprocess_write(const comba_preprocess *p, const char *path) {
  comba_status status = COMBA_OK;
  char *text = NULL, *line = NULL;
  json_t *root =
      json_pack("{s:b, s:b, s:b, s:s, s:o, s:s, s:o, s:i, s:i, s:f, s:{s:I, s:I}}", "do_normalize", p->normalize,
                "do_rescale", 1, "do_resize", 1, "fit", comba_fit_name(p->fit), "image_mean",
                channel_list(p->mean, p->channels), "image_processor_type", "ViTImageProcessor", "image_std",
                channel_list(p->std, p->channels), "num_channels", p->channels, "resample", BILINEAR, "rescale_factor",
                1.0 / 255, "size", "height", (json_int_t)p->size, "width", (json_int_t)p->size);
  text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
  const size_t length = text ? strlen(text) : 0;
  line = text ? realloc(text, length + 2) : NULL;
  if (!line) {
    status = comba_fail_memory(length, path);
    goto cleanup;
  }
  text = line;
  memcpy(text + length, "\n", 2);
  COMBA_TRY(comba_file_write(path, text, length + 1));
cleanup:
  free(text);
  json_decref(root);
  return status;
}

/* ---- Use ---- */

comba_normalization comba_preprocess_normalization(const comba_preprocess *preprocess) {
  static const double zero[3] = {0}, one[3] = {1, 1, 1};
  return preprocess->normalize ? comba_normalization_create(preprocess->mean, preprocess->std)
                               : comba_normalization_create(zero, one);
}

comba_status comba_preprocess_picture(const comba_preprocess *preprocess, const char *path, float *out) {
  comba_status status = COMBA_OK;
  comba_image image = {0};
  const int64_t size = preprocess->size;
  const comba_normalization normalization = comba_preprocess_normalization(preprocess);
  uint8_t *pixels = malloc((size_t)(size * size * preprocess->channels));
  if (!pixels) return comba_fail_memory((size_t)(size * size * preprocess->channels), "a picture");
  COMBA_TRY(comba_image_read(&image, path, preprocess->channels, 2 * size));
  COMBA_TRY(comba_image_fit(pixels, &image, size, preprocess->fit));
  comba_normalization_apply(out, pixels, size, preprocess->channels, &normalization);
cleanup:
  comba_image_free(&image);
  free(pixels);
  return status;
}

comba_status comba_picture_read(const char *directory, const char *path, float *pixels) {
  comba_preprocess preprocess;
  char *config = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_path_join(&config, directory, "preprocessor_config.json"));
  COMBA_TRY(comba_preprocess_read(&preprocess, config));
  COMBA_TRY(comba_preprocess_picture(&preprocess, path, pixels));
cleanup:
  free(config);
  return status;
}
