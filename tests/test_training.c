/* Training: any number of threads gives the same bytes, micro-batches add up, steps with gradients that are not finite change
 * nothing, and what went through files goes on as before. */
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/model_private.h"
#include "model_case.h"

/* Large enough that the loops run on several threads. */
static const char *const configs[] = {
    "{\"model_type\": \"comba\", \"vocab_size\": 61, \"hidden_size\": 48, \"num_hidden_layers\": 2, \"num_heads\": 3, "
    "\"head_dim\": 16, \"expand_v\": 1, \"intermediate_size\": 96}",
    "{\"model_type\": \"comba\", \"vocab_size\": 61, \"hidden_size\": 48, \"num_hidden_layers\": 2, \"num_heads\": 3, "
    "\"head_dim\": 16, \"expand_v\": 2, \"num_v_heads\": 6, \"intermediate_size\": 96, \"tie_word_embeddings\": true, "
    "\"attn\": {\"layers\": [1], \"num_heads\": 4, \"num_kv_heads\": 2, \"window_size\": 20}}",
};
enum { CONFIGS = sizeof configs / sizeof *configs, VOCABULARY = 61, B = 4, T = 100 };

static comba_model *create(const char *config) {
  comba_model *model = NULL;
  ck_assert_done(comba_model_create(&model, config, NULL));
  return model;
}

static void backward(comba_model *model, const int32_t *ids, int64_t batch, float scale) {
  const comba_batch input = {.batch = batch, .length = T, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &input, COMBA_PASS_TRAIN, NULL));
  ck_assert_done(comba_model_backward(model, scale));
}

static void train(comba_model *model, int from, int to) {
  const comba_optimizer optimizer = {3e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 0, {0}};
  for (int step = from; step < to; step++) {
    int32_t *ids = model_case_tokens(B * T, VOCABULARY, (uint64_t)step);
    comba_model_zero_gradient(model);
    backward(model, ids, B, 1);
    ck_assert_done(comba_model_step(model, &optimizer, NULL));
    free(ids);
  }
}

static void assert_equal_weights(const comba_model *a, const comba_model *b, bool equal) {
  int64_t count_a, count_b;
  float *x = model_case_weights(a, &count_a), *y = model_case_weights(b, &count_b);
  ck_assert_int_eq(count_a, count_b);
  ck_assert(!memcmp(x, y, (size_t)count_a * sizeof *x) == equal);
  free(x);
  free(y);
}

START_TEST(threads_do_not_matter) {
  comba_model *model[3];
  for (int i = 0; i < 3; i++) {
    ck_assert_done(comba_set_threads(i + 1));
    model[i] = create(configs[_i]);
    train(model[i], 0, 5);
  }
  ck_assert_done(comba_set_threads(1));
  assert_equal_weights(model[0], model[1], true);
  assert_equal_weights(model[0], model[2], true);
  train(model[2], 5, 6);
  assert_equal_weights(model[0], model[2], false);
  for (int i = 0; i < 3; i++) comba_model_free(model[i]);
}
END_TEST

START_TEST(micro_batches_add_up) {
  comba_model *whole = create(configs[_i]), *pieces = create(configs[_i]);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 1);
  int64_t count;
  backward(whole, ids, B, 1);
  backward(pieces, ids, B / 2, 0.5f);
  backward(pieces, ids + B / 2 * T, B / 2, 0.5f);
  float *expected = model_case_gradients(whole, &count), *found = model_case_gradients(pieces, &count);
  const double error = model_case_distance(found, expected, count);
  ck_assert_msg(error < 1e-5, "gradients of two halves differ from those of the whole by %.3g", error);
  free(ids);
  free(found);
  free(expected);
  comba_model_free(whole);
  comba_model_free(pieces);
}
END_TEST

START_TEST(a_step_that_is_not_finite_changes_nothing) {
  comba_model *model = create(configs[0]), *untouched = create(configs[0]);
  const comba_optimizer optimizer = {3e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 0, {0}};
  const float bad[] = {NAN, INFINITY, -INFINITY};
  train(model, 0, 2);
  train(untouched, 0, 2);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const comba_parameter p = model_case_parameter(model, i ? "lm_head.weight" : "model.norm.weight");
    float norm = 1;
    comba_model_zero_gradient(model);
    p.gradient[7] = bad[i];
    ck_assert_done(comba_model_step(model, &optimizer, &norm));
    ck_assert(!isfinite(norm));
    assert_equal_weights(model, untouched, true);
  }
  train(model, 2, 4); /* moments and their correction went unharmed too */
  train(untouched, 2, 4);
  assert_equal_weights(model, untouched, true);
  comba_model_free(model);
  comba_model_free(untouched);
}
END_TEST

