/* The options of `train` that both programs share. */
#include <math.h>
#include <stdint.h>

#include "core/status.h"
#include "program/trainer.h"

enum {
  OUTPUT = 0x2000,
  RESUME,
  INIT_FROM,
  STEPS,
  BATCH_SIZE,
  ACCUMULATION,
  LEARNING_RATE,
  MIN_LEARNING_RATE,
  WARMUP,
  WEIGHT_DECAY,
  CLIP,
  BETA2,
  DECAY_SCALARS,
  CHECKPOINT_EVERY,
  KEEP_CHECKPOINTS,
  EVALUATE_EVERY,
  LOG_EVERY,
  SKIP_NONFINITE,
  MAX_MINUTES
};

static const struct argp_option options[] = {
    {0, 0, 0, 0, "Training:", 20},
    {"output", OUTPUT, "DIR", 0, "Folder of the run; new or empty, unless --resume", 0},
    {"resume", RESUME, 0, 0, "Go on from the newest checkpoint in --output (from step 0 if there is none)", 0},
    {"init-from", INIT_FROM, "DIR", 0, "Start from the weights of another run or checkpoint", 0},
    {"steps", STEPS, "N", 0, "Optimizer steps", 0},
    {"batch-size", BATCH_SIZE, "N", 0, "Sequences or pictures a micro-batch (default 32)", 0},
    {"gradient-accumulation", ACCUMULATION, "N", 0, "Micro-batches a step (default 1)", 0},
    {"learning-rate", LEARNING_RATE, "X", 0, "Largest learning rate (default 0.003)", 0},
    {"min-learning-rate", MIN_LEARNING_RATE, "X", 0, "At the end of the cosine (default a tenth of the largest)", 0},
    {"warmup-steps", WARMUP, "N", 0, "Linear warm-up (default a twentieth of the steps, at most 1024)", 0},
    {"weight-decay", WEIGHT_DECAY, "X", 0, "Decoupled; of matrices, convolution taps and embeddings (default 0.1)", 0},
    {"decay-scalars", DECAY_SCALARS, 0, 0,
     "Let weight decay act on norms, biases and head scalars too, as the released recipe does", 0},
    {"gradient-clip", CLIP, "X", 0, "Largest global gradient norm, 0 for none (default 1)", 0},
    {"beta2", BETA2, "X", 0, "AdamW's second moment (default 0.95)", 0},
    {"checkpoint-every", CHECKPOINT_EVERY, "N", 0,
     "Steps between checkpoints (default: ten minutes between them). At the end of a run, whatever ends it, there is "
     "one",
     0},
    {"keep-checkpoints", KEEP_CHECKPOINTS, "N", 0, "Newest checkpoints to keep (default 3)", 0},
    {"evaluate-every", EVALUATE_EVERY, "N", 0, "Steps between validations (default a tenth of the steps)", 0},
    {"log-every", LOG_EVERY, "N", 0, "Steps between lines of log.jsonl (default 10)", 0},
    {"skip-nonfinite", SKIP_NONFINITE, "N", 0,
     "Pass over up to N steps whose gradient is not finite; they change no weight. The next one ends the run (default "
     "0)",
     0},
    {"max-minutes", MAX_MINUTES, "N", 0, "End in order, with a checkpoint, after this time", 0},
    {0}};

