/* The training loop of the programs: its log is that of a loop which waits for every step, and a gradient that is not finite ends
 * the run or is passed over, with nothing lost. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/model_private.h"
#include "model_case.h"
#include "program/trainer.h"
#include "scratch_folder.h"

enum { B = 2, SIDE = 8, PIXELS = B * 3 * SIDE * SIDE, STEPS = 7, MICRO_BATCHES = 2, NO_BATCH = -1 };

static const char config[] =
    "{\"model_type\": \"comba_vision\", \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_heads\": 2, \"head_dim\": "
    "8, "
    "\"expand_v\": 1, \"image_size\": 8, \"patch_size\": 4, \"num_classes\": 3, \"hidden_dropout_prob\": 0.1}";

typedef struct source {
  int64_t bad; /* micro-batch with a pixel that is not a number */
  float pixels[PIXELS];
} source;

static comba_status next(void *context, int64_t index, comba_batch *batch) {
  static const int32_t labels[B] = {0, 2};
  source *s = context;
  for (uint64_t i = 0; i < PIXELS; i++) s->pixels[i] = (float)comba_random_normal(3, (uint64_t)index, i);
  if (index == s->bad) s->pixels[5] = NAN;
  *batch = (comba_batch){.batch = B, .pixel_values = s->pixels, .labels = labels};
  return COMBA_OK;
}

typedef struct run {
  comba_model *model;
  comba_training_result result;
  comba_status status;
} run;

static run train(const char *folder, int64_t bad, int64_t skip, bool resume) {
  const comba_common_options common = {.seed = 42, .quiet = true};
  source s = {.bad = bad};
  run r = {.model = NULL};
  comba_options options = comba_common_apply(&common);
  options.device = COMBA_DEVICE_CPU;
  ck_assert_done(comba_model_create(&r.model, config, &options));
  comba_training training = {.model = r.model, .common = &common, .unit = "images", .units_per_step = B, .context = &s};
  training.options = comba_training_unset();
  training.options.output = at(folder);
  training.options.resume = resume;
  training.options.steps = STEPS;
  training.options.batch_size = B;
  training.options.gradient_accumulation = MICRO_BATCHES;
  training.options.log_every = 1;
  training.options.skip_nonfinite = skip;
  training.settings = json_object();
  training.next = next;
  ck_assert_done(comba_training_complete(&training.options));
  r.status = comba_train(&training, &r.result);
  return r;
}

static void release(run *r) {
  comba_training_result_release(&r->result);
  comba_model_free(r->model);
}

static bool exists(const char *name) {
  return access(at(name), F_OK) == 0;
}

/* Losses of the log, by step; -1 where there is no line. */
static void read_log(const char *folder, double losses[STEPS], double norms[STEPS]) {
  char name[64], line[1024];
  snprintf(name, sizeof name, "%s/log.jsonl", folder);
  FILE *file = fopen(at(name), "r");
  ck_assert_ptr_nonnull(file);
  for (int i = 0; i < STEPS; i++) losses[i] = norms[i] = -1;
  while (fgets(line, sizeof line, file)) {
    json_t *object = json_loads(line, 0, NULL);
    const int64_t step = json_integer_value(json_object_get(object, "step"));
    ck_assert(step >= 1 && step <= STEPS);
    losses[step - 1] = json_real_value(json_object_get(object, "loss"));
    norms[step - 1] = json_real_value(json_object_get(object, "gradient_norm"));
    json_decref(object);
  }
  fclose(file);
}

static void assert_equal_weights(const comba_model *a, const comba_model *b) {
  int64_t count;
  float *x = model_case_weights(a, &count), *y = model_case_weights(b, &count);
  ck_assert_mem_eq(x, y, (size_t)count * sizeof *x);
  free(x);
  free(y);
}

