#include "program/trainer.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/model_private.h"
#include "program/curves.h"
#include "program/describe.h"
#include "program/progress.h"

enum { CHECKPOINT_SECONDS = 600 }; /* between checkpoints where no number of steps is given */

static volatile sig_atomic_t interrupted;

/* The first signal asks for an end in order; a second one ends the process the usual way. */
static void on_signal(int number) {
  interrupted = number;
  signal(number, SIG_DFL);
}

typedef struct loop {
  comba_training *training;
  comba_run_folder folder;
  comba_progress progress;
  int64_t step;         /* whose results are known */
  int64_t queued;       /* that the device has been given: step, or one more */
  double learning_rate; /* of the last that was queued */
  double began, saved_at;
  /* since the last log line */
  double loss_sum, logged_at;
  int64_t loss_count, skipped;
  double best; /* score of best/ */
  bool has_best;
  json_t *evaluation;
} loop;

/* ---- Checkpoints --------------------------------------------------------------------------------------------------- */

static comba_status save_weights(void *context, const char *path) {
  const loop *l = context;
  comba_status status = comba_model_save(l->training->model, path);
  if (status == COMBA_OK && l->training->save) status = l->training->save(l->training->context, path);
  return status;
}

static comba_status save_checkpoint(void *context, const char *path) {
  const loop *l = context;
  char *optimizer = NULL, *state_path = NULL, *text = NULL;
  json_t *state = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(save_weights(context, path));
  COMBA_TRY(comba_path_join(&optimizer, path, "optimizer.safetensors"));
  COMBA_TRY(comba_path_join(&state_path, path, "trainer_state.json"));
  COMBA_TRY(comba_model_save_optimizer(l->training->model, optimizer));
  /* the loader's position and every random draw follow from the step and the number of training passes */
  state = json_pack("{s:I, s:I, s:o, s:I, s:I}", "step", (json_int_t)l->step, "training_passes",
                    (json_int_t)comba_model_training_passes(l->training->model), "loss_sum",
                    isfinite(l->loss_sum) ? json_real(l->loss_sum) : json_null(), "loss_count",
                    (json_int_t)l->loss_count, "skipped", (json_int_t)l->skipped);
  if (state && l->has_best) json_object_set_new(state, "best", json_real(l->best));
  text = state ? json_dumps(state, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
  if (!text) COMBA_TRY(comba_fail_memory(0, "a checkpoint's state"));
  COMBA_TRY(comba_file_write(state_path, text, strlen(text)));
cleanup:
  json_decref(state);
  free(text);
  free(optimizer);
  free(state_path);
  return status;
}

static comba_status checkpoint(loop *l) {
  char name[64];
  snprintf(name, sizeof name, "checkpoint-%lld", (long long)l->step);
  const comba_status status = comba_run_folder_write(&l->folder, name, save_checkpoint, l);
  l->saved_at = comba_clock();
  return status == COMBA_OK ? comba_run_folder_prune(&l->folder, l->training->options.keep_checkpoints) : status;
}

/* After the step that has been queued. */
static bool checkpoint_is_due(const loop *l) {
  const int64_t every = l->training->options.checkpoint_every;
  return every ? l->queued % every == 0 : comba_clock() - l->saved_at >= CHECKPOINT_SECONDS;
}

/* The run ends with a failure at step + 1, which has changed nothing: a checkpoint of what was before it. The failure's message
 * stays, whatever becomes of that. */
static void keep_last_good(loop *l) {
  if (!l->step) return;
  char failure[1024];
  snprintf(failure, sizeof failure, "%s", comba_last_error());
  comba_model *model = l->training->model;
  comba_model_set_training_passes(model, comba_model_training_passes(model) -
                                             (uint64_t)l->training->options.gradient_accumulation);
  checkpoint(l);
  comba_fail(COMBA_ERROR_NONFINITE, "%s", failure);
}

static comba_status restore(loop *l) {
  comba_model *model = l->training->model;
  const json_t *state = l->folder.resume_state;
  char *optimizer = NULL;
  comba_status status = COMBA_OK;
  if (l->training->options.steps < l->folder.resume_step)
    COMBA_TRY(comba_fail(COMBA_ERROR_ARGUMENT,
                         "--resume: the run is at step %lld, expected --steps of at least that, found %lld",
                         (long long)l->folder.resume_step, (long long)l->training->options.steps));
  COMBA_TRY(comba_model_load_weights(model, l->folder.resume_folder));
  COMBA_TRY(comba_path_join(&optimizer, l->folder.resume_folder, "optimizer.safetensors"));
  COMBA_TRY(comba_model_load_optimizer(model, optimizer));
  const json_t *step = json_object_get(state, "step"), *passes = json_object_get(state, "training_passes");
  const json_t *best = json_object_get(state, "best");
  if (!json_is_integer(step) || json_integer_value(step) != l->folder.resume_step || !json_is_integer(passes) ||
      json_integer_value(passes) < 0)
    COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT,
                         "%s/trainer_state.json: step or training_passes is missing or wrong; remove the folder to go "
                         "on from an older checkpoint",
                         l->folder.resume_folder));
  comba_model_set_training_passes(model, (uint64_t)json_integer_value(passes));
  l->step = l->queued = l->folder.resume_step;
  const json_t *loss_sum = json_object_get(state, "loss_sum");
  l->loss_sum = json_is_null(loss_sum) ? NAN : json_number_value(loss_sum);
  l->loss_count = json_integer_value(json_object_get(state, "loss_count"));
  l->skipped = json_integer_value(json_object_get(state, "skipped"));
  l->has_best = json_is_number(best);
  l->best = json_number_value(best);
