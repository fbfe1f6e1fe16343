/* Vision models, interchangeable with fla-zoo: patches + position embeddings; blocks
 * x += merge(mixer(scan(LN(x)))), x += MLP(LN(x)); a final norm, pooling, a classifier. Every departure from that base
 * (tokenizer, pooling, block, drop path, averaging) is a config field that is off by default. */
#include "mixers/attention.h"
#include "model/model_private.h"
#include "ops/ops.h"

enum { BLOCK_VIT, BLOCK_LLAMA };

typedef struct grid {
  int64_t height, width;
} grid;

static comba_tensor *norm(comba_build *build, const char *name, comba_tensor *x) {
  const comba_config *config = build->config;
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_vector(build, "weight", config->hidden_size, 1), *y;
  if (config->block == BLOCK_LLAMA)
    y = comba_rms_norm(build->graph, x, NULL, weight, config->layer_norm_eps, NULL);
  else
    y = comba_layer_norm(build->graph, x, weight, comba_build_vector(build, "bias", config->hidden_size, 0),
                         config->layer_norm_eps);
  comba_build_leave(build, length);
  return y;
}

/* (B,C,H,W) -> (B,N,d): n times {3x3 convolution, ReLU, 3x3 max pool of stride 2}. ReLU and maximum commute: after the pool
 * ReLU has a quarter of the pixels to go through. */
static comba_tensor *tokenize(comba_build *build, comba_tensor *x) {
  const comba_config *config = build->config;
  int64_t channels = config->num_channels;
  for (int64_t i = 0; i < config->tokenizer_convolutions; i++) {
    const int64_t outputs = i + 1 == config->tokenizer_convolutions ? config->hidden_size : config->tokenizer_width;
    const size_t length = comba_build_enter(build, "tokenizer.%lld", (long long)i);
    /* kaiming-normal for ReLU, as CCT has it */
    comba_tensor *weight =
        comba_build_parameter(build, "weight", COMBA_SHAPE(outputs, channels, 3, 3), COMBA_ROLE_CONVOLUTION,
                              (comba_initial){COMBA_DRAW_NORMAL, sqrt(2 / (9.0 * (double)channels))});
    x = comba_convolution(build->graph, x, weight, NULL, 1, 1);
    x = comba_max_pool(build->graph, x, 3, 2, 1);
    x = comba_activation(build->graph, x, COMBA_RELU, 1);
    comba_build_leave(build, length);
    channels = outputs;
  }
  return comba_channels_to_tokens(build->graph, x);
}

/* The grid of tokens of a square picture. */
static grid token_grid(const comba_config *config, int64_t side) {
  if (!config->tokenizer_convolutions) return (grid){side / config->patch_size, side / config->patch_size};
  for (int64_t i = 0; i < config->tokenizer_convolutions; i++) side = (side - 1) / 2 + 1;
  return (grid){side, side};
}

static comba_tensor *embed(comba_build *build, comba_tensor *pixels, grid g) {
  const comba_config *config = build->config;
  comba_graph *graph = build->graph;
  const int64_t d = config->hidden_size, p = config->patch_size;
  const grid table_grid = token_grid(config, config->image_size);
  const size_t length = comba_build_enter(build, "embeddings");
  comba_tensor *x;
  if (config->tokenizer_convolutions) {
    x = tokenize(build, pixels);
  } else {
    const size_t inner = comba_build_enter(build, "patch_embeddings.projection");
    comba_tensor *weight = comba_build_weight(build, "weight", COMBA_SHAPE(d, config->num_channels, p, p));
    comba_tensor *bias = comba_build_vector(build, "bias", d, 0);
    comba_build_leave(build, inner);
    x = comba_patch_embedding(graph, pixels, weight, bias);
  }
  comba_tensor *table =
      comba_build_parameter(build, "position_embeddings", COMBA_SHAPE(1, table_grid.height * table_grid.width, d),
                            COMBA_ROLE_POSITION, build->matrix_initial);
  x = comba_position_embedding(
      graph, x, table, (comba_position_embedding_attributes){table_grid.height, table_grid.width, g.height, g.width});
  comba_build_leave(build, length);
  return build->training ? comba_dropout(graph, x, config->hidden_dropout_prob) : x;
}

