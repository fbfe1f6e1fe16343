#include "model/safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/json.h"
#include "model/pickle.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read and written as they lie in memory");

enum {
  LENGTH_SIZE = 8, /* of the header's length */
  MAX_HEADER = 100000000,
  MAX_INDEX = 100000000,
  MAX_NAME = 512,
  MAX_SHARDS = 4096,
  DESCRIPTION = COMBA_JSON_DESCRIPTION_SIZE,
};

static const char metadata_key[] = "__metadata__";

static const struct {
  const char *name;
  size_t size;
} types[COMBA_STORED_TYPES] = {
    [COMBA_STORED_BOOL] = {"BOOL", 1},       [COMBA_STORED_U8] = {"U8", 1},           [COMBA_STORED_I8] = {"I8", 1},
    [COMBA_STORED_F8_E5M2] = {"F8_E5M2", 1}, [COMBA_STORED_F8_E4M3] = {"F8_E4M3", 1}, [COMBA_STORED_I16] = {"I16", 2},
    [COMBA_STORED_U16] = {"U16", 2},         [COMBA_STORED_F16] = {"F16", 2},         [COMBA_STORED_BF16] = {"BF16", 2},
    [COMBA_STORED_I32] = {"I32", 4},         [COMBA_STORED_U32] = {"U32", 4},         [COMBA_STORED_F32] = {"F32", 4},
    [COMBA_STORED_F64] = {"F64", 8},         [COMBA_STORED_I64] = {"I64", 8},         [COMBA_STORED_U64] = {"U64", 8},
};

typedef struct shard {
  char *path;
  const void *data;
  size_t size;
  bool mapped;    /* by comba_file_map */
  json_t *header; /* holds the tensors' names */
} shard;

struct comba_safetensors {
  char *path;
  shard *shards;
  size_t shard_count;
  comba_stored_tensor *tensors; /* sorted by name */
  size_t count;
  char **names; /* of tensors that were made by comba_safetensors_split */
  size_t name_count;
};

const char *comba_stored_type_name(comba_stored_type type) {
  return types[type].name;
}

size_t comba_stored_type_size(comba_stored_type type) {
  return types[type].size;
}

/* ---- One tensor's entry in the header ---- */

static comba_status parse_type(const json_t *json, comba_stored_type *type) {
  char text[DESCRIPTION];
  const char *name = json_string_value(json);
  for (int i = 0; name && i < COMBA_STORED_TYPES; i++) {
    if (strcmp(name, types[i].name) != 0) continue;
    *type = (comba_stored_type)i;
    return COMBA_OK;
  }
  return comba_fail(COMBA_ERROR_FORMAT, "dtype is %s, expected one such as \"F32\", \"F16\", \"BF16\" or \"I32\"",
                    json ? comba_json_describe(json, text) : "missing");
}

static comba_status parse_shape(const json_t *json, comba_stored_tensor *tensor) {
  char text[DESCRIPTION];
  if (!json_is_array(json) || json_array_size(json) > COMBA_STORED_MAX_RANK)
    return comba_fail(COMBA_ERROR_FORMAT, "shape is %s, expected an array of at most %d sizes",
                      json ? comba_json_describe(json, text) : "missing", COMBA_STORED_MAX_RANK);
  tensor->rank = (int)json_array_size(json);
  tensor->elements = 1;
  for (int i = 0; i < tensor->rank; i++) {
    const json_t *size = json_array_get(json, (size_t)i);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
      return comba_fail(COMBA_ERROR_FORMAT, "shape[%d] is %s, expected an integer of 0 or more", i,
                        comba_json_describe(size, text));
    tensor->shape[i] = json_integer_value(size);
    if (__builtin_mul_overflow(tensor->elements, tensor->shape[i], &tensor->elements))
      return comba_fail(COMBA_ERROR_FORMAT, "shape[%d] is %s: the number of elements does not fit into 64 bits", i,
                        comba_json_describe(size, text));
  }
  return COMBA_OK;
}

static comba_status parse_offsets(const json_t *json, size_t data_size, uint64_t offsets[2]) {
  char text[DESCRIPTION];
  if (!json_is_array(json) || json_array_size(json) != 2)
    return comba_fail(COMBA_ERROR_FORMAT, "data_offsets is %s, expected an array of 2 integers",
                      json ? comba_json_describe(json, text) : "missing");
  for (size_t i = 0; i < 2; i++) {
    const json_t *offset = json_array_get(json, i);
    if (!json_is_integer(offset) || json_integer_value(offset) < 0 || (uint64_t)json_integer_value(offset) > data_size)
      return comba_fail(COMBA_ERROR_FORMAT,
                        "data_offsets[%zu] is %s, expected an integer from 0 to %zu, the data's size", i,
                        comba_json_describe(offset, text), data_size);
    offsets[i] = (uint64_t)json_integer_value(offset);
  }
  return COMBA_OK;
}

