/* Files: a write is either complete or absent, limits hold, nothing outside of a parent folder is touched. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <signal.h>
#include <unistd.h>

#include "core/file.h"

static char folder[64], *path;

static void setup(void) {
  strcpy(folder, "/tmp/comba-file-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(folder));
  ck_assert_int_eq(comba_path_join(&path, folder, "file"), COMBA_OK);
}

static void teardown(void) {
  ck_assert_int_eq(comba_folder_remove("/tmp", strrchr(folder, '/') + 1), COMBA_OK);
  free(path);
}

static void expect_content(const char *at, const char *expected) {
  char *data = NULL;
  size_t size = 0;
  ck_assert_msg(comba_file_read(at, 1 << 20, &data, &size) == COMBA_OK, "%s", comba_last_error());
  ck_assert_uint_eq(size, strlen(expected));
  ck_assert_str_eq(data, expected);
  free(data);
}

static void expect_failure(comba_status status, comba_status expected, const char *part) {
  ck_assert_int_eq(status, expected);
  ck_assert_msg(strstr(comba_last_error(), part) != NULL, "'%s' is not in: %s", part, comba_last_error());
}

static bool is_empty(const char *at) {
  bool empty = false;
  ck_assert_int_eq(comba_folder_is_empty(at, &empty), COMBA_OK);
  return empty;
}

START_TEST(write_replaces_and_leaves_no_temporary) {
  ck_assert(is_empty(folder));
  ck_assert_int_eq(comba_file_write(path, "old", 3), COMBA_OK);
  ck_assert_int_eq(comba_file_write(path, "newer", 5), COMBA_OK);
  expect_content(path, "newer");
  ck_assert_int_eq(unlink(path), 0);
  ck_assert(is_empty(folder));
}
END_TEST

START_TEST(unfinished_write_keeps_the_old_file) {
  comba_file_writer *writer = NULL;
  ck_assert_int_eq(comba_file_write(path, "old", 3), COMBA_OK);
  ck_assert_int_eq(comba_file_writer_create(&writer, path), COMBA_OK);
  ck_assert_int_eq(comba_file_writer_write(writer, "half", 4), COMBA_OK);
  expect_content(path, "old");
  comba_file_writer_free(writer);
  expect_content(path, "old");
  ck_assert_int_eq(unlink(path), 0);
  ck_assert(is_empty(folder));
}
END_TEST

START_TEST(full_disk_keeps_the_old_file) {
  ck_assert_int_eq(comba_file_write(path, "old", 3), COMBA_OK);
  signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit = {.rlim_cur = 1000, .rlim_max = RLIM_INFINITY};
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
  static const char large[5000];
  const comba_status status = comba_file_write(path, large, sizeof large);
  const struct rlimit none = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
  expect_failure(status, COMBA_ERROR_IO, path);
  expect_content(path, "old");
  ck_assert_int_eq(unlink(path), 0);
  ck_assert(is_empty(folder));
}
END_TEST

START_TEST(bad_destinations_are_refused) {
  expect_failure(comba_file_write("/dev/null", "x", 1), COMBA_ERROR_IO, "/dev/null");
  expect_failure(comba_file_write(folder, "x", 1), COMBA_ERROR_IO, folder);
  expect_failure(comba_file_write("/tmp/", "x", 1), COMBA_ERROR_ARGUMENT, "/tmp/");
  expect_failure(comba_file_write("/tmp/does/not/exist", "x", 1), COMBA_ERROR_IO, "/tmp/does/not/exist");
}
END_TEST

START_TEST(reads_stop_at_the_limit) {
  char *data = NULL;
  const void *map = NULL;
  size_t size = 0;
  ck_assert_int_eq(comba_file_write(path, "12345", 5), COMBA_OK);
  ck_assert_int_eq(comba_file_read(path, 5, &data, &size), COMBA_OK);
  free(data);
  expect_failure(comba_file_read(path, 4, &data, &size), COMBA_ERROR_FORMAT, "5 bytes");
  expect_failure(comba_file_read("/dev/zero", 100000, &data, &size), COMBA_ERROR_FORMAT, "100000");
  expect_failure(comba_file_read(folder, 10, &data, &size), COMBA_ERROR_IO, folder);
  expect_failure(comba_file_read("/tmp/none/none", 10, &data, &size), COMBA_ERROR_IO, "/tmp/none/none");
  expect_failure(comba_file_map(folder, &map, &size), COMBA_ERROR_IO, "folder");
  expect_failure(comba_file_map("/dev/zero", &map, &size), COMBA_ERROR_IO, "regular");
  ck_assert_int_eq(comba_file_map(path, &map, &size), COMBA_OK);
  ck_assert_uint_eq(size, 5);
  ck_assert_int_eq(memcmp(map, "12345", 5), 0);
  comba_file_unmap(map, size);
  ck_assert_int_eq(comba_file_write(path, "", 0), COMBA_OK);
  ck_assert_int_eq(comba_file_map(path, &map, &size), COMBA_OK);
  ck_assert_uint_eq(size, 0);
  comba_file_unmap(map, size);
}
END_TEST

START_TEST(folders_are_made_replaced_and_removed) {
  char *deep = NULL, *kept = NULL, *link = NULL, *inside = NULL;
  ck_assert_int_eq(comba_path_join(&deep, folder, "new/a//b/"), COMBA_OK);
  ck_assert_int_eq(comba_path_join(&kept, folder, "kept"), COMBA_OK);
  ck_assert_int_eq(comba_folder_make(deep), COMBA_OK);
  ck_assert_int_eq(comba_folder_make(deep), COMBA_OK);
  ck_assert_int_eq(comba_folder_make(kept), COMBA_OK);
  ck_assert_int_eq(comba_path_join(&link, folder, "new/link"), COMBA_OK);
  ck_assert_int_eq(symlink(kept, link), 0);
  ck_assert_int_eq(comba_path_join(&inside, kept, "inside"), COMBA_OK);
  ck_assert_int_eq(comba_file_write(inside, "x", 1), COMBA_OK);

  ck_assert_msg(comba_folder_replace(folder, "new", "best") == COMBA_OK, "%s", comba_last_error());
  ck_assert_int_eq(comba_folder_make(deep), COMBA_OK);
  ck_assert_msg(comba_folder_replace(folder, "new", "best") == COMBA_OK, "%s", comba_last_error());
  ck_assert(!comba_path_exists(deep));
  expect_content(inside, "x"); /* behind the link of the folder that was replaced */
  expect_failure(comba_folder_replace(folder, "new", "best"), COMBA_ERROR_IO, "best");
  ck_assert_int_eq(comba_folder_remove(folder, "best"), COMBA_OK);
  ck_assert_int_eq(comba_folder_remove(folder, "best"), COMBA_OK);
  expect_failure(comba_folder_remove(folder, ".."), COMBA_ERROR_ARGUMENT, "'..'");
  expect_failure(comba_folder_remove(folder, "kept/inside"), COMBA_ERROR_ARGUMENT, "'kept/inside'");
  expect_failure(comba_folder_make(inside), COMBA_ERROR_IO, inside);
  free(deep);
  free(kept);
  free(link);
  free(inside);
}
END_TEST