/* merge(y), the sum over the orders. Where y = o W^T, the sum comes first: W then has one row a token to multiply. */
static comba_tensor *merge_orders(comba_build *build, comba_tensor *y, comba_scan merge, grid g) {
  comba_graph *graph = build->graph;
  const bool average = build->config->scan_average;
  comba_tensor *const *product = comba_graph_operands(graph, y, COMBA_OP_linear);
  if (!product || product[2]) return comba_scan_merge(graph, y, merge, g.height, g.width, average);
  return comba_linear(graph, comba_scan_merge(graph, product[0], merge, g.height, g.width, average), product[1], NULL);
}

/* merge(mixer(scan(x))). Softmax attention sees every token at once, so it runs once, in the order that x has. */
static comba_tensor *mix(comba_build *build, int64_t layer, comba_tensor *x, grid g) {
  const comba_config *config = build->config;
  const int type = build->training || config->test_scan_type < 0 ? config->train_scan_type : config->test_scan_type;
  const bool attends = comba_layer_attends(config, layer) || config->mixer == &comba_mixer_transformer;
  comba_scan order = COMBA_SCAN_FLIP, merge = COMBA_SCAN_BI;
  int64_t directions = 1;
  bool scans = !attends, merges = false;
  switch ((comba_scan_type)type) {
  case COMBA_SCAN_TYPE_FLIP: order = COMBA_SCAN_FLIP; break;
  case COMBA_SCAN_TYPE_RANDOM: order = COMBA_SCAN_RANDOM; break;
  case COMBA_SCAN_TYPE_BI:
  case COMBA_SCAN_TYPE_BI_ALIGNED:
    order = COMBA_SCAN_BI;
    merge = type == COMBA_SCAN_TYPE_BI ? COMBA_SCAN_BI : COMBA_SCAN_BI_ALIGNED;
    directions = 2;
    merges = true;
    break;
  case COMBA_SCAN_TYPE_CROSS:
    order = merge = COMBA_SCAN_CROSS;
    directions = 4;
    merges = true;
    break;
  default: scans = false; break; /* uni-scan; switch-scan turns the tokens between layers instead */
  }
  const int64_t batch = build->batch;
  if (scans) {
    comba_tensor *ordered = comba_scan_order(build->graph, x, order, g.height, g.width);
    if (merges) build->scanned = (comba_scanned){x, ordered, order, g.height, g.width};
    build->batch = batch * directions;
    x = ordered;
  }
  x = comba_build_layer_mixer(build, layer, x);
  build->batch = batch;
  build->scanned = (comba_scanned){0};
  return scans && merges ? merge_orders(build, x, merge, g) : x;
}

static comba_tensor *mlp(comba_build *build, comba_tensor *x) {
  const comba_config *config = build->config;
  comba_graph *graph = build->graph;
  const int64_t d = config->hidden_size;
  const size_t length = comba_build_enter(build, "channel_mixer");
  comba_tensor *y;
  if (config->block == BLOCK_LLAMA) {
    const int64_t m = config->channel_mixer_dim ? config->channel_mixer_dim : (8 * d / 3 + 63) / 64 * 64;
    comba_tensor *gate = comba_build_linear(build, "gate_proj", x, m, false);
    y = comba_swiglu(graph, gate, comba_build_linear(build, "up_proj", x, m, false));
    y = comba_linear(graph, y, comba_build_residual_weight(build, "down_proj.weight", COMBA_SHAPE(d, m)), NULL);
  } else {
    const int64_t m = config->channel_mixer_dim ? config->channel_mixer_dim : 4 * d;
    y = comba_activation(graph, comba_build_linear(build, "net.0", x, m, true), COMBA_GELU, 1);
    y = comba_build_linear(build, "net.2", y, d, true);
  }
  comba_build_leave(build, length);
  return build->training ? comba_dropout(graph, y, config->hidden_dropout_prob) : y;
}

