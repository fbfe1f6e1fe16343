#include "scan_case.h"

#include <string.h>

static int state_of(const scan_problem *x) {
  return x->engine->inputs - 2;
}

static int cu_seqlens_of(const scan_problem *x) {
  return x->engine->inputs - 1;
}

static double *copy_of(const double *values, int64_t count) {
  double *copy = op_memory((size_t)count * sizeof *copy);
  memcpy(copy, values, (size_t)count * sizeof *copy);
  return copy;
}

/* ---- Problems ---- */

static void create_state(scan_problem *x) {
  const int state = state_of(x);
  free(x->input[state]);
  scan_operand(x, state, COMBA_SHAPE(x->sequences, x->heads, x->K, x->V));
  fill_normal(x->input[state], scan_count(x, state), 1, (uint64_t)state);
}

scan_problem scan_create(const scan_engine *engine, int64_t B, int64_t T, int64_t heads, int64_t K, int64_t V) {
  scan_problem x = {.engine = engine, .B = B, .T = T, .heads = heads, .K = K, .V = V, .sequences = B};
  create_state(&x);
  return x;
}

double *scan_operand(scan_problem *x, int input, comba_shape shape) {
  x->shape[input] = shape;
  return x->input[input] = op_memory((size_t)comba_shape_elements(&shape) * sizeof(double));
}

void scan_leave_out(scan_problem *x, int input) {
  x->shape[input].rank = 0;
}

void scan_pack(scan_problem *x) {
  static const double cu_seqlens[] = {0, 1, 1, 64, 128, 193, 200};
  x->sequences = 6;
  create_state(x);
  memcpy(scan_operand(x, cu_seqlens_of(x), COMBA_SHAPE(7)), cu_seqlens, sizeof cu_seqlens);
}

void scan_free(scan_problem *x) {
  for (int i = 0; i < x->engine->inputs; i++) free(x->input[i]);
}

int64_t scan_count(const scan_problem *x, int input) {
  return x->shape[input].rank ? comba_shape_elements(&x->shape[input]) : 0;
}

int64_t scan_row(const scan_problem *x, int input) {
  return scan_count(x, input) / (x->B * x->T);
}

int64_t scan_outputs(const scan_problem *x) {
  return x->B * x->T * x->heads * x->V;
}

int64_t scan_states(const scan_problem *x) {
  return x->sequences * x->heads * x->K * x->V;
}

/* ---- Results ---- */

scan_result scan_result_create(const scan_problem *x) {
  return (scan_result){.o = op_memory((size_t)scan_outputs(x) * sizeof(double)),
                       .final_state = op_memory((size_t)scan_states(x) * sizeof(double))};
}

void scan_result_free(scan_result *y) {
  free(y->o);
  free(y->final_state);
  for (int i = 0; i < COMBA_MAX_INPUTS; i++) free(y->gradient[i]);
}

op_variant scan_fastest(void) {
  op_variant variant[OP_VARIANTS];
  const int count = op_variants(variant);
  return variant[count - 1];
}

static void instance_create(op_instance *instance, const scan_problem *x, const op_variant *variant, comba_mode mode) {
  const scan_engine *engine = x->engine;
  ck_assert_msg(op_instance_create(instance, variant->op[engine->op], variant->real_size,
                                   engine->attributes(x->option, mode), x->shape) == COMBA_OK,
                "%s", comba_last_error());
  for (int i = 0; i < engine->inputs; i++)
    if (x->shape[i].rank) op_write(&instance->input[i], x->input[i]);
}

scan_result scan_run(const scan_problem *x, const op_variant *variant, comba_mode mode, bool backward) {
  op_instance instance;
  instance_create(&instance, x, variant, mode);
  op_instance_forward(&instance, backward);
  scan_result y = scan_result_create(x);
  op_read(&instance.output[0], y.o);
  op_read(&instance.output[1], y.final_state);
  if (backward) {
    const int64_t count[2] = {scan_outputs(x), scan_states(x)};
    for (int i = 0; i < 2; i++) {
      double *gradient = op_memory((size_t)count[i] * sizeof(double));
      fill_normal(gradient, count[i], 1, (uint64_t)(20 + i));
      op_write(&instance.output_gradient[i], gradient);
      free(gradient);
    }
    op_instance_backward(&instance, op_instance_differentiable_inputs(&instance), 0, 3);
    for (int i = 0; i <= state_of(x); i++) {
      if (!scan_count(x, i)) continue;
      y.gradient[i] = op_memory((size_t)scan_count(x, i) * sizeof(double));
      op_read(&instance.input_gradient[i], y.gradient[i]);
    }
  }
  const char *damage = op_instance_damage(&instance);
  ck_assert_msg(!damage, "something was written outside %s", damage);
  op_instance_free(&instance);
  return y;
}