cleanup:
  free(optimizer);
  return status;
}

/* ---- One step ------------------------------------------------------------------------------------------------------ */

static comba_status log_step(loop *l, float norm) {
  comba_training *training = l->training;
  const double loss = l->loss_sum / (double)l->loss_count, now = comba_clock();
  json_t *line =
      json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)l->step, "loss", isfinite(loss) ? loss : 1e30,
                "learning_rate", l->learning_rate, "gradient_norm", isfinite(norm) ? (double)norm : 1e30, "seconds",
                now - l->began, "rate", (double)(training->units_per_step * l->loss_count) / (now - l->logged_at));
  if (line) json_object_set_new(line, "unit", json_string(training->unit));
  if (line && l->skipped) json_object_set_new(line, "skipped_steps", json_integer(l->skipped));
  l->loss_sum = 0;
  l->loss_count = 0;
  l->logged_at = now;
  return comba_run_folder_log(&l->folder, line);
}

/* A step whose gradient is not finite has changed nothing. It is passed over, or ends the run. */
static comba_status pass_over(loop *l, double loss, float norm) {
  const int64_t allowed = l->training->options.skip_nonfinite, step = l->step + 1;
  const char *name = NULL;
  const comba_status status = comba_model_nonfinite_gradient(l->training->model, &name);
  if (status != COMBA_OK) return status;
  char what[COMBA_MAX_NAME + 64];
  if (name)
    snprintf(what, sizeof what, "the gradient of '%s' is not finite", name);
  else
    snprintf(what, sizeof what, "the gradient's norm is %g", (double)norm);
  if (l->skipped >= allowed)
    return comba_fail(
        COMBA_ERROR_NONFINITE,
        "step %lld: loss %g, %s; the weights are those of step %lld. A lower --learning-rate or --gradient-clip "
        "may help; --resume --skip-nonfinite %lld passes over this step",
        (long long)step, loss, what, (long long)l->step, (long long)l->skipped + 1);
  l->skipped++;
  comba_progress_print(&l->progress, "step %lld passed over (%lld of at most %lld): loss %g, %s", (long long)step,
                       (long long)l->skipped, (long long)allowed, loss, what);
  return COMBA_OK;
}

/* Takes in the results of the step that is queued, if one is. */
static comba_status finish_step(loop *l) {
  const comba_training_options *o = &l->training->options;
  const int64_t count = o->gradient_accumulation;
  if (l->step == l->queued) return COMBA_OK;
  const float *losses = NULL;
  float norm = 0;
  double loss = 0;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_model_await_step(l->training->model, (int)(l->step % 2), &norm, &losses));
  for (int64_t i = 0; i < count; i++) loss += losses[i];
  loss /= (double)count;
  if (!isfinite(norm)) COMBA_TRY(pass_over(l, isnan(loss) ? (double)NAN : loss, norm)); /* -nan is nan */
  l->step++;
  l->loss_sum += loss;
  l->loss_count++;
  comba_progress_update(&l->progress, l->step, "loss %.4f", l->loss_sum / (double)l->loss_count);
  if (l->step % o->log_every == 0 || l->step == o->steps) COMBA_TRY(log_step(l, norm));
cleanup:
  return status;
}

/* Gives the device one step more. Its results are not waited for: those of the step before are, once its first forward is queued,
 * so that the device has work while the host reads, logs and prepares batches. Until then that step's gradients are whole. */
