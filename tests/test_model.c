/* Language models of Comba, Gated DeltaNet and DeltaNet against the double-precision oracle: logits, loss, gradients, for each switch of the layer and both
 * modes; packed sequences; the mixer handle. */
#include <stdio.h>
#include <string.h>

#include "model/model_private.h"
#include "model_case.h"
#include "oracle/comba_model.h"

enum { VOCABULARY = 23, HIDDEN = 16, HEADS = 2, KEY = 8 };

typedef struct model_case {
  const char *name, *json; /* fields beyond those of `describe` */
  oracle_config oracle;
} model_case;

/* HV value heads of V, W taps, an MLP of m; then what differs from the released layer. */
#define CASE(NAME, HV, V, W, M, JSON, ...)                                                                             \
  {                                                                                                                    \
    NAME, JSON, {                                                                                                      \
      .vocabulary = VOCABULARY, .hidden = HIDDEN, .layers = 2, .heads = HEADS, .value_heads = HV, .key_size = KEY,     \
      .value_size = V, .taps = W, .mlp = M, .norm_epsilon = 1e-6, __VA_ARGS__                                          \
    }                                                                                                                  \
  }

#define MODEL(type) "\"model_type\": \"" type "\", "
/* Neither p nor a correction: the feedback is the normalised key. */
#define PLAIN .no_correction = true, .no_inner_decay = true, .feedback_not_unit = true
#define GATED_DELTANET PLAIN, .feedback_after_decay = true
#define DELTA_NET PLAIN, .decay = ORACLE_DECAY_ABSENT

static const model_case cases[] = {
    CASE("released", 2, 16, 4, 24, "\"expand_v\": 2", .beta_scale = 1),
    CASE("tied, narrow values", 2, 4, 4, 24, "\"expand_v\": 0.5, \"tie_word_embeddings\": true", .beta_scale = 1,
         .tied = true),
    CASE("grouped value heads", 4, 8, 4, 24, "\"num_v_heads\": 4", .beta_scale = 1),
    CASE("no convolution", 2, 8, 0, 24, "\"use_short_conv\": false", .beta_scale = 1),
    CASE("one tap", 2, 8, 1, 24, "\"conv_size\": 1", .beta_scale = 1),
    CASE("no MLP", 2, 8, 3, 0, "\"use_mlp\": false, \"conv_size\": 3", .beta_scale = 1),
    CASE("swish gate", 2, 8, 4, 24, "\"output_gate\": \"swish\"", .beta_scale = 1, .gate = ORACLE_GATE_SWISH),
    CASE("no gate", 2, 8, 4, 24, "\"use_output_gate\": false", .beta_scale = 1, .gate = ORACLE_GATE_NONE),
    CASE("feedback not normalised", 2, 8, 4, 24, "\"p_normalize\": false", .beta_scale = 1, .feedback_not_unit = true),
    CASE("correction after norm", 2, 8, 4, 24, "\"correction_after_norm\": true", .beta_scale = 1,
         .correction_after_norm = true),
    CASE("paper", 2, 8, 4, 24, "\"p_normalize\": false, \"correction_after_norm\": true", .beta_scale = 1,
         .feedback_not_unit = true, .correction_after_norm = true),
    CASE("paper, feedback without b", 4, 8, 4, 24,
         "\"num_v_heads\": 4, \"p_normalize\": false, \"correction_after_norm\": true, \"use_feedback_decay\": false",
         .beta_scale = 1, .feedback_not_unit = true, .correction_after_norm = true, .no_feedback_decay = true),
    CASE("fields ignored", 2, 8, 4, 24,
         "\"use_output_correction\": false, \"use_inner_decay\": false, \"correction_factor\": 0.02", .beta_scale = 1),
    CASE("no correction", 2, 8, 4, 24, "\"honor_ablation_fields\": true, \"use_output_correction\": false",
         .beta_scale = 1, .no_correction = true),
    CASE("no inner decay", 2, 8, 4, 24,
         "\"honor_ablation_fields\": true, \"use_inner_decay\": false, \"p_normalize\": false", .beta_scale = 1,
         .no_inner_decay = true, .feedback_not_unit = true),
    CASE("iplr", 2, 8, 4, 24, "\"transition\": \"iplr\", \"beta_scale\": 2", .beta_scale = 2,
         .feedback_after_decay = true),
    CASE("sigmoid decay", 2, 8, 4, 24, "\"decay_gate\": \"sigmoid\"", .beta_scale = 1, .decay = ORACLE_DECAY_SIGMOID),
    CASE("constant decay", 2, 8, 4, 24, "\"decay_gate\": \"constant\"", .beta_scale = 1,
         .decay = ORACLE_DECAY_CONSTANT),
    CASE("no decay", 2, 8, 4, 24, "\"decay_gate\": \"one\"", .beta_scale = 1, .decay = ORACLE_DECAY_ONE),
    CASE("gated_deltanet", 2, 16, 4, 24, MODEL("gated_deltanet") "\"expand_v\": 2", .beta_scale = 1,
         .gate = ORACLE_GATE_SWISH, GATED_DELTANET),
    CASE("gated_deltanet, grouped value heads, negative eigenvalues", 4, 8, 3, 24,
         MODEL("gated_deltanet") "\"num_v_heads\": 4, \"allow_neg_eigval\": true, \"conv_size\": 3", .beta_scale = 2,
         .gate = ORACLE_GATE_SWISH, GATED_DELTANET),
    CASE("gated_deltanet, no gate, no convolution", 2, 8, 0, 24,
         MODEL("gated_deltanet") "\"use_gate\": false, \"use_short_conv\": false", .beta_scale = 1,
         .gate = ORACLE_GATE_NONE, GATED_DELTANET),
    CASE("delta_net", 2, 8, 4, 24, MODEL("delta_net") "\"use_output_norm\": true", .beta_scale = 1,
         .gate = ORACLE_GATE_NONE, DELTA_NET),
    CASE("delta_net, gate, negative eigenvalues, relu", 2, 16, 4, 24,
         MODEL("delta_net") "\"use_gate\": true, \"allow_neg_eigval\": true, \"expand_v\": 2, "
                            "\"qk_activation\": \"relu\"",
         .beta_scale = 2, .gate = ORACLE_GATE_SWISH, .activation = ORACLE_ACTIVATION_RELU, DELTA_NET),
    CASE("delta_net, elu, sum", 2, 8, 4, 24, MODEL("delta_net") "\"qk_activation\": \"elu\", \"qk_norm\": \"sum\"",
         .beta_scale = 1, .gate = ORACLE_GATE_NONE, .activation = ORACLE_ACTIVATION_ELU, .sum_norm = true, DELTA_NET),
    CASE("delta_net, identity, no beta, no convolution", 2, 8, 0, 24,
         MODEL("delta_net") "\"qk_activation\": \"identity\", \"use_beta\": false, \"use_short_conv\": false",
         .beta_scale = 1, .gate = ORACLE_GATE_NONE, .activation = ORACLE_ACTIVATION_IDENTITY, .fixed_beta = true,
         DELTA_NET),
};
enum { CASES = sizeof cases / sizeof *cases };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};

