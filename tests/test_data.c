/* Data sets, their batches and augmentation: what is read is what was written, the same for every number of threads and from every
 * starting point, and broken data is an error that names it. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "data/image_write.h"
#include "data/loader.h"
#include "data/order.h"
#include "scratch_folder.h"
#include "testing.h"

/* ---- Data made here ---- */

/* A PNG picture of 8 x 8 pixels with one grey value. */
static void put_picture(const char *name, int grey) {
  uint8_t pixels[8 * 8], *data = NULL;
  size_t size = 0;
  memset(pixels, grey, sizeof pixels);
  const comba_image image = {8, 8, 1, pixels};
  expect_ok(comba_image_encode_png(&image, &data, &size));
  put(name, data, size);
  free(data);
}

/* `classes` folders of `each` pictures; picture i of class c is 20 c + i grey. */
static void put_folders(const char *below, int classes, int each) {
  char name[64];
  for (int c = 0; c < classes; c++)
    for (int i = 0; i < each; i++) {
      snprintf(name, sizeof name, "%sclass %c/%02d.png", below, 'a' + c, i);
      put_picture(name, 20 * c + i);
    }
}

static size_t put_words(uint8_t *bytes, int count, const uint32_t *words) {
  for (int i = 0; i < 4 * count; i++) bytes[i] = (uint8_t)(words[i / 4] >> 8 * (3 - i % 4));
  return 4 * (size_t)count;
}

/* IDX pictures of 3 x 2 pixels with value 10 n, and their labels. */
static void put_idx(const char *prefix, int count, const uint8_t *labels) {
  uint8_t file[1024];
  char name[64];
  size_t size = put_words(file, 4, (uint32_t[]){0x803, (uint32_t)count, 3, 2});
  for (int i = 0; i < count * 6; i++) file[size++] = (uint8_t)(10 * (i / 6));
  snprintf(name, sizeof name, "%s-images-idx3-ubyte", prefix);
  put(name, file, size);
  size = put_words(file, 2, (uint32_t[]){0x801, (uint32_t)count});
  memcpy(file + size, labels, (size_t)count);
  snprintf(name, sizeof name, "%s-labels-idx1-ubyte", prefix);
  put(name, file, size + (size_t)count);
}

/* Record n has label n and the planes n, n + 100, n + 200. */
static void put_cifar(const char *name, int count) {
  uint8_t file[10 * 3073], *to = file;
  for (int n = 0; n < count; n++) {
    *to++ = (uint8_t)n;
    for (int plane = 0; plane < 3; plane++, to += 1024) memset(to, n + 100 * plane, 1024);
  }
  put(name, file, (size_t)(to - file));
}

static comba_dataset *open_set(void) {
  comba_dataset *dataset = NULL;
  expect_ok(comba_dataset_open(&dataset, scratch_root()));
  return dataset;
}

static comba_status prepare(comba_dataset *dataset, int64_t side, size_t cache, int threads) {
  comba_prepare_options options;
  comba_prepare_options_default(&options, dataset);
  options.side = side;
  options.cache_size = cache;
  options.threads = threads;
  options.training = true;
  return comba_dataset_prepare(dataset, &options);
}

static void expect_open_failure(comba_status expected, const char *part) {
  comba_dataset *dataset = NULL;
  expect_failure(comba_dataset_open(&dataset, scratch_root()), expected, part);
  ck_assert_ptr_null(dataset);
}

/* ---- Layouts ---- */

START_TEST(class_folders) {
  put_folders("train/", 3, 2);
  put_folders("val/", 2, 1);
  put_folders("test/", 3, 1);
  put("train/class a/.hidden", "x", 1);
  for (int cached = 0; cached < 2; cached++) {
    comba_dataset *d = open_set();
    uint8_t pixels[4 * 4 * 3];
    char path[64];
    expect_ok(prepare(d, 4, cached ? 1 << 20 : 0, 3));
    ck_assert_int_eq(comba_dataset_classes(d), 3);
    ck_assert_str_eq(comba_dataset_class_name(d, 2), "class c");
    ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_TRAIN), 6);
    ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_VALIDATION), 2);
    ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_TEST), 3);
    ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_ALL), 11);
    ck_assert_int_eq(comba_dataset_held_out(d), COMBA_SPLIT_VALIDATION);
    comba_dataset_path(d, COMBA_SPLIT_TRAIN, 3, path, sizeof path);
    ck_assert_str_eq(path, "train/class b/01.png");
    ck_assert_int_eq(comba_dataset_label(d, COMBA_SPLIT_TRAIN, 3), 1);
    expect_ok(comba_dataset_load(d, COMBA_SPLIT_TRAIN, 3, pixels));
    for (int i = 0; i < 4 * 4 * 3; i++) ck_assert_int_eq(pixels[i], 21);
    double mean[3], deviation[3];
    expect_ok(comba_dataset_statistics(d, COMBA_SPLIT_TRAIN, mean, deviation));
    ck_assert_double_eq_tol(mean[1], 20.5 / 255, 1e-12);
    ck_assert_double_eq_tol(deviation[1], sqrt(800 / 3.0 + 0.25) / 255, 1e-12);
    comba_dataset_free(d);
  }
}
END_TEST

