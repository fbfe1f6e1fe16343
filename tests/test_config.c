/* config.json: defaults, round trips, and what is wrong with one is named by field and value. */
#include <check.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comba.h"
#include "mixers/mixer.h"
#include "model/config.h"
#include "model/json.h"
#include "model/schema.h"

static comba_config *parse(const char *text) {
  comba_config *config = NULL;
  ck_assert_msg(comba_config_parse(&config, text, "config.json", NULL) == COMBA_OK, "%s: %s", text, comba_last_error());
  return config;
}

static char *write_text(const comba_config *config) {
  char *text = NULL;
  ck_assert_msg(comba_config_write(config, &text) == COMBA_OK, "%s", comba_last_error());
  return text;
}

static void expect_message(const char *part, const char *what) {
  ck_assert_msg(strstr(comba_last_error(), part) != NULL, "%s: '%s' is not in: %s", what, part, comba_last_error());
}

/* What was parsed must be what its text parses to, and the text must not change any more. */
static void expect_round_trip(const comba_config *config) {
  char *text = write_text(config);
  comba_config *again = parse(text);
  char *second = write_text(again);
  ck_assert_str_eq(text, second);
  ck_assert_str_eq(config->model_type, again->model_type);
  ck_assert_int_eq(memcmp(config->mixer_config, again->mixer_config, config->mixer->config_size), 0);
  ck_assert_int_eq(memcmp(config->hybrid_of_layer, again->hybrid_of_layer, sizeof config->hybrid_of_layer), 0);
  ck_assert_int_eq(config->hidden_size, again->hidden_size);
  ck_assert(config->norm_eps == again->norm_eps);
  free(text);
  free(second);
  comba_config_free(again);
}

/* ---- Defaults and values ---- */

START_TEST(missing_fields_have_fla_defaults) {
  comba_config *config = parse("{\"model_type\": \"comba\"}");
  ck_assert_int_eq(config->kind, COMBA_KIND_LANGUAGE);
  ck_assert_int_eq(config->hidden_size, 2048);
  ck_assert_int_eq(config->num_hidden_layers, 21);
  ck_assert_int_eq(config->vocab_size, 32000);
  ck_assert(config->norm_eps == 1e-6);
  ck_assert(config->use_mlp && !config->tie_word_embeddings);
  ck_assert_int_eq(config->pad_token_id, -1);
  ck_assert_int_eq(config->eos_token_id, 2);
  ck_assert_int_eq(comba_config_intermediate_size(config), 5632);
  expect_round_trip(config);
  comba_config_free(config);

  config = parse("{\"model_type\": \"transformer\", \"hidden_size\": 1024, \"hidden_ratio\": null}");
  ck_assert_int_eq(config->num_hidden_layers, 24);
  ck_assert_int_eq(comba_config_intermediate_size(config), 2816);
  expect_round_trip(config);
  comba_config_free(config);

  config = parse("{\"model_type\": \"comba_vision\"}");
  ck_assert_int_eq(config->kind, COMBA_KIND_VISION);
  ck_assert_int_eq(config->num_hidden_layers, 21);
  ck_assert_int_eq(config->num_classes, 1000);
  ck_assert_int_eq(config->train_scan_type, COMBA_SCAN_TYPE_UNI);
  ck_assert_int_eq(config->test_scan_type, -1);
  ck_assert_int_eq(config->pooling, COMBA_POOLING_TANH);
  ck_assert_int_eq(config->block, 0);
  expect_round_trip(config);
  comba_config_free(config);
}
END_TEST

