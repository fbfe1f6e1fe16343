/* Every mixer, as a language model of two layers, against its recurrence in double precision: logits, loss and gradients, in
 * chunks and token by token.
 *
 * A mixer is added in three steps. Write its formula as a function of an oracle_family (oracle/language_model.h), in
 * oracle/NAME.c, reading weights by their names and sharing nothing with the library: oracle/linear_family.c is the model.
 * List the file in tests/local.mk. Add rows to `cases` below: one for the defaults, one for each field that changes what is
 * computed, with sizes small and unequal (K, V, heads, groups). */
#include <stdio.h>
#include <string.h>

#include "model_case.h"
#include "oracle/comba_model.h"
#include "oracle/kda.h"
#include "oracle/linear_family.h"
#include "oracle/memory_family.h"
#include "oracle/mamba2.h"
#include "oracle/mesa_net.h"
#include "oracle/meta_la.h"
#include "oracle/mlstm.h"
#include "oracle/rwkv7.h"
#include "oracle/s4d.h"
#include "oracle/ttt_mlp.h"

enum { VOCABULARY = 23, HIDDEN = 16 };

static double gelu_with_tanh(double x) {
  return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static double relu(double x) {
  return x > 0 ? x : 0;
}

static double log_sigmoid(double x) {
  return -oracle_softplus(-x);
}

static double elu_plus_one(double x) {
  return x > 0 ? x + 1 : exp(x);
}

static const oracle_family oracle_transformer = {.mix = oracle_attend};

typedef struct recurrence_case {
  const char *name;
  const char *json; /* the mixer's fields, each followed by ", "; quoted by ' for legibility */
  const oracle_family *family;
  const void *config;                /* of the family's own */
  const oracle_attention *attention; /* of hybrid layers */
} recurrence_case;

/* Comba, Gated DeltaNet, DeltaNet: HV value heads of 8 EXPAND, W taps; then what differs from the released layer. */
#define DELTA(NAME, TYPE, HV, EXPAND, W, JSON, ...)                                                                    \
  {                                                                                                                    \
    .name = NAME, .family = &oracle_comba,                                                                             \
    .json = "'model_type': '" TYPE "', 'num_heads': 2, 'head_dim': 8, 'expand_v': " #EXPAND ", " JSON,                 \
    .config = &(const oracle_config) {                                                                                 \
      .heads = 2, .value_heads = HV, .key_size = 8, .value_size = (int64_t)(8 * EXPAND), .taps = W, __VA_ARGS__        \
    }                                                                                                                  \
  }
#define COMBA(NAME, HV, EXPAND, W, JSON, ...) DELTA(NAME, "comba", HV, EXPAND, W, JSON, __VA_ARGS__)
/* Neither p nor a correction: the feedback is the normalised key. */
#define PLAIN .no_correction = true, .no_inner_decay = true, .feedback_not_unit = true
#define GATED_DELTANET PLAIN, .feedback_after_decay = true
#define DELTA_NET PLAIN, .decay = ORACLE_DECAY_ABSENT

/* GLA, simple GLA, HGRN2, RetNet, linear attention with H heads, HKV of them for keys and values. */
#define LINEAR(TYPE, NAME, H, HKV, JSON, ...)                                                                          \
  {                                                                                                                    \
    .name = #TYPE NAME, .family = &oracle_##TYPE,                                                                      \
    .json = "'model_type': '" #TYPE "', 'num_heads': " #H ", 'num_kv_heads': " #HKV ", " JSON,                         \
    .config = &(const oracle_linear_config) {                                                                          \
      .heads = H, .kv_heads = HKV, __VA_ARGS__                                                                         \
    }                                                                                                                  \
  }

#define MLSTM(NAME, H, JSON, ...)                                                                                      \
  {                                                                                                                    \
    .name = "mlstm" NAME, .family = &oracle_mlstm, .json = "'model_type': 'mlstm', 'num_heads': " #H ", " JSON,        \
    .config = &(const oracle_mlstm_config) {                                                                           \
      .heads = H, __VA_ARGS__                                                                                          \
    }                                                                                                                  \
  }
/* RWKV-7 and KDA with 2 key heads of 8. */
#define RWKV7(NAME, JSON, EPSILON, ACTIVATION)                                                                         \
  {                                                                                                                    \
    .name = "rwkv7" NAME, .family = &oracle_rwkv7,                                                                     \
    .json = "'model_type': 'rwkv7', 'decay_low_rank_dim': 5, 'gate_low_rank_dim': 6, "                                 \
            "'a_low_rank_dim': 4, 'v_low_rank_dim': 3, 'use_l2warp': false, " JSON,                                    \
    .config = &(const oracle_rwkv7_config) {                                                                           \
      EPSILON, ACTIVATION                                                                                              \
    }                                                                                                                  \
  }
#define KDA(NAME, JSON, ...)                                                                                           \
  {                                                                                                                    \
    .name = "kda" NAME, .family = &oracle_kda, .json = "'model_type': 'kda', 'num_heads': 2, 'head_dim': 8, " JSON,    \
    .config = &(const oracle_kda_config) {                                                                             \
      .key_heads = 2, __VA_ARGS__                                                                                      \
    }                                                                                                                  \
  }
#define MESA_NET(NAME, H, K, BOUND, JSON)                                                                              \
  {                                                                                                                    \
    .name = "mesa_net" NAME, .family = &oracle_mesa_net,                                                               \
    .json =                                                                                                            \
        "'model_type': 'mesa_net', 'num_heads': " #H ", 'head_dim': " #K ", 'lambda_lower_bound': " #BOUND ", " JSON,  \
    .config = &(const oracle_mesa_config){H, BOUND},                                                                   \
  }

#define META_LA(NAME, H, NORMALIZER, JSON)                                                                             \
  {                                                                                                                    \
    .name = "meta_la" NAME, .family = &oracle_meta_la, .json = "'model_type': 'meta_la', 'num_heads': " #H ", " JSON,  \
    .config = &(const oracle_meta_la_config){H, NORMALIZER},                                                           \
  }

/* Mamba2 with heads of 4 and 3 states */
#define MAMBA2(NAME, G, JSON, ...)                                                                                     \
  {                                                                                                                    \
    .name = "mamba2" NAME, .family = &oracle_mamba2,                                                                   \
    .json = "'model_type': 'mamba2', 'head_dim': 4, 'state_size': 3, 'n_groups': " #G ", " JSON,                       \
    .config = &(const oracle_mamba2_config) {                                                                          \
      .groups = G, .state_size = 3, .head_dim = 4, __VA_ARGS__                                                         \
    }                                                                                                                  \
  }

#define TTT_MLP(NAME, JSON, BASE_LR, THETA)                                                                            \
  {                                                                                                                    \
    .name = "ttt_mlp" NAME, .family = &oracle_ttt_mlp, .json = "'model_type': 'ttt_mlp', 'num_heads': 2, " JSON,       \
    .config = &(const oracle_ttt_mlp_config) {                                                                         \
      .heads = 2, .base_lr = BASE_LR, .rope_theta = THETA                                                              \
    }                                                                                                                  \
  }

/* Memories that descend an inner loss, of 2 heads, in chunks of CHUNK tokens. */
#define MEMORY(TYPE, NAME, CHUNK, LR, JSON, ...)                                                                       \
  {                                                                                                                    \
    .name = #TYPE NAME, .family = &oracle_##TYPE,                                                                      \
    .json = "'model_type': '" #TYPE "', 'num_heads': 2, 'head_dim': 8, " JSON,                                         \
    .config = &(const oracle_memory_config) {                                                                          \
      .heads = 2, .chunk = CHUNK, .base_lr = LR, __VA_ARGS__                                                           \
    }                                                                                                                  \
  }
#define POWERS .p = 3, .q = 4, .sharpness = 10, .smoothing = 1e-6

/* The MIRAS memories of two layers: 2 heads of 6, a hidden layer of 12 */
#define LAYERS(TYPE, FAMILY, NAME, JSON, ...)                                                                          \
  {                                                                                                                    \
    .name = #TYPE ", two layers" NAME, .family = &oracle_##FAMILY,                                                     \
    .json = "'model_type': '" #TYPE "', 'num_heads': 2, 'head_dim': 6, 'memory': 'mlp', 'memory_expand': 2, " JSON,    \
    .config = &(const oracle_memory_config) {                                                                          \
      .heads = 2, __VA_ARGS__                                                                                          \
    }                                                                                                                  \
  }

static const recurrence_case cases[] = {
    COMBA("released", 2, 2, 4, ""),
    COMBA("tied, narrow values", 2, 0.5, 4, "'tie_word_embeddings': true, "),
    COMBA("grouped value heads", 4, 1, 4, "'num_v_heads': 4, "),
    COMBA("no convolution", 2, 1, 0, "'use_short_conv': false, "),
    COMBA("one tap", 2, 1, 1, "'conv_size': 1, "),
    COMBA("no MLP", 2, 1, 3, "'use_mlp': false, 'conv_size': 3, "),
    COMBA("swish gate", 2, 1, 4, "'output_gate': 'swish', ", .gate = ORACLE_GATE_SWISH),
    COMBA("no gate", 2, 1, 4, "'use_output_gate': false, ", .gate = ORACLE_GATE_NONE),
    COMBA("feedback not normalised", 2, 1, 4, "'p_normalize': false, ", .feedback_not_unit = true),
    COMBA("correction after norm", 2, 1, 4, "'correction_after_norm': true, ", .correction_after_norm = true),
    COMBA("paper", 2, 1, 4, "'p_normalize': false, 'correction_after_norm': true, ", .feedback_not_unit = true,
          .correction_after_norm = true),
    COMBA("paper, feedback without b", 4, 1, 4,
          "'num_v_heads': 4, 'p_normalize': false, 'correction_after_norm': true, 'use_feedback_decay': false, ",
          .feedback_not_unit = true, .correction_after_norm = true, .no_feedback_decay = true),
    COMBA("fields ignored", 2, 1, 4,
          "'use_output_correction': false, 'use_inner_decay': false, 'correction_factor': 0.02, "),
    COMBA("no correction", 2, 1, 4, "'honor_ablation_fields': true, 'use_output_correction': false, ",
          .no_correction = true),
    COMBA("no inner decay", 2, 1, 4, "'honor_ablation_fields': true, 'use_inner_decay': false, 'p_normalize': false, ",
          .no_inner_decay = true, .feedback_not_unit = true),
    COMBA("iplr", 2, 1, 4, "'transition': 'iplr', 'beta_scale': 2, ", .beta_scale = 2, .feedback_after_decay = true),
    COMBA("sigmoid decay", 2, 1, 4, "'decay_gate': 'sigmoid', ", .decay = ORACLE_DECAY_SIGMOID),
    COMBA("constant decay", 2, 1, 4, "'decay_gate': 'constant', ", .decay = ORACLE_DECAY_CONSTANT),
    COMBA("no decay", 2, 1, 4, "'decay_gate': 'one', ", .decay = ORACLE_DECAY_ONE),
    DELTA("gated_deltanet", "gated_deltanet", 2, 2, 4, "", .gate = ORACLE_GATE_SWISH, GATED_DELTANET),
    DELTA("gated_deltanet, grouped value heads, negative eigenvalues", "gated_deltanet", 4, 1, 3,
          "'num_v_heads': 4, 'allow_neg_eigval': true, 'conv_size': 3, ", .beta_scale = 2, .gate = ORACLE_GATE_SWISH,
          GATED_DELTANET),
    DELTA("gated_deltanet, no gate, no convolution", "gated_deltanet", 2, 1, 0,
          "'use_gate': false, 'use_short_conv': false, ", .gate = ORACLE_GATE_NONE, GATED_DELTANET),
    DELTA("delta_net", "delta_net", 2, 1, 4, "'use_output_norm': true, ", .gate = ORACLE_GATE_NONE, DELTA_NET),
    DELTA("delta_net, gate, negative eigenvalues, relu", "delta_net", 2, 2, 4,
          "'use_gate': true, 'allow_neg_eigval': true, 'qk_activation': 'relu', ", .beta_scale = 2,
          .gate = ORACLE_GATE_SWISH, .activation = ORACLE_ACTIVATION_RELU, DELTA_NET),
    DELTA("delta_net, elu, sum", "delta_net", 2, 1, 4, "'qk_activation': 'elu', 'qk_norm': 'sum', ",
          .gate = ORACLE_GATE_NONE, .activation = ORACLE_ACTIVATION_ELU, .sum_norm = true, DELTA_NET),
    DELTA("delta_net, identity, no beta, no convolution", "delta_net", 2, 1, 0,
          "'qk_activation': 'identity', 'use_beta': false, 'use_short_conv': false, ", .gate = ORACLE_GATE_NONE,
          .activation = ORACLE_ACTIVATION_IDENTITY, .fixed_beta = true, DELTA_NET),

    LINEAR(gla, "", 2, 2, "'expand_k': 0.5, "),
    LINEAR(gla, ", shared keys", 4, 2, "'expand_k': 0.5, 'expand_v': 2, "),
    LINEAR(gla, ", convolution, relu", 2, 1, "'use_short_conv': true, 'conv_size': 3, 'feature_map': 'relu', ",
           .map = relu),
    LINEAR(gla, ", no gate, clamp", 2, 2, "'use_output_gate': false, 'clamp_min': -0.05, ", .clamp_min = -0.05),
    LINEAR(gla, ", unfused, gelu", 2, 2, "'fuse_norm': false, 'feature_map': 'gelu', 'expand_k': 0.52, ",
           .map = gelu_with_tanh),
    LINEAR(gla, ", logsigmoid", 4, 2, "'feature_map': 'logsigmoid', ", .map = log_sigmoid),
    LINEAR(gla, ", norm without weight", 2, 2, "'elementwise_affine': false, "),
    LINEAR(hgrn2, "", 2, 2, "'expand_ratio': 8, ", .lower_bounds = true),
    LINEAR(hgrn2, ", convolution, no bounds", 4, 4,
           "'expand_ratio': 4, 'use_short_conv': true, 'use_lower_bound': false, "),
    LINEAR(hgrn2, ", norm without weight, by heads", 4, 4, "'expand_ratio': null, 'elementwise_affine': null, ",
           .lower_bounds = true),
    LINEAR(retnet, "", 2, 2, ""),
    LINEAR(retnet, ", norm without weight, no gate, squares", 2, 2,
           "'elementwise_affine': false, 'use_output_gate': false, 'feature_map': 'relu2', ",
           .map = oracle_squared_relu),
    LINEAR(retnet, ", no gate, silu", 4, 4, "'use_output_gate': false, 'feature_map': 'silu', 'expand_k': 0.5, ",
           .map = oracle_silu),
    LINEAR(retnet, ", shared keys", 4, 2, ""),
    LINEAR(simple_gla, "", 2, 2, ""),
    LINEAR(simple_gla, ", shared keys, no convolution, relu", 4, 2,
           "'use_short_conv': false, 'feature_map': 'relu', 'expand_k': 0.5, ", .map = relu),
    LINEAR(linear_attn, "", 2, 2, ""),
    LINEAR(linear_attn, ", convolution", 4, 2, "'qkv_conv_size': 4, "),
    LINEAR(linear_attn, ", tied, shared keys", 4, 2, "'tie_feature_map_qk': true, 'expand_v': 2, ", .tied = true),
    LINEAR(linear_attn, ", hedgehog, normalised", 2, 1, "'feature_map': 'hedgehog', 'norm_feature_map': true, ",
           .features = ORACLE_HEDGEHOG, .normalized = true),
    LINEAR(linear_attn, ", t2r, norms of q and k", 2, 2, "'feature_map': 't2r', 'norm_q': true, 'norm_k': true, ",
           .features = ORACLE_T2R, .norm_q = true, .norm_k = true),
    LINEAR(linear_attn, ", dpfp", 2, 2, "'feature_map': 'dpfp', ", .features = ORACLE_DPFP),
    LINEAR(linear_attn, ", dpfp of the paper", 2, 2, "'feature_map': 'dpfp_paper', ", .features = ORACLE_DPFP_PAPER),
    LINEAR(linear_attn, ", relu", 4, 1, "'feature_map': 'relu', ", .features = ORACLE_NO_WEIGHTS, .map = relu),
    LINEAR(linear_attn, ", elu, normalised", 2, 2, "'feature_map': 'elu', 'norm_feature_map': true, ",
           .features = ORACLE_NO_WEIGHTS, .map = elu_plus_one, .normalized = true),
    LINEAR(linear_attn, ", identity", 2, 2, "'feature_map': 'identity', ", .features = ORACLE_NO_WEIGHTS),
    {.name = "transformer",
     .json = "'model_type': 'transformer', 'num_heads': 4, 'num_kv_heads': 2, 'qk_norm': true, 'qkv_bias': true, ",
     .family = &oracle_transformer,
     .attention = &(const oracle_attention){.heads = 4, .kv_heads = 2}},
    {.name = "transformer, convolution",
     .json = "'model_type': 'transformer', 'num_heads': 4, 'num_kv_heads': 2, 'qkv_conv_size': 3, ",
     .family = &oracle_transformer,
     .attention = &(const oracle_attention){.heads = 4, .kv_heads = 2}},
    {.name = "transformer, window",
     .json = "'model_type': 'transformer', 'num_heads': 2, 'window_size': 5, ",
     .family = &oracle_transformer,
     .attention = &(const oracle_attention){.heads = 2, .kv_heads = 2, .window = 5}},
    {.name = "retnet, hybrid",
     .json = "'model_type': 'retnet', 'num_heads': 2, 'attn': {'layers': [1], 'num_heads': 4, 'num_kv_heads': 1, "
             "'window_size': 3}, ",
     .family = &oracle_retnet,
     .config = &(const oracle_linear_config){.heads = 2, .kv_heads = 2},
     .attention = &(const oracle_attention){.heads = 4, .kv_heads = 1, .window = 3, .layers = 1u << 1}},

    MAMBA2("", 1, "", .least = 0),
    MAMBA2(", groups, limits", 4, "'dt_limit': [0.3, 0.9], 'use_bias': true, 'conv_kernel': 2, ", .least = 0.3,
           .largest = 0.9),
    MAMBA2(", norm before gate, D by channel", 2,
           "'norm_before_gate': true, 'D_has_hdim': true, 'use_conv_bias': false, 'expand': 3, ",
           .norm_before_gate = true),
    MAMBA2(", no norm", 1, "'rmsnorm': false, ", .no_norm = true),
    {.name = "s4d", .family = &oracle_s4d, .json = "'model_type': 's4d', 'state_size': 6, "},
    {.name = "s4d, inverse frequencies",
     .family = &oracle_s4d,
     .json = "'model_type': 's4d', 'state_size': 10, 'A_init': 'inv', 'dt_max': 0.5, "},
    MLSTM("", 2, "", .cap = 15, .epsilon = 1e-6),
    MLSTM(", wide, low cap", 4, "'qk_dim_factor': 1, 'v_dim_factor': 2, 'gate_soft_cap': 2, 'eps': 0.01, ", .cap = 2,
          .epsilon = 0.01),
    MLSTM(", exponential forget gate", 2, "'forget_gate': 'exponential', 'eps': 1e-9, ", .cap = 15, .epsilon = 1e-9,
          .exponential_forget = true),
    MLSTM(", no cap", 1, "'gate_soft_cap': null, ", .epsilon = 1e-6),
    RWKV7("", "'head_dim': 8, ", 1e-6, oracle_squared_relu),
    RWKV7(", wide values, unfused norm, relu",
          "'head_dim': 8, 'value_dim': [48, 48], 'fuse_norm': false, 'hidden_act': 'relu', ", 0, relu),
    RWKV7(", no first norm, swish, by heads",
          "'head_dim': null, 'num_heads': 1, 'norm_first': false, 'hidden_act': 'swish', ", 1e-6, oracle_silu),
    {.name = "rwkv7, ranks left open",
     .family = &oracle_rwkv7,
     .json = "'model_type': 'rwkv7', 'head_dim': 8, 'decay_low_rank_dim': null, 'gate_low_rank_dim': null, "
             "'a_low_rank_dim': null, 'v_low_rank_dim': null, 'use_l2warp': false, ",
     .config = &(const oracle_rwkv7_config){1e-6, oracle_squared_relu}},
    KDA("", "", 0),
    KDA(", grouped value heads, negative eigenvalues", "'num_v_heads': 4, 'expand_v': 2, 'allow_neg_eigval': true, ",
        .beta_scale = 2),
    KDA(", lower bound, no convolution", "'lower_bound': -3, 'safe_gate': true, 'use_short_conv': false, ",
        .lower_bound = -3),
    META_LA("", 2, 16, ""),
    META_LA(", wide keys, strong decay", 4, 1, "'expand_k': 1, 'gate_logit_normalizer': 1, 'conv_size': 2, "),
    META_LA(", no convolution, no self-augmentation", 2, 16,
            "'use_short_conv': false, 'use_self_augmentation': false, "),
    MESA_NET("", 2, 8, 0.25, ""),
    MESA_NET(", gate", 3, 6, 0.5, "'use_output_gate': true, 'use_short_conv': false, "),
    MESA_NET(", more channels than steps", 1, 40, 0.25, "'conv_size': 3, "),

    TTT_MLP("", "", 1, 10000),
    TTT_MLP(", shared q and k, gate", "'share_qk': true, 'conv_size': 3, 'use_gate': true, ", 1, 10000),
    TTT_MLP(", convolution before the block", "'pre_conv': true, ", 1, 10000),
    TTT_MLP(", mini-batches of 5, slow", "'mini_batch_size': 5, 'ttt_base_lr': 0.1, 'rope_theta': 100, ", 0.1, 100),

    MEMORY(ttt_linear, "", 16, 1, ""),
    MEMORY(ttt_linear, ", gate, shared q and k", 5, 3,
           "'use_gate': true, 'share_qk': true, 'conv_size': 3, 'mini_batch_size': 5, 'ttt_base_lr': 3, "),
    MEMORY(ttt_linear, ", token by token", 1, 1, "'mini_batch_size': 1, "),
    MEMORY(ttt_linear, ", convolution before the block", 16, 1, "'pre_conv': true, 'conv_size': 3, "),
    MEMORY(titans, "", 16, 0.03125, ""),
    MEMORY(titans, ", token by token, zeros first", 1, 0.3,
           "'chunk_size': 1, 'base_lr': 0.3, 'learn_memory': false, 'expand_v': 0.5, "),
    MEMORY(
        titans, ", no momentum, no gate, no convolution", 64, 0.1,
        "'chunk_size': 64, 'base_lr': 0.1, 'use_momentum': false, 'use_output_gate': false, 'use_short_conv': false, "),
    MEMORY(yaad, "", 16, 0.0625, "'delta_scale': 0.1, ", .delta_scale = 0.1),
    MEMORY(yaad, ", channels", 16, 0.0625, "'huber': 'channel', 'delta_map': 'sigmoid', 'delta_scale': 0.05, ",
           .huber = ORACLE_HUBER_CHANNEL, .delta_sigmoid = true, .delta_scale = 0.05),
    MEMORY(yaad, ", sign, token by token", 1, 0.1,
           "'huber': 'sign', 'delta_scale': 0.02, 'chunk_size': 1, 'base_lr': 0.1, 'expand_v': 2, ",
           .huber = ORACLE_HUBER_SIGN, .delta_scale = 0.02),
    MEMORY(moneta, "", 16, 1.0 / 48, "", POWERS),
    MEMORY(moneta, ", mirror, other norms", 5, 0.05,
           "'mirror_map': true, 'p': 2.5, 'q': 3, 'sign_sharpness': 4, 'error_smoothing': 0.01, 'chunk_size': 5, "
           "'base_lr': 0.05, 'expand_v': 2, ",
           .p = 2.5, .q = 3, .sharpness = 4, .smoothing = 0.01, .mirror = true),
    MEMORY(moneta, ", mirror, token by token", 1, 0.05, "'mirror_map': true, 'chunk_size': 1, 'base_lr': 0.05, ",
           POWERS, .mirror = true),
    MEMORY(memora, "", 16, 0.0625, "", .total = 8 * sqrt(8)),
    MEMORY(memora, ", columns, zeros first", 5, 0.5,
           "'softmax_over': 'column', 'chunk_size': 5, 'base_lr': 0.5, 'learn_memory': false, 'expand_v': 2, ",
           .softmax = ORACLE_SOFTMAX_COLUMN, .total = sqrt(8)),
    MEMORY(memora, ", rows, token by token", 1, 0.5,
           "'softmax_over': 'row', 'memory_total': 3, 'chunk_size': 1, 'base_lr': 0.5, ", .softmax = ORACLE_SOFTMAX_ROW,
           .total = 3),

    LAYERS(yaad, yaad, "", "", .chunk = 16, .base_lr = 1.0 / 16, .delta_scale = 1),
    LAYERS(yaad, yaad, ", by channels, of the layers' output",
           "'huber': 'channel', 'norm_in_loss': false, 'chunk_size': 5, ", .chunk = 5, .base_lr = 1.0 / 5,
           .huber = ORACLE_HUBER_CHANNEL, .delta_scale = 1, .raw_loss = true),
    LAYERS(moneta, moneta_layers, "", "", .chunk = 16, .base_lr = 1.0 / 48, .p = 3, .q = 4, .sharpness = 10,
           .smoothing = 1e-6),
    LAYERS(moneta, moneta_layers, ", mirror map", "'mirror_map': true, 'p': 2, 'chunk_size': 5, ", .chunk = 5,
           .base_lr = 1.0 / 10, .p = 2, .q = 4, .sharpness = 10, .smoothing = 1e-6, .mirror = true),
    LAYERS(memora, memora, "", "", .chunk = 16, .base_lr = 1.0 / 16),
    LAYERS(memora, memora, ", by columns", "'softmax_over': 'column', 'chunk_size': 5, ", .chunk = 5,
           .base_lr = 1.0 / 5, .softmax = ORACLE_SOFTMAX_COLUMN),
};
enum { CASES = sizeof cases / sizeof *cases };

static const comba_mode modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};
enum { MODES = 2 };

