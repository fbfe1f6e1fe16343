/* make-recall: examples of multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927).
 *
 * An example begins with `pairs` keys, each followed by its value: k1 v1 k2 v2 ... Then each key comes once more, as a query,
 * and the token behind it, its value, is a target. Keys are below half of the vocabulary, values in the upper half; within an
 * example neither repeats. Query j stands 2 s tokens behind the pairs, s drawn without replacement with a probability
 * proportional to (s + 1)^(power - 1): mostly soon, at times late. Every other token is random. Unlike there, the answer is also
 * the input behind its query, as in any text. Example number n depends on the seed and n alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/random.h"
#include "core/status.h"
#include "data/tokens.h"
#include "program/options.h"

typedef struct arguments {
  const char *output;
  uint64_t seed;
  int64_t examples, length, pairs, vocabulary;
  double power;
} arguments;

typedef struct source {
  uint64_t seed, stream, counter;
} source;

static int32_t below(source *s, int64_t n) {
  return (int32_t)comba_random_below(s->seed, s->stream, s->counter++, (uint64_t)n);
}

/* `count` of the numbers first ... first + n - 1, in random order. */
static void draw_distinct(source *s, int32_t first, int64_t n, int64_t count, int32_t *drawn) {
  for (int64_t i = 0; i < count; i++) { /* Floyd's choice, shuffled as it grows */
    const int64_t last = n - count + i;
    int32_t value = first + below(s, last + 1);
    for (int64_t k = 0; k < i; k++)
      if (drawn[k] == value) value = first + (int32_t)last;
    const int64_t place = below(s, i + 1);
    drawn[i] = drawn[place];
    drawn[place] = value;
  }
}

typedef struct slot {
  double arrival;
  int64_t place;
} slot;

static int earlier(const void *a, const void *b) {
  const double x = ((const slot *)a)->arrival, y = ((const slot *)b)->arrival;
  return (x > y) - (x < y);
}

/* Slots in the order in which they are drawn: each arrives after an exponential time with its probability as the rate. */
static void order_slots(source *s, double power, int64_t count, slot *slots) {
  for (int64_t i = 0; i < count; i++) {
    const double rate = pow((double)(i + 1), power - 1);
    slots[i] = (slot){-log(comba_random_uniform(s->seed, s->stream, s->counter++)) / rate, i};
  }
  qsort(slots, (size_t)count, sizeof *slots, earlier);
}

static void make_example(const arguments *a, int64_t number, int32_t *keys, int32_t *values, slot *slots, int32_t *ids,
                         uint8_t *marks) {
  source s = {a->seed, comba_random_stream("recall") + (uint64_t)number, 0};
  const int64_t half = a->vocabulary / 2, context = 2 * a->pairs;
  draw_distinct(&s, 1, half - 1, a->pairs, keys);
  draw_distinct(&s, (int32_t)half, a->vocabulary - half, a->pairs, values);
  order_slots(&s, a->power, (a->length - context) / 2, slots);
  for (int64_t i = context; i < a->length; i++) ids[i] = below(&s, a->vocabulary);
  for (int64_t i = 0; i < a->pairs; i++) {
    int32_t *pair = ids + 2 * i, *query = ids + context + 2 * slots[i].place;
    pair[0] = query[0] = keys[i];
    pair[1] = query[1] = values[i];
    marks[query + 1 - ids] = 1;
  }
}

static comba_status make_file(const arguments *a) {
  comba_status status = COMBA_OK;
  const size_t tokens = (size_t)(a->examples * a->length), pairs = (size_t)a->pairs;
  int32_t *ids = comba_allocate(tokens * sizeof *ids, "the tokens");
  uint8_t *marks = comba_allocate(tokens, "the marks");
  int32_t *keys = comba_allocate(2 * pairs * sizeof *keys, "keys and values");
  slot *slots = comba_allocate((size_t)a->length / 2 * sizeof *slots, "the places of queries");
  if (!ids || !marks || !keys || !slots) COMBA_TRY(COMBA_ERROR_MEMORY);
  for (int64_t i = 0; i < a->examples; i++)
    make_example(a, i, keys, keys + pairs, slots, ids + i * a->length, marks + i * a->length);
  COMBA_TRY(comba_tokens_write_examples(a->output, ids, marks, a->examples, a->length, a->vocabulary));
cleanup:
  free(ids);
  free(marks);
  free(keys);
  free(slots);
  return status;
}

enum { OUTPUT = 1, SEED, EXAMPLES, LENGTH, PAIRS, VOCABULARY, POWER };

static error_t parse(int key, char *text, struct argp_state *state) {
  arguments *a = state->input;
  switch (key) {
  case OUTPUT: a->output = text; break;
  case SEED: a->seed = (uint64_t)comba_option_integer(state, "--seed", text, 0, INT64_MAX); break;
  case EXAMPLES: a->examples = comba_option_integer(state, "--examples", text, 1, 1 << 26); break;
  case LENGTH: a->length = comba_option_integer(state, "--length", text, 4, 1 << 20); break;
  case PAIRS: a->pairs = comba_option_integer(state, "--pairs", text, 1, 1 << 18); break;
  case VOCABULARY: a->vocabulary = comba_option_integer(state, "--vocabulary", text, 4, 1 << 30); break;
  case POWER: a->power = comba_option_number(state, "--power", text, 0, 10); break;
  case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", text); break;
  case ARGP_KEY_END:
    if (!a->output) argp_error(state, "--output is missing, expected a file");
    if (a->length < 4 * a->pairs)
      argp_error(state, "--length is %lld, expected at least 4 x --pairs %lld", (long long)a->length,
                 (long long)a->pairs);
    if (a->vocabulary / 2 <= a->pairs)
      argp_error(state, "--vocabulary is %lld, expected at least %lld for --pairs %lld", (long long)a->vocabulary,
                 (long long)(2 * a->pairs + 2), (long long)a->pairs);
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

int main(int argc, char **argv) {
  static const struct argp_option options[] = {
      {"output", OUTPUT, "FILE", 0, "Token file of examples to write", 0},
      {"seed", SEED, "N", 0, "Seed of all that is random (0)", 0},
      {"examples", EXAMPLES, "N", 0, "Examples (10000)", 0},
      {"length", LENGTH, "N", 0, "Tokens an example (64)", 0},
      {"pairs", PAIRS, "N", 0, "Keys with their values in an example, at most a quarter of its tokens (4)", 0},
      {"vocabulary", VOCABULARY, "N", 0, "Number of tokens (8192)", 0},
      {"power", POWER, "X", 0, "How soon queries come: 0.01 mostly at once, 1 anywhere (0.01)", 0},
      {0}};
  static const struct argp argp = {
      options, parse, NULL, "Writes examples of multi-query associative recall for 'comba-lm train'.",
      NULL,    NULL,  NULL};
  arguments a = {.examples = 10000, .length = 64, .pairs = 4, .vocabulary = 8192, .power = 0.01};
  argp_err_exit_status = COMBA_EXIT_USAGE;
  argp_parse(&argp, argc, argv, 0, NULL, &a);
  if (make_file(&a) != COMBA_OK) {
    fprintf(stderr, "make-recall: %s\n", comba_last_error());
    return COMBA_EXIT_FAILURE;
  }
  return 0;
}
