/* Language models: packed sequences, batches that are refused, and the mixer handle. What they compute is for
 * test_recurrences.c. */
#include <stdio.h>
#include <string.h>

#include "model/model_private.h"
#include "model_case.h"

enum { VOCABULARY = 23, HIDDEN = 16 };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};

static comba_model *create(comba_mode mode) {
  comba_options options;
  comba_options_default(&options);
  options.mode = mode;
  return model_case_create("{\"model_type\": \"comba\", \"vocab_size\": 23, \"hidden_size\": 16, "
                           "\"num_hidden_layers\": 2, \"num_heads\": 2, \"head_dim\": 8, \"intermediate_size\": 24}",
                           &options);
}

static float forward(comba_model *model, const int32_t *ids, int64_t batch, int64_t length, comba_pass pass) {
  float loss = -1;
  const comba_batch input = {.batch = batch, .length = length, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &input, pass, &loss));
  return loss;
}

/* Sequences of 5, 0, 64, 1 and 30 tokens in one row: logits, loss and gradients as if each ran alone. */
START_TEST(packed_sequences_do_not_see_each_other) {
  const int32_t offsets[] = {0, 5, 5, 69, 70, 100};
  enum { SEQUENCES = 5, T = 100 };
  comba_model *model = create(modes[_i]), *alone = create(modes[_i]);
  int32_t *ids = model_case_tokens(T, VOCABULARY, 7);
  float *logits = malloc(T * VOCABULARY * sizeof *logits), loss;
  double sum = 0;
  int targets = 0;
  for (int s = 0; s < SEQUENCES; s++) {
    const int length = offsets[s + 1] - offsets[s];
    if (!length) continue;
    const float own = forward(alone, ids + offsets[s], 1, length, COMBA_PASS_TRAIN);
    memcpy(logits + offsets[s] * VOCABULARY, comba_model_logits(alone), (size_t)(length * VOCABULARY) * sizeof *logits);
    sum += (double)own * (length - 1);
    targets += length - 1;
    ck_assert_done(comba_model_backward(alone, (float)(length - 1)));
  }
  const comba_batch packed = {.batch = 1, .length = T, .input_ids = ids, .cu_seqlens = offsets, .sequences = SEQUENCES};
  ck_assert_done(comba_model_forward(model, &packed, COMBA_PASS_TRAIN, &loss));
  const double error = model_case_distance(comba_model_logits(model), logits, T * VOCABULARY);
  ck_assert_msg(error < 2e-6, "packed logits differ by %.3g", error);
  ck_assert_double_eq_tol(loss, sum / targets, 1e-6 * loss);

  ck_assert_done(comba_model_backward(model, (float)targets));
  int64_t count;
  float *found = model_case_gradients(model, &count), *expected = model_case_gradients(alone, &count);
  const double gradient_error = model_case_distance(found, expected, count);
  ck_assert_msg(gradient_error < 1e-5, "packed gradients differ by %.3g", gradient_error);
  free(ids);
  free(logits);
  free(found);
  free(expected);
  comba_model_free(model);
  comba_model_free(alone);
}
END_TEST

