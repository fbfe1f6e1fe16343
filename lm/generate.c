#include "lm.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/random.h"
#include "core/status.h"
#include "program/progress.h"

typedef struct options {
  comba_common_options common;
  const char *model, *prompt, *prompt_tokens;
  int64_t max_tokens, top_k;
  double temperature, top_p;
} options;

enum { MODEL = 1, PROMPT, PROMPT_TOKENS, MAX_TOKENS, TEMPERATURE, TOP_K, TOP_P };

static error_t parse(int key, char *argument, struct argp_state *state) {
  options *o = state->input;
  switch (key) {
  case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; break;
  case MODEL: o->model = argument; break;
  case PROMPT: o->prompt = argument; break;
  case PROMPT_TOKENS: o->prompt_tokens = argument; break;
  case MAX_TOKENS: o->max_tokens = comba_option_integer(state, "--max-tokens", argument, 1, (int64_t)1 << 30); break;
  case TEMPERATURE: o->temperature = comba_option_number(state, "--temperature", argument, 0, 1e6); break;
  case TOP_K: o->top_k = comba_option_integer(state, "--top-k", argument, 0, (int64_t)1 << 30); break;
  case TOP_P: o->top_p = comba_option_number(state, "--top-p", argument, 0, 1); break;
  case ARGP_KEY_END:
    if (!o->model) argp_error(state, "--model is missing");
    if (!o->prompt == !o->prompt_tokens) argp_error(state, "one of --prompt and --prompt-tokens is needed");
    break;
  default: return ARGP_ERR_UNKNOWN;
  }
  return 0;
}

/* "72,105 33" -> ids */
static comba_status parse_tokens(const char *text, int32_t **ids, int64_t *count) {
  int32_t *list = comba_allocate((strlen(text) + 1) * sizeof *list, "the prompt");
  if (!list) return COMBA_ERROR_MEMORY;
  *count = 0;
  for (const char *cursor = text; *(cursor += strspn(cursor, ", ")); (*count)++) {
    char *end;
    errno = 0;
    const long value = strtol(cursor, &end, 10);
    if (end == cursor || errno || value < 0 || value > INT32_MAX || (*end && !strchr(", ", *end))) {
      free(list);
      return comba_fail(COMBA_ERROR_ARGUMENT, "--prompt-tokens: '%.20s', expected token numbers separated by commas",
                        cursor);
    }
    list[*count] = (int32_t)value;
    cursor = end;
  }
  *ids = list;
  return COMBA_OK;
}

static comba_status read_prompt(const options *o, int64_t vocabulary, int32_t **ids, int64_t *count) {
  if (o->prompt_tokens) {
    const comba_status status = parse_tokens(o->prompt_tokens, ids, count);
    if (status != COMBA_OK) return status;
  } else {
    if (vocabulary != 256)
      return comba_fail(COMBA_ERROR_ARGUMENT,
                        "--prompt: the model's vocabulary has %lld entries, expected 256 (bytes); give --prompt-tokens",
                        (long long)vocabulary);
    *count = (int64_t)strlen(o->prompt);
    *ids = comba_allocate(((size_t)*count + 1) * sizeof **ids, "the prompt");
    if (!*ids) return COMBA_ERROR_MEMORY;
    for (int64_t i = 0; i < *count; i++) (*ids)[i] = (uint8_t)o->prompt[i];
  }
  return *count ? COMBA_OK : comba_fail(COMBA_ERROR_ARGUMENT, "the prompt is empty, expected at least one token");
}

typedef struct candidate {
  float probability; /* first the logit */
  int32_t token;
} candidate;

static int by_probability(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
  return x->token - y->token;
}

/* Draws from softmax(logits / temperature) among the top_k most probable and the smallest set that holds top_p; temperature 0
 * takes the most probable. */
static int32_t sample(const options *o, const float *logits, int64_t vocabulary, candidate *list, double uniform) {
  for (int64_t i = 0; i < vocabulary; i++) list[i] = (candidate){logits[i], (int32_t)i};
  qsort(list, (size_t)vocabulary, sizeof *list, by_probability);
  if (o->temperature == 0) return list[0].token;
  int64_t count = o->top_k && o->top_k < vocabulary ? o->top_k : vocabulary;
  const double largest = list[0].probability;
  double total = 0, kept = 0;
  for (int64_t i = 0; i < count; i++)
    total += list[i].probability = (float)exp((list[i].probability - largest) / o->temperature);
  for (int64_t i = 0; i < count; i++) {
    kept += list[i].probability;
    if (kept >= o->top_p * total) count = i + 1;
  }
  double left = uniform * kept;
  for (int64_t i = 0; i < count; i++)
    if ((left -= list[i].probability) < 0) return list[i].token;
  return list[count - 1].token;
}

static bool are_finite(const float *values, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return false;
  return true;
}

typedef struct output {
  bool bytes, json;
  json_t *tokens;
  char *text;
  size_t length;
} output;

static void emit(output *out, int32_t token, bool first) {
  if (out->json) {
    json_array_append_new(out->tokens, json_integer(token));
    if (out->bytes) out->text[out->length++] = (char)token;
  } else if (out->bytes) {
    putchar(token);
    fflush(stdout);
  } else {
    printf(first ? "%d" : ",%d", token);
    fflush(stdout);
  }
}

