/* What each operator computes, its attributes, and the builder that appends it to a graph. One entry an operator, in the
 * order of ops/list.h; the row and the kernels are in the file of its name. A zero-filled attributes struct is valid.
 *
 * Shapes: B batch, T tokens, d channels, H heads, HV value heads (a multiple of H), K key and V value head size, N packed
 * sequences (N = B without cu_seqlens). "(..., d)" is any leading shape. cu_seqlens (N+1) int32: offsets of the sequences
 * inside T, from 0 to T, not falling; empty sequences are allowed; it needs B = 1. */
#ifndef COMBA_OPS_OPS_H
#define COMBA_OPS_OPS_H

#include "core/graph.h"

#ifdef __cplusplus /* CUDA kernels read the attributes and build nothing */
#define COMBA_APPEND(graph, op, attributes, ...) ((void)(attributes), (comba_tensor *)NULL)
#else
#define COMBA_APPEND(graph, op, attributes, more, ...)                                                                 \
  comba_graph_append(graph, COMBA_OP_##op, attributes,                                                                 \
                     (int)(sizeof((comba_tensor *[]){__VA_ARGS__}) / sizeof(comba_tensor *)),                          \
                     (comba_tensor *[]){__VA_ARGS__}, more)
#endif

/* y (..., n) = x (..., m) weight (n, m)^T + bias (n), bias optional */
static inline comba_tensor *comba_linear(comba_graph *graph, comba_tensor *x, comba_tensor *weight,
                                         comba_tensor *bias) {
  return COMBA_APPEND(graph, linear, NULL, NULL, x, weight, bias);
}

/* y (B,T,d) = weight (vocabulary, d)[ids (B,T)]; ids inside [0, vocabulary) */
typedef struct comba_embedding_attributes {
  int64_t padding_plus_one; /* row padding_plus_one - 1 gets no gradient; 0: every row does */
  bool rest;                /* `rest` (B,T,d) receives what y has lost of the weight by rounding; it has no gradient */
} comba_embedding_attributes;
static inline comba_tensor *comba_embedding(comba_graph *graph, comba_tensor *ids, comba_tensor *weight,
                                            comba_embedding_attributes attributes, comba_tensor **rest) {
  return COMBA_APPEND(graph, embedding, &attributes, rest, ids, weight);
}

/* y = a + b, equal shapes */
static inline comba_tensor *comba_add(comba_graph *graph, comba_tensor *a, comba_tensor *b) {
  return COMBA_APPEND(graph, add, NULL, NULL, a, b);
}

/* y = x + (z - x) w: from x at w = 0 to z at w = 1. x, z (..., d), w of their shape or one row (d) for all */
static inline comba_tensor *comba_lerp(comba_graph *graph, comba_tensor *x, comba_tensor *z, comba_tensor *w) {
  return COMBA_APPEND(graph, lerp, NULL, NULL, x, z, w);
}

/* y = scale * f(x), element by element; scale 0 means 1. GELU is the exact one (erf). */
typedef enum comba_function {
  COMBA_SIGMOID,
  COMBA_SILU,
  COMBA_GELU,
  COMBA_TANH,
  COMBA_RELU,
  COMBA_ELU_PLUS_ONE,
  COMBA_SQUARED_RELU,
  COMBA_GELU_TANH, /* gelu in its form with tanh */
} comba_function;
typedef struct comba_activation_attributes {
  comba_function function;
  double scale;
} comba_activation_attributes;
static inline comba_tensor *comba_activation(comba_graph *graph, comba_tensor *x, comba_function function,
                                             double scale) {
  comba_activation_attributes attributes = {function, scale};
  return COMBA_APPEND(graph, activation, &attributes, NULL, x);
}

/* y (..., 2n) = softmax(2 x, -2 x), x (..., n) */
static inline comba_tensor *comba_hedgehog(comba_graph *graph, comba_tensor *x) {
  return COMBA_APPEND(graph, hedgehog, NULL, NULL, x);
}

/* y (..., 2n rolls), x (..., n): with r = (relu(x), relu(-x)), or one-sided (relu(x), -relu(x)), blocks j = 1 to rolls of
 * r_i r_{i-j}, indices modulo 2n */
typedef struct comba_dpfp_attributes {
  int64_t rolls; /* 1 to 2n */
  bool one_sided;
} comba_dpfp_attributes;
static inline comba_tensor *comba_dpfp(comba_graph *graph, comba_tensor *x, int64_t rolls, bool one_sided) {
  comba_dpfp_attributes attributes = {rolls, one_sided};
  return COMBA_APPEND(graph, dpfp, &attributes, NULL, x);
}

/* y = scale a b, a (..., d), b of its shape or one row (d) for all; scale 0 means 1 */
typedef struct comba_product_attributes {
  double scale;
} comba_product_attributes;
static inline comba_tensor *comba_scaled_product(comba_graph *graph, comba_tensor *a, comba_tensor *b, double scale) {
  comba_product_attributes attributes = {scale};
  return COMBA_APPEND(graph, product, &attributes, NULL, a, b);
}
static inline comba_tensor *comba_product(comba_graph *graph, comba_tensor *a, comba_tensor *b) {
  return comba_scaled_product(graph, a, b, 1);
}

/* y = silu(gate) * up, equal shapes */
static inline comba_tensor *comba_swiglu(comba_graph *graph, comba_tensor *gate, comba_tensor *up) {
  return COMBA_APPEND(graph, swiglu, NULL, NULL, gate, up);
}

/* z = x + residual (residual optional, else z = x); y = z / sqrt(mean(z^2) + epsilon) * weight over the last dimension;
 * weight (d) optional, (g d) for x (..., g, d): by groups. `sum` (or NULL) receives z, which carries the residual stream. */
typedef struct comba_norm_attributes {
  double epsilon;
} comba_norm_attributes;
static inline comba_tensor *comba_rms_norm(comba_graph *graph, comba_tensor *x, comba_tensor *residual,
                                           comba_tensor *weight, double epsilon, comba_tensor **sum) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, rms_norm, &attributes, sum, x, weight, residual);
}