static comba_model *create(const model_case *c, comba_mode mode) {
  char json[1024];
  comba_options options;
  comba_options_default(&options);
  options.mode = mode;
  snprintf(json, sizeof json,
           "{%s\"vocab_size\": %d, \"hidden_size\": %d, \"num_hidden_layers\": 2, "
           "\"num_heads\": %d, \"head_dim\": %d, \"intermediate_size\": 24, %s%s}",
           strstr(c->json, "model_type") ? "" : MODEL("comba"), VOCABULARY, HIDDEN, HEADS, KEY,
           strstr(c->json, "expand_v") ? "" : "\"expand_v\": 1, ", c->json);
  return model_case_create(json, &options);
}

static float forward(comba_model *model, const int32_t *ids, int64_t batch, int64_t length, comba_pass pass) {
  float loss = -1;
  const comba_batch input = {.batch = batch, .length = length, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &input, pass, &loss));
  return loss;
}

enum { MODES = 2 };

/* One model in each mode. */
static void create_both(const model_case *c, comba_model *model[MODES]) {
  for (int i = 0; i < MODES; i++) model[i] = create(c, modes[i]);
}

START_TEST(logits_and_loss_are_the_oracles) {
  const model_case *c = &cases[_i];
  const int64_t lengths[] = {1, 2, 63, 65, 130}, B = 2;
  comba_model *model[MODES];
  create_both(c, model);
  oracle_model *oracle = oracle_model_create(&c->oracle, model[0]);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    const int64_t T = lengths[i], count = B * T * VOCABULARY;
    int32_t *ids = model_case_tokens(B * T, VOCABULARY, (uint64_t)T);
    double *expected = malloc((size_t)count * sizeof *expected), loss = 0;
    float *rounded = malloc((size_t)count * sizeof *rounded);
    oracle_model_forward(oracle, ids, B, T, expected, &loss);
    for (int64_t j = 0; j < count; j++) rounded[j] = (float)expected[j];
    for (int run = 0; run < 2 * MODES; run++) {
      const comba_pass pass = run / MODES ? COMBA_PASS_TRAIN : COMBA_PASS_EVALUATE;
      const float found = forward(model[run % MODES], ids, B, T, pass);
      const double error = model_case_distance(comba_model_logits(model[run % MODES]), rounded, count);
      ck_assert_msg(error <= 1e-5, "%s, run %d, %d tokens: logits differ by %.3g", c->name, run, (int)T, error);
      ck_assert_msg(fabs(found - loss) <= 1e-6 * fabs(loss), "%s, run %d, %d tokens: loss %.9g, expected %.9g", c->name,
                    run, (int)T, (double)found, loss);
    }
    free(ids);
    free(expected);
    free(rounded);
  }
  oracle_model_free(oracle);
  for (int i = 0; i < MODES; i++) comba_model_free(model[i]);
}
END_TEST

