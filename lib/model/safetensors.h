/* safetensors: named tensors in a file. Eight bytes of header length (little endian), a JSON object
 * {"NAME": {"dtype", "shape", "data_offsets": [begin, end]}, ...}, then the data without holes.
 *
 * A file is mapped, and its header is checked whole before anything is handed out: every offset, size, overlap and hole.
 * What is wrong with a file is COMBA_ERROR_FORMAT with its path, the tensor, the value found and the one expected. */
#ifndef COMBA_MODEL_SAFETENSORS_H
#define COMBA_MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

enum { COMBA_STORED_MAX_RANK = 8 };

/* In the order of the reference implementation, which writes the tensors of the highest type first. */
typedef enum comba_stored_type {
  COMBA_STORED_BOOL,
  COMBA_STORED_U8,
  COMBA_STORED_I8,
  COMBA_STORED_F8_E5M2,
  COMBA_STORED_F8_E4M3,
  COMBA_STORED_I16,
  COMBA_STORED_U16,
  COMBA_STORED_F16,
  COMBA_STORED_BF16,
  COMBA_STORED_I32,
  COMBA_STORED_U32,
  COMBA_STORED_F32,
  COMBA_STORED_F64,
  COMBA_STORED_I64,
  COMBA_STORED_U64,
  COMBA_STORED_TYPES,
} comba_stored_type;

/* "F32". */
const char *comba_stored_type_name(comba_stored_type type);
/* Bytes of one element. */
size_t comba_stored_type_size(comba_stored_type type);

/* ---- Reading ---- */

typedef struct comba_stored_tensor {
  const char *name;
  const char *path; /* of its file, for messages */
  comba_stored_type type;
  int rank;
  int64_t shape[COMBA_STORED_MAX_RANK]; /* outermost first; a dimension may be 0 */
  int64_t elements;
  const void *data; /* little endian, not aligned */
} comba_stored_tensor;

typedef struct comba_safetensors comba_safetensors;

/* One file. */
comba_status comba_safetensors_open(comba_safetensors **tensors, const char *path);
/* FOLDER/model.safetensors, or else the shards that FOLDER/model.safetensors.index.json lists. */
comba_status comba_safetensors_open_folder(comba_safetensors **tensors, const char *folder);
/* A file's bytes, which must outlive the handle; `source` names them in messages. */
comba_status comba_safetensors_open_memory(comba_safetensors **tensors, const void *data, size_t size,
                                           const char *source);
void comba_safetensors_free(comba_safetensors *tensors);

/* Each tensor whose name ends in `suffix`, a matrix (count, d), becomes `count` tensors (1, 1, d), its rows, whose names end in
 * those of `rows` instead. */
comba_status comba_safetensors_split(comba_safetensors *tensors, const char *suffix, const char *const *rows,
                                     int64_t count);

/* The path that was opened. */
const char *comba_safetensors_path(const comba_safetensors *tensors);
/* Tensors are in the order of their names; they belong to the handle. */
size_t comba_safetensors_count(const comba_safetensors *tensors);
const comba_stored_tensor *comba_safetensors_tensor(const comba_safetensors *tensors, size_t index);
/* NULL if there is none. */
const comba_stored_tensor *comba_safetensors_find(const comba_safetensors *tensors, const char *name);
/* The same, but one that is missing is an error. */
comba_status comba_safetensors_get(const comba_safetensors *tensors, const char *name,
                                   const comba_stored_tensor **tensor);
/* The text that `__metadata__` gives for `key` (of the first shard); NULL if there is none. */
const char *comba_safetensors_metadata(const comba_safetensors *tensors, const char *key);

/* Converts F32, F64, F16 or BF16 to `elements` floats. */
comba_status comba_stored_tensor_floats(const comba_stored_tensor *tensor, float *values);
/* Converts I32 or I64 to `elements` integers; a value that does not fit is an error. */
comba_status comba_stored_tensor_integers(const comba_stored_tensor *tensor, int32_t *values);

/* What a model wants of a file. */
typedef struct comba_wanted_tensor {
  const char *name;
  int rank;
  const int64_t *shape;
  float *data;   /* receives the values; NULL: checked and skipped (the head of a model with tied embeddings) */
  bool optional; /* may be missing; `data` then stays as it is */
} comba_wanted_tensor;

/* Fills in all wanted tensors. Ones that are missing, left over, of another shape or of no floating type are errors that name
 * them; then nothing has been written. */
comba_status comba_safetensors_load(const comba_safetensors *tensors, const comba_wanted_tensor *wanted, size_t count);

/* ---- Writing ---- */

typedef struct comba_written_tensor {
  const char *name;
  comba_stored_type type;
  int rank;
  const int64_t *shape;
  const void *data;
} comba_written_tensor;

/* Writes a file as the reference implementation lays it out, whole or not at all (core/file.h). `__metadata__` is
 * {"format": "pt"} and the pairs of `metadata`: key, value, key, value, ..., NULL; or NULL for none. */
comba_status comba_safetensors_write(const char *path, const comba_written_tensor *tensors, size_t count,
                                     const char *const *metadata);

#endif
