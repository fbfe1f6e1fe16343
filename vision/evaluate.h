/* A classifier over a split of a data set: loss, accuracy, confusion matrix, worst mistakes. */
#ifndef COMBA_VISION_EVALUATE_H
#define COMBA_VISION_EVALUATE_H

#include <jansson.h>

#include "comba.h"
#include "data/dataset.h"
#include "data/preprocess.h"

typedef struct vision_mistake {
  int64_t picture; /* index within the split */
  int32_t label, predicted;
  float probability; /* of the predicted class */
} vision_mistake;

typedef struct vision_evaluation {
  int64_t classes, pictures, correct, correct_top5;
  double loss;             /* mean, nats */
  int64_t *confusion;      /* (classes, classes): [label][predicted] */
  vision_mistake *mistake; /* the most confident wrong answers, worst first */
  int64_t mistakes;
} vision_evaluation;

typedef struct vision_evaluation_options {
  const comba_dataset *dataset; /* prepared */
  comba_split split;
  const comba_preprocess *preprocess;
  int64_t batch_size, mistakes; /* how many to keep */
  int threads;
  bool quiet;
} vision_evaluation_options;

comba_status vision_evaluate(comba_model *model, const vision_evaluation_options *options,
                             vision_evaluation *evaluation);
void vision_evaluation_release(vision_evaluation *evaluation);

double vision_accuracy(const vision_evaluation *evaluation);
/* Sets loss, accuracy, top5, balanced_accuracy, macro_f1, majority_rate and pictures. */
comba_status vision_evaluation_json(const vision_evaluation *evaluation, json_t *object);
/* Right answers among the pictures of a class, and among the answers of that class; -1 where there are none. */
double vision_recall(const vision_evaluation *evaluation, int64_t label);
double vision_precision(const vision_evaluation *evaluation, int64_t label);

#endif
