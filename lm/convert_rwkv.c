/* rwkv: RWKV-7 as its authors release it: one weight file, whose shapes say all that there is to a config. */
#include <stdio.h>
#include <string.h>

#include "convert.h"

enum { HEAD_SIZE = 64 }; /* the epsilon of the released GroupNorm is 64e-5, here K norm_eps */

#define THEIRS "blocks.*."
#define OURS "model.layers.*."
#define NORM(theirs, ours)                                                                                             \
  {theirs ".weight", ours ".weight", COMBA_CONVERT_SAME}, {                                                            \
    theirs ".bias", ours ".bias", COMBA_CONVERT_SAME                                                                   \
  }
#define MIX(letter)                                                                                                    \
  { THEIRS "att.x_" letter, OURS "attn.x_" letter, COMBA_CONVERT_SAME }
#define VECTOR(theirs, ours)                                                                                           \
  { THEIRS theirs, OURS ours, COMBA_CONVERT_LEADING_ONES }
#define LOW_RANK(letter)                                                                                               \
  {THEIRS "att." letter "1", OURS "attn." letter "_lora.lora.0.weight", COMBA_CONVERT_TRANSPOSED}, {                   \
    THEIRS "att." letter "2", OURS "attn." letter "_lora.lora.2.weight", COMBA_CONVERT_TRANSPOSED                      \
  }
#define BIAS(letter) VECTOR("att." letter "0", "attn." letter "_lora.lora.2.bias")
#define MATRIX(theirs, ours)                                                                                           \
  { THEIRS theirs ".weight", OURS ours ".weight", COMBA_CONVERT_SAME }

static const comba_convert_field fields[] = {{0}};

static const comba_convert_tensor tensors[] = {
    {"emb.weight", "model.embeddings.weight", COMBA_CONVERT_SAME},
    /* the first layer has no other value to mix in: these are drawn and never used */
    {"blocks.0.att.v0", NULL, COMBA_CONVERT_SAME},
    {"blocks.0.att.v1", NULL, COMBA_CONVERT_SAME},
    {"blocks.0.att.v2", NULL, COMBA_CONVERT_SAME},
    NORM(THEIRS "ln0", OURS "pre_norm"),
    NORM(THEIRS "ln1", OURS "attn_norm"),
    NORM(THEIRS "ln2", OURS "ffn_norm"),
    MIX("r"),
    MIX("w"),
    MIX("k"),
    MIX("v"),
    MIX("a"),
    MIX("g"),
    BIAS("w"),
    BIAS("a"),
    BIAS("v"),
    LOW_RANK("w"),
    LOW_RANK("a"),
    LOW_RANK("v"),
    LOW_RANK("g"),
    VECTOR("att.k_k", "attn.k_k"),
    VECTOR("att.k_a", "attn.k_a"),
    {THEIRS "att.r_k", OURS "attn.r_k", COMBA_CONVERT_SAME},
    MATRIX("att.receptance", "attn.r_proj"),
    MATRIX("att.key", "attn.k_proj"),
    MATRIX("att.value", "attn.v_proj"),
    MATRIX("att.output", "attn.o_proj"),
    NORM(THEIRS "att.ln_x", OURS "attn.g_norm"),
    VECTOR("ffn.x_k", "ffn.x_k"),
    MATRIX("ffn.key", "ffn.key"),
    MATRIX("ffn.value", "ffn.value"),
    NORM("ln_out", "model.norm"),
    {"head.weight", "lm_head.weight", COMBA_CONVERT_SAME},
    {0}};

/* Fields that a matrix's shape says. */
static const struct {
  const char *tensor;
  int dimension;
  const char *field;
} sizes[] = {
    {"emb.weight", 0, "vocab_size"},
    {"emb.weight", 1, "hidden_size"},
    {"blocks.0.ffn.key.weight", 0, "intermediate_size"},
    {"blocks.0.att.value.weight", 0, "value_dim"},
    {"blocks.0.att.r_k", 1, "head_dim"},
    {"blocks.0.att.w1", 1, "decay_low_rank_dim"},
    {"blocks.0.att.a1", 1, "a_low_rank_dim"},
    {"blocks.0.att.g1", 1, "gate_low_rank_dim"},
    {"blocks.1.att.v1", 1, "v_low_rank_dim"},
};

static comba_status set_size(json_t *ours, const char *field, int64_t size) {
  return json_object_set_new(ours, field, json_integer(size)) == 0 ? COMBA_OK : comba_fail_memory(sizeof size, field);
}

static comba_status import(json_t *ours, const json_t *foreign, const comba_safetensors *file) {
  (void)foreign;
  comba_status status = COMBA_OK;
  int64_t layers = 0;
  for (char name[64];; layers++) {
    snprintf(name, sizeof name, "blocks.%d.ffn.key.weight", (int)layers);
    if (!comba_safetensors_find(file, name)) break;
  }
  COMBA_TRY(set_size(ours, "num_hidden_layers", layers));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const comba_stored_tensor *tensor = NULL;
    if (layers == 1 && !strncmp(sizes[i].tensor, "blocks.1.", 9)) continue;
    COMBA_TRY(comba_safetensors_get(file, sizes[i].tensor, &tensor));
    if (tensor->rank != 2)
      COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: tensor '%s' has rank %d, expected 2", tensor->path, tensor->name,
                           tensor->rank));
    COMBA_TRY(set_size(ours, sizes[i].field, tensor->shape[sizes[i].dimension]));
  }
  const json_int_t head_size = json_integer_value(json_object_get(ours, "head_dim"));
  if (head_size != HEAD_SIZE)
    COMBA_TRY(comba_fail(COMBA_ERROR_UNSUPPORTED, "%s: tensor 'blocks.0.att.r_k' has heads of %lld, expected %d",
                         comba_safetensors_path(file), (long long)head_size, HEAD_SIZE));
  COMBA_TRY(set_size(ours, "bos_token_id", 0)); /* the end of a text, in the released tokenizer */
  COMBA_TRY(set_size(ours, "eos_token_id", 0));

cleanup:
  return status;
}

const comba_convert_format comba_convert_rwkv = {
    .name = "rwkv",
    .config = "{\"model_type\": \"rwkv7\", \"head_dim\": 64, \"norm_eps\": 1e-05, \"norm_first\": true, "
              "\"norm_bias\": true, \"fuse_norm\": false, \"hidden_act\": \"sqrelu\"}",
    .fields = fields,
    .tensors = tensors,
    .tied_head = "head.weight",
    .import = import,
    .without_config = true,
};
