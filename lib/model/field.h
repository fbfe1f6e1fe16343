/* Configs by schema: one row a field drives the parser, the errors, the writer and the documentation.
 *
 * A schema is an array of rows that describe the members of one C struct. Values that JSON may give as null are stored as
 * the row's `null_value`. */
#ifndef COMBA_MODEL_FIELD_H
#define COMBA_MODEL_FIELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef enum comba_field_type {
  COMBA_FIELD_BOOLEAN, /* bool */
  COMBA_FIELD_INTEGER, /* int64_t */
  COMBA_FIELD_NUMBER,  /* double */
  COMBA_FIELD_CHOICE,  /* int: index into `choices` */
  COMBA_FIELD_LAYERS,  /* int64_t: an integer, or an array that gives the same one for each layer */
  COMBA_FIELD_TOKENS,  /* int64_t: a token id, or an array of several, of which the first is stored */
  COMBA_FIELD_RANGE,   /* double[2], an array in JSON: the least and the largest value, which may be infinite */
} comba_field_type;

typedef struct comba_field {
  const char *name; /* NULL ends the schema */
  comba_field_type type;
  size_t offset;              /* of the member, offsetof */
  double default_value;       /* of a missing field: boolean 0 or 1, number, or index of the choice */
  double default_largest;     /* of a missing range, whose least value is default_value */
  double minimum, maximum;    /* inclusive; both 0: any finite value */
  const char *const *choices; /* ends with NULL */
  bool nullable;              /* null is allowed and means null_value (a missing field has default_value) */
  double null_value;
  const char *help; /* one line */
} comba_field;

#endif