START_TEST(log_is_that_of_a_loop_that_waits) {
  double losses[STEPS], norms[STEPS];
  comba_model *model = NULL;
  comba_optimizer optimizer;
  source s = {.bad = NO_BATCH};
  run r = train("run", NO_BATCH, 0, false);
  ck_assert_done(r.status);
  read_log("run", losses, norms);
  comba_options options;
  comba_options_default(&options);
  options.device = COMBA_DEVICE_CPU;
  ck_assert_done(comba_model_create(&model, config, &options));
  comba_optimizer_default(&optimizer);
  optimizer.weight_decay = 0.1f;
  for (int step = 0; step < STEPS; step++) {
    double sum = 0;
    float norm;
    comba_model_zero_gradient(model);
    for (int i = 0; i < MICRO_BATCHES; i++) {
      comba_batch batch;
      float loss;
      next(&s, step * MICRO_BATCHES + i, &batch);
      ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_TRAIN, &loss));
      ck_assert_done(comba_model_backward(model, 1.0f / MICRO_BATCHES));
      sum += loss;
    }
    optimizer.learning_rate = (float)comba_schedule_rate(step, STEPS, 0, 3e-3, 3e-4);
    ck_assert_done(comba_model_step(model, &optimizer, &norm));
    ck_assert_double_eq_tol(losses[step], sum / MICRO_BATCHES, 1e-6); /* the log has seven digits */
    ck_assert_double_eq_tol(norms[step], norm, 1e-5);
  }
  assert_equal_weights(r.model, model);
  comba_model_free(model);
  release(&r);
}
END_TEST

/* The run ends at step 5, keeps what it had, and goes on from there to the end that a run has which passes over that step. */
START_TEST(a_gradient_that_is_not_finite_ends_the_run) {
  double losses[STEPS], norms[STEPS];
  const int64_t bad = 4 * MICRO_BATCHES + 1;
  run stopped = train("stopped", bad, 0, false);
  ck_assert_int_eq(stopped.status, COMBA_ERROR_NONFINITE);
  const char *const parts[] = {"step 5", "nan", "'backbone.embeddings", "step 4", "--skip-nonfinite 1"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    ck_assert_msg(strstr(comba_last_error(), parts[i]), "'%s' lacks '%s'", comba_last_error(), parts[i]);
  ck_assert(exists("stopped/checkpoint-4") && !exists("stopped/checkpoint-5"));
  read_log("stopped", losses, norms);
  ck_assert(losses[3] > 0 && losses[4] == -1);

  run again = train("stopped", bad, 0, true);
  ck_assert_int_eq(again.status, COMBA_ERROR_NONFINITE);
  run resumed = train("stopped", bad, 1, true), whole = train("whole", bad, 1, false);
  ck_assert_done(resumed.status);
  ck_assert_done(whole.status);
  assert_equal_weights(resumed.model, whole.model);
  run other = train("other", NO_BATCH, 0, false);
  ck_assert_done(other.status);
  int64_t count;
  float *x = model_case_weights(whole.model, &count), *y = model_case_weights(other.model, &count);
  ck_assert(memcmp(x, y, (size_t)count * sizeof *x) != 0);
  free(x);
  free(y);
  release(&stopped);
  release(&again);
  release(&resumed);
  release(&whole);
  release(&other);
}
END_TEST

/* Before a first step there is nothing to keep; where the last step is the bad one, the run ends like any other. */
START_TEST(first_and_last_step_are_no_exception) {
  run first = train("first", 0, 0, false);
  ck_assert_int_eq(first.status, COMBA_ERROR_NONFINITE);
  ck_assert(strstr(comba_last_error(), "step 1"));
  ck_assert(!exists("first/checkpoint-0"));
  run last = train("last", STEPS * MICRO_BATCHES - 1, 0, false);
  ck_assert_int_eq(last.status, COMBA_ERROR_NONFINITE);
  ck_assert(exists("last/checkpoint-6") && !exists("last/model.safetensors"));
  release(&first);
  release(&last);
}
END_TEST

/* Without --checkpoint-every a short run writes one checkpoint, at its end. */
START_TEST(a_short_run_writes_one_checkpoint) {
  run r = train("run", NO_BATCH, 0, false);
  char name[64];
  ck_assert_done(r.status);
  for (int step = 0; step < STEPS; step++) {
    snprintf(name, sizeof name, "run/checkpoint-%d", step);
    ck_assert(!exists(name));
  }
  snprintf(name, sizeof name, "run/checkpoint-%d", STEPS);
  ck_assert(exists(name));
  release(&r);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("trainer");
  TCase *tests = tcase_create("trainer");
  tcase_add_checked_fixture(tests, scratch_setup, scratch_teardown);
  tcase_add_test(tests, log_is_that_of_a_loop_that_waits);
  tcase_add_test(tests, a_gradient_that_is_not_finite_ends_the_run);
  tcase_add_test(tests, first_and_last_step_are_no_exception);
  tcase_add_test(tests, a_short_run_writes_one_checkpoint);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
