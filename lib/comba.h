/* libcomba: sequence-mixing layers (Comba and its peers) that train and run on CPUs and NVIDIA GPUs.
 *
 * Conventions
 *   - B batch, T tokens, d hidden size, V vocabulary; arrays are dense, row-major float32 unless said otherwise.
 *   - Functions return comba_status; on failure comba_last_error() has one message that names what was wrong and what
 *     was expected, and every out-parameter is left as it was.
 *   - A handle is made by *_create or *_load and released by *_free, which accepts NULL. Pointers into a handle
 *     (parameters, logits, names) belong to it and are valid until the call that its comment names.
 *   - A handle is used by one thread at a time; different handles may be used by different threads.
 *   - A program that handles signals gives its handlers a stack of their own (sigaltstack, SA_ONSTACK) or blocks the
 *     signals while a call runs: oneDNN's AVX-512 products use the stack pointer as a general register, and a signal's frame
 *     would be written over the heap.
 *   - Two runs with one seed are equal byte for byte on one machine and build, whatever the number of threads.
 *
 * Minimal use
 *     comba_model *model = NULL;
 *     if (comba_model_load(&model, "runs/shakespeare", NULL)) fprintf(stderr, "%s\n", comba_last_error());
 *     comba_batch batch = {.batch = 1, .length = 3, .input_ids = (int32_t[]){72, 105, 33}};
 *     comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, NULL);
 *     const float *logits = comba_model_logits(model); // (1, 3, vocab_size)
 *     comba_model_free(model);
 */
#ifndef COMBA_H
#define COMBA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define COMBA_API __attribute__((visibility("default")))
#else
#define COMBA_API
#endif

/* ---- Status, version, threads ------------------------------------------------------------------------------------ */

typedef enum comba_status {
  COMBA_OK = 0,
  COMBA_ERROR_ARGUMENT,    /* a value that the caller passed, a config field or an option */
  COMBA_ERROR_FORMAT,      /* a file whose content is not what it should be */
  COMBA_ERROR_IO,          /* the system could not read or write */
  COMBA_ERROR_MEMORY,      /* an allocation failed */
  COMBA_ERROR_UNSUPPORTED, /* valid, but not built into this library or not implemented */
  COMBA_ERROR_DEVICE,      /* the accelerator reported an error */
  COMBA_ERROR_NONFINITE    /* a result that is not a finite number */
} comba_status;

/* "0.1.0"; static. */
COMBA_API const char *comba_version(void);
/* The message of the calling thread's last failure; valid until its next failure. Never NULL. */
COMBA_API const char *comba_last_error(void);
/* A few words for a code ("bad format"); static. */
COMBA_API const char *comba_status_name(comba_status status);
/* Number of CPU threads for later work that the calling thread starts; 0 takes all cores. Results do not depend on it. */
COMBA_API comba_status comba_set_threads(int threads);

/* ---- Options ------------------------------------------------------------------------------------------------------ */

typedef enum comba_device { COMBA_DEVICE_AUTO = 0, COMBA_DEVICE_CPU, COMBA_DEVICE_CUDA } comba_device;

/* How recurrences run: over chunks of tokens (matrix products), token by token, or whichever the documented rule of
 * shape (docs/design.md) says is faster. Both give the same result to rounding and both have a backward pass. */
typedef enum comba_mode { COMBA_MODE_AUTO = 0, COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT } comba_mode;

/* Of activations and of the weights in matrix products. Everything else is float32 in any case: weights as the optimiser sees
 * them, its moments, gates, decays, states, sums. */
typedef enum comba_precision {
  COMBA_PRECISION_AUTO = 0, /* bfloat16 on a GPU, float32 on the CPU */
  COMBA_PRECISION_FLOAT32,
  COMBA_PRECISION_BFLOAT16
} comba_precision;

/* What a training step computes again in its backward pass instead of keeping it from the forward pass. Results are the same
 * bits at every level. */
typedef enum comba_recompute {
  COMBA_RECOMPUTE_AUTO =
      0, /* the least that fits into comba_options.memory, or what a GPU has free, layer by layer; else NONE */
  COMBA_RECOMPUTE_NONE,
  COMBA_RECOMPUTE_LIGHT, /* results of operators that are bound by memory: norms, activations, convolutions, gates */
  COMBA_RECOMPUTE_BLOCK  /* all of a layer but what the next layer reads: its forward runs again before its backward */
} comba_recompute;