static comba_status queue_step(loop *l) {
  comba_training *training = l->training;
  const comba_training_options *o = &training->options;
  const int64_t count = o->gradient_accumulation;
  const int turn = (int)(l->queued % 2);
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_model_reserve_results(training->model, count));
  for (int64_t i = 0; i < count; i++) {
    comba_batch batch = {0};
    COMBA_TRY(training->next(training->context, l->queued * count + i, &batch));
    COMBA_TRY(comba_model_queue_forward(training->model, &batch, turn, i));
    if (i == 0) {
      COMBA_TRY(finish_step(l));
      comba_model_zero_gradient(training->model);
    }
    COMBA_TRY(comba_model_backward(training->model, 1 / (float)count));
  }
  comba_optimizer optimizer;
  comba_optimizer_default(&optimizer);
  optimizer.learning_rate =
      (float)comba_schedule_rate(l->queued, o->steps, o->warmup_steps, o->learning_rate, o->min_learning_rate);
  optimizer.beta2 = (float)o->beta2;
  optimizer.weight_decay = (float)o->weight_decay;
  optimizer.gradient_clip = (float)o->gradient_clip;
  optimizer.decay_scalars = o->decay_scalars;
  COMBA_TRY(comba_model_queue_step(training->model, &optimizer, turn));
  l->learning_rate = (double)optimizer.learning_rate;
  l->queued++;
cleanup:
  return status;
}

static comba_status evaluate(loop *l) {
  comba_training *training = l->training;
  double score = 0;
  char *text = NULL;
  json_t *result = json_object(), *line = NULL;
  comba_status status = COMBA_OK;
  if (!result) return comba_fail_memory(0, "a result");
  comba_progress_clear(&l->progress);
  COMBA_TRY(training->evaluate(training->context, result, &score));
  line = json_pack("{s:I, s:O}", "step", (json_int_t)l->step, "evaluation", result);
  COMBA_TRY(comba_run_folder_log(&l->folder, line));
  text = json_dumps(result, JSON_COMPACT | JSON_REAL_PRECISION(5));
  comba_progress_print(&l->progress, "step %lld: validation %s", (long long)l->step, text ? text : "");
  json_decref(l->evaluation);
  l->evaluation = json_incref(result);
  if (!l->has_best || score > l->best) {
    l->best = score;
    l->has_best = true;
    COMBA_TRY(comba_run_folder_write(&l->folder, "best", save_weights, l));
  }
cleanup:
  json_decref(result);
  free(text);
  return status;
}

/* ---- The run ------------------------------------------------------------------------------------------------------- */

static json_t *settings(const comba_training *training) {
  const comba_training_options *o = &training->options;
  json_t *object = training->settings ? json_incref(training->settings) : json_object();
  json_t *own =
      json_pack("{s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:b, s:I, s:I, s:I, s:I}", "steps", (json_int_t)o->steps,
                "batch_size", (json_int_t)o->batch_size, "gradient_accumulation", (json_int_t)o->gradient_accumulation,
                "warmup_steps", (json_int_t)o->warmup_steps, "learning_rate", o->learning_rate, "min_learning_rate",
                o->min_learning_rate, "weight_decay", o->weight_decay, "gradient_clip", o->gradient_clip, "beta2",
                o->beta2, "decay_scalars", o->decay_scalars, "seed", (json_int_t)training->common->seed, "log_every",
                (json_int_t)o->log_every, "evaluate_every", (json_int_t)o->evaluate_every, "checkpoint_every",
                (json_int_t)o->checkpoint_every);
  static const char *const modes[] = {"auto", "chunk", "recurrent"};
  if (own) json_object_set_new(own, "mode", json_string(modes[training->common->mode]));
  if (own) json_object_set_new(own, "init_from", o->init_from ? json_string(o->init_from) : json_null());
  if (object && own) json_object_update(object, own);
  json_decref(own);
  return object;
}

/* A longer run may raise `steps`, and with it what follows from them; the others change what a resumed run computes. */
static const char *const may_differ[] = {"steps", "warmup_steps", "evaluate_every", "checkpoint_every", "log_every",
                                         NULL};

static comba_status write_curves(loop *l, comba_training_result *result) {
  char *log = comba_run_folder_path(&l->folder, "log.jsonl");
  result->curves = comba_run_folder_path(&l->folder, "curves.svg");
  const comba_status status = log && result->curves ? comba_curves_write(log, result->curves) : COMBA_ERROR_MEMORY;
  free(log);
  return status;
}

/* The memory of a step, before the folder is touched; and what --recompute auto has chosen, where memory gave it a choice. */
static comba_status reserve(const comba_training *training) {
  comba_graph_cost cost;
  char text[COMBA_RECOMPUTE_TEXT];
  comba_model *model = training->model;
  const comba_status status = comba_model_reserve(model, training->options.batch_size, training->length, &cost);
  const bool chose =
      model->options.recompute == COMBA_RECOMPUTE_AUTO && (model->options.memory || model->backend->memory->available);
  if (status == COMBA_OK && chose && !training->common->quiet)
    fprintf(stderr, "recompute: %s, arena %.2f GiB\n", comba_describe_recompute(&cost, text),
            (double)cost.arena_bytes / (1 << 30));
  return status;
}