START_TEST(broken_folders) {
  expect_open_failure(COMBA_ERROR_FORMAT, "nothing");
  put("train-images-idx3-ubyte.gz", "x", 1);
  expect_open_failure(COMBA_ERROR_UNSUPPORTED, "gunzip");
  put_folders("", 1, 2);
  comba_dataset *d = open_set();
  expect_failure(prepare(d, 4, 0, 1), COMBA_ERROR_FORMAT, "one class");
  comba_dataset_free(d);
  ck_assert_int_eq(mkdir(at("empty"), 0700), 0);
  expect_open_failure(COMBA_ERROR_FORMAT, "empty: class folder without files");
  put_picture("empty/1.png", 1);
  ck_assert_int_eq(symlink("/nowhere", at("empty/2.png")), 0);
  expect_open_failure(COMBA_ERROR_IO, "empty/2.png");
}
END_TEST

START_TEST(damaged_pictures_are_skipped_within_limits) {
  put_folders("", 2, 12);
  put("class a/05.png", "text", 4);
  put("class b/99.png", "RIFF\x10\0\0\0WEBPVP8 ", 16);
  comba_dataset *d = open_set();
  const char *path, *reason;
  expect_ok(prepare(d, 4, 1 << 20, 2));
  ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_TRAIN), 23);
  ck_assert_int_eq(comba_dataset_skipped(d), 2);
  comba_dataset_skipped_entry(d, 0, &path, &reason);
  ck_assert_str_eq(path, "class a/05.png");
  ck_assert_ptr_nonnull(strstr(reason, "text"));
  for (int64_t i = 0; i < 23; i++) { /* the others are still themselves */
    uint8_t pixels[4 * 4 * 3];
    char name[64];
    expect_ok(comba_dataset_load(d, COMBA_SPLIT_TRAIN, i, pixels));
    comba_dataset_path(d, COMBA_SPLIT_TRAIN, i, name, sizeof name);
    ck_assert_int_eq(pixels[0], 20 * (name[6] - 'a') + atoi(name + 8));
  }
  comba_dataset_free(d);

  comba_prepare_options strict;
  d = open_set();
  comba_prepare_options_default(&strict, d);
  strict.side = 4;
  strict.skip_bad = false;
  expect_failure(comba_dataset_prepare(d, &strict), COMBA_ERROR_FORMAT, "class a/05.png");
  comba_dataset_free(d);
  char name[64];
  for (int i = 0; i < 9; i++) {
    snprintf(name, sizeof name, "class a/bad %d", i);
    put(name, "", 0);
  }
  d = open_set();
  expect_failure(prepare(d, 4, 0, 2), COMBA_ERROR_FORMAT, "11 of 34");
  comba_dataset_free(d);
}
END_TEST