/* y = x / sqrt(mean(x^2) + epsilon) * weight * f(gate), f sigmoid or silu; x, gate (..., V), weight (V), or (g V) for
 * x (..., g, V): by groups */
typedef struct comba_gated_rms_norm_attributes {
  double epsilon;
  comba_function gate; /* COMBA_SIGMOID or COMBA_SILU */
} comba_gated_rms_norm_attributes;
static inline comba_tensor *comba_gated_rms_norm(comba_graph *graph, comba_tensor *x, comba_tensor *gate,
                                                 comba_tensor *weight, double epsilon, comba_function function) {
  comba_gated_rms_norm_attributes attributes = {epsilon, function};
  return COMBA_APPEND(graph, gated_rms_norm, &attributes, NULL, x, gate, weight);
}

/* y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last dimension; weight, bias optional, (d) or, with
 * x (..., H, d), (H,d) */
static inline comba_tensor *comba_layer_norm(comba_graph *graph, comba_tensor *x, comba_tensor *weight,
                                             comba_tensor *bias, double epsilon) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, layer_norm, &attributes, NULL, x, weight, bias);
}

/* y = x / sqrt(sum(x^2) + epsilon) over the last dimension */
static inline comba_tensor *comba_l2_norm(comba_graph *graph, comba_tensor *x, double epsilon) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, l2_norm, &attributes, NULL, x);
}

/* y = x / (sum(x) + epsilon) over the last dimension; 0 where the divisor is 0 (features of relu may all be 0) */
static inline comba_tensor *comba_sum_norm(comba_graph *graph, comba_tensor *x, double epsilon) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, sum_norm, &attributes, NULL, x);
}

/* y (..., n) = x (..., n) / (d (..., 1) + epsilon) */
static inline comba_tensor *comba_divide(comba_graph *graph, comba_tensor *x, comba_tensor *d, double epsilon) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, divide, &attributes, NULL, x, d);
}

/* Depthwise causal convolution along T: y[t] = f(sum_j weight[c, 0, j] x[t - (W-1) + j] + bias[c]), f silu or
 * identity. x (B,T,C), weight (C,1,W), bias (C) optional; state (N, W-1, C) optional: the inputs before the first token,
 * oldest first, zero if absent; `new_state` (or NULL) receives the last W-1 inputs. Taps never cross a sequence start.
 * With `head`, each head of so many channels is divided by its length, as comba_l2_norm does, before anything is rounded. */
typedef struct comba_short_convolution_attributes {
  bool silu;
  int64_t head; /* divides C; 0: as they are */
  double epsilon;
} comba_short_convolution_attributes;
static inline comba_tensor *comba_short_convolution(comba_graph *graph, comba_tensor *x, comba_tensor *weight,
                                                    comba_tensor *bias, comba_tensor *state, comba_tensor *cu_seqlens,
                                                    comba_short_convolution_attributes attributes,
                                                    comba_tensor **new_state) {
  return COMBA_APPEND(graph, short_convolution, &attributes, new_state, x, weight, bias, state, cu_seqlens);
}

/* y[t] = x[t - 1] inside each sequence: x (B,T,d); state (N, d) optional: the token before the first, zero if absent;
 * `new_state` (or NULL) receives the last token of each. Never across a sequence start. */
static inline comba_tensor *comba_token_shift(comba_graph *graph, comba_tensor *x, comba_tensor *state,
                                              comba_tensor *cu_seqlens, comba_tensor **new_state) {
  return COMBA_APPEND(graph, token_shift, NULL, new_state, x, state, cu_seqlens);
}

/* y = o + (sum_i r_i k_i w_hi) v: RWKV-7's direct path of the current token. o, v (B,T,H,V); r, k (B,T,H,K); w (H,K) */
static inline comba_tensor *comba_bonus(comba_graph *graph, comba_tensor *o, comba_tensor *r, comba_tensor *k,
                                        comba_tensor *v, comba_tensor *w) {
  return COMBA_APPEND(graph, bonus, NULL, NULL, o, r, k, v, w);
}

/* z (B,T,H,K) = y + d_h x: what a state space model's input skips its state by; d (H) */
static inline comba_tensor *comba_head_skip(comba_graph *graph, comba_tensor *y, comba_tensor *x, comba_tensor *d) {
  return COMBA_APPEND(graph, head_skip, NULL, NULL, y, x, d);
}

/* What Comba's recurrence reads, from q and k (B,T,H,K), decay s and correction D (H), both optional, all in one pass:
 *   q' = norm(q - D_h sigmoid(s_h) k), and in `more` k' = norm(k), p' = norm(sigmoid(s_h) k)
 * norm as in l2_norm; closed_loop.c has what the flags change. */
typedef struct comba_closed_loop_attributes {
  double epsilon;
  bool after_norm;     /* q - D p of vectors that are normalised already */
  bool p_normalize;    /* false: p' = sigmoid(s_h) k' */
  bool feedback_decay; /* false: p' without sigmoid(s_h) */
} comba_closed_loop_attributes;
static inline comba_tensor *comba_closed_loop(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *s,
                                              comba_tensor *d, comba_closed_loop_attributes attributes,
                                              comba_tensor *more[COMBA_MAX_OUTPUTS - 1]) {
  return COMBA_APPEND(graph, closed_loop, &attributes, more, q, k, s, d);
}

/* Log decay g (B,T,H) <= 0, clamped at -100 (the gradient is zero where clamped):
 *   mamba2    g = -exp(A_log_h) softplus(a + dt_bias_h)
 *   sigmoid   g = ln sigmoid(a + dt_bias_h)
 *   constant  g = -exp(A_log_h) softplus(dt_bias_h), whatever a holds
 *   one       g = 0
 * a (B,T,H); A_log, dt_bias (H), optional where the formula does not name them. */