static scan_result run_recurrence(const scan_problem *x) {
  scan_result y = scan_result_create(x);
  const double *cu_seqlens = x->shape[cu_seqlens_of(x)].rank ? x->input[cu_seqlens_of(x)] : NULL;
  if (x->shape[state_of(x)].rank) memcpy(y.final_state, x->input[state_of(x)], (size_t)scan_states(x) * sizeof(double));
  for (int64_t n = 0; n < x->sequences; n++)
    for (int64_t h = 0; h < x->heads; h++) {
      const int64_t first = cu_seqlens ? (int64_t)cu_seqlens[n] : n * x->T;
      const int64_t end = cu_seqlens ? (int64_t)cu_seqlens[n + 1] : first + x->T;
      x->engine->recurrence(x, first, end - first, h, y.o + (first * x->heads + h) * x->V,
                            y.final_state + (n * x->heads + h) * x->K * x->V);
    }
  return y;
}

/* Tokens [first, end) of a problem with one sequence a batch entry. */
static scan_problem part_of(const scan_problem *x, int64_t first, int64_t end, const double *state) {
  scan_problem part = *x;
  part.T = end - first;
  for (int i = 0; i < state_of(x); i++) {
    if (!x->shape[i].rank) continue;
    const int64_t row = scan_row(x, i);
    part.shape[i].size[1] = part.T;
    part.input[i] = op_memory((size_t)scan_count(&part, i) * sizeof(double));
    for (int64_t b = 0; b < x->B; b++)
      memcpy(part.input[i] + b * part.T * row, x->input[i] + (b * x->T + first) * row,
             (size_t)(part.T * row) * sizeof(double));
  }
  part.input[state_of(x)] = copy_of(state, scan_states(x));
  return part;
}

/* Runs pieces that end at `end`, each from the state that the one before left. */
static scan_result run_in_pieces(const scan_problem *x, const int64_t *end, int pieces, comba_mode mode) {
  const op_variant variant = scan_fastest();
  const int64_t row = x->heads * x->V;
  scan_result whole = scan_result_create(x);
  memcpy(whole.final_state, x->input[state_of(x)], (size_t)scan_states(x) * sizeof(double));
  for (int p = 0; p < pieces; p++) {
    const int64_t first = p ? end[p - 1] : 0;
    scan_problem part = part_of(x, first, end[p], whole.final_state);
    scan_result y = scan_run(&part, &variant, mode, false);
    for (int64_t b = 0; b < x->B; b++)
      memcpy(whole.o + (b * x->T + first) * row, y.o + b * part.T * row, (size_t)(part.T * row) * sizeof(double));
    memcpy(whole.final_state, y.final_state, (size_t)scan_states(x) * sizeof(double));
    scan_result_free(&y);
    for (int i = 0; i <= state_of(x); i++)
      if (x->shape[i].rank) free(part.input[i]);
  }
  return whole;
}

/* ---- What must hold ---- */

void scan_expect_close(const scan_problem *x, const scan_result *found, const scan_result *expected, double tolerance) {
  ck_assert_close(found->o, expected->o, scan_outputs(x), tolerance);
  ck_assert_close(found->final_state, expected->final_state, scan_states(x), tolerance);
}

void scan_expect_right(const scan_problem *x, double tolerance) {
  const op_variant variant[] = {scan_fastest(), op_oracle};
  scan_result expected = run_recurrence(x), gradients = scan_run(x, &op_oracle, COMBA_MODE_RECURRENT, true);
  for (int i = 0; i < 2; i++)
    for (int m = 0; m < SCAN_MODES; m++) {
      const double limit = variant[i].real_size == sizeof(double) ? 1e-10 : tolerance;
      scan_result found = scan_run(x, &variant[i], scan_modes[m], true);
      scan_expect_close(x, &found, &expected, limit);
      for (int k = 0; k <= state_of(x); k++) {
        if (!found.gradient[k]) continue;
        const double error = relative_error(found.gradient[k], gradients.gradient[k], scan_count(x, k));
        ck_assert_msg(error <= limit, "%s, %s form: gradient of %s: relative error %.3g, tolerance %.3g",
                      variant[i].name, m ? "recurrent" : "chunk", x->engine->names[k], error, limit);
      }
      scan_result_free(&found);
    }
  scan_result_free(&expected);
  scan_result_free(&gradients);
}

