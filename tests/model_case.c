#include "model_case.h"

#include <string.h>

static void disturb(const comba_parameter *p) {
  const uint64_t stream = comba_random_stream(p->name);
  const int64_t inputs = p->elements / p->shape[0];
  const double scale = p->rank == 1                ? 0.2
                       : strstr(p->name, "conv1d") ? 0.4
                       : strstr(p->name, "embed")  ? 1
                                                   : 1.2 / sqrt((double)inputs);
  for (int64_t i = 0; i < p->elements; i++)
    p->data[i] = (float)((p->rank == 1 ? (double)p->data[i] : 0) + scale * comba_random_normal(5, stream, (uint64_t)i));
}

comba_model *model_case_create(const char *config_json, const comba_options *options) {
  comba_model *model = NULL;
  ck_assert_done(comba_model_create(&model, config_json, options));
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    comba_parameter parameter;
    ck_assert_done(comba_model_parameter(model, i, &parameter));
    disturb(&parameter);
  }
  return model;
}

comba_parameter model_case_parameter(const comba_model *model, const char *name) {
  comba_parameter parameter = {0};
  size_t i = 0;
  for (; i < comba_model_parameters(model); i++) {
    ck_assert_done(comba_model_parameter(model, i, &parameter));
    if (!strcmp(parameter.name, name)) break;
  }
  ck_assert_msg(i < comba_model_parameters(model), "the model has no weight '%s'", name);
  return parameter;
}

int32_t *model_case_tokens(int64_t count, int64_t vocabulary, uint64_t stream) {
  int32_t *ids = malloc((size_t)count * sizeof *ids);
  for (int64_t i = 0; i < count; i++)
    ids[i] = (int32_t)comba_random_below(3, stream, (uint64_t)i, (uint64_t)vocabulary);
  return ids;
}

static float *gather(const comba_model *model, int64_t *count, int gradients) {
  comba_parameter parameter;
  *count = 0;
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    ck_assert_done(comba_model_parameter(model, i, &parameter));
    *count += parameter.elements;
  }
  float *values = malloc((size_t)*count * sizeof *values), *end = values;
  for (size_t i = 0; i < comba_model_parameters(model); i++) {
    ck_assert_done(comba_model_parameter(model, i, &parameter));
    memcpy(end, gradients ? parameter.gradient : parameter.data, (size_t)parameter.elements * sizeof *values);
    end += parameter.elements;
  }
  return values;
}

float *model_case_weights(const comba_model *model, int64_t *count) {
  return gather(model, count, 0);
}

float *model_case_gradients(const comba_model *model, int64_t *count) {
  return gather(model, count, 1);
}

double model_case_distance(const float *found, const float *expected, int64_t count) {
  double error = 0, scale = 0;
  for (int64_t i = 0; i < count; i++) {
    error += ((double)found[i] - expected[i]) * ((double)found[i] - expected[i]);
    scale += (double)expected[i] * expected[i];
  }
  return sqrt(error / (scale > 0 ? scale : 1));
}