static comba_status parse_tensor(const json_t *json, const char *data, size_t data_size, comba_stored_tensor *tensor) {
  comba_status status = COMBA_OK;
  char text[DESCRIPTION];
  uint64_t offsets[2], bytes;
  const size_t length = strlen(tensor->name);
  if (length == 0 || length > MAX_NAME) {
    status = comba_fail(COMBA_ERROR_FORMAT, "a name of %zu bytes, expected 1 to %d", length, MAX_NAME);
    goto cleanup;
  }
  for (const char *c = tensor->name; *c; c++) {
    if ((unsigned char)*c >= ' ' && *c != 127) continue;
    status = comba_fail(COMBA_ERROR_FORMAT, "a name with the control character %d, expected text", *c);
    goto cleanup;
  }
  if (!json_is_object(json)) {
    status = comba_fail(COMBA_ERROR_FORMAT, "is %s, expected an object with dtype, shape and data_offsets",
                        comba_json_describe(json, text));
    goto cleanup;
  }
  COMBA_TRY(parse_type(json_object_get(json, "dtype"), &tensor->type));
  COMBA_TRY(parse_shape(json_object_get(json, "shape"), tensor));
  COMBA_TRY(parse_offsets(json_object_get(json, "data_offsets"), data_size, offsets));
  if (__builtin_mul_overflow((uint64_t)tensor->elements, types[tensor->type].size, &bytes) || offsets[1] < offsets[0] ||
      offsets[1] - offsets[0] != bytes) {
    status = comba_fail(COMBA_ERROR_FORMAT, "data_offsets are %ju to %ju, expected %jd elements of %zu bytes (%s)",
                        (uintmax_t)offsets[0], (uintmax_t)offsets[1], (intmax_t)tensor->elements,
                        types[tensor->type].size, types[tensor->type].name);
    goto cleanup;
  }
  tensor->data = data + offsets[0];

cleanup:
  if (status != COMBA_OK) comba_fail_in(status, "tensor '%s'", comba_json_printable(tensor->name, text));
  return status;
}

static comba_status check_metadata(const json_t *metadata) {
  char text[DESCRIPTION], printable[DESCRIPTION];
  const char *key;
  json_t *value;
  if (!json_is_object(metadata))
    return comba_fail(COMBA_ERROR_FORMAT, "%s is %s, expected an object", metadata_key,
                      comba_json_describe(metadata, text));
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value))
      return comba_fail(COMBA_ERROR_FORMAT, "%s: '%s' is %s, expected a string", metadata_key,
                        comba_json_printable(key, printable), comba_json_describe(value, text));
  }
  return COMBA_OK;
}

/* ---- One file ---- */

static size_t stored_size(const comba_stored_tensor *tensor) {
  return (size_t)tensor->elements * types[tensor->type].size;
}

/* Empty tensors go before the one that begins where they lie. */
static int compare_places(const void *left, const void *right) {
  const comba_stored_tensor *a = left, *b = right;
  if (a->data != b->data) return (const char *)a->data < (const char *)b->data ? -1 : 1;
  const size_t a_size = stored_size(a), b_size = stored_size(b);
  return (a_size > b_size) - (a_size < b_size);
}

static int compare_names(const void *left, const void *right) {
  return strcmp(((const comba_stored_tensor *)left)->name, ((const comba_stored_tensor *)right)->name);
}

/* The tensors must cover the data without holes or overlaps; leaves them in the order of their places. */
static comba_status check_cover(comba_stored_tensor *tensors, size_t count, const char *data, size_t data_size) {
  char text[DESCRIPTION], other[DESCRIPTION];
  size_t end = 0;
  qsort(tensors, count, sizeof *tensors, compare_places);
  for (size_t i = 0; i < count; i++) {
    const size_t begin = (size_t)((const char *)tensors[i].data - data);
    if (begin < end)
      return comba_fail(COMBA_ERROR_FORMAT, "tensor '%s' begins at byte %zu, inside of tensor '%s', which ends at %zu",
                        comba_json_printable(tensors[i].name, text), begin,
                        comba_json_printable(tensors[i - 1].name, other), end);
    if (begin > end)
      return comba_fail(COMBA_ERROR_FORMAT, "tensor '%s' begins at byte %zu, expected %zu: a hole in the data",
                        comba_json_printable(tensors[i].name, text), begin, end);
    end = begin + stored_size(&tensors[i]);
  }
  if (end != data_size)
    return comba_fail(COMBA_ERROR_FORMAT, "%zu bytes of data, expected %zu by the tensors in the header", data_size,
                      end);
  return COMBA_OK;
}

