#include "mixers/mixer.h"

#include <string.h>

/* one a line */
// clang-format off
const comba_mixer_row *const comba_mixer_table[] = {
    &comba_mixer_comba,
    &comba_mixer_delta_net,
    &comba_mixer_gated_deltanet,
    &comba_mixer_gla,
    &comba_mixer_hgrn2,
    &comba_mixer_kda,
    &comba_mixer_linear_attn,
    &comba_mixer_mamba2,
    &comba_mixer_memora,
    &comba_mixer_mesa_net,
    &comba_mixer_meta_la,
    &comba_mixer_mlstm,
    &comba_mixer_moneta,
    &comba_mixer_retnet,
    &comba_mixer_rwkv7,
    &comba_mixer_s4d,
    &comba_mixer_simple_gla,
    &comba_mixer_titans,
    &comba_mixer_transformer,
    &comba_mixer_ttt_linear,
    &comba_mixer_ttt_mlp,
    &comba_mixer_yaad,
    NULL,
};
// clang-format on

const comba_names *comba_mixer_names(const comba_mixer_row *row) {
  static const comba_names usual = {"model", "attn", "attn_norm", "norm"};
  return row->names ? row->names : &usual;
}

const comba_mixer_row *comba_mixer_find(const char *model_type) {
  static const char suffix[] = "_vision";
  size_t length = strlen(model_type);
  if (length >= sizeof suffix && !strcmp(model_type + length - (sizeof suffix - 1), suffix))
    length -= sizeof suffix - 1;
  for (const comba_mixer_row *const *row = comba_mixer_table; *row; row++)
    if (strlen((*row)->model_type) == length && !memcmp((*row)->model_type, model_type, length)) return *row;
  return NULL;
}
