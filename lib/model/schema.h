/* The schemas of a config, and what reads and writes a struct by its schema. */
#ifndef COMBA_MODEL_SCHEMA_H
#define COMBA_MODEL_SCHEMA_H

#include <jansson.h>
#include <stdio.h>

#include "model/field.h"

/* ---- Engine (field.c) ---- */

void comba_fields_default(const comba_field *fields, void *object);
/* Stores the members of `json` that the schema knows; others are left alone. `where` is put before a field's name in messages,
 * "attn[1].". */
comba_status comba_fields_parse(const comba_field *fields, void *object, const json_t *json, const char *where);
/* Sets all fields as members of `json`, null where the value stands for it. */
comba_status comba_fields_write(const comba_field *fields, const void *object, json_t *json);
/* One row of a Markdown table a field. */
void comba_fields_document(const comba_field *fields, const void *object, const char *where, FILE *stream);
const comba_field *comba_fields_find(const comba_field *fields, const char *name);
/* The value that a missing field has, for one whose default depends on the mixer. */
void comba_field_store(const comba_field *field, void *object, double value);

/* ---- Rows (schema.c) ---- */

extern const comba_field comba_schema_common[];        /* of comba_config, both kinds */
extern const comba_field comba_schema_language[];      /* of comba_config */
extern const comba_field comba_schema_vision[];        /* of comba_config */
extern const comba_field comba_schema_hybrid[];        /* of comba_hybrid */
extern const comba_field comba_schema_hybrid_vision[]; /* of comba_hybrid, vision only */

/* What fla gives the common fields of one mixer's models. */
typedef struct comba_mixer_defaults {
  const char *model_type;
  const char *class_prefix; /* CombaForCausalLM, without "ForCausalLM"; NULL: unknown */
  double num_hidden_layers, norm_eps, hidden_ratio, pad_token_id;
} comba_mixer_defaults;

/* `model_type` without "_vision"; a mixer without a row of its own has the defaults that most have. */
const comba_mixer_defaults *comba_schema_mixer_defaults(const char *model_type);

/* A field of fla's that this library has one behaviour for. */
typedef struct comba_fixed_field {
  const char *name;
  bool language, vision; /* the kinds that it matters to */
  const char *allowed;   /* JSON values between spaces */
} comba_fixed_field;

extern const comba_fixed_field comba_schema_fixed[]; /* ends with a row without a name */

/* True for the fields of fla and transformers that say nothing about what the model computes: kept, never warned of. */
bool comba_schema_is_inert(const char *name);

#endif
