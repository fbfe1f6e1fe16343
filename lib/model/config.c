#define _GNU_SOURCE /* open_memstream */
#include "model/config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "mixers/mixer.h"
#include "model/json.h"
#include "model/schema.h"

enum { MAX_FILE = 16 << 20, MAX_WHERE = 32, WARNINGS_SHOWN = 20, DESCRIPTION = COMBA_JSON_DESCRIPTION_SIZE };

static const char vision_suffix[] = "_vision";

static bool is_vision(const char *model_type) {
  const size_t length = strlen(model_type), suffix = sizeof vision_suffix - 1;
  return length > suffix && strcmp(model_type + length - suffix, vision_suffix) == 0;
}

static const comba_field *kind_fields(const comba_config *config) {
  return config->kind == COMBA_KIND_VISION ? comba_schema_vision : comba_schema_language;
}

/* ---- The kind and the mixer ---- */

static comba_status fail_model_type(const json_t *value) {
  char text[DESCRIPTION], known[1024] = "";
  size_t used = 0;
  for (const comba_mixer_row *const *row = comba_mixer_table; *row && used < sizeof known; row++)
    used += (size_t)snprintf(known + used, sizeof known - used, "%s\"%s\"", used ? ", " : "", (*row)->model_type);
  return comba_fail(COMBA_ERROR_ARGUMENT, "model_type is %s, expected one of %s, for vision with \"%s\" at the end",
                    value ? comba_json_describe(value, text) : "missing", known, vision_suffix);
}

static void set_defaults(comba_config *config, const comba_default *entry) {
  for (; entry && entry->name; entry++) {
    const comba_field *own = comba_fields_find(config->mixer->fields, entry->name);
    const comba_field *common = comba_fields_find(comba_schema_common, entry->name);
    if (own)
      comba_field_store(own, config->mixer_config, entry->value);
    else
      comba_field_store(common ? common : comba_fields_find(kind_fields(config), entry->name), config, entry->value);
  }
}

/* An empty config of that model_type with all defaults. */
static comba_status create(comba_config **config, const json_t *model_type) {
  comba_status status = COMBA_OK;
  const char *name = json_string_value(model_type);
  const comba_mixer_row *mixer = name ? comba_mixer_find(name) : NULL;
  comba_config *made = NULL;
  if (!mixer || strlen(name) >= sizeof made->model_type) return fail_model_type(model_type);
  made = calloc(1, sizeof *made);
  if (!made) return comba_fail_memory(sizeof *made, "a config");
  made->mixer_config = calloc(1, mixer->config_size ? mixer->config_size : 1);
  made->json = json_object();
  if (!made->mixer_config || !made->json) {
    status = comba_fail_memory(mixer->config_size, "a config");
    goto cleanup;
  }
  strcpy(made->model_type, name);
  made->mixer = mixer;
  made->kind = is_vision(name) ? COMBA_KIND_VISION : COMBA_KIND_LANGUAGE;
  memset(made->hybrid_of_layer, -1, sizeof made->hybrid_of_layer);
  comba_fields_default(comba_schema_common, made);
  comba_fields_default(kind_fields(made), made);
  comba_fields_default(mixer->fields, made->mixer_config);
  const comba_mixer_defaults *defaults = comba_schema_mixer_defaults(mixer->model_type);
  made->num_hidden_layers = (int64_t)defaults->num_hidden_layers;
  made->norm_eps = defaults->norm_eps;
  if (made->kind == COMBA_KIND_LANGUAGE) {
    made->hidden_ratio = (int64_t)defaults->hidden_ratio;
    made->pad_token_id = (int64_t)defaults->pad_token_id;
    set_defaults(made, mixer->language_defaults);
  } else {
    set_defaults(made, mixer->vision_defaults);
  }
  *config = made;
  made = NULL;

cleanup:
  comba_config_free(made);
  return status;
}

/* ---- Softmax attention in some layers ---- */

