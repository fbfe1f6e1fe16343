/* config.json: what a model is. fla's fields and defaults (a missing field always means fla's, for vision fla-zoo's,
 * behaviour), and named fields for what the paper and the released code disagree on. */
#ifndef COMBA_MODEL_CONFIG_H
#define COMBA_MODEL_CONFIG_H

#include "model/field.h"

struct comba_mixer_row;
struct json_t;

enum { COMBA_MAX_LAYERS = 512 };

/* Softmax attention in some layers: one object of `attn`. */
typedef struct comba_hybrid {
  int64_t num_heads, num_kv_heads; /* num_kv_heads: null or missing means num_heads */
  bool qkv_bias;                   /* false */
  int64_t window_size;             /* 0: none (null) */
  double rope_theta;               /* 10000 */
  bool use_rope;                   /* true; vision only */
} comba_hybrid;

typedef enum comba_initialization {
  COMBA_INITIALIZATION_FLA,   /* N(0, initializer_range) */
  COMBA_INITIALIZATION_PAPER, /* the same, then o_proj and down_proj kaiming-uniform(sqrt 5) / sqrt(2 layers) */
} comba_initialization;

/* Order of tokens that a vision mixer sees (docs/formats.md). */
typedef enum comba_scan_type {
  COMBA_SCAN_TYPE_UNI, /* "uni-scan" */
  COMBA_SCAN_TYPE_FLIP,
  COMBA_SCAN_TYPE_BI,
  COMBA_SCAN_TYPE_BI_ALIGNED,
  COMBA_SCAN_TYPE_CROSS,
  COMBA_SCAN_TYPE_RANDOM,
  COMBA_SCAN_TYPE_SWITCH,
} comba_scan_type;

typedef enum comba_pooling {
  COMBA_POOLING_TANH,     /* "tanh": tanh(W mean + c), fla-zoo's pooler */
  COMBA_POOLING_MEAN,     /* "mean" */
  COMBA_POOLING_SEQUENCE, /* "sequence": softmax over tokens, then the weighted mean (CCT) */
} comba_pooling;

typedef struct comba_config {
  comba_kind kind;
  char model_type[64]; /* "comba", "comba_vision" */
  const struct comba_mixer_row *mixer;
  void *mixer_config; /* the mixer's own struct, mixer->config_size bytes */

  /* both kinds */
  int64_t hidden_size, num_hidden_layers;
  double norm_eps, initializer_range;
  int initialization; /* comba_initialization */

  /* language */
  int64_t vocab_size, hidden_ratio, intermediate_size; /* intermediate_size 0: from hidden_ratio */
  int64_t max_position_embeddings, pad_token_id, bos_token_id, eos_token_id; /* -1: null */
  bool tie_word_embeddings, use_mlp; /* use_mlp false: "mamba-like" blocks, a norm and a mixer */
  bool use_l2warp;

  /* vision */
  int64_t image_size, patch_size, num_channels, num_classes, channel_mixer_dim; /* channel_mixer_dim 0: 4 d */
  double hidden_dropout_prob, layer_norm_eps, drop_path_rate;
  int train_scan_type, test_scan_type; /* comba_scan_type; test -1: the same as train */
  bool scan_average, interpolate_pos_encoding;
  int pooling;                    /* comba_pooling */
  int block;                      /* 0 "vit": LayerNorm and GELU MLP; 1 "llama": RMSNorm and SwiGLU */
  int64_t tokenizer_width;        /* channels between the convolutions of the tokenizer */
  int64_t tokenizer_convolutions; /* 0: patch embedding; n: n times {3x3 convolution, ReLU, max pool} (CCT) */

  /* hybrid layers: hybrid_of_layer[i] is an index into hybrid, or -1 */
  int hybrids;
  comba_hybrid *hybrid;
  int16_t hybrid_of_layer[COMBA_MAX_LAYERS];

  struct json_t *json; /* the object as read, unknown keys included (written back as they came) */
} comba_config;

/* Parses the text of a config.json; `source` names it in messages. Duplicate keys, wrong types, values out of range, heads
 * that do not divide: COMBA_ERROR_ARGUMENT that names the field. `warnings` (or NULL) receives one line that lists unknown
 * keys, to be freed, or NULL. */
comba_status comba_config_parse(comba_config **config, const char *text, const char *source, char **warnings);
/* Reads a file of at most 16 MiB and parses it. */
comba_status comba_config_read(comba_config **config, const char *path, char **warnings);
/* JSON text with every known field written out and the unknown keys kept; to be freed. */
comba_status comba_config_write(const comba_config *config, char **text);
void comba_config_free(comba_config *config);
/* The schema as a Markdown table (field, type, default, help) for one model_type; to be freed. */
comba_status comba_config_document(const char *model_type, char **text);

/* The name of a class by `id2label`, or NULL; belongs to the config. */
const char *comba_config_class_name(const comba_config *config, int64_t index);
/* Sets num_classes, id2label and label2id. Names are UTF-8 and differ from each other. */
comba_status comba_config_set_class_names(comba_config *config, const char *const *names, int64_t count);

/* intermediate_size, or hidden_size * hidden_ratio * 2/3 rounded up to a multiple of 256. */
int64_t comba_config_intermediate_size(const comba_config *config);

#endif
