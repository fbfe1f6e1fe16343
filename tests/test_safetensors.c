/* safetensors: files round trip, conversions are exact, and no file, however broken, does more than fail with a message. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/safetensors.h"

static char folder[64];

static void setup(void) {
  strcpy(folder, "/tmp/comba-safetensors-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void teardown(void) {
  ck_assert_int_eq(comba_folder_remove("/tmp", strrchr(folder, '/') + 1), COMBA_OK);
}

static char *path_of(const char *name) {
  char *path = NULL;
  ck_assert_int_eq(comba_path_join(&path, folder, name), COMBA_OK);
  return path;
}

static void expect_ok(comba_status status) {
  ck_assert_msg(status == COMBA_OK, "%s", comba_last_error());
}

static void expect_message(const char *part, const char *what) {
  ck_assert_msg(strstr(comba_last_error(), part) != NULL, "%s: '%s' is not in: %s", what, part, comba_last_error());
}

/* A file of that header and that many bytes of data, in memory of exactly its size. */
static char *file_of(const char *header, size_t header_size, size_t data_size, size_t *size) {
  const uint64_t length = header_size;
  *size = 8 + header_size + data_size;
  char *bytes = calloc(1, *size);
  ck_assert_ptr_nonnull(bytes);
  memcpy(bytes, &length, 8);
  memcpy(bytes + 8, header, header_size);
  return bytes;
}

/* ---- Round trips ---- */

START_TEST(written_files_read_back) {
  static const int64_t matrix[] = {2, 3}, row[] = {3}, none[] = {0, 5};
  static const float floats[] = {1, -2, 3.5f, 0, INFINITY, -0.0f};
  static const int64_t integers[] = {1, -7, INT32_MAX};
  static const uint8_t bytes[] = {1, 2, 255};
  const comba_written_tensor tensors[] = {
      {"b.weight", COMBA_STORED_F32, 2, matrix, floats}, {"a", COMBA_STORED_U8, 1, row, bytes},
      {"ids", COMBA_STORED_I64, 1, row, integers},       {"a.weight \"x\"", COMBA_STORED_F32, 0, NULL, floats + 2},
      {"empty", COMBA_STORED_F32, 2, none, NULL},
  };
  const char *const metadata[] = {"step", "12", "note", "a \"quoted\" text", NULL};
  char *path = path_of("model.safetensors");
  expect_ok(comba_safetensors_write(path, tensors, 5, metadata));

  char *raw = NULL;
  size_t size = 0;
  expect_ok(comba_file_read(path, 1 << 20, &raw, &size));
  uint64_t header_size;
  memcpy(&header_size, raw, 8);
  ck_assert_uint_eq(header_size % 8, 0);
  ck_assert_uint_eq(size, 8 + header_size + 3 * 8 + 7 * 4 + 3);
  /* Larger types first, then by name. */
  const char *const order[] = {"__metadata__", "\"ids\"", "\"a.weight", "\"b.weight\"", "\"empty\"", "\"a\""};
  for (size_t i = 1; i < 6; i++) ck_assert(strstr(raw + 8, order[i - 1]) < strstr(raw + 8, order[i]));
  free(raw);

  comba_safetensors *read = NULL;
  const comba_stored_tensor *tensor = NULL;
  float values[6];
  int32_t numbers[3];
  expect_ok(comba_safetensors_open_folder(&read, folder));
  ck_assert_uint_eq(comba_safetensors_count(read), 5);
  ck_assert_str_eq(comba_safetensors_metadata(read, "format"), "pt");
  ck_assert_str_eq(comba_safetensors_metadata(read, "note"), "a \"quoted\" text");
  ck_assert_ptr_null(comba_safetensors_metadata(read, "absent"));
  expect_ok(comba_safetensors_get(read, "b.weight", &tensor));
  ck_assert_int_eq(tensor->rank, 2);
  ck_assert_int_eq(tensor->shape[1], 3);
  expect_ok(comba_stored_tensor_floats(tensor, values));
  ck_assert_int_eq(memcmp(values, floats, sizeof floats), 0);
  expect_ok(comba_safetensors_get(read, "ids", &tensor));
  expect_ok(comba_stored_tensor_integers(tensor, numbers));
  ck_assert_int_eq(numbers[1], -7);
  ck_assert_int_eq(comba_stored_tensor_floats(tensor, values), COMBA_ERROR_FORMAT);
  expect_message("I64", "floats of integers");
  ck_assert_int_eq(comba_safetensors_get(read, "c", &tensor), COMBA_ERROR_FORMAT);
  expect_message("'c' is missing", "get");
  comba_safetensors_free(read);

  const comba_written_tensor twice[] = {tensors[0], tensors[1], tensors[0]};
  ck_assert_int_eq(comba_safetensors_write(path, twice, 3, NULL), COMBA_ERROR_ARGUMENT);
  expect_message("b.weight", "two of one name");
  ck_assert_int_eq(comba_safetensors_write("/tmp/no/such/folder/x", tensors, 5, NULL), COMBA_ERROR_IO);
  free(path);
}
END_TEST

