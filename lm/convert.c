#include "convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "lm.h"
#include "model/config.h"
#include "model/json.h"

enum { MAX_CONFIG = 16 << 20, MAX_NAME = 512, MAX_VALUE = 1024, DESCRIPTION = COMBA_JSON_DESCRIPTION_SIZE };

static const comba_convert_format *const formats[] = {&comba_convert_mamba_ssm, &comba_convert_rwkv, &comba_convert_ttt,
                                                      &comba_convert_ttt_mlp, NULL};

/* ---- Configs ---- */

/* The member PATH ("a.b": b inside of a), NULL if there is none. */
static json_t *get(const json_t *object, const char *path) {
  char name[MAX_NAME];
  const size_t length = strcspn(path, ".");
  if (length >= sizeof name) return NULL;
  memcpy(name, path, length);
  name[length] = 0;
  json_t *value = json_object_get(object, name);
  return path[length] ? get(value, path + length + 1) : value;
}

/* Takes over `value`. */
static comba_status set(json_t *object, const char *path, json_t *value) {
  char name[MAX_NAME];
  const size_t length = strcspn(path, ".");
  if (!path[length])
    return json_object_set_new(object, path, value) == 0 ? COMBA_OK : comba_fail_memory(length, "a config");
  memcpy(name, path, length);
  name[length] = 0;
  if (!json_is_object(json_object_get(object, name)) && json_object_set_new(object, name, json_object()) != 0) {
    json_decref(value);
    return comba_fail_memory(length, "a config");
  }
  return set(json_object_get(object, name), path + length + 1, value);
}

/* JSON text of a row; NULL gives NULL. */
static comba_status parse(json_t **value, const char *text) {
  comba_status status = COMBA_OK;
  char list[MAX_VALUE];
  json_t *json = NULL;
  *value = NULL;
  if (!text) return COMBA_OK;
  const int length = snprintf(list, sizeof list, "[%s]", text); /* a text is an array or an object */
  COMBA_TRY(comba_json_parse(&json, list, (size_t)length, "a row of the table of formats"));
  *value = json_incref(json_array_get(json, 0));

cleanup:
  json_decref(json);
  return status;
}

static comba_status fail_value(const char *path, const char *field, const json_t *value, const char *expected) {
  char text[DESCRIPTION];
  return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: %s is %s, expected %s", path, field,
                    value ? comba_json_describe(value, text) : "missing", expected);
}

/* One field from `from` to `to`: in our config (importing) or in the foreign one. */
static comba_status convert_field(const comba_convert_field *field, bool importing, const json_t *from, json_t *to,
                                  const char *path) {
  comba_status status = COMBA_OK;
  json_t *missing = NULL;
  COMBA_TRY(parse(&missing, field->value));
  const char *source = importing ? field->foreign : field->ours, *target = importing ? field->ours : field->foreign;
  const json_t *found = source && *source ? get(from, source) : NULL;
  if (importing && target && !*target) goto cleanup;
  if (importing && !target) {
    if (found && !json_equal(found, missing)) status = fail_value(path, source, found, field->value);
    goto cleanup;
  }
  if (!importing && source && *source && missing && (!found || json_equal(found, missing))) goto cleanup;
  const json_t *value = found ? found : missing;
  status = value ? set(to, target, json_deep_copy(value)) : fail_value(path, source, NULL, "a value");

cleanup:
  json_decref(missing);
  return status;
}

/* Exported, our config must be of the format's model_type, and where the format has no config, be as that says throughout. */
static comba_status check_own(const comba_convert_format *format, const json_t *ours, const char *path) {
  comba_status status = COMBA_OK;
  char text[DESCRIPTION];
  json_t *own = NULL, *value;
  const char *name;
  COMBA_TRY(parse(&own, format->config));
  json_object_foreach(own, name, value) {
    const json_t *found = json_object_get(ours, name);
    if (json_equal(found, value) || (!format->without_config && strcmp(name, "model_type") != 0)) continue;
    status = fail_value(path, name, found,
                        json_is_string(value) ? json_string_value(value) : comba_json_describe(value, text));
    break;
  }

cleanup:
  json_decref(own);
  return status;
}