static comba_status parse_layers(comba_config *config, int index, const json_t *layers, const char *where) {
  char text[DESCRIPTION];
  if (!json_is_array(layers))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%slayers is %s, expected an array of layer numbers", where,
                      layers ? comba_json_describe(layers, text) : "missing");
  for (size_t i = 0; i < json_array_size(layers); i++) {
    const json_t *layer = json_array_get(layers, i);
    const json_int_t number = json_integer_value(layer);
    if (!json_is_integer(layer) || number < 0 || number >= config->num_hidden_layers)
      return comba_fail(COMBA_ERROR_ARGUMENT, "%slayers[%zu] is %s, expected a layer from 0 to %" PRId64, where, i,
                        comba_json_describe(layer, text), config->num_hidden_layers - 1);
    if (config->hybrid_of_layer[number] >= 0)
      return comba_fail(COMBA_ERROR_ARGUMENT, "%slayers[%zu] is %" JSON_INTEGER_FORMAT ", expected each layer once",
                        where, i, number);
    config->hybrid_of_layer[number] = (int16_t)index;
  }
  return COMBA_OK;
}

static comba_status parse_hybrid(comba_config *config, int index, const json_t *json, const char *where) {
  comba_status status = COMBA_OK;
  comba_hybrid *hybrid = &config->hybrid[index];
  COMBA_TRY(comba_fields_parse(comba_schema_hybrid, hybrid, json, where));
  if (config->kind == COMBA_KIND_VISION) COMBA_TRY(comba_fields_parse(comba_schema_hybrid_vision, hybrid, json, where));
  if (hybrid->num_heads == 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%snum_heads is missing, expected a divisor of hidden_size", where);
  if (hybrid->num_kv_heads == 0) hybrid->num_kv_heads = hybrid->num_heads;
  if (config->hidden_size % hybrid->num_heads != 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%snum_heads is %" PRId64 ", expected a divisor of hidden_size %" PRId64,
                      where, hybrid->num_heads, config->hidden_size);
  if (hybrid->use_rope && config->hidden_size / hybrid->num_heads % 2 != 0)
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "%snum_heads is %" PRId64 ": heads of %" PRId64 ", expected an even size for rotary positions",
                      where, hybrid->num_heads, config->hidden_size / hybrid->num_heads);
  if (hybrid->num_heads % hybrid->num_kv_heads != 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%snum_kv_heads is %" PRId64 ", expected a divisor of num_heads %" PRId64,
                      where, hybrid->num_kv_heads, hybrid->num_heads);
  status = parse_layers(config, index, json_object_get(json, "layers"), where);

cleanup:
  return status;
}

/* Object number `index` of `attn`, which is one object or a list of them. */
static json_t *hybrid_json(const json_t *attn, size_t index) {
  return json_is_array(attn) ? json_array_get(attn, index) : index == 0 ? (json_t *)attn : NULL;
}

static comba_status parse_attention(comba_config *config, const json_t *attn) {
  char text[DESCRIPTION], where[MAX_WHERE];
  const bool is_list = json_is_array(attn);
  const size_t count = is_list ? json_array_size(attn) : 1;
  if (!attn || json_is_null(attn)) return COMBA_OK;
  if ((!is_list && !json_is_object(attn)) || count > COMBA_MAX_LAYERS)
    return comba_fail(COMBA_ERROR_ARGUMENT, "attn is %s, expected null, an object, or an array of at most %d objects",
                      comba_json_describe(attn, text), COMBA_MAX_LAYERS);
  if (count == 0) return COMBA_OK;
  config->hybrid = calloc(count, sizeof *config->hybrid);
  if (!config->hybrid) return comba_fail_memory(count * sizeof *config->hybrid, "attn");
  config->hybrids = (int)count;
  for (size_t i = 0; i < count; i++) {
    const json_t *json = hybrid_json(attn, i);
    if (!json_is_object(json))
      return comba_fail(COMBA_ERROR_ARGUMENT, "attn[%zu] is %s, expected an object", i,
                        comba_json_describe(json, text));
    if (is_list)
      snprintf(where, sizeof where, "attn[%zu].", i);
    else
      snprintf(where, sizeof where, "attn.");
    comba_fields_default(comba_schema_hybrid, &config->hybrid[i]);
    comba_fields_default(comba_schema_hybrid_vision, &config->hybrid[i]);
    const comba_status status = parse_hybrid(config, (int)i, json, where);
    if (status != COMBA_OK) return status;
  }
  return COMBA_OK;
}