/* One model in each mode, and the oracle of their weights; those named by the family's `gates` are multiplied by `gain`. */
typedef struct subject {
  const char *name;
  comba_model *model[MODES];
  oracle_model *oracle;
} subject;

static comba_model *create(const recurrence_case *c, comba_mode mode, float gain) {
  char json[1024];
  comba_options options;
  comba_options_default(&options);
  options.mode = mode;
  snprintf(json, sizeof json,
           "{%s'vocab_size': %d, 'hidden_size': %d, 'num_hidden_layers': 2, 'intermediate_size': 24}", c->json,
           VOCABULARY, HIDDEN);
  for (char *quote = json; (quote = strchr(quote, '\''));) *quote = '"';
  comba_model *model = model_case_create(json, &options);
  for (size_t i = 0; i < comba_model_parameters(model) && c->family->gates; i++) {
    comba_parameter p;
    ck_assert_done(comba_model_parameter(model, i, &p));
    for (int64_t j = 0; j < p.elements && strstr(p.name, c->family->gates); j++) p.data[j] *= gain;
  }
  return model;
}

static subject subject_create(int index, float gain) {
  const recurrence_case *c = &cases[index];
  subject s = {.name = c->name};
  for (int i = 0; i < MODES; i++) s.model[i] = create(c, modes[i], gain);
  s.oracle = oracle_model_create(c->family, c->config, s.model[0]);
  s.oracle->attention = c->attention;
  return s;
}