START_TEST(splits_are_stratified_and_come_back) {
  put_folders("", 3, 10);
  put("class b/ta\tb.png", "", 0);
  comba_dataset *d = open_set(), *again = open_set();
  expect_ok(prepare(d, 4, 0, 1));
  expect_failure(comba_dataset_split(d, 1.5, 1), COMBA_ERROR_ARGUMENT, "1.5");
  expect_ok(comba_dataset_split(d, 0.2, 1));
  int64_t members[3] = {0};
  for (int64_t i = 0; i < comba_dataset_count(d, COMBA_SPLIT_VALIDATION); i++)
    members[comba_dataset_label(d, COMBA_SPLIT_VALIDATION, i)]++;
  for (int c = 0; c < 3; c++) ck_assert_int_eq(members[c], 2);
  ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_TRAIN), 24);
  char split[80];
  snprintf(split, sizeof split, "%s.tsv", scratch_root()); /* beside the data */
  expect_ok(comba_dataset_write_split(d, split));
  expect_ok(comba_dataset_read_split(again, split));
  expect_ok(prepare(again, 4, 0, 1)); /* the bad picture is known and no longer looked at */
  ck_assert_int_eq(comba_dataset_skipped(again), 0);
  for (int s = 0; s < COMBA_SPLIT_ALL; s++) {
    ck_assert_int_eq(comba_dataset_count(d, (comba_split)s), comba_dataset_count(again, (comba_split)s));
    for (int64_t i = 0; i < comba_dataset_count(d, (comba_split)s); i++) {
      char one[64], other[64];
      comba_dataset_path(d, (comba_split)s, i, one, sizeof one);
      comba_dataset_path(again, (comba_split)s, i, other, sizeof other);
      ck_assert_str_eq(one, other);
    }
  }
  const uint64_t fingerprint = comba_dataset_fingerprint(d);
  ck_assert(fingerprint == comba_dataset_fingerprint(again));
  comba_dataset_free(again);
  comba_dataset_free(d);
  put_picture("class c/new.png", 5);
  d = open_set();
  ck_assert(fingerprint != comba_dataset_fingerprint(d));
  expect_failure(comba_dataset_read_split(d, split), COMBA_ERROR_FORMAT, "class c/new.png");
  expect_ok(comba_file_write(split, "class a/00.png\tnowhere\n", 23));
  expect_failure(comba_dataset_read_split(d, split), COMBA_ERROR_FORMAT, "line 1");
  comba_dataset_free(d);
  unlink(split);
}
END_TEST

START_TEST(classes_match_by_name) {
  static const char *const model[] = {"class c", "other", "class a", "class b"};
  put_folders("", 3, 2);
  comba_dataset *d = open_set();
  expect_failure(comba_dataset_match_classes(d, model, 3), COMBA_ERROR_FORMAT, "class b");
  expect_ok(comba_dataset_match_classes(d, model, 4));
  ck_assert_int_eq(comba_dataset_classes(d), 4);
  ck_assert_int_eq(comba_dataset_label(d, COMBA_SPLIT_TRAIN, 0), 2);
  ck_assert_int_eq(comba_dataset_label(d, COMBA_SPLIT_TRAIN, 5), 0);
  comba_dataset_free(d);
}
END_TEST

START_TEST(idx_files) {
  put_idx("train", 4, (uint8_t[]){0, 2, 1, 2});
  put_idx("t10k", 2, (uint8_t[]){1, 0});
  comba_dataset *d = open_set();
  uint8_t pixels[9];
  char path[64];
  ck_assert_int_eq(comba_dataset_channels(d), 1);
  ck_assert_int_eq(comba_dataset_side(d), 3);
  ck_assert_int_eq(comba_dataset_classes(d), 3);
  expect_ok(prepare(d, 3, 1 << 20, 1));
  expect_ok(comba_dataset_load(d, COMBA_SPLIT_TRAIN, 3, pixels));
  for (int i = 0; i < 9; i++) ck_assert_int_eq(pixels[i], 30);
  comba_dataset_path(d, COMBA_SPLIT_TEST, 1, path, sizeof path);
  ck_assert_str_eq(path, "t10k-images-idx3-ubyte:1");
  comba_dataset_free(d);

  put_idx("t10k", 2, (uint8_t[]){1, 7});
  expect_open_failure(COMBA_ERROR_FORMAT, "label 7 at position 1");
  put("classes.txt", "cat\ncat\n", 8);
  expect_open_failure(COMBA_ERROR_FORMAT, "twice");
  put("classes.txt", "cat\r\ndog\r\n", 10);
  expect_open_failure(COMBA_ERROR_FORMAT, "label 2 at position 1");
  uint8_t header[20];
  put("train-images-idx3-ubyte", header, put_words(header, 4, (uint32_t[]){0x803, 4, 3, 3}));
  expect_open_failure(COMBA_ERROR_FORMAT, "expected 52");
  put("train-images-idx3-ubyte", header, put_words(header, 4, (uint32_t[]){0x1f8b0808, 4, 3, 3}));
  expect_open_failure(COMBA_ERROR_FORMAT, "magic");
  put("train-images-idx3-ubyte", header, put_words(header, 4, (uint32_t[]){0x803, ~0u, ~0u, ~0u}));
  expect_open_failure(COMBA_ERROR_FORMAT, "4294967295 x 4294967295");
  put("train-images-idx3-ubyte", header, 7);
  expect_open_failure(COMBA_ERROR_FORMAT, "7 bytes");
}
END_TEST