void scan_expect_pieces_right(const scan_problem *x, const int64_t *end, int pieces) {
  scan_result expected = run_recurrence(x);
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_result found = run_in_pieces(x, end, pieces, scan_modes[m]);
    scan_expect_close(x, &found, &expected, 1e-5);
    scan_result_free(&found);
  }
  scan_result_free(&expected);
}

void scan_expect_causal(scan_problem *x, int64_t t) {
  const op_variant variant = scan_fastest();
  scan_result before[SCAN_MODES];
  for (int m = 0; m < SCAN_MODES; m++) before[m] = scan_run(x, &variant, scan_modes[m], false);
  for (int i = 0; i < state_of(x); i++)
    for (int64_t k = t * scan_row(x, i); k < scan_count(x, i); k++)
      x->input[i][k] = i == x->engine->gate ? -0.5 : (float)(0.3 - x->input[i][k]);
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_result after = scan_run(x, &variant, scan_modes[m], false);
    const size_t past = (size_t)(t * x->heads * x->V) * sizeof(double);
    ck_assert_msg(!memcmp(before[m].o, after.o, past), "a token before %lld changed", (long long)t);
    ck_assert(memcmp(before[m].o, after.o, (size_t)scan_outputs(x) * sizeof(double)));
    scan_result_free(&before[m]);
    scan_result_free(&after);
  }
}

void scan_expect_linear(scan_problem *x) {
  const op_variant variant = scan_fastest();
  const int linear[2] = {x->engine->value, state_of(x)};
  double *first[2];
  for (int i = 0; i < 2; i++) first[i] = copy_of(x->input[linear[i]], scan_count(x, linear[i]));
  for (int m = 0; m < SCAN_MODES; m++) {
    scan_result y[3]; /* of the first, the second, and first - 2 second */
    for (int run = 0; run < 3; run++) {
      for (int i = 0; i < 2; i++) {
        double *values = x->input[linear[i]];
        const int64_t count = scan_count(x, linear[i]);
        fill_normal(values, count, 1, (uint64_t)(31 + i));
        for (int64_t k = 0; k < count; k++)
          values[k] = run == 0 ? first[i][k] : (run == 1 ? values[k] : first[i][k] - 2 * values[k]);
      }
      y[run] = scan_run(x, &variant, scan_modes[m], false);
    }
    for (int64_t k = 0; k < scan_outputs(x); k++) y[0].o[k] -= 2 * y[1].o[k];
    for (int64_t k = 0; k < scan_states(x); k++) y[0].final_state[k] -= 2 * y[1].final_state[k];
    scan_expect_close(x, &y[2], &y[0], 1e-5);
    for (int run = 0; run < 3; run++) scan_result_free(&y[run]);
  }
  for (int i = 0; i < 2; i++) free(first[i]);
}

void scan_expect_in_place(const scan_problem *x, comba_mode mode) {
  const op_variant variant = scan_fastest();
  scan_result expected = scan_run(x, &variant, mode, false), found = scan_result_create(x);
  op_instance instance;
  instance_create(&instance, x, &variant, mode);
  instance.call.output[1].data = instance.input[state_of(x)].data;
  op_instance_forward(&instance, false);
  op_read(&instance.output[0], found.o);
  op_read(&instance.input[state_of(x)], found.final_state);
  ck_assert(!memcmp(found.o, expected.o, (size_t)scan_outputs(x) * sizeof(double)));
  ck_assert(!memcmp(found.final_state, expected.final_state, (size_t)scan_states(x) * sizeof(double)));
  op_instance_free(&instance);
  scan_result_free(&found);
  scan_result_free(&expected);
}

/* ---- Hard gates ---- */

void scan_forget_everything(scan_problem *x) {
  fill_constant(x->input[x->engine->gate], scan_count(x, x->engine->gate), -100);
}

void scan_forget_nothing(scan_problem *x) {
  fill_constant(x->input[x->engine->gate], scan_count(x, x->engine->gate), 0);
}

void scan_mix_gates(scan_problem *x) {
  static const double gates[] = {-0.01, -50, 0, -0.001, -100, -0.5, -1e-7};
  for (int64_t i = 0; i < scan_count(x, x->engine->gate); i++) x->input[x->engine->gate][i] = (float)gates[i % 7];
}