START_TEST(conversions_are_exact) {
  static const uint16_t halves[] = {0x0000, 0x8000, 0x3C00, 0xC000, 0x0001, 0x03FF,
                                    0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x3555};
  static const float expected[] = {0,        -0.0f, 1,        -2,        0x1p-24f,   0x3FFp-24f,
                                   0x1p-14f, 65504, INFINITY, -INFINITY, 0x1.554p-2f};
  static const uint16_t brains[] = {0x3F80, 0xC040, 0x7F80, 0x0000};
  static const double doubles[] = {1.5, -1e300};
  static const int64_t wide[] = {5, INT64_C(1) << 40};
  static const int64_t eleven[] = {11}, four[] = {4}, two[] = {2};
  const comba_written_tensor tensors[] = {{"bf16", COMBA_STORED_BF16, 1, four, brains},
                                          {"f16", COMBA_STORED_F16, 1, eleven, halves},
                                          {"f64", COMBA_STORED_F64, 1, two, doubles},
                                          {"i64", COMBA_STORED_I64, 1, two, wide}};
  char *path = path_of("types.safetensors");
  comba_safetensors *read = NULL;
  float values[11];
  int32_t integers[2];
  expect_ok(comba_safetensors_write(path, tensors, 4, NULL));
  expect_ok(comba_safetensors_open(&read, path));
  expect_ok(comba_stored_tensor_floats(comba_safetensors_find(read, "f16"), values));
  ck_assert_int_eq(memcmp(values, expected, sizeof expected), 0);
  expect_ok(comba_stored_tensor_floats(comba_safetensors_find(read, "bf16"), values));
  ck_assert(values[0] == 1 && values[1] == -3 && isinf(values[2]) && values[3] == 0);
  expect_ok(comba_stored_tensor_floats(comba_safetensors_find(read, "f64"), values));
  ck_assert(values[0] == 1.5f && isinf(values[1]));
  ck_assert_int_eq(comba_stored_tensor_integers(comba_safetensors_find(read, "i64"), integers), COMBA_ERROR_FORMAT);
  expect_message("element 1 is 1099511627776", "a wide integer");
  comba_safetensors_free(read);
  free(path);
}
END_TEST

/* ---- What a model wants ---- */