typedef struct comba_options {
  comba_device device; /* AUTO: CUDA if built in and present, else CPU */
  comba_mode mode;
  uint64_t seed;         /* of the initial weights, dropout and random scans */
  float label_smoothing; /* 0; of a vision model's loss in training */
  comba_precision precision;
  comba_recompute recompute;
  uint64_t memory;   /* bytes that a model in training may take, for recompute AUTO; 0: not said */
  char reserved[24]; /* zero */
} comba_options;

/* Fills in device AUTO, mode AUTO, seed 42. Functions below take NULL for these. */
COMBA_API void comba_options_default(comba_options *options);

/* ---- Parameters --------------------------------------------------------------------------------------------------- */

typedef struct comba_parameter {
  const char *name;     /* fla's name, e.g. "model.layers.0.attn.q_proj.weight" */
  int rank;             /* 1 to 4 */
  const int64_t *shape; /* rank entries, outermost first */
  int64_t elements;     /* product of shape */
  float *data;          /* may be written until the next call */
  float *gradient;      /* what backward added up since the last comba_*_zero_gradient */
} comba_parameter;

/* ---- Models ------------------------------------------------------------------------------------------------------- */

typedef struct comba_model comba_model;

typedef enum comba_kind { COMBA_KIND_LANGUAGE = 0, COMBA_KIND_VISION } comba_kind;

typedef struct comba_model_info {
  comba_kind kind;
  const char *model_type; /* as in config.json: "comba", "comba_vision", ... */
  int64_t parameters;     /* number of weights */
  int64_t hidden_size, layers;
  int64_t vocab_size;                            /* language models */
  int64_t num_classes, image_size, num_channels; /* vision models */
} comba_model_info;

/* One batch of input. Language: input_ids (B,T), optional targets (B,T). Vision: pixel_values (B,C,H,W), optional
 * labels (B). Targets and labels of -100 are ignored. With targets NULL a language model's target is the next token, and
 * the last token of each sequence has none. */
/* Pictures as they are stored. The model's input is, for channel c at column x and row y of a crop,
 * scale[c] * (the pixel at column x + crop x, row y + crop y) + shift[c], and 0 beside the picture. */
typedef struct comba_pictures {
  const unsigned char *pixels; /* (B,H,W,C), W = H */
  const int32_t *crops;        /* (B,3): x, y, and 1 for a crop that is mirrored left to right */
  float scale[3], shift[3];    /* of each channel; three channels at most */
} comba_pictures;

typedef struct comba_batch {
  int64_t batch;  /* B >= 1 */
  int64_t length; /* T >= 1; language */
  const int32_t *input_ids;
  const int32_t *targets;
  const int32_t *cu_seqlens; /* packed sequences: sequences + 1 offsets from 0 to T; needs B = 1; or NULL */
  int64_t sequences;
  const float *pixel_values; /* vision; H = W = image_size, already normalised */
  int64_t image_size;        /* vision; 0: the config's. Another one needs interpolate_pos_encoding in the config */
  const int32_t *labels;
  const comba_pictures *pictures; /* vision; instead of pixel_values: normalised and cropped where the model runs */
} comba_batch;

typedef enum comba_pass {
  COMBA_PASS_EVALUATE = 0, /* no dropout, nothing kept for a backward pass */
  COMBA_PASS_TRAIN
} comba_pass;

/* Builds a model from the text of a config.json and initialises its weights from options->seed. */
COMBA_API comba_status comba_model_create(comba_model **model, const char *config_json, const comba_options *options);
/* Reads DIRECTORY/config.json and model.safetensors (or its shards); F32, F16 and BF16 are converted to float32. */
COMBA_API comba_status comba_model_load(comba_model **model, const char *directory, const comba_options *options);
/* Writes both into DIRECTORY, which must exist: each file under a temporary name, synced, then renamed. */
COMBA_API comba_status comba_model_save(const comba_model *model, const char *directory);
COMBA_API void comba_model_free(comba_model *model);

COMBA_API void comba_model_describe(const comba_model *model, comba_model_info *info);
/* The config as JSON text with every field written out; belongs to the model. */
COMBA_API const char *comba_model_config(const comba_model *model);
COMBA_API size_t comba_model_parameters(const comba_model *model);
/* Parameter number `index` in the order of the file. Pointers are valid as long as the model. On a GPU they lead to the host's
 * copy as it was at this call, and what is written there counts from the next call on: ask again after training steps. */
COMBA_API comba_status comba_model_parameter(const comba_model *model, size_t index, comba_parameter *parameter);

