#include "program/describe.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/gemm.h"
#include "core/parallel.h"
#include "mixers/mixer.h"
#include "model/model_private.h"
#include "program/options.h"

static void print_json(json_t *object) {
  json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
  putchar('\n');
  json_decref(object);
}

/* The state of one sequence over all layers, in bytes; *grows where some layer keeps every token (then a token's bytes). */
static double state_bytes(const comba_config *config, bool *grows) {
  double elements = 0;
  *grows = false;
  for (int64_t layer = 0; layer < config->num_hidden_layers; layer++) {
    if (comba_layer_attends(config, layer)) {
      const comba_hybrid *hybrid = &config->hybrid[config->hybrid_of_layer[layer]];
      const int64_t kv = hybrid->num_kv_heads ? hybrid->num_kv_heads : hybrid->num_heads;
      elements += 2.0 * (double)(config->hidden_size / hybrid->num_heads * kv) *
                  (double)(hybrid->window_size ? hybrid->window_size : 1);
      *grows |= !hybrid->window_size;
    } else {
      const comba_mixer_cost cost = config->mixer->cost(config->mixer_config, config->hidden_size);
      elements += cost.state_elements;
      *grows |= cost.state_grows;
    }
  }
  return elements * sizeof(float);
}

/* What one training step takes. */
typedef struct needs {
  comba_model_bytes model;
  comba_graph_cost cost;                   /* at the level that is used */
  size_t arena[COMBA_RECOMPUTE_BLOCK + 1]; /* at each level */
  size_t total, available;                 /* 0: not known what there is */
} needs;

static comba_status measure(comba_model *model, int64_t batch, int64_t length, needs *n) {
  const comba_recompute asked = model->options.recompute;
  const comba_device_memory *memory = model->backend->memory;
  comba_status status = COMBA_OK;
  comba_model_bytes_of(model, &n->model);
  for (comba_recompute level = COMBA_RECOMPUTE_NONE; level <= COMBA_RECOMPUTE_BLOCK; level++) {
    comba_graph_cost cost;
    model->options.recompute = level;
    COMBA_TRY(comba_model_cost(model, COMBA_PASS_TRAIN, batch, length, &cost));
    n->arena[level] = cost.arena_bytes;
  }
  model->options.recompute = asked;
  COMBA_TRY(comba_model_cost(model, COMBA_PASS_TRAIN, batch, length, &n->cost));
  n->total = n->model.weights + n->model.narrow_weights + n->model.gradients + n->model.moments + n->cost.arena_bytes +
             model->backend->products_bytes;
  n->available = model->options.memory ? (size_t)model->options.memory : memory->available ? memory->available() : 0;
cleanup:
  model->options.recompute = asked;
  return status;
}

static json_t *needs_json(const comba_model *model, const needs *n) {
  json_t *object =
      json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:i, s:i, s:{s:I, s:I, s:I}}", "weights_bytes",
                (json_int_t)n->model.weights, "narrow_weights_bytes", (json_int_t)n->model.narrow_weights,
                "gradients_bytes", (json_int_t)n->model.gradients, "moments_bytes", (json_int_t)n->model.moments,
                "workspace_bytes", (json_int_t)n->cost.workspace_bytes, "products_bytes",
                (json_int_t)model->backend->products_bytes, "total_bytes", (json_int_t)n->total, "recompute",
                comba_recompute_names[n->cost.recompute], "recompute_blocks", n->cost.recompute_blocks, "blocks",
                n->cost.blocks, "arena_bytes_by_recompute", "none", (json_int_t)n->arena[COMBA_RECOMPUTE_NONE], "light",
                (json_int_t)n->arena[COMBA_RECOMPUTE_LIGHT], "block", (json_int_t)n->arena[COMBA_RECOMPUTE_BLOCK]);
  json_object_set_new(object, "available_bytes", n->available ? json_integer((json_int_t)n->available) : json_null());
  json_object_set_new(object, "fits", n->available ? json_boolean(n->total <= n->available) : json_null());
  return object;
}

