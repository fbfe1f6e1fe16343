/* json-has KEY[=VALUE]...: reads one JSON value from standard input and succeeds if it is an object, or an array of objects, that
 * has every KEY (with that value, as compact JSON), and nothing follows it. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int has(const json_t *object, const char *wanted) {
  const char *equals = strchr(wanted, '=');
  char key[128];
  snprintf(key, sizeof key, "%.*s", (int)(equals ? equals - wanted : (long)strlen(wanted)), wanted);
  const json_t *value = json_object_get(object, key);
  char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
  const int good = text && (!equals || strcmp(text, equals + 1) == 0);
  if (!good) fprintf(stderr, "json-has: %s: found %s\n", wanted, text ? text : "nothing");
  free(text);
  return good;
}

int main(int argc, char **argv) {
  json_error_t error;
  json_t *value = json_loadf(stdin, JSON_REJECT_DUPLICATES, &error);
  const json_t *list = json_is_array(value) ? value : NULL;
  const size_t count = list ? json_array_size(list) : 1;
  int good = value && count > 0;
  if (!value) fprintf(stderr, "json-has: line %d: %s\n", error.line, error.text);
  for (size_t i = 0; good && i < count; i++)
    for (int j = 1; good && j < argc; j++) good = has(list ? json_array_get(list, i) : value, argv[j]);
  json_decref(value);
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
