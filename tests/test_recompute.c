/* Computing activations again in the backward pass: the same loss, gradients and weights to the last bit in less memory, for
 * every mixer in a language and in a vision model; and the level that is chosen for the memory given. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "mixers/mixer.h"
#include "model/model_private.h"
#include "model_case.h"

enum { B = 2, T = 70, VOCABULARY = 31, SIDE = 12, CLASSES = 5, LAYERS = 6, STEPS = 2, CONFIG_TEXT = 512 };
enum { MIXERS = 24 }; /* more than there are: the rest ends at once */

static const char *mixer(int index) {
  for (int i = 0; i < index; i++)
    if (!comba_mixer_table[i]) return NULL;
  return comba_mixer_table[index] ? comba_mixer_table[index]->model_type : NULL;
}

/* Six layers: RWKV-7's later ones read the first one's values, and one layer attends. */
static void language_config(const char *name, char text[CONFIG_TEXT]) {
  snprintf(
      text, CONFIG_TEXT,
      "{\"model_type\": \"%s\", \"vocab_size\": %d, \"hidden_size\": 32, \"num_hidden_layers\": %d, \"num_heads\": 2, "
      "\"head_dim\": 16, \"expand_v\": 1, \"expand_k\": 1, \"expand_ratio\": 16, \"state_size\": 16, \"attn\": "
      "{\"layers\": [1], \"num_heads\": 2}}",
      name, VOCABULARY, LAYERS);
}

/* Everything that draws by node and step. */
static void vision_config(const char *name, char text[CONFIG_TEXT]) {
  snprintf(text, CONFIG_TEXT,
           "{\"model_type\": \"%s_vision\", \"hidden_size\": 32, \"num_hidden_layers\": %d, \"num_heads\": 2, "
           "\"head_dim\": 16, "
           "\"expand_v\": 1, \"expand_k\": 1, \"expand_ratio\": 16, \"state_size\": 16, \"image_size\": %d, "
           "\"patch_size\": 2, \"num_classes\": %d, "
           "\"hidden_dropout_prob\": 0.2, \"drop_path_rate\": 0.3, \"train_scan_type\": \"random-scan\"}",
           name, LAYERS, SIDE, CLASSES);
}

static comba_options options_with(comba_recompute recompute, uint64_t memory) {
  comba_options options;
  comba_options_default(&options);
  options.device = COMBA_DEVICE_CPU;
  options.recompute = recompute;
  options.memory = memory;
  return options;
}

/* What a few steps leave. */
typedef struct outcome {
  float loss[STEPS];
  float *weights, *gradients;
  int64_t count;
  comba_graph_cost cost;
} outcome;

/* At AUTO the arena may take so many bytes. */
static outcome train(const char *config, comba_recompute level, size_t arena) {
  const comba_options options = options_with(level, 0);
  static const int32_t labels[B] = {4, 1};
  static float pixels[B * 3 * SIDE * SIDE];
  comba_model *model = model_case_create(config, &options);
  outcome result;
  comba_model_bytes bytes;
  comba_model_bytes_of(model, &bytes);
  model->options.memory = bytes.weights + bytes.gradients + bytes.moments + arena;
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 1);
  for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++) pixels[i] = (float)comba_random_normal(2, 0, i);
  const bool vision = strstr(config, "_vision") != NULL;
  const comba_batch batch = vision ? (comba_batch){.batch = B, .pixel_values = pixels, .labels = labels}
                                   : (comba_batch){.batch = B, .length = T, .input_ids = ids};
  for (int step = 0; step < STEPS; step++) {
    comba_model_zero_gradient(model);
    ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_TRAIN, &result.loss[step]));
    ck_assert_done(comba_model_backward(model, 1));
    ck_assert_done(comba_model_step(model, NULL, NULL));
  }
  result.weights = model_case_weights(model, &result.count);
  result.gradients = model_case_gradients(model, &result.count);
  ck_assert_done(comba_model_cost(model, COMBA_PASS_TRAIN, B, T, &result.cost));
  if (level != COMBA_RECOMPUTE_AUTO) ck_assert_int_eq(result.cost.recompute, level);
  free(ids);
  comba_model_free(model);
  return result;
}

static void check_same(const char *config, const outcome *plain, const outcome *again) {
  const size_t bytes = (size_t)plain->count * sizeof(float);
  const comba_recompute level = again->cost.recompute;
  ck_assert_msg(!memcmp(again->loss, plain->loss, sizeof plain->loss), "%s: loss at level %d", config, level);
  ck_assert_msg(!memcmp(again->gradients, plain->gradients, bytes), "%s: gradients at level %d", config, level);
  ck_assert_msg(!memcmp(again->weights, plain->weights, bytes), "%s: weights at level %d", config, level);
  ck_assert_double_le(again->cost.again_flops, plain->cost.forward_flops);
  free(again->weights);
  free(again->gradients);
}

/* At each level, and with memory for what lies halfway between it and the one before, in some blocks alone. */
static void check_levels(const char *config) {
  const outcome plain = train(config, COMBA_RECOMPUTE_NONE, 0);
  size_t arena = plain.cost.arena_bytes;
  ck_assert_double_eq(plain.cost.again_flops, 0);
  for (comba_recompute level = COMBA_RECOMPUTE_LIGHT; level <= COMBA_RECOMPUTE_BLOCK; level++) {
    const outcome again = train(config, level, 0);
    const size_t less = again.cost.arena_bytes, halfway = less + (arena - less) / 2;
    ck_assert_msg(less < arena, "%s: arena of %zu bytes at level %d, %zu at the one before", config, less, level,
                  arena);
    const outcome mixed = train(config, COMBA_RECOMPUTE_AUTO, halfway);
    ck_assert_uint_le(mixed.cost.arena_bytes, halfway);
    ck_assert_int_eq(mixed.cost.recompute, level);
    ck_assert_int_lt(mixed.cost.recompute_blocks, LAYERS);
    check_same(config, &plain, &again);
    check_same(config, &plain, &mixed);
    arena = less;
  }
  free(plain.weights);
  free(plain.gradients);
}

