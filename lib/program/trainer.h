/* The training loop of both programs: batches, AdamW with a cosine schedule, evaluation, checkpoints, resume, and an end in
 * order on SIGINT, SIGTERM or --max-minutes. What it trains on comes from the program's callbacks. */
#ifndef COMBA_PROGRAM_TRAINER_H
#define COMBA_PROGRAM_TRAINER_H

#include <jansson.h>

#include "program/options.h"
#include "program/run_folder.h"

/* Options of `train`. Those that the command line does not give keep COMBA_UNSET and are filled in from the preset, then by
 * comba_training_complete. */
#define COMBA_UNSET (-1)
typedef struct comba_training_options {
  const char *output, *init_from; /* NULL: not given */
  bool resume;
  int64_t steps, batch_size, gradient_accumulation, warmup_steps;
  int64_t checkpoint_every; /* 0: by time */
  int64_t skip_nonfinite;   /* steps that may be passed over */
  int64_t keep_checkpoints, evaluate_every, log_every;
  double learning_rate, min_learning_rate, weight_decay, gradient_clip, beta2, max_minutes;
  int decay_scalars;
} comba_training_options;

extern const struct argp comba_training_argp; /* input: comba_training_options */
comba_training_options comba_training_unset(void);
/* Takes from `preset` what `options` leaves unset; 0 in a preset says nothing. */
void comba_training_merge(comba_training_options *options, const comba_training_options *preset);
/* Fills in what is still unset: batch 32, rate 3e-3, min rate a tenth, warm-up a twentieth of the steps (at most 1024), weight
 * decay 0.1, clip 1, beta2 0.95, accumulation 1, evaluation ten times a run, a checkpoint every ten minutes, three kept, a log line
 * every ten steps, no step passed over. `steps` must be set. Values that do not fit together are COMBA_ERROR_ARGUMENT. */
comba_status comba_training_complete(comba_training_options *options);

typedef struct comba_training {
  comba_model *model;
  const comba_common_options *common;
  comba_training_options options; /* complete */
  const char *unit;               /* "tokens" or "images", for rates */
  int64_t units_per_step;         /* of all micro-batches together */
  int64_t length;                 /* of a sequence in tokens; 0 for pictures */
  json_t *settings;               /* what else --resume compares (data fingerprint, config); taken over */
  void *context;
  /* Fills in micro-batch number `index` (counting all since step 0); its memory belongs to the program until the next call. */
  comba_status (*next)(void *context, int64_t index, comba_batch *batch);
  /* Validation: adds its figures to `result` ("loss", "accuracy", ...) and sets `score`, the higher the better. NULL: none. */
  comba_status (*evaluate)(void *context, json_t *result, double *score);
  /* Writes what belongs beside the weights (preprocessor_config.json); may be NULL. */
  comba_status (*save)(void *context, const char *folder);
  /* Writes what belongs into the output folder itself at the start (split.tsv, skipped.tsv); may be NULL. */
  comba_status (*begin)(void *context, const char *folder);
} comba_training;

typedef struct comba_training_result {
  int64_t step;
  bool finished;      /* false: stopped before the last step, resumable */
  double seconds;     /* of this process */
  double loss;        /* of the last logged steps */
  json_t *evaluation; /* the last one, or NULL; to be released */
  char *curves;       /* path of curves.svg; to be freed */
} comba_training_result;

/* Runs to the last step or an interruption. */
comba_status comba_train(comba_training *training, comba_training_result *result);
/* The outcome on standard output: text, or with --json an object with the last evaluation. */
void comba_training_report(const comba_training *training, const comba_training_result *result);
void comba_training_result_release(comba_training_result *result);

/* The learning rate of step `step` (from 0): linear warm-up, then a cosine from `rate` to `minimum`. */
double comba_schedule_rate(int64_t step, int64_t steps, int64_t warmup, double rate, double minimum);

#endif
