/* What RWKV-7 has that its recurrence does not show: initial values by place, the warp of the largest logit, and what of a config
 * is refused; and what Kimi Delta Attention refuses. */
#include <stdio.h>
#include <string.h>

#include "model_case.h"

enum { HIDDEN = 128, LAYERS = 3, VOCABULARY = 200, K = 64, B = 2, T = 20 };

static comba_model *create(const char *more) {
  char json[1024];
  comba_model *model = NULL;
  snprintf(json, sizeof json,
           "{\"model_type\": \"rwkv7\", \"hidden_size\": %d, \"num_hidden_layers\": %d, \"vocab_size\": %d%s}", HIDDEN,
           LAYERS, VOCABULARY, more);
  ck_assert_done(comba_model_create(&model, json, NULL));
  return model;
}

/* W W^T, or W^T W where W has fewer columns, is gain^2 times the identity. */
static void check_orthogonal(const comba_model *model, const char *name, double gain) {
  const comba_parameter p = model_case_parameter(model, name);
  const int64_t rows = p.shape[0], columns = p.shape[1], n = rows < columns ? rows : columns;
  double worst = 0;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j <= i; j++) {
      double sum = 0;
      for (int64_t c = 0; c < rows + columns - n; c++)
        sum += rows < columns ? (double)p.data[i * columns + c] * p.data[j * columns + c]
                              : (double)p.data[c * columns + i] * p.data[c * columns + j];
      worst = fmax(worst, fabs(sum / (gain * gain) - (i == j)));
    }
  ck_assert_msg(worst <= 1e-5, "%s: an inner product is off by %.3g", name, worst);
}

static void check_element(const comba_model *model, const char *name, int64_t n, double expected) {
  const comba_parameter p = model_case_parameter(model, name);
  ck_assert_msg(fabs((double)p.data[n] - expected) <= 1e-6, "%s[%d] is %.8g, expected %.8g", name, (int)n,
                (double)p.data[n], expected);
}

START_TEST(initial_values_follow_the_place) {
  comba_model *model = create("");
  check_orthogonal(model, "model.layers.0.attn.r_proj.weight", 1);
  check_orthogonal(model, "model.layers.2.attn.k_proj.weight", 0.1);
  check_orthogonal(model, "model.layers.1.attn.w_lora.lora.2.weight", 0.1);
  check_orthogonal(model, "model.layers.1.ffn.key.weight", 1);
  check_orthogonal(model, "lm_head.weight", 0.5 * sqrt((double)VOCABULARY / HIDDEN));
  check_element(model, "model.layers.1.ffn.value.weight", 7, 0);
  /* channel 96 of 128, the middle layer of three: z is where it is in its head, from -1 to 1 */
  const double n = 96, z = (32 - 31.5) / 31.5, lin = n / 127 - 0.5;
  check_element(model, "model.layers.1.attn.x_r", 96, 1 - pow(n / 128, 0.2 * (2.0 / 3)));
  check_element(model, "model.layers.1.attn.x_a", 96, 1 - pow(n / 128, 0.9 * (2.0 / 3)));
  check_element(model, "model.layers.1.ffn.x_k", 96, 1 - pow(n / 128, pow(2.0 / 3, 4)));
  check_element(model, "model.layers.1.attn.w_lora.lora.2.bias", 96,
                -6 + 6 * pow(n / 127, 1 + pow(0.5, 0.3)) + 0.5 + 2.5 * z * z);
  check_element(model, "model.layers.1.attn.a_lora.lora.2.bias", 96, -0.19 + 0.3 * z * z + 0.4 * lin);
  check_element(model, "model.layers.1.attn.v_lora.lora.2.bias", 96, 0.73 - 0.4 * lin);
  check_element(model, "model.layers.1.attn.k_k", 96, 0.71 - 0.1 * lin);
  check_element(model, "model.layers.1.attn.g_norm.weight", 96, pow(2.0 / 3, 0.7));
  comba_model_free(model);
}
END_TEST