START_TEST(sweep_removes_what_a_killed_process_left) {
  comba_file_writer *writer = NULL;
  ck_assert_int_eq(comba_file_write(path, "kept", 4), COMBA_OK);
  ck_assert_int_eq(comba_file_writer_create(&writer, path), COMBA_OK);
  ck_assert_int_eq(comba_folder_sweep(folder), COMBA_OK);
  expect_content(path, "kept");
  expect_failure(comba_file_writer_commit(&writer), COMBA_ERROR_IO, path); /* its temporary is gone */
  ck_assert_int_eq(unlink(path), 0);
  ck_assert(is_empty(folder));
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("file");
  tcase_add_checked_fixture(cases, setup, teardown);
  tcase_add_test(cases, write_replaces_and_leaves_no_temporary);
  tcase_add_test(cases, unfinished_write_keeps_the_old_file);
  tcase_add_test(cases, full_disk_keeps_the_old_file);
  tcase_add_test(cases, bad_destinations_are_refused);
  tcase_add_test(cases, reads_stop_at_the_limit);
  tcase_add_test(cases, folders_are_made_replaced_and_removed);
  tcase_add_test(cases, sweep_removes_what_a_killed_process_left);
  Suite *suite = suite_create("file");
  suite_add_tcase(suite, cases);
  SRunner *runner = srunner_create(suite);
  srunner_run_all(runner, CK_ENV);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