START_TEST(cifar_batches) {
  put_cifar("data_batch_1.bin", 3);
  put_cifar("data_batch_2.bin", 2);
  put_cifar("test_batch.bin", 2);
  put("batches.meta.txt", "airplane\nbird\ncat\n\n", 19);
  comba_dataset *d = open_set();
  uint8_t pixels[32 * 32 * 3];
  expect_ok(prepare(d, 32, 0, 1));
  ck_assert_int_eq(comba_dataset_count(d, COMBA_SPLIT_TRAIN), 5);
  ck_assert_str_eq(comba_dataset_class_name(d, 1), "bird");
  expect_ok(comba_dataset_load(d, COMBA_SPLIT_TRAIN, 4, pixels));
  ck_assert_int_eq(comba_dataset_label(d, COMBA_SPLIT_TRAIN, 4), 1);
  for (int i = 0; i < 32 * 32 * 3; i++) ck_assert_int_eq(pixels[i], 1 + 100 * (i % 3));
  comba_dataset_free(d);
  put_cifar("test_batch.bin", 4);
  expect_open_failure(COMBA_ERROR_FORMAT, "label 3 at record 3");
  put("test_batch.bin", "short", 5);
  expect_open_failure(COMBA_ERROR_FORMAT, "multiple of 3073");
}
END_TEST

/* ---- Batches ---- */

enum { PICTURES = 50, BATCH = 8, PER_EPOCH = 7, SIDE = 4 };

typedef struct batch_copy {
  uint8_t pixels[BATCH * SIDE * SIDE * 3];
  int32_t crops[BATCH * 3], labels[BATCH];
} batch_copy;

static void collect(const comba_loader_options *options, int64_t batches, batch_copy *copies) {
  comba_loader *loader = NULL;
  comba_loader_batch batch;
  expect_ok(comba_loader_create(&loader, options));
  for (int64_t i = 0; i < batches; i++) {
    expect_ok(comba_loader_next(loader, &batch));
    ck_assert_int_eq(batch.epoch * PER_EPOCH + batch.batch,
                     options->first_epoch * PER_EPOCH + options->first_batch + i);
    ck_assert_int_eq(batch.count, batch.batch == PER_EPOCH - 1 ? PICTURES % BATCH : BATCH);
    memcpy(copies[i].pixels, batch.pictures.pixels, sizeof copies->pixels);
    memcpy(copies[i].crops, batch.pictures.crops, sizeof copies->crops);
    memcpy(copies[i].labels, batch.labels, sizeof copies->labels);
  }
  if (options->epochs) {
    expect_ok(comba_loader_next(loader, &batch));
    ck_assert_int_eq(batch.count, 0);
  }
  comba_loader_free(loader);
}

START_TEST(batches_do_not_depend_on_threads_or_start) {
  enum { TOTAL = 2 * PER_EPOCH };
  static batch_copy expected[TOTAL], found[TOTAL];
  const comba_augment augment = {2, true, 5};
  put_folders("", 5, 10);
  comba_dataset *d = open_set();
  expect_ok(prepare(d, SIDE, 0, 2));
  comba_loader_options options = {.dataset = d,
                                  .split = COMBA_SPLIT_TRAIN,
                                  .side = SIDE,
                                  .channels = 3,
                                  .augment = &augment,
                                  .batch_size = BATCH,
                                  .shuffle = true,
                                  .seed = 3,
                                  .epochs = 2,
                                  .threads = 1,
                                  .depth = 1};
  collect(&options, TOTAL, expected);
  ck_assert_int_eq(expected[PER_EPOCH - 1].labels[BATCH - 1], -100); /* beyond the short batch */
  int64_t seen[5] = {0};
  for (int i = 0; i < PER_EPOCH * BATCH; i++) {
    const int32_t label = expected[i / BATCH].labels[i % BATCH];
    if (label >= 0) seen[label]++;
  }
  for (int c = 0; c < 5; c++) ck_assert_int_eq(seen[c], 10);
  ck_assert(memcmp(expected[0].labels, expected[PER_EPOCH].labels, sizeof expected[0].labels) != 0);
  ck_assert(memcmp(expected[0].crops, expected[PER_EPOCH].crops, sizeof expected[0].crops) != 0);
  for (options.threads = 1; options.threads <= 5; options.threads += 2)
    for (options.depth = 1; options.depth <= 4; options.depth++) {
      collect(&options, TOTAL, found);
      ck_assert_mem_eq(found, expected, sizeof expected);
    }
  for (int64_t start = 0; start < TOTAL; start += 3) {
    options.first_epoch = start / PER_EPOCH;
    options.first_batch = start % PER_EPOCH;
    collect(&options, TOTAL - start, found);
    ck_assert_mem_eq(found, expected + start, (size_t)(TOTAL - start) * sizeof *found);
  }
  options.first_epoch = options.first_batch = options.epochs = 0;
  for (int64_t batches = 0; batches < 6; batches++) collect(&options, batches, found); /* stopped anywhere */
  comba_dataset_free(d);
}
END_TEST

