/* step-bench [PRESET] [--threads N]: the time of a training step of each preset, as a share of the best rate of products.
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

static comba_status time_steps(comba_model *model, const comba_batch *batch, double *best) {
  comba_status status = COMBA_OK;
  *best = HUGE_VAL;
  for (int step = 0; step <= STEPS; step++) { /* the first one plans and touches the memory */
    const double start = now();
    comba_model_zero_gradient(model);
    COMBA_TRY(comba_model_forward(model, batch, COMBA_PASS_TRAIN, NULL));
    COMBA_TRY(comba_model_backward(model, 1));
    COMBA_TRY(comba_model_step(model, NULL, NULL));
    if (step) *best = fmin(*best, now() - start);
  }
cleanup:
  return status;
}

static comba_status print_preset(const comba_preset *preset, const op_ceiling *ceiling) {
  comba_status status = COMBA_OK;
  comba_model *model = NULL;
  comba_model_info info;
  comba_graph_cost cost;
  float *pixels = NULL;
  int32_t *indices = NULL;
  double seconds;
  COMBA_TRY(comba_model_create(&model, preset->config, NULL));
  comba_model_describe(model, &info);
  if (info.parameters > PARAMETERS_MOST) goto cleanup;
  const bool vision = info.kind == COMBA_KIND_VISION;
  const int64_t wanted = preset->training.batch_size, B = wanted < BATCH_MOST ? wanted : BATCH_MOST;
  comba_batch batch = {.batch = B, .length = preset->sequence_length};
  const int64_t count = B * (vision ? info.num_channels * info.image_size * info.image_size : batch.length);
  if (vision) pixels = op_memory((size_t)count * sizeof *pixels);
  indices = op_memory((size_t)count * sizeof *indices);
  fill(&info, &batch, pixels, count, indices);
  COMBA_TRY(time_steps(model, &batch, &seconds));
  COMBA_TRY(comba_model_cost(model, COMBA_PASS_TRAIN, B, batch.length, &cost));
  const double flops = cost.forward_flops + cost.backward_flops;
  printf("%-20s batch %-3lld %9lld parameters %8.2f GFLOP %9.1f ms %7.1f GFLOP/s %3.0f %%  arena %6.1f MB\n",
         preset->name, (long long)B, (long long)info.parameters, flops * 1e-9, seconds * 1e3, flops / seconds * 1e-9,
         100 * flops / seconds / ceiling->flops, (double)cost.arena_bytes * 1e-6);
  fflush(stdout);
cleanup:
  free(pixels);
  free(indices);
  comba_model_free(model);
  return status;
}

int main(int argc, char **argv) {
  const char *only = NULL;
  for (int i = 1; i < argc; i++) {
    const bool threads = !strcmp(argv[i], "--threads") && i + 1 < argc;
    if (threads && comba_set_threads(atoi(argv[++i])) == COMBA_OK) continue;
    if (threads || argv[i][0] == '-' || only) {
      fprintf(stderr, "usage: step-bench [PRESET] [--threads N]\n");
      return 2;
    }
    only = argv[i];
  }
  const op_ceiling ceiling = op_measure_ceiling();
  printf("training steps, %d threads; products: %s; share of %.1f GFLOP/s (sgemm, 2048 cubed)\n", comba_threads(),
         comba_gemm_library(), ceiling.flops * 1e-9);
  const comba_preset *const lists[] = {vision_presets, lm_presets};
  for (int i = 0; i < 2; i++)
    for (const comba_preset *preset = lists[i]; preset->name; preset++)
      if ((!only || !strcmp(only, preset->name)) && print_preset(preset, &ceiling) != COMBA_OK) {
        fprintf(stderr, "%s: %s\n", preset->name, comba_last_error());
        return 1;
      }
  return 0;
}
