#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include "op_perf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef HAVE_CUDA
#include <cuda_runtime_api.h>
#endif

#include "core/gemm.h"
#include "core/random.h"

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

/* ---- A device ------------------------------------------------------------------------------------------------------- */

static void check(comba_status status) {
  if (status == COMBA_OK) return;
  fprintf(stderr, "%s\n", comba_last_error());
  abort();
}

typedef struct device_kernel {
  void (*kernel)(const comba_call *call);
  const comba_call *call;
} device_kernel;

/* so often in one recording that the launch of the recording itself does not count */
enum { DEVICE_CALLS = 10 };

static void queue(void *context) {
  const device_kernel *k = context;
  for (int i = 0; i < DEVICE_CALLS; i++) k->kernel(k->call);
}

double op_device_seconds(const comba_backend *backend, void (*kernel)(const comba_call *), const comba_call *call) {
  enum { REPLAYS = 5 };
  device_kernel context = {kernel, call};
  double seconds[REPLAYS];
  void *recording;
  kernel(call); /* what happens once happens before the recording */
  check(backend->memory->read(NULL, NULL, 0));
  check(backend->record(&recording, queue, &context));
  for (int i = 0; i < REPLAYS; i++) {
    const double start = now();
    backend->replay(recording);
    check(backend->memory->read(NULL, NULL, 0));
    seconds[i] = (now() - start) / DEVICE_CALLS;
  }
  backend->forget(recording);
  qsort(seconds, REPLAYS, sizeof *seconds, by_value);
  return seconds[REPLAYS / 2];
}

#ifdef HAVE_CUDA
static double device_copy_rate(void) {
  enum { TRIES = 5 };
  const size_t bytes = (size_t)1 << 30;
  void *from = NULL, *to = NULL;
  double best = 0;
  if (cudaMalloc(&from, bytes) != cudaSuccess || cudaMalloc(&to, bytes) != cudaSuccess) abort();
  for (int try = 0; try <= TRIES; try++) { /* the first one warms up */
    const double start = now();
    cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
    cudaDeviceSynchronize();
    if (try) best = fmax(best, 2 * (double)bytes / (now() - start));
  }
  cudaFree(from);
  cudaFree(to);
  return best;
}
#else
static double device_copy_rate(void) {
  return 0;
}
#endif

op_ceiling op_measure_device_ceiling(const comba_backend *backend) {
  enum { SIDE = 8192 };
  const comba_device_memory *memory = backend->memory;
  const size_t elements = (size_t)SIDE * SIDE, size = backend->size[COMBA_ACTIVATION];
  const comba_op *linear = backend->op[COMBA_OP_linear];
  comba_call call = {.input = {{.shape = COMBA_SHAPE(SIDE, SIDE)}, {.shape = COMBA_SHAPE(SIDE, SIDE)}},
                     .output = {{.shape = COMBA_SHAPE(SIDE, SIDE)}}};
  float *values = op_memory(elements * sizeof *values);
  uint16_t *narrow = op_memory(elements * sizeof *narrow);
  for (size_t i = 0; i < elements; i++) {
    values[i] = (float)op_narrow(comba_random_normal(1, 2, (uint64_t)i));
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    narrow[i] = (uint16_t)(bits >> 16);
  }
  call.input[0].data = memory->allocate(elements * size, "a product");
  call.input[1].data = memory->allocate_weights(elements * sizeof(float), "a product");
  call.output[0].data = memory->allocate(elements * size, "a product");
  if (!call.input[0].data || !call.input[1].data || !call.output[0].data) check(COMBA_ERROR_MEMORY);
  check(memory->write(call.input[0].data, size == sizeof *narrow ? (void *)narrow : values, elements * size));
  check(memory->write(call.input[1].data, values, elements * sizeof(float)));
  const op_ceiling ceiling = {2.0 * SIDE * SIDE * SIDE / op_device_seconds(backend, linear->forward, &call),
                              device_copy_rate()};
  memory->release(call.input[0].data);
  memory->release(call.input[1].data);
  memory->release(call.output[0].data);
  free(values);
  free(narrow);
  return ceiling;
}

/* ---- Cases --------------------------------------------------------------------------------------------------------- */

/* Each operand that the pass needs, once. */
static double bytes_moved(const op_instance *instance, bool backward) {
  const comba_op *op = instance->op;
  const comba_backend *device = instance->backend;
  double bytes = 0;
  for (int i = 0; i < op->inputs; i++) {
    const double size = device ? (double)device->size[op->input_class[i]] : sizeof(float);
    bytes += size * (double)(backward ? instance->input[i].elements * (op->backward_inputs >> i & 1) +
                                            instance->input_gradient[i].elements
                                      : instance->input[i].elements);
  }
  for (int i = 0; i < instance->signature.outputs; i++) {
    const double size = device ? (double)device->size[op->output_class[i]] : sizeof(float);
    bytes += size * (double)(backward ? instance->output[i].elements * (op->backward_outputs >> i & 1) +
                                            instance->output_gradient[i].elements
                                      : instance->output[i].elements);
  }
  for (int i = 0; i < instance->signature.saved; i++) bytes += (double)instance->saved[i].bytes;
  return bytes;
}

/* The kernels alone are timed: what op_instance does around a call (filling with NaN) happens once, before. */
static double median_seconds(op_instance *instance, bool backward) {
  void (*const kernel)(const comba_call *) = backward ? instance->op->backward : instance->op->forward;
  if (instance->backend) {
    op_stage *stage = op_stage_create(instance, backward);
    const double result = op_device_seconds(instance->backend, kernel, op_stage_call(stage));
    op_stage_free(stage);
    return result;
  }
  double seconds[REPEATS_MOST], total = 0;
  int count = 0;
  while (count < REPEATS_LEAST || (count < REPEATS_MOST && total < SECONDS_LEAST)) {
    const double start = now();
    kernel(&instance->call);
    total += seconds[count++] = now() - start;
  }
  qsort(seconds, (size_t)count, sizeof *seconds, by_value);
  return seconds[count / 2];
}

static void print_pass(op_instance *instance, const comba_case *c, bool backward, const op_ceiling *ceiling) {
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
  op_case_fill(&instance, c, variant->narrow);
  op_instance_forward(&instance, true);
  print_pass(&instance, c, false, ceiling);
  if (instance.op->backward) {
    op_case_fill_output_gradients(&instance, c, variant->narrow);
    for (int i = 0; i < instance.op->inputs; i++)
      if (instance.input_gradient[i].data) memset(instance.input_gradient[i].data, 0, instance.input_gradient[i].bytes);
    op_instance_backward(&instance, op_case_wanted(&instance, c), op_case_accumulated(&instance),
                         op_instance_differentiable_outputs(&instance));
    print_pass(&instance, c, true, ceiling);
  }
  op_instance_free(&instance);
}