/* Where fla-zoo's defaults are not fla's, and where fla has renamed a field. */
START_TEST(defaults_and_names_of_the_mixers_are_flas) {
  static const struct {
    const char *text, *part; /* of what is written */
  } rows[] = {
      {"{\"model_type\": \"hgrn2\"}", "\"use_short_conv\": false,"},
      {"{\"model_type\": \"hgrn2_vision\"}", "\"use_short_conv\": true,"},
      {"{\"model_type\": \"retnet\"}", "\"expand_v\": 2.0,"},
      {"{\"model_type\": \"retnet_vision\"}", "\"expand_v\": 1.0,"},
      {"{\"model_type\": \"rwkv7_vision\"}", "\"initializer_range\": 0.006,"},
      {"{\"model_type\": \"mesa_net\", \"use_gate\": true}", "\"use_output_gate\": true,"},
      {"{\"model_type\": \"mesa_net\", \"use_output_gate\": false, \"use_gate\": true}", "\"use_output_gate\": false,"},
      {"{\"model_type\": \"gla\", \"elementwise_affine\": null}", "\"elementwise_affine\": false,"},
      {"{\"model_type\": \"comba\", \"eos_token_id\": [7, 9]}", "\"eos_token_id\": [7, 9],"},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    comba_config *config = parse(rows[i].text);
    char *text = write_text(config);
    ck_assert_msg(strstr(text, rows[i].part), "%s: no %s in %s", rows[i].text, rows[i].part, text);
    expect_round_trip(config);
    free(text);
    comba_config_free(config);
  }
}
END_TEST

START_TEST(values_are_read_and_written) {
  comba_config *config =
      parse("{\"model_type\": \"comba_vision\", \"hidden_size\": 48, \"num_hidden_layers\": 3,"
            "\"image_size\": 28, \"patch_size\": 7, \"train_scan_type\": \"cross-scan\","
            "\"test_scan_type\": \"switch-scan\", \"drop_path_rate\": 0.1, \"norm_eps\": 1e-05,"
            "\"pooling\": \"sequence\", \"block\": \"llama\", \"mine\": {\"deep\": [1, 2.5, null]}}");
  ck_assert_int_eq(config->train_scan_type, COMBA_SCAN_TYPE_CROSS);
  ck_assert_int_eq(config->test_scan_type, COMBA_SCAN_TYPE_SWITCH);
  ck_assert_int_eq(config->pooling, COMBA_POOLING_SEQUENCE);
  ck_assert(config->drop_path_rate == 0.1);
  expect_round_trip(config);
  config->num_classes = 12; /* the struct is what is written, not the text that was read */
  char *text = write_text(config);
  ck_assert_ptr_nonnull(strstr(text, "\"num_classes\": 12,"));
  ck_assert_ptr_nonnull(strstr(text, "\"norm_eps\": 1e-05,"));
  ck_assert_ptr_nonnull(strstr(text, "\"drop_path_rate\": 0.1,"));
  ck_assert_ptr_nonnull(strstr(text, "\"test_scan_type\": \"switch-scan\","));
  ck_assert_ptr_nonnull(strstr(text, "\"channel_mixer_dim\": null,"));
  ck_assert_ptr_nonnull(strstr(text, "\"architectures\": [\"CombaForImageClassification\"],"));
  ck_assert_ptr_nonnull(strstr(text, "\"deep\": [1, 2.5, null]"));
  free(text);
  comba_config_free(config);
}
END_TEST

START_TEST(attention_layers_are_one_object_or_a_list) {
  comba_config *config = parse("{\"model_type\": \"comba\", \"hidden_size\": 64, \"num_hidden_layers\": 4,"
                               "\"attn\": {\"layers\": [1, 3], \"num_heads\": 4, \"num_kv_heads\": 2,"
                               "\"window_size\": 40, \"extra\": 1}}");
  ck_assert_int_eq(config->hybrids, 1);
  ck_assert_int_eq(config->hybrid_of_layer[0], -1);
  ck_assert_int_eq(config->hybrid_of_layer[3], 0);
  ck_assert_int_eq(config->hybrid[0].window_size, 40);
  ck_assert_int_eq(config->hybrid[0].num_kv_heads, 2);
  ck_assert(config->hybrid[0].rope_theta == 10000);
  expect_round_trip(config);
  char *text = write_text(config);
  ck_assert_ptr_nonnull(strstr(text, "\"layers\": [1, 3],"));
  ck_assert_ptr_nonnull(strstr(text, "\"extra\": 1"));
  free(text);
  comba_config_free(config);

  config = parse("{\"model_type\": \"comba_vision\", \"hidden_size\": 64, \"num_hidden_layers\": 4, \"attn\": ["
                 "{\"layers\": [0], \"num_heads\": 4, \"use_rope\": false},"
                 "{\"layers\": [2, 1], \"num_heads\": 8, \"num_kv_heads\": null, \"window_size\": null}]}");
  ck_assert_int_eq(config->hybrids, 2);
  ck_assert(!config->hybrid[0].use_rope && config->hybrid[1].use_rope);
  ck_assert_int_eq(config->hybrid[1].num_kv_heads, 8);
  ck_assert_int_eq(config->hybrid[1].window_size, 0);
  ck_assert_int_eq(config->hybrid_of_layer[1], 1);
  expect_round_trip(config);
  comba_config_free(config);
}
END_TEST