/* A file that does not begin with the length of a header inside of it. */
static comba_status fail_header(const shard *file, uint64_t header_size) {
  const size_t room = file->size - LENGTH_SIZE;
  if (comba_pickle_is(file->data, file->size)) return comba_pickle_fail(file->path);
  return comba_fail(COMBA_ERROR_FORMAT,
                    "%s: a header of %ju bytes, expected at most %zu (no safetensors file, or cut?)", file->path,
                    (uintmax_t)header_size, room < MAX_HEADER ? room : (size_t)MAX_HEADER);
}

/* Adds the tensors of a shard, whose path, data and size are set, to the list. */
static comba_status parse_shard(comba_safetensors *all, shard *file) {
  comba_status status = COMBA_OK;
  uint64_t header_size;
  if (file->size < LENGTH_SIZE) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%zu bytes, expected a header's length of 8 bytes", file->size);
    goto cleanup;
  }
  memcpy(&header_size, file->data, LENGTH_SIZE);
  if (header_size > MAX_HEADER || header_size > file->size - LENGTH_SIZE) return fail_header(file, header_size);
  const char *text = (const char *)file->data + LENGTH_SIZE, *data = text + header_size;
  const size_t data_size = file->size - LENGTH_SIZE - header_size;
  COMBA_TRY(comba_json_parse(&file->header, text, header_size, "header"));
  if (!json_is_object(file->header)) {
    char description[DESCRIPTION];
    status = comba_fail(COMBA_ERROR_FORMAT, "header is %s, expected an object",
                        comba_json_describe(file->header, description));
    goto cleanup;
  }

  const size_t added = json_object_size(file->header), room = (all->count + added + 1) * sizeof *all->tensors;
  comba_stored_tensor *grown = realloc(all->tensors, room);
  if (!grown) {
    status = comba_fail_memory(room, "the list of tensors");
    goto cleanup;
  }
  all->tensors = grown;
  const size_t first = all->count;
  const char *name;
  json_t *entry;
  json_object_foreach(file->header, name, entry) {
    if (strcmp(name, metadata_key) == 0) {
      COMBA_TRY(check_metadata(entry));
      continue;
    }
    comba_stored_tensor *tensor = &all->tensors[all->count];
    *tensor = (comba_stored_tensor){.name = name, .path = file->path};
    COMBA_TRY(parse_tensor(entry, data, data_size, tensor));
    all->count++;
  }
  status = check_cover(all->tensors + first, all->count - first, data, data_size);

cleanup:
  if (status != COMBA_OK) comba_fail_in(status, "%s", file->path);
  return status;
}

static comba_status create(comba_safetensors **tensors, const char *path, size_t shards) {
  comba_safetensors *made = calloc(1, sizeof *made);
  if (made) made->shards = calloc(shards, sizeof *made->shards);
  if (made) made->path = strdup(path);
  if (!made || !made->shards || !made->path) {
    comba_safetensors_free(made);
    return comba_fail_memory(shards * sizeof *made->shards, path);
  }
  *tensors = made;
  return COMBA_OK;
}

static comba_status add_shard(comba_safetensors *tensors, const char *path, const void *data, size_t size) {
  shard *file = &tensors->shards[tensors->shard_count];
  comba_status status = COMBA_OK;
  file->path = strdup(path);
  if (!file->path) return comba_fail_memory(strlen(path), "a path");
  tensors->shard_count++;
  file->data = data;
  file->size = size;
  if (!data) {
    status = comba_file_map(path, &file->data, &file->size);
    file->mapped = status == COMBA_OK;
  }
  return status == COMBA_OK ? parse_shard(tensors, file) : status;
}

static comba_status open_one(comba_safetensors **tensors, const char *path, const void *data, size_t size) {
  comba_status status = COMBA_OK;
  comba_safetensors *made = NULL;
  COMBA_TRY(create(&made, path, 1));
  COMBA_TRY(add_shard(made, path, data, size));
  qsort(made->tensors, made->count, sizeof *made->tensors, compare_names);
  *tensors = made;
  made = NULL;

cleanup:
  comba_safetensors_free(made);
  return status;
}

comba_status comba_safetensors_open(comba_safetensors **tensors, const char *path) {
  return open_one(tensors, path, NULL, 0);
}