const char *comba_describe_recompute(const comba_graph_cost *cost, char text[COMBA_RECOMPUTE_TEXT]) {
  const char *const *name = &comba_recompute_names[cost->recompute];
  if (cost->recompute_blocks == cost->blocks) return *name;
  snprintf(text, COMBA_RECOMPUTE_TEXT, "%s in %d of %d blocks", *name, cost->recompute_blocks, cost->blocks);
  if (cost->recompute == COMBA_RECOMPUTE_BLOCK) strcat(text, ", light in the others");
  return text;
}

static void print_bytes(const char *words, size_t bytes) {
  const double gib = (double)bytes / (1024.0 * 1024 * 1024);
  if (gib < 1)
    printf("%s %.1f MiB", words, gib * 1024);
  else
    printf("%s %.2f GiB", words, gib);
}

static void print_needs(const comba_model *model, const needs *n) {
  print_bytes("memory      ", n->total);
  print_bytes(": weights", n->model.weights);
  if (n->model.narrow_weights) print_bytes(" and in bfloat16", n->model.narrow_weights);
  print_bytes(", gradients", n->model.gradients);
  print_bytes(", moments", n->model.moments);
  if (model->backend->products_bytes) print_bytes(", products", model->backend->products_bytes);
  print_bytes(", arena", n->cost.arena_bytes);
  print_bytes("\narena        largest workspace", n->cost.workspace_bytes);
  print_bytes(", separate buffers would take", n->cost.unshared_bytes);
  char text[COMBA_RECOMPUTE_TEXT];
  printf("\nrecompute    %s;", comba_describe_recompute(&n->cost, text));
  print_bytes(" arena with none", n->arena[COMBA_RECOMPUTE_NONE]);
  print_bytes(", light", n->arena[COMBA_RECOMPUTE_LIGHT]);
  print_bytes(", block", n->arena[COMBA_RECOMPUTE_BLOCK]);
  if (n->available) {
    printf("\nfits         %s:", n->total <= n->available ? "yes" : "no");
    print_bytes("", n->available);
    printf(" %s", model->options.memory ? "given" : "free");
  }
  putchar('\n');
}

static const char *products(const comba_model *model) {
  return model->backend->products ? model->backend->products : comba_gemm_library();
}

comba_status comba_describe_model(comba_model *model, int64_t batch, int64_t length, bool json) {
  const comba_config *config = model->config;
  const bool vision = config->kind == COMBA_KIND_VISION;
  comba_model_info info;
  needs n = {.available = 0};
  bool grows;
  comba_model_describe(model, &info);
  const comba_status status = measure(model, batch, length, &n);
  if (status != COMBA_OK) return status;
  const comba_graph_cost *cost = &n.cost;
  const double state = state_bytes(config, &grows);
  if (json) {
    json_t *object = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:f, s:b, s:s, s:s, s:i}",
                               "model_type", info.model_type, "parameters", (json_int_t)info.parameters, "hidden_size",
                               (json_int_t)info.hidden_size, "layers", (json_int_t)info.layers, "batch_size",
                               (json_int_t)batch, "sequence_length", (json_int_t)(vision ? 0 : length), "forward_flops",
                               cost->forward_flops, "backward_flops", cost->backward_flops, "recomputed_flops",
                               cost->again_flops, "arena_bytes", (json_int_t)cost->arena_bytes, "unshared_bytes",
                               (json_int_t)cost->unshared_bytes, "state_bytes", state, "state_grows", grows, "backend",
                               model->backend->name, "products", products(model), "threads", comba_threads());
    json_t *needed = needs_json(model, &n);
    if (object && needed) json_object_update(object, needed);
    json_decref(needed);
    if (!object) return comba_fail_memory(0, "the description");
    json_object_set_new(object, "config", json_loads(model->config_text, 0, NULL));
    print_json(object);
    return COMBA_OK;
  }
  printf("model        %s, %lld layers, hidden size %lld\n", info.model_type, (long long)info.layers,
         (long long)info.hidden_size);
  printf("parameters   %lld\n", (long long)info.parameters);
  if (vision)
    printf("input        %lld x %lld pixels, %lld channels, %lld classes\n", (long long)info.image_size,
           (long long)info.image_size, (long long)info.num_channels, (long long)info.num_classes);
  else
    printf("state        %.3g MB a sequence%s\n", state / 1e6,
           grows ? ", of which the attention part is for each token" : "");
  printf("one step     %lld %s", (long long)batch, vision ? "pictures" : "sequences");
  if (!vision) printf(" of %lld tokens", (long long)length);
  printf(": %.3g GFLOP forward, %.3g GFLOP backward", cost->forward_flops / 1e9, cost->backward_flops / 1e9);
  if (cost->again_flops > 0) printf(", %.3g GFLOP computed again", cost->again_flops / 1e9);
  printf("\n");
  print_needs(model, &n);
  printf("backend      %s; products by %s; %d threads\n", model->backend->name, products(model), comba_threads());
  printf("config\n%s\n", model->config_text);
  return COMBA_OK;
}