START_TEST(unknown_fields_are_named) {
  comba_config *config = NULL;
  char *warnings = NULL;
  ck_assert_int_eq(comba_config_parse(&config,
                                      "{\"model_type\": \"comba\", \"hiden_size\": 3, \"use_cache\": true,"
                                      "\"attn\": {\"layers\": [], \"num_heads\": 4, \"rope\": 1}, \"ab\\u0007c\": 2}",
                                      "config.json", &warnings),
                   COMBA_OK);
  ck_assert_ptr_nonnull(warnings);
  ck_assert_str_eq(warnings, "config.json: unknown fields, kept but without effect: hiden_size, ab?c, attn.rope");
  free(warnings);
  comba_config_free(config);
}
END_TEST

START_TEST(infinity_is_read_as_python_writes_it) {
  comba_config *config = parse("{\"model_type\": \"comba\", \"dt_limit\": [0.0, Infinity, -Infinity, NaN],"
                               "\"text\": \"Infinity \\\" NaN\", \"object\": {\"__float__\": \"Infinity\"}}");
  double number = 0;
  const json_t *limit = json_object_get(config->json, "dt_limit");
  ck_assert(comba_json_number(json_array_get(limit, 1), &number) && number == INFINITY);
  ck_assert(comba_json_number(json_array_get(limit, 2), &number) && number == -INFINITY);
  ck_assert(comba_json_number(json_array_get(limit, 3), &number) && isnan(number));
  ck_assert(comba_json_number(json_object_get(config->json, "object"), &number) && number == INFINITY);
  ck_assert_str_eq(json_string_value(json_object_get(config->json, "text")), "Infinity \" NaN");
  expect_round_trip(config);
  comba_config_free(config);
}
END_TEST

START_TEST(class_names_are_kept) {
  static const char *const names[] = {"cat", "a \"dog\"", "Käse"}, *const twice[] = {"a", "a"}, *const bad[] = {"\xFF"};
  comba_config *config = parse("{\"model_type\": \"comba_vision\", \"id2label\": {\"0\": \"x\"}}");
  ck_assert_str_eq(comba_config_class_name(config, 0), "x");
  ck_assert_ptr_null(comba_config_class_name(config, 1));
  ck_assert_int_eq(comba_config_set_class_names(config, names, 3), COMBA_OK);
  ck_assert_int_eq(config->num_classes, 3);
  char *text = write_text(config);
  comba_config *again = parse(text);
  for (int i = 0; i < 3; i++) ck_assert_str_eq(comba_config_class_name(again, i), names[i]);
  ck_assert_ptr_null(comba_config_class_name(again, 3));
  ck_assert_ptr_null(comba_config_class_name(again, -1));
  ck_assert_int_eq(comba_config_set_class_names(config, twice, 2), COMBA_ERROR_ARGUMENT);
  expect_message("class 1 is named 'a'", "two classes of one name");
  ck_assert_int_eq(comba_config_set_class_names(config, bad, 1), COMBA_ERROR_ARGUMENT);
  ck_assert_int_eq(config->num_classes, 3);
  free(text);
  comba_config_free(config);
  comba_config_free(again);
}
END_TEST

START_TEST(every_field_is_documented) {
  static const char *const types[] = {"comba", "comba_vision", "transformer", "transformer_vision"};
  for (size_t i = 0; i < 4; i++) {
    char *text = NULL;
    ck_assert_msg(comba_config_document(types[i], &text) == COMBA_OK, "%s", comba_last_error());
    ck_assert_ptr_nonnull(strstr(text, "| `hidden_size` | an integer from 1 to 65536 | 2048 |"));
    ck_assert_ptr_nonnull(strstr(text, "| `attn.window_size` | an integer from 1 to 1073741824 or null | null |"));
    ck_assert_ptr_nonnull(strstr(text, "| `attn.num_heads` | an integer from 1 to 65536 | an error |"));
    ck_assert_ptr_nonnull(strstr(text, "| `num_heads` |"));
    free(text);
  }
  char *text = NULL;
  ck_assert_int_eq(comba_config_document("nothing", &text), COMBA_ERROR_ARGUMENT);
  expect_message("\"nothing\"", "document");
}
END_TEST

