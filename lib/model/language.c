/* Language models: x = Emb[ids]; each layer x += mixer(RMSNorm(x)), x += MLP(RMSNorm(x));
 * logits = RMSNorm(x) W_head^T. Each residual add is fused into the norm that follows it. A mixer may bring another norm and MLP
 * (comba_block). */
#include "mixers/attention.h"
#include "mixers/mixer.h"
#include "mixers/projection.h"
#include "model/model_private.h"
#include "ops/ops.h"

bool comba_layer_attends(const comba_config *config, int64_t layer) {
  return config->hybrid_of_layer[layer] >= 0;
}

comba_tensor *comba_build_layer_mixer(comba_build *build, int64_t layer, comba_tensor *x) {
  const comba_config *config = build->config;
  const bool vision = config->kind == COMBA_KIND_VISION; /* fla-zoo has one name for all */
  const size_t length = comba_build_enter(build, "%s", vision ? "attn" : comba_mixer_names(config->mixer)->mixer);
  build->layer = layer;
  comba_tensor *y;
  if (comba_layer_attends(config, layer)) {
    const comba_hybrid *hybrid = &config->hybrid[config->hybrid_of_layer[layer]];
    const comba_attention_config attention = {
        .num_heads = hybrid->num_heads,
        .num_kv_heads = hybrid->num_kv_heads,
        .qkv_bias = hybrid->qkv_bias && config->kind == COMBA_KIND_LANGUAGE, /* fla-zoo ignores it */
        .window_size = hybrid->window_size,
        .rope_theta = hybrid->rope_theta,
        .use_rope = hybrid->use_rope,
    };
    y = comba_build_attention(build, &attention, x);
  } else {
    y = config->mixer->build(build, config->mixer_config, x);
  }
  comba_build_leave(build, length);
  return y;
}

/* The residual stream before a norm: x, and what the last branch adds to it (NULL at the start). */
typedef struct stream {
  comba_tensor *x, *branch;
} stream;

static comba_tensor *norm(comba_build *build, const char *name, stream *s) {
  const comba_block *block = build->config->mixer->block;
  if (block) {
    if (s->branch) *s = (stream){comba_add(build->graph, s->x, s->branch), NULL};
    return block->norm(build, build->config->mixer_config, name, s->x);
  }
  const size_t length = comba_build_enter(build, "%s", name);
  comba_tensor *weight = comba_build_vector(build, "weight", build->config->hidden_size, 1);
  comba_build_leave(build, length);
  if (!s->branch) return comba_rms_norm(build->graph, s->x, NULL, weight, build->norm_eps, NULL);
  comba_tensor *sum = NULL;
  comba_tensor *y = comba_rms_norm(build->graph, s->branch, s->x, weight, build->norm_eps, &sum);
  s->x = sum;
  s->branch = NULL;
  return y;
}

static comba_tensor *mlp(comba_build *build, comba_tensor *x) {
  const comba_block *block = build->config->mixer->block;
  if (block) return block->mlp(build, build->config->mixer_config, x);
  const int64_t d = build->config->hidden_size, m = comba_config_intermediate_size(build->config);
  const size_t length = comba_build_enter(build, "mlp");
  comba_tensor *gate = comba_build_linear(build, "gate_proj", x, m, false);
  comba_tensor *up = comba_build_linear(build, "up_proj", x, m, false);
  comba_tensor *y = comba_swiglu(build->graph, gate, up);
  y = comba_linear(build->graph, y, comba_build_residual_weight(build, "down_proj.weight", COMBA_SHAPE(d, m)), NULL);
  comba_build_leave(build, length);
  return y;
}

static void build_front(comba_build *build, stream *s) {
  const comba_mixer_row *mixer = build->config->mixer;
  const int64_t taps = mixer->front_taps ? mixer->front_taps(build->config->mixer_config) : 0;
  if (!taps) return;
  const size_t length = comba_build_enter(build, "conv");
  s->branch = comba_build_convolution(build, "conv", norm(build, "norm", s), taps, false, true);
  comba_build_leave(build, length);
}

