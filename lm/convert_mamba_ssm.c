/* mamba_ssm: models of the mamba_ssm package with Mamba2 layers. */
#include "convert.h"

static const comba_convert_field fields[] = {{"d_model", "hidden_size", NULL},
                                             {"n_layer", "num_hidden_layers", NULL},
                                             {"vocab_size", "vocab_size", NULL},
                                             {"tie_embeddings", "tie_word_embeddings", "true"},
                                             {"ssm_cfg.d_state", "state_size", "128"},
                                             {"ssm_cfg.d_conv", "conv_kernel", "4"},
                                             {"ssm_cfg.expand", "expand", "2"},
                                             {"ssm_cfg.headdim", "head_dim", "64"},
                                             {"ssm_cfg.ngroups", "n_groups", "1"},
                                             {"ssm_cfg.D_has_hdim", "D_has_hdim", "false"},
                                             {"ssm_cfg.rmsnorm", "rmsnorm", "true"},
                                             {"ssm_cfg.norm_before_gate", "norm_before_gate", "false"},
                                             {"ssm_cfg.dt_limit", "dt_limit", "[0.0, Infinity]"},
                                             {"ssm_cfg.bias", "use_bias", "false"},
                                             {"ssm_cfg.conv_bias", "use_conv_bias", "true"},
                                             {"ssm_cfg.chunk_size", "chunk_size", "256"},
                                             {"ssm_cfg.layer", NULL, "\"Mamba2\""},
                                             {"ssm_cfg.d_ssm", NULL, "null"},
                                             {"rms_norm", NULL, "true"},
                                             {"d_intermediate", NULL, "0"},
                                             {"attn_layer_idx", NULL, "[]"},
                                             {"attn_cfg", NULL, "{}"},
                                             {"residual_in_fp32", "residual_in_fp32", "true"},
                                             {"fused_add_norm", "fuse_norm", "true"},
                                             {"pad_vocab_size_multiple", "", "1"},
                                             {0}};

#define LAYER "backbone.layers.*."
static const comba_convert_tensor tensors[] = {
    {"backbone.embedding.weight", "backbone.embeddings.weight", COMBA_CONVERT_SAME},
    {LAYER "norm.weight", LAYER "norm.weight", COMBA_CONVERT_SAME},
    {LAYER "mixer.in_proj.weight", LAYER "mixer.in_proj.weight", COMBA_CONVERT_SAME},
    {LAYER "mixer.in_proj.bias", LAYER "mixer.in_proj.bias", COMBA_CONVERT_SAME},
    {LAYER "mixer.conv1d.weight", LAYER "mixer.conv1d.weight", COMBA_CONVERT_SAME},
    {LAYER "mixer.conv1d.bias", LAYER "mixer.conv1d.bias", COMBA_CONVERT_SAME},
    {LAYER "mixer.dt_bias", LAYER "mixer.dt_bias", COMBA_CONVERT_SAME},
    {LAYER "mixer.A_log", LAYER "mixer.A_log", COMBA_CONVERT_SAME},
    {LAYER "mixer.D", LAYER "mixer.D", COMBA_CONVERT_SAME},
    {LAYER "mixer.norm.weight", LAYER "mixer.norm.weight", COMBA_CONVERT_SAME},
    {LAYER "mixer.out_proj.weight", LAYER "mixer.out_proj.weight", COMBA_CONVERT_SAME},
    {LAYER "mixer.out_proj.bias", LAYER "mixer.out_proj.bias", COMBA_CONVERT_SAME},
    {"backbone.norm_f.weight", "backbone.norm_f.weight", COMBA_CONVERT_SAME},
    {"lm_head.weight", "lm_head.weight", COMBA_CONVERT_SAME},
    {0}};

/* Without ssm_cfg.layer the layers are those of the first Mamba. The package rounds the vocabulary up when it makes the
 * embeddings; vocab_size is that of the tokenizer. */
static comba_status import(json_t *ours, const json_t *foreign, const comba_safetensors *file) {
  if (!json_object_get(json_object_get(foreign, "ssm_cfg"), "layer"))
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: its config has no ssm_cfg.layer, expected \"Mamba2\"",
                      comba_safetensors_path(file));
  const comba_stored_tensor *embeddings = NULL;
  const comba_status status = comba_safetensors_get(file, "backbone.embedding.weight", &embeddings);
  if (status != COMBA_OK) return status;
  if (embeddings->rank != 2)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected 2", embeddings->path, embeddings->name,
                      embeddings->rank);
  return json_object_set_new(ours, "vocab_size", json_integer(embeddings->shape[0])) == 0
             ? COMBA_OK
             : comba_fail_memory(sizeof *embeddings, "vocab_size");
}

const comba_convert_format comba_convert_mamba_ssm = {
    .name = "mamba_ssm",
    .config = "{\"model_type\": \"mamba2\", \"norm_eps\": 1e-05, \"pad_token_id\": null, \"bos_token_id\": 0, "
              "\"eos_token_id\": 0}",
    .fields = fields,
    .tensors = tensors,
    .tied_head = "lm_head.weight",
    .import = import,
};
