#define _GNU_SOURCE /* open_memstream */
#include "model/json.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Reading ---- */

static const char *const python_constants[] = {"Infinity", "-Infinity", "NaN"};
static const char float_key[] = "__float__";
enum { FLOAT_OBJECT_SIZE = sizeof "{\"__float__\":\"-Infinity\"}" };

/* The constant that starts at text[at], a position outside of strings; NULL if there is none. */
static const char *constant_at(const char *text, size_t size, size_t at) {
  if (at > 0 && (isalnum((unsigned char)text[at - 1]) || text[at - 1] == '-')) return NULL;
  for (size_t i = 0; i < sizeof python_constants / sizeof *python_constants; i++) {
    const size_t length = strlen(python_constants[i]);
    if (length > size - at || memcmp(text + at, python_constants[i], length) != 0) continue;
    if (at + length == size || !isalnum((unsigned char)text[at + length])) return python_constants[i];
  }
  return NULL;
}

/* Walks the text once and calls nothing but constant_at: counts Python's constants and holds the limits. With `out`, copies
 * the text there with each constant replaced by its object. */
static comba_status scan(const char *text, size_t size, const char *source, size_t *constants, char *out) {
  size_t depth = 0, values = 0, line = 1, written = 0;
  bool in_string = false;
  *constants = 0;
  for (size_t i = 0; i < size; i++) {
    const char c = text[i];
    const char *constant = NULL;
    if (c == '\n') line++;
    if (in_string) {
      if (c == '"') in_string = false;
      if (c == '\\' && i + 1 < size) { /* the next character is escaped, whatever it is */
        if (out) out[written++] = c;
        i++;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > COMBA_JSON_MAX_DEPTH)
        return comba_fail(COMBA_ERROR_FORMAT, "%s: line %zu: values nested deeper than %d", source, line,
                          COMBA_JSON_MAX_DEPTH);
    } else if (c == ']' || c == '}') {
      if (depth > 0) depth--;
    } else if (c == ',') {
      if (++values > COMBA_JSON_MAX_VALUES)
        return comba_fail(COMBA_ERROR_FORMAT, "%s: more than %d values", source, COMBA_JSON_MAX_VALUES);
    } else if (c == 'I' || c == '-' || c == 'N') {
      constant = constant_at(text, size, i);
    }
    if (constant) {
      ++*constants;
      if (out) written += (size_t)sprintf(out + written, "{\"%s\":\"%s\"}", float_key, constant);
      i += strlen(constant) - 1;
    } else if (out) {
      out[written++] = text[i];
    }
  }
  if (out) out[written] = 0;
  return COMBA_OK;
}

comba_status comba_json_parse(json_t **value, const char *text, size_t size, const char *source) {
  comba_status status = COMBA_OK;
  char *replaced = NULL, reason[COMBA_JSON_DESCRIPTION_SIZE];
  size_t constants = 0;
  json_error_t error;
  if (memchr(text, 0, size)) return comba_fail(COMBA_ERROR_FORMAT, "%s: a zero byte, expected JSON text", source);
  COMBA_TRY(scan(text, size, source, &constants, NULL));
  if (constants > 0) {
    const size_t room = size + constants * FLOAT_OBJECT_SIZE + 1;
    replaced = malloc(room);
    if (!replaced) {
      status = comba_fail_memory(room, source);
      goto cleanup;
    }
    COMBA_TRY(scan(text, size, source, &constants, replaced));
    text = replaced;
    size = strlen(replaced);
  }
  json_t *parsed = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
  if (parsed) {
    *value = parsed;
  } else if (!error.text[0] || json_error_code(&error) == json_error_out_of_memory) {
    /* jansson leaves the error empty where an allocation fails */
    status = comba_fail_memory(size, source);
  } else {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: line %d, column %d: %s", source, error.line, error.column,
                        comba_json_printable(error.text, reason));
  }

cleanup:
  free(replaced);
  return status;
}

bool comba_json_number(const json_t *value, double *number) {
  if (json_is_number(value)) {
    *number = json_number_value(value);
    return true;
  }
  const char *name = json_string_value(json_object_get(value, float_key));
  if (!name || json_object_size(value) != 1) return false;
  if (strcmp(name, "NaN") == 0)
    *number = NAN;
  else if (strcmp(name, "Infinity") == 0)
    *number = INFINITY;
  else if (strcmp(name, "-Infinity") == 0)
    *number = -INFINITY;
  else
    return false;
  return true;
}

/* ---- Writing ---- */