typedef enum comba_decay_kind {
  COMBA_DECAY_MAMBA2,
  COMBA_DECAY_SIGMOID,
  COMBA_DECAY_CONSTANT,
  COMBA_DECAY_ONE,
} comba_decay_kind;
typedef struct comba_decay_gate_attributes {
  comba_decay_kind kind;
} comba_decay_gate_attributes;
static inline comba_tensor *comba_decay_gate(comba_graph *graph, comba_tensor *a, comba_tensor *a_log,
                                             comba_tensor *dt_bias, comba_decay_kind kind) {
  comba_decay_gate_attributes attributes = {kind};
  return COMBA_APPEND(graph, decay_gate, &attributes, NULL, a, a_log, dt_bias);
}

/* y = scale / (1 + e^-x), a gate */
typedef struct comba_sigmoid_gate_attributes {
  double scale;
} comba_sigmoid_gate_attributes;
static inline comba_tensor *comba_sigmoid_gate(comba_graph *graph, comba_tensor *x, double scale) {
  comba_sigmoid_gate_attributes attributes = {scale};
  return COMBA_APPEND(graph, sigmoid_gate, &attributes, NULL, x);
}

/* Log decay g (B,T,H,K) <= 0 of each channel, at least `minimum` (the gradient is zero where clamped). With
 * r = exp(A_log_h), 1 without A_log, and u = x + dt_bias_hc:
 *   log sigmoid  g = scale ln sigmoid(r u)     GLA
 *   sigmoid      g = -scale sigmoid(r u)       RWKV-7; KDA with a lower bound
 *   softplus     g = -scale r softplus(u)      KDA
 * x (B,T,H,K); A_log (H), dt_bias (H K) optional. */
typedef enum comba_channel_kind {
  COMBA_CHANNEL_LOG_SIGMOID,
  COMBA_CHANNEL_SIGMOID,
  COMBA_CHANNEL_SOFTPLUS,
} comba_channel_kind;
typedef struct comba_channel_decay_attributes {
  comba_channel_kind kind;
  double scale;   /* 0 means 1 */
  double minimum; /* 0 means -100 */
} comba_channel_decay_attributes;
static inline comba_tensor *comba_channel_decay(comba_graph *graph, comba_tensor *x, comba_tensor *a_log,
                                                comba_tensor *dt_bias, comba_channel_decay_attributes attributes) {
  return COMBA_APPEND(graph, channel_decay, &attributes, NULL, x, a_log, dt_bias);
}

/* Mamba2's discretisation by a time step of the token's own (arXiv 2405.21060): x (B,T,H,P), raw (B,T,H), A_log, dt_bias (H),
 *   dt = softplus(raw + dt_bias_h), clamped to [minimum, maximum] (the gradient is zero where clamped)
 *   v = dt x (B,T,H,P) and in `g` the log decay -exp(A_log_h) dt (B,T,H), at least -100 */
typedef struct comba_time_step_attributes {
  double minimum, maximum; /* maximum 0 means infinity */
} comba_time_step_attributes;
static inline comba_tensor *comba_time_step(comba_graph *graph, comba_tensor *x, comba_tensor *raw, comba_tensor *a_log,
                                            comba_tensor *dt_bias, comba_time_step_attributes attributes,
                                            comba_tensor **g) {
  return COMBA_APPEND(graph, time_step, &attributes, g, x, raw, a_log, dt_bias);
}

/* Cuts the last dimension into `parts` pieces (2 or 3) of size[0], size[1], ... channels, in order: the first is returned, the
 * others come in `more`. */
typedef struct comba_split_attributes {
  int parts;
  int64_t size[COMBA_MAX_OUTPUTS];
} comba_split_attributes;
static inline comba_tensor *comba_split(comba_graph *graph, comba_tensor *x, comba_split_attributes attributes,
                                        comba_tensor *more[COMBA_MAX_OUTPUTS - 1]) {
  return COMBA_APPEND(graph, split, &attributes, more, x);
}

/* HGRN2's forget gate, x (B,T,H,K), bounds (L, H K) optional: with l the sum over layers 1 to `layer` of
 * softmax over L of bounds, 0 without bounds,
 *   f = l + (1 - l) sigmoid(x) -> g = ln f, at least -100, and in `key` 1 - f, both (B,T,H,K) */
typedef struct comba_bounded_gate_attributes {
  int64_t layer;
} comba_bounded_gate_attributes;
static inline comba_tensor *comba_bounded_gate(comba_graph *graph, comba_tensor *x, comba_tensor *bounds, int64_t layer,
                                               comba_tensor **key) {
  comba_bounded_gate_attributes attributes = {layer};
  return COMBA_APPEND(graph, bounded_gate, &attributes, key, x, bounds);
}

/* y = 1 - e^g, any shape: what a decay of logarithm g <= 0 leaves to be written (MetaLA's keys) */
static inline comba_tensor *comba_complement(comba_graph *graph, comba_tensor *g) {
  return COMBA_APPEND(graph, complement, NULL, NULL, g);
}

/* mLSTM's gates (xLSTM, arXiv 2405.04517), x and y (B,T,H) the logarithms of the input and forget gates before their cap,
 * cap(z) = cap tanh(z / cap), none if 0: with i = cap(x), f = ln sigmoid(cap(y)) or with exponential_forget cap(y),
 *   m_t = max(f_t + m_{t-1}, i_t) -> g_t = f_t + m_{t-1} - m_t <= 0, in `scale` e^{i_t - m_t}, in `maximum` m, all (B,T,H)
 * state (N,H), optional: m before the first token, 0 if absent; cu_seqlens (N+1) optional. */
typedef struct comba_exponential_gate_attributes {
  double cap;
  bool exponential_forget;
} comba_exponential_gate_attributes;
static inline comba_tensor *comba_exponential_gate(comba_graph *graph, comba_tensor *x, comba_tensor *y,
                                                   comba_tensor *state, comba_tensor *cu_seqlens,
                                                   comba_exponential_gate_attributes attributes, comba_tensor **scale,
                                                   comba_tensor **maximum) {
  comba_tensor *more[2] = {NULL, NULL};
  comba_tensor *g = COMBA_APPEND(graph, exponential_gate, &attributes, more, x, y, state, cu_seqlens);
  *scale = more[0];
  *maximum = more[1];
  return g;
}

