/* What every mixer must do, whatever it computes: a row of comba_mixer_table is tested by being listed. Each test runs for each
 * row, in chunks and token by token. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mixers/mixer.h"
#include "model_case.h"

enum { VOCABULARY = 23, HIDDEN = 16, B = 2, T = 90, LOGITS = B * T * VOCABULARY };
enum { SIDE = 12, CLASSES = 5, PIXELS = B * 3 * SIDE * SIDE };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};
enum { MODES = 2 };

/* Sizes under the names that mixers have for them; each reads its own and leaves the others. Moneta's printed map amplifies
 * rounding from token to token, which would hide what is compared here: it has the mirror map (the printed one is in
 * test_recurrences). */
static comba_model *create_sized(int index, const char *suffix, int heads, int head_dim, const char *more) {
  char json[1024];
  comba_options options;
  comba_options_default(&options);
  options.mode = modes[index % MODES];
  snprintf(json, sizeof json,
           "{\"model_type\": \"%s%s\", \"hidden_size\": %d, \"num_hidden_layers\": 2, \"num_heads\": %d, "
           "\"head_dim\": %d, \"expand_ratio\": %d, \"state_size\": %d, \"expand\": 1, \"expand_k\": 1, \"expand_v\": "
           "1, \"mirror_map\": true, %s}",
           comba_mixer_table[index / MODES]->model_type, suffix, heads * head_dim, heads, head_dim, head_dim, head_dim,
           more);
  return model_case_create(json, &options);
}

static comba_model *create(int index) {
  return create_sized(index, "", 2, HIDDEN / 2, "\"vocab_size\": 23, \"intermediate_size\": 24, \"pre_conv\": true");
}

static float forward(comba_model *model, const int32_t *ids, int64_t batch, int64_t length, comba_pass pass) {
  const comba_batch input = {.batch = batch, .length = length, .input_ids = ids};
  float loss = -1;
  ck_assert_done(comba_model_forward(model, &input, pass, &loss));
  return loss;
}

/* The tokens from `first` on change, the logits before it do not. */
START_TEST(no_token_sees_a_later_one) {
  const int64_t firsts[] = {1, 40, 63, 64, 65, T - 1};
  static float before[LOGITS];
  comba_model *model = create(_i);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 1);
  forward(model, ids, B, T, COMBA_PASS_TRAIN);
  memcpy(before, comba_model_logits(model), sizeof before);
  for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
    int32_t changed[B * T];
    for (int64_t j = 0; j < B * T; j++) changed[j] = j % T < firsts[i] ? ids[j] : (ids[j] + 1) % VOCABULARY;
    forward(model, changed, B, T, COMBA_PASS_TRAIN);
    const float *after = comba_model_logits(model);
    for (int64_t b = 0; b < B; b++) {
      const int64_t at = b * T * VOCABULARY, own = firsts[i] * VOCABULARY;
      ck_assert_mem_eq(after + at, before + at, (size_t)own * sizeof *before);
      ck_assert(memcmp(after + at + own, before + at + own, VOCABULARY * sizeof *before) != 0);
    }
  }
  free(ids);
  comba_model_free(model);
}
END_TEST

static void feed(comba_decoder *decoder, const int32_t *ids, int64_t from, int64_t to, float *logits) {
  int32_t piece[B * T];
  for (int64_t b = 0; b < B; b++)
    memcpy(piece + b * (to - from), ids + b * T + from, (size_t)(to - from) * sizeof *piece);
  ck_assert_done(comba_decoder_feed(decoder, piece, to - from, logits));
}

START_TEST(prefill_then_single_tokens_is_one_forward) {
  const int64_t prefills[] = {1, 3, 63, 64, 65};
  static float whole[LOGITS], expected[B * VOCABULARY], logits[B * VOCABULARY];
  comba_model *model = create(_i);
  comba_decoder *decoder = NULL;
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 2);
  forward(model, ids, B, T, COMBA_PASS_EVALUATE);
  memcpy(whole, comba_model_logits(model), sizeof whole);
  ck_assert_done(comba_decoder_create(&decoder, model, B, T));
  for (size_t i = 0; i < sizeof prefills / sizeof *prefills; i++) {
    comba_decoder_reset(decoder);
    for (int64_t from = 0, to = prefills[i]; from < T; from = to++) {
      feed(decoder, ids, from, to, logits);
      for (int64_t b = 0; b < B; b++)
        memcpy(expected + b * VOCABULARY, whole + (b * T + to - 1) * VOCABULARY, VOCABULARY * sizeof *expected);
      const double error = model_case_distance(logits, expected, B * VOCABULARY);
      ck_assert_msg(error <= 2e-5, "prefill of %d: logits after token %d differ by %.3g", (int)prefills[i], (int)to,
                    error);
    }
  }
  free(ids);
  comba_decoder_free(decoder);
  comba_model_free(model);
}
END_TEST