/* ---- Broken configs ---- */

static const struct {
  const char *text; /* one that begins with a comma is put behind a model_type */
  const char *part; /* of the message */
} broken[] = {
    {"", "line 1"},
    {"[]", "an array of 0, expected an object"},
    {"3", "line 1"},
    {"{", "line 1"},
    {"{} {}", "line 1"},
    {"{\"model_type\": \"comba\"", "line 1"},
    {"{\"model_type\": \"comba\", \"hidden_size\": 1\n2}", "line 2"},
    {"{}", "model_type is missing, expected one of \"comba\""},
    {"{\"model_type\": 3}", "model_type is 3"},
    {"{\"model_type\": null}", "model_type is null"},
    {"{\"model_type\": \"\"}", "model_type is \"\""},
    {"{\"model_type\": \"_vision\"}", "model_type is \"_vision\""},
    {"{\"model_type\": \"llama\"}", "model_type is \"llama\""},
    {"{\"model_type\": \"comba_vision_vision\"}", "model_type is \"comba_vision_vision\""},
    {", \"hidden_size\": \"64\"", "hidden_size is \"64\", expected an integer from 1 to 65536"},
    {", \"hidden_size\": 64.0", "hidden_size is 64, expected an integer"},
    {", \"hidden_size\": 0", "hidden_size is 0"},
    {", \"hidden_size\": -64", "hidden_size is -64"},
    {", \"hidden_size\": 65537", "hidden_size is 65537"},
    {", \"hidden_size\": 9223372036854775807", "hidden_size is 9223372036854775807"},
    {", \"hidden_size\": 92233720368547758080", "too big integer"},
    {", \"hidden_size\": null", "hidden_size is null"},
    {", \"hidden_size\": true", "hidden_size is true"},
    {", \"hidden_size\": [64]", "hidden_size is an array of 1"},
    {", \"hidden_size\": {}", "hidden_size is an object"},
    {", \"hidden_size\": 64, \"hidden_size\": 64", "hidden_size"},
    {", \"a\": {\"b\": 1, \"b\": 2}", "\"b\""},
    {", \"num_hidden_layers\": 0", "num_hidden_layers is 0"},
    {", \"num_hidden_layers\": 513", "num_hidden_layers is 513"},
    {", \"norm_eps\": 0", "norm_eps is 0"},
    {", \"norm_eps\": -1e-6", "norm_eps is -1e-06"},
    {", \"norm_eps\": Infinity", "norm_eps is inf"},
    {", \"norm_eps\": NaN", "norm_eps is nan"},
    {", \"norm_eps\": {\"__float__\": \"NaN\"}", "norm_eps is nan"},
    {", \"norm_eps\": {\"__float__\": \"1\"}", "norm_eps is an object"},
    {", \"norm_eps\": \"1e-6\"", "norm_eps is \"1e-6\""},
    {", \"norm_eps\": 1e999", "real number overflow"},
    {", \"initializer_range\": -0.02", "initializer_range is -0.02"},
    {", \"initialization\": \"xavier\"", "initialization is \"xavier\", expected one of \"fla\", \"paper\""},
    {", \"vocab_size\": 0", "vocab_size is 0"},
    {", \"vocab_size\": 2147483648", "vocab_size is 2147483648"},
    {", \"pad_token_id\": -2", "pad_token_id is -2, expected an integer from 0 to 2147483647 or null"},
    {", \"vocab_size\": 10, \"pad_token_id\": 10", "pad_token_id is 10, expected less than vocab_size 10"},
    {", \"tie_word_embeddings\": 1", "tie_word_embeddings is 1, expected true or false"},
    {", \"tie_word_embeddings\": \"true\"", "tie_word_embeddings is \"true\""},
    {", \"hidden_ratio\": 2.5", "hidden_ratio is 2.5"},
    {", \"intermediate_size\": -1", "intermediate_size is -1"},
    {", \"hidden_act\": \"gelu\"",
     "hidden_act is \"gelu\", which is not supported; expected one of: \"swish\" \"silu\""},
    {", \"hidden_act\": null", "hidden_act is null"},
    {", \"attnres_block_size\": 4", "attnres_block_size is 4, which is not supported"},
    {", \"num_heads\": 0", "num_heads is 0"},
    {", \"num_heads\": 3.5", "num_heads is 3.5"},
    {", \"expand_v\": \"2\"", "expand_v is \"2\""},
    {", \"conv_size\": -4", "conv_size is -4"},
    {", \"attn\": 3", "attn is 3"},
    {", \"attn\": [3]", "attn[0] is 3"},
    {", \"attn\": [[]]", "attn[0] is an array of 0"},
    {", \"attn\": {}", "attn.num_heads is missing"},
    {", \"attn\": {\"num_heads\": 4}", "attn.layers is missing"},
    {", \"attn\": {\"num_heads\": 4, \"layers\": 1}", "attn.layers is 1"},
    {", \"attn\": {\"num_heads\": 4, \"layers\": [\"1\"]}", "attn.layers[0] is \"1\""},
    {", \"attn\": {\"num_heads\": 4, \"layers\": [1, 21]}", "attn.layers[1] is 21, expected a layer from 0 to 20"},
    {", \"attn\": {\"num_heads\": 4, \"layers\": [-1]}", "attn.layers[0] is -1"},
    {", \"attn\": {\"num_heads\": 4, \"layers\": [2, 2]}", "attn.layers[1] is 2, expected each layer once"},
    {", \"attn\": [{\"num_heads\": 4, \"layers\": [2]}, {\"num_heads\": 4, \"layers\": [2]}]",
     "attn[1].layers[0] is 2"},
    {", \"attn\": {\"num_heads\": 3, \"layers\": [1]}", "attn.num_heads is 3, expected a divisor of hidden_size 2048"},
    {", \"attn\": {\"num_heads\": 2048, \"layers\": [1]}", "attn.num_heads is 2048: heads of 1, expected an even"},
    {", \"attn\": {\"num_heads\": 0, \"layers\": [1]}", "attn.num_heads is 0"},
    {", \"attn\": {\"num_heads\": 4, \"num_kv_heads\": 3, \"layers\": []}",
     "attn.num_kv_heads is 3, expected a divisor"},
    {", \"attn\": {\"num_heads\": 4, \"window_size\": 0, \"layers\": []}", "attn.window_size is 0"},
    {", \"attn\": {\"num_heads\": 4, \"rope_theta\": 0, \"layers\": []}", "attn.rope_theta is 0"},
    {", \"a\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested deeper than 64"},
    {", \"\xFF\": 1", "line 1"},
    {"{\"model_type\": \"comba_vision\", \"image_size\": 0}", "image_size is 0"},
    {"{\"model_type\": \"comba_vision\", \"patch_size\": 15}",
     "patch_size is 15, expected a divisor of image_size 224"},
    {"{\"model_type\": \"comba_vision\", \"num_classes\": -1}", "num_classes is -1"},
    {"{\"model_type\": \"comba_vision\", \"num_channels\": 0}", "num_channels is 0"},
    {"{\"model_type\": \"comba_vision\", \"hidden_dropout_prob\": 1}", "hidden_dropout_prob is 1"},
    {"{\"model_type\": \"comba_vision\", \"train_scan_type\": \"snake\"}",
     "train_scan_type is \"snake\", expected one of \"uni-scan\""},
    {"{\"model_type\": \"comba_vision\", \"train_scan_type\": null}", "train_scan_type is null"},
    {"{\"model_type\": \"comba_vision\", \"id2label\": [\"a\"]}", "id2label is an array of 1"},
    {"{\"model_type\": \"comba_vision\", \"id2label\": {\"0\": 7}}", "id2label: '0' is 7"},
    {"{\"model_type\": \"transformer\", \"num_heads\": 5}", "num_heads is 5"},
    {"{\"model_type\": \"transformer\", \"num_kv_heads\": 3}", "num_kv_heads is 3"},
    {"{\"model_type\": \"mamba2\", \"head_dim\": 60}",
     "head_dim is 60, expected a divisor of hidden_size * expand 4096"},
    {"{\"model_type\": \"mamba2\", \"n_groups\": 3}", "n_groups is 3, expected a divisor of the number of heads 64"},
    {"{\"model_type\": \"mamba2\", \"dt_limit\": 1}", "dt_limit is 1, expected an array of two rising numbers"},
    {"{\"model_type\": \"mamba2\", \"dt_limit\": [1, 0.5]}", "dt_limit is an array of 2"},
    {"{\"model_type\": \"mamba2\", \"dt_limit\": [0, NaN]}", "dt_limit is an array of 2"},
    {"{\"model_type\": \"mamba2\", \"dt_limit\": [-1, Infinity]}", "dt_limit is an array of 2"},
    {"{\"model_type\": \"mamba2\", \"dt_limit\": [0, 0]}", "dt_limit ends at 0"},
    {"{\"model_type\": \"s4d\", \"state_size\": 5}", "state_size is 5, expected an even number"},
    {"{\"model_type\": \"s4d\", \"dt_min\": 0.5}", "dt_min is 0.5, expected at most dt_max 0.1"},
    {"{\"model_type\": \"s4d\", \"A_init\": \"legs\"}", "A_init is \"legs\", expected one of \"lin\", \"inv\""},
};

