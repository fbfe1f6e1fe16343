#include "scratch_folder.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "testing.h"

static char root[64];

const char *scratch_root(void) {
  return root;
}

void scratch_setup(void) {
  strcpy(root, "/tmp/comba-test-XXXXXX");
  ck_assert_ptr_nonnull(mkdtemp(root));
}

void scratch_teardown(void) {
  ck_assert_int_eq(comba_folder_remove("/tmp", strrchr(root, '/') + 1), COMBA_OK);
}

const char *at(const char *name) {
  static char path[4][256];
  static int next;
  char *p = path[next++ % 4];
  snprintf(p, sizeof path[0], "%s/%s", root, name);
  return p;
}

void put(const char *name, const void *data, size_t size) {
  char folder[256];
  snprintf(folder, sizeof folder, "%s", at(name));
  *strrchr(folder, '/') = 0;
  expect_ok(comba_folder_make(folder));
  expect_ok(comba_file_write(at(name), data, size));
}

void expect_ok(comba_status status) {
  ck_assert_msg(status == COMBA_OK, "%s", comba_last_error());
}

void expect_failure(comba_status status, comba_status expected, const char *part) {
  ck_assert_msg(status == expected, "status %d, expected %d: %s", status, expected, comba_last_error());
  ck_assert_msg(strstr(comba_last_error(), part) != NULL, "'%s' is not in: %s", part, comba_last_error());
}