/* y (B,T,HS,V) = s x, x (B,T,H,V), s (B,T,HS), HS a multiple of H: head h of s reads head h / (HS/H) of x; with `append`
 * y (B,T,HS,V+1) = s [x, 1], so that a state of values keeps the sum of their weights as well */
typedef struct comba_token_scale_attributes {
  bool append;
} comba_token_scale_attributes;
static inline comba_tensor *comba_token_scale(comba_graph *graph, comba_tensor *x, comba_tensor *s, bool append) {
  comba_token_scale_attributes attributes = {append};
  return COMBA_APPEND(graph, token_scale, &attributes, NULL, x, s);
}

/* h (B,T,H,V) = y_{0..V-1} / (max(|y_V|, e^-m) + epsilon), y (B,T,H,V+1), m (B,T,H): mLSTM's normaliser */
static inline comba_tensor *comba_normalized_read(comba_graph *graph, comba_tensor *y, comba_tensor *m,
                                                  double epsilon) {
  comba_norm_attributes attributes = {epsilon};
  return COMBA_APPEND(graph, normalized_read, &attributes, NULL, y, m);
}

/* y = value everywhere: a gate that a mixer fixes. No gradient is computed for it. */
typedef struct comba_constant_attributes {
  comba_shape shape;
  double value;
} comba_constant_attributes;
static inline comba_tensor *comba_constant(comba_graph *graph, comba_shape shape, double value) {
  comba_constant_attributes attributes = {shape, value};
  return comba_graph_append(graph, COMBA_OP_constant, &attributes, 0, NULL, NULL);
}

/* Rotary position embedding: x (B,T,H,D), D even; position (1) int32, optional: the number of tokens before the first;
 * positions restart at each sequence of cu_seqlens. Pairs are half-split; comba_rotary_interleaved turns neighbouring channels,
 * by positions modulo `period` (TTT: a chunk). */
typedef struct comba_rotary_attributes {
  double base;    /* 0 means 10000 */
  int64_t period; /* 0: none */
  bool interleaved;
} comba_rotary_attributes;
static inline comba_tensor *comba_rotary(comba_graph *graph, comba_tensor *x, comba_tensor *position,
                                         comba_tensor *cu_seqlens, double base) {
  comba_rotary_attributes attributes = {.base = base};
  return COMBA_APPEND(graph, rotary, &attributes, NULL, x, position, cu_seqlens);
}
static inline comba_tensor *comba_rotary_interleaved(comba_graph *graph, comba_tensor *x, comba_tensor *position,
                                                     comba_tensor *cu_seqlens, double base, int64_t period) {
  comba_rotary_attributes attributes = {base, period, true};
  return COMBA_APPEND(graph, rotary, &attributes, NULL, x, position, cu_seqlens);
}

/* y (B,C,S,S) = scale[c] pixel + shift[c] of B pictures that are stored as bytes (B,S,S,C), four in an index (the last one may
 * hold fewer): pictures (ceil(B S S C / 4)). crops (B,3): where in the picture the upper left corner of y is (x, y; outside the
 * picture y is 0), and whether y is then mirrored left to right. Not differentiable. */
typedef struct comba_prepare_pictures_attributes {
  int64_t channels, side; /* C, 1 to 3, and S */
  float scale[3], shift[3];
} comba_prepare_pictures_attributes;
static inline comba_tensor *comba_prepare_pictures(comba_graph *graph, comba_tensor *pictures, comba_tensor *crops,
                                                   comba_prepare_pictures_attributes attributes) {
  return COMBA_APPEND(graph, prepare_pictures, &attributes, NULL, pictures, crops);
}

/* Non-overlapping patches: pixels (B,C,H,W), weight (d,C,p,p), bias (d) optional -> (B, (H/p)(W/p), d), row-major patches */
static inline comba_tensor *comba_patch_embedding(comba_graph *graph, comba_tensor *pixels, comba_tensor *weight,
                                                  comba_tensor *bias) {
  return COMBA_APPEND(graph, patch_embedding, NULL, NULL, pixels, weight, bias);
}

/* 2-D convolution (cross-correlation): x (B,C,H,W), weight (O,C,kh,kw), bias (O) optional -> (B,O,H',W') with
 * H' = (H + 2 padding - kh) / stride + 1 */
typedef struct comba_window_attributes {
  int64_t kernel; /* max_pool only: side of the window */
  int64_t stride; /* 0 means 1 */
  int64_t padding;
} comba_window_attributes;
static inline comba_tensor *comba_convolution(comba_graph *graph, comba_tensor *x, comba_tensor *weight,
                                              comba_tensor *bias, int64_t stride, int64_t padding) {
  comba_window_attributes attributes = {0, stride, padding};
  return COMBA_APPEND(graph, convolution, &attributes, NULL, x, weight, bias);
}

/* Largest value of each window; padding counts as minus infinity; ties go to the first in row-major order */
static inline comba_tensor *comba_max_pool(comba_graph *graph, comba_tensor *x, int64_t kernel, int64_t stride,
                                           int64_t padding) {
  comba_window_attributes attributes = {kernel, stride, padding};
  return COMBA_APPEND(graph, max_pool, &attributes, NULL, x);
}

/* (B,C,H,W) -> (B, H W, C) */
static inline comba_tensor *comba_channels_to_tokens(comba_graph *graph, comba_tensor *x) {
  return COMBA_APPEND(graph, channels_to_tokens, NULL, NULL, x);
}

/* y (B,N,d) = x + table (1,M,d). Where the grid of the table (table_height x table_width = M) is not that of x
 * (height x width = N), the table is resampled: bicubic (a = -0.75), align_corners false, borders clamped, no antialias. */
typedef struct comba_position_embedding_attributes {
  int64_t table_height, table_width, height, width;
} comba_position_embedding_attributes;
static inline comba_tensor *comba_position_embedding(comba_graph *graph, comba_tensor *x, comba_tensor *table,
                                                     comba_position_embedding_attributes attributes) {
  return COMBA_APPEND(graph, position_embedding, &attributes, NULL, x, table);
}