static void subject_free(subject *s) {
  oracle_model_free(s->oracle);
  for (int i = 0; i < MODES; i++) comba_model_free(s->model[i]);
}

static float forward(comba_model *model, const int32_t *ids, int64_t batch, int64_t length, comba_pass pass) {
  float loss = -1;
  const comba_batch input = {.batch = batch, .length = length, .input_ids = ids};
  ck_assert_done(comba_model_forward(model, &input, pass, &loss));
  return loss;
}

static void compare_forward(subject *s, int64_t batch, int64_t length, double tolerance) {
  const int64_t count = batch * length * VOCABULARY;
  int32_t *ids = model_case_tokens(batch * length, VOCABULARY, (uint64_t)length);
  double *expected = malloc((size_t)count * sizeof *expected), loss = 0;
  float *rounded = malloc((size_t)count * sizeof *rounded);
  oracle_model_forward(s->oracle, ids, batch, length, expected, &loss);
  for (int64_t i = 0; i < count; i++) rounded[i] = (float)expected[i];
  for (int run = 0; run < 2 * MODES; run++) {
    const comba_pass pass = run / MODES ? COMBA_PASS_TRAIN : COMBA_PASS_EVALUATE;
    const float found = forward(s->model[run % MODES], ids, batch, length, pass);
    const double error = model_case_distance(comba_model_logits(s->model[run % MODES]), rounded, count);
    ck_assert_msg(error <= tolerance, "%s, run %d, %d tokens: logits differ by %.3g", s->name, run, (int)length, error);
    ck_assert_msg(fabs(found - loss) <= 0.1 * tolerance * fabs(loss), "%s, run %d, %d tokens: loss %.9g, expected %.9g",
                  s->name, run, (int)length, (double)found, loss);
  }
  free(ids);
  free(expected);
  free(rounded);
}

