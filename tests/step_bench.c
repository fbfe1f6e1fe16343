/* step-bench [PRESET] [--threads N]: the time of a training step of each preset, as a share of the best rate of products.
 * step-bench --config FILE [--batch-size N] [--sequence-length T]: of one model, with its operators and decoding.
 * --device cuda: on the GPU in bfloat16; the ceilings are the GPU's.
 *
 * What counts is the plan's sum: products, convolutions and engines, forward and backward. For a linear layer that is 6 FLOP a
 * parameter and token that passes it (each token once a direction of the scan). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../lm/lm.h"
#include "../vision/vision.h"
#include "comba.h"
#include "core/backend.h"
#include "core/file.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "core/random.h"
#include "model/model_private.h"
#include "op_instance.h"
#include "op_perf.h"

enum { STEPS = 5, BATCH_MOST = 64 };
static const int64_t PARAMETERS_MOST = 50000000; /* larger ones are for other machines */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void fill(const comba_model_info *info, comba_batch *batch, float *pixels, int64_t count, int32_t *indices) {
  for (int64_t i = 0; i < count && pixels; i++) pixels[i] = (float)comba_random_normal(1, 2, (uint64_t)i);
  const int64_t indexed = pixels ? batch->batch : count, range = pixels ? info->num_classes : info->vocab_size;
  for (int64_t i = 0; i < indexed; i++) indices[i] = (int32_t)(i * 7919 % range);
  batch->pixel_values = pixels;
  *(pixels ? &batch->labels : &batch->input_ids) = indices;
}

/* One step; the loss is read, so that a device has done it all when this returns. */
static comba_status step(comba_model *model, const comba_batch *batch) {
  comba_status status = COMBA_OK;
  float norm;
  comba_model_zero_gradient(model);
  COMBA_TRY(comba_model_forward(model, batch, COMBA_PASS_TRAIN, NULL));
  COMBA_TRY(comba_model_backward(model, 1));
  COMBA_TRY(comba_model_step(model, NULL, &norm));
cleanup:
  return status;
}

/* `first`: the one that plans, touches the memory and records */
static comba_status time_steps(comba_model *model, const comba_batch *batch, double *best, double *first) {
  comba_status status = COMBA_OK;
  *best = HUGE_VAL;
  for (int i = 0; i <= STEPS; i++) {
    const double start = now();
    COMBA_TRY(step(model, batch));
    if (i)
      *best = fmin(*best, now() - start);
    else
      *first = now() - start;
  }
cleanup:
  return status;
}

/* ---- One model in detail ------------------------------------------------------------------------------------------- */

typedef struct addition {
  const comba_op *op;
  comba_call call;
} addition;

static void add(void *context) {
  const addition *a = context;
  a->op->forward(&a->call);
}

/* What of an operator's time is that of being timed alone: the time of one that adds two numbers */
static double alone_seconds(const comba_backend *backend) {
  enum { TRIES = 9 };
  const comba_view number = {backend->memory->allocate(sizeof(float), "a number"), COMBA_SHAPE(1)};
  addition a = {backend->op[COMBA_OP_add], {.input = {number, number}, .output = {number}}};
  double best = HUGE_VAL;
  for (int i = 0; i < TRIES; i++) best = fmin(best, backend->time(add, &a));
  backend->memory->release(number.data);
  return best;
}