/* ---- What is not in a schema ---- */

static comba_status check_fixed(const comba_config *config) {
  for (const comba_fixed_field *field = comba_schema_fixed; field->name; field++) {
    char text[DESCRIPTION], padded[DESCRIPTION + 2];
    const json_t *value = json_object_get(config->json, field->name);
    if (!value || !(config->kind == COMBA_KIND_VISION ? field->vision : field->language)) continue;
    if (comba_fields_find(config->mixer->fields, field->name)) continue; /* the mixer's own meaning of it */
    snprintf(padded, sizeof padded, " %s ", comba_json_describe(value, text));
    if (!strstr(field->allowed, padded))
      return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s is %s, which is not supported; expected one of:%s", field->name,
                        text, field->allowed);
  }
  return COMBA_OK;
}

static comba_status check_class_names(const comba_config *config) {
  char text[DESCRIPTION], printable[DESCRIPTION];
  const json_t *names = json_object_get(config->json, "id2label");
  const char *key;
  json_t *name;
  if (!names || json_is_null(names)) return COMBA_OK;
  if (!json_is_object(names))
    return comba_fail(COMBA_ERROR_ARGUMENT, "id2label is %s, expected an object of class names",
                      comba_json_describe(names, text));
  json_object_foreach((json_t *)names, key, name) {
    if (!json_is_string(name))
      return comba_fail(COMBA_ERROR_ARGUMENT, "id2label: '%s' is %s, expected a class name",
                        comba_json_printable(key, printable), comba_json_describe(name, text));
  }
  return COMBA_OK;
}

static comba_status check_layers(const comba_config *config) {
  for (const comba_field *field = config->mixer->fields; field->name; field++) {
    const json_t *value = json_object_get(config->json, field->name);
    if (field->type != COMBA_FIELD_LAYERS || !json_is_array(value)) continue;
    if (json_array_size(value) != (size_t)config->num_hidden_layers)
      return comba_fail(COMBA_ERROR_ARGUMENT, "%s has %zu values, expected one for each of the %" PRId64 " layers",
                        field->name, json_array_size(value), config->num_hidden_layers);
  }
  return COMBA_OK;
}

static comba_status check_sizes(const comba_config *config) {
  if (config->kind == COMBA_KIND_LANGUAGE) {
    if (config->pad_token_id >= config->vocab_size)
      return comba_fail(COMBA_ERROR_ARGUMENT, "pad_token_id is %" PRId64 ", expected less than vocab_size %" PRId64,
                        config->pad_token_id, config->vocab_size);
    return COMBA_OK;
  }
  if (config->mixer->front_taps && config->mixer->front_taps(config->mixer_config))
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "pre_conv is true, expected false in a vision model, whose blocks differ");
  if (config->tokenizer_convolutions == 0 && config->image_size % config->patch_size != 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "patch_size is %" PRId64 ", expected a divisor of image_size %" PRId64,
                      config->patch_size, config->image_size);
  return check_class_names(config);
}

/* ---- Unknown fields ---- */

static void warn(FILE *stream, const char *source, const char *prefix, const char *name, size_t *count) {
  char printable[DESCRIPTION];
  if (*count == 0) fprintf(stream, "%s: unknown fields, kept but without effect: ", source);
  if (*count < WARNINGS_SHOWN)
    fprintf(stream, "%s%s%s", *count ? ", " : "", prefix, comba_json_printable(name, printable));
  else if (*count == WARNINGS_SHOWN)
    fputs(", ...", stream);
  ++*count;
}