/* (B,N,d) -> (B,d): mean over N */
static inline comba_tensor *comba_mean_pool(comba_graph *graph, comba_tensor *x) {
  return COMBA_APPEND(graph, mean_pool, NULL, NULL, x);
}

/* x (B,N,d), scores (B,N,1) -> (B,d): sum over N of softmax(scores) x */
static inline comba_tensor *comba_sequence_pool(comba_graph *graph, comba_tensor *x, comba_tensor *scores) {
  return COMBA_APPEND(graph, sequence_pool, NULL, NULL, x, scores);
}

/* (B,T,d) -> (B,d): the last token */
static inline comba_tensor *comba_last_token(comba_graph *graph, comba_tensor *x) {
  return COMBA_APPEND(graph, last_token, NULL, NULL, x);
}

/* Mean cross entropy over the rows whose target is not negative (0 if there is none): logits (..., V), targets (...) int32
 * in [0, V) or negative = ignored -> loss (1). class_weights (V), optional: each row counts with the weight of its target, in
 * the sum and in what it is divided by. `rows` (or NULL) receives the loss of each row (0 where ignored), unweighted, without
 * smoothing and without a gradient. Label smoothing s: the target has 1 - s + s/V, every other class s/V. l2_warp w adds
 * w / rows * max to the gradient of the largest logit of each row, ignored ones too, and nothing to the loss. */
typedef struct comba_cross_entropy_attributes {
  double label_smoothing, l2_warp;
} comba_cross_entropy_attributes;
static inline comba_tensor *comba_cross_entropy(comba_graph *graph, comba_tensor *logits, comba_tensor *targets,
                                                comba_tensor *class_weights, comba_cross_entropy_attributes attributes,
                                                comba_tensor **rows) {
  return COMBA_APPEND(graph, cross_entropy, &attributes, rows, logits, targets, class_weights);
}

/* y = x / (1 - rate) where a uniform draw is >= rate, else 0; a draw an element (seed, stream + step * 2^32, index).
 * The mask is drawn again in backward. drop_path draws once for each first-dimension entry: x (B, ...). */
typedef struct comba_dropout_attributes {
  double rate;
  uint64_t stream;
} comba_dropout_attributes;
static inline comba_tensor *comba_dropout(comba_graph *graph, comba_tensor *x, double rate) {
  comba_dropout_attributes attributes = {rate, comba_graph_stream(graph)};
  return rate == 0 ? x : COMBA_APPEND(graph, dropout, &attributes, NULL, x);
}
static inline comba_tensor *comba_drop_path(comba_graph *graph, comba_tensor *x, double rate) {
  comba_dropout_attributes attributes = {rate, comba_graph_stream(graph)};
  return rate == 0 ? x : COMBA_APPEND(graph, drop_path, &attributes, NULL, x);
}

/* Orders in which a mixer sees the tokens of a height x width grid, x (B,N,d):
 *   flip       reversed                                              -> (B,N,d)
 *   transpose  column-major                                          -> (B,N,d)
 *   random     a fresh permutation a sample (seed, stream, step)     -> (B,N,d)
 *   bi         forward, then reversed                                -> (2B,N,d), direction-major
 *   cross      row-major, column-major, and both reversed            -> (4B,N,d), direction-major
 * scan_merge takes what came out back to (B,N,d):
 *   bi         the two added as they come (fla-zoo's bi-scan)
 *   bi_aligned the second flipped back, then added
 *   cross      each put back in place, then added
 * With `average` the sum is divided by the number of directions. */
typedef enum comba_scan {
  COMBA_SCAN_FLIP,
  COMBA_SCAN_TRANSPOSE,
  COMBA_SCAN_RANDOM,
  COMBA_SCAN_BI,
  COMBA_SCAN_BI_ALIGNED, /* scan_merge only */
  COMBA_SCAN_CROSS,
} comba_scan;
typedef struct comba_scan_attributes {
  comba_scan scan;
  int64_t height, width;
  bool average;
  uint64_t stream;
} comba_scan_attributes;
static inline comba_tensor *comba_scan_order(comba_graph *graph, comba_tensor *x, comba_scan scan, int64_t height,
                                             int64_t width) {
  const uint64_t stream = scan == COMBA_SCAN_RANDOM ? comba_graph_stream(graph) : 0;
  comba_scan_attributes attributes = {scan, height, width, false, stream};
  return COMBA_APPEND(graph, scan_order, &attributes, NULL, x);
}
static inline comba_tensor *comba_scan_merge(comba_graph *graph, comba_tensor *x, comba_scan scan, int64_t height,
                                             int64_t width, bool average) {
  comba_scan_attributes attributes = {scan, height, width, average, 0};
  return COMBA_APPEND(graph, scan_merge, &attributes, NULL, x);
}

/* clip (2) = {norm, factor}: norm = sqrt(sum(gradient^2)) over all slabs, factor = min(1, max_norm / norm), 1 if
 * max_norm <= 0, and 0 if the norm is not finite (the step is then skipped). settings: see adamw. */
enum {
  COMBA_ADAMW_LEARNING_RATE,
  COMBA_ADAMW_BETA1,
  COMBA_ADAMW_BETA2,
  COMBA_ADAMW_EPSILON,
  COMBA_ADAMW_WEIGHT_DECAY,
  COMBA_ADAMW_CORRECTION1, /* 1 - beta1^step */
  COMBA_ADAMW_CORRECTION2, /* 1 - beta2^step */
  COMBA_ADAMW_MAX_NORM,
  COMBA_ADAMW_SETTINGS
};
static inline comba_tensor *comba_gradient_clip(comba_graph *graph, comba_tensor *settings, comba_tensor *gradient1,
                                                comba_tensor *gradient2) {
  return COMBA_APPEND(graph, gradient_clip, NULL, NULL, settings, gradient1, gradient2);
}

