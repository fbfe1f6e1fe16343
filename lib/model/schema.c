/* Rows of the config's fields. Names, defaults and what null means are fla's (for vision fla-zoo's); the fields that they do
 * not have default to their behaviour. */
#include "model/schema.h"

#include <string.h>

#include "model/config.h"

#define CONFIG(member) offsetof(comba_config, member)
#define HYBRID(member) offsetof(comba_hybrid, member)

/* Bounds that keep every product of two sizes far inside of 64 bits. */
#define LARGEST_WIDTH 65536
#define LARGEST_IMAGE 16384
#define LARGEST_TOKEN 2147483647

static const char *const initializations[] = {"fla", "paper", NULL};
static const char *const scan_types[] = {"uni-scan",   "flip-scan",   "bi-scan",     "bi-scan-aligned",
                                         "cross-scan", "random-scan", "switch-scan", NULL};
static const char *const poolings[] = {"tanh", "mean", "sequence", NULL};
static const char *const blocks[] = {"vit", "llama", NULL};

const comba_field comba_schema_common[] = {
    {"hidden_size", COMBA_FIELD_INTEGER, CONFIG(hidden_size), .default_value = 2048, .minimum = 1,
     .maximum = LARGEST_WIDTH, .help = "width d of the residual stream"},
    {"num_hidden_layers", COMBA_FIELD_INTEGER, CONFIG(num_hidden_layers), .default_value = 24, .minimum = 1,
     .maximum = COMBA_MAX_LAYERS, .help = "number of blocks"},
    {"norm_eps", COMBA_FIELD_NUMBER, CONFIG(norm_eps), .default_value = 1e-6, .minimum = 1e-20, .maximum = 1,
     .help = "epsilon of every RMSNorm; in vision models of the mixer's own norm"},
    {"initializer_range", COMBA_FIELD_NUMBER, CONFIG(initializer_range), .default_value = 0.02, .minimum = 0,
     .maximum = 10, .help = "standard deviation of the initial weights"},
    {"initialization", COMBA_FIELD_CHOICE, CONFIG(initialization), .choices = initializations,
     .help = "\"paper\": o_proj and down_proj start smaller, kaiming-uniform(sqrt 5) / sqrt(2 layers)"},
    {0}};

const comba_field comba_schema_language[] = {
    {"vocab_size", COMBA_FIELD_INTEGER, CONFIG(vocab_size), .default_value = 32000, .minimum = 1,
     .maximum = LARGEST_TOKEN, .help = "number of tokens; 256 for bytes"},
    {"hidden_ratio", COMBA_FIELD_INTEGER, CONFIG(hidden_ratio), .default_value = 4, .minimum = 1, .maximum = 64,
     .nullable = true, .null_value = 4,
     .help = "width of the MLP if intermediate_size is null: 2/3 hidden_ratio d, up to a multiple of 256"},
    {"intermediate_size", COMBA_FIELD_INTEGER, CONFIG(intermediate_size), .default_value = 0, .minimum = 1,
     .maximum = 16 * LARGEST_WIDTH, .nullable = true, .null_value = 0,
     .help = "width of the MLP; null: by hidden_ratio"},
    {"use_mlp", COMBA_FIELD_BOOLEAN, CONFIG(use_mlp), .default_value = 1,
     .help = "false: blocks of a norm and a mixer alone (\"mamba-like\")"},
    {"max_position_embeddings", COMBA_FIELD_INTEGER, CONFIG(max_position_embeddings), .default_value = 2048,
     .minimum = 1, .maximum = LARGEST_TOKEN, .help = "length that the model was made for; limits nothing"},
    {"pad_token_id", COMBA_FIELD_INTEGER, CONFIG(pad_token_id), .default_value = -1, .minimum = 0,
     .maximum = LARGEST_TOKEN, .nullable = true, .null_value = -1, .help = "token whose embedding is not trained"},
    {"bos_token_id", COMBA_FIELD_TOKENS, CONFIG(bos_token_id), .default_value = 1, .minimum = 0,
     .maximum = LARGEST_TOKEN, .nullable = true, .null_value = -1,
     .help = "token that begins a text; kept, without effect"},
    {"eos_token_id", COMBA_FIELD_TOKENS, CONFIG(eos_token_id), .default_value = 2, .minimum = 0,
     .maximum = LARGEST_TOKEN, .nullable = true, .null_value = -1,
     .help = "token that ends a text, or several; kept, without effect"},
    {"tie_word_embeddings", COMBA_FIELD_BOOLEAN, CONFIG(tie_word_embeddings), .default_value = 0,
     .help = "the head's weights are the embeddings"},
    {"use_l2warp", COMBA_FIELD_BOOLEAN, CONFIG(use_l2warp), .default_value = 0,
     .help = "training pulls the largest logit of every token towards 0, by 1e-4 of it; true if missing for rwkv7"},
    {0}};