/* Time by operator of one step more, and how near each is to the roofline. */
static comba_status print_operators(comba_model *model, const comba_batch *batch, const op_ceiling *ceiling) {
  comba_profile_row rows[COMBA_PROFILE_ROWS];
  comba_profile_enable(true);
  const comba_status status = step(model, batch);
  comba_profile_enable(false);
  const int count = comba_profile_rows(rows, COMBA_PROFILE_ROWS);
  double total = 0;
  for (int i = 0; i < count; i++) total += rows[i].seconds;
  printf("%-22s %-8s %6s %9s %7s %9s %8s %9s\n", "operator", "pass", "calls", "ms", "share", "TFLOP/s", "GB/s",
         "roofline");
  for (int i = 0; i < count; i++) {
    const comba_profile_row *row = &rows[i];
    const double bound = fmax(row->flops / ceiling->flops, row->bytes / ceiling->bytes);
    printf("%-22s %-8s %6lld %9.3f %6.1f%% %9.3f %8.0f %8.0f%%\n", row->op, row->pass, (long long)row->calls,
           row->seconds * 1e3, 100 * row->seconds / total, row->flops / row->seconds * 1e-12,
           row->bytes / row->seconds * 1e-9, 100 * bound / row->seconds);
  }
  printf("one by one %.1f ms", total * 1e3);
  if (model->backend->time) printf(", %.1f us of each call for being timed alone", alone_seconds(model->backend) * 1e6);
  printf("\n");
  return status;
}

/* Tokens a second, one a step, against the time in which the weights are read once. */
static comba_status print_decoding(comba_model *model, const comba_model_info *info, int64_t batch,
                                   const op_ceiling *ceiling) {
  enum { TOKENS = 64, CAPACITY = 2 * TOKENS };
  comba_status status = COMBA_OK;
  comba_decoder *decoder = NULL;
  int32_t *ids = op_memory((size_t)batch * sizeof *ids);
  float *logits = op_memory((size_t)(batch * info->vocab_size) * sizeof *logits);
  double start = 0;
  COMBA_TRY(comba_decoder_create(&decoder, model, batch, CAPACITY));
  for (int i = -8; i < TOKENS; i++) {
    if (!i) start = now();
    COMBA_TRY(comba_decoder_feed(decoder, ids, 1, i < 0 || i == TOKENS - 1 ? logits : NULL));
  }
  const double seconds = (now() - start) / TOKENS;
  const double bytes = (double)info->parameters * (double)model->backend->size[COMBA_ACTIVATION];
  printf("decoding, batch %lld: %.0f tokens/s, %.3f ms a step; reading the weights takes %.3f ms (%.0f %%)\n",
         (long long)batch, (double)batch / seconds, seconds * 1e3, bytes / ceiling->bytes * 1e3,
         100 * bytes / ceiling->bytes / seconds);
cleanup:
  comba_decoder_free(decoder);
  free(ids);
  free(logits);
  return status;
}

/* ---- Models -------------------------------------------------------------------------------------------------------- */

typedef struct bench {
  const char *only, *config;
  int64_t batch, length; /* 0: the preset's */
  comba_options options;
  op_ceiling ceiling;
} bench;

static comba_status print_model(const bench *b, const char *name, const char *config, int64_t batch_size,
                                int64_t length) {
  comba_status status = COMBA_OK;
  comba_model *model = NULL;
  comba_model_info info;
  comba_graph_cost cost;
  float *pixels = NULL;
  int32_t *indices = NULL;
  double seconds, first;
  COMBA_TRY(comba_model_create(&model, config, &b->options));
  comba_model_describe(model, &info);
  if (info.parameters > PARAMETERS_MOST && !b->config) goto cleanup;
  const bool vision = info.kind == COMBA_KIND_VISION;
  comba_batch batch = {.batch = batch_size, .length = length};
  const int64_t count = batch_size * (vision ? info.num_channels * info.image_size * info.image_size : length);
  if (vision) pixels = op_memory((size_t)count * sizeof *pixels);
  indices = op_memory((size_t)count * sizeof *indices);
  fill(&info, &batch, pixels, count, indices);
  COMBA_TRY(time_steps(model, &batch, &seconds, &first));
  COMBA_TRY(comba_model_cost(model, COMBA_PASS_TRAIN, batch_size, length, &cost));
  const double flops = cost.forward_flops + cost.backward_flops;
  printf("%-20s batch %-3lld %9lld parameters %8.2f GFLOP %9.1f ms %7.1f GFLOP/s %3.0f %%  arena %6.1f MB\n", name,
         (long long)batch_size, (long long)info.parameters, flops * 1e-9, seconds * 1e3, flops / seconds * 1e-9,
         100 * flops / seconds / b->ceiling.flops, (double)cost.arena_bytes * 1e-6);
  if (b->config) {
    printf("%.0f %s/s; the first step took %.2f s\n", (double)(vision ? batch_size : batch_size * length) / seconds,
           vision ? "images" : "tokens", first);
    COMBA_TRY(print_operators(model, &batch, &b->ceiling));
    for (int64_t n = 1; n <= 64 && !vision; n *= 64) COMBA_TRY(print_decoding(model, &info, n, &b->ceiling));
  }
  fflush(stdout);
cleanup:
  free(pixels);
  free(indices);
  comba_model_free(model);
  return status;
}