comba_status comba_safetensors_open_memory(comba_safetensors **tensors, const void *data, size_t size,
                                           const char *source) {
  return open_one(tensors, source, data, size);
}

/* ---- A folder of shards ---- */

/* Reads the index; `weight_map` (a part of `index`) gives each tensor's shard, `names` has the shards as keys. */
static comba_status read_index(const char *path, json_t **index, json_t **weight_map, json_t **names) {
  comba_status status = COMBA_OK;
  char *text = NULL, value[DESCRIPTION], printable[DESCRIPTION];
  size_t size;
  const char *tensor;
  json_t *file;
  COMBA_TRY(comba_file_read(path, MAX_INDEX, &text, &size));
  COMBA_TRY(comba_json_parse(index, text, size, path));
  *weight_map = json_object_get(*index, "weight_map");
  if (!json_is_object(*weight_map)) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: weight_map is %s, expected an object", path,
                        *weight_map ? comba_json_describe(*weight_map, value) : "missing");
    goto cleanup;
  }
  *names = json_object();
  json_object_foreach(*weight_map, tensor, file) {
    const char *name = json_string_value(file);
    if (!name || !comba_path_is_name(name)) {
      status = comba_fail(COMBA_ERROR_FORMAT,
                          "%s: weight_map: '%s' is in %s, expected the name of a file in the same folder", path,
                          comba_json_printable(tensor, printable), comba_json_describe(file, value));
      goto cleanup;
    }
    if (json_object_set_new(*names, name, json_null()) != 0) {
      status = comba_fail_memory(strlen(name), "the list of shards");
      goto cleanup;
    }
    if (json_object_size(*names) > MAX_SHARDS) {
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: more than %d shards", path, MAX_SHARDS);
      goto cleanup;
    }
  }

cleanup:
  free(text);
  return status;
}

/* Every tensor must be where the index says, and nothing else may be there. */
static comba_status check_index(const comba_safetensors *tensors, const json_t *weight_map) {
  char printable[DESCRIPTION], text[DESCRIPTION];
  const char *name;
  json_t *file;
  for (size_t i = 0; i < tensors->count; i++) {
    const comba_stored_tensor *tensor = &tensors->tensors[i];
    const char *expected = json_string_value(json_object_get(weight_map, tensor->name));
    comba_json_printable(tensor->name, printable);
    if (!expected)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' is not in the weight_map of %s", tensor->path, printable,
                        tensors->path);
    if (strcmp(strrchr(tensor->path, '/') + 1, expected) != 0)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s', expected in %s by the weight_map of %s", tensor->path,
                        printable, comba_json_printable(expected, text), tensors->path);
  }
  json_object_foreach((json_t *)weight_map, name, file) {
    if (!comba_safetensors_find(tensors, name))
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' is not in %s", tensors->path,
                        comba_json_printable(name, printable), comba_json_describe(file, text));
  }
  return COMBA_OK;
}

static comba_status open_shards(comba_safetensors **tensors, const char *folder, const char *index_path) {
  comba_status status = COMBA_OK;
  comba_safetensors *made = NULL;
  json_t *index = NULL, *weight_map = NULL, *names = NULL, *unused;
  const char *name;
  COMBA_TRY(read_index(index_path, &index, &weight_map, &names));
  COMBA_TRY(create(&made, index_path, json_object_size(names) + 1));
  json_object_foreach(names, name, unused) {
    char *path = NULL;
    COMBA_TRY(comba_path_join(&path, folder[0] ? folder : ".", name));
    status = add_shard(made, path, NULL, 0);
    free(path);
    if (status != COMBA_OK) goto cleanup;
  }
  if (made->count > 0) qsort(made->tensors, made->count, sizeof *made->tensors, compare_names);
  COMBA_TRY(check_index(made, weight_map));
  *tensors = made;
  made = NULL;

cleanup:
  comba_safetensors_free(made);
  json_decref(names);
  json_decref(index);
  return status;
}

comba_status comba_safetensors_open_folder(comba_safetensors **tensors, const char *folder) {
  comba_status status = COMBA_OK;
  char *single = NULL, *index = NULL;
  COMBA_TRY(comba_path_join(&single, folder, "model.safetensors"));
  COMBA_TRY(comba_path_join(&index, folder, "model.safetensors.index.json"));
  if (comba_path_exists(single))
    status = comba_safetensors_open(tensors, single);
  else if (comba_path_exists(index))
    status = open_shards(tensors, folder, index);
  else if ((status = comba_pickle_fail_folder(folder)) == COMBA_OK)
    status =
        comba_fail(COMBA_ERROR_IO, "%s: neither model.safetensors nor model.safetensors.index.json is there", folder);

cleanup:
  free(single);
  free(index);
  return status;
}

