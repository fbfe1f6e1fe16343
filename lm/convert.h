/* Model folders in the layouts of other projects: a row a format, which says how config and tensors are called there. The work is
 * in convert.c, which reads a row in both directions; a format is a file lm/convert_NAME.c with its row, and a line in the table
 * there. */
#ifndef COMBA_LM_CONVERT_H
#define COMBA_LM_CONVERT_H

#include <jansson.h>

#include "core/status.h"
#include "model/safetensors.h"

/* A member of both configs, or one that the foreign config must have with a value because our models have no choice there. */
typedef struct comba_convert_field {
  const char *foreign; /* NULL ends the list; "ssm_cfg.d_state" is d_state inside of ssm_cfg */
  const char *ours;    /* NULL: `value` is the only one that is supported; "": any is, and `value` is written */
  const char *value;   /* JSON, what the field means where it is missing; NULL: it must be there */
} comba_convert_field;

/* How the numbers of one tensor lie. */
typedef enum comba_convert_layout {
  COMBA_CONVERT_SAME,
  COMBA_CONVERT_TRANSPOSED,  /* a matrix (n, m) is (m, n) there */
  COMBA_CONVERT_LEADING_ONES /* (d) is (1, 1, d) there */
} comba_convert_layout;

typedef struct comba_convert_tensor {
  const char *foreign; /* NULL ends the list; "*" stands for a number, the same in both names */
  const char *ours;    /* NULL: never used, left out */
  comba_convert_layout layout;
} comba_convert_tensor;

typedef struct comba_convert_format {
  const char *name;   /* of --from and --to */
  const char *config; /* JSON: members of our config whatever the foreign one says, model_type first */
  const comba_convert_field *fields;
  const comba_convert_tensor *tensors; /* the embeddings first */
  /* The name of a head that is in the file even where it is the embeddings, which ours leave out; NULL: it never is. */
  const char *tied_head;
  /* Whatever else our config needs, from the foreign one (NULL where the format has none) and the tensors; NULL: nothing. */
  comba_status (*import)(json_t *ours, const json_t *foreign, const comba_safetensors *tensors);
  bool without_config; /* the format is a weight file alone */
} comba_convert_format;

extern const comba_convert_format comba_convert_mamba_ssm;
extern const comba_convert_format comba_convert_rwkv;
extern const comba_convert_format comba_convert_ttt;
extern const comba_convert_format comba_convert_ttt_mlp;

#endif
