/* Whole models against cases made by an independent implementation. COMBA_PARITY names a folder of cases, each with
 * config.json, model.safetensors and io.safetensors (inputs, logits, loss, gradients as grad.NAME); without it the suite has
 * nothing to compare and passes. A case of a model_type that this library does not have is left out. COMBA_TEST_DEVICE is
 * cpu (the default), cuda (float32), or cuda-bf16, which gets wider bounds. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "mixers/mixer.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "testing.h"

enum { MAX_CASES = 256 };
static char *cases[MAX_CASES];
static int case_count;

/* Relative errors that are accepted. */
static struct { double logits, loss, gradient; } bound = {2e-5, 1e-5, 1e-4};
static comba_device device = COMBA_DEVICE_CPU;
static comba_precision precision = COMBA_PRECISION_FLOAT32;

static void choose_device(void) {
  const char *name = getenv("COMBA_TEST_DEVICE");
  if (!name || !strcmp(name, "cpu")) return;
  device = COMBA_DEVICE_CUDA;
  if (strcmp(name, "cuda-bf16") != 0) return;
  precision = COMBA_PRECISION_BFLOAT16;
  bound.logits = bound.loss = 2e-2;
  bound.gradient = 0.1;
}

static bool is_supported(const char *folder) {
  char *path = NULL, *text = NULL;
  size_t size = 0;
  bool supported = false;
  if (comba_path_join(&path, folder, "config.json") == COMBA_OK &&
      comba_file_read(path, 1 << 20, &text, &size) == COMBA_OK) {
    char type[64] = "";
    const char *found = strstr(text, "\"model_type\"");
    supported = found && sscanf(found, "\"model_type\": \"%63[^\"]\"", type) == 1 && comba_mixer_find(type);
  }
  free(path);
  free(text);
  return supported;
}

static void find_cases(const char *root) {
  DIR *directory = opendir(root);
  for (struct dirent *entry; directory && (entry = readdir(directory)) && case_count < MAX_CASES;) {
    char *path = NULL, *inputs = NULL;
    if (entry->d_name[0] == '.' || comba_path_join(&path, root, entry->d_name) != COMBA_OK) continue;
    const bool complete = comba_path_join(&inputs, path, "io.safetensors") == COMBA_OK && comba_path_exists(inputs);
    free(inputs);
    if (complete && is_supported(path))
      cases[case_count++] = path;
    else
      free(path);
  }
  if (directory) closedir(directory);
}

static const float *floats(const comba_safetensors *file, const char *name, int64_t *count) {
  const comba_stored_tensor *tensor = NULL;
  ck_assert_msg(comba_safetensors_get(file, name, &tensor) == COMBA_OK, "%s", comba_last_error());
  float *values = malloc((size_t)tensor->elements * sizeof *values);
  ck_assert_msg(comba_stored_tensor_floats(tensor, values) == COMBA_OK, "%s", comba_last_error());
  *count = tensor->elements;
  return values;
}

static int32_t *integers(const comba_safetensors *file, const char *name, const comba_stored_tensor **tensor) {
  ck_assert_msg(comba_safetensors_get(file, name, tensor) == COMBA_OK, "%s", comba_last_error());
  int32_t *values = malloc((size_t)(*tensor)->elements * sizeof *values);
  ck_assert_msg(comba_stored_tensor_integers(*tensor, values) == COMBA_OK, "%s", comba_last_error());
  return values;
}

static void compare(const char *folder, const char *what, const float *found, const float *expected, int64_t count,
                    double tolerance) {
  double error = 0, scale = 0;
  for (int64_t i = 0; i < count; i++) {
    error += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
    scale += (double)expected[i] * expected[i];
  }
  error = sqrt(error / (scale > 0 ? scale : 1));
  ck_assert_msg(error <= tolerance, "%s: %s: relative error %.3g, expected at most %.3g", folder, what, error,
                tolerance);
}

static void check_gradients(comba_model *model, const comba_safetensors *file, const char *folder) {
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    comba_parameter parameter;
    char name[256];
    int64_t count = 0;
    ck_assert_int_eq(comba_model_parameter(model, i, &parameter), COMBA_OK);
    snprintf(name, sizeof name, "grad.%s", parameter.name);
    if (!comba_safetensors_find(file, name)) continue;
    const float *expected = floats(file, name, &count);
    ck_assert_int_eq(count, parameter.elements);
    compare(folder, name, parameter.gradient, expected, count, bound.gradient);
    free((void *)expected);
  }
}

static void run_case(const char *folder, comba_mode mode) {
  comba_options options;
  comba_options_default(&options);
  options.mode = mode;
  options.device = device;
  options.precision = precision;
  comba_model *model = NULL;
  comba_safetensors *file = NULL;
  char *path = NULL;
  ck_assert_msg(comba_model_load(&model, folder, &options) == COMBA_OK, "%s", comba_last_error());
  ck_assert_int_eq(comba_path_join(&path, folder, "io.safetensors"), COMBA_OK);
  ck_assert_msg(comba_safetensors_open(&file, path) == COMBA_OK, "%s", comba_last_error());

  comba_model_info info;
  comba_model_describe(model, &info);
  const comba_stored_tensor *tensor = NULL;
  comba_batch batch = {0};
  int32_t *ids = NULL;
  const float *pixels = NULL;
  int64_t count = 0, logit_count = 0;
  if (info.kind == COMBA_KIND_VISION) {
    ids = integers(file, "labels", &tensor);
    pixels = floats(file, "pixel_values", &count);
    batch = (comba_batch){.batch = tensor->shape[0], .pixel_values = pixels, .labels = ids};
  } else {
    ids = integers(file, "input_ids", &tensor);
    batch = (comba_batch){.batch = tensor->shape[0], .length = tensor->shape[1], .input_ids = ids};
  }
  const float *logits = floats(file, "logits", &logit_count), *expected_loss = floats(file, "loss", &count);
  for (int pass = COMBA_PASS_EVALUATE; pass <= COMBA_PASS_TRAIN; pass++) {
    float loss = 0;
    ck_assert_msg(comba_model_forward(model, &batch, (comba_pass)pass, &loss) == COMBA_OK, "%s", comba_last_error());
    compare(folder, "logits", comba_model_logits(model), logits, logit_count, bound.logits);
    ck_assert_msg(fabsf(loss - expected_loss[0]) <= bound.loss * fabsf(expected_loss[0]),
                  "%s: loss %.8g, expected %.8g", folder, loss, expected_loss[0]);
  }
  ck_assert_int_eq(comba_model_backward(model, 1), COMBA_OK);
  check_gradients(model, file, folder);
  free(ids);
  free((void *)pixels);
  free((void *)logits);
  free((void *)expected_loss);
  free(path);
  comba_safetensors_free(file);
  comba_model_free(model);
}

START_TEST(case_agrees) {
  run_case(cases[_i / 2], _i % 2 ? COMBA_MODE_RECURRENT : COMBA_MODE_CHUNK);
}
END_TEST

int main(void) {
  const char *root = getenv("COMBA_PARITY");
  choose_device();
  Suite *suite = suite_create("parity");
  TCase *tests = tcase_create("cases");
  if (root) find_cases(root);
  if (root && !case_count) {
    fprintf(stderr, "COMBA_PARITY=%s: no case found there\n", root);
    return EXIT_FAILURE;
  }
  tcase_add_loop_test(tests, case_agrees, 0, 2 * case_count);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
