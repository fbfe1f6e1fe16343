/* Vision models: every scan, pooling, tokenizer and block runs forward and backward with gradients that are slopes of the loss;
 * dropout, drop path and random scans depend on seed and step alone. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "model/model_private.h"
#include "model_case.h"

enum { B = 3, SIDE = 12, CLASSES = 5 };

#define SIZES                                                                                                          \
  "\"hidden_size\": 16, \"num_hidden_layers\": 3, \"image_size\": 12, \"patch_size\": 3, \"num_classes\": 5, "         \
  "\"channel_mixer_dim\": 24"
#define COMBA "{\"model_type\": \"comba_vision\", \"num_heads\": 2, \"head_dim\": 8, \"expand_v\": 1, " SIZES
#define TRANSFORMER "{\"model_type\": \"transformer_vision\", \"num_heads\": 2, " SIZES

static const char *const configs[] = {
    COMBA ", \"train_scan_type\": \"uni-scan\"}",
    COMBA ", \"train_scan_type\": \"flip-scan\"}",
    COMBA ", \"train_scan_type\": \"bi-scan\"}",
    COMBA ", \"train_scan_type\": \"bi-scan-aligned\", \"scan_average\": true}",
    COMBA ", \"train_scan_type\": \"cross-scan\"}",
    COMBA ", \"train_scan_type\": \"cross-scan\", \"scan_average\": true, \"pooling\": \"mean\"}",
    COMBA ", \"train_scan_type\": \"random-scan\"}",
    COMBA ", \"train_scan_type\": \"switch-scan\"}",
    COMBA ", \"pooling\": \"sequence\", \"block\": \"llama\"}",
    COMBA ", \"pooling\": \"mean\", \"tokenizer_convolutions\": 1}",
    COMBA ", \"pooling\": \"sequence\", \"tokenizer_convolutions\": 2, \"num_channels\": 1}",
    COMBA ", \"hidden_dropout_prob\": 0.2, \"drop_path_rate\": 0.3, \"train_scan_type\": \"random-scan\"}",
    COMBA ", \"attn\": {\"layers\": [1], \"num_heads\": 2, \"use_rope\": false}, \"train_scan_type\": \"bi-scan\"}",
    TRANSFORMER "}",
    TRANSFORMER ", \"block\": \"llama\", \"pooling\": \"mean\"}",
};
enum { CONFIGS = sizeof configs / sizeof *configs };

typedef struct pictures {
  float pixels[B * 3 * SIDE * SIDE];
  comba_batch batch;
} pictures;

static const int32_t labels[B] = {4, 0, 2};

static void draw(pictures *p) {
  for (size_t i = 0; i < sizeof p->pixels / sizeof *p->pixels; i++) p->pixels[i] = (float)comba_random_normal(9, 0, i);
  p->batch = (comba_batch){.batch = B, .pixel_values = p->pixels, .labels = labels};
}

static float forward(comba_model *model, const pictures *p, comba_pass pass) {
  float loss = -1;
  ck_assert_done(comba_model_forward(model, &p->batch, pass, &loss));
  return loss;
}

/* Moves all weights by `step` along `direction`. */
static void move(comba_model *model, const float *direction, double step) {
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    comba_parameter p;
    ck_assert_done(comba_model_parameter(model, i, &p));
    for (int64_t j = 0; j < p.elements; j++) p.data[j] += (float)(step * *direction++);
  }
}

/* Along its own direction the gradient's slope is its norm; a random part of it shows errors that are small in the norm. */
START_TEST(gradients_are_slopes) {
  comba_model *model = model_case_create(configs[_i], NULL);
  pictures p;
  int64_t count;
  draw(&p);
  const float loss = forward(model, &p, COMBA_PASS_TRAIN);
  ck_assert(isfinite(loss));
  ck_assert_done(comba_model_backward(model, 1));
  float *gradient = model_case_gradients(model, &count), *weights = model_case_weights(model, &count);
  float *direction = malloc((size_t)count * sizeof *direction);
  for (int part = 0; part < 4; part++) {
    double norm = 0;
    for (int64_t i = 0; i < count; i++) {
      direction[i] = !part || comba_random_uniform(4, (uint64_t)part, (uint64_t)i) < 0.3 ? gradient[i] : 0;
      norm += (double)direction[i] * direction[i];
    }
    norm = sqrt(norm);
    ck_assert_double_gt(norm, 1e-4);
    const double step = 2e-3 / norm;           /* the loss moves by 2e-3 norm each way, far above its rounding */
    comba_model_set_training_passes(model, 0); /* the same dropout */
    move(model, direction, step);
    const double above = forward(model, &p, COMBA_PASS_TRAIN);
    move(model, direction, -2 * step);
    const double below = forward(model, &p, COMBA_PASS_TRAIN);
    move(model, direction, step);
    ck_assert_msg(fabs((above - below) / (2 * step) - norm * norm) < 0.01 * norm * norm,
                  "config %d: slope %.6g, gradient %.6g", _i, (above - below) / (2 * step), norm * norm);
  }
  free(direction);
  free(gradient);
  free(weights);
  comba_model_free(model);
}
END_TEST