static bool is_known(const comba_config *config, const char *name) {
  return comba_fields_find(comba_schema_common, name) || comba_fields_find(kind_fields(config), name) ||
         comba_fields_find(config->mixer->fields, name) || strcmp(name, "attn") == 0 || comba_schema_is_inert(name);
}

static bool is_known_in_hybrid(const comba_config *config, const char *name) {
  return comba_fields_find(comba_schema_hybrid, name) || strcmp(name, "layers") == 0 ||
         (config->kind == COMBA_KIND_VISION && comba_fields_find(comba_schema_hybrid_vision, name));
}

/* `warnings`: a line, or NULL where every field is known. */
static comba_status list_unknown(const comba_config *config, const char *source, char **warnings) {
  const json_t *attn = json_object_get(config->json, "attn");
  char *text = NULL;
  size_t size = 0, count = 0;
  const char *key;
  json_t *value;
  FILE *stream = open_memstream(&text, &size);
  if (!stream) return comba_fail_memory(0, "the warnings");
  json_object_foreach(config->json, key, value) if (!is_known(config, key)) warn(stream, source, "", key, &count);
  for (int i = 0; i < config->hybrids; i++) {
    json_object_foreach(hybrid_json(attn, (size_t)i), key, value) {
      if (!is_known_in_hybrid(config, key)) warn(stream, source, "attn.", key, &count);
    }
  }
  const bool complete = !ferror(stream);
  if (fclose(stream) != 0 || !complete) {
    free(text);
    return comba_fail_memory(size, "the warnings");
  }
  if (count == 0) {
    free(text);
    text = NULL;
  }
  *warnings = text;
  return COMBA_OK;
}

/* ---- Parsing ---- */

static comba_status parse(comba_config **config, const char *text, size_t size, const char *source, char **warnings) {
  comba_status status = COMBA_OK;
  char description[DESCRIPTION];
  comba_config *made = NULL;
  json_t *json = NULL;
  status = comba_json_parse(&json, text, size, source);
  /* All that is wrong with a config has one code. */
  if (status != COMBA_OK) return status == COMBA_ERROR_FORMAT ? COMBA_ERROR_ARGUMENT : status;
  if (!json_is_object(json)) {
    status = comba_fail(COMBA_ERROR_ARGUMENT, "%s, expected an object with the fields of a config",
                        comba_json_describe(json, description));
    goto cleanup;
  }
  COMBA_TRY(create(&made, json_object_get(json, "model_type")));
  json_decref(made->json);
  made->json = json_incref(json);
  COMBA_TRY(comba_fields_parse(comba_schema_common, made, json, ""));
  COMBA_TRY(comba_fields_parse(kind_fields(made), made, json, ""));
  COMBA_TRY(comba_fields_parse(made->mixer->fields, made->mixer_config, json, ""));
  COMBA_TRY(check_fixed(made));
  COMBA_TRY(check_layers(made));
  COMBA_TRY(check_sizes(made));
  COMBA_TRY(parse_attention(made, json_object_get(json, "attn")));
  if (made->mixer->check) COMBA_TRY(made->mixer->check(made->mixer_config, made->hidden_size));
  if (warnings) COMBA_TRY(list_unknown(made, source, warnings));
  *config = made;
  made = NULL;

cleanup:
  if (status != COMBA_OK) comba_fail_in(status, "%s", source);
  comba_config_free(made);
  json_decref(json);
  return status;
}

comba_status comba_config_parse(comba_config **config, const char *text, const char *source, char **warnings) {
  return parse(config, text, strlen(text), source, warnings);
}

comba_status comba_config_read(comba_config **config, const char *path, char **warnings) {
  comba_status status = COMBA_OK;
  char *text = NULL;
  size_t size = 0;
  COMBA_TRY(comba_file_read(path, MAX_FILE, &text, &size));
  COMBA_TRY(parse(config, text, size, path, warnings));

cleanup:
  free(text);
  return status;
}

void comba_config_free(comba_config *config) {
  if (!config) return;
  json_decref(config->json);
  free(config->mixer_config);
  free(config->hybrid);
  free(config);
}

/* ---- Writing ---- */