/* Decoupled weight decay Adam (Loshchilov and Hutter, 2019) over a slab of n values, with g = factor * gradient:
 *   m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2
 *   w' = w - rate (m' / correction1 / (sqrt(v' / correction2) + epsilon) + decay * w)
 * decay = settings.weight_decay if attributes.decays, else 0. clip.factor = 0 with a norm that is not finite leaves all three
 * as they are. Outputs w', m', v' may share memory with w, m, v. */
typedef struct comba_adamw_attributes {
  bool decays;
} comba_adamw_attributes;
static inline comba_tensor *comba_adamw(comba_graph *graph, comba_tensor *weight, comba_tensor *gradient,
                                        comba_tensor *m, comba_tensor *v, comba_tensor *settings, comba_tensor *clip,
                                        bool decays, comba_tensor *moments[2]) {
  comba_adamw_attributes attributes = {decays};
  return COMBA_APPEND(graph, adamw, &attributes, moments, weight, gradient, m, v, settings, clip);
}

/* The recurrence with scalar decay and delta term (Comba, Gated DeltaNet, DeltaNet), for each value head:
 *   S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - x_t)^T,  o_t = scale S_t^T q_t,  S (K,V)
 *   x_t = S_{t-1}^T p_t              feedback before decay: Comba (splr)
 *   x_t = e^{g_t} S_{t-1}^T p_t      feedback after decay: Gated DeltaNet, Comba (iplr)
 * q, k, p (B,T,H,K), p optional (absent: p = k); v (B,T,HV,V); beta (B,T,HV); g (B,T,HV) <= 0; initial_state (N,HV,K,V) optional
 * (zero if absent); cu_seqlens (N+1) optional. Value head h reads key head h / (HV/H). Output o (B,T,HV,V); `final_state` (or
 * NULL) receives (N,HV,K,V), and may share memory with initial_state in a graph without backward. */
typedef struct comba_delta_rule_attributes {
  double scale; /* 0 means K^(-1/2) */
  bool feedback_after_decay;
  comba_mode mode; /* COMBA_MODE_AUTO: by the rule in scan/scan.h */
} comba_delta_rule_attributes;
static inline comba_tensor *comba_delta_rule(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *p,
                                             comba_tensor *v, comba_tensor *beta, comba_tensor *g,
                                             comba_tensor *initial_state, comba_tensor *cu_seqlens,
                                             comba_delta_rule_attributes attributes, comba_tensor **final_state) {
  return COMBA_APPEND(graph, delta_rule, &attributes, final_state, q, k, p, v, beta, g, initial_state, cu_seqlens);
}

/* The recurrence with scalar decay and no delta term (linear attention, RetNet, Mamba2), for each head:
 *   S_t = e^{g_t} S_{t-1} + k_t v_t^T,  o_t = scale S_t^T q_t,  S (K,V)
 * q, k (B,T,heads,K), v (B,T,heads,V), each with its own number of heads: with HV the largest, head h reads head
 * h / (HV / heads). g (B,T,HV) <= 0 optional; initial_state (N,HV,K,V) optional (zero if absent); cu_seqlens (N+1) optional. Output o (B,T,HV,V); `final_state` (or NULL) receives (N,HV,K,V), and may
 * share memory with initial_state in a graph without backward. */
typedef struct comba_scalar_decay_attributes {
  double scale;      /* 0 means K^(-1/2) */
  int64_t retention; /* without g: e^{g} of value head h is 1 - 2^-(retention + h) at every token; 0: 1 */
  comba_mode mode;   /* COMBA_MODE_AUTO: by the rule in scan/scan.h */
} comba_scalar_decay_attributes;
static inline comba_tensor *comba_scalar_decay(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *v,
                                               comba_tensor *g, comba_tensor *initial_state, comba_tensor *cu_seqlens,
                                               comba_scalar_decay_attributes attributes, comba_tensor **final_state) {
  return COMBA_APPEND(graph, scalar_decay, &attributes, final_state, q, k, v, g, initial_state, cu_seqlens);
}

/* MesaNet's query (arXiv 2506.05233), for each head, lambda = softplus(parameter) + lower_bound:
 *   H_t = e^{g_t} H_{t-1} + beta_t k_t k_t^T,  x_t = (H_t + diag(lambda))^{-1} q_t
 * by conjugate gradients: at most `steps` of them, fewer where the residual is down to rounding. Gradients are those of the
 * exact solution. q, k (B,T,H,K); beta, g (B,T,H), g <= 0; initial_state (N,H,K,K) symmetric without negative eigenvalues,
 * optional (zero if absent), its gradient holds for symmetric changes; cu_seqlens (N+1) optional; parameter (H,K). Output x
 * (B,T,H,K); `final_state` (or NULL) receives H (N,H,K,K), and may share memory with initial_state in a graph without
 * backward. */
typedef struct comba_mesa_attributes {
  double lower_bound;
  int64_t steps;   /* 0 means 30 */
  comba_mode mode; /* COMBA_MODE_AUTO: by the rule in scan/scan.h */
} comba_mesa_attributes;
static inline comba_tensor *comba_mesa(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *beta,
                                       comba_tensor *g, comba_tensor *initial_state, comba_tensor *cu_seqlens,
                                       comba_tensor *parameter, comba_mesa_attributes attributes,
                                       comba_tensor **final_state) {
  return COMBA_APPEND(graph, mesa, &attributes, final_state, q, k, beta, g, initial_state, cu_seqlens, parameter);
}

/* The recurrence with diagonal decay and an optional low-rank term (GLA, HGRN2, RWKV-7, KDA), for each head:
 *   S_t = diag(e^{g_t}) S_{t-1} + b_t r_t^T + k_t v_t^T,  o_t = scale S_t^T q_t,  S (K,V)
 *   r_t = S_{t-1}^T a_t, or S_{t-1}^T diag(e^{g_t}) a_t with read_after_decay
 * q, k, a, b (B,T,heads,K), a and b optional: without either there is no low-rank term, without b alone b = -k, the delta rule
 * S_t = diag(e^{g_t}) S_{t-1} + k_t (v_t - r_t)^T, at less cost; v (B,T,heads,V); g (B,T,heads,K) <= 0, each with its own number
 * of heads: with H the largest, head h reads head h / (H / heads). initial_state (N,H,K,V) optional (zero if absent); cu_seqlens
 * (N+1) optional. Output o (B,T,H,V); `final_state` (or NULL) receives (N,H,K,V), and may share memory with initial_state in a
 * graph without backward. */