/* d loss / d weight[at] by central differences of the oracle. */
static double slope(oracle_model *oracle, double *weight, int64_t at, const int32_t *ids, int64_t T, double *logits) {
  const double before = weight[at], step = 1e-4 * fmax(1, fabs(before));
  double above, below;
  weight[at] = before + step;
  oracle_model_forward(oracle, ids, 1, T, logits, &above);
  weight[at] = before - step;
  oracle_model_forward(oracle, ids, 1, T, logits, &below);
  weight[at] = before;
  return (above - below) / (2 * step);
}

/* At the largest gradient of each weight and at a place taken by chance. */
START_TEST(gradients_are_the_oracles_slopes) {
  const model_case *c = &cases[_i];
  const int64_t T = 70; /* two chunks */
  comba_model *model[MODES];
  create_both(c, model);
  oracle_model *oracle = oracle_model_create(&c->oracle, model[0]);
  int32_t *ids = model_case_tokens(T, VOCABULARY, 1);
  double *logits = malloc((size_t)(T * VOCABULARY) * sizeof *logits);
  for (int i = 0; i < MODES; i++) {
    forward(model[i], ids, 1, T, COMBA_PASS_TRAIN);
    ck_assert_done(comba_model_backward(model[i], 1));
  }
  for (size_t i = 0; i < comba_model_parameters(model[0]); i++) {
    comba_parameter p[MODES];
    for (int m = 0; m < MODES; m++) ck_assert_done(comba_model_parameter(model[m], i, &p[m]));
    int64_t largest = 0;
    for (int64_t j = 1; j < p[0].elements; j++)
      if (fabsf(p[0].gradient[j]) > fabsf(p[0].gradient[largest])) largest = j;
    const double scale = fabs((double)p[0].gradient[largest]);
    const int64_t places[] = {largest, (int64_t)comba_random_below(1, i, 0, (uint64_t)p[0].elements)};
    for (size_t j = 0; j < sizeof places / sizeof *places; j++) {
      const double expected = slope(oracle, oracle_model_weight(oracle, p[0].name), places[j], ids, T, logits);
      for (int m = 0; m < MODES; m++) {
        const double found = p[m].gradient[places[j]];
        ck_assert_msg(fabs(found - expected) <= 1e-3 * fmax(fabs(expected), 0.05 * scale) + 1e-7,
                      "%s, mode %d: %s[%d]: gradient %.7g, expected %.7g", c->name, m, p[0].name, (int)places[j], found,
                      expected);
      }
    }
  }
  free(ids);
  free(logits);
  oracle_model_free(oracle);
  for (int i = 0; i < MODES; i++) comba_model_free(model[i]);
}
END_TEST

/* Sequences of 5, 0, 64, 1 and 30 tokens in one row: logits, loss and gradients as if each ran alone. */
START_TEST(packed_sequences_do_not_see_each_other) {
  const int32_t offsets[] = {0, 5, 5, 69, 70, 100};
  enum { SEQUENCES = 5, T = 100 };
  comba_model *model = create(&cases[0], modes[_i]), *alone = create(&cases[0], modes[_i]);
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
  comba_model *model = create(&cases[0], COMBA_MODE_AUTO);
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
  TCase *oracle = tcase_create("oracle"), *rest = tcase_create("rest");
  tcase_set_timeout(oracle, 0);
  tcase_add_loop_test(oracle, logits_and_loss_are_the_oracles, 0, CASES);
  tcase_add_loop_test(oracle, gradients_are_the_oracles_slopes, 0, CASES);
  tcase_add_loop_test(rest, packed_sequences_do_not_see_each_other, 0, 2);
  tcase_add_test(rest, wrong_batches_are_refused);
  tcase_add_test(rest, a_mixer_alone_is_the_models);
  suite_add_tcase(suite, oracle);
  suite_add_tcase(suite, rest);
  return run_suite(suite);
}