static comba_status set(json_t *object, const char *name, json_t *value) {
  return json_object_set_new(object, name, value) == 0 ? COMBA_OK : comba_fail_memory(sizeof value, name);
}

/* Adds the members of `read` that `json` does not have. (json_object_update_missing hides failed allocations.) */
static comba_status keep_unknown(json_t *json, json_t *read) {
  const char *key;
  json_t *value;
  json_object_foreach(read, key, value) {
    if (json_object_get(json, key)) continue;
    const comba_status status = set(json, key, json_incref(value));
    if (status != COMBA_OK) return status;
  }
  return COMBA_OK;
}

/* `attn` again: the fields as they are now, after them the unknown ones that came with each object. */
static comba_status write_hybrid(const comba_config *config, int index, json_t *json) {
  comba_status status = COMBA_OK;
  json_t *layers = json_array();
  COMBA_TRY(set(json, "layers", layers));
  for (int64_t layer = 0; layer < config->num_hidden_layers; layer++) {
    if (config->hybrid_of_layer[layer] == index && json_array_append_new(layers, json_integer(layer)) != 0) {
      status = comba_fail_memory(sizeof layer, "layers");
      goto cleanup;
    }
  }
  COMBA_TRY(comba_fields_write(comba_schema_hybrid, &config->hybrid[index], json));
  if (config->kind == COMBA_KIND_VISION)
    COMBA_TRY(comba_fields_write(comba_schema_hybrid_vision, &config->hybrid[index], json));
  json_t *read = hybrid_json(json_object_get(config->json, "attn"), (size_t)index);
  if (read) status = keep_unknown(json, read);

cleanup:
  return status;
}

static comba_status write_attention(const comba_config *config, json_t *json) {
  comba_status status = COMBA_OK;
  if (config->hybrids == 0) return set(json, "attn", json_null());
  const bool is_list = config->hybrids > 1 || json_is_array(json_object_get(config->json, "attn"));
  json_t *list = is_list ? json_array() : NULL;
  if (is_list) COMBA_TRY(set(json, "attn", list));
  for (int i = 0; i < config->hybrids; i++) {
    json_t *hybrid = json_object();
    if (!is_list) {
      COMBA_TRY(set(json, "attn", hybrid));
    } else if (json_array_append_new(list, hybrid) != 0) {
      status = comba_fail_memory(sizeof *list, "attn");
      goto cleanup;
    }
    COMBA_TRY(write_hybrid(config, i, hybrid));
  }

cleanup:
  return status;
}

/* Token ids that came as a list stay one: the config has the first alone. */
static comba_status keep_token_lists(const comba_config *config, json_t *json) {
  for (const comba_field *field = kind_fields(config); field->name; field++) {
    json_t *read = json_object_get(config->json, field->name);
    if (field->type != COMBA_FIELD_TOKENS || !json_is_array(read)) continue;
    const comba_status status = set(json, field->name, json_incref(read));
    if (status != COMBA_OK) return status;
  }
  return COMBA_OK;
}

/* transformers finds the class to build by this name. */
static json_t *architectures(const comba_config *config) {
  json_t *read = json_object_get(config->json, "architectures");
  const char *prefix = comba_schema_mixer_defaults(config->mixer->model_type)->class_prefix;
  if ((read && !json_is_null(read)) || !prefix) return read ? json_incref(read) : json_null();
  return json_pack("[s+]", prefix, config->kind == COMBA_KIND_VISION ? "ForImageClassification" : "ForCausalLM");
}

comba_status comba_config_write(const comba_config *config, char **text) {
  comba_status status = COMBA_OK;
  json_t *json = json_object();
  COMBA_TRY(set(json, "model_type", json_string(config->model_type)));
  COMBA_TRY(set(json, "architectures", architectures(config)));
  COMBA_TRY(comba_fields_write(comba_schema_common, config, json));
  COMBA_TRY(comba_fields_write(kind_fields(config), config, json));
  COMBA_TRY(comba_fields_write(config->mixer->fields, config->mixer_config, json));
  COMBA_TRY(keep_token_lists(config, json));
  COMBA_TRY(write_attention(config, json));
  COMBA_TRY(keep_unknown(json, config->json));
  status = comba_json_write(json, text);

cleanup:
  json_decref(json);
  return status;
}