typedef struct comba_diagonal_decay_attributes {
  double scale; /* 0 means K^(-1/2) */
  bool read_after_decay;
  comba_mode mode; /* COMBA_MODE_AUTO: by the rule in scan/scan.h */
} comba_diagonal_decay_attributes;
static inline comba_tensor *comba_diagonal_decay(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *v,
                                                 comba_tensor *g, comba_tensor *a, comba_tensor *b,
                                                 comba_tensor *initial_state, comba_tensor *cu_seqlens,
                                                 comba_diagonal_decay_attributes attributes,
                                                 comba_tensor **final_state) {
  return COMBA_APPEND(graph, diagonal_decay, &attributes, final_state, q, k, v, g, a, b, initial_state, cu_seqlens);
}

/* What a memory descends while it reads (scan/inner_loss.c has the formulas): the loss of z, what it returns for a key, against
 * a target. Those from COMBA_LOSS_HUBER on have a threshold a token. A zero-filled struct is the square loss. */
typedef enum comba_loss {
  COMBA_LOSS_SQUARE,        /* 1/2 |e|^2, e = z - target */
  COMBA_LOSS_LAYER_NORM,    /* 1/2 |LayerNorm(z) - target|^2 (TTT) */
  COMBA_LOSS_POWER,         /* sum |e|^exponent, smoothed (Moneta) */
  COMBA_LOSS_HUBER,         /* Huber's of the length of e (Yaad) */
  COMBA_LOSS_HUBER_CHANNEL, /* Huber's of each channel of e */
  COMBA_LOSS_HUBER_SIGN,    /* square where e is shorter than the threshold, else threshold times the l1 loss */
} comba_loss;
typedef struct comba_inner_loss_attributes {
  comba_loss kind;
  double epsilon;   /* of the layer norm; 0 means 1e-6 */
  double exponent;  /* 0 means 3 */
  double sharpness; /* of tanh(sharpness e) in place of the sign; 0 means 10 */
  double smoothing; /* |e| = sqrt(e^2 + smoothing); 0 means 1e-6 */
} comba_inner_loss_attributes;

/* A matrix memory that descends an inner loss while it reads (docs/memory.md; TTT, Titans, MIRAS), for each head. W (R,V) has K
 * rows and with `bias` one more, for which keys and queries have a 1. The tokens of a chunk take their gradients at the memory
 * it starts with, M_0 = f(W_0), in one step each:
 *   n_t = d loss / dz at z = M_0^T k_t against v_t (v_t - k_t with `residual`)
 *   U_t = e^{momentum_t} U_{t-1} - rate_t k_t n_t^T  (without momentum: the second term alone)
 *   W_t = e^{retention_t} W_{t-1} + U_t
 *   o_t = f(W_t)^T q_t;  with token_offset, W_0 + w_t (W_t - W_0) in place of W_t, w_t = max(1/t + token_offset_t, 0), t from 1
 * and what its last token reads is where the next chunk starts. f is the identity, or (scan/memory_mapped.c)
 *   power    A / |A|_q^{q-2}       mirror   sgn(A) |A|^{q-1} / |A|_q^{q-2}
 *   softmax  total softmax(A), over all of A, each column (_COLUMN) or each row (_ROW)
 * q, k (B,T,H,K); v (B,T,H,V); rate, retention <= 0, momentum <= 0, threshold (B,T,H), all but rate optional; token_offset
 * (chunk); norm_weight, norm_bias (H,V) of the layer norm's loss; memory (H,K,V) and bias (H,V): the first W, 0 without.
 * initial_state (N,H,parts,R,V) holds two parts, three with momentum: zeros are the beginning; position (1) int32, optional: the
 * tokens before the first, which say where in a chunk it is. o (B,T,H,V); `final_state` (or NULL) receives the state. Momentum,
 * token_offset and bias need f = the identity. */
typedef enum comba_memory_map {
  COMBA_MEMORY_LINEAR,
  COMBA_MEMORY_POWER,
  COMBA_MEMORY_MIRROR,
  COMBA_MEMORY_SOFTMAX,
  COMBA_MEMORY_SOFTMAX_COLUMN,
  COMBA_MEMORY_SOFTMAX_ROW,
} comba_memory_map;
typedef struct comba_memory_attributes {
  int64_t chunk; /* tokens, at most 64; 0 means 16 */
  comba_inner_loss_attributes loss;
  bool residual;
  comba_memory_map map;
  double map_exponent; /* q, from 2; 0 means 4 */
  double map_total;    /* 0 means V sqrt(K): equal entries give a query of equal entries and length 1 back as ones */
} comba_memory_attributes;
typedef struct comba_memory_operands {
  comba_tensor *q, *k, *v, *rate, *retention, *momentum, *threshold, *token_offset, *norm_weight, *norm_bias, *memory,
      *bias, *initial_state, *position, *cu_seqlens;
} comba_memory_operands;
static inline comba_tensor *comba_memory(comba_graph *graph, const comba_memory_operands *x,
                                         comba_memory_attributes attributes, comba_tensor **final_state) {
  return COMBA_APPEND(graph, memory, &attributes, final_state, x->q, x->k, x->v, x->rate, x->retention, x->momentum,
                      x->threshold, x->token_offset, x->norm_weight, x->norm_bias, x->memory, x->bias, x->initial_state,
                      x->position, x->cu_seqlens);
}

