#define _GNU_SOURCE /* open_memstream */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/json.h"
#include "model/safetensors.h"

enum { HEADER_ALIGNMENT = 8 };

static int compare_names(const void *left, const void *right) {
  const comba_written_tensor *const *a = left, *const *b = right;
  return strcmp((*a)->name, (*b)->name);
}

/* Types of more bytes first keeps every tensor aligned to its type. */
static int compare_places(const void *left, const void *right) {
  const comba_written_tensor *const *a = left, *const *b = right;
  if ((*a)->type != (*b)->type) return (*a)->type > (*b)->type ? -1 : 1;
  return compare_names(left, right);
}

static comba_status tensor_size(const comba_written_tensor *tensor, size_t *size) {
  *size = comba_stored_type_size(tensor->type);
  if (tensor->rank < 0 || tensor->rank > COMBA_STORED_MAX_RANK)
    return comba_fail(COMBA_ERROR_ARGUMENT, "tensor '%s' has rank %d, expected 0 to %d", tensor->name, tensor->rank,
                      COMBA_STORED_MAX_RANK);
  for (int i = 0; i < tensor->rank; i++) {
    if (tensor->shape[i] < 0 || __builtin_mul_overflow(*size, (size_t)tensor->shape[i], size) || *size > PTRDIFF_MAX)
      return comba_fail(COMBA_ERROR_ARGUMENT,
                        "tensor '%s': shape[%d] is %" PRId64 ", expected one that fits into memory", tensor->name, i,
                        tensor->shape[i]);
  }
  return COMBA_OK;
}

/* The header's text; `order` gives the tensors as they are laid out. */
static comba_status write_header(FILE *stream, const comba_written_tensor *const *order, size_t count,
                                 const char *const *metadata) {
  comba_status status = COMBA_OK;
  size_t begin = 0;
  fputs("{\"__metadata__\":{\"format\":\"pt\"", stream);
  for (size_t i = 0; metadata && metadata[i]; i++) {
    fputc(i % 2 ? ':' : ',', stream);
    if (!comba_json_write_string(stream, metadata[i]))
      return comba_fail(COMBA_ERROR_ARGUMENT, "metadata %zu is not UTF-8 text", i);
  }
  fputc('}', stream);
  for (size_t i = 0; i < count; i++) {
    size_t size;
    COMBA_TRY(tensor_size(order[i], &size));
    fputc(',', stream);
    if (!comba_json_write_string(stream, order[i]->name))
      return comba_fail(COMBA_ERROR_ARGUMENT, "the name of tensor %zu is not UTF-8 text", i);
    fprintf(stream, ":{\"dtype\":\"%s\",\"shape\":[", comba_stored_type_name(order[i]->type));
    for (int k = 0; k < order[i]->rank; k++) fprintf(stream, "%s%" PRId64, k ? "," : "", order[i]->shape[k]);
    fprintf(stream, "],\"data_offsets\":[%zu,%zu]}", begin, begin + size);
    begin += size;
  }
  fputc('}', stream);

cleanup:
  return status;
}

comba_status comba_safetensors_write(const char *path, const comba_written_tensor *tensors, size_t count,
                                     const char *const *metadata) {
  comba_status status = COMBA_OK;
  comba_file_writer *writer = NULL;
  char *header = NULL;
  size_t header_size = 0;
  FILE *stream = NULL;
  const comba_written_tensor **order = calloc(count + 1, sizeof *order);
  if (!order) return comba_fail_memory(count * sizeof *order, path);
  for (size_t i = 0; i < count; i++) order[i] = &tensors[i];
  qsort(order, count, sizeof *order, compare_names);
  for (size_t i = 1; i < count; i++) {
    if (strcmp(order[i - 1]->name, order[i]->name) != 0) continue;
    status = comba_fail(COMBA_ERROR_ARGUMENT, "%s: two tensors are named '%s'", path, order[i]->name);
    goto cleanup;
  }
  qsort(order, count, sizeof *order, compare_places);

  stream = open_memstream(&header, &header_size);
  if (!stream) {
    status = comba_fail_memory(0, "a header");
    goto cleanup;
  }
  status = write_header(stream, order, count, metadata);
  const long used = ftell(stream);
  if (used >= 0) fprintf(stream, "%*s", (int)(-used & (HEADER_ALIGNMENT - 1)), "");
  const bool complete = !ferror(stream) && used >= 0;
  if ((fclose(stream) != 0 || !complete) && status == COMBA_OK) status = comba_fail_memory(header_size, "a header");
  if (status != COMBA_OK) {
    comba_fail_in(status, "%s", path);
    goto cleanup;
  }

  COMBA_TRY(comba_file_writer_create(&writer, path));
  const uint64_t length = header_size; /* written as it lies in memory, little endian like the tensors */
  COMBA_TRY(comba_file_writer_write(writer, &length, sizeof length));
  COMBA_TRY(comba_file_writer_write(writer, header, header_size));
  for (size_t i = 0; i < count; i++) {
    size_t size;
    COMBA_TRY(tensor_size(order[i], &size));
    COMBA_TRY(comba_file_writer_write(writer, order[i]->data, size));
  }
  COMBA_TRY(comba_file_writer_commit(&writer));

cleanup:
  comba_file_writer_free(writer);
  free(header);
  free(order);
  return status;
}