/* Logits, loss and gradients of sequences in one row are those of each alone. */
START_TEST(packed_sequences_are_separate_runs) {
  const int32_t offsets[] = {0, 5, 5, 69, 70, T};
  enum { SEQUENCES = 5 };
  static float logits[T * VOCABULARY];
  comba_model *packed = create(_i), *alone = create(_i);
  int32_t *ids = model_case_tokens(T, VOCABULARY, 3);
  int targets = 0;
  for (int s = 0; s < SEQUENCES; s++) {
    const int length = offsets[s + 1] - offsets[s];
    if (!length) continue;
    forward(alone, ids + offsets[s], 1, length, COMBA_PASS_TRAIN);
    memcpy(logits + offsets[s] * VOCABULARY, comba_model_logits(alone), (size_t)(length * VOCABULARY) * sizeof *logits);
    ck_assert_done(comba_model_backward(alone, (float)(length - 1)));
    targets += length - 1;
  }
  const comba_batch input = {.batch = 1, .length = T, .input_ids = ids, .cu_seqlens = offsets, .sequences = SEQUENCES};
  ck_assert_done(comba_model_forward(packed, &input, COMBA_PASS_TRAIN, NULL));
  const double error = model_case_distance(comba_model_logits(packed), logits, T * VOCABULARY);
  ck_assert_msg(error <= 5e-6, "logits differ by %.3g", error);
  ck_assert_done(comba_model_backward(packed, (float)targets));
  int64_t count;
  float *found = model_case_gradients(packed, &count), *expected = model_case_gradients(alone, &count);
  const double gradient_error = model_case_distance(found, expected, count);
  ck_assert_msg(gradient_error <= 2e-5, "gradients differ by %.3g", gradient_error);
  free(ids);
  free(found);
  free(expected);
  comba_model_free(packed);
  comba_model_free(alone);
}
END_TEST

static void remove_model(const char *directory) {
  static const char *const files[] = {"config.json", "model.safetensors"};
  char path[256];
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s/%s", directory, files[i]);
    ck_assert_int_eq(unlink(path), 0);
  }
  ck_assert_int_eq(rmdir(directory), 0);
}

START_TEST(a_saved_model_is_read_back) {
  char directory[] = "/tmp/comba-mixer-XXXXXX";
  static float logits[LOGITS];
  comba_options options;
  comba_options_default(&options);
  options.mode = modes[_i % MODES];
  ck_assert_ptr_nonnull(mkdtemp(directory));
  comba_model *model = create(_i), *again = NULL;
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 4);
  forward(model, ids, B, T, COMBA_PASS_EVALUATE);
  memcpy(logits, comba_model_logits(model), sizeof logits);
  ck_assert_done(comba_model_save(model, directory));
  ck_assert_done(comba_model_load(&again, directory, &options));
  remove_model(directory);
  ck_assert_str_eq(comba_model_config(again), comba_model_config(model));
  forward(again, ids, B, T, COMBA_PASS_EVALUATE);
  ck_assert_mem_eq(comba_model_logits(again), logits, sizeof logits);
  free(ids);
  comba_model_free(model);
  comba_model_free(again);
}
END_TEST

/* Weights after three steps of training; large enough that the loops run on several threads. */
static float *train(int index, int threads, int64_t *count) {
  enum { BATCH = 4, LENGTH = 100 };
  comba_optimizer optimizer;
  comba_optimizer_default(&optimizer);
  ck_assert_done(comba_set_threads(threads));
  comba_model *model = create_sized(index, "", 3, 16, "\"vocab_size\": 23, \"intermediate_size\": 96");
  for (uint64_t step = 0; step < 3; step++) {
    int32_t *ids = model_case_tokens(BATCH * LENGTH, VOCABULARY, step);
    comba_model_zero_gradient(model);
    forward(model, ids, BATCH, LENGTH, COMBA_PASS_TRAIN);
    ck_assert_done(comba_model_backward(model, 1));
    ck_assert_done(comba_model_step(model, &optimizer, NULL));
    free(ids);
  }
  float *weights = model_case_weights(model, count);
  comba_model_free(model);
  return weights;
}

START_TEST(the_number_of_threads_does_not_matter) {
  int64_t count;
  float *one = train(_i, 1, &count), *two = train(_i, 2, &count);
  ck_assert_done(comba_set_threads(1));
  ck_assert_mem_eq(one, two, (size_t)count * sizeof *one);
  free(one);
  free(two);
}
END_TEST

