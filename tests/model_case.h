/* Small models for the suites that run whole models. Helpers end the test with the library's message where it fails. */
#ifndef COMBA_TESTS_MODEL_CASE_H
#define COMBA_TESTS_MODEL_CASE_H

#include "comba.h"
#include "testing.h"

#define ck_assert_done(call) ck_assert_msg((call) == COMBA_OK, "%s: %s", #call, comba_last_error())

/* A model whose weights are moved off their initial values, so that no term hides behind a 1 or a 0. */
comba_model *model_case_create(const char *config_json, const comba_options *options);
/* The weight of that name; a missing one fails the test. */
comba_parameter model_case_parameter(const comba_model *model, const char *name);
/* Tokens below `vocabulary` that depend on `stream` alone; to be freed. */
int32_t *model_case_tokens(int64_t count, int64_t vocabulary, uint64_t stream);
/* All weights, or all gradients, one after the other; to be freed. */
float *model_case_weights(const comba_model *model, int64_t *count);
float *model_case_gradients(const comba_model *model, int64_t *count);
/* Frobenius norm of found - expected over that of expected. */
double model_case_distance(const float *found, const float *expected, int64_t count);

#endif