START_TEST(language_models_are_the_same_to_the_bit) {
  char config[CONFIG_TEXT];
  if (!mixer(_i)) return;
  language_config(mixer(_i), config);
  check_levels(config);
}
END_TEST

START_TEST(vision_models_are_the_same_to_the_bit) {
  char config[CONFIG_TEXT];
  if (!mixer(_i)) return;
  vision_config(mixer(_i), config);
  check_levels(config);
}
END_TEST

static comba_graph_cost planned(comba_recompute asked, uint64_t memory, comba_pass pass) {
  const comba_options options = options_with(asked, memory);
  char config[CONFIG_TEXT];
  comba_model *model = NULL;
  comba_graph_cost cost;
  language_config("comba", config);
  ck_assert_done(comba_model_create(&model, config, &options));
  ck_assert_done(comba_model_cost(model, pass, B, T, &cost));
  comba_model_free(model);
  return cost;
}

/* Bytes of a model in training beside its arena. */
static uint64_t fixed_bytes(void) {
  const comba_options options = options_with(COMBA_RECOMPUTE_AUTO, 0);
  char config[CONFIG_TEXT];
  comba_model *model = NULL;
  comba_model_bytes bytes;
  language_config("comba", config);
  ck_assert_done(comba_model_create(&model, config, &options));
  comba_model_bytes_of(model, &bytes);
  comba_model_free(model);
  ck_assert_uint_eq(bytes.narrow_weights, 0);
  return bytes.weights + bytes.gradients + bytes.moments;
}

START_TEST(auto_takes_the_least_that_fits) {
  const uint64_t fixed = fixed_bytes();
  ck_assert_int_eq(planned(COMBA_RECOMPUTE_AUTO, 0, COMBA_PASS_TRAIN).recompute, COMBA_RECOMPUTE_NONE);
  for (comba_recompute level = COMBA_RECOMPUTE_NONE; level <= COMBA_RECOMPUTE_BLOCK; level++) {
    const size_t arena = planned(level, 1, COMBA_PASS_TRAIN).arena_bytes;
    const comba_graph_cost cost = planned(COMBA_RECOMPUTE_AUTO, fixed + arena, COMBA_PASS_TRAIN);
    ck_assert_int_eq(cost.recompute, level);
    ck_assert_int_ge(cost.recompute_blocks,
                     LAYERS - 1); /* the last may be as large while it runs as what it would free */
    ck_assert_int_eq(cost.blocks, LAYERS);
  }
  /* where nothing fits, the most that can be done; where nothing is trained, nothing */
  ck_assert_int_eq(planned(COMBA_RECOMPUTE_AUTO, 1, COMBA_PASS_TRAIN).recompute, COMBA_RECOMPUTE_BLOCK);
  ck_assert_int_eq(planned(COMBA_RECOMPUTE_AUTO, 1, COMBA_PASS_EVALUATE).recompute, COMBA_RECOMPUTE_NONE);
}
END_TEST

/* From what BLOCK takes to what NONE takes. */
START_TEST(more_memory_never_computes_more_again) {
  enum { SIZES = 60 };
  const uint64_t fixed = fixed_bytes();
  const size_t least = planned(COMBA_RECOMPUTE_BLOCK, 0, COMBA_PASS_TRAIN).arena_bytes;
  const size_t most = planned(COMBA_RECOMPUTE_NONE, 0, COMBA_PASS_TRAIN).arena_bytes;
  bool seen[COMBA_RECOMPUTE_BLOCK + 1][LAYERS + 1] = {{false}};
  comba_graph_cost before = {.recompute = COMBA_RECOMPUTE_BLOCK, .recompute_blocks = LAYERS};
  for (int i = 0; i <= SIZES; i++) {
    const size_t memory = least + (most - least) * (size_t)i / SIZES;
    const comba_graph_cost cost = planned(COMBA_RECOMPUTE_AUTO, fixed + memory, COMBA_PASS_TRAIN);
    ck_assert_uint_le(cost.arena_bytes, memory);
    ck_assert_msg(cost.recompute < before.recompute ||
                      (cost.recompute == before.recompute && cost.recompute_blocks <= before.recompute_blocks),
                  "level %d in %d blocks with more memory, %d in %d with less", cost.recompute, cost.recompute_blocks,
                  before.recompute, before.recompute_blocks);
    seen[cost.recompute][cost.recompute_blocks] = true;
    before = cost;
  }
  for (int blocks = 1; blocks < LAYERS; blocks++)
    ck_assert_msg(seen[COMBA_RECOMPUTE_LIGHT][blocks] && seen[COMBA_RECOMPUTE_BLOCK][blocks],
                  "light or block in %d of %d blocks was never chosen", blocks, LAYERS);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("recompute");
  TCase *tests = tcase_create("recompute");
  tcase_add_loop_test(tests, language_models_are_the_same_to_the_bit, 0, MIXERS);
  tcase_add_loop_test(tests, vision_models_are_the_same_to_the_bit, 0, MIXERS);
  tcase_add_test(tests, auto_takes_the_least_that_fits);
  tcase_add_test(tests, more_memory_never_computes_more_again);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