static error_t parse(int key, char *argument, struct argp_state *state) {
  comba_training_options *o = state->input;
  const int64_t many = (int64_t)1 << 40;
  switch (key) {
  case OUTPUT: o->output = argument; break;
  case RESUME: o->resume = true; break;
  case INIT_FROM: o->init_from = argument; break;
  case STEPS: o->steps = comba_option_integer(state, "--steps", argument, 1, many); break;
  case BATCH_SIZE: o->batch_size = comba_option_integer(state, "--batch-size", argument, 1, 1 << 20); break;
  case ACCUMULATION:
    o->gradient_accumulation = comba_option_integer(state, "--gradient-accumulation", argument, 1, 1 << 20);
    break;
  case LEARNING_RATE: o->learning_rate = comba_option_number(state, "--learning-rate", argument, 0, 1e3); break;
  case MIN_LEARNING_RATE:
    o->min_learning_rate = comba_option_number(state, "--min-learning-rate", argument, 0, 1e3);
    break;
  case WARMUP: o->warmup_steps = comba_option_integer(state, "--warmup-steps", argument, 0, many); break;
  case WEIGHT_DECAY: o->weight_decay = comba_option_number(state, "--weight-decay", argument, 0, 1e3); break;
  case DECAY_SCALARS: o->decay_scalars = 1; break;
  case CLIP: o->gradient_clip = comba_option_number(state, "--gradient-clip", argument, 0, 1e9); break;
  case BETA2: o->beta2 = comba_option_number(state, "--beta2", argument, 0, 0.999999); break;
  case CHECKPOINT_EVERY:
    o->checkpoint_every = comba_option_integer(state, "--checkpoint-every", argument, 1, many);
    break;
  case KEEP_CHECKPOINTS:
    o->keep_checkpoints = comba_option_integer(state, "--keep-checkpoints", argument, 1, 1 << 20);
    break;
  case EVALUATE_EVERY: o->evaluate_every = comba_option_integer(state, "--evaluate-every", argument, 1, many); break;
  case LOG_EVERY: o->log_every = comba_option_integer(state, "--log-every", argument, 1, many); break;
  case SKIP_NONFINITE: o->skip_nonfinite = comba_option_integer(state, "--skip-nonfinite", argument, 0, many); break;
  case MAX_MINUTES: o->max_minutes = comba_option_number(state, "--max-minutes", argument, 0, 1e7); break;
  case ARGP_KEY_END:
    if (!o->output) argp_error(state, "--output is missing: the folder that the run writes");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

const struct argp comba_training_argp = {.options = options, .parser = parse};

comba_training_options comba_training_unset(void) {
  return (comba_training_options){.steps = COMBA_UNSET,
                                  .batch_size = COMBA_UNSET,
                                  .gradient_accumulation = COMBA_UNSET,
                                  .warmup_steps = COMBA_UNSET,
                                  .checkpoint_every = COMBA_UNSET,
                                  .keep_checkpoints = COMBA_UNSET,
                                  .evaluate_every = COMBA_UNSET,
                                  .log_every = COMBA_UNSET,
                                  .skip_nonfinite = COMBA_UNSET,
                                  .learning_rate = COMBA_UNSET,
                                  .min_learning_rate = COMBA_UNSET,
                                  .weight_decay = COMBA_UNSET,
                                  .gradient_clip = COMBA_UNSET,
                                  .beta2 = COMBA_UNSET,
                                  .max_minutes = COMBA_UNSET,
                                  .decay_scalars = COMBA_UNSET};
}

void comba_training_merge(comba_training_options *o, const comba_training_options *preset) {
#define TAKE(member)                                                                                                   \
  if (o->member == COMBA_UNSET && preset->member != 0) o->member = preset->member
  TAKE(steps);
  TAKE(batch_size);
  TAKE(gradient_accumulation);
  TAKE(warmup_steps);
  TAKE(checkpoint_every);
  TAKE(keep_checkpoints);
  TAKE(evaluate_every);
  TAKE(log_every);
  TAKE(skip_nonfinite);
  TAKE(learning_rate);
  TAKE(min_learning_rate);
  TAKE(weight_decay);
  TAKE(gradient_clip);
  TAKE(beta2);
  TAKE(max_minutes);
  TAKE(decay_scalars);
#undef TAKE
}

comba_status comba_training_complete(comba_training_options *o) {
  if (o->steps < 1) return comba_fail(COMBA_ERROR_ARGUMENT, "--steps is missing: the number of optimizer steps");
  const int64_t tenth = o->steps / 10 > 0 ? o->steps / 10 : 1;
  comba_training_options defaults = {.steps = o->steps,
                                     .batch_size = 32,
                                     .gradient_accumulation = 1,
                                     .warmup_steps = o->steps / 20 < 1024 ? o->steps / 20 : 1024,
                                     .keep_checkpoints = 3,
                                     .evaluate_every = tenth,
                                     .log_every = 10,
                                     .learning_rate = 3e-3,
                                     .weight_decay = 0.1,
                                     .gradient_clip = 1,
                                     .beta2 = 0.95,
                                     .max_minutes = 0,
                                     .decay_scalars = 0};
  defaults.min_learning_rate = 0.1 * (o->learning_rate == COMBA_UNSET ? defaults.learning_rate : o->learning_rate);
  comba_training_merge(o, &defaults);
  if (o->warmup_steps == COMBA_UNSET) o->warmup_steps = 0; /* a run of fewer than 20 steps */
  if (o->min_learning_rate == COMBA_UNSET) o->min_learning_rate = 0;
  if (o->max_minutes == COMBA_UNSET) o->max_minutes = 0;
  if (o->checkpoint_every == COMBA_UNSET) o->checkpoint_every = 0;
  if (o->skip_nonfinite == COMBA_UNSET) o->skip_nonfinite = 0;
  if (o->decay_scalars == COMBA_UNSET) o->decay_scalars = 0;
  if (o->min_learning_rate > o->learning_rate)
    return comba_fail(COMBA_ERROR_ARGUMENT, "--min-learning-rate is %g, expected at most --learning-rate %g",
                      o->min_learning_rate, o->learning_rate);
  return COMBA_OK;
}

double comba_schedule_rate(int64_t step, int64_t steps, int64_t warmup, double rate, double minimum) {
  if (step < warmup) return rate * (double)(step + 1) / (double)warmup;
  if (step >= steps) return minimum;
  const double progress = (double)(step - warmup) / (double)(steps - warmup);
  return minimum + 0.5 * (rate - minimum) * (1 + cos(3.14159265358979323846 * progress));
}