static comba_status convert_config(const comba_convert_format *format, bool importing, const json_t *from,
                                   const comba_safetensors *tensors, const char *path, json_t **out) {
  comba_status status = COMBA_OK;
  json_t *to = NULL;
  if (importing) {
    COMBA_TRY(parse(&to, format->config));
  } else {
    COMBA_TRY(check_own(format, from, path));
    to = json_object();
  }
  for (const comba_convert_field *field = format->fields; from && field->foreign; field++)
    COMBA_TRY(convert_field(field, importing, from, to, path));
  if (importing && format->import) COMBA_TRY(format->import(to, from, tensors));
  *out = to;
  to = NULL;

cleanup:
  json_decref(to);
  return status;
}

/* ---- Tensors ---- */

/* Whether `name` is `pattern` with a number for "*"; the number's text goes to `number`. */
static bool matches(const char *pattern, const char *name, char number[MAX_NAME]) {
  const size_t before = strcspn(pattern, "*");
  number[0] = 0;
  if (!pattern[before]) return strcmp(pattern, name) == 0;
  if (strncmp(pattern, name, before) != 0) return false;
  const size_t digits = strspn(name + before, "0123456789");
  if (!digits || digits >= MAX_NAME || strcmp(name + before + digits, pattern + before + 1) != 0) return false;
  memcpy(number, name + before, digits);
  number[digits] = 0;
  return true;
}

/* `pattern` with the number in place of "*"; to be freed. */
static char *fill_in(const char *pattern, const char *number) {
  const size_t before = strcspn(pattern, "*"), size = strlen(pattern) + strlen(number) + 1;
  char *name = comba_allocate(size, "a tensor's name");
  if (name) snprintf(name, size, "%.*s%s%s", (int)before, pattern, number, pattern[before] ? pattern + before + 1 : "");
  return name;
}

/* What is written for one tensor; owns its name, its shape and, where the numbers had to move, `moved`. */
typedef struct converted {
  char *name;
  int rank;
  int64_t shape[COMBA_STORED_MAX_RANK];
  void *moved;
} converted;

static comba_status transpose(const comba_stored_tensor *tensor, converted *out) {
  if (tensor->rank != 2)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected 2", tensor->path, tensor->name,
                      tensor->rank);
  const int64_t rows = tensor->shape[0], columns = tensor->shape[1];
  const size_t size = comba_stored_type_size(tensor->type);
  out->moved = comba_allocate((size_t)tensor->elements * size, tensor->name);
  if (!out->moved) return COMBA_ERROR_MEMORY;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      memcpy((char *)out->moved + (size_t)(j * rows + i) * size,
             (const char *)tensor->data + (size_t)(i * columns + j) * size, size);
  out->shape[0] = columns;
  out->shape[1] = rows;
  return COMBA_OK;
}

static comba_status lay_out(const comba_stored_tensor *tensor, comba_convert_layout layout, bool importing,
                            converted *out) {
  out->rank = tensor->rank;
  memcpy(out->shape, tensor->shape, sizeof out->shape);
  switch (layout) {
  case COMBA_CONVERT_SAME: return COMBA_OK;
  case COMBA_CONVERT_TRANSPOSED: return transpose(tensor, out);
  case COMBA_CONVERT_LEADING_ONES:
    if (tensor->rank != (importing ? 3 : 1) || (importing && (tensor->shape[0] != 1 || tensor->shape[1] != 1)))
      return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected a vector%s", tensor->path,
                        tensor->name, tensor->rank, importing ? " of shape (1, 1, d)" : "");
    out->rank = importing ? 1 : 3;
    out->shape[0] = out->shape[1] = 1;
    out->shape[out->rank - 1] = tensor->elements;
    return COMBA_OK;
  }
  return COMBA_OK;
}

static comba_status convert_tensor(const comba_convert_format *format, bool importing,
                                   const comba_stored_tensor *tensor, converted *out) {
  char number[MAX_NAME];
  for (const comba_convert_tensor *row = format->tensors; row->foreign; row++) {
    const char *source = importing ? row->foreign : row->ours;
    if (!source || !matches(source, tensor->name, number)) continue;
    if (importing && !row->ours) return COMBA_OK;
    out->name = fill_in(importing ? row->ours : row->foreign, number);
    return out->name ? lay_out(tensor, row->layout, importing, out) : COMBA_ERROR_MEMORY;
  }
  return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' is none of %s", tensor->path, tensor->name,
                    importing ? format->name : "this model's");
}

