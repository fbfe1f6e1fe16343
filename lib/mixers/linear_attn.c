/* linear_attn: linear attention (arXiv 2006.16236), with the feature maps of the literature.
 *
 *   q = f_q(W x), k = f_k(W x), optionally divided by their sums;  v = W x
 *   S_t = S_{t-1} + k_t v_t^T,  z_t = z_{t-1} + k_t
 *   o_t = s S_t^T q_t, or with norm_feature_map that divided by s z_t^T q_t;  s = 1 / sqrt(size of the features)
 *   y = W_o RMSNorm(o)
 *
 * Feature maps of a head's K channels, their weights shared by all heads:
 *   elementwise_product  (A_1 x + c_1) * (A_2 x + c_2)
 *   hedgehog             softmax(2 y, -2 y), y = A x + c                       (arXiv 2402.04347)
 *   t2r                  relu(A x)                                             (arXiv 2103.13076)
 *   dpfp                 products of relu(x), -relu(x) with themselves shifted, as fla has it
 *   dpfp_paper           of relu(x), relu(-x), as published                (arXiv 2102.11174)
 *   relu, elu            relu(x); elu(x) + 1
 *   identity */
#include "mixers/expanded_heads.h"
#include "mixers/projection.h"
#include "mixers/recurrence.h"

/* fla fixes these: */
enum { DPFP_ROLLS = 4 };
static const double SUM_EPSILON = 1e-4;
static const double NORMALIZER_EPSILON = 1e-10;

enum { ELEMENTWISE_PRODUCT, HEDGEHOG, T2R, DPFP, DPFP_PAPER, RELU, ELU, IDENTITY };

typedef struct config {
  comba_expanded_heads heads; /* first: shared functions take a pointer to it */
  int feature_map;
  bool tie_feature_map_qk, norm_q, norm_k, norm_feature_map, elementwise_affine;
  int64_t qkv_conv_size;
} config;

/* f (B,T,heads,F) of x (B,T,heads,K), its weights below NAME */
static comba_tensor *feature_map(comba_build *build, const char *name, int map, comba_tensor *x) {
  if (!x) return NULL;
  comba_graph *graph = build->graph;
  const int64_t K = x->shape.size[3];
  const size_t length = comba_build_enter(build, "%s", name);
  switch (map) {
  case ELEMENTWISE_PRODUCT: {
    comba_tensor *first = comba_build_linear(build, "layer1", x, K, true);
    x = comba_product(graph, first, comba_build_linear(build, "layer2", x, K, true));
    break;
  }
  case HEDGEHOG: x = comba_hedgehog(graph, comba_build_linear(build, "layer", x, K, true)); break;
  case T2R: x = comba_activation(graph, comba_build_linear(build, "layer", x, K, false), COMBA_RELU, 1); break;
  case DPFP:
  case DPFP_PAPER: x = comba_dpfp(graph, x, DPFP_ROLLS, map == DPFP); break;
  case RELU: x = comba_activation(graph, x, COMBA_RELU, 1); break;
  case ELU: x = comba_activation(graph, x, COMBA_ELU_PLUS_ONE, 1); break;
  default: break;
  }
  comba_build_leave(build, length);
  return x;
}

/* o / (s z^T q): the normaliser is the same recurrence with values of 1 */
static comba_tensor *normalize(comba_build *build, comba_tensor *q, comba_tensor *k, comba_tensor *o) {
  if (!k) return NULL;
  const comba_shape shape = COMBA_SHAPE(build->batch, build->length, k->shape.size[2], 1);
  comba_tensor *ones = comba_constant(build->graph, shape, 1);
  comba_tensor *sum =
      comba_build_scalar_decay(build, "normalizer", q, k, ones, NULL, (comba_scalar_decay_attributes){0});
  return comba_divide(build->graph, o, sum, NORMALIZER_EPSILON);
}