/* <gradient of the head, head>, and the squares of the largest logits */
static double along_head(comba_model *model, const int32_t *ids, double *squares) {
  const comba_batch batch = {.batch = B, .length = T, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_TRAIN, NULL));
  const float *logits = comba_model_logits(model);
  const comba_parameter head = model_case_parameter(model, "lm_head.weight");
  double sum = 0;
  *squares = 0;
  for (int64_t row = 0; row < B * T; row++) {
    float largest = logits[row * VOCABULARY];
    for (int64_t j = 1; j < VOCABULARY; j++) largest = fmaxf(largest, logits[row * VOCABULARY + j]);
    *squares += (double)largest * largest;
  }
  ck_assert_done(comba_model_backward(model, 1));
  for (int64_t i = 0; i < head.elements; i++) sum += (double)head.gradient[i] * head.data[i];
  return sum;
}

/* The warp adds 1e-4 / (B T) max to the gradient of the largest logit of every row, the last one too. */
START_TEST(the_warp_pulls_the_largest_logits) {
  comba_model *warped = create(""), *plain = create(", \"use_l2warp\": false");
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 1);
  for (int i = 0; i < 2; i++) { /* logits of order one would leave the difference to rounding */
    const comba_parameter head = model_case_parameter(i ? plain : warped, "lm_head.weight");
    for (int64_t k = 0; k < head.elements; k++) head.data[k] *= 20;
  }
  double squares, unused;
  const double with = along_head(warped, ids, &squares), without = along_head(plain, ids, &unused);
  const double expected = 1e-4 / (B * T) * squares;
  ck_assert_msg(fabs(with - without - expected) <= 1e-3 * expected, "a difference of %.8g, expected %.8g",
                with - without, expected);
  free(ids);
  comba_model_free(warped);
  comba_model_free(plain);
}
END_TEST

START_TEST(bad_configs_are_named) {
  static const char *const cases[][2] = {
      {"\"rwkv7\", \"head_dim\": 48", "head_dim is 48, expected a divisor of hidden_size 128"},
      {"\"rwkv7\", \"head_dim\": null", "head_dim"},
      {"\"rwkv7\", \"value_dim\": 129", "value_dim is 129, expected a multiple of the number of heads 2"},
      {"\"rwkv7\", \"value_dim\": [128, 256]", "value_dim"},
      {"\"rwkv7\", \"value_dim\": []", "value_dim"},
      {"\"rwkv7\", \"value_dim\": [128, 128, 128]", "value_dim has 3 values, expected one for each of the 2 layers"},
      {"\"rwkv7\", \"hidden_act\": \"tanh\"", "hidden_act is \"tanh\", expected one of \"sqrelu\""},
      {"\"kda\", \"num_v_heads\": 20", "num_v_heads is 20, expected a multiple of num_heads 16"},
      {"\"kda\", \"lower_bound\": 1", "lower_bound is 1"},
      {"\"kda\", \"safe_gate\": true", "lower_bound is 0 (null), expected -5 or more and less than 0 with safe_gate"},
      {"\"kda\", \"safe_gate\": true, \"lower_bound\": -6", "lower_bound is -6"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char json[256];
    comba_model *model = NULL;
    snprintf(json, sizeof json, "{\"hidden_size\": 128, \"num_hidden_layers\": 2, \"model_type\": %s}", cases[i][0]);
    ck_assert_msg(comba_model_create(&model, json, NULL) == COMBA_ERROR_ARGUMENT, "%s", cases[i][0]);
    ck_assert_msg(strstr(comba_last_error(), cases[i][1]) != NULL, "%s: '%s' is not in: %s", cases[i][0], cases[i][1],
                  comba_last_error());
  }
}
END_TEST

int main(void) {
  Suite *suite = suite_create("rwkv7");
  TCase *tests = tcase_create("beside the recurrence");
  tcase_set_timeout(tests, 0);
  tcase_add_test(tests, initial_values_follow_the_place);
  tcase_add_test(tests, the_warp_pulls_the_largest_logits);
  tcase_add_test(tests, bad_configs_are_named);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