/* The shortest digits that read back as `number`; always with a point or an exponent, so that it stays a real. */
static void write_real(FILE *stream, double number) {
  char digits[40];
  for (int precision = 1; precision <= 17; precision++) {
    snprintf(digits, sizeof digits, "%.*g", precision, number);
    if (strtod(digits, NULL) == number) break;
  }
  for (char *c = digits; *c; c++)
    if (*c == ',') *c = '.'; /* the locale's decimal comma */
  fprintf(stream, "%s%s", digits, strpbrk(digits, ".e") ? "" : ".0");
}

bool comba_json_write_string(FILE *stream, const char *text) {
  json_t *string = json_string(text);
  char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
  if (quoted) fputs(quoted, stream);
  free(quoted);
  json_decref(string);
  return quoted != NULL;
}

/* False: out of memory. */
static bool write_value(FILE *stream, const json_t *value, int indent) {
  const char *key;
  json_t *element;
  size_t index;
  bool first = true;
  switch (json_typeof(value)) {
  case JSON_OBJECT:
    fputc('{', stream);
    json_object_foreach((json_t *)value, key, element) {
      fprintf(stream, "%s\n%*s", first ? "" : ",", indent + 2, "");
      first = false;
      if (!comba_json_write_string(stream, key)) return false;
      fputs(": ", stream);
      if (!write_value(stream, element, indent + 2)) return false;
    }
    if (!first) fprintf(stream, "\n%*s", indent, "");
    fputc('}', stream);
    return true;
  case JSON_ARRAY: /* on one line: lists of layers are the common case */
    fputc('[', stream);
    json_array_foreach(value, index, element) {
      if (index > 0) fputs(", ", stream);
      if (!write_value(stream, element, indent + 2)) return false;
    }
    fputc(']', stream);
    return true;
  case JSON_STRING: return comba_json_write_string(stream, json_string_value(value));
  case JSON_INTEGER: fprintf(stream, "%" JSON_INTEGER_FORMAT, json_integer_value(value)); return true;
  case JSON_REAL: write_real(stream, json_real_value(value)); return true;
  case JSON_TRUE: fputs("true", stream); return true;
  case JSON_FALSE: fputs("false", stream); return true;
  case JSON_NULL: fputs("null", stream); return true;
  }
  return true;
}

comba_status comba_json_write(const json_t *value, char **text) {
  char *written = NULL;
  size_t size = 0;
  FILE *stream = open_memstream(&written, &size);
  if (!stream) return comba_fail_memory(0, "a JSON text");
  bool complete = write_value(stream, value, 0);
  fputc('\n', stream);
  complete = !ferror(stream) && complete;
  complete = fclose(stream) == 0 && complete;
  if (!complete) {
    free(written);
    return comba_fail_memory(size, "a JSON text");
  }
  *text = written;
  return COMBA_OK;
}

/* ---- Messages ---- */

const char *comba_json_printable(const char *text, char buffer[COMBA_JSON_DESCRIPTION_SIZE]) {
  const size_t room = COMBA_JSON_DESCRIPTION_SIZE - sizeof "...";
  size_t length = strlen(text);
  const bool cut = length > room;
  if (cut) {
    length = room;
    while (length > 0 && ((unsigned char)text[length] & 0xC0) == 0x80) length--; /* not inside of a UTF-8 character */
  }
  for (size_t i = 0; i < length; i++) buffer[i] = iscntrl((unsigned char)text[i]) ? '?' : text[i];
  strcpy(buffer + length, cut ? "..." : "");
  return buffer;
}

const char *comba_json_describe(const json_t *value, char buffer[COMBA_JSON_DESCRIPTION_SIZE]) {
  const size_t size = COMBA_JSON_DESCRIPTION_SIZE;
  char text[COMBA_JSON_DESCRIPTION_SIZE];
  double number;
  if (comba_json_number(value, &number) && !json_is_integer(value)) {
    snprintf(buffer, size, "%.9g", number);
    return buffer;
  }
  switch (json_typeof(value)) {
  case JSON_OBJECT: snprintf(buffer, size, "an object"); break;
  case JSON_ARRAY: snprintf(buffer, size, "an array of %zu", json_array_size(value)); break;
  case JSON_STRING:
    comba_json_printable(json_string_value(value), text);
    snprintf(buffer, size, "\"%.*s\"", (int)size - 3, text);
    break;
  case JSON_INTEGER: snprintf(buffer, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value)); break;
  case JSON_REAL: break; /* above */
  case JSON_TRUE: snprintf(buffer, size, "true"); break;
  case JSON_FALSE: snprintf(buffer, size, "false"); break;
  case JSON_NULL: snprintf(buffer, size, "null"); break;
  }
  return buffer;
}