const comba_field comba_schema_vision[] = {
    {"image_size", COMBA_FIELD_INTEGER, CONFIG(image_size), .default_value = 224, .minimum = 1,
     .maximum = LARGEST_IMAGE, .help = "side of the square pictures"},
    {"patch_size", COMBA_FIELD_INTEGER, CONFIG(patch_size), .default_value = 16, .minimum = 1, .maximum = LARGEST_IMAGE,
     .help = "side of a patch, a divisor of image_size"},
    {"num_channels", COMBA_FIELD_INTEGER, CONFIG(num_channels), .default_value = 3, .minimum = 1, .maximum = 1024,
     .help = "3: colour, 1: grey"},
    {"num_classes", COMBA_FIELD_INTEGER, CONFIG(num_classes), .default_value = 1000, .minimum = 1, .maximum = 1 << 24,
     .help = "size of the classifier"},
    {"channel_mixer_dim", COMBA_FIELD_INTEGER, CONFIG(channel_mixer_dim), .default_value = 0, .minimum = 1,
     .maximum = 16 * LARGEST_WIDTH, .nullable = true, .null_value = 0,
     .help = "width of the MLP; null: 4 d (\"llama\": 8/3 d, up to a multiple of 64)"},
    {"hidden_dropout_prob", COMBA_FIELD_NUMBER, CONFIG(hidden_dropout_prob), .default_value = 0, .minimum = 0,
     .maximum = 0.99, .help = "dropout after the embeddings and the MLPs"},
    {"layer_norm_eps", COMBA_FIELD_NUMBER, CONFIG(layer_norm_eps), .default_value = 1e-6, .minimum = 1e-20,
     .maximum = 1, .help = "epsilon of the blocks' and the final norm"},
    {"train_scan_type", COMBA_FIELD_CHOICE, CONFIG(train_scan_type), .default_value = COMBA_SCAN_TYPE_UNI,
     .choices = scan_types, .help = "order in which the mixer sees the patches"},
    {"test_scan_type", COMBA_FIELD_CHOICE, CONFIG(test_scan_type), .default_value = -1, .choices = scan_types,
     .nullable = true, .null_value = -1, .help = "the same outside of training; null: train_scan_type"},
    {"interpolate_pos_encoding", COMBA_FIELD_BOOLEAN, CONFIG(interpolate_pos_encoding), .default_value = 0,
     .help = "position embeddings are resampled for pictures of another size"},
    {"scan_average", COMBA_FIELD_BOOLEAN, CONFIG(scan_average), .default_value = 0,
     .help = "mean of the scan's directions instead of their sum"},
    {"drop_path_rate", COMBA_FIELD_NUMBER, CONFIG(drop_path_rate), .default_value = 0, .minimum = 0, .maximum = 0.99,
     .help = "chance that training skips the last block's branches; grows linearly from 0 at the first"},
    {"pooling", COMBA_FIELD_CHOICE, CONFIG(pooling), .default_value = COMBA_POOLING_TANH, .choices = poolings,
     .help = "from tokens to a picture: \"tanh\" of a linear layer on the mean, \"mean\", or a learned \"sequence\" "
             "softmax"},
    {"block", COMBA_FIELD_CHOICE, CONFIG(block), .choices = blocks,
     .help = "\"vit\": LayerNorm and GELU MLP; \"llama\": RMSNorm and SwiGLU"},
    {"tokenizer_convolutions", COMBA_FIELD_INTEGER, CONFIG(tokenizer_convolutions), .default_value = 0, .minimum = 0,
     .maximum = 8, .help = "0: patches; n: n times 3x3 convolution, ReLU and max pool of stride 2"},
    {"tokenizer_width", COMBA_FIELD_INTEGER, CONFIG(tokenizer_width), .default_value = 64, .minimum = 1,
     .maximum = LARGEST_WIDTH, .help = "channels between the tokenizer's convolutions; the last gives hidden_size"},
    {0}};