static comba_tensor *build_mixer(comba_build *build, const void *opaque, comba_tensor *x) {
  if (!x) return NULL;
  const config *c = opaque;
  comba_tensor *q, *k, *v;
  comba_build_expanded_heads(build, &c->heads, x, c->qkv_conv_size, &q, &k, &v);
  q = feature_map(build, "feature_map_q", c->feature_map, q);
  k = feature_map(build, c->tie_feature_map_qk ? "feature_map_q" : "feature_map_k", c->feature_map, k);
  if (c->norm_q) q = comba_sum_norm(build->graph, q, SUM_EPSILON);
  if (c->norm_k) k = comba_sum_norm(build->graph, k, SUM_EPSILON);
  comba_tensor *o = comba_build_scalar_decay(build, "recurrent", q, k, v, NULL, (comba_scalar_decay_attributes){0});
  if (c->norm_feature_map) o = normalize(build, q, k, o);
  return comba_build_head_output(build, c->elementwise_affine ? "norm.weight" : NULL, o, NULL, COMBA_SILU,
                                 x->shape.size[2]);
}

static const char *const feature_maps[] = {
    "elementwise_product", "hedgehog", "t2r", "dpfp", "dpfp_paper", "relu", "elu", "identity", NULL};

#define FIELD(member) offsetof(config, member)
static const comba_field fields[] = {
    COMBA_EXPANDED_HEADS_FIELDS(config, heads, 4, 1, 1),
    {"feature_map", COMBA_FIELD_CHOICE, FIELD(feature_map), .default_value = ELEMENTWISE_PRODUCT,
     .choices = feature_maps, .help = "of q and k, by head; \"elu\" is elu(x) + 1"},
    {"tie_feature_map_qk", COMBA_FIELD_BOOLEAN, FIELD(tie_feature_map_qk), .default_value = 0,
     .help = "k goes through the feature map of q, feature_map_q"},
    {"norm_q", COMBA_FIELD_BOOLEAN, FIELD(norm_q), .default_value = 0, .help = "q is divided by its sum + 1e-4"},
    {"norm_k", COMBA_FIELD_BOOLEAN, FIELD(norm_k), .default_value = 0, .help = "k is divided by its sum + 1e-4"},
    {"norm_feature_map", COMBA_FIELD_BOOLEAN, FIELD(norm_feature_map), .default_value = 0,
     .help = "o is divided by what q reads from the sum of the keys, as softmax attention does"},
    COMBA_AFFINE_FIELD(config, elementwise_affine),
    {"qkv_conv_size", COMBA_FIELD_INTEGER, FIELD(qkv_conv_size), .default_value = 0, .minimum = 1, .maximum = 64,
     .nullable = true, .null_value = 0,
     .help = "taps of a causal depthwise convolution and silu of q, k and v before the maps; of our own. null: none"},
    {0}};

static comba_status check(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const comba_status status = comba_expanded_heads_check(c, hidden_size);
  const int64_t K = comba_key_size(&c->heads, hidden_size);
  if (status != COMBA_OK || (c->feature_map != DPFP && c->feature_map != DPFP_PAPER) || DPFP_ROLLS <= 2 * K)
    return status;
  return comba_fail(COMBA_ERROR_ARGUMENT, "hidden_size * expand_k / num_heads is %lld, expected at least %d with dpfp",
                    (long long)K, DPFP_ROLLS / 2);
}

/* Features of one head's K channels. */
static int64_t features(int map, int64_t K) {
  return map == HEDGEHOG ? 2 * K : (map == DPFP || map == DPFP_PAPER ? 2 * DPFP_ROLLS * K : K);
}

static comba_mixer_cost cost(const void *opaque, int64_t hidden_size) {
  const config *c = opaque;
  const int64_t F = features(c->feature_map, comba_key_size(&c->heads, hidden_size));
  const int64_t columns = comba_value_size(&c->heads, hidden_size) + c->norm_feature_map;
  const double state = (double)(c->heads.num_heads * F * columns);
  return (comba_mixer_cost){.state_elements = state, .flops_per_token = 5 * state};
}

const comba_mixer_row comba_mixer_linear_attn = {
    .model_type = "linear_attn",
    .recurrence = "S_t = S_{t-1} + v_t k_t^T;  o_t = S_t q_t",
    .source = "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention, arXiv 2006.16236",
    .fields = fields,
    .config_size = sizeof(config),
    .check = check,
    .build = build_mixer,
    .cost = cost,
};