static comba_status begin(loop *l) {
  comba_training *training = l->training;
  const comba_training_options *o = &training->options;
  comba_status status = COMBA_OK;
  /* a new run reads these weights before the folder is touched; a resumed one only if it finds no checkpoint */
  if (o->init_from && !o->resume) COMBA_TRY(comba_model_load_weights(training->model, o->init_from));
  json_t *wanted = settings(training);
  if (!wanted) return comba_fail_memory(0, "the settings of a run");
  status = comba_run_folder_open(&l->folder, o->output, o->resume, wanted, may_differ);
  json_decref(wanted);
  if (status != COMBA_OK) return status;
  if (training->begin) COMBA_TRY(training->begin(training->context, o->output));
  if (l->folder.resume_folder) {
    COMBA_TRY(restore(l));
    if (!training->common->quiet) fprintf(stderr, "resuming from %s\n", l->folder.resume_folder);
  } else if (o->init_from && o->resume) {
    COMBA_TRY(comba_model_load_weights(training->model, o->init_from));
  }
cleanup:
  return status;
}

static comba_status finish(loop *l, comba_training_result *result) {
  const comba_training_options *o = &l->training->options;
  comba_status status = COMBA_OK;
  comba_progress_clear(&l->progress);
  COMBA_TRY(checkpoint(l));
  COMBA_TRY(save_weights(l, o->output));
  COMBA_TRY(write_curves(l, result));
  if (!result->finished && !l->training->common->quiet)
    fprintf(stderr, "stopped after step %lld of %lld; the same command with --resume goes on from %s/checkpoint-%lld\n",
            (long long)l->step, (long long)o->steps, o->output, (long long)l->step);
cleanup:
  return status;
}

comba_status comba_train(comba_training *training, comba_training_result *result) {
  const comba_training_options *o = &training->options;
  loop l = {.training = training, .folder = {.lock = -1}};
  comba_status status = COMBA_OK;
  *result = (comba_training_result){0};
  COMBA_TRY(reserve(training));
  COMBA_TRY(begin(&l));
  interrupted = 0;
  /* The handler has a stack of its own: oneDNN's AVX-512 products (2.6) point the stack register at a buffer on the heap, and
   * a signal's frame would go below it, over what malloc keeps there. */
  static char signal_stack[1 << 17];
  const stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
  sigaltstack(&stack, NULL);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK}, old_int, old_term;
  sigaction(SIGINT, &action, &old_int);
  sigaction(SIGTERM, &action, &old_term);
  l.began = l.logged_at = l.saved_at = comba_clock();
  comba_progress_start(&l.progress, "train", "step", l.step, o->steps, training->common->quiet);
  while (l.queued < o->steps && !interrupted &&
         !(o->max_minutes > 0 && comba_clock() - l.began > 60 * o->max_minutes)) {
    status = queue_step(&l);
    const bool last = l.queued == o->steps, saves = !last && checkpoint_is_due(&l);
    const bool evaluates = training->evaluate && (last || l.queued % o->evaluate_every == 0);
    if (status == COMBA_OK && (evaluates || saves)) status = finish_step(&l);
    if (status == COMBA_OK && evaluates) status = evaluate(&l);
    if (status == COMBA_OK && saves) status = checkpoint(&l);
    if (status != COMBA_OK) break;
  }
  if (status == COMBA_OK) status = finish_step(&l);
  result->step = l.step;
  result->finished = l.step >= o->steps;
  result->seconds = comba_clock() - l.began;
  if (status == COMBA_OK) status = finish(&l, result);
  if (status == COMBA_ERROR_NONFINITE) keep_last_good(&l);
  result->evaluation = json_incref(l.evaluation);
  sigaction(SIGINT, &old_int, NULL);
  sigaction(SIGTERM, &old_term, NULL);
cleanup:
  comba_progress_clear(&l.progress);
  json_decref(l.evaluation);
  comba_run_folder_close(&l.folder);
  json_decref(training->settings);
  training->settings = NULL;
  return status;
}

void comba_training_report(const comba_training *training, const comba_training_result *result) {
  const char *output = training->options.output;
  if (!training->common->json) {
    printf("%lld steps in %.0f s\nmodel   %s\ncurves  %s%s\n", (long long)result->step, result->seconds, output,
           result->curves, comba_curves_have_gnuplot() ? "" : " (plain: gnuplot was not found)");
    return;
  }
  json_t *object = json_pack("{s:I, s:b, s:f, s:s}", "step", (json_int_t)result->step, "finished", result->finished,
                             "seconds", result->seconds, "output", output);
  if (object && result->evaluation) json_object_set(object, "evaluation", result->evaluation);
  json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
  putchar('\n');
  json_decref(object);
}

void comba_training_result_release(comba_training_result *result) {
  json_decref(result->evaluation);
  free(result->curves);
  *result = (comba_training_result){0};
}
