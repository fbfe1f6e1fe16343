/* The inside of a model: its config, its weights, and its plans. */
#ifndef COMBA_MODEL_MODEL_PRIVATE_H
#define COMBA_MODEL_MODEL_PRIVATE_H

#include "model/build.h"

typedef struct comba_picture_feed comba_picture_feed; /* model/pictures.h */

/* One planned graph: what it was planned for, and the tensors that the caller writes and reads. */
typedef struct comba_plan {
  comba_pass pass;
  int64_t batch, length, sequences; /* length: tokens, or the side of a picture; sequences: of cu_seqlens, 0 without */
  comba_graph *graph;
  comba_tensor *input_ids, *pixel_values, *targets, *cu_seqlens, *position;
  comba_tensor *logits, *loss, *row_losses;
  comba_picture_feed *feed; /* of pictures in bytes, once there were some */
  uint64_t last_use;
} comba_plan;

enum { COMBA_MAX_PLANS = 8 };

struct comba_model {
  comba_config *config;
  char *config_text;
  comba_options options;
  const comba_backend *backend;
  comba_parameters parameters;
  bool host_is_current; /* the host's copies of weights and gradients are those of the device */
  bool host_is_shown;   /* and the caller has pointers to them, through which it may have written weights */
  float *class_weights; /* of a vision model's loss in training: (num_classes), or NULL */
  comba_plan plan[COMBA_MAX_PLANS];
  const comba_plan *current;            /* of the last forward */
  float *logits_copy, *row_losses_copy; /* of its results, where the host cannot reach them */
  uint64_t uses;
  comba_run training_run, evaluation_run;
  float *results[2];        /* of steps whose results are read later: clip (2), then a loss for each micro-batch */
  int64_t results_capacity; /* micro-batches */
  int64_t optimizer_step;   /* AdamW steps taken */
  comba_graph *optimizer_graph;
  comba_tensor *optimizer_settings, *optimizer_clip;
  int optimizer_decays_scalars;
};

/* Forward code: appends the model to build->graph and fills in the plan's tensors. A decoder's plan (build->states set) has
 * logits of the last token alone and no loss. */
void comba_language_build(comba_build *build, comba_plan *plan);
void comba_vision_build(comba_build *build, comba_plan *plan);

/* A build context with the model's settings; `graph` is new. */
comba_build comba_model_build_context(const comba_model *model, comba_graph *graph);
/* The mixer of layer i: softmax attention where the config's `attn` says so, else the model's own. */
comba_tensor *comba_build_layer_mixer(comba_build *build, int64_t layer, comba_tensor *x);
bool comba_layer_attends(const comba_config *config, int64_t layer);

/* Token-by-token loss of the last forward, in nats, 0 where ignored: (B,T) or (B). */
const float *comba_model_row_losses(const comba_model *model);
/* Memory and FLOPs of the plan for one pass of this size; nothing is allocated. */
comba_status comba_model_cost(comba_model *model, comba_pass pass, int64_t batch, int64_t length,
                              comba_graph_cost *cost);
/* Likewise of a training plan, whose memory is taken now: what does not fit fails before anything has run. */
comba_status comba_model_reserve(comba_model *model, int64_t batch, int64_t length, comba_graph_cost *cost);
/* A model without memory, on a backend that need not be there: it can be described, nothing else. */
comba_status comba_model_plan(comba_model **model, const char *config_json, const comba_options *options);

/* What a model in training takes besides the arenas of its plans. */
typedef struct comba_model_bytes {
  size_t weights, narrow_weights, gradients, moments; /* narrow: the copy that products read */
} comba_model_bytes;
void comba_model_bytes_of(const comba_model *model, comba_model_bytes *bytes);

/* Training without waiting: forward and step are queued, and what they give is asked for when the next forward has been queued.
 * `turn`, 0 or 1, tells apart two steps that follow each other. The order is
 *     reserve; forward (turn, 0); [await (1 - turn)]; zero gradient; backward; forward (turn, 1); backward; ...; step (turn). */
comba_status comba_model_reserve_results(comba_model *model, int64_t micro_batches);
comba_status comba_model_queue_forward(comba_model *model, const comba_batch *batch, int turn, int64_t micro_batch);
comba_status comba_model_queue_step(comba_model *model, const comba_optimizer *optimizer, int turn);
/* Waits for a queued step: the norm of its gradient, and its losses, valid until the second forward from then. A step whose norm is
 * not finite has changed nothing. */
comba_status comba_model_await_step(comba_model *model, int turn, float *gradient_norm, const float **losses);
/* The first parameter, in the order of the file, whose gradient is not finite; NULL: none. */
comba_status comba_model_nonfinite_gradient(comba_model *model, const char **name);

/* How much each class counts in a vision model's loss in training; copies (num_classes). Before the first forward. */
comba_status comba_model_set_class_weights(comba_model *model, const float *weights);

/* Makes the host's copies of weights and gradients those of the device. */
comba_status comba_model_show_host(comba_model *model);
/* Sends the host's copies to the device if the caller was shown them: before anything reads the weights there. */
comba_status comba_model_take_host(comba_model *model);

/* AdamW's moments and step as PATH (safetensors), for checkpoints. */
comba_status comba_model_save_optimizer(const comba_model *model, const char *path);
comba_status comba_model_load_optimizer(comba_model *model, const char *path);
/* Copies weights from another checkpoint folder whose shapes must be those of this model. */
comba_status comba_model_load_weights(comba_model *model, const char *directory);
/* Number of backward passes so far: the step of dropout and random scans, part of a checkpoint. */
uint64_t comba_model_training_passes(const comba_model *model);
void comba_model_set_training_passes(comba_model *model, uint64_t passes);

#endif