/* A head that is stored beside the embeddings although it is tied to them must be the same. */
static comba_status check_tied(const comba_safetensors *file, const char *embeddings, const char *head) {
  const comba_stored_tensor *a = comba_safetensors_find(file, embeddings), *b = comba_safetensors_find(file, head);
  if (!a || !b ||
      (a->type == b->type && a->elements == b->elements &&
       memcmp(a->data, b->data, (size_t)a->elements * comba_stored_type_size(a->type)) == 0))
    return COMBA_OK;
  return comba_fail(COMBA_ERROR_FORMAT, "%s: tensors '%s' and '%s' differ, expected the same numbers: they are tied",
                    comba_safetensors_path(file), embeddings, head);
}

static comba_status convert_tensors(const comba_convert_format *format, bool importing, bool tied,
                                    const comba_safetensors *from, const char *path) {
  comba_status status = COMBA_OK;
  const size_t count = comba_safetensors_count(from);
  const char *head = tied ? format->tied_head : NULL;
  size_t used = 0;
  converted *made = comba_allocate((count + 1) * sizeof *made, "the list of tensors");
  comba_written_tensor *written = comba_allocate((count + 1) * sizeof *written, "the list of tensors");
  if (!made || !written) COMBA_TRY(COMBA_ERROR_MEMORY);
  if (head)
    COMBA_TRY(check_tied(from, importing ? format->tensors->foreign : format->tensors->ours,
                         importing ? head : "lm_head.weight"));
  for (size_t i = 0; i < count; i++) {
    const comba_stored_tensor *tensor = comba_safetensors_tensor(from, i);
    if (head && strcmp(tensor->name, importing ? head : "lm_head.weight") == 0) continue;
    COMBA_TRY(convert_tensor(format, importing, tensor, &made[i]));
    if (!made[i].name) continue; /* left out */
    written[used++] = (comba_written_tensor){made[i].name, tensor->type, made[i].rank, made[i].shape,
                                             made[i].moved ? made[i].moved : tensor->data};
  }
  for (size_t i = 0; head && !importing && i < used; i++) {
    if (strcmp(written[i].name, format->tensors->foreign) != 0) continue;
    written[used] = written[i];
    written[used++].name = head;
    break;
  }
  COMBA_TRY(comba_safetensors_write(path, written, used, NULL));

cleanup:
  for (size_t i = 0; made && i < count; i++) {
    free(made[i].name);
    free(made[i].moved);
  }
  free(made);
  free(written);
  return status;
}

/* ---- The command ---- */

typedef struct options {
  comba_common_options common;
  const comba_convert_format *format;
  bool importing;
  const char *input, *output;
} options;

enum { FROM = 1, TO, OUTPUT };