/* Every weight takes part. */
START_TEST(every_weight_has_a_gradient) {
  comba_model *model = model_case_create(configs[_i], NULL);
  pictures p;
  draw(&p);
  forward(model, &p, COMBA_PASS_TRAIN);
  ck_assert_done(comba_model_backward(model, 1));
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    comba_parameter parameter;
    double sum = 0;
    ck_assert_done(comba_model_parameter(model, i, &parameter));
    for (int64_t j = 0; j < parameter.elements; j++) sum += fabs((double)parameter.gradient[j]);
    /* a bias that shifts all scores of a softmax alike has none */
    const bool shifts = strstr(parameter.name, "attention_pool.bias");
    ck_assert_msg(isfinite(sum) && (sum > 0 || shifts), "config %d: %s: gradient %g", _i, parameter.name, sum);
  }
  comba_model_free(model);
}
END_TEST

static const char *const random_configs[] = {
    COMBA ", \"hidden_dropout_prob\": 0.3}",
    COMBA ", \"drop_path_rate\": 0.6}",
    COMBA ", \"train_scan_type\": \"random-scan\"}",
};
enum { RANDOM_CONFIGS = sizeof random_configs / sizeof *random_configs, STEPS = 4 };

static void losses_of(const char *config, uint64_t seed, int threads, float loss[STEPS]) {
  comba_options options;
  comba_options_default(&options);
  options.seed = seed;
  pictures p;
  draw(&p);
  ck_assert_done(comba_set_threads(threads));
  comba_model *model = model_case_create(config, &options);
  for (int step = 0; step < STEPS; step++) {
    loss[step] = forward(model, &p, COMBA_PASS_TRAIN);
    ck_assert_done(comba_model_backward(model, 1));
  }
  ck_assert_uint_eq(comba_model_training_passes(model), STEPS);
  comba_model_set_training_passes(model, 2); /* a resumed run */
  ck_assert(forward(model, &p, COMBA_PASS_TRAIN) == loss[2]);
  ck_assert_done(comba_set_threads(1));
  comba_model_free(model);
}

START_TEST(chance_depends_on_seed_and_step) {
  float loss[STEPS], again[STEPS], other[STEPS];
  losses_of(random_configs[_i], 1, 1, loss);
  losses_of(random_configs[_i], 1, 2, again);
  losses_of(random_configs[_i], 2, 1, other);
  ck_assert_mem_eq(loss, again, sizeof loss);
  int equal = 0;
  for (int i = 0; i < STEPS; i++) {
    equal += loss[i] == other[i];
    for (int j = 0; j < i; j++) equal += loss[i] == loss[j];
  }
  ck_assert_msg(equal <= 1, "config %d: %d losses of different steps or seeds are equal", _i, equal);
}
END_TEST

/* Dropout and drop path rest outside of training; a random scan does not, unless test_scan_type says so. */
START_TEST(evaluation_is_fixed) {
  comba_model *model = model_case_create(
      COMBA ", \"hidden_dropout_prob\": 0.3, \"drop_path_rate\": 0.5, \"train_scan_type\": \"random-scan\", "
            "\"test_scan_type\": \"bi-scan\"}",
      NULL);
  comba_model *plain = model_case_create(COMBA ", \"train_scan_type\": \"bi-scan\"}", NULL);
  pictures p;
  draw(&p);
  const float loss = forward(model, &p, COMBA_PASS_EVALUATE);
  forward(model, &p, COMBA_PASS_TRAIN);
  ck_assert_done(comba_model_backward(model, 1));
  ck_assert(forward(model, &p, COMBA_PASS_EVALUATE) == loss);
  ck_assert(forward(plain, &p, COMBA_PASS_EVALUATE) == loss);
  comba_model_free(model);
  comba_model_free(plain);
}
END_TEST

/* Labels of -100 have no part in the loss; none at all give 0 and no gradient. */
START_TEST(labels_can_be_ignored) {
  comba_model *model = model_case_create(configs[0], NULL);
  pictures p;
  draw(&p);
  forward(model, &p, COMBA_PASS_EVALUATE);
  const float second = comba_model_row_losses(model)[1];
  const int32_t one[B] = {-100, 0, -100}, none[B] = {-100, -100, -100}, wrong[B] = {0, CLASSES, 1};
  p.batch.labels = one;
  ck_assert(fabsf(forward(model, &p, COMBA_PASS_EVALUATE) - second) <= 1e-6f * second);
  p.batch.labels = none;
  ck_assert(forward(model, &p, COMBA_PASS_TRAIN) == 0);
  ck_assert_done(comba_model_backward(model, 1));
  int64_t count;
  float *gradient = model_case_gradients(model, &count);
  for (int64_t i = 0; i < count; i++) ck_assert(gradient[i] == 0);
  free(gradient);
  p.batch.labels = wrong;
  ck_assert_int_eq(comba_model_forward(model, &p.batch, COMBA_PASS_TRAIN, NULL), COMBA_ERROR_ARGUMENT);
  p.batch.pixel_values = NULL;
  ck_assert_int_eq(comba_model_forward(model, &p.batch, COMBA_PASS_TRAIN, NULL), COMBA_ERROR_ARGUMENT);
  comba_model_free(model);
}
END_TEST

