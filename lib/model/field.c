#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "model/json.h"
#include "model/schema.h"

enum { DESCRIPTION = COMBA_JSON_DESCRIPTION_SIZE, EXPECTATION = 256 };

static void *member(const comba_field *field, void *object) {
  return (char *)object + field->offset;
}

static bool is_bounded(const comba_field *field) {
  return field->minimum != 0 || field->maximum != 0;
}

static bool in_range(const comba_field *field, double value) {
  if (field->type == COMBA_FIELD_BOOLEAN) return value == 0 || value == 1;
  if (field->type == COMBA_FIELD_CHOICE) return value >= 0;
  return isfinite(value) && (!is_bounded(field) || (value >= field->minimum && value <= field->maximum));
}

void comba_field_store(const comba_field *field, void *object, double value) {
  void *at = member(field, object);
  switch (field->type) {
  case COMBA_FIELD_BOOLEAN: *(bool *)at = value != 0; break;
  case COMBA_FIELD_INTEGER:
  case COMBA_FIELD_LAYERS:
  case COMBA_FIELD_TOKENS: *(int64_t *)at = (int64_t)value; break;
  case COMBA_FIELD_NUMBER: *(double *)at = value; break;
  case COMBA_FIELD_CHOICE: *(int *)at = (int)value; break;
  case COMBA_FIELD_RANGE:
    ((double *)at)[0] = value;
    ((double *)at)[1] = field->default_largest;
    break;
  }
}

static double load(const comba_field *field, const void *object) {
  const void *at = (const char *)object + field->offset;
  switch (field->type) {
  case COMBA_FIELD_BOOLEAN: return *(const bool *)at;
  case COMBA_FIELD_INTEGER:
  case COMBA_FIELD_LAYERS:
  case COMBA_FIELD_TOKENS: return (double)*(const int64_t *)at;
  case COMBA_FIELD_NUMBER:
  case COMBA_FIELD_RANGE: return *(const double *)at;
  case COMBA_FIELD_CHOICE: return *(const int *)at;
  }
  return 0;
}

void comba_fields_default(const comba_field *fields, void *object) {
  for (const comba_field *field = fields; field->name; field++) comba_field_store(field, object, field->default_value);
}

const comba_field *comba_fields_find(const comba_field *fields, const char *name) {
  for (const comba_field *field = fields; field->name; field++)
    if (strcmp(field->name, name) == 0) return field;
  return NULL;
}

/* "an integer from 1 to 64 or null", for messages and for the documentation. */
static const char *expectation(const comba_field *field, char text[EXPECTATION]) {
  size_t used = 0;
  switch (field->type) {
  case COMBA_FIELD_BOOLEAN: used = (size_t)snprintf(text, EXPECTATION, "true or false"); break;
  case COMBA_FIELD_INTEGER:
  case COMBA_FIELD_NUMBER:
  case COMBA_FIELD_RANGE:
    used = (size_t)snprintf(text, EXPECTATION, "%s",
                            field->type == COMBA_FIELD_INTEGER  ? "an integer"
                            : field->type == COMBA_FIELD_NUMBER ? "a number"
                                                                : "an array of two rising numbers");
    if (is_bounded(field))
      used += (size_t)snprintf(text + used, EXPECTATION - used, " from %.12g to %.12g", field->minimum, field->maximum);
    break;
  case COMBA_FIELD_LAYERS: used = (size_t)snprintf(text, EXPECTATION, "an integer, or an array of equal ones"); break;
  case COMBA_FIELD_TOKENS:
    used = (size_t)snprintf(text, EXPECTATION, "an integer from %.12g to %.12g, or an array of such", field->minimum,
                            field->maximum);
    break;
  case COMBA_FIELD_CHOICE:
    for (int i = 0; field->choices[i] && used < EXPECTATION; i++)
      used += (size_t)snprintf(text + used, EXPECTATION - used, "%s\"%s\"", i ? ", " : "one of ", field->choices[i]);
    break;
  }
  if (field->nullable && used < EXPECTATION) snprintf(text + used, EXPECTATION - used, " or null");
  return text;
}

static bool parse_range(const comba_field *field, double range[2], const json_t *value) {
  double read[2];
  if (!json_is_array(value) || json_array_size(value) != 2) return false;
  for (size_t i = 0; i < 2; i++)
    if (!comba_json_number(json_array_get(value, i), &read[i]) ||
        !(read[i] >= field->minimum && read[i] <= field->maximum))
      return false;
  if (read[0] > read[1]) return false;
  memcpy(range, read, sizeof read);
  return true;
}

static bool parse_integer(const comba_field *field, void *object, const json_t *value) {
  /* Beyond 2^53 the double rounds, but no bound of a field is there. */
  if (!json_is_integer(value) || !in_range(field, (double)json_integer_value(value))) return false;
  *(int64_t *)member(field, object) = json_integer_value(value);
  return true;
}