/* The text as JSON: bytes that are not UTF-8 (a cut character, say) become U+FFFD. */
static json_t *text_value(const output *out) {
  json_t *value = json_stringn(out->text, out->length);
  if (value) return value;
  char *clean = comba_allocate(3 * out->length + 1, "the text");
  size_t length = 0;
  for (size_t i = 0; clean && i < out->length; i++) {
    size_t size = 1;
    json_t *one = NULL;
    for (; size <= 4 && i + size <= out->length && !(one = json_stringn(out->text + i, size)); size++) continue;
    if (one) {
      memcpy(clean + length, out->text + i, size);
      length += size;
      i += size - 1;
    } else {
      memcpy(clean + length, "\xEF\xBF\xBD", 3);
      length += 3;
    }
    json_decref(one);
  }
  value = clean ? json_stringn(clean, length) : NULL;
  free(clean);
  return value;
}

static comba_status run(const options *o) {
  const comba_options library = comba_common_apply(&o->common);
  comba_model *model = NULL;
  comba_decoder *decoder = NULL;
  comba_model_info info;
  int32_t *ids = NULL;
  int64_t count = 0;
  float *logits = NULL;
  candidate *list = NULL;
  output out = {.json = o->common.json};
  comba_status status = COMBA_OK;
  COMBA_TRY(lm_load(&model, o->model, &library));
  comba_model_describe(model, &info);
  COMBA_TRY(read_prompt(o, info.vocab_size, &ids, &count));
  COMBA_TRY(comba_decoder_create(&decoder, model, 1, count + o->max_tokens));
  logits = comba_allocate((size_t)info.vocab_size * sizeof *logits, "logits");
  list = comba_allocate((size_t)info.vocab_size * sizeof *list, "candidates");
  out.bytes = info.vocab_size == 256;
  if (out.json) {
    out.tokens = json_array();
    out.text = comba_allocate((size_t)o->max_tokens + 1, "the text");
  }
  if (!logits || !list || (out.json && (!out.tokens || !out.text))) COMBA_TRY(COMBA_ERROR_MEMORY);

  const double began = comba_clock();
  COMBA_TRY(comba_decoder_feed(decoder, ids, count, logits));
  const double prefilled = comba_clock();
  if (!out.json && out.bytes && !o->common.quiet && o->prompt) fputs(o->prompt, stdout);
  for (int64_t i = 0; i < o->max_tokens; i++) {
    if (!are_finite(logits, info.vocab_size))
      COMBA_TRY(comba_fail(COMBA_ERROR_FORMAT, "%s: the model gives logits that are not finite; its training diverged",
                           o->model));
    const int32_t token = sample(o, logits, info.vocab_size, list,
                                 comba_random_uniform(o->common.seed, comba_random_stream("generate"), (uint64_t)i));
    emit(&out, token, i == 0);
    if (i + 1 < o->max_tokens) COMBA_TRY(comba_decoder_feed(decoder, &token, 1, logits));
  }
  const double seconds = comba_clock() - prefilled, rate = (double)o->max_tokens / (seconds > 0 ? seconds : 1e-9);
  if (out.json) {
    json_t *object = json_pack("{s:O, s:f, s:f}", "tokens", out.tokens, "tokens_per_second", rate,
                               "prompt_tokens_per_second", (double)count / (prefilled - began + 1e-9));
    if (object && out.bytes) json_object_set_new(object, "text", text_value(&out));
    json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(object);
  }
  putchar('\n');
  if (!o->common.quiet && !out.json)
    fprintf(stderr, "%lld tokens, %.1f tokens a second (prompt: %lld tokens, %.1f a second)\n",
            (long long)o->max_tokens, rate, (long long)count, (double)count / (prefilled - began + 1e-9));
cleanup:
  json_decref(out.tokens);
  free(out.text);
  free(list);
  free(logits);
  free(ids);
  comba_decoder_free(decoder);
  comba_model_free(model);
  return status;
}

static const struct argp_option list[] = {
    {"model", MODEL, "DIR", 0, "Folder with config.json and model.safetensors", 0},
    {"prompt", PROMPT, "TEXT", 0, "Text to continue (byte models, vocabulary 256)", 0},
    {"prompt-tokens", PROMPT_TOKENS, "N,N,...", 0, "Token numbers to continue, for other vocabularies", 0},
    {"max-tokens", MAX_TOKENS, "N", 0, "Tokens to generate (default 200)", 0},
    {"temperature", TEMPERATURE, "X", 0, "Divides the logits; 0 takes the most probable token (default 0.8)", 0},
    {"top-k", TOP_K, "N", 0, "Draw among the N most probable tokens, 0 for all (default 0)", 0},
    {"top-p", TOP_P, "X", 0, "Draw among the most probable tokens that hold this share (default 1)", 0},
    {0}};
static const struct argp_child children[] = {{&comba_common_argp, 0, 0, 0}, {0}};
const struct argp lm_generate_argp = {
    list,
    parse,
    0,
    "Continue a prompt, token by token from a recurrent state: memory does not grow with the text unless a "
    "layer attends without a window.",
    children,
    0,
    0};

int lm_generate(int argc, char **argv) {
  options o = {.common = comba_common_defaults(), .max_tokens = 200, .temperature = 0.8, .top_p = 1};
  comba_options_parse(&lm_generate_argp, argc, argv, &o);
  const comba_status status = run(&o);
  return status == COMBA_OK ? 0 : comba_report_failure(argv[0], status);
}
