#include "op_perf.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/gemm.h"

enum { REPEATS_LEAST = 5, REPEATS_MOST = 101 };
static const double SECONDS_LEAST = 0.5;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* ---- Ceilings ------------------------------------------------------------------------------------------------------ */

op_ceiling op_measure_ceiling(void) {
  enum { SIDE = 2048, COPY = 1 << 24, TRIES = 5 };
  op_ceiling ceiling = {0, 0};
  float *a = op_memory(sizeof(float) * SIDE * SIDE), *b = op_memory(sizeof(float) * SIDE * SIDE);
  float *c = op_memory(sizeof(float) * SIDE * SIDE);
  float *from = op_memory(sizeof(float) * COPY), *to = op_memory(sizeof(float) * COPY);
  for (int64_t i = 0; i < SIDE * SIDE; i++) a[i] = b[i] = (float)(i % 17) - 8;
  for (int try = 0; try < TRIES; try++) {
    double start = now();
    comba_gemm_f32('N', 'N', SIDE, SIDE, SIDE, 1, a, SIDE, b, SIDE, 0, c, SIDE);
    ceiling.flops = fmax(ceiling.flops, 2.0 * SIDE * SIDE * SIDE / (now() - start));
    start = now();
#pragma omp parallel for
    for (int64_t i = 0; i < COPY; i++) to[i] = from[i];
    ceiling.bytes = fmax(ceiling.bytes, 2.0 * sizeof(float) * COPY / (now() - start));
  }
  free(a);
  free(b);
  free(c);
  free(from);
  free(to);
  return ceiling;
}

/* ---- Cases --------------------------------------------------------------------------------------------------------- */

/* Each operand that the pass needs, once. */
static double bytes_moved(const op_instance *instance, bool backward) {
  const comba_op *op = instance->op;
  double bytes = 0;
  for (int i = 0; i < op->inputs; i++)
    bytes += backward ? (double)instance->input[i].bytes * (op->backward_inputs >> i & 1) +
                            (double)instance->input_gradient[i].bytes
                      : (double)instance->input[i].bytes;
  for (int i = 0; i < instance->signature.outputs; i++)
    bytes += backward ? (double)instance->output[i].bytes * (op->backward_outputs >> i & 1) +
                            (double)instance->output_gradient[i].bytes
                      : (double)instance->output[i].bytes;
  for (int i = 0; i < instance->signature.saved; i++) bytes += (double)instance->saved[i].bytes;
  return bytes;
}

/* The kernels alone are timed: what op_instance does around a call (filling with NaN) happens once, before. */
static double median_seconds(const op_instance *instance, bool backward) {
  double seconds[REPEATS_MOST], total = 0;
  int count = 0;
  while (count < REPEATS_LEAST || (count < REPEATS_MOST && total < SECONDS_LEAST)) {
    const double start = now();
    if (backward)
      instance->op->backward(&instance->call);
    else
      instance->op->forward(&instance->call);
    total += seconds[count++] = now() - start;
  }
  qsort(seconds, (size_t)count, sizeof *seconds, by_value);
  return seconds[count / 2];
}

static void print_pass(const op_instance *instance, const comba_case *c, bool backward, const op_ceiling *ceiling) {
  const double flops = backward ? instance->signature.backward_flops : instance->signature.forward_flops;
  const double bytes = bytes_moved(instance, backward);
  const double seconds = median_seconds(instance, backward);
  const double bound = fmax(flops / ceiling->flops, bytes / ceiling->bytes);
  printf("%-18s %-34s %-8s %9.3f ms %8.1f GFLOP/s %3.0f %% %7.1f GB/s %3.0f %%  roofline %3.0f %%\n",
         instance->op->name, c->name, backward ? "backward" : "forward", seconds * 1e3, flops / seconds * 1e-9,
         100 * flops / seconds / ceiling->flops, bytes / seconds * 1e-9, 100 * bytes / seconds / ceiling->bytes,
         100 * bound / seconds);
  fflush(stdout);
}

void op_print_perf(const op_variant *variant, int id, const comba_case *c, const op_ceiling *ceiling) {
  op_instance instance;
  if (op_case_create(&instance, variant, id, c) != COMBA_OK) {
    printf("%s, case '%s': %s\n", variant->op[id]->name, c->name, comba_last_error());
    return;
  }
  op_case_fill(&instance, c);
  op_instance_forward(&instance, true);
  print_pass(&instance, c, false, ceiling);
  if (instance.op->backward) {
    op_case_fill_output_gradients(&instance, c);
    for (int i = 0; i < instance.op->inputs; i++)
      if (instance.input_gradient[i].data) memset(instance.input_gradient[i].data, 0, instance.input_gradient[i].bytes);
    op_instance_backward(&instance, op_case_wanted(&instance, c), op_case_accumulated(&instance),
                         op_instance_differentiable_outputs(&instance));
    print_pass(&instance, c, true, ceiling);
  }
  op_instance_free(&instance);
}