START_TEST(broken_configs_are_named) {
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
    const bool fragment = broken[i].text[0] == ',';
    char text[1024];
    comba_config *config = NULL;
    char *warnings = NULL;
    snprintf(text, sizeof text, "%s%s%s", fragment ? "{\"model_type\": \"comba\"" : "", broken[i].text,
             fragment ? "}" : "");
    const comba_status status = comba_config_parse(&config, text, "config.json", &warnings);
    ck_assert_msg(status == COMBA_ERROR_ARGUMENT || status == COMBA_ERROR_UNSUPPORTED, "accepted: %s", text);
    ck_assert_ptr_null(config);
    ck_assert_ptr_null(warnings);
    expect_message(broken[i].part, text);
    expect_message("config.json: ", text);
  }
  comba_config *config = NULL;
  ck_assert_int_eq(comba_config_read(&config, "/tmp/no/such/config.json", NULL), COMBA_ERROR_IO);
  expect_message("/tmp/no/such/config.json", "a missing file");
  ck_assert_int_eq(comba_config_read(&config, "/dev/zero", NULL), COMBA_ERROR_FORMAT);
}
END_TEST

/* ---- What every field refuses, of every mixer by being listed ---- */

/* Values that no field of that type may have, and those just outside of its bounds. */
static void list_bad_values(const comba_field *field, char values[16][64], int *count) {
  static const char *const of_type[][8] = {
      [COMBA_FIELD_BOOLEAN] = {"1", "0", "\"true\"", "[true]", "{}"},
      [COMBA_FIELD_INTEGER] = {"\"4\"", "4.5", "true", "[]", "{}", "9223372036854775807", "-9223372036854775807"},
      [COMBA_FIELD_NUMBER] = {"\"0.5\"", "true", "[1]", "{}", "NaN", "Infinity", "-Infinity", "{\"__float__\": \"x\"}"},
      [COMBA_FIELD_CHOICE] = {"\"\"", "\"no such choice\"", "0", "true", "[\"relu\"]", "{}"},
      [COMBA_FIELD_LAYERS] = {"\"4\"", "4.5", "true", "[]", "{}", "[4, 5]", "9223372036854775807"},
      [COMBA_FIELD_TOKENS] = {"\"4\"", "4.5", "true", "[]", "{}", "[4, -5]", "[null, 4]", "9223372036854775807"},
      [COMBA_FIELD_RANGE] = {"\"0\"", "1", "true", "[]", "[1]", "[2, 1]", "[NaN, 1]", "[0, 1, 2]"},
  };
  *count = 0;
  for (int i = 0; i < 8 && of_type[field->type][i]; i++)
    snprintf(values[(*count)++], 64, "%s", of_type[field->type][i]);
  if (!field->nullable) snprintf(values[(*count)++], 64, "null");
  if (field->minimum == 0 && field->maximum == 0) return;
  if (field->type == COMBA_FIELD_INTEGER || field->type == COMBA_FIELD_LAYERS) {
    snprintf(values[(*count)++], 64, "%.0f", field->minimum - 1);
    snprintf(values[(*count)++], 64, "%.0f", field->maximum + 1);
  } else if (field->type == COMBA_FIELD_NUMBER) {
    snprintf(values[(*count)++], 64, "%.9e", field->minimum - 1);
    snprintf(values[(*count)++], 64, "%.9e", field->maximum * 2 + 1);
  }
}

