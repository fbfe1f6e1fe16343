/* From stored tensors to float32 and int32, and all of a model's tensors at once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json.h"
#include "model/safetensors.h"

enum { DESCRIPTION = COMBA_JSON_DESCRIPTION_SIZE, NAMES_SHOWN = 5, NAMES_SIZE = NAMES_SHOWN * DESCRIPTION + 64 };

static float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float float_of_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 0) { /* zero and subnormal: mantissa * 2^-24 */
    const float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112; /* biases 15 and 127 */
  return float_of_bits(sign | wide << 23 | mantissa << 13);
}

static bool is_floating(comba_stored_type type) {
  return type == COMBA_STORED_F32 || type == COMBA_STORED_F64 || type == COMBA_STORED_F16 || type == COMBA_STORED_BF16;
}

static comba_status fail_type(const comba_stored_tensor *tensor, const char *expected) {
  char name[DESCRIPTION];
  return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has dtype %s, expected %s", tensor->path,
                    comba_json_printable(tensor->name, name), comba_stored_type_name(tensor->type), expected);
}

static const char floating_types[] = "F32, F16, BF16 or F64";

comba_status comba_stored_tensor_floats(const comba_stored_tensor *tensor, float *values) {
  const char *data = tensor->data;
  const int64_t count = tensor->elements;
  switch (tensor->type) {
  case COMBA_STORED_F32:
    if (count > 0) memcpy(values, data, (size_t)count * sizeof *values);
    return COMBA_OK;
  case COMBA_STORED_F64:
    for (int64_t i = 0; i < count; i++) {
      double value;
      memcpy(&value, data + i * 8, sizeof value);
      values[i] = (float)value;
    }
    return COMBA_OK;
  case COMBA_STORED_F16:
  case COMBA_STORED_BF16:
    for (int64_t i = 0; i < count; i++) {
      uint16_t bits;
      memcpy(&bits, data + i * 2, sizeof bits);
      values[i] = tensor->type == COMBA_STORED_F16 ? float_of_half(bits) : float_of_bits((uint32_t)bits << 16);
    }
    return COMBA_OK;
  default: return fail_type(tensor, floating_types);
  }
}

comba_status comba_stored_tensor_integers(const comba_stored_tensor *tensor, int32_t *values) {
  const char *data = tensor->data;
  char name[DESCRIPTION];
  if (tensor->type == COMBA_STORED_I32) {
    if (tensor->elements > 0) memcpy(values, data, (size_t)tensor->elements * sizeof *values);
    return COMBA_OK;
  }
  if (tensor->type != COMBA_STORED_I64) return fail_type(tensor, "I32 or I64");
  for (int64_t i = 0; i < tensor->elements; i++) {
    int64_t value;
    memcpy(&value, data + i * 8, sizeof value);
    if (value < INT32_MIN || value > INT32_MAX)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s': element %jd is %jd, expected a number of 32 bits",
                        tensor->path, comba_json_printable(tensor->name, name), (intmax_t)i, (intmax_t)value);
    values[i] = (int32_t)value;
  }
  return COMBA_OK;
}

/* ---- A model's tensors ---- */

static const char *shape_text(const int64_t *shape, int rank, char text[DESCRIPTION]) {
  size_t used = (size_t)snprintf(text, DESCRIPTION, "(");
  for (int i = 0; i < rank && used < DESCRIPTION; i++)
    used += (size_t)snprintf(text + used, DESCRIPTION - used, "%s%jd", i ? ", " : "", (intmax_t)shape[i]);
  if (used < DESCRIPTION) snprintf(text + used, DESCRIPTION - used, ")");
  return text;
}

static comba_status check_wanted(const comba_wanted_tensor *wanted, const comba_stored_tensor *found) {
  char name[DESCRIPTION], shape[DESCRIPTION], expected[DESCRIPTION];
  bool same = wanted->rank == found->rank;
  for (int i = 0; same && i < wanted->rank; i++) same = wanted->shape[i] == found->shape[i];
  if (!same)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has shape %s, expected %s by the config", found->path,
                      comba_json_printable(found->name, name), shape_text(found->shape, found->rank, shape),
                      shape_text(wanted->shape, wanted->rank, expected));
  return is_floating(found->type) ? COMBA_OK : fail_type(found, floating_types);
}

/* Adds the count-th name to a list that shows the first few. */
static void list_name(char list[NAMES_SIZE], size_t count, const char *name) {
  char printable[DESCRIPTION];
  const size_t used = strlen(list);
  if (count < NAMES_SHOWN)
    snprintf(list + used, NAMES_SIZE - used, "%s%s", count ? ", " : "", comba_json_printable(name, printable));
  else if (count == NAMES_SHOWN)
    snprintf(list + used, NAMES_SIZE - used, ", ...");
}

comba_status comba_safetensors_load(const comba_safetensors *tensors, const comba_wanted_tensor *wanted, size_t count) {
  comba_status status = COMBA_OK;
  char missing[NAMES_SIZE] = "", extra[NAMES_SIZE] = "";
  size_t missing_count = 0, extra_count = 0;
  const size_t stored = comba_safetensors_count(tensors);
  const comba_stored_tensor **found = calloc(count + 1, sizeof *found), *first = NULL;
  bool *used = calloc(stored + 1, sizeof *used);
  if (!found || !used) {
    status = comba_fail_memory(count * sizeof *found, "the list of tensors");
    goto cleanup;
  }
  if (stored > 0) first = comba_safetensors_tensor(tensors, 0);
  for (size_t i = 0; i < count; i++) {
    found[i] = comba_safetensors_find(tensors, wanted[i].name);
    if (found[i])
      used[found[i] - first] = true;
    else if (!wanted[i].optional)
      list_name(missing, missing_count++, wanted[i].name);
  }
  for (size_t i = 0; i < stored; i++)
    if (!used[i]) list_name(extra, extra_count++, first[i].name);
  if (missing_count > 0 || extra_count > 0) {
    status = comba_fail(COMBA_ERROR_FORMAT,
                        "%s does not fit the config: %zu of %zu tensors missing%s%s; %zu not expected%s%s",
                        comba_safetensors_path(tensors), missing_count, count, missing_count ? ": " : "", missing,
                        extra_count, extra_count ? ": " : "", extra);
    goto cleanup;
  }
  for (size_t i = 0; i < count; i++)
    if (found[i]) COMBA_TRY(check_wanted(&wanted[i], found[i]));
  for (size_t i = 0; i < count; i++)
    if (found[i] && wanted[i].data) COMBA_TRY(comba_stored_tensor_floats(found[i], wanted[i].data));

cleanup:
  free(found);
  free(used);
  return status;
}
