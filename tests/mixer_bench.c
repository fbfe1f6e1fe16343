/* mixer-bench [MIXER] [--threads N]: each mixer alone, (B,T,d) -> (B,T,d): forward, forward and backward, and one-token decoding.
 *
 * The share is of the best rate of products, over the FLOPs of the layer's products, convolutions and engine as its plan counts
 * them. State: of one sequence; T is where it grows with the tokens that were read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/graph.h"
#include "core/parallel.h"
#include "core/random.h"
#include "core/gemm.h"
#include "mixers/mixer.h"
#include "op_perf.h"

enum { B = 2, T = 1024, D = 256, HEADS = 4, HEAD = D / HEADS, REPEATS = 5, DECODED = 64 };

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* FLOPs of all that has run while the profile was on. */
static double counted_flops(void) {
  comba_profile_row rows[COMBA_PROFILE_ROWS];
  const int count = comba_profile_rows(rows, COMBA_PROFILE_ROWS);
  double sum = 0;
  for (int i = 0; i < count; i++) sum += rows[i].flops;
  return sum;
}

/* Sizes under the names that mixers have for them; each reads its own and leaves the others. */
static const char *config_of(const comba_mixer_row *row, char text[512]) {
  snprintf(text, 512,
           "{\"model_type\": \"%s\", \"hidden_size\": %d, \"num_heads\": %d, \"head_dim\": %d, \"expand_ratio\": %d, "
           "\"expand_k\": 1, \"expand_v\": 1, \"num_hidden_layers\": 1, \"vocab_size\": 256, \"use_mlp\": false}",
           row->model_type, D, HEADS, HEAD, HEAD);
  return text;
}

typedef struct pass {
  double seconds, flops;
} pass;

/* forward, then forward and backward; the least time of REPEATS, the first call plans and is not timed */
static comba_status time_layer(const char *config, const float *x, float *y, pass passes[2]) {
  comba_mixer *mixer = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_mixer_create(&mixer, config, NULL));
  for (int backward = 0; backward < 2; backward++) {
    passes[backward].seconds = HUGE_VAL;
    for (int repeat = 0; repeat <= REPEATS; repeat++) {
      comba_profile_enable(repeat == 0); /* FLOPs are counted in the run that is not timed */
      const double before = counted_flops(), start = now();
      COMBA_TRY(comba_mixer_forward(mixer, x, B, T, NULL, 0, y));
      if (backward) COMBA_TRY(comba_mixer_backward(mixer, x, y));
      if (repeat)
        passes[backward].seconds = fmin(passes[backward].seconds, now() - start);
      else
        passes[backward].flops = counted_flops() - before;
    }
  }
cleanup:
  comba_profile_enable(false);
  comba_mixer_free(mixer);
  return status;
}

/* Tokens a second of one sequence through a model of one layer. */
static comba_status time_decoding(const char *config, double *rate) {
  comba_model *model = NULL;
  comba_decoder *decoder = NULL;
  comba_status status = COMBA_OK;
  float logits[256];
  COMBA_TRY(comba_model_create(&model, config, NULL));
  COMBA_TRY(comba_decoder_create(&decoder, model, 1, 2 * DECODED));
  double start = 0;
  for (int32_t i = 0; i < 2 * DECODED; i++) {
    if (i == DECODED) start = now(); /* the first half plans and warms up */
    const int32_t token = i % 256;
    COMBA_TRY(comba_decoder_feed(decoder, &token, 1, logits));
  }
  *rate = DECODED / (now() - start);
cleanup:
  comba_decoder_free(decoder);
  comba_model_free(model);
  return status;
}

static comba_status print_mixer(const comba_mixer_row *row, const op_ceiling *ceiling, const float *x, float *y) {
  char text[512];
  comba_status status = COMBA_OK;
  comba_config *config = NULL;
  pass passes[2];
  double rate = 0;
  COMBA_TRY(comba_config_parse(&config, config_of(row, text), row->model_type, NULL));
  COMBA_TRY(time_layer(text, x, y, passes));
  COMBA_TRY(time_decoding(text, &rate));
  const comba_mixer_cost cost = row->cost(config->mixer_config, D);
  printf("%-15s forward %8.2f ms %3.0f %%   with backward %8.2f ms %3.0f %%   decode %8.0f tokens/s   state %8.0f "
         "bytes%s\n",
         row->model_type, 1e3 * passes[0].seconds, 100 * passes[0].flops / passes[0].seconds / ceiling->flops,
         1e3 * passes[1].seconds, 100 * passes[1].flops / passes[1].seconds / ceiling->flops, rate,
         cost.state_elements * sizeof(float), cost.state_grows ? " a token" : "");
  fflush(stdout);
cleanup:
  comba_config_free(config);
  return status;
}

int main(int argc, char **argv) {
  const char *only = NULL;
  for (int i = 1; i < argc; i++) {
    const bool threads = !strcmp(argv[i], "--threads") && i + 1 < argc;
    if (threads && comba_set_threads(atoi(argv[++i])) == COMBA_OK) continue;
    if (threads || argv[i][0] == '-' || only || !comba_mixer_find(argv[i])) {
      fprintf(stderr, "usage: mixer-bench [MIXER] [--threads N]; comba-lm info --mixers lists the mixers\n");
      return 2;
    }
    only = argv[i];
  }
  const op_ceiling ceiling = op_measure_ceiling();
  printf(
      "one layer, (%d, %d, %d), %d heads of %d, %d threads; products: %s; share of %.1f GFLOP/s (sgemm, 2048 cubed)\n",
      B, T, D, HEADS, HEAD, comba_threads(), comba_gemm_library(), ceiling.flops * 1e-9);
  float *x = op_memory(sizeof(float) * B * T * D), *y = op_memory(sizeof(float) * B * T * D);
  for (int64_t i = 0; i < B * T * D; i++) x[i] = (float)comba_random_normal(1, 1, (uint64_t)i);
  int code = 0;
  for (const comba_mixer_row *const *row = comba_mixer_table; *row; row++)
    if ((!only || comba_mixer_find(only) == *row) && print_mixer(*row, &ceiling, x, y) != COMBA_OK) {
      fprintf(stderr, "%s: %s\n", (*row)->model_type, comba_last_error());
      code = 1;
    }
  free(x);
  free(y);
  return code;
}
