/* Decoding: a prompt in one call and then token by token gives the logits of one forward pass, for recurrent states, key/value
 * caches and rings; a state that went through a file continues bitwise equal. */
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "model_case.h"

enum { VOCABULARY = 23, B = 2, T = 90 };

#define OUTER "\"vocab_size\": 23, \"hidden_size\": 16, \"intermediate_size\": 24, "
#define COMBA "{\"model_type\": \"comba\", \"num_heads\": 2, \"head_dim\": 8, \"expand_v\": 1, " OUTER
#define TRANSFORMER "{\"model_type\": \"transformer\", \"num_heads\": 4, \"num_kv_heads\": 2, " OUTER

static const char *const configs[] = {
    COMBA "\"num_hidden_layers\": 2}",
    COMBA "\"num_hidden_layers\": 2, \"num_v_heads\": 4, \"transition\": \"iplr\", \"tie_word_embeddings\": true}",
    COMBA "\"num_hidden_layers\": 1, \"use_short_conv\": false, \"use_mlp\": false}",
    COMBA "\"num_hidden_layers\": 1, \"conv_size\": 1}",
    COMBA "\"num_hidden_layers\": 1, \"conv_size\": 7, \"p_normalize\": false, \"correction_after_norm\": true}",
    TRANSFORMER "\"num_hidden_layers\": 2, \"qk_norm\": true}",
    TRANSFORMER "\"num_hidden_layers\": 2, \"window_size\": 9, \"qkv_bias\": true}",
    TRANSFORMER "\"num_hidden_layers\": 1, \"window_size\": 1}",
    TRANSFORMER "\"num_hidden_layers\": 1, \"window_size\": 200, \"use_rope\": false}",
    COMBA "\"num_hidden_layers\": 3, \"attn\": {\"layers\": [1], \"num_heads\": 4, \"num_kv_heads\": 2}}",
    COMBA "\"num_hidden_layers\": 3, \"attn\": [{\"layers\": [0], \"num_heads\": 2, \"window_size\": 16}, "
          "{\"layers\": [2], \"num_heads\": 4, \"qkv_bias\": true}]}",
};
enum { CONFIGS = sizeof configs / sizeof *configs };

/* Logits of all tokens by one forward pass, (B,T,V). */
static void run_whole(comba_model *model, const int32_t *ids, float *logits) {
  const comba_batch batch = {.batch = B, .length = T, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, NULL));
  memcpy(logits, comba_model_logits(model), B * T * VOCABULARY * sizeof *logits);
}

/* Feeds tokens [from, to) of ids (B,T); logits (B,V) of the last. */
static void feed(comba_decoder *decoder, const int32_t *ids, int64_t from, int64_t to, float *logits) {
  int32_t piece[B * T];
  for (int64_t b = 0; b < B; b++)
    memcpy(piece + b * (to - from), ids + b * T + from, (size_t)(to - from) * sizeof *piece);
  ck_assert_done(comba_decoder_feed(decoder, piece, to - from, logits));
  ck_assert_int_eq(comba_decoder_position(decoder), to);
}

START_TEST(prefill_then_single_tokens) {
  const int64_t prefills[] = {1, 3, 63, 64, 65};
  comba_model *model = model_case_create(configs[_i], NULL);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 1);
  static float whole[B * T * VOCABULARY], expected[B * VOCABULARY], logits[B * VOCABULARY];
  comba_decoder *decoder = NULL;
  run_whole(model, ids, whole);
  ck_assert_done(comba_decoder_create(&decoder, model, B, T));
  for (size_t i = 0; i < sizeof prefills / sizeof *prefills; i++) {
    comba_decoder_reset(decoder);
    ck_assert_int_eq(comba_decoder_position(decoder), 0);
    for (int64_t from = 0, to = prefills[i]; from < T; from = to++) {
      feed(decoder, ids, from, to, logits);
      for (int64_t b = 0; b < B; b++)
        memcpy(expected + b * VOCABULARY, whole + (b * T + to - 1) * VOCABULARY, VOCABULARY * sizeof *expected);
      const double error = model_case_distance(logits, expected, B * VOCABULARY);
      ck_assert_msg(error <= 2e-5, "config %d: prefill of %d: logits after token %d differ by %.3g", _i,
                    (int)prefills[i], (int)to, error);
    }
  }
  free(ids);
  comba_decoder_free(decoder);
  comba_model_free(model);
}
END_TEST