START_TEST(wrong_batches_are_refused) {
  comba_model *model = create(COMBA_MODE_AUTO);
  const int32_t ids[] = {1, 2, 3, VOCABULARY}, targets[] = {1, -100, 2, -1}, offsets[] = {0, 3, 2}, late[] = {1, 3};
  const struct {
    comba_batch batch;
    const char *message;
  } wrong[] = {
      {{.batch = 0, .length = 3, .input_ids = ids}, "batch is 0"},
      {{.batch = 1, .length = 0, .input_ids = ids}, "length is 0"},
      {{.batch = 1, .length = 3}, "input_ids is missing"},
      {{.batch = 1, .length = 4, .input_ids = ids}, "input_ids: value 23 at position 3"},
      {{.batch = 1, .length = 3, .input_ids = ids, .targets = targets + 1}, "targets: value -1 at position 2"},
      {{.batch = 1, .length = 3, .input_ids = ids, .cu_seqlens = offsets, .sequences = 2}, "entry 2 is 2"},
      {{.batch = 1, .length = 3, .input_ids = ids, .cu_seqlens = late, .sequences = 1}, "entry 0 is 1"},
      {{.batch = 3, .length = 1, .input_ids = ids, .cu_seqlens = offsets, .sequences = 2}, "batch is 3, expected 1"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    float loss = 7;
    ck_assert_int_eq(comba_model_forward(model, &wrong[i].batch, COMBA_PASS_TRAIN, &loss), COMBA_ERROR_ARGUMENT);
    ck_assert_msg(strstr(comba_last_error(), wrong[i].message), "'%s' lacks '%s'", comba_last_error(),
                  wrong[i].message);
    ck_assert(loss == 7);
  }
  ck_assert_int_eq(comba_model_backward(model, 1), COMBA_ERROR_ARGUMENT);
  forward(model, ids, 1, 3, COMBA_PASS_EVALUATE);
  ck_assert_int_eq(comba_model_backward(model, 1), COMBA_ERROR_ARGUMENT);
  comba_model_free(model);
}
END_TEST

/* ---- The mixer handle: y = mixer(x) stands in a one-layer model x = E, z = x + mixer(norm(x)), logits = norm(z) W^T. ---- */

static const char one_layer[] =
    "{\"model_type\": \"comba\", \"vocab_size\": 23, \"hidden_size\": 16, \"num_hidden_layers\": 1, \"num_heads\": 2, "
    "\"head_dim\": 8, \"expand_v\": 1, \"use_mlp\": false}";

static void copy_mixer_weights(const comba_model *model, const comba_mixer *mixer) {
  ck_assert_uint_gt(comba_mixer_parameters(mixer), 10);
  for (size_t i = 0; i < comba_mixer_parameters(mixer); i++) {
    comba_parameter own;
    char name[128];
    ck_assert_done(comba_mixer_parameter(mixer, i, &own));
    snprintf(name, sizeof name, "model.layers.0.attn.%s", own.name);
    const comba_parameter p = model_case_parameter(model, name);
    ck_assert_int_eq(p.elements, own.elements);
    memcpy(own.data, p.data, (size_t)p.elements * sizeof(float));
  }
}

/* y = z w / r, r = sqrt(mean z^2 + 1e-6), row by row; returns r. */
static void norm_rows(const float *z, const float *w, int64_t rows, double *y, double *r) {
  for (int64_t row = 0; row < rows; row++) {
    double sum = 0;
    for (int64_t i = 0; i < HIDDEN; i++) sum += (double)z[row * HIDDEN + i] * z[row * HIDDEN + i];
    r[row] = sqrt(sum / HIDDEN + 1e-6);
    for (int64_t i = 0; i < HIDDEN; i++) y[row * HIDDEN + i] = z[row * HIDDEN + i] / r[row] * w[i];
  }
}

START_TEST(a_mixer_alone_is_the_models) {
  enum { B = 2, T = 70, ROWS = B * T };
  comba_model *model = model_case_create(one_layer, NULL);
  comba_mixer *mixer = NULL;
  ck_assert_done(comba_mixer_create(&mixer, one_layer, NULL));
  copy_mixer_weights(model, mixer);
  int32_t *ids = model_case_tokens(ROWS, VOCABULARY, 3);
  const float *E = model_case_parameter(model, "model.embeddings.weight").data;
  const float *W = model_case_parameter(model, "lm_head.weight").data;
  const float *attn_norm = model_case_parameter(model, "model.layers.0.attn_norm.weight").data;
  const float *final_norm = model_case_parameter(model, "model.norm.weight").data;
  static float x[ROWS * HIDDEN], z[ROWS * HIDDEN], dz[ROWS * HIDDEN], dx[ROWS * HIDDEN], logits[ROWS * VOCABULARY];
  static double n[ROWS * HIDDEN], r[ROWS];

  for (int64_t i = 0; i < ROWS * HIDDEN; i++) z[i] = E[ids[i / HIDDEN] * HIDDEN + i % HIDDEN];
  norm_rows(z, attn_norm, ROWS, n, r);
  for (int64_t i = 0; i < ROWS * HIDDEN; i++) x[i] = (float)n[i];
  static float y[ROWS * HIDDEN];
  ck_assert_int_eq(comba_mixer_backward(mixer, dz, dx), COMBA_ERROR_ARGUMENT);
  ck_assert_done(comba_mixer_forward(mixer, x, B, T, NULL, 0, y));
  for (int64_t i = 0; i < ROWS * HIDDEN; i++) z[i] += y[i];
  norm_rows(z, final_norm, ROWS, n, r);
  for (int64_t i = 0; i < ROWS * VOCABULARY; i++) {
    double sum = 0;
    for (int64_t j = 0; j < HIDDEN; j++) sum += n[i / VOCABULARY * HIDDEN + j] * W[i % VOCABULARY * HIDDEN + j];
    logits[i] = (float)sum;
  }
  forward(model, ids, B, T, COMBA_PASS_TRAIN);
  const double error = model_case_distance(comba_model_logits(model), logits, ROWS * VOCABULARY);
  ck_assert_msg(error < 1e-5, "logits by the mixer alone differ by %.3g", error);

  for (int64_t row = 0; row < ROWS; row++) { /* dz from dlogits = (softmax - onehot) / targets */
    double dn[HIDDEN] = {0}, total = 0, mean = 0;
    if (row % T == T - 1) {
      memset(dz + row * HIDDEN, 0, HIDDEN * sizeof *dz);
      continue;
    }
    for (int64_t v = 0; v < VOCABULARY; v++) total += exp(logits[row * VOCABULARY + v]);
    for (int64_t v = 0; v < VOCABULARY; v++) {
      const double d = (exp(logits[row * VOCABULARY + v]) / total - (v == ids[row + 1])) / (B * (T - 1));
      for (int64_t j = 0; j < HIDDEN; j++) dn[j] += d * W[v * HIDDEN + j] * final_norm[j];
    }
    for (int64_t j = 0; j < HIDDEN; j++) mean += dn[j] * z[row * HIDDEN + j] / r[row] / HIDDEN;
    for (int64_t j = 0; j < HIDDEN; j++)
      dz[row * HIDDEN + j] = (float)((dn[j] - mean * z[row * HIDDEN + j] / r[row]) / r[row]);
  }
  ck_assert_done(comba_mixer_backward(mixer, dz, dx));
  ck_assert_done(comba_model_backward(model, 1));
  for (size_t i = 0; i < comba_mixer_parameters(mixer); i++) {
    comba_parameter own;
    char name[128];
    ck_assert_done(comba_mixer_parameter(mixer, i, &own));
    snprintf(name, sizeof name, "model.layers.0.attn.%s", own.name);
    const double off = model_case_distance(own.gradient, model_case_parameter(model, name).gradient, own.elements);
    ck_assert_msg(off < 1e-4, "%s: gradients differ by %.3g", name, off);
  }
  comba_mixer_zero_gradient(mixer);
  comba_parameter first;
  ck_assert_done(comba_mixer_parameter(mixer, 0, &first));
  ck_assert(first.gradient[0] == 0);
  free(ids);
  comba_mixer_free(mixer);
  comba_model_free(model);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("model");
  TCase *tests = tcase_create("all");
  tcase_add_loop_test(tests, packed_sequences_do_not_see_each_other, 0, 2);
  tcase_add_test(tests, wrong_batches_are_refused);
  tcase_add_test(tests, a_mixer_alone_is_the_models);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