comba_status comba_describe_mixers(bool json) {
  json_t *list = json ? json_array() : NULL;
  for (const comba_mixer_row *const *entry = comba_mixer_table; *entry; entry++) {
    const comba_mixer_row *row = *entry;
    comba_config *config = NULL;
    char text[128];
    snprintf(text, sizeof text, "{\"model_type\": \"%s\"}", row->model_type);
    const comba_status status = comba_config_parse(&config, text, row->model_type, NULL);
    if (status != COMBA_OK) {
      json_decref(list);
      return status;
    }
    const comba_mixer_cost cost = row->cost(config->mixer_config, config->hidden_size);
    if (json) {
      json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:b, s:f, s:s}", "model_type", row->model_type,
                                            "recurrence", row->recurrence, "state_elements", cost.state_elements,
                                            "state_grows", cost.state_grows, "flops_per_token", cost.flops_per_token,
                                            "source", row->source));
    } else {
      printf("%s\n  recurrence  %s\n  state       %.4g numbers a layer%s (default config, hidden size %lld)\n  engine  "
             "    %.4g FLOP a token and layer%s\n  source      %s\n",
             row->model_type, row->recurrence, cost.state_elements, cost.state_grows ? " and token" : "",
             (long long)config->hidden_size, cost.flops_per_token,
             cost.state_grows ? ", times the tokens before it" : "", row->source);
    }
    comba_config_free(config);
  }
  if (json) print_json(list);
  return COMBA_OK;
}

comba_status comba_describe_fields(const char *model_type) {
  char *text = NULL;
  const comba_status status = comba_config_document(model_type, &text);
  if (status != COMBA_OK) return status;
  fputs(text, stdout);
  free(text);
  return COMBA_OK;
}

void comba_describe_profile(void) {
  comba_profile_row rows[COMBA_PROFILE_ROWS];
  const int count = comba_profile_rows(rows, COMBA_PROFILE_ROWS);
  double total = 0;
  for (int i = 0; i < count; i++) total += rows[i].seconds;
  fprintf(stderr, "%-20s %-8s %10s %10s %7s %9s %9s\n", "operator", "pass", "calls", "seconds", "share", "GFLOP/s",
          "GB/s");
  for (int i = 0; i < count; i++)
    fprintf(stderr, "%-20s %-8s %10lld %10.3f %6.1f%% %9.1f %9.1f\n", rows[i].op, rows[i].pass,
            (long long)rows[i].calls, rows[i].seconds, 100 * rows[i].seconds / total,
            rows[i].flops / rows[i].seconds / 1e9, rows[i].bytes / rows[i].seconds / 1e9);
}