static void move(comba_model *model, const float *direction, double step) {
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    comba_parameter p;
    ck_assert_done(comba_model_parameter(model, i, &p));
    for (int64_t j = 0; j < p.elements; j++) p.data[j] += (float)(step * *direction++);
  }
}

/* Of the loss along `direction`, by a central difference; the weights are put back. */
static double slope_along(comba_model *model, const int32_t *ids, const float *direction, double step) {
  move(model, direction, step);
  const double above = forward(model, ids, B, T, COMBA_PASS_TRAIN);
  move(model, direction, -2 * step);
  const double below = forward(model, ids, B, T, COMBA_PASS_TRAIN);
  move(model, direction, step);
  return (above - below) / (2 * step);
}

/* Along the gradient the loss rises by the gradient's square. Two steps, so that the error of second order drops out: a norm of
 * small values bends strongly. */
START_TEST(the_gradient_is_the_slope_of_the_loss) {
  comba_model *model = create(_i);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 5);
  int64_t count;
  double square = 0;
  forward(model, ids, B, T, COMBA_PASS_TRAIN);
  ck_assert_done(comba_model_backward(model, 1));
  float *gradient = model_case_gradients(model, &count);
  for (int64_t i = 0; i < count; i++) square += (double)gradient[i] * gradient[i];
  /* the loss changes by 4e-4 at most, which float still shows to 3 digits: a steep loss is seen close by */
  const double step = fmin(1.5e-3 / sqrt(square), 2e-4 / square);
  const double slope = (4 * slope_along(model, ids, gradient, step) - slope_along(model, ids, gradient, 2 * step)) / 3;
  ck_assert_msg(fabs(slope - square) <= 5e-3 * square, "slope %.7g, gradient squared %.7g", slope, square);
  free(gradient);
  free(ids);
  comba_model_free(model);
}
END_TEST

static const char *const scans[] = {"uni-scan",   "flip-scan",   "bi-scan",    "bi-scan-aligned",
                                    "cross-scan", "random-scan", "switch-scan"};

START_TEST(every_scan_runs_forward_and_backward) {
  static float pixels[PIXELS];
  const int32_t labels[B] = {4, 0};
  const comba_batch batch = {.batch = B, .pixel_values = pixels, .labels = labels};
  for (int64_t i = 0; i < PIXELS; i++) pixels[i] = (float)comba_random_normal(9, 0, (uint64_t)i);
  for (size_t scan = 0; scan < sizeof scans / sizeof *scans; scan++) {
    char more[256];
    float loss = NAN;
    int64_t count;
    snprintf(more, sizeof more,
             "\"image_size\": %d, \"patch_size\": 3, \"num_classes\": %d, \"channel_mixer_dim\": 24, "
             "\"train_scan_type\": \"%s\"",
             SIDE, CLASSES, scans[scan]);
    comba_model *model = create_sized(_i, "_vision", 2, HIDDEN / 2, more);
    ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_TRAIN, &loss));
    ck_assert_msg(isfinite(loss), "%s: loss %g", scans[scan], (double)loss);
    ck_assert_done(comba_model_backward(model, 1));
    float *gradient = model_case_gradients(model, &count);
    double square = 0;
    for (int64_t i = 0; i < count; i++) square += (double)gradient[i] * gradient[i];
    ck_assert_msg(isfinite(square) && square > 0, "%s: square of the gradient %g", scans[scan], square);
    free(gradient);
    comba_model_free(model);
  }
}
END_TEST

int main(void) {
  Suite *suite = suite_create("mixers");
  TCase *tests = tcase_create("every row");
  int rows = 0;
  while (comba_mixer_table[rows]) rows++;
  tcase_set_timeout(tests, 0);
  tcase_add_loop_test(tests, no_token_sees_a_later_one, 0, MODES * rows);
  tcase_add_loop_test(tests, prefill_then_single_tokens_is_one_forward, 0, MODES * rows);
  tcase_add_loop_test(tests, packed_sequences_are_separate_runs, 0, MODES * rows);
  tcase_add_loop_test(tests, a_saved_model_is_read_back, 0, MODES * rows);
  tcase_add_loop_test(tests, the_number_of_threads_does_not_matter, 0, MODES * rows);
  tcase_add_loop_test(tests, the_gradient_is_the_slope_of_the_loss, 0, MODES * rows);
  tcase_add_loop_test(tests, every_scan_runs_forward_and_backward, 0, MODES * rows);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