START_TEST(optimizer_settings_are_checked) {
  comba_model *model = create(configs[0]);
  comba_optimizer optimizer;
  comba_optimizer_default(&optimizer);
  optimizer.beta1 = NAN;
  ck_assert_int_eq(comba_model_step(model, &optimizer, NULL), COMBA_ERROR_ARGUMENT);
  ck_assert(strstr(comba_last_error(), "beta1"));
  comba_optimizer_default(&optimizer);
  optimizer.learning_rate = -1;
  ck_assert_int_eq(comba_model_step(model, &optimizer, NULL), COMBA_ERROR_ARGUMENT);
  comba_model_free(model);
}
END_TEST

static void remove_folder(const char *path) {
  DIR *directory = opendir(path);
  char name[512];
  for (struct dirent *entry; directory && (entry = readdir(directory));) {
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    if (entry->d_name[0] != '.') unlink(name);
  }
  if (directory) closedir(directory);
  rmdir(path);
}

START_TEST(files_bring_everything_back) {
  char folder[] = "/tmp/comba-training-XXXXXX", optimizer[64];
  comba_model *model = create(configs[_i]), *loaded = NULL, *resumed = NULL;
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 9);
  const comba_batch batch = {.batch = B, .length = T, .input_ids = ids};
  float loss, again;
  ck_assert_ptr_nonnull(mkdtemp(folder));
  snprintf(optimizer, sizeof optimizer, "%s/optimizer.safetensors", folder);
  train(model, 0, 3);
  ck_assert_done(comba_model_save(model, folder));
  ck_assert_done(comba_model_save_optimizer(model, optimizer));

  ck_assert_done(comba_model_load(&loaded, folder, NULL));
  ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, &loss));
  ck_assert_done(comba_model_forward(loaded, &batch, COMBA_PASS_EVALUATE, &again));
  ck_assert(loss == again);
  ck_assert_mem_eq(comba_model_logits(model), comba_model_logits(loaded), B * T * VOCABULARY * sizeof(float));

  resumed = create(configs[_i]);
  ck_assert_done(comba_model_load_weights(resumed, folder));
  ck_assert_done(comba_model_load_optimizer(resumed, optimizer));
  train(model, 3, 6);
  train(resumed, 3, 6);
  train(loaded, 3, 6);
  assert_equal_weights(model, resumed, true);
  assert_equal_weights(model, loaded, false); /* it began without moments */
  remove_folder(folder);
  free(ids);
  comba_model_free(model);
  comba_model_free(loaded);
  comba_model_free(resumed);
}
END_TEST

START_TEST(weights_of_another_model_are_refused) {
  char folder[] = "/tmp/comba-training-XXXXXX";
  comba_model *model = create(configs[0]), *other = create(configs[1]), *before = create(configs[1]);
  ck_assert_ptr_nonnull(mkdtemp(folder));
  ck_assert_done(comba_model_save(model, folder));
  ck_assert_int_eq(comba_model_load_weights(other, folder), COMBA_ERROR_FORMAT);
  assert_equal_weights(other, before, true);
  remove_folder(folder);
  comba_model_free(model);
  comba_model_free(other);
  comba_model_free(before);
}
END_TEST

START_TEST(a_plan_shares_memory) {
  for (int i = 0; i < CONFIGS; i++) {
    comba_model *model = create(configs[i]);
    comba_graph_cost training, evaluation;
    ck_assert_done(comba_model_cost(model, COMBA_PASS_TRAIN, B, T, &training));
    ck_assert_done(comba_model_cost(model, COMBA_PASS_EVALUATE, B, T, &evaluation));
    ck_assert_uint_gt(evaluation.arena_bytes, B * T * VOCABULARY * sizeof(float));
    ck_assert_uint_lt(training.arena_bytes, training.unshared_bytes);
    ck_assert_uint_lt(2 * evaluation.arena_bytes, evaluation.unshared_bytes);
    ck_assert_uint_lt(evaluation.arena_bytes, training.arena_bytes);
    ck_assert_double_gt(training.backward_flops, 1.5 * training.forward_flops);
    comba_model_free(model);
  }
}
END_TEST

/* More sizes than a model keeps plans for: the oldest goes, and results stay. */
START_TEST(plans_come_and_go) {
  comba_model *model = create(configs[0]);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 4);
  float first[40], loss;
  for (int round = 0; round < 2; round++)
    for (int length = 2; length < 42; length++) {
      const comba_batch batch = {.batch = 1, .length = length, .input_ids = ids};
      ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, &loss));
      if (round)
        ck_assert(loss == first[length - 2]);
      else
        first[length - 2] = loss;
    }
  free(ids);
  comba_model_free(model);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("training");
  TCase *tests = tcase_create("training");
  tcase_add_loop_test(tests, threads_do_not_matter, 0, CONFIGS);
  tcase_add_loop_test(tests, micro_batches_add_up, 0, CONFIGS);
  tcase_add_test(tests, a_step_that_is_not_finite_changes_nothing);
  tcase_add_test(tests, optimizer_settings_are_checked);
  tcase_add_loop_test(tests, files_bring_everything_back, 0, CONFIGS);
  tcase_add_test(tests, weights_of_another_model_are_refused);
  tcase_add_test(tests, a_plan_shares_memory);
  tcase_add_test(tests, plans_come_and_go);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