START_TEST(load_names_what_does_not_fit) {
  static const int64_t two[] = {2}, three[] = {3}, square[] = {2, 1};
  static const float source[] = {1, 2, 3};
  static const int32_t integers[] = {1, 2};
  const comba_written_tensor tensors[] = {{"a", COMBA_STORED_F32, 1, two, source},
                                          {"b", COMBA_STORED_F32, 1, three, source},
                                          {"i", COMBA_STORED_I32, 1, two, integers}};
  char *path = path_of("model.safetensors");
  comba_safetensors *read = NULL;
  float a[2] = {9, 9}, b[3] = {9, 9, 9}, head[2] = {9, 9};
  expect_ok(comba_safetensors_write(path, tensors, 2, NULL));
  expect_ok(comba_safetensors_open(&read, path));
  const comba_wanted_tensor fits[] = {
      {"lm_head.weight", 1, two, head, true}, {"b", 1, three, b, false}, {"a", 1, two, a, false}};
  expect_ok(comba_safetensors_load(read, fits, 3));
  ck_assert(a[1] == 2 && b[2] == 3 && head[0] == 9);
  const comba_wanted_tensor skipped[] = {{"b", 1, three, NULL, true}, {"a", 1, two, a, false}};
  expect_ok(comba_safetensors_load(read, skipped, 2));

  a[0] = 9;
  const comba_wanted_tensor missing[] = {
      {"a", 1, two, a, false}, {"b", 1, three, b, false}, {"c.weight", 1, two, head, false}};
  ck_assert_int_eq(comba_safetensors_load(read, missing, 3), COMBA_ERROR_FORMAT);
  expect_message("1 of 3 tensors missing: c.weight; 0 not expected", "missing");
  ck_assert_int_eq(comba_safetensors_load(read, missing, 1), COMBA_ERROR_FORMAT);
  expect_message("1 not expected: b", "extra");
  const comba_wanted_tensor misshapen[] = {{"a", 1, two, a, false}, {"b", 1, two, b, false}};
  ck_assert_int_eq(comba_safetensors_load(read, misshapen, 2), COMBA_ERROR_FORMAT);
  expect_message("'b' has shape (3), expected (2)", "shape");
  const comba_wanted_tensor ranked[] = {{"a", 2, square, a, false}, {"b", 1, three, b, false}};
  ck_assert_int_eq(comba_safetensors_load(read, ranked, 2), COMBA_ERROR_FORMAT);
  expect_message("'a' has shape (2), expected (2, 1)", "rank");
  ck_assert_msg(a[0] == 9, "a load that failed has written");
  comba_safetensors_free(read);

  expect_ok(comba_safetensors_write(path, tensors, 3, NULL));
  expect_ok(comba_safetensors_open(&read, path));
  const comba_wanted_tensor typed[] = {{"a", 1, two, a, false}, {"b", 1, three, b, false}, {"i", 1, two, head, false}};
  ck_assert_int_eq(comba_safetensors_load(read, typed, 3), COMBA_ERROR_FORMAT);
  expect_message("'i' has dtype I32, expected F32", "type");
  comba_safetensors_free(read);
  free(path);
}
END_TEST

/* ---- Shards ---- */

static void write_index(const char *text) {
  char *path = path_of("model.safetensors.index.json");
  expect_ok(comba_file_write(path, text, strlen(text)));
  free(path);
}

static void expect_bad_index(const char *text, const char *part) {
  comba_safetensors *read = NULL;
  write_index(text);
  const comba_status status = comba_safetensors_open_folder(&read, folder);
  ck_assert_msg(status != COMBA_OK && !read, "accepted: %s", text);
  expect_message(part, text);
}