static void expect_bad_values_named(const char *model_type, const comba_field *fields) {
  for (const comba_field *field = fields; field->name; field++) {
    char values[16][64], text[1280], part[96];
    int count;
    list_bad_values(field, values, &count);
    for (int i = 0; i < count; i++) {
      comba_config *config = NULL;
      snprintf(text, sizeof text, "{\"model_type\": \"%s\", \"%s\": %s}", model_type, field->name, values[i]);
      ck_assert_msg(comba_config_parse(&config, text, "config.json", NULL) == COMBA_ERROR_ARGUMENT, "accepted: %s",
                    text);
      ck_assert_ptr_null(config);
      snprintf(part, sizeof part, "config.json: %s ", field->name);
      expect_message(part, text);
      expect_message("expected ", text);
    }
  }
}

START_TEST(every_field_refuses_what_it_cannot_be) {
  for (const comba_mixer_row *const *row = comba_mixer_table; *row; row++) {
    char vision[64];
    snprintf(vision, sizeof vision, "%s_vision", (*row)->model_type);
    expect_bad_values_named((*row)->model_type, (*row)->fields);
    expect_bad_values_named(vision, (*row)->fields);
  }
  expect_bad_values_named("comba", comba_schema_common);
  expect_bad_values_named("comba", comba_schema_language);
  expect_bad_values_named("comba_vision", comba_schema_vision);
}
END_TEST