/* The name of a class (id2label), or NULL where the config has none; belongs to the model. */
COMBA_API const char *comba_model_class_name(const comba_model *model, int64_t index);
/* Decodes a PNG or JPEG file and prepares it as DIRECTORY/preprocessor_config.json says: pixels (C, image_size, image_size)
 * receives what comba_batch.pixel_values wants. */
COMBA_API comba_status comba_picture_read(const char *directory, const char *path, float *pixels);

/* Runs the model. `loss` (or NULL) receives the mean cross entropy in nats over the targets that are not ignored. */
COMBA_API comba_status comba_model_forward(comba_model *model, const comba_batch *batch, comba_pass pass, float *loss);
/* Logits of the last forward: (B,T,V) or (B,classes); valid until the model's next call. NULL before the first. */
COMBA_API const float *comba_model_logits(const comba_model *model);
/* Adds `scale` times the gradient of the last forward's loss to every parameter's gradient. Needs COMBA_PASS_TRAIN. */
COMBA_API comba_status comba_model_backward(comba_model *model, float scale);
COMBA_API void comba_model_zero_gradient(comba_model *model);

typedef struct comba_optimizer {
  float learning_rate; /* 3e-4 */
  float beta1, beta2;  /* 0.9, 0.95 */
  float epsilon;       /* 1e-8 */
  float weight_decay;  /* 0.01, decoupled; acts on matrices, convolution taps and embeddings */
  float gradient_clip; /* 1.0: largest global gradient norm; 0 turns clipping off */
  int decay_scalars;   /* 0; 1 lets weight decay act on every parameter, as the released recipe does */
  char reserved[36];   /* zero */
} comba_optimizer;

COMBA_API void comba_optimizer_default(comba_optimizer *optimizer);
/* One AdamW step over all parameters. `gradient_norm` (or NULL) receives the global norm before clipping. A norm that is
 * not finite skips the step: weights and moments stay as they are, and the norm tells. */
COMBA_API comba_status comba_model_step(comba_model *model, const comba_optimizer *optimizer, float *gradient_norm);

/* ---- Decoding ----------------------------------------------------------------------------------------------------- */

typedef struct comba_decoder comba_decoder;

/* A decoder holds the recurrent state of `batch` sequences. `capacity` is the largest number of tokens that layers with
 * unwindowed softmax attention can look back on; other layers need no bound and ignore it. The model must outlive it. */
COMBA_API comba_status comba_decoder_create(comba_decoder **decoder, comba_model *model, int64_t batch,
                                            int64_t capacity);
COMBA_API void comba_decoder_free(comba_decoder *decoder);
/* Feeds `length` tokens a sequence, input_ids (B,length); `logits` (B,V) receives those after the last one, or NULL. */
COMBA_API comba_status comba_decoder_feed(comba_decoder *decoder, const int32_t *input_ids, int64_t length,
                                          float *logits);
/* Back to the state before the first token. */
COMBA_API void comba_decoder_reset(comba_decoder *decoder);
/* Number of tokens fed since the start. */
COMBA_API int64_t comba_decoder_position(const comba_decoder *decoder);
/* The state as a safetensors file; a restored decoder continues bitwise equal. */
COMBA_API comba_status comba_decoder_save(const comba_decoder *decoder, const char *path);
COMBA_API comba_status comba_decoder_restore(comba_decoder *decoder, const char *path);

/* ---- A mixer alone, inside someone else's training loop ------------------------------------------------------------ */

typedef struct comba_mixer comba_mixer;

/* Builds one token mixer (B,T,d) -> (B,T,d) from a config.json text; `model_type` names it, `hidden_size` is d. */
COMBA_API comba_status comba_mixer_create(comba_mixer **mixer, const char *config_json, const comba_options *options);
COMBA_API void comba_mixer_free(comba_mixer *mixer);
COMBA_API size_t comba_mixer_parameters(const comba_mixer *mixer);
COMBA_API comba_status comba_mixer_parameter(const comba_mixer *mixer, size_t index, comba_parameter *parameter);
/* y (B,T,d) = mixer(x (B,T,d)). cu_seqlens as in comba_batch, or NULL. */
COMBA_API comba_status comba_mixer_forward(comba_mixer *mixer, const float *x, int64_t batch, int64_t length,
                                           const int32_t *cu_seqlens, int64_t sequences, float *y);
/* After a forward: dx (B,T,d, overwritten; may be NULL) from dy (B,T,d); parameter gradients are added to. */
COMBA_API comba_status comba_mixer_backward(comba_mixer *mixer, const float *dy, float *dx);
COMBA_API void comba_mixer_zero_gradient(comba_mixer *mixer);

#ifdef __cplusplus
}
#endif

#endif
