#include "op_check.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/random.h"
#include "comba.h"

enum { MANY_THREADS = 3 }; /* more than one, and odd, so that blocks do not fall evenly on threads */

/* Gradients of one backward pass by input, NULL where not wanted. */
typedef struct gradients {
  double *of[COMBA_MAX_INPUTS];
} gradients;

struct op_reference {
  int id;
  const comba_case *c;
  const op_reference *exact; /* NULL, or inputs here are rounded to bfloat16, and there they are not */
  op_instance instance;
  uint32_t wanted, given;
  double *output[COMBA_MAX_OUTPUTS];
  gradients all;                        /* every output gradient given */
  gradients without[COMBA_MAX_OUTPUTS]; /* that of one output absent */
};

static char message[OP_CASE_TEXT + 512];

static const char *fail(const op_reference *r, const char *variant, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static const char *fail(const op_reference *r, const char *variant, const char *format, ...) {
  char text[OP_CASE_TEXT], what[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  snprintf(message, sizeof message, "%s [%s]: %s", op_case_text(op_oracle.op[r->id], r->c, text), variant, what);
  return message;
}

/* Relative error in the Frobenius norm. A tensor of far smaller values than the operands' order of one is compared with
 * FLOOR times that order instead: what cancels to nothing leaves rounding errors of the terms that cancelled. */
#define FLOOR 2e-2

static double scale_of(const double *values, int64_t elements) {
  double square = 0;
  for (int64_t k = 0; k < elements; k++) square += values[k] * values[k];
  return fmax(sqrt(square), FLOOR * sqrt((double)elements));
}

/* Of a tensor that the oracle has as `expected`. A kernel that rounds to bfloat16 may be off by twice what the rounding of the inputs
 * alone does to it, `exact` being the oracle's without that: some cases amplify every rounding (identical keys), or turn on a
 * comparison (Huber's loss). */
static double tolerance_of(const op_reference *r, const double *expected, const double *exact, int64_t elements) {
  static const double bfloat16_tolerance = 2.5e-2;
  const double tolerance = r->c->tolerance ? r->c->tolerance : 1e-5;
  if (!exact) return tolerance;
  double square = 0;
  for (int64_t k = 0; k < elements; k++) square += (exact[k] - expected[k]) * (exact[k] - expected[k]);
  return fmax(fmax(tolerance, bfloat16_tolerance), 2 * sqrt(square) / scale_of(expected, elements));
}

/* ---- The oracle's results ------------------------------------------------------------------------------------------ */

static double *copy_of(const op_buffer *buffer) {
  double *values = op_memory((size_t)buffer->elements * sizeof *values);
  op_read(buffer, values);
  return values;
}

static void zero(op_buffer *buffer) {
  memset(buffer->data, 0, buffer->bytes);
}

static gradients run_oracle_backward(op_instance *instance, uint32_t wanted, uint32_t given) {
  const uint32_t accumulate = op_case_accumulated(instance);
  for (int i = 0; i < instance->op->inputs; i++)
    if (wanted & accumulate & 1u << i) zero(&instance->input_gradient[i]);
  op_instance_backward(instance, wanted, accumulate, given);
  gradients result = {{0}};
  for (int i = 0; i < instance->op->inputs; i++)
    if (wanted >> i & 1) result.of[i] = copy_of(&instance->input_gradient[i]);
  return result;
}

const char *op_reference_create(op_reference **out, int id, const comba_case *c, const op_reference *exact) {
  const bool narrow = exact;
  op_reference *r = op_memory(sizeof *r);
  *out = r;
  r->id = id;
  r->c = c;
  r->exact = exact;
  if (op_case_create(&r->instance, &op_oracle, id, c) != COMBA_OK) return fail(r, "oracle", "%s", comba_last_error());
  op_instance *instance = &r->instance;
  const comba_signature *s = &instance->signature;
  if (s->outputs < 1 || s->outputs > instance->op->outputs)
    return fail(r, "oracle", "infer gives %d outputs, expected 1 to %d", s->outputs, instance->op->outputs);
  op_case_fill(instance, c, narrow);
  op_instance_forward(instance, true);
  for (int i = 0; i < s->outputs; i++) {
    r->output[i] = copy_of(&instance->output[i]);
    for (int64_t k = 0; k < instance->output[i].elements; k++)
      if (!isfinite(r->output[i][k]))
        return fail(r, "oracle", "output %d [%lld] is %g, expected a finite value", i, (long long)k, r->output[i][k]);
  }
  if (!instance->op->backward) return NULL;
  r->wanted = op_case_wanted(instance, c);
  r->given = op_instance_differentiable_outputs(instance);
  op_case_fill_output_gradients(instance, c, narrow);
  op_instance_forget(instance);
  r->all = run_oracle_backward(instance, r->wanted, r->given);
  for (int i = 0; i < s->outputs; i++) {
    if (!(r->given >> i & 1) || r->given == 1u << i) continue;
    zero(&instance->output_gradient[i]);
    r->without[i] = run_oracle_backward(instance, r->wanted, r->given);
    op_case_fill_output_gradients(instance, c, narrow);
  }
  return NULL;
}

static void free_gradients(gradients *g) {
  for (int i = 0; i < COMBA_MAX_INPUTS; i++) free(g->of[i]);
}

void op_reference_free(op_reference *r) {
  if (!r) return;
  free_gradients(&r->all);
  for (int i = 0; i < COMBA_MAX_OUTPUTS; i++) {
    free(r->output[i]);
    free_gradients(&r->without[i]);
  }
  op_instance_free(&r->instance);
  free(r);
}

/* ---- Comparing ----------------------------------------------------------------------------------------------------- */

static const char *compare(const op_reference *r, const char *variant, const char *what, int number,
                           const op_buffer *found, const double *expected, double tolerance) {
  double error = 0, worst = -1;
  int64_t at = 0;
  for (int64_t k = 0; k < found->elements; k++) {
    const double value = op_get(found, k);
    if (!isfinite(value))
      return fail(r, variant, "%s %d [%lld] is %g, expected %.9g", what, number, (long long)k, value, expected[k]);
    const double difference = value - expected[k];
    error += difference * difference;
    if (fabs(difference) > worst) {
      worst = fabs(difference);
      at = k;
    }
  }
  const double relative = sqrt(error) / scale_of(expected, found->elements);
  if (found->elements == 0 || relative <= tolerance) return NULL;
  return fail(r, variant, "%s %d: relative error %.3g, tolerance %.3g; at [%lld] %.9g, expected %.9g", what, number,
              relative, tolerance, (long long)at, op_get(found, at), expected[at]);
}

/* The bytes of a buffer at one moment, to see later whether they changed. */
typedef struct snapshot {
  unsigned char *bytes;
} snapshot;

static snapshot take(const op_buffer *buffer) {
  snapshot s = {buffer->data ? op_memory(buffer->bytes) : NULL};
  if (s.bytes) memcpy(s.bytes, buffer->data, buffer->bytes);
  return s;
}

/* Releases the snapshot; a message if the buffer is not what it was. */
static const char *unchanged(const op_reference *r, const char *variant, snapshot *s, const op_buffer *buffer,
                             const char *what, int number, const char *when) {
  const char *failure = NULL;
  const size_t size = buffer->elements ? buffer->bytes / (size_t)buffer->elements : 1;
  for (size_t i = 0; s->bytes && i < buffer->bytes && !failure; i++)
    if (s->bytes[i] != ((const unsigned char *)buffer->data)[i]) {
      const int64_t k = (int64_t)(i / size);
      const float *before = (const float *)s->bytes;
      failure = fail(r, variant, "%s %d [%lld] %s: %.9g, before %.9g", what, number, (long long)k, when,
                     op_get(buffer, k), (double)before[k]);
    }
  free(s->bytes);
  s->bytes = NULL;
  return failure;
}

typedef struct snapshots {
  snapshot of[COMBA_MAX_INPUTS];
} snapshots;

static snapshots take_all(const op_buffer *buffer, int count) {
  snapshots all = {{{NULL}}};
  for (int i = 0; i < count; i++) all.of[i] = take(&buffer[i]);
  return all;
}

static const char *all_unchanged(const op_reference *r, const char *variant, snapshots *all, const op_buffer *buffer,
                                 int count, const char *what, const char *when) {
  const char *failure = NULL;
  for (int i = 0; i < count; i++) {
    if (failure)
      free(all->of[i].bytes);
    else
      failure = unchanged(r, variant, &all->of[i], &buffer[i], what, i, when);
  }
  return failure;
}

static const char *undamaged(const op_reference *r, const char *variant, const op_instance *instance,
                             const char *pass) {
  const char *where = op_instance_damage(instance);
  return where ? fail(r, variant, "%s wrote outside %s", pass, where) : NULL;
}

/* ---- A variant ----------------------------------------------------------------------------------------------------- */

static const char *check_signature(const op_reference *r, const char *variant, const op_instance *instance) {
  const comba_signature *s = &instance->signature, *expected = &r->instance.signature;
  if (s->outputs != expected->outputs)
    return fail(r, variant, "infer gives %d outputs, the oracle's %d", s->outputs, expected->outputs);
  for (int i = 0; i < s->outputs; i++) {
    char found_text[COMBA_SHAPE_TEXT], expected_text[COMBA_SHAPE_TEXT];
    if (!comba_shape_equal(&s->output[i], &expected->output[i]))
      return fail(r, variant, "output %d has shape %s, the oracle's %s", i, comba_shape_text(&s->output[i], found_text),
                  comba_shape_text(&expected->output[i], expected_text));
  }
  for (int i = 0; i < instance->op->inputs; i++) {
    if (instance->op->optional_inputs >> i & 1) continue;
    comba_signature without = {.op = s->op, .attributes = s->attributes, .inputs = s->inputs};
    memcpy(without.input, s->input, sizeof without.input);
    without.input[i].rank = 0;
    if (instance->op->infer(&without) == COMBA_OK)
      return fail(r, variant, "infer accepts that input %d, which is not optional, is absent", i);
  }
  return NULL;
}

static const char *check_forward(const op_reference *r, const char *variant, op_instance *instance) {
  const int inputs = instance->op->inputs, outputs = instance->signature.outputs;
  const char *failure = NULL;
  snapshots before = take_all(instance->input, inputs);
  comba_set_threads(1);
  op_instance_forward(instance, true);
  snapshots first = take_all(instance->output, outputs);
  comba_set_threads(MANY_THREADS);
  op_instance_forward(instance, false);
  failure = all_unchanged(r, variant, &first, instance->output, outputs, "output",
                          "differs between 1 thread with saved tensors and 3 threads without");
  first = take_all(instance->output, outputs);
  op_instance_forward(instance, true);
  const char *again = all_unchanged(r, variant, &first, instance->output, outputs, "output", "differs in a second run");
  const char *kept = all_unchanged(r, variant, &before, instance->input, inputs, "input", "was changed by forward");
  if (!failure) failure = again ? again : kept;
  if (!failure) failure = undamaged(r, variant, instance, "forward");
  for (int i = 0; i < outputs && !failure; i++)
    failure =
        compare(r, variant, "output", i, &instance->output[i], r->output[i],
                tolerance_of(r, r->output[i], r->exact ? r->exact->output[i] : NULL, instance->output[i].elements));
  return failure;
}

static void zero_accumulated(op_instance *instance, uint32_t wanted) {
  const uint32_t accumulate = op_case_accumulated(instance) & wanted;
  for (int i = 0; i < instance->op->inputs; i++)
    if (accumulate >> i & 1) zero(&instance->input_gradient[i]);
}

static void run_backward(op_instance *instance, uint32_t wanted, uint32_t given) {
  zero_accumulated(instance, wanted);
  op_instance_backward(instance, wanted, op_case_accumulated(instance), given);
}

/* `exact` is NULL where r->exact is. */
static const char *compare_gradients(const op_reference *r, const char *variant, const op_instance *instance,
                                     uint32_t wanted, const gradients *expected, const gradients *exact,
                                     const char *what) {
  const char *failure = NULL;
  for (int i = 0; i < instance->op->inputs && !failure; i++)
    if (wanted >> i & 1)
      failure =
          compare(r, variant, what, i, &instance->input_gradient[i], expected->of[i],
                  tolerance_of(r, expected->of[i], exact ? exact->of[i] : NULL, instance->input_gradient[i].elements));
  return failure;
}

/* Gradients added to random values as large as themselves. */
static const char *check_accumulate(const op_reference *r, const char *variant, op_instance *instance) {
  const char *failure = NULL;
  double *start[COMBA_MAX_INPUTS] = {NULL};
  for (int i = 0; i < instance->op->inputs; i++) {
    if (!(r->wanted >> i & 1)) continue;
    op_buffer *gradient = &instance->input_gradient[i];
    const double size = scale_of(r->all.of[i], gradient->elements) / sqrt((double)gradient->elements);
    start[i] = op_memory((size_t)gradient->elements * sizeof *start[i]);
    for (int64_t k = 0; k < gradient->elements; k++)
      start[i][k] = (float)(size * comba_random_normal(2, (uint64_t)i, (uint64_t)k));
    op_write(gradient, start[i]);
  }
  op_instance_backward(instance, r->wanted, r->wanted, r->given);
  for (int i = 0; i < instance->op->inputs; i++) {
    if (!start[i]) continue;
    const int64_t elements = instance->input_gradient[i].elements;
    for (int64_t k = 0; k < elements; k++) start[i][k] += r->all.of[i][k];
    if (!failure)
      failure = compare(r, variant, "accumulated gradient of input", i, &instance->input_gradient[i], start[i],
                        tolerance_of(r, r->all.of[i], r->exact ? r->exact->all.of[i] : NULL, elements));
    free(start[i]);
  }
  return failure;
}

/* Backward makes what forward has not saved, to the bit. */
static const char *check_without_saved(const op_reference *r, const char *variant, op_instance *instance) {
  const comba_signature *s = &instance->signature;
  if (!s->saved_optional) return NULL;
  snapshots before = take_all(instance->input_gradient, s->inputs);
  for (int i = 0; i < s->saved; i++) instance->call.saved[i].data = NULL;
  run_backward(instance, r->wanted, r->given);
  for (int i = 0; i < s->saved; i++) instance->call.saved[i].data = instance->saved[i].data;
  return all_unchanged(r, variant, &before, instance->input_gradient, s->inputs, "gradient of input",
                       "differs without saved tensors");
}

/* Where the row says so, a gradient may lie over its input. */
static const char *check_over_input(const op_reference *r, const char *variant, op_instance *instance) {
  const uint32_t over = instance->op->gradient_over_input & r->wanted;
  const int inputs = instance->op->inputs;
  if (!over) return NULL;
  snapshots before = take_all(instance->input_gradient, inputs);
  for (int i = 0; i < inputs; i++) {
    if (!(over >> i & 1)) continue;
    memcpy(instance->input_gradient[i].data, instance->input[i].data, instance->input[i].bytes);
    instance->call.input[i].data = instance->input_gradient[i].data;
  }
  run_backward(instance, r->wanted, r->given);
  for (int i = 0; i < inputs; i++) instance->call.input[i].data = instance->input[i].data;
  return all_unchanged(r, variant, &before, instance->input_gradient, inputs, "gradient of input",
                       "differs where it lies over the input");
}

static const char *check_backward(const op_reference *r, const char *variant, op_instance *instance) {
  const gradients *exact = r->exact ? &r->exact->all : NULL;
  const int inputs = instance->op->inputs, outputs = instance->signature.outputs;
  op_case_fill_output_gradients(instance, r->c, r->exact);
  op_instance_forget(instance);
  snapshots before = take_all(instance->output_gradient, outputs);
  comba_set_threads(1);
  run_backward(instance, r->wanted, r->given);
  snapshots first = take_all(instance->input_gradient, inputs);
  comba_set_threads(MANY_THREADS);
  run_backward(instance, r->wanted, r->given);
  const char *failure = all_unchanged(r, variant, &first, instance->input_gradient, inputs, "gradient of input",
                                      "differs between 1 thread and 3");
  first = take_all(instance->input_gradient, inputs);
  run_backward(instance, r->wanted, r->given);
  const char *again = all_unchanged(r, variant, &first, instance->input_gradient, inputs, "gradient of input",
                                    "differs in a second run");
  const char *kept = all_unchanged(r, variant, &before, instance->output_gradient, outputs, "gradient of output",
                                   "was changed by backward");
  if (!failure) failure = again ? again : kept;
  if (!failure) failure = check_without_saved(r, variant, instance);
  if (!failure) failure = check_over_input(r, variant, instance);
  if (!failure) failure = compare_gradients(r, variant, instance, r->wanted, &r->all, exact, "gradient of input");
  if (!failure) failure = check_accumulate(r, variant, instance);
  for (int i = 0; i < inputs && !failure; i++) {
    if (!(r->wanted >> i & 1) || r->wanted == 1u << i) continue;
    run_backward(instance, 1u << i, r->given);
    failure = compare_gradients(r, variant, instance, 1u << i, &r->all, exact, "gradient, wanted alone, of input");
  }
  for (int i = 0; i < outputs && !failure; i++) {
    if (!(r->given >> i & 1) || r->given == 1u << i) continue;
    run_backward(instance, r->wanted, r->given & ~(1u << i));
    failure = compare_gradients(r, variant, instance, r->wanted, &r->without[i], exact ? &r->exact->without[i] : NULL,
                                i ? "with the later output's gradient absent, gradient of input"
                                  : "with the first output's gradient absent, gradient of input");
  }
  if (!failure) failure = undamaged(r, variant, instance, "backward");
  return failure;
}

const char *op_check_variant(const op_reference *r, const op_variant *variant) {
  op_instance instance;
  if (op_case_create(&instance, variant, r->id, r->c) != COMBA_OK)
    return fail(r, variant->name, "%s", comba_last_error());
  op_case_fill(&instance, r->c, r->exact);
  const char *failure = check_signature(r, variant->name, &instance);
  if (!failure) failure = check_forward(r, variant->name, &instance);
  if (!failure && instance.op->backward) failure = check_backward(r, variant->name, &instance);
  op_instance_free(&instance);
  return failure;
}

/* ---- Central differences ------------------------------------------------------------------------------------------- */

int op_check_coordinates(void) {
  const char *text = getenv("COMBA_TEST_COORDINATES");
  return text ? atoi(text) : 24;
}

/* Sum over the outputs of their change between x + step and x - step, weighted by the output gradients, over 2 step. The
 * sum is taken of differences, so that large equal parts cancel before they are rounded. */
static double central_difference(op_instance *instance, const op_reference *r, op_buffer *input,
                                 const double *direction, double step) {
  double *value[2][COMBA_MAX_OUTPUTS], sum = 0;
  double *start = copy_of(input);
  for (int side = 0; side < 2; side++) {
    for (int64_t k = 0; k < input->elements; k++) op_set(input, k, start[k] + (side ? -step : step) * direction[k]);
    op_instance_forward(instance, false);
    for (int i = 0; i < instance->signature.outputs; i++) value[side][i] = copy_of(&instance->output[i]);
  }
  op_write(input, start);
  for (int i = 0; i < instance->signature.outputs; i++) {
    for (int64_t k = 0; r->given >> i & 1 && k < instance->output[i].elements; k++)
      sum += op_get(&instance->output_gradient[i], k) * (value[0][i][k] - value[1][i][k]);
    free(value[0][i]);
    free(value[1][i]);
  }
  free(start);
  return sum / (2 * step);
}

/* Single elements cost two forward passes each, so an input of a large case gets fewer; its random direction covers all of
 * it in any case. */
static int64_t affordable(const op_instance *instance, int64_t elements, int coordinates) {
  double cost = instance->signature.forward_flops;
  for (int i = 0; i < instance->op->inputs; i++) cost += 10 * (double)instance->input[i].elements;
  for (int i = 0; i < instance->signature.outputs; i++) cost += 50 * (double)instance->output[i].elements;
  const double budget = 1e6 * coordinates;
  return (int64_t)fmin(fmin((double)coordinates, (double)elements), fmax(budget / cost, 2));
}

/* A log decay is at most 0, and kernels need not go on smoothly above: where one is 0 no difference is taken. */
static bool is_log_decay(const op_instance *instance, int input) {
  if (instance->op->input_class[input] != COMBA_GATE) return false;
  for (int64_t k = 0; k < instance->input[input].elements; k++)
    if (op_get(&instance->input[input], k) > 0) return false;
  return true;
}

static const char *check_input_gradient(const op_reference *r, op_instance *instance, int input, int coordinates) {
  op_buffer *x = &instance->input[input];
  const double *gradient = r->all.of[input];
  double *direction = op_memory((size_t)x->elements * sizeof *direction);
  const char *failure = NULL;
  double expected = 0, square = 0;
  const bool log_decay = is_log_decay(instance, input);
  for (int64_t k = 0; k < x->elements; k++) {
    const bool at_the_end = log_decay && op_get(x, k) == 0;
    direction[k] = at_the_end ? 0 : comba_random_normal(3, (uint64_t)input, (uint64_t)k);
    expected += direction[k] * gradient[k];
    square += gradient[k] * gradient[k];
  }
  double found = central_difference(instance, r, x, direction, 1e-6);
  double tolerance = 1e-6 * sqrt(square) + 1e-7;
  if (!(fabs(found - expected) <= tolerance))
    failure = fail(r, "oracle",
                   "gradient of input %d along a random direction is %.12g, central difference %.12g, tolerance %.3g",
                   input, expected, found, tolerance);
  memset(direction, 0, (size_t)x->elements * sizeof *direction);
  const int64_t count = affordable(instance, x->elements, coordinates);
  for (int64_t i = 0; i < count && !failure; i++) {
    const int64_t k = (int64_t)comba_random_below(4, (uint64_t)input, (uint64_t)i, (uint64_t)x->elements);
    if (log_decay && op_get(x, k) == 0) continue;
    direction[k] = 1;
    found = central_difference(instance, r, x, direction, 1e-5);
    direction[k] = 0;
    tolerance = 1e-5 * fmax(fabs(gradient[k]), sqrt(square / (double)x->elements)) + 1e-8;
    if (!(fabs(found - gradient[k]) <= tolerance))
      failure = fail(r, "oracle", "gradient of input %d [%lld] is %.12g, central difference %.12g, tolerance %.3g",
                     input, (long long)k, gradient[k], found, tolerance);
  }
  free(direction);
  return failure;
}

const char *op_check_gradient(int id, const comba_case *c, int coordinates) {
  op_reference *r = NULL;
  op_instance instance;
  comba_set_threads(1); /* many short calls: waking threads would cost more than they save */
  const char *failure = op_reference_create(&r, id, c, NULL);
  if (!failure && op_oracle.op[id]->backward && op_case_create(&instance, &op_oracle, id, c) == COMBA_OK) {
    op_case_fill(&instance, c, false);
    op_case_fill_output_gradients(&instance, c, false);
    for (int i = 0; i < instance.op->inputs && !failure; i++)
      if (r->wanted >> i & 1) failure = check_input_gradient(r, &instance, i, coordinates);
    op_instance_free(&instance);
  }
  op_reference_free(r);
  return failure;
}