/* Sizes in their bounds that may not fit each other: the config is refused by the name of a field, or it builds and runs. */
static void expect_named_or_runs(const char *text, const char *model_type) {
  comba_options options;
  comba_options_default(&options);
  comba_config *config = NULL;
  comba_model *model = NULL;
  if (comba_config_parse(&config, text, "config.json", NULL) != COMBA_OK) {
    expect_message("config.json: ", text);
    expect_message("expected ", text);
    return;
  }
  const comba_mixer_cost cost = config->mixer->cost(config->mixer_config, config->hidden_size);
  ck_assert_msg(cost.state_elements > 0 && cost.flops_per_token > 0, "%s: state of %g", text, cost.state_elements);
  comba_config_free(config);
  ck_assert_msg(comba_model_create(&model, text, &options) == COMBA_OK, "%s: %s", text, comba_last_error());
  if (!strstr(model_type, "_vision")) {
    const int32_t ids[] = {1, 2, 3, 4, 5};
    const comba_batch batch = {.batch = 1, .length = 5, .input_ids = ids};
    float loss = NAN;
    ck_assert_msg(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, &loss) == COMBA_OK, "%s: %s", text,
                  comba_last_error());
    ck_assert_msg(isfinite(loss), "%s: loss %g", text, (double)loss);
  }
  comba_model_free(model);
}

START_TEST(sizes_that_do_not_fit_are_named) {
  static const int sizes[] = {1, 2, 3, 5, 48};
  for (const comba_mixer_row *const *row = comba_mixer_table; *row; row++) {
    for (const comba_field *field = (*row)->fields; field->name; field++) {
      if (field->type != COMBA_FIELD_INTEGER && field->type != COMBA_FIELD_LAYERS) continue;
      for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        const int size = sizes[i / 2];
        char model_type[64], text[512];
        if (size < field->minimum || size > field->maximum) continue;
        snprintf(model_type, sizeof model_type, "%s%s", (*row)->model_type, i % 2 ? "_vision" : "");
        /* `num_heads` where it is not the field itself: one that every mixer can have */
        snprintf(text, sizeof text,
                 "{\"model_type\": \"%s\", \"hidden_size\": 32, \"num_hidden_layers\": 1, \"vocab_size\": 11, "
                 "\"intermediate_size\": 16, \"image_size\": 8, \"patch_size\": 4, %s \"%s\": %d}",
                 model_type, strcmp(field->name, "num_heads") ? "\"num_heads\": 2," : "", field->name, size);
        expect_named_or_runs(text, model_type);
      }
    }
  }
}
END_TEST