static const comba_convert_format *find_format(const struct argp_state *state, const char *option, const char *text) {
  const char *names[sizeof formats / sizeof *formats] = {NULL};
  for (int i = 0; formats[i]; i++) names[i] = formats[i]->name;
  return formats[comba_option_choice(state, option, text, names)];
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case FROM:
  case TO:
    if (o->format) argp_error(state, "one of --from and --to is needed");
    o->format = find_format(state, key == FROM ? "--from" : "--to", argument);
    o->importing = key == FROM;
    break;
  case OUTPUT: o->output = argument; break;
  case ARGP_KEY_ARG:
    if (o->input) return ARGP_ERR_UNKNOWN;
    o->input = argument;
    break;
  case ARGP_KEY_END:
    if (!o->format || !o->input || !o->output)
      argp_error(state, "INPUT, --output and one of --from and --to are needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

static comba_status read_config(const options *o, const char *path, json_t **config) {
  comba_status status = COMBA_OK;
  char *text = NULL;
  size_t size = 0;
  if (o->importing && o->format->without_config) return COMBA_OK;
  COMBA_TRY(comba_file_read(path, MAX_CONFIG, &text, &size));
  COMBA_TRY(comba_json_parse(config, text, size, path));

cleanup:
  free(text);
  return status;
}

static comba_status write_config(const options *o, const json_t *json, const char *path) {
  comba_status status = COMBA_OK;
  comba_config *config = NULL;
  char *text = NULL;
  if (!o->importing && o->format->without_config) return COMBA_OK;
  COMBA_TRY(comba_json_write(json, &text));
  if (o->importing) { /* with every field written out */
    COMBA_TRY(comba_config_parse(&config, text, o->input, NULL));
    free(text);
    text = NULL;
    COMBA_TRY(comba_config_write(config, &text));
  }
  COMBA_TRY(comba_file_write(path, text, strlen(text)));

cleanup:
  comba_config_free(config);
  free(text);
  return status;
}

/* Whether a folder holds a model of ours: what was written, or what is going to be converted, is loaded once. */
static comba_status check_model(const options *o, const char *directory) {
  const comba_options library = comba_common_apply(&o->common);
  comba_model *model = NULL;
  const comba_status status = lm_load(&model, directory, &library);
  comba_model_free(model);
  return status;
}

static comba_status check_output(const char *directory) {
  bool empty = false;
  const comba_status status = comba_folder_is_empty(directory, &empty);
  if (status != COMBA_OK || empty) return status;
  return comba_fail(COMBA_ERROR_ARGUMENT, "--output %s: the folder is not empty, expected a new or an empty one",
                    directory);
}

static comba_status run(const options *o) {
  comba_status status = COMBA_OK;
  comba_safetensors *tensors = NULL;
  json_t *from = NULL, *to = NULL;
  char *config_in = NULL, *config_out = NULL, *weights_out = NULL;
  bool written = false;
  COMBA_TRY(comba_path_join(&config_in, o->input, "config.json"));
  COMBA_TRY(comba_path_join(&config_out, o->output, "config.json"));
  COMBA_TRY(comba_path_join(&weights_out, o->output, "model.safetensors"));
  COMBA_TRY(check_output(o->output));
  if (!o->importing) COMBA_TRY(check_model(o, o->input));
  COMBA_TRY(read_config(o, config_in, &from));
  if (o->importing && o->format->without_config)
    COMBA_TRY(comba_safetensors_open(&tensors, o->input));
  else
    COMBA_TRY(comba_safetensors_open_folder(&tensors, o->input));
  COMBA_TRY(convert_config(o->format, o->importing, from, tensors, config_in, &to));
  COMBA_TRY(comba_folder_make(o->output));
  written = true;
  COMBA_TRY(write_config(o, to, config_out));
  const bool tied = json_is_true(json_object_get(o->importing ? to : from, "tie_word_embeddings"));
  COMBA_TRY(convert_tensors(o->format, o->importing, tied, tensors, weights_out));
  if (o->importing) COMBA_TRY(check_model(o, o->output));
  if (!o->common.quiet) printf("%s\n", o->output);

cleanup:
  if (status != COMBA_OK && written) { /* nothing half done stays */
    unlink(config_out);
    unlink(weights_out);
  }
  comba_safetensors_free(tensors);
  json_decref(from);
  json_decref(to);
  free(config_in);
  free(config_out);
  free(weights_out);
  return status;
}

static const struct argp_option list[] = {
    {"from", FROM, "FORMAT", 0,
     "Read INPUT in the layout of another project and write a model folder: mamba_ssm, rwkv, ttt, "
     "ttt_mlp",
     0},
    {"to", TO, "FORMAT", 0, "Read INPUT, a model folder, and write it in that layout", 0},
    {"output", OUTPUT, "DIR", 0, "New or empty folder for config.json and model.safetensors", 0},
    {0}};
static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
const struct argp lm_convert_argp = {
    list,
    parse_option,
    "INPUT",
    "Convert models from and to the layouts of other projects (docs/formats.md). Numbers keep "
    "their type and their bits; the model of ours is loaded once to see that it is whole.",
    children,
    0,
    0};

int lm_convert(int argc, char **argv) {
  options o = {.common = comba_common_defaults()};
  comba_options_parse(&lm_convert_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