/* A picture of another size needs interpolated positions; the model's own size is the same with and without. */
START_TEST(other_sizes_interpolate_positions) {
  comba_model *fixed = model_case_create(configs[0], NULL);
  comba_model *flexible = model_case_create(COMBA ", \"interpolate_pos_encoding\": true}", NULL);
  static float pixels[B * 3 * 18 * 18];
  float loss, same;
  for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++) pixels[i] = (float)comba_random_normal(2, 0, i);
  comba_batch batch = {.batch = B, .pixel_values = pixels, .labels = labels};
  ck_assert_done(comba_model_forward(fixed, &batch, COMBA_PASS_TRAIN, &loss));
  ck_assert_done(comba_model_forward(flexible, &batch, COMBA_PASS_TRAIN, &same));
  ck_assert(loss == same);
  batch.image_size = SIDE;
  ck_assert_done(comba_model_forward(flexible, &batch, COMBA_PASS_TRAIN, &same));
  ck_assert(loss == same);
  batch.image_size = 18;
  ck_assert_done(comba_model_forward(flexible, &batch, COMBA_PASS_TRAIN, &same));
  ck_assert(isfinite(same) && same != loss);
  ck_assert_done(comba_model_backward(flexible, 1));
  ck_assert_int_eq(comba_model_forward(fixed, &batch, COMBA_PASS_TRAIN, &loss), COMBA_ERROR_ARGUMENT);
  const int64_t wrong[] = {-3, 1, 14};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    batch.image_size = wrong[i];
    ck_assert_int_eq(comba_model_forward(flexible, &batch, COMBA_PASS_TRAIN, &loss), COMBA_ERROR_ARGUMENT);
    ck_assert(strstr(comba_last_error(), "multiple of patch_size"));
  }
  comba_model_free(fixed);
  comba_model_free(flexible);
}
END_TEST

/* Bytes are what they say: each value looked up in its picture makes the same pixel values, batch after batch. */
START_TEST(pictures_are_normalised_and_cropped) {
  enum { C = 3 };
  comba_model *model = model_case_create(configs[0], NULL);
  uint8_t bytes[B][SIDE][SIDE][C];
  int32_t crops[B][3];
  pictures p;
  draw(&p);
  comba_pictures given = {&bytes[0][0][0][0], &crops[0][0], {1.f / 64, 1.f / 128, 1.f / 32}, {-1, 0, -2}};
  for (int step = 0; step < 5; step++) {
    if (step == 4) given.shift[1] = 1;
    for (int b = 0; b < B; b++) {
      const int32_t crop[3] = {step - 2, step == 3 ? SIDE : b - 1, (step + b) % 2};
      memcpy(crops[b], crop, sizeof crop);
      for (int i = 0; i < SIDE * SIDE * C; i++)
        (&bytes[b][0][0][0])[i] = (uint8_t)(comba_random_bits(step, b, i).value[0]);
    }
    for (int i = 0; i < B * C * SIDE * SIDE; i++) {
      const int b = i / (C * SIDE * SIDE), c = i / (SIDE * SIDE) % C, u = i % SIDE;
      const int row = i / SIDE % SIDE + crops[b][1], column = (crops[b][2] ? SIDE - 1 - u : u) + crops[b][0];
      const bool inside = row >= 0 && row < SIDE && column >= 0 && column < SIDE;
      p.pixels[i] = inside ? (float)bytes[b][row][column][c] * given.scale[c] + given.shift[c] : 0;
    }
    p.batch.pictures = NULL;
    const float loss = forward(model, &p, COMBA_PASS_TRAIN);
    p.batch.pictures = &given;
    ck_assert(forward(model, &p, COMBA_PASS_TRAIN) == loss);
    ck_assert_done(comba_model_backward(model, 1));
  }
  given.crops = NULL;
  ck_assert_int_eq(comba_model_forward(model, &p.batch, COMBA_PASS_TRAIN, NULL), COMBA_ERROR_ARGUMENT);
  comba_model_free(model);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("vision_model");
  TCase *tests = tcase_create("vision_model");
  tcase_add_loop_test(tests, gradients_are_slopes, 0, CONFIGS);
  tcase_add_loop_test(tests, every_weight_has_a_gradient, 0, CONFIGS);
  tcase_add_loop_test(tests, chance_depends_on_seed_and_step, 0, RANDOM_CONFIGS);
  tcase_add_test(tests, evaluation_is_fixed);
  tcase_add_test(tests, labels_can_be_ignored);
  tcase_add_test(tests, other_sizes_interpolate_positions);
  tcase_add_test(tests, pictures_are_normalised_and_cropped);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
