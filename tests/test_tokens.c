/* Token streams and examples: windows, batches, and broken files. */
#include <stdbool.h>
#include <string.h>

#include "core/file.h"
#include "data/tokens.h"
#include "scratch_folder.h"
#include "testing.h"

static comba_status open_tokens(comba_tokens **tokens, const char *one, const char *two, int64_t vocab_size) {
  const char *paths[2] = {at(one), two ? at(two) : NULL};
  return comba_tokens_open(tokens, paths, two ? 2 : 1, vocab_size);
}

START_TEST(bytes_of_several_files) {
  comba_tokens *tokens = NULL;
  int32_t input[8], target[8];
  put("one", "abcd", 4);
  put("two", "efg", 3);
  expect_ok(open_tokens(&tokens, "one", "two", 256));
  ck_assert_int_eq(comba_tokens_count(tokens), 7);
  ck_assert(comba_tokens_are_bytes(tokens));
  ck_assert_int_eq(comba_tokens_windows(tokens, 4), 2);
  ck_assert_int_eq(comba_tokens_windows(tokens, 3), 2); /* the seventh token is the last target */
  expect_ok(comba_tokens_window(tokens, 2, 4, input, target));
  const int32_t expected[4] = {'c', 'd', 'e', 'f'}, next[4] = {'d', 'e', 'f', 'g'};
  ck_assert_mem_eq(input, expected, sizeof expected);
  ck_assert_mem_eq(target, next, sizeof next);
  expect_ok(comba_tokens_window(tokens, 4, 4, input, target));
  const int32_t tail[4] = {'e', 'f', 'g', 0}, last[4] = {'f', 'g', -100, -100};
  ck_assert_mem_eq(input, tail, sizeof tail);
  ck_assert_mem_eq(target, last, sizeof last);
  expect_failure(comba_tokens_window(tokens, 7, 4, input, target), COMBA_ERROR_ARGUMENT, "7");
  comba_tokens_free(tokens);
}
END_TEST

START_TEST(token_batches_depend_on_seed_and_step) {
  comba_tokens *tokens = NULL;
  int32_t ids[300], input[2][4 * 5], target[2][4 * 5];
  for (int i = 0; i < 300; i++) ids[i] = 70000 - i;
  expect_ok(comba_tokens_write(at("ids"), ids, 300, 70001));
  expect_ok(open_tokens(&tokens, "ids", NULL, 80000));
  for (int i = 0; i < 2; i++) expect_ok(comba_tokens_batch(tokens, 1, 17, 4, 5, input[i], target[i]));
  ck_assert_mem_eq(input[0], input[1], sizeof input[0]);
  for (int i = 0; i < 20; i++) ck_assert_int_eq(target[0][i], input[0][i] - 1);
  expect_ok(comba_tokens_batch(tokens, 1, 18, 4, 5, input[1], target[1]));
  ck_assert(memcmp(input[0], input[1], sizeof input[0]) != 0);
  /* the shortest stream that has a target for each token, and one shorter */
  int32_t all[2][300];
  expect_ok(comba_tokens_batch(tokens, 1, 0, 1, 299, all[0], all[1]));
  ck_assert_int_eq(all[1][298], 70000 - 299);
  expect_failure(comba_tokens_batch(tokens, 1, 0, 1, 300, all[0], all[1]), COMBA_ERROR_ARGUMENT, "at least 301");
  comba_tokens_free(tokens);
}
END_TEST

