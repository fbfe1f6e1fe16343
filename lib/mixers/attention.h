/* Softmax attention as a token mixer: the `transformer` mixer, and the hybrid layers of every other model. */
#ifndef COMBA_MIXERS_ATTENTION_H
#define COMBA_MIXERS_ATTENTION_H

#include "mixers/mixer.h"

typedef struct comba_attention_config {
  int64_t num_heads, num_kv_heads; /* num_kv_heads 0: num_heads */
  bool qkv_bias, qk_norm;
  int64_t window_size; /* 0: none */
  double rope_theta;
  bool use_rope;
  int64_t qkv_conv_size; /* taps of a short convolution of q, k and v; 0: none */
} comba_attention_config;

/* x (B,T,d) -> (B,T,d), head size d / num_heads. In a decoder the keys and values of the last tokens are its state: those of
 * the window, or of the decoder's capacity. */
comba_tensor *comba_build_attention(comba_build *build, const comba_attention_config *config, comba_tensor *x);

#endif