static void build_layer(comba_build *build, int64_t layer, stream *s) {
  const size_t length = comba_build_enter(build, "layers.%lld", (long long)layer);
  comba_graph_begin_block(build->graph);
  const comba_block *block = build->config->mixer->block;
  if (block && layer == 0) s->x = block->enter(build, build->config->mixer_config, s->x);
  build_front(build, s);
  s->branch =
      comba_build_layer_mixer(build, layer, norm(build, comba_mixer_names(build->config->mixer)->mixer_norm, s));
  if (build->config->use_mlp) s->branch = mlp(build, norm(build, block ? block->mlp_norm : "mlp_norm", s));
  comba_graph_end_block(build->graph);
  comba_build_leave(build, length);
}

void comba_language_build(comba_build *build, comba_plan *plan) {
  const comba_config *config = build->config;
  comba_graph *graph = build->graph;
  const int64_t B = build->batch, T = build->length, d = config->hidden_size, V = config->vocab_size;
  const comba_block *block = config->mixer->block;
  const comba_initial initial = {COMBA_DRAW_NORMAL, config->initializer_range};

  plan->input_ids = comba_graph_input(graph, "input_ids", COMBA_INDEX, COMBA_SHAPE(B, T));
  if (plan->sequences)
    plan->cu_seqlens = build->cu_seqlens =
        comba_graph_input(graph, "cu_seqlens", COMBA_INDEX, COMBA_SHAPE(plan->sequences + 1));
  if (build->states)
    plan->position = build->position = comba_graph_input(graph, "position", COMBA_INDEX, COMBA_SHAPE(1));

  const comba_names *names = comba_mixer_names(config->mixer);
  size_t length = comba_build_enter(build, "%s", names->model);
  const int64_t padding_plus_one = config->mixer->trains_padding ? 0 : config->pad_token_id + 1;
  comba_tensor *embeddings = comba_build_parameter(build, "embeddings.weight", COMBA_SHAPE(V, d), COMBA_ROLE_EMBEDDING,
                                                   block ? block->embeddings : initial);
  /* What rounding takes from the embeddings is the first branch: so the first norm, which adds in float32, reads them as they are, and
   * errors that all layers pass on begin with what the norm itself rounds. */
  const comba_embedding_attributes attributes = {padding_plus_one, !block && comba_graph_is_narrow(graph)};
  stream s = {NULL, NULL};
  s.x = comba_embedding(graph, plan->input_ids, embeddings, attributes, &s.branch);
  for (int64_t layer = 0; layer < config->num_hidden_layers; layer++) build_layer(build, layer, &s);
  comba_tensor *y = norm(build, names->final_norm, &s);
  comba_build_leave(build, length);

  comba_tensor *head = config->tie_word_embeddings
                           ? embeddings
                           : comba_build_parameter(build, "lm_head.weight", COMBA_SHAPE(V, d), COMBA_ROLE_MATRIX,
                                                   block ? block->head(V, d) : initial);
  if (build->states && T > 1) y = comba_last_token(graph, y);
  plan->logits = comba_linear(graph, y, head, NULL);
  if (!build->training) comba_graph_keep(graph, plan->logits); /* else up to backward, which writes over them */
  if (build->states) return;
  plan->targets = comba_graph_input(graph, "targets", COMBA_INDEX, COMBA_SHAPE(B, T));
  const comba_cross_entropy_attributes loss = {.l2_warp = config->use_l2warp ? 1e-4 : 0};
  plan->loss = comba_cross_entropy(graph, plan->logits, plan->targets, NULL, loss, &plan->row_losses);
  comba_graph_keep(graph, plan->loss);
  comba_graph_keep(graph, plan->row_losses);
  if (build->training) comba_graph_seed(graph, plan->loss);
}