/* A memory of two layers, f(x) = gelu(x w1 + b1) w2 + b2 (gelu with tanh), that descends an inner loss while it reads
 * (docs/memory_mlp.md; TTT-MLP, MIRAS), for each head. The tokens of a chunk take their gradients at the memory A_0 it starts with:
 *   loss_j of f(k_j), with the memory m(A_0), against v_j - k_j
 *   G_i = e^{retention_i} G_{i-1} + rate_i d loss_i / d memory,  e_i = e^{retention_i} e_{i-1};  G_0 = 0, e_0 = 1
 *   o_i = f(q_i) with the memory e_i m(A_0) - w_i G_i,  w_i = max(1/i + token_offset_i, 0), 1 without token_offset
 * and behind the last token A = e A_0 - w G is where the next chunk starts. The map m (comba_memory_map) is of w1 and w2, each by
 * itself; biases are their own. q, k, v (B,T,H,F); rate, retention <= 0, threshold (B,T,H), all but rate optional; token_offset
 * (chunk); norm_weight, norm_bias (H,F) of the layer norm's loss; w1 (H,F,M), b1 (H,M), w2 (H,M,F), b2 (H,F): the first A;
 * initial_state (N,H,S) optional, S = 2 (2 F M + M + F), one more with retention: zeros are the beginning; position (1) int32,
 * optional: the tokens before the first, which say where in a chunk it is; cu_seqlens (N+1) optional. o (B,T,H,F);
 * `final_state` (or NULL) receives (N,H,S), and may share memory with initial_state in a graph without backward. */
typedef struct comba_memory_mlp_attributes {
  int64_t chunk; /* tokens, at most 64; 0 means 16 */
  comba_inner_loss_attributes loss;
  bool normalize; /* of LN(f(k_j)), LN with norm_weight, norm_bias and loss.epsilon, in place of f(k_j) */
  comba_memory_map map;
  double map_exponent; /* 0 means 4 */
  double map_total;    /* 0: a matrix, column or row of equal entries gives a unit row of equal entries back as ones */
  comba_mode mode;     /* COMBA_MODE_RECURRENT: forward token by token; else a chunk at a time */
} comba_memory_mlp_attributes;
typedef struct comba_memory_mlp_operands {
  comba_tensor *q, *k, *v, *rate, *retention, *threshold, *token_offset, *norm_weight, *norm_bias, *w1, *b1, *w2, *b2;
  comba_tensor *initial_state, *position, *cu_seqlens;
} comba_memory_mlp_operands;
static inline comba_tensor *comba_memory_mlp(comba_graph *graph, const comba_memory_mlp_operands *x,
                                             comba_memory_mlp_attributes attributes, comba_tensor **final_state) {
  return COMBA_APPEND(graph, memory_mlp, &attributes, final_state, x->q, x->k, x->v, x->rate, x->retention,
                      x->threshold, x->token_offset, x->norm_weight, x->norm_bias, x->w1, x->b1, x->w2, x->b2,
                      x->initial_state, x->position, x->cu_seqlens);
}

/* Diagonal state space model (S4D, arXiv 2206.11893): u, y (B,T,d); for each channel M complex states,
 *   a = e^{dt A},  w = C (a - 1) / A,  dt = e^log_dt,  A = -e^log_rate + i frequency
 *   s_t = a s_{t-1} + u_t,  y_t = 2 Re sum_m w_m s_{t,m}
 * log_dt (d), log_rate, frequency (d,M), C (d,M,2): real and imaginary parts; initial_state (N,d,2,M) optional (zero if absent);
 * cu_seqlens (N+1) optional. `final_state` (or NULL) receives (N,d,2,M), and may share memory with initial_state in a graph
 * without backward. */
typedef struct comba_s4d_attributes {
  comba_mode mode; /* COMBA_MODE_AUTO: chunks from 64 tokens on */
} comba_s4d_attributes;
typedef struct comba_s4d_parameters {
  comba_tensor *log_dt, *log_rate, *frequency, *C;
} comba_s4d_parameters;
static inline comba_tensor *comba_s4d(comba_graph *graph, comba_tensor *u, comba_s4d_parameters x,
                                      comba_tensor *initial_state, comba_tensor *cu_seqlens, comba_mode mode,
                                      comba_tensor **final_state) {
  comba_s4d_attributes attributes = {mode};
  return COMBA_APPEND(graph, s4d, &attributes, final_state, u, x.log_dt, x.log_rate, x.frequency, x.C, initial_state,
                      cu_seqlens);
}

/* Softmax attention: q (B,T,H,D), k, v (B,T,HKV,D), H a multiple of HKV (query head h reads head h / (H/HKV)) -> (B,T,H,D).
 * causal: token t sees j <= t; window w > 0 with causal: only t - w < j. Sequences of cu_seqlens do not see each other. */
typedef struct comba_attention_attributes {
  double scale; /* 0 means D^(-1/2) */
  bool causal;
  int64_t window; /* 0: none */
} comba_attention_attributes;
static inline comba_tensor *comba_attention(comba_graph *graph, comba_tensor *q, comba_tensor *k, comba_tensor *v,
                                            comba_tensor *cu_seqlens, comba_attention_attributes attributes) {
  return COMBA_APPEND(graph, attention, &attributes, NULL, q, k, v, cu_seqlens);
}

/* Causal attention of T new tokens against a ring of keys and values that came before them. cache_k, cache_v
 * (B,capacity,HKV,D): token number n (from the start of the sequence) lies in row n modulo capacity; position (1) int32 is the
 * number of the first new token. A new token sees the cached tokens inside the window (all that the ring holds, without one)
 * and the new ones up to itself. `caches` receives the rings with the new tokens written in (the last `capacity` of them);
 * they may share memory with cache_k and cache_v. Not differentiable. */
static inline comba_tensor *comba_attention_decode(comba_graph *graph, comba_tensor *q, comba_tensor *k,
                                                   comba_tensor *v, comba_tensor *cache_k, comba_tensor *cache_v,
                                                   comba_tensor *position, comba_attention_attributes attributes,
                                                   comba_tensor *caches[2]) {
  return COMBA_APPEND(graph, attention_decode, &attributes, caches, q, k, v, cache_k, cache_v, position);
}

#endif
