/* JSON by jansson, made safe for files of unknown origin and for what Python writes. */
#ifndef COMBA_MODEL_JSON_H
#define COMBA_MODEL_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "core/status.h"

enum {
  COMBA_JSON_MAX_DEPTH = 64,        /* of nested arrays and objects */
  COMBA_JSON_MAX_VALUES = 1 << 20,  /* bounds the memory that a text may cost: at most about 350 bytes a value */
  COMBA_JSON_DESCRIPTION_SIZE = 96, /* of the buffer of comba_json_describe */
};

/* Parses a text; `source` names it in messages. Duplicate keys, text after the value, numbers that do not fit and nesting
 * that is too deep are COMBA_ERROR_FORMAT with the line. Python's bare Infinity, -Infinity and NaN are read as transformers
 * writes them elsewhere: {"__float__": "Infinity"}. */
comba_status comba_json_parse(json_t **value, const char *text, size_t size, const char *source);

/* Text with two spaces of indentation, members in the order of insertion, and numbers with the fewest digits that read back
 * as the same double. To be freed. */
comba_status comba_json_write(const json_t *value, char **text);

/* A text in quotes, escaped. False: it is not UTF-8, or memory is out. */
bool comba_json_write_string(FILE *stream, const char *text);

/* An integer, a real or {"__float__": ...}; false for anything else. */
bool comba_json_number(const json_t *value, double *number);

/* A value as a message shows it: `"text"`, 12, null, "an array of 3", "an object". Returns `buffer`. */
const char *comba_json_describe(const json_t *value, char buffer[COMBA_JSON_DESCRIPTION_SIZE]);
/* Copies a text that came from a file for use in a message: control characters become '?', a long text is cut. */
const char *comba_json_printable(const char *text, char buffer[COMBA_JSON_DESCRIPTION_SIZE]);

#endif
