/* Language models in double precision, one sequence at a time with plain loops: what surrounds a mixer, and the parts that
 * mixers share. Written from the formulas; nothing is shared with the library but the names of the weights.
 *
 * A mixer's oracle is a function from the normed x (T,d) to y (T,d) that reads weights by name and spells out its recurrence;
 * tests/test_recurrences.c says how one is added. Arrays that it allocates live until the sequence ends. */
#ifndef COMBA_TESTS_LANGUAGE_MODEL_H
#define COMBA_TESTS_LANGUAGE_MODEL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "comba.h"

typedef struct oracle_model oracle_model;
typedef struct oracle_weight oracle_weight;

/* All zero but `mix`: a Llama block, x += conv(norm(x)); x += mix(norm(x)); x += MLP(norm(x)) with the norms conv.norm, attn_norm and
 * mlp_norm, the first and the last where the layer has weights for it. */
typedef struct oracle_family {
  double *(*mix)(oracle_model *model, const double *x);
  void (*block)(oracle_model *model, double *x); /* another block: x (T,d) goes through the current layer in place */
  const char *root;                              /* of the names; NULL: "model" */
  const char *final_norm;                        /* below the root; NULL: "norm" */
  double norm_epsilon;                           /* 0: 1e-6 */
  const char *gates; /* part of the names of the weights behind decays and rates, for the test where they saturate */
} oracle_family;

/* Softmax attention: the mixer of a transformer, and of the layers whose bit is set in the models of other mixers. */
typedef struct oracle_attention {
  int64_t heads, kv_heads;
  int64_t window; /* 0: none */
  unsigned layers;
} oracle_attention;

struct oracle_model {
  const oracle_family *family;
  const void *config;                /* of the family's own */
  const oracle_attention *attention; /* NULL: none; may be set after oracle_model_create */
  int64_t hidden, layers, vocabulary;
  double norm_epsilon;
  /* while a sequence runs */
  int64_t length, layer; /* T; from 0 */
  double *carried;       /* what a layer leaves to the layers after it; NULL in the first */
  char prefix[128];      /* of the names below */
  oracle_weight *weights;
  size_t count;
  void **blocks; /* arrays to be freed when the sequence ends */
  size_t block_count;
};

/* Copies the weights of `model`. A weight that the formulas name and the model lacks ends the process. */
oracle_model *oracle_model_create(const oracle_family *family, const void *config, const comba_model *model);
void oracle_model_free(oracle_model *oracle);
/* The weight of that full name, to be read and changed. */
double *oracle_model_weight(oracle_model *oracle, const char *name);

/* logits (B,T,V) from ids (B,T); `loss` (or NULL) is the mean cross entropy of ids[t + 1] given those up to t. */
void oracle_model_forward(oracle_model *oracle, const int32_t *ids, int64_t batch, int64_t length, double *logits,
                          double *loss);

/* ---- For blocks and mixers ---------------------------------------------------------------------------------------- */

double *oracle_zeros(oracle_model *oracle, int64_t count);
/* NAME below the prefix of the current layer: in a mixer model.layers.N.attn. */
const double *oracle_weight_of(oracle_model *oracle, const char *name);
bool oracle_has(oracle_model *oracle, const char *name);
/* Entry `dimension` of its shape. */
int64_t oracle_extent(oracle_model *oracle, const char *name, int dimension);

/* y (T,out) = x (T,in) NAME.weight (out,in)^T, + NAME.bias if the model has one */
double *oracle_linear(oracle_model *oracle, const char *name, const double *x);
/* y_t = sum_j w_j x_{t - (taps - 1) + j} of NAME.weight (channels,1,taps), + NAME.bias if the model has one */
double *oracle_convolution(oracle_model *oracle, const char *name, const double *x);
/* Rows of `size`: x / sqrt(mean x^2 + epsilon), times NAME.weight if the model has one; with NAME.bias a LayerNorm. */
double *oracle_norm(oracle_model *oracle, const char *name, const double *x, int64_t rows, int64_t size,
                    double epsilon);
/* Halves of each head's D channels turned by t 10000^(-2j/D); x (T,heads,D) */
void oracle_rotate(oracle_model *oracle, double *x, int64_t heads, int64_t D);
/* y (T,d) by oracle->attention; q and k are normed where the model has weights for it, epsilon 1e-5 */
double *oracle_attend(oracle_model *oracle, const double *x);
/* x += branch(norm(x)), the norm NORM and the branch below PREFIX of the layer */
void oracle_add_branch(oracle_model *oracle, const char *norm, const char *prefix, double *x,
                       double *(*branch)(oracle_model *oracle, const double *x));
/* down(silu(gate x) * up x) */
double *oracle_mlp(oracle_model *oracle, const double *x);

static inline double oracle_sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

static inline double oracle_silu(double x) {
  return x * oracle_sigmoid(x);
}

static inline double oracle_softplus(double x) {
  return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

#endif