START_TEST(logits_and_loss_are_the_oracles) {
  const int64_t lengths[] = {1, 2, 63, 65, 130};
  subject s = subject_create(_i, 1);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) compare_forward(&s, 2, lengths[i], 1e-5);
  subject_free(&s);
}
END_TEST

/* A prompt, then single tokens: the state of a decoder holds all that the recurrence has. The measure is that of a whole forward,
 * over the tokens together: the logits of one token may be far more sensitive to rounding than the rest. */
START_TEST(decoded_logits_are_the_oracles) {
  enum { T = 80 };
  static const int64_t prompts[] = {1, 3, 66};
  static double expected[T * VOCABULARY];
  static float found[T * VOCABULARY], rounded[T * VOCABULARY];
  subject s = subject_create(_i, 1);
  int32_t *ids = model_case_tokens(T, VOCABULARY, 2);
  oracle_model_forward(s.oracle, ids, 1, T, expected, NULL);
  for (int m = 0; m < MODES; m++) {
    comba_decoder *decoder = NULL;
    ck_assert_done(comba_decoder_create(&decoder, s.model[m], 1, T));
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
      int64_t tokens = 0;
      comba_decoder_reset(decoder);
      for (int64_t from = 0, to = prompts[i]; from < T; from = to++, tokens++) {
        ck_assert_done(comba_decoder_feed(decoder, ids + from, to - from, found + tokens * VOCABULARY));
        for (int j = 0; j < VOCABULARY; j++)
          rounded[tokens * VOCABULARY + j] = (float)expected[(to - 1) * VOCABULARY + j];
        const int64_t at = tokens * VOCABULARY;
        ck_assert_msg(model_case_distance(found + at, rounded + at, VOCABULARY) <= 1e-4,
                      "%s, mode %d, prompt of %d: token %d", s.name, m, (int)prompts[i], (int)to);
      }
      const double error = model_case_distance(found, rounded, tokens * VOCABULARY);
      ck_assert_msg(error <= 1e-5, "%s, mode %d, prompt of %d: logits differ by %.3g", s.name, m, (int)prompts[i],
                    error);
    }
    comba_decoder_free(decoder);
  }
  free(ids);
  subject_free(&s);
}
END_TEST