START_TEST(examples_of_two_files) {
  comba_tokens *tokens = NULL;
  const int32_t ids[6] = {1, 2, 3, 4, 5, 6};
  const uint8_t marks[6] = {1, 0, 1, 0, 1, 0};
  int32_t input[4], target[4];
  expect_ok(comba_tokens_write_examples(at("pairs"), ids, marks, 3, 2, 9));
  expect_ok(comba_tokens_write_examples(at("triples"), ids, marks, 2, 3, 9));
  expect_failure(open_tokens(&tokens, "pairs", NULL, 9), COMBA_ERROR_FORMAT, "no token behind the first");
  expect_ok(open_tokens(&tokens, "triples", "triples", 9));
  expect_failure(comba_tokens_check_length(tokens, 2, false), COMBA_ERROR_ARGUMENT, "examples of 3 tokens");
  ck_assert_int_eq(comba_tokens_windows(tokens, 4), 4);
  expect_ok(comba_tokens_evaluation_window(tokens, 3, 4, input, target)); /* ids 4 5 6, the second is marked */
  const int32_t second[4] = {4, 5, 6, 0}, marked[4] = {5, -100, -100, -100};
  ck_assert_mem_eq(input, second, sizeof second);
  ck_assert_mem_eq(target, marked, sizeof marked);
  bool seen[2] = {false};
  for (int step = 0; step < 20; step++) {
    expect_ok(comba_tokens_batch(tokens, 1, step, 1, 3, input, target));
    ck_assert(input[0] == 1 || input[0] == 4);
    seen[input[0] == 4] = true;
    ck_assert_int_eq(target[0], input[0] == 4 ? 5 : -100);
    ck_assert_int_eq(target[1], input[0] == 4 ? -100 : 3);
  }
  ck_assert(seen[0] && seen[1]);
  comba_tokens_free(tokens);

  char *data = NULL;
  size_t size = 0;
  tokens = NULL;
  expect_ok(comba_file_read(at("triples"), 1000, &data, &size));
  ck_assert_uint_eq(size, 32 + 6 * 3);
  static const struct {
    int place, value;
    const char *part;
  } broken[] = {{20, 1, "1 tokens an example"}, {20, 4, "4 tokens an example"}, {49, 2, "token 5 has mark 2"}};
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
    char altered[50];
    memcpy(altered, data, size);
    altered[broken[i].place] = (char)broken[i].value;
    put("altered", altered, size);
    expect_failure(open_tokens(&tokens, "altered", NULL, 9), COMBA_ERROR_FORMAT, broken[i].part);
  }
  free(data);
}
END_TEST

START_TEST(broken_token_files) {
  comba_tokens *tokens = NULL;
  const int32_t ids[3] = {1, 5, 999};
  char *data = NULL;
  size_t size = 0;
  put("empty", "", 0);
  put("one", "x", 1);
  expect_failure(open_tokens(&tokens, "missing", NULL, 256), COMBA_ERROR_IO, "missing");
  expect_failure(open_tokens(&tokens, "empty", NULL, 256), COMBA_ERROR_FORMAT, "no tokens");
  expect_failure(open_tokens(&tokens, "one", NULL, 256), COMBA_ERROR_FORMAT, "at least two");
  expect_failure(open_tokens(&tokens, "one", NULL, 100), COMBA_ERROR_ARGUMENT, "256");
  expect_failure(comba_tokens_write(at("ids"), ids, 3, 999), COMBA_ERROR_ARGUMENT, "999");
  expect_ok(comba_tokens_write(at("ids"), ids, 3, 1000));
  expect_failure(open_tokens(&tokens, "ids", NULL, 999), COMBA_ERROR_FORMAT, "vocab_size 1000");
  expect_failure(open_tokens(&tokens, "ids", "one", 1000), COMBA_ERROR_FORMAT, "one kind");
  expect_ok(comba_file_read(at("ids"), 1000, &data, &size));
  ck_assert_uint_eq(size, 32 + 3 * 2);
  static const struct {
    int place, value;
    const char *part;
  } broken[] = {{8, 3, "version"},        {12, 10, "token 2 has id 999"},
                {16, 3, "3 bytes an id"}, {20, 1, "0 in a stream"},
                {24, 4, "4 ids"},         {31, 255, "ids"}};
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
    char altered[38];
    memcpy(altered, data, size);
    altered[broken[i].place] = (char)broken[i].value;
    if (broken[i].place == 12) altered[13] = 0;
    put("altered", altered, size);
    const comba_status expected = strcmp(broken[i].part, "version") == 0 ? COMBA_ERROR_UNSUPPORTED : COMBA_ERROR_FORMAT;
    expect_failure(open_tokens(&tokens, "altered", NULL, 1000), expected, broken[i].part);
  }
  for (size_t cut = 8; cut < size; cut++) {
    put("cut", data, cut);
    expect_failure(open_tokens(&tokens, "cut", NULL, 1000), COMBA_ERROR_FORMAT, "cut: ");
  }
  ck_assert_ptr_null(tokens);
  free(data);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("tokens");
  TCase *tests = tcase_create("tokens");
  tcase_add_checked_fixture(tests, scratch_setup, scratch_teardown);
  tcase_add_test(tests, bytes_of_several_files);
  tcase_add_test(tests, token_batches_depend_on_seed_and_step);
  tcase_add_test(tests, examples_of_two_files);
  tcase_add_test(tests, broken_token_files);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
