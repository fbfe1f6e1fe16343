/* ttt: models of the released code of "Learning to (Learn at Test Time)", with TTT-Linear layers; ttt_mlp: with TTT-MLP. */
#include "convert.h"

#define FIELDS(layer_type)                                                                                             \
  {                                                                                                                    \
    {"model_type", NULL, "\"ttt\""}, {"ttt_layer_type", NULL, layer_type}, {"hidden_size", "hidden_size", "2048"},     \
        {"intermediate_size", "intermediate_size", "5504"}, {"num_hidden_layers", "num_hidden_layers", "24"},          \
        {"num_attention_heads", "num_heads", "32"}, {"vocab_size", "vocab_size", "32000"},                             \
        {"max_position_embeddings", "max_position_embeddings", "2048"},                                                \
        {"initializer_range", "initializer_range", "0.02"}, {"rms_norm_eps", "norm_eps", "1e-06"},                     \
        {"tie_word_embeddings", "tie_word_embeddings", "true"}, {"pad_token_id", "pad_token_id", "null"},              \
        {"bos_token_id", "bos_token_id", "1"}, {"eos_token_id", "eos_token_id", "2"},                                  \
        {"mini_batch_size", "mini_batch_size", "16"}, {"ttt_base_lr", "ttt_base_lr", "1.0"},                           \
        {"rope_theta", "rope_theta", "10000.0"}, {"use_gate", "use_gate", "false"}, {"share_qk", "share_qk", "false"}, \
        {"conv_kernel", "conv_size", "4"}, {"pre_conv", "pre_conv", "false"}, {"hidden_act", NULL, "\"silu\""}, {      \
      0                                                                                                                \
    }                                                                                                                  \
  }
static const comba_convert_field linear_fields[] = FIELDS("\"linear\"");
static const comba_convert_field mlp_fields[] = FIELDS("\"mlp\"");

#define LAYER "model.layers.*."
#define SAME(theirs, ours)                                                                                             \
  { LAYER theirs, LAYER ours, COMBA_CONVERT_SAME }
#define INNER(name) SAME("seq_modeling_block." name, "attn." name)
static const comba_convert_tensor tensors[] = {
    {"model.embed_tokens.weight", "model.embeddings.weight", COMBA_CONVERT_SAME},
    SAME("conv.norm.weight", "conv.norm.weight"),
    SAME("conv.conv.weight", "conv.conv.weight"),
    SAME("conv.conv.bias", "conv.conv.bias"),
    SAME("seq_norm.weight", "attn_norm.weight"),
    SAME("ffn_norm.weight", "mlp_norm.weight"),
    SAME("mlp.gate_proj.weight", "mlp.gate_proj.weight"),
    SAME("mlp.up_proj.weight", "mlp.up_proj.weight"),
    SAME("mlp.down_proj.weight", "mlp.down_proj.weight"),
    INNER("q_proj.weight"),
    INNER("k_proj.weight"),
    INNER("v_proj.weight"),
    INNER("g_proj.weight"),
    INNER("o_proj.weight"),
    INNER("conv_q.weight"),
    INNER("conv_q.bias"),
    INNER("conv_k.weight"),
    INNER("conv_k.bias"),
    INNER("W1"),
    INNER("b1"),
    INNER("W2"),
    INNER("b2"),
    INNER("learnable_ttt_lr_weight"),
    INNER("learnable_ttt_lr_bias"),
    INNER("learnable_token_idx"),
    INNER("ttt_norm_weight"),
    INNER("ttt_norm_bias"),
    INNER("post_norm.weight"),
    INNER("post_norm.bias"),
    {"model.norm.weight", "model.norm.weight", COMBA_CONVERT_SAME},
    {"lm_head.weight", "lm_head.weight", COMBA_CONVERT_SAME},
    {0}};

const comba_convert_format comba_convert_ttt = {
    .name = "ttt",
    .config = "{\"model_type\": \"ttt_linear\"}",
    .fields = linear_fields,
    .tensors = tensors,
    .tied_head = "lm_head.weight",
};

const comba_convert_format comba_convert_ttt_mlp = {
    .name = "ttt_mlp",
    .config = "{\"model_type\": \"ttt_mlp\"}",
    .fields = mlp_fields,
    .tensors = tensors,
    .tied_head = "lm_head.weight",
};