/* False: the value is of the wrong type or out of range. */
static bool parse_value(const comba_field *field, void *object, const json_t *value) {
  double number;
  if (json_is_null(value)) {
    if (field->nullable) comba_field_store(field, object, field->null_value);
    return field->nullable;
  }
  switch (field->type) {
  case COMBA_FIELD_BOOLEAN:
    if (!json_is_boolean(value)) return false;
    *(bool *)member(field, object) = json_is_true(value);
    return true;
  case COMBA_FIELD_LAYERS:
    for (size_t i = 1; i < json_array_size(value); i++)
      if (!json_equal(json_array_get(value, i), json_array_get(value, 0))) return false;
    return parse_integer(field, object, json_is_array(value) ? json_array_get(value, 0) : value);
  case COMBA_FIELD_TOKENS:
    for (size_t i = json_array_size(value); i-- > 1;)
      if (!parse_integer(field, object, json_array_get(value, i))) return false;
    return parse_integer(field, object, json_is_array(value) ? json_array_get(value, 0) : value);
  case COMBA_FIELD_INTEGER: return parse_integer(field, object, value);
  case COMBA_FIELD_NUMBER:
    if (!comba_json_number(value, &number) || !in_range(field, number)) return false;
    *(double *)member(field, object) = number;
    return true;
  case COMBA_FIELD_CHOICE:
    for (int i = 0; json_is_string(value) && field->choices[i]; i++) {
      if (strcmp(json_string_value(value), field->choices[i]) != 0) continue;
      *(int *)member(field, object) = i;
      return true;
    }
    return false;
  case COMBA_FIELD_RANGE: return parse_range(field, member(field, object), value);
  }
  return false;
}

comba_status comba_fields_parse(const comba_field *fields, void *object, const json_t *json, const char *where) {
  char text[DESCRIPTION], expected[EXPECTATION];
  for (const comba_field *field = fields; field->name; field++) {
    const json_t *value = json_object_get(json, field->name);
    if (value && !parse_value(field, object, value))
      return comba_fail(COMBA_ERROR_ARGUMENT, "%s%s is %s, expected %s", where, field->name,
                        comba_json_describe(value, text), expectation(field, expected));
  }
  return COMBA_OK;
}

/* A null that a value of the field's own could say is written as that value. */
static bool stands_for_null(const comba_field *field, double value) {
  if (!field->nullable || in_range(field, field->null_value)) return false;
  return value == field->null_value || (isnan(value) && isnan(field->null_value));
}

/* JSON has no infinity; transformers writes it so. */
static json_t *write_limit(double value) {
  if (!isinf(value)) return json_real(value);
  return json_pack("{s: s}", "__float__", value > 0 ? "Infinity" : "-Infinity");
}

comba_status comba_fields_write(const comba_field *fields, const void *object, json_t *json) {
  for (const comba_field *field = fields; field->name; field++) {
    const void *at = (const char *)object + field->offset;
    json_t *value = NULL;
    if (stands_for_null(field, load(field, object)))
      value = json_null();
    else if (field->type == COMBA_FIELD_BOOLEAN)
      value = json_boolean(*(const bool *)at);
    else if (field->type == COMBA_FIELD_INTEGER || field->type == COMBA_FIELD_LAYERS ||
             field->type == COMBA_FIELD_TOKENS)
      value = json_integer(*(const int64_t *)at);
    else if (field->type == COMBA_FIELD_NUMBER)
      value = json_real(*(const double *)at);
    else if (field->type == COMBA_FIELD_RANGE)
      value = json_pack("[o, o]", write_limit(((const double *)at)[0]), write_limit(((const double *)at)[1]));
    else
      value = json_string(field->choices[*(const int *)at]);
    if (json_object_set_new(json, field->name, value) != 0) return comba_fail_memory(sizeof value, field->name);
  }
  return COMBA_OK;
}

void comba_fields_document(const comba_field *fields, const void *object, const char *where, FILE *stream) {
  char expected[EXPECTATION];
  for (const comba_field *field = fields; field->name; field++) {
    const double value = load(field, object);
    fprintf(stream, "| `%s%s` | %s | ", where, field->name, expectation(field, expected));
    if (stands_for_null(field, value))
      fputs("null", stream);
    else if (!in_range(field, value))
      fputs("an error", stream);
    else if (field->type == COMBA_FIELD_BOOLEAN)
      fputs(value != 0 ? "true" : "false", stream);
    else if (field->type == COMBA_FIELD_CHOICE)
      fprintf(stream, "\"%s\"", field->choices[(int)value]);
    else if (field->type == COMBA_FIELD_RANGE)
      fprintf(stream, "[%.12g, %.12g]", value, ((const double *)((const char *)object + field->offset))[1]);
    else
      fprintf(stream, "%.12g", value);
    fprintf(stream, " | %s |\n", field->help);
  }
}
