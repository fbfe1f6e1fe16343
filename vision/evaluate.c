#include "evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "data/loader.h"
#include "model/model_private.h"
#include "program/progress.h"

static int64_t row_sum(const vision_evaluation *e, int64_t label) {
  int64_t sum = 0;
  for (int64_t c = 0; c < e->classes; c++) sum += e->confusion[label * e->classes + c];
  return sum;
}

static int64_t column_sum(const vision_evaluation *e, int64_t predicted) {
  int64_t sum = 0;
  for (int64_t c = 0; c < e->classes; c++) sum += e->confusion[c * e->classes + predicted];
  return sum;
}

double vision_accuracy(const vision_evaluation *e) {
  return e->pictures ? (double)e->correct / (double)e->pictures : 0;
}

double vision_recall(const vision_evaluation *e, int64_t label) {
  const int64_t count = row_sum(e, label);
  return count ? (double)e->confusion[label * e->classes + label] / (double)count : -1;
}

double vision_precision(const vision_evaluation *e, int64_t label) {
  const int64_t count = column_sum(e, label);
  return count ? (double)e->confusion[label * e->classes + label] / (double)count : -1;
}

comba_status vision_evaluation_json(const vision_evaluation *e, json_t *object) {
  double recalls = 0, f1 = 0;
  int64_t present = 0, largest = 0;
  for (int64_t label = 0; label < e->classes; label++) {
    const double recall = vision_recall(e, label), precision = vision_precision(e, label);
    if (row_sum(e, label) > largest) largest = row_sum(e, label);
    if (recall < 0) continue; /* no picture of this class: it has no part in the means */
    present++;
    recalls += recall;
    if (precision > 0 && recall > 0) f1 += 2 * precision * recall / (precision + recall);
  }
  const double classes = present ? (double)present : 1, pictures = e->pictures ? (double)e->pictures : 1;
  json_t *own = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "loss", isfinite(e->loss) ? e->loss : 1e30, "accuracy",
                          vision_accuracy(e), "top5", (double)e->correct_top5 / pictures, "balanced_accuracy",
                          recalls / classes, "macro_f1", f1 / classes, "majority_rate", (double)largest / pictures,
                          "pictures", (json_int_t)e->pictures);
  const bool done = own && json_object_update(object, own) == 0;
  json_decref(own);
  return done ? COMBA_OK : comba_fail_memory(0, "the figures of an evaluation");
}

void vision_evaluation_release(vision_evaluation *e) {
  free(e->confusion);
  free(e->mistake);
  *e = (vision_evaluation){0};
}

/* Keeps the list sorted, the most confident mistake first; of equals the earlier picture. */
static void add_mistake(vision_evaluation *e, int64_t capacity, vision_mistake mistake) {
  int64_t place = e->mistakes;
  while (place > 0 && e->mistake[place - 1].probability < mistake.probability) place--;
  if (place >= capacity) return;
  if (e->mistakes < capacity) e->mistakes++;
  memmove(e->mistake + place + 1, e->mistake + place, (size_t)(e->mistakes - 1 - place) * sizeof mistake);
  e->mistake[place] = mistake;
}

static void count_picture(vision_evaluation *e, const float *logits, int32_t label, int64_t picture, int64_t capacity) {
  int32_t best = 0, better = 0; /* classes ahead of the label; of equal logits the lower class number wins */
  for (int32_t c = 0; c < e->classes; c++) {
    if (logits[c] > logits[best]) best = c;
    better += logits[c] > logits[label] || (logits[c] == logits[label] && c < label);
  }
  double total = 0;
  for (int64_t c = 0; c < e->classes; c++) total += exp((double)logits[c] - logits[best]);
  e->pictures++;
  e->correct += best == label;
  e->correct_top5 += better < 5;
  e->confusion[label * e->classes + best]++;
  if (best != label && capacity > 0)
    add_mistake(e, capacity, (vision_mistake){picture, label, best, (float)(1 / total)});
}

comba_status vision_evaluate(comba_model *model, const vision_evaluation_options *o, vision_evaluation *evaluation) {
  comba_model_info info;
  comba_model_describe(model, &info);
  vision_evaluation e = {.classes = info.num_classes};
  comba_loader *loader = NULL;
  comba_progress progress;
  double loss = 0;
  const int64_t count = comba_dataset_count(o->dataset, o->split);
  comba_status status = COMBA_OK;
  e.confusion = comba_allocate((size_t)(e.classes * e.classes) * sizeof *e.confusion, "the confusion matrix");
  e.mistake = comba_allocate((size_t)(o->mistakes + 1) * sizeof *e.mistake, "the list of mistakes");
  if (!e.confusion || !e.mistake) COMBA_TRY(COMBA_ERROR_MEMORY);
  const comba_loader_options loading = {
      .dataset = o->dataset,
      .split = o->split,
      .side = o->preprocess->size,
      .channels = o->preprocess->channels,
      .normalization = comba_preprocess_normalization(o->preprocess),
      .batch_size = o->batch_size < count ? o->batch_size : (count > 0 ? count : 1),
      .epochs = 1,
      .threads = o->threads,
      .depth = 2,
  };
  COMBA_TRY(comba_loader_create(&loader, &loading));
  comba_progress_start(&progress, "evaluate", "picture", 0, count, o->quiet);
  for (;;) {
    comba_loader_batch loaded;
    COMBA_TRY(comba_loader_next(loader, &loaded));
    if (!loaded.count) break;
    const comba_batch batch = {.batch = loading.batch_size, .pictures = &loaded.pictures, .labels = loaded.labels};
    COMBA_TRY(comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, NULL));
    const float *losses = comba_model_row_losses(model), *logits = comba_model_logits(model);
    if (!losses || !logits) COMBA_TRY(COMBA_ERROR_DEVICE);
    for (int64_t i = 0; i < loaded.count; i++) {
      loss += losses[i];
      count_picture(&e, logits + i * e.classes, loaded.labels[i], loaded.numbers[i], o->mistakes);
    }
    comba_progress_update(&progress, e.pictures, "accuracy %.2f %%", 100 * vision_accuracy(&e));
  }
  comba_progress_clear(&progress);
  e.loss = e.pictures ? loss / (double)e.pictures : 0;
  *evaluation = e;
  e = (vision_evaluation){0};
cleanup:
  comba_loader_free(loader);
  vision_evaluation_release(&e);
  return status;
}