START_TEST(a_picture_that_vanishes_fails_its_batch) {
  put_folders("", 2, 10);
  comba_dataset *d = open_set();
  expect_ok(prepare(d, SIDE, 0, 1));
  ck_assert_int_eq(unlink(at("class b/03.png")), 0);
  const comba_loader_options options = {.dataset = d,
                                        .split = COMBA_SPLIT_TRAIN,
                                        .side = SIDE,
                                        .channels = 3,
                                        .batch_size = 5,
                                        .epochs = 1,
                                        .threads = 3,
                                        .depth = 3};
  comba_loader *loader = NULL;
  comba_loader_batch batch;
  expect_ok(comba_loader_create(&loader, &options));
  for (int i = 0; i < 2; i++) expect_ok(comba_loader_next(loader, &batch));
  for (int i = 0; i < 2; i++) expect_failure(comba_loader_next(loader, &batch), COMBA_ERROR_IO, "class b/03.png");
  comba_loader_free(loader);
  comba_dataset_free(d);
}
END_TEST

START_TEST(augmentation_draws_every_crop) {
  enum { PAD = 2, CROPS = 2 * PAD + 1 };
  bool seen[CROPS][CROPS][2] = {{{false}}};
  const comba_augment augment = {PAD, true, 1};
  for (int64_t picture = 0; picture < 1000; picture++) {
    int32_t crop[3];
    comba_augment_draw(&augment, 3, picture, crop);
    for (int i = 0; i < 2; i++) ck_assert(crop[i] >= -PAD && crop[i] <= PAD);
    ck_assert(crop[2] == 0 || crop[2] == 1);
    seen[crop[0] + PAD][crop[1] + PAD][crop[2]] = true;
  }
  for (int i = 0; i < 2 * CROPS * CROPS; i++) ck_assert((&seen[0][0][0])[i]);
}
END_TEST

START_TEST(shuffles_are_permutations) {
  int64_t order[97], other[97];
  bool seen[97] = {false};
  for (int64_t i = 0; i < 97; i++) order[i] = other[i] = i;
  comba_order_shuffle(order, 97, 1, 2);
  comba_order_shuffle(other, 97, 1, 3);
  for (int i = 0; i < 97; i++) seen[order[i]] = true;
  for (int i = 0; i < 97; i++) ck_assert(seen[i]);
  ck_assert(memcmp(order, other, sizeof order) != 0);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("data");
  TCase *tests = tcase_create("data");
  tcase_add_checked_fixture(tests, scratch_setup, scratch_teardown);
  tcase_set_timeout(tests, 120);
  tcase_add_test(tests, class_folders);
  tcase_add_test(tests, broken_folders);
  tcase_add_test(tests, damaged_pictures_are_skipped_within_limits);
  tcase_add_test(tests, splits_are_stratified_and_come_back);
  tcase_add_test(tests, classes_match_by_name);
  tcase_add_test(tests, idx_files);
  tcase_add_test(tests, cifar_batches);
  tcase_add_test(tests, batches_do_not_depend_on_threads_or_start);
  tcase_add_test(tests, a_picture_that_vanishes_fails_its_batch);
  tcase_add_test(tests, augmentation_draws_every_crop);
  tcase_add_test(tests, shuffles_are_permutations);
  suite_add_tcase(suite, tests);
  return run_suite(suite);
}