START_TEST(mutations_never_do_harm) {
  static const char original[] =
      "{\"model_type\": \"comba_vision\", \"hidden_size\": 64, \"num_hidden_layers\": 3, \"norm_eps\": 1e-06,"
      "\"attn\": [{\"layers\": [0, 2], \"num_heads\": 4, \"window_size\": null}], \"expand_v\": 2.0, \"num_heads\": 2,"
      "\"id2label\": {\"0\": \"a\"}, \"dt_limit\": [0.0, Infinity], \"train_scan_type\": \"bi-scan\"}";
  static const char alphabet[] = "0123456789[]{},:\"-.eE\\ FINUabnull";
  int valid = 0;
  srand(20250602);
  for (int round = 0; round < 4000; round++) {
    const size_t kept = round % 4 == 3 ? (size_t)rand() % sizeof original : sizeof original - 1;
    char *text = malloc(kept + 1), *warnings = NULL;
    memcpy(text, original, kept);
    text[kept] = 0;
    for (int change = rand() % 3; kept > 0 && change >= 0; change--)
      text[(size_t)rand() % kept] = rand() % 2 ? (char)rand() : alphabet[(size_t)rand() % (sizeof alphabet - 1)];
    comba_config *config = NULL;
    if (comba_config_parse(&config, text, "mutated", &warnings) == COMBA_OK) {
      expect_round_trip(config);
      valid++;
    } else {
      ck_assert_ptr_null(config);
      expect_message("mutated", text);
    }
    comba_config_free(config);
    free(warnings);
    free(text);
  }
  ck_assert_int_gt(valid, 0);
}
END_TEST

/* ---- Configs of fla ---- */

START_TEST(parity_configs_round_trip) {
  const char *parity = getenv("COMBA_PARITY");
  if (!parity) return;
  DIR *folder = opendir(parity);
  ck_assert_ptr_nonnull(folder);
  int read = 0;
  for (const struct dirent *entry; (entry = readdir(folder));) {
    const bool vision = strncmp(entry->d_name, "vision_", 7) == 0;
    const char *name = entry->d_name + (vision ? 7 : 0);
    const bool comba = strncmp(name, "comba", 5) == 0, transformer = strncmp(name, "transformer", 11) == 0;
    char path[4096], *warnings = NULL;
    comba_config *config = NULL;
    if (!comba && !transformer) continue;
    snprintf(path, sizeof path, "%s/%s/config.json", parity, entry->d_name);
    ck_assert_msg(comba_config_read(&config, path, &warnings) == COMBA_OK, "%s", comba_last_error());
    if (vision && transformer) /* carries fields of another mixer */
      ck_assert_ptr_nonnull(strstr(warnings, "conv_size, expand_v, head_dim, use_short_conv"));
    else
      ck_assert_msg(!warnings, "%s", warnings);
    expect_round_trip(config);
    free(warnings);
    comba_config_free(config);
    read++;
  }
  ck_assert_int_ge(read, 10);
  closedir(folder);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("config");
  tcase_set_timeout(cases, 300);
  tcase_add_test(cases, missing_fields_have_fla_defaults);
  tcase_add_test(cases, defaults_and_names_of_the_mixers_are_flas);
  tcase_add_test(cases, values_are_read_and_written);
  tcase_add_test(cases, attention_layers_are_one_object_or_a_list);
  tcase_add_test(cases, unknown_fields_are_named);
  tcase_add_test(cases, infinity_is_read_as_python_writes_it);
  tcase_add_test(cases, class_names_are_kept);
  tcase_add_test(cases, every_field_is_documented);
  tcase_add_test(cases, broken_configs_are_named);
  tcase_add_test(cases, every_field_refuses_what_it_cannot_be);
  tcase_add_test(cases, sizes_that_do_not_fit_are_named);
  tcase_add_test(cases, mutations_never_do_harm);
  tcase_add_test(cases, parity_configs_round_trip);
  Suite *suite = suite_create("config");
  suite_add_tcase(suite, cases);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