START_TEST(a_saved_state_continues_bitwise_equal) {
  comba_model *model = model_case_create(configs[_i], NULL);
  int32_t *ids = model_case_tokens(B * T, VOCABULARY, 2);
  float logits[B * VOCABULARY], again[B * VOCABULARY];
  char path[] = "/tmp/comba-decoder-XXXXXX";
  comba_decoder *decoder = NULL, *other = NULL;
  const int file = mkstemp(path);
  ck_assert(file >= 0);
  close(file);
  ck_assert_done(comba_decoder_create(&decoder, model, B, T));
  ck_assert_done(comba_decoder_create(&other, model, B, T));
  feed(other, ids, 0, 7, again); /* to be forgotten */
  feed(decoder, ids, 0, 37, logits);
  ck_assert_done(comba_decoder_save(decoder, path));
  ck_assert_done(comba_decoder_restore(other, path));
  ck_assert_int_eq(comba_decoder_position(other), 37);
  for (int64_t t = 37; t < 60; t += 3) {
    feed(decoder, ids, t, t + 3, logits);
    feed(other, ids, t, t + 3, again);
    ck_assert_mem_eq(logits, again, sizeof logits);
  }

  /* one sequence more, or a file cut short: refused, and the state stays as it was */
  comba_decoder *wider = NULL;
  ck_assert_done(comba_decoder_create(&wider, model, B + 1, T));
  ck_assert_int_eq(comba_decoder_restore(wider, path), COMBA_ERROR_FORMAT);
  ck_assert_int_eq(truncate(path, 100), 0);
  ck_assert_int_eq(comba_decoder_restore(other, path), COMBA_ERROR_FORMAT);
  ck_assert_int_eq(comba_decoder_position(other), comba_decoder_position(decoder));
  feed(decoder, ids, 61, 62, logits);
  feed(other, ids, 61, 62, again);
  ck_assert_mem_eq(logits, again, sizeof logits);
  unlink(path);
  free(ids);
  comba_decoder_free(wider);
  comba_decoder_free(other);
  comba_decoder_free(decoder);
  comba_model_free(model);
}
END_TEST

/* The capacity bounds layers that look back on everything, and no others, even where a window is as wide. */
START_TEST(capacity_bounds_unwindowed_attention_alone) {
  const struct {
    const char *config;
    int64_t capacity;
    bool bounded;
  } rows[] = {
      {COMBA "\"num_hidden_layers\": 1}", 4, false},
      {TRANSFORMER "\"num_hidden_layers\": 1}", 4, true},
      {TRANSFORMER "\"num_hidden_layers\": 1, \"window_size\": 4}", 4, false},
      {COMBA "\"num_hidden_layers\": 2, \"attn\": {\"layers\": [1], \"num_heads\": 4}}", 4, true},
      {COMBA "\"num_hidden_layers\": 2, \"attn\": {\"layers\": [1], \"num_heads\": 4, \"window_size\": 4}}", 4, false}};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    comba_model *model = model_case_create(rows[i].config, NULL);
    comba_decoder *decoder = NULL;
    const int32_t ids[5] = {1, 2, 3, 4, 5};
    float logits[VOCABULARY];
    ck_assert_done(comba_decoder_create(&decoder, model, 1, rows[i].capacity));
    ck_assert_done(comba_decoder_feed(decoder, ids, 4, logits));
    ck_assert_msg(comba_decoder_feed(decoder, ids, 1, NULL) == (rows[i].bounded ? COMBA_ERROR_ARGUMENT : COMBA_OK),
                  "row %d: position %d", (int)i, (int)comba_decoder_position(decoder));
    comba_decoder_free(decoder);
    comba_model_free(model);
  }
}
END_TEST

START_TEST(wrong_calls_are_refused) {
  comba_model *model = model_case_create(configs[0], NULL);
  comba_decoder *decoder = NULL;
  const int32_t ids[] = {1, VOCABULARY, -1};
  ck_assert_int_eq(comba_decoder_create(&decoder, model, 0, 4), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_decoder_create(&decoder, model, 1, 0), COMBA_ERROR_ARGUMENT);
  ck_assert_ptr_null(decoder);
  ck_assert_done(comba_decoder_create(&decoder, model, 1, 4));
  ck_assert_int_eq(comba_decoder_feed(decoder, ids, 0, NULL), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_decoder_feed(decoder, ids, 2, NULL), COMBA_ERROR_ARGUMENT);
  ck_assert(strstr(comba_last_error(), "token 23 at position 1"));
  ck_assert_int_eq(comba_decoder_feed(decoder, ids + 2, 1, NULL), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(comba_decoder_restore(decoder, "/nonexistent/state"), COMBA_ERROR_IO);
  ck_assert_int_eq(comba_decoder_position(decoder), 0);
  comba_decoder_free(decoder);
  comba_model_free(model);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("decoder");
  TCase *tests = tcase_create("decoder");
  tcase_add_loop_test(tests, prefill_then_single_tokens, 0, CONFIGS);
  tcase_add_loop_test(tests, a_saved_state_continues_bitwise_equal, 0, CONFIGS);
  tcase_add_test(tests, capacity_bounds_unwindowed_attention_alone);
  tcase_add_test(tests, wrong_calls_are_refused);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