static comba_status print_presets(const bench *b) {
  const comba_preset *const lists[] = {vision_presets, lm_presets};
  comba_status status = COMBA_OK;
  for (int i = 0; i < 2; i++)
    for (const comba_preset *preset = lists[i]; preset->name; preset++) {
      const int64_t wanted = b->batch ? b->batch : preset->training.batch_size;
      if (b->only && strcmp(b->only, preset->name) != 0) continue;
      COMBA_TRY(print_model(b, preset->name, preset->config, wanted < BATCH_MOST || b->batch ? wanted : BATCH_MOST,
                            b->length ? b->length : preset->sequence_length));
    }
cleanup:
  return status;
}

static comba_status print_config(const bench *b) {
  char *text = NULL;
  const comba_status status = comba_preset_config(NULL, NULL, b->config, &text);
  if (status != COMBA_OK) return status;
  const comba_status result = print_model(b, b->config, text, b->batch ? b->batch : 1, b->length ? b->length : 256);
  free(text);
  return result;
}

static int usage(void) {
  fprintf(stderr, "usage: step-bench [PRESET | --config FILE] [--batch-size N] [--sequence-length T] [--threads N] "
                  "[--device cpu|cuda]\n");
  return 2;
}

static bool parse(bench *b, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (name[0] != '-' && !b->only) {
      b->only = name;
      continue;
    }
    if (i + 1 == argc) return false;
    const char *value = argv[++i];
    if (!strcmp(name, "--config"))
      b->config = value;
    else if (!strcmp(name, "--device") && !strcmp(value, "cuda"))
      b->options.device = COMBA_DEVICE_CUDA;
    else if (!strcmp(name, "--batch-size") && atoi(value) > 0)
      b->batch = atoi(value);
    else if (!strcmp(name, "--sequence-length") && atoi(value) > 0)
      b->length = atoi(value);
    else if (strcmp(name, "--threads") || comba_set_threads(atoi(value)) != COMBA_OK)
      if (strcmp(name, "--device") || strcmp(value, "cpu")) return false;
  }
  return !(b->only && b->config);
}

int main(int argc, char **argv) {
  bench b = {0};
  const comba_backend *backend;
  comba_options_default(&b.options);
  b.options.device = COMBA_DEVICE_CPU;
  if (!parse(&b, argc, argv)) return usage();
  if (comba_backend_open(&backend, &b.options) != COMBA_OK) {
    fprintf(stderr, "step-bench: %s\n", comba_last_error());
    return 77;
  }
  const bool on_device = !backend->memory->is_host;
  b.ceiling = on_device ? op_measure_device_ceiling(backend) : op_measure_ceiling();
  printf("training steps, %s, %d threads; products: %s; share of %.1f GFLOP/s (%s cubed); copy %.1f GB/s\n",
         backend->name, comba_threads(), on_device ? "cuBLASLt" : comba_gemm_library(), b.ceiling.flops * 1e-9,
         on_device ? "linear, 8192" : "sgemm, 2048", b.ceiling.bytes * 1e-9);
  if ((b.config ? print_config(&b) : print_presets(&b)) == COMBA_OK) return 0;
  fprintf(stderr, "step-bench: %s\n", comba_last_error());
  return 1;
}