static comba_tensor *residual(comba_build *build, comba_tensor *x, comba_tensor *branch, double drop_path) {
  if (build->training) branch = comba_drop_path(build->graph, branch, drop_path);
  return comba_add(build->graph, x, branch);
}

static comba_tensor *pool(comba_build *build, comba_tensor *x) {
  comba_graph *graph = build->graph;
  switch ((comba_pooling)build->config->pooling) {
  case COMBA_POOLING_SEQUENCE:
    return comba_sequence_pool(graph, x, comba_build_linear(build, "attention_pool", x, 1, true));
  case COMBA_POOLING_MEAN: return comba_mean_pool(graph, x);
  case COMBA_POOLING_TANH: break;
  }
  x = comba_mean_pool(graph, x);
  return comba_activation(graph, comba_build_linear(build, "pooler.dense", x, build->config->hidden_size, true),
                          COMBA_TANH, 1);
}

void comba_vision_build(comba_build *build, comba_plan *plan) {
  const comba_config *config = build->config;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, layers = config->num_hidden_layers;
  plan->pixel_values = comba_graph_input(graph, "pixel_values", COMBA_ACTIVATION,
                                         COMBA_SHAPE(B, config->num_channels, plan->length, plan->length));

  const size_t length = comba_build_enter(build, "backbone");
  const grid g = token_grid(config, plan->length);
  comba_tensor *x = embed(build, plan->pixel_values, g);
  build->length = g.height * g.width;
  const bool switches =
      (build->training || config->test_scan_type < 0 ? config->train_scan_type : config->test_scan_type) ==
      COMBA_SCAN_TYPE_SWITCH;
  for (int64_t layer = 0; layer < layers; layer++) {
    const double drop_path = layers > 1 ? config->drop_path_rate * (double)layer / (double)(layers - 1) : 0;
    const size_t inner = comba_build_enter(build, "encoder.blocks.%lld", (long long)layer);
    comba_graph_begin_block(graph);
    x = residual(build, x, mix(build, layer, norm(build, "ln_1", x), g), drop_path);
    x = residual(build, x, mlp(build, norm(build, "ln_2", x)), drop_path);
    comba_build_leave(build, inner);
    if (switches) {
      const comba_scan order = layer % 2 ? COMBA_SCAN_TRANSPOSE : COMBA_SCAN_FLIP;
      x = comba_scan_order(graph, x, order, g.height, g.width);
      if (build->first_value)
        build->first_value = comba_scan_order(graph, build->first_value, order, g.height, g.width);
    }
    comba_graph_end_block(graph);
  }
  x = pool(build, norm(build, "layernorm", x));
  comba_build_leave(build, length);

  plan->logits = comba_build_linear(build, "classifier", x, config->num_classes, true);
  plan->targets = comba_graph_input(graph, "labels", COMBA_INDEX, COMBA_SHAPE(B));
  comba_tensor *weights = NULL;
  if (build->training && build->class_weights)
    weights = comba_graph_external(graph, "class_weights", COMBA_STATE, COMBA_SHAPE(config->num_classes),
                                   build->class_weights);
  const comba_cross_entropy_attributes attributes = {.label_smoothing = build->training ? build->label_smoothing : 0};
  plan->loss = comba_cross_entropy(graph, plan->logits, plan->targets, weights, attributes, &plan->row_losses);
  if (!build->training) comba_graph_keep(graph, plan->logits); /* else up to backward, which writes over them */
  comba_graph_keep(graph, plan->loss);
  comba_graph_keep(graph, plan->row_losses);
  if (build->training) comba_graph_seed(graph, plan->loss);
}