/* ---- Class names ---- */

const char *comba_config_class_name(const comba_config *config, int64_t index) {
  char key[32];
  snprintf(key, sizeof key, "%" PRId64, index);
  return json_string_value(json_object_get(json_object_get(config->json, "id2label"), key));
}

comba_status comba_config_set_class_names(comba_config *config, const char *const *names, int64_t count) {
  comba_status status = COMBA_OK;
  char key[32], text[DESCRIPTION];
  json_t *id2label = json_object(), *label2id = json_object();
  for (int64_t i = 0; i < count; i++) {
    json_t *name = json_string(names[i]);
    if (!name) {
      status = comba_fail(COMBA_ERROR_ARGUMENT, "the name of class %" PRId64 " is '%s', expected UTF-8 text", i,
                          comba_json_printable(names[i], text));
      goto cleanup;
    }
    if (json_object_get(label2id, names[i])) {
      json_decref(name);
      status = comba_fail(COMBA_ERROR_ARGUMENT, "class %" PRId64 " is named '%s', expected a name of its own", i,
                          comba_json_printable(names[i], text));
      goto cleanup;
    }
    snprintf(key, sizeof key, "%" PRId64, i);
    COMBA_TRY(set(id2label, key, name));
    COMBA_TRY(set(label2id, names[i], json_integer(i)));
  }
  COMBA_TRY(set(config->json, "id2label", json_incref(id2label)));
  COMBA_TRY(set(config->json, "label2id", json_incref(label2id)));
  config->num_classes = count;

cleanup:
  json_decref(id2label);
  json_decref(label2id);
  return status;
}

/* ---- Documentation ---- */

comba_status comba_config_document(const char *model_type, char **text) {
  comba_status status = COMBA_OK;
  comba_config *config = NULL;
  comba_hybrid hybrid = {0};
  char *written = NULL;
  size_t size = 0;
  FILE *stream = NULL;
  json_t *name = json_string(model_type);
  COMBA_TRY(create(&config, name));
  stream = open_memstream(&written, &size);
  if (!stream) {
    status = comba_fail_memory(0, "the fields of a config");
    goto cleanup;
  }
  comba_fields_default(comba_schema_hybrid, &hybrid);
  comba_fields_default(comba_schema_hybrid_vision, &hybrid);
  fputs("| field | value | if missing | meaning |\n| --- | --- | --- | --- |\n", stream);
  fprintf(stream, "| `model_type` | \"%s\" | an error | the mixer and the kind of model |\n", config->model_type);
  comba_fields_document(comba_schema_common, config, "", stream);
  comba_fields_document(kind_fields(config), config, "", stream);
  comba_fields_document(config->mixer->fields, config->mixer_config, "", stream);
  fputs("| `attn` | an object, an array of objects, or null | null | layers of softmax attention instead |\n"
        "| `attn.layers` | an array of integers | an error | their numbers, from 0, each once |\n",
        stream);
  comba_fields_document(comba_schema_hybrid, &hybrid, "attn.", stream);
  if (config->kind == COMBA_KIND_VISION) comba_fields_document(comba_schema_hybrid_vision, &hybrid, "attn.", stream);
  const bool failed = ferror(stream);
  if (fclose(stream) != 0 || failed) {
    status = comba_fail_memory(size, "the fields of a config");
    goto cleanup;
  }
  *text = written;
  written = NULL;

cleanup:
  free(written);
  comba_config_free(config);
  json_decref(name);
  return status;
}

int64_t comba_config_intermediate_size(const comba_config *config) {
  if (config->intermediate_size > 0) return config->intermediate_size;
  const int64_t width = config->hidden_size * config->hidden_ratio * 2 / 3;
  return (width + 255) / 256 * 256;
}