const comba_field comba_schema_hybrid[] = {
    {"num_heads", COMBA_FIELD_INTEGER, HYBRID(num_heads), .default_value = 0, .minimum = 1, .maximum = LARGEST_WIDTH,
     .help = "query heads, a divisor of hidden_size"},
    {"num_kv_heads", COMBA_FIELD_INTEGER, HYBRID(num_kv_heads), .default_value = 0, .minimum = 1,
     .maximum = LARGEST_WIDTH, .nullable = true, .null_value = 0, .help = "a divisor of num_heads; null: num_heads"},
    {"qkv_bias", COMBA_FIELD_BOOLEAN, HYBRID(qkv_bias), .default_value = 0,
     .help = "biases of q, k and v (vision: read, without effect, as in fla-zoo)"},
    {"window_size", COMBA_FIELD_INTEGER, HYBRID(window_size), .default_value = 0, .minimum = 1, .maximum = 1 << 30,
     .nullable = true, .null_value = 0, .help = "a token sees itself and the window_size - 1 before it; null: all"},
    {"rope_theta", COMBA_FIELD_NUMBER, HYBRID(rope_theta), .default_value = 10000, .minimum = 1e-6, .maximum = 1e12,
     .help = "base of the rotary positions"},
    {0}};

const comba_field comba_schema_hybrid_vision[] = {
    {"use_rope", COMBA_FIELD_BOOLEAN, HYBRID(use_rope), .default_value = 1, .help = "rotary positions"}, {0}};

const comba_mixer_defaults *comba_schema_mixer_defaults(const char *model_type) {
  static const comba_mixer_defaults rows[] = {
      {"comba", "Comba", 21, 1e-6, 4, -1},
      {"delta_net", "DeltaNet", 24, 1e-6, 4, -1},
      {"gated_deltanet", "GatedDeltaNet", 21, 1e-6, 4, -1},
      {"gla", "GLA", 24, 1e-6, 4, -1},
      {"hgrn2", "HGRN2", 24, 1e-6, 4, -1},
      {"kda", "KDA", 24, 1e-6, 4, -1},
      {"linear_attn", "LinearAttention", 24, 1e-6, 4, -1},
      {"mamba2", "Mamba2", 48, 1e-5, 4, 0},
      {"mesa_net", "MesaNet", 24, 1e-6, 4, -1},
      {"retnet", "RetNet", 24, 1e-6, 2, -1},
      {"rwkv7", "RWKV7", 24, 1e-5, 4, -1},
      {"transformer", "Transformer", 24, 1e-6, 4, -1},
  };
  static const comba_mixer_defaults other = {NULL, NULL, 24, 1e-6, 4, -1};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (strcmp(rows[i].model_type, model_type) == 0) return &rows[i];
  return &other;
}

const comba_fixed_field comba_schema_fixed[] = {
    {"hidden_act", true, false, " \"swish\" \"silu\" "},
    {"attnres_block_size", true, true, " null "},
    {0},
};

bool comba_schema_is_inert(const char *name) {
  static const char *const names[] = {
      /* fla: kernels, caches, and what its blocks read without using */
      "attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_cache",
      "use_l2warp", "attnres_block_size", "hidden_act", "elementwise_affine", "norm_first", "conv_bias",
      "max_position_embeddings", "attention_bias", "pad_token_id", "bos_token_id", "eos_token_id",
      "tie_word_embeddings", "encoder_stride", "use_mask_token", "use_gk", "use_gv", "use_output_norm",
      "use_short_conv", "conv_size", "chunk_size", "residual_in_fp32", "conv_init", "A_init_range", "dt_min", "dt_max",
      "dt_init_floor", "num_heads",
      /* transformers: what every config carries */
      "model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
      "id2label", "label2id", "num_labels", "problem_type", "return_dict", "output_attentions", "output_hidden_states",
      "is_encoder_decoder", "is_decoder", "chunk_size_feed_forward", "torchscript", "tokenizer_class",
      "use_return_dict", "_attn_implementation"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(names[i], name) == 0) return true;
  return false;
}