void comba_safetensors_free(comba_safetensors *tensors) {
  if (!tensors) return;
  for (size_t i = 0; i < tensors->shard_count; i++) {
    shard *file = &tensors->shards[i];
    if (file->mapped) comba_file_unmap(file->data, file->size);
    json_decref(file->header);
    free(file->path);
  }
  for (size_t i = 0; i < tensors->name_count; i++) free(tensors->names[i]);
  free(tensors->names);
  free(tensors->shards);
  free(tensors->tensors);
  free(tensors->path);
  free(tensors);
}

/* ---- Tensors that hold others ---- */

static bool ends_in(const char *name, const char *suffix) {
  const size_t length = strlen(name), end = strlen(suffix);
  return length >= end && strcmp(name + length - end, suffix) == 0;
}

/* Row `row` of a matrix, called as it is but for the end. */
static comba_status take_row(comba_safetensors *all, const comba_stored_tensor *matrix, size_t end,
                             const char *row_name, int64_t row, comba_stored_tensor *out) {
  const size_t start = strlen(matrix->name) - end, size = start + strlen(row_name) + 1;
  char *name = malloc(size);
  if (!name) return comba_fail_memory(size, "a tensor's name");
  all->names[all->name_count++] = name;
  snprintf(name, size, "%.*s%s", (int)start, matrix->name, row_name);
  const int64_t d = matrix->shape[1];
  *out = *matrix;
  out->name = name;
  out->rank = 3;
  out->shape[0] = out->shape[1] = 1;
  out->shape[2] = out->elements = d;
  out->data = (const char *)matrix->data + (size_t)(row * d) * types[matrix->type].size;
  return COMBA_OK;
}

comba_status comba_safetensors_split(comba_safetensors *all, const char *suffix, const char *const *rows,
                                     int64_t count) {
  const size_t stored = all->count;
  size_t found = 0;
  for (size_t i = 0; i < stored; i++) found += ends_in(all->tensors[i].name, suffix);
  if (!found) return COMBA_OK;
  char **names = realloc(all->names, (all->name_count + found * (size_t)count) * sizeof *names);
  if (names) all->names = names;
  comba_stored_tensor *tensors = realloc(all->tensors, (stored + found * (size_t)count) * sizeof *tensors);
  if (tensors) all->tensors = tensors;
  if (!names || !tensors) return comba_fail_memory(found * sizeof *tensors, "the list of tensors");
  for (size_t i = 0; i < stored; i++) {
    const comba_stored_tensor matrix = tensors[i];
    if (!ends_in(matrix.name, suffix)) continue;
    if (matrix.rank != 2 || matrix.shape[0] != count)
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected a matrix of %lld rows", matrix.path,
                        matrix.name, matrix.rank, (long long)count);
    for (int64_t row = 0; row < count; row++) {
      comba_stored_tensor *made = row ? &tensors[all->count] : &tensors[i];
      const comba_status status = take_row(all, &matrix, strlen(suffix), rows[row], row, made);
      if (status != COMBA_OK) return status;
      all->count += row > 0;
    }
  }
  qsort(all->tensors, all->count, sizeof *all->tensors, compare_names);
  return COMBA_OK;
}

/* ---- Access ---- */

const char *comba_safetensors_path(const comba_safetensors *tensors) {
  return tensors->path;
}

size_t comba_safetensors_count(const comba_safetensors *tensors) {
  return tensors->count;
}

const comba_stored_tensor *comba_safetensors_tensor(const comba_safetensors *tensors, size_t index) {
  return &tensors->tensors[index];
}

const comba_stored_tensor *comba_safetensors_find(const comba_safetensors *tensors, const char *name) {
  const comba_stored_tensor wanted = {.name = name};
  if (tensors->count == 0) return NULL;
  return bsearch(&wanted, tensors->tensors, tensors->count, sizeof wanted, compare_names);
}

comba_status comba_safetensors_get(const comba_safetensors *tensors, const char *name,
                                   const comba_stored_tensor **tensor) {
  const comba_stored_tensor *found = comba_safetensors_find(tensors, name);
  if (!found) return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' is missing", tensors->path, name);
  *tensor = found;
  return COMBA_OK;
}

const char *comba_safetensors_metadata(const comba_safetensors *tensors, const char *key) {
  if (tensors->shard_count == 0) return NULL;
  return json_string_value(json_object_get(json_object_get(tensors->shards[0].header, metadata_key), key));
}
