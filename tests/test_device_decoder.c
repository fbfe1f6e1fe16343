/* Decoding on a GPU gives what it gives on the CPU: token by token, where several nodes run together, with one sequence, a few and
 * many, so that every way to compute a product of few rows is taken. Skipped where there is no GPU. */
#include <stdio.h>

#include "model_case.h"

enum { VOCABULARY = 40, TOKENS = 6, MOST = 40 };

#define OUTER                                                                                                          \
  "\"vocab_size\": 40, \"hidden_size\": 32, \"num_hidden_layers\": 2, \"intermediate_size\": 48, \"num_heads\": 2, "
static const char *const configs[] = {
    "{\"model_type\": \"comba\", " OUTER "\"head_dim\": 16, \"expand_v\": 1}",
    "{\"model_type\": \"comba\", " OUTER
    "\"head_dim\": 8, \"expand_v\": 1, \"num_v_heads\": 4, \"transition\": \"iplr\", "
    "\"p_normalize\": false, \"conv_size\": 2, \"decay_gate\": \"sigmoid\"}",
    "{\"model_type\": \"gated_deltanet\", " OUTER "\"head_dim\": 16, \"expand_v\": 2}",
    /* rows that no warp, and no piece of them, reads at once */
    "{\"model_type\": \"comba\", \"vocab_size\": 40, \"hidden_size\": 64, \"num_hidden_layers\": 1, "
    "\"intermediate_size\": 2200, \"num_heads\": 1, \"head_dim\": 64, \"expand_v\": 1, \"use_output_gate\": false}",
    "{\"model_type\": \"simple_gla\", " OUTER "\"expand_k\": 1, \"expand_v\": 1}",
    "{\"model_type\": \"transformer\", " OUTER "\"qk_norm\": true}",
    "{\"model_type\": \"transformer\", " OUTER "\"window_size\": 3}",
};
enum { CONFIGS = sizeof configs / sizeof *configs };

static comba_options options_of(comba_device device, comba_precision precision) {
  comba_options options;
  comba_options_default(&options);
  options.device = device;
  options.precision = precision;
  return options;
}

/* Logits (TOKENS, batch, VOCABULARY) of tokens that are fed one by one, after two at once */
static void decode(const char *config, const comba_options *options, int64_t batch, float *logits) {
  comba_model *model = model_case_create(config, options);
  comba_decoder *decoder = NULL;
  int32_t *ids = model_case_tokens((TOKENS + 2) * batch, VOCABULARY, 1);
  ck_assert_done(comba_decoder_create(&decoder, model, batch, TOKENS + 2));
  ck_assert_done(comba_decoder_feed(decoder, ids + TOKENS * batch, 2, NULL));
  for (int t = 0; t < TOKENS; t++)
    ck_assert_done(comba_decoder_feed(decoder, ids + t * batch, 1, logits + t * batch * VOCABULARY));
  free(ids);
  comba_decoder_free(decoder);
  comba_model_free(model);
}

START_TEST(decoding_is_that_of_the_cpu) {
  static const int64_t batches[] = {1, 3, 9, MOST};
  static const struct {
    comba_precision precision;
    double tolerance;
  } kinds[] = {{COMBA_PRECISION_FLOAT32, 2e-5}, {COMBA_PRECISION_BFLOAT16, 0.05}};
  static float expected[TOKENS * MOST * VOCABULARY], found[TOKENS * MOST * VOCABULARY];
  const comba_options cpu = options_of(COMBA_DEVICE_CPU, COMBA_PRECISION_FLOAT32);
  for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
    decode(configs[_i], &cpu, batches[b], expected);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
      const comba_options gpu = options_of(COMBA_DEVICE_CUDA, kinds[k].precision);
      decode(configs[_i], &gpu, batches[b], found);
      const double error = model_case_distance(found, expected, TOKENS * batches[b] * VOCABULARY);
      ck_assert_msg(error <= kinds[k].tolerance, "config %d, %d sequences, kind %d: logits differ by %.3g", _i,
                    (int)batches[b], (int)k, error);
    }
  }
}
END_TEST

int main(void) {
  comba_model *model = NULL;
  const comba_options gpu = options_of(COMBA_DEVICE_CUDA, COMBA_PRECISION_FLOAT32);
  if (comba_model_create(&model, configs[0], &gpu) != COMBA_OK) {
    printf("skipped: %s\n", comba_last_error());
    return 77;
  }
  comba_model_free(model);
  Suite *suite = suite_create("device_decoder");
  TCase *tests = tcase_create("device_decoder");
  tcase_add_loop_test(tests, decoding_is_that_of_the_cpu, 0, CONFIGS);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