START_TEST(shards_are_read_through_their_index) {
  static const int64_t two[] = {2};
  static const float first[] = {1, 2}, second[] = {3, 4};
  const comba_written_tensor tensors[] = {{"a", COMBA_STORED_F32, 1, two, first},
                                          {"b", COMBA_STORED_F32, 1, two, second}};
  char *one = path_of("model-1.safetensors"), *other = path_of("model-2.safetensors");
  comba_safetensors *read = NULL;
  ck_assert_int_eq(comba_safetensors_open_folder(&read, folder), COMBA_ERROR_IO);
  expect_message("model.safetensors.index.json", "an empty folder");
  expect_ok(comba_safetensors_write(one, &tensors[1], 1, NULL));
  expect_ok(comba_safetensors_write(other, &tensors[0], 1, NULL));
  write_index("{\"metadata\": {\"total_size\": 16}, \"weight_map\": {\"b\": \"model-1.safetensors\", \"a\": "
              "\"model-2.safetensors\"}}");
  expect_ok(comba_safetensors_open_folder(&read, folder));
  ck_assert_uint_eq(comba_safetensors_count(read), 2);
  ck_assert_str_eq(comba_safetensors_tensor(read, 0)->name, "a");
  float values[2];
  expect_ok(comba_stored_tensor_floats(comba_safetensors_find(read, "b"), values));
  ck_assert(values[0] == 3);
  comba_safetensors_free(read);

  expect_bad_index("{\"weight_map\": {\"a\": \"../model-1.safetensors\"}}", "\"../model-1.safetensors\"");
  expect_bad_index("{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "/etc/passwd");
  expect_bad_index("{\"weight_map\": {\"a\": \"..\"}}", "\"..\"");
  expect_bad_index("{\"weight_map\": {\"a\": \"\"}}", "'a' is in \"\"");
  expect_bad_index("{\"weight_map\": {\"a\": 3}}", "'a' is in 3");
  expect_bad_index("{\"weight_map\": [1]}", "an array of 1");
  expect_bad_index("{}", "weight_map is missing");
  expect_bad_index("[]", "weight_map is missing");
  expect_bad_index("", "line 1");
  expect_bad_index("{\"weight_map\": {\"a\": \"model-3.safetensors\"}}", "model-3.safetensors");
  expect_bad_index("{\"weight_map\": {\"a\": \"model.safetensors.index.json\"}}", "header of");
  expect_bad_index("{\"weight_map\": {\"a\": \"model-1.safetensors\"}}", "'b' is not in the weight_map");
  expect_bad_index("{\"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-2.safetensors\"}}",
                   "'a', expected in model-1");
  expect_bad_index("{\"weight_map\": {\"a\": \"model-2.safetensors\", \"c\": \"model-2.safetensors\"}}",
                   "'c' is not in");
  expect_bad_index("{\"weight_map\": {\"a\": \"model-2.safetensors\", \"a\": \"model-1.safetensors\"}}", "\"a\"");
  free(one);
  free(other);
}
END_TEST

/* ---- Broken files ---- */

#define ENTRY(dtype, shape, offsets) "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
  const char *header;
  size_t data;
  const char *part; /* of the message */
} broken[] = {
    {"", 0, "header"},
    {"null", 0, "line 1"},
    {"[]", 0, "an array of 0"},
    {"{", 0, "line 1"},
    {"{}", 1, "1 bytes of data, expected 0"},
    {"{}x", 0, "line 1"},
    {"{\"a\":3}", 0, "'a': is 3"},
    {"{\"a\":null}", 0, "'a': is null"},
    {"{\"a\":[]}", 0, "'a': is an array of 0"},
    {"{\"a\":{}}", 0, "'a': dtype is missing"},
    {"{\"a\":" ENTRY("\"F31\"", "[1]", "[0,4]") "}", 4, "'a': dtype is \"F31\""},
    {"{\"a\":" ENTRY("3", "[1]", "[0,4]") "}", 4, "'a': dtype is 3"},
    {"{\"a\":" ENTRY("\"f32\"", "[1]", "[0,4]") "}", 4, "'a': dtype is \"f32\""},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "'a': shape is missing"},
    {"{\"a\":" ENTRY("\"F32\"", "1", "[0,4]") "}", 4, "'a': shape is 1"},
    {"{\"a\":" ENTRY("\"F32\"", "{}", "[0,4]") "}", 4, "'a': shape is an object"},
    {"{\"a\":" ENTRY("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "'a': shape is an array of 9"},
    {"{\"a\":" ENTRY("\"F32\"", "[-1]", "[0,4]") "}", 4, "'a': shape[0] is -1"},
    {"{\"a\":" ENTRY("\"F32\"", "[1.0]", "[0,4]") "}", 4, "'a': shape[0] is 1"},
    {"{\"a\":" ENTRY("\"F32\"", "[1,\"1\"]", "[0,4]") "}", 4, "'a': shape[1] is \"1\""},
    {"{\"a\":" ENTRY("\"F32\"", "[true]", "[0,4]") "}", 4, "'a': shape[0] is true"},
    {"{\"a\":" ENTRY("\"F32\"", "[4294967296,4294967296]", "[0,0]") "}", 0, "'a': shape[1] is 4294967296"},
    {"{\"a\":" ENTRY("\"F32\"", "[4611686018427387904,4]", "[0,0]") "}", 0, "'a': shape[1] is 4"},
    {"{\"a\":" ENTRY("\"F32\"", "[4611686018427387904]", "[0,0]") "}", 0, "'a': data_offsets are 0 to 0"},
    {"{\"a\":" ENTRY("\"F64\"", "[2305843009213693952]", "[0,0]") "}", 0, "'a': data_offsets are 0 to 0"},
    {"{\"a\":" ENTRY("\"F32\"", "[99999999999999999999]", "[0,4]") "}", 4, "too big integer"},
    {"{\"a\":" ENTRY("\"F32\"", "[1e999]", "[0,4]") "}", 4, "real number overflow"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "'a': data_offsets is missing"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0]") "}", 4, "'a': data_offsets is an array of 1"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4,8]") "}", 4, "'a': data_offsets is an array of 3"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "4") "}", 4, "'a': data_offsets is 4"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[-4,0]") "}", 4, "'a': data_offsets[0] is -4"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,8]") "}", 4, "'a': data_offsets[1] is 8"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[4,0]") "}", 4, "'a': data_offsets are 4 to 0"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,9223372036854775807]") "}", 4,
     "'a': data_offsets[1] is 9223372036854775807"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0.0,4]") "}", 4, "'a': data_offsets[0] is 0"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,\"4\"]") "}", 4, "'a': data_offsets[1] is \"4\""},
    {"{\"a\":" ENTRY("\"F32\"", "[2]", "[0,4]") "}", 4, "'a': data_offsets are 0 to 4, expected 2 elements"},
    {"{\"a\":" ENTRY("\"F16\"", "[1]", "[0,4]") "}", 4, "'a': data_offsets are 0 to 4, expected 1 elements"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 3, "'a': data_offsets[1] is 4, expected an integer from 0 to 3"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 5, "5 bytes of data, expected 4"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8, "'a' begins at byte 4, expected 0"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[8,12]") "}", 12,
     "'b' begins at byte 8"},
    {"{\"a\":" ENTRY("\"F32\"", "[2]", "[0,8]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8,
     "'b' begins at byte 4, inside of tensor 'a'"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"b\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4,
     "begins at byte 0, inside of"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"b\":" ENTRY("\"F32\"", "[0]", "[2,2]") "}", 4,
     "'b' begins at byte 2"},
    {"{\"a\":" ENTRY("\"F32\"", "[1]", "[0,4]") ",\"a\":" ENTRY("\"F32\"", "[1]", "[4,8]") "}", 8, "\"a\""},
    {"{\"\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4, "'': a name of 0 bytes"},
    {"{\"a\\nb\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4, "'a?b': a name with the control character 10"},
    {"{\"a\\u0000b\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4, "\\u0000"},
    {"{\"a\":" ENTRY("\"F32\"", "[Infinity]", "[0,4]") "}", 4, "'a': shape[0] is inf"},
    {"{\"a\":" ENTRY("\"F32\"", "[NaN]", "[0,4]") "}", 4, "'a': shape[0] is nan"},
    {"{\"__metadata__\":3}", 0, "__metadata__ is 3"},
    {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__: 'format' is 1"},
    {"{\"a\xFF\":" ENTRY("\"F32\"", "[1]", "[0,4]") "}", 4, "line 1"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 4, "nested deeper than 64"},
};

START_TEST(broken_headers_are_named) {
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
    comba_safetensors *read = NULL;
    size_t size;
    char *bytes = file_of(broken[i].header, strlen(broken[i].header), broken[i].data, &size);
    const comba_status status = comba_safetensors_open_memory(&read, bytes, size, "broken.safetensors");
    ck_assert_msg(status == COMBA_ERROR_FORMAT && !read, "accepted: %s", broken[i].header);
    expect_message(broken[i].part, broken[i].header);
    expect_message("broken.safetensors: ", broken[i].header);
    free(bytes);
  }
}
END_TEST

START_TEST(broken_lengths_are_named) {
  static const uint64_t lengths[] = {3, 100, 100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63};
  comba_safetensors *read = NULL;
  size_t size;
  char *bytes = file_of("{}", 2, 0, &size);
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    char expected[64];
    memcpy(bytes, &lengths[i], 8);
    ck_assert_int_eq(comba_safetensors_open_memory(&read, bytes, size, "x"), COMBA_ERROR_FORMAT);
    snprintf(expected, sizeof expected, "a header of %ju bytes, expected at most 2", (uintmax_t)lengths[i]);
    expect_message(expected, "length");
  }
  for (size_t cut = 0; cut < 8; cut++)
    ck_assert_int_eq(comba_safetensors_open_memory(&read, bytes, cut, "x"), COMBA_ERROR_FORMAT);
  const uint64_t right = 2;
  memcpy(bytes, &right, 8);
  expect_ok(comba_safetensors_open_memory(&read, bytes, size, "x"));
  ck_assert_uint_eq(comba_safetensors_count(read), 0);
  ck_assert_ptr_null(comba_safetensors_find(read, "a"));
  comba_safetensors_free(read);
  free(bytes);
}
END_TEST

/* Opens a mutated file and, if it is still valid, reads every element; a sanitizer watches. Returns whether it was valid. */
static bool read_whole(const char *bytes, size_t size) {
  comba_safetensors *read = NULL;
  if (comba_safetensors_open_memory(&read, bytes, size, "mutated") != COMBA_OK) {
    ck_assert_ptr_null(read);
    expect_message("mutated", "a mutation");
    return false;
  }
  for (size_t i = 0; i < comba_safetensors_count(read); i++) {
    const comba_stored_tensor *tensor = comba_safetensors_tensor(read, i);
    ck_assert(tensor->elements <= (int64_t)size);
    float *values = malloc((size_t)tensor->elements * sizeof *values + 1);
    int32_t *integers = malloc((size_t)tensor->elements * sizeof *integers + 1);
    (void)comba_stored_tensor_floats(tensor, values);
    (void)comba_stored_tensor_integers(tensor, integers);
    free(values);
    free(integers);
  }
  comba_safetensors_free(read);
  return true;
}

START_TEST(mutations_never_do_harm) {
  static const char header[] =
      "{\"__metadata__\":{\"format\":\"pt\"},\"i\":" ENTRY("\"I64\"", "[2]", "[0,16]") ",\"a\":" ENTRY(
          "\"F32\"", "[2,2]", "[16,32]") ",\"h\":" ENTRY("\"F16\"", "[3]", "[32,38]") "}  ";
  static const char alphabet[] = "0123456789[]{},:\"-.eE\\ FINUab";
  size_t size, valid = 0;
  char *original = file_of(header, sizeof header - 1, 38, &size);
  ck_assert(read_whole(original, size));
  srand(20250602);
  for (int round = 0; round < 6000; round++) {
    const size_t kept = round % 4 == 3 ? (size_t)rand() % (size + 1) : size;
    char *bytes = malloc(kept + 1);
    memcpy(bytes, original, kept);
    for (int change = rand() % 4; kept > 0 && change >= 0; change--) {
      const size_t at = round % 8 == 0 ? (size_t)rand() % 8 % kept : (size_t)rand() % kept;
      bytes[at] = rand() % 2 ? (char)rand() : alphabet[(size_t)rand() % (sizeof alphabet - 1)];
    }
    char *exact = malloc(kept ? kept : 1); /* so that a sanitizer sees the first byte beyond */
    memcpy(exact, bytes, kept);
    valid += read_whole(exact, kept);
    free(exact);
    free(bytes);
  }
  ck_assert_uint_gt(valid, 0); /* changes of data alone */
  free(original);
}
END_TEST

/* ---- Tensors that hold others ---- */

START_TEST(a_matrix_is_split_into_its_rows) {
  static const char *const rows[] = {"x_a", "x_b"};
  static const char header[] = "{\"m.0.x_x\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                               "\"n\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[24,28]}}";
  const float numbers[] = {1, 2, 3, 4, 5, 6, 7};
  size_t size;
  char *bytes = file_of(header, sizeof header - 1, sizeof numbers, &size);
  comba_safetensors *file = NULL;
  memcpy(bytes + size - sizeof numbers, numbers, sizeof numbers);
  expect_ok(comba_safetensors_open_memory(&file, bytes, size, "packed"));
  expect_ok(comba_safetensors_split(file, "y_y", rows, 2));
  ck_assert_uint_eq(comba_safetensors_count(file), 2);
  expect_ok(comba_safetensors_split(file, "x_x", rows, 2));
  ck_assert_uint_eq(comba_safetensors_count(file), 3);
  const comba_stored_tensor *row = comba_safetensors_find(file, "m.0.x_b");
  ck_assert_ptr_nonnull(row);
  ck_assert(row->rank == 3 && row->shape[0] == 1 && row->shape[1] == 1 && row->shape[2] == 3 && row->elements == 3);
  ck_assert_mem_eq(row->data, numbers + 3, 3 * sizeof *numbers);
  ck_assert_ptr_null(comba_safetensors_find(file, "m.0.x_x"));
  comba_safetensors_free(file);

  expect_ok(comba_safetensors_open_memory(&file, bytes, size, "packed"));
  ck_assert_int_eq(comba_safetensors_split(file, "x_x", rows, 1), COMBA_ERROR_FORMAT);
  expect_message("packed: tensor 'm.0.x_x' has rank 2, expected a matrix of 1 rows", "split");
  comba_safetensors_free(file);
  free(bytes);
}
END_TEST

/* ---- Files of the reference implementation ---- */

START_TEST(parity_files_round_trip) {
  static const char *const cases[] = {"comba", "comba_expand2_tied", "comba_hybrid", "transformer", "vision_comba"};
  static const char *const files[] = {"model.safetensors", "io.safetensors"};
  const char *parity = getenv("COMBA_PARITY");
  if (!parity) return;
  for (size_t i = 0; i < 10; i++) {
    char source[4096];
    comba_safetensors *read = NULL, *again = NULL;
    snprintf(source, sizeof source, "%s/%s/%s", parity, cases[i / 2], files[i % 2]);
    expect_ok(comba_safetensors_open(&read, source));
    const size_t count = comba_safetensors_count(read);
    comba_written_tensor *tensors = calloc(count, sizeof *tensors);
    for (size_t k = 0; k < count; k++) {
      const comba_stored_tensor *tensor = comba_safetensors_tensor(read, k);
      tensors[k] = (comba_written_tensor){tensor->name, tensor->type, tensor->rank, tensor->shape, tensor->data};
    }
    char *path = path_of("again.safetensors");
    expect_ok(comba_safetensors_write(path, tensors, count, NULL));
    expect_ok(comba_safetensors_open(&again, path));
    ck_assert_uint_eq(comba_safetensors_count(again), count);
    for (size_t k = 0; k < count; k++) {
      const comba_stored_tensor *tensor = comba_safetensors_tensor(again, k);
      ck_assert_str_eq(tensor->name, tensors[k].name);
      ck_assert_int_eq(tensor->type, tensors[k].type);
      ck_assert_int_eq(tensor->rank, tensors[k].rank);
      ck_assert_int_eq(
          memcmp(tensor->data, tensors[k].data, (size_t)tensor->elements * comba_stored_type_size(tensor->type)), 0);
    }
    comba_safetensors_free(read);
    comba_safetensors_free(again);
    free(tensors);
    free(path);
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("safetensors");
  tcase_set_timeout(cases, 300);
  tcase_add_checked_fixture(cases, setup, teardown);
  tcase_add_test(cases, written_files_read_back);
  tcase_add_test(cases, conversions_are_exact);
  tcase_add_test(cases, load_names_what_does_not_fit);
  tcase_add_test(cases, shards_are_read_through_their_index);
  tcase_add_test(cases, broken_headers_are_named);
  tcase_add_test(cases, broken_lengths_are_named);
  tcase_add_test(cases, mutations_never_do_harm);
  tcase_add_test(cases, a_matrix_is_split_into_its_rows);
  tcase_add_test(cases, parity_files_round_trip);
  Suite *suite = suite_create("safetensors");
  suite_add_tcase(suite, cases);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