START_TEST(saturated_gates_lose_no_more_than_a_digit) {
  if (!cases[_i].family->gates) return;
  subject s = subject_create(_i, 30);
  compare_forward(&s, 1, 130, 1e-4);
  subject_free(&s);
}
END_TEST

/* d loss / d (weights along `direction`) by central differences of the oracle. */
static double slope(subject *s, const char *name, const double *direction, int64_t count, const int32_t *ids, int64_t T,
                    double *logits) {
  const double step = 1e-5;
  double *weight = oracle_model_weight(s->oracle, name), above, below;
  for (int64_t i = 0; i < count; i++) weight[i] += step * direction[i];
  oracle_model_forward(s->oracle, ids, 1, T, logits, &above);
  for (int64_t i = 0; i < count; i++) weight[i] -= 2 * step * direction[i];
  oracle_model_forward(s->oracle, ids, 1, T, logits, &below);
  for (int64_t i = 0; i < count; i++) weight[i] += step * direction[i];
  return (above - below) / (2 * step);
}

/* Along a random direction of each weight, of length 1 on average: what any wrong element would change. Where terms of order
 * 1 cancel (mLSTM's input bias scales a state that is normalised afterwards), their rounding remains. */
START_TEST(gradients_are_the_oracles_slopes) {
  enum { T = 70 }; /* two chunks */
  static double logits[T * VOCABULARY];
  subject s = subject_create(_i, 1);
  int32_t *ids = model_case_tokens(T, VOCABULARY, 1);
  for (int m = 0; m < MODES; m++) {
    forward(s.model[m], ids, 1, T, COMBA_PASS_TRAIN);
    ck_assert_done(comba_model_backward(s.model[m], 1));
  }
  for (size_t i = 0; i < comba_model_parameters(s.model[0]); i++) {
    comba_parameter p[MODES];
    for (int m = 0; m < MODES; m++) ck_assert_done(comba_model_parameter(s.model[m], i, &p[m]));
    const int64_t count = p[0].elements;
    double *direction = malloc((size_t)count * sizeof *direction);
    fill_normal(direction, count, 1 / sqrt((double)count), i);
    const double expected = slope(&s, p[0].name, direction, count, ids, T, logits);
    for (int m = 0; m < MODES; m++) {
      double found = 0, square = 0;
      for (int64_t j = 0; j < count; j++) {
        found += (double)p[m].gradient[j] * direction[j];
        square += (double)p[m].gradient[j] * p[m].gradient[j];
      }
      ck_assert_msg(fabs(found - expected) <= 1e-4 * sqrt(square / (double)count) + 1e-7,
                    "%s, mode %d: %s: slope %.8g, expected %.8g", s.name, m, p[0].name, found, expected);
    }
    free(direction);
  }
  free(ids);
  subject_free(&s);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("recurrences");
  TCase *tests = tcase_create("every row");
  tcase_set_timeout(tests, 0);
  tcase_add_loop_test(tests, logits_and_loss_are_the_oracles, 0, CASES);
  tcase_add_loop_test(tests, decoded_logits_are_the_oracles, 0, CASES);
  tcase_add_loop_test(tests, saturated_gates_lose_no_more_than_a_digit, 0, CASES);
  tcase_add_loop_test(tests, gradients_are_the_oracles_slopes, 0, CASES);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
