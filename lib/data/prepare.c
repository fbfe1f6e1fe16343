/* Decoding a data set: all of it once, to find what is damaged and to keep what fits into memory. */
#include <pthread.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "data/dataset_parts.h"

enum { BAD_ALWAYS_ALLOWED = 10, MAX_SIDE = 1 << 14, MAX_THREADS = 256 };

void comba_prepare_options_default(comba_prepare_options *options, const comba_dataset *dataset) {
  *options = (comba_prepare_options){
      .side = dataset->side,
      .channels = dataset->channels,
      .fit = COMBA_FIT_CROP,
      .split = COMBA_SPLIT_ALL,
      .skip_bad = true,
      .max_bad_fraction = 0.05,
      .threads = 1,
      .cache_size = (size_t)2 << 30,
  };
}

static size_t picture_size(const comba_dataset *dataset) {
  const comba_prepare_options *p = &dataset->prepared;
  return (size_t)(p->side * p->side * p->channels);
}

static comba_status decode(const comba_dataset *dataset, const comba_sample *sample, uint8_t *pixels) {
  const comba_prepare_options *p = &dataset->prepared;
  comba_status status = COMBA_OK;
  comba_image image = {0};
  char *path = NULL;
  if (sample->name) {
    COMBA_TRY(comba_path_join(&path, dataset->root, sample->name));
    /* twice the side that is wanted: what libjpeg leaves out then is hardly seen */
    COMBA_TRY(comba_image_read(&image, path, p->channels, 2 * p->side));
  } else {
    COMBA_TRY(comba_record_read(&dataset->files[sample->file], sample->record, p->channels, &image));
  }
  COMBA_TRY(comba_image_fit(pixels, &image, p->side, p->fit));
cleanup:
  comba_image_free(&image);
  free(path);
  return status;
}

comba_status comba_sample_load(const comba_dataset *dataset, const comba_sample *sample, uint8_t *pixels) {
  const size_t size = picture_size(dataset);
  if (sample->slot < 0) return decode(dataset, sample, pixels);
  memcpy(pixels, dataset->cache + (size_t)sample->slot * size, size);
  return COMBA_OK;
}

static void add_up(const comba_dataset *dataset, comba_sample *sample, const uint8_t *pixels) {
  const size_t size = picture_size(dataset), channels = (size_t)dataset->prepared.channels;
  for (size_t c = 0; c < channels; c++) {
    uint64_t sum = 0, squares = 0; /* at most 2^28 pixels of 2^16: no overflow */
    for (size_t at = c; at < size; at += channels) {
      sum += pixels[at];
      squares += (uint64_t)pixels[at] * pixels[at];
    }
    sample->sum[c] = sum;
    sample->squares[c] = squares;
  }
  sample->summed = true;
}

/* ---- The pass over all pictures ---- */

typedef struct scan {
  comba_dataset *dataset;
  const int64_t *pictures; /* sample numbers */
  int64_t count;
  char **reason; /* (count) why a picture is skipped, or NULL */
  atomic_llong next;
  atomic_int failed; /* a failure that is not a picture's: the first one's message follows */
  pthread_mutex_t lock;
  comba_status status;
  char message[1024];
} scan;

static void scan_fail(scan *s, comba_status status) {
  pthread_mutex_lock(&s->lock);
  if (s->status == COMBA_OK) {
    s->status = status;
    snprintf(s->message, sizeof s->message, "%s", comba_last_error());
  }
  pthread_mutex_unlock(&s->lock);
  atomic_store(&s->failed, 1);
}

static void *scan_run(void *argument) {
  scan *s = argument;
  const size_t size = picture_size(s->dataset);
  uint8_t *scratch = malloc(size);
  if (!scratch) scan_fail(s, comba_fail_memory(size, "a picture"));
  while (!atomic_load(&s->failed)) {
    const int64_t i = atomic_fetch_add(&s->next, 1);
    if (i >= s->count) break;
    uint8_t *pixels = s->dataset->cache ? s->dataset->cache + (size_t)i * size : scratch;
    comba_sample *sample = &s->dataset->samples[s->pictures[i]];
    const comba_status status = decode(s->dataset, sample, pixels);
    if (status == COMBA_OK)
      add_up(s->dataset, sample, pixels);
    else if (status != COMBA_ERROR_FORMAT && status != COMBA_ERROR_UNSUPPORTED)
      scan_fail(s, status);
    else if (!(s->reason[i] = strdup(comba_last_error())))
      scan_fail(s, comba_fail_memory(0, "a message"));
  }
  free(scratch);
  return NULL;
}

/* Runs the pass on up to `threads` threads, this one included. */
static comba_status scan_all(scan *s, int threads) {
  pthread_t thread[MAX_THREADS];
  int started = 0;
  sigset_t all, old;
  pthread_mutex_init(&s->lock, NULL);
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &old); /* signals are for the thread that called */
  while (started < threads - 1 && started < MAX_THREADS && pthread_create(&thread[started], NULL, scan_run, s) == 0)
    started++;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  scan_run(s);
  for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
  pthread_mutex_destroy(&s->lock);
  return s->status == COMBA_OK ? COMBA_OK : comba_fail(s->status, "%s", s->message);
}

/* ---- Verdicts ---- */

static comba_status check_bad(const scan *s, const comba_prepare_options *options) {
  int64_t bad = 0, first = -1;
  for (int64_t i = 0; i < s->count; i++) {
    if (!s->reason[i]) continue;
    if (bad++ == 0) first = i;
  }
  int64_t allowed = (int64_t)fmax(BAD_ALWAYS_ALLOWED, options->max_bad_fraction * (double)s->count);
  if (allowed >= s->count) allowed = s->count - 1;
  if (bad == 0 || (options->skip_bad && bad <= allowed)) return COMBA_OK;
  if (!options->skip_bad) return comba_fail(COMBA_ERROR_FORMAT, "%s", s->reason[first]);
  return comba_fail(COMBA_ERROR_FORMAT,
                    "%s: %lld of %lld pictures cannot be used, expected at most %lld; the first: %s", s->dataset->root,
                    (long long)bad, (long long)s->count, (long long)allowed, s->reason[first]);
}

/* Lists the bad pictures and takes them out of their splits; gives the others their place in the cache. */
static comba_status settle(scan *s) {
  comba_dataset *dataset = s->dataset;
  char path[4096];
  int64_t bad = 0;
  for (int64_t i = 0; i < s->count; i++) bad += s->reason[i] != NULL;
  dataset->skipped = calloc((size_t)bad + 1, sizeof *dataset->skipped);
  if (!dataset->skipped) return comba_fail_memory((size_t)bad * sizeof *dataset->skipped, "a list of pictures");
  for (int64_t i = 0; i < s->count; i++) {
    comba_sample *sample = &dataset->samples[s->pictures[i]];
    if (!s->reason[i]) {
      if (dataset->cache) sample->slot = i;
      continue;
    }
    comba_skipped *skipped = &dataset->skipped[dataset->skipped_count++];
    comba_sample_path(dataset, sample, path, sizeof path);
    skipped->reason = s->reason[i];
    s->reason[i] = NULL;
    sample->split = COMBA_SPLIT_SKIPPED;
    if (!(skipped->path = strdup(path))) return comba_fail_memory(strlen(path), "a path");
  }
  return comba_dataset_index(dataset);
}

static comba_status check_training(const comba_dataset *dataset) {
  comba_status status = COMBA_OK;
  const int64_t count = comba_dataset_count(dataset, COMBA_SPLIT_TRAIN);
  if (count == 0) return comba_fail(COMBA_ERROR_FORMAT, "%s: no training pictures", dataset->root);
  if (dataset->class_count < 2)
    return comba_fail(COMBA_ERROR_FORMAT, "%s: one class ('%s'), expected at least two to tell apart", dataset->root,
                      dataset->classes[0]);
  bool *present = calloc((size_t)dataset->class_count, sizeof *present);
  if (!present) return comba_fail_memory((size_t)dataset->class_count, "classes");
  for (int64_t i = 0; i < count; i++) present[comba_dataset_label(dataset, COMBA_SPLIT_TRAIN, i)] = true;
  for (int64_t c = 0; c < dataset->class_count && status == COMBA_OK; c++)
    if (!present[c])
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: class '%s' has no training pictures that can be used", dataset->root,
                          dataset->classes[c]);
  free(present);
  return status;
}

static comba_status check_options(const comba_dataset *dataset, const comba_prepare_options *o) {
  if (o->side < 1 || o->side > MAX_SIDE)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: picture size %lld, expected 1 to %d", dataset->root,
                      (long long)o->side, MAX_SIDE);
  if (o->channels != 1 && o->channels != 3)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: %d channels, expected 1 or 3", dataset->root, o->channels);
  if (!(o->max_bad_fraction >= 0 && o->max_bad_fraction <= 1))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: fraction of bad pictures %g, expected 0 to 1", dataset->root,
                      o->max_bad_fraction);
  if (o->threads < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: %d threads, expected 1 or more", dataset->root, o->threads);
  return COMBA_OK;
}

comba_status comba_dataset_prepare(comba_dataset *dataset, const comba_prepare_options *options) {
  comba_status status = check_options(dataset, options);
  if (status != COMBA_OK) return status;
  dataset->prepared = *options;
  const int64_t start = options->split == COMBA_SPLIT_ALL ? 0 : dataset->first[options->split];
  scan s = {.dataset = dataset, .count = comba_dataset_count(dataset, options->split)};
  int64_t *pictures = malloc((size_t)s.count * sizeof *pictures + 1);
  s.reason = calloc((size_t)s.count + 1, sizeof *s.reason);
  if (!pictures || !s.reason) {
    status = comba_fail_memory((size_t)s.count * sizeof *pictures, "a list of pictures");
    goto cleanup;
  }
  memcpy(pictures, dataset->order + start, (size_t)s.count * sizeof *pictures);
  s.pictures = pictures;
  /* without memory for the cache the pictures are decoded again and again: slower, and the same */
  if (s.count && (size_t)s.count <= options->cache_size / picture_size(dataset))
    dataset->cache = malloc((size_t)s.count * picture_size(dataset));
  COMBA_TRY(scan_all(&s, options->threads));
  COMBA_TRY(check_bad(&s, options));
  COMBA_TRY(settle(&s));
  if (options->training) COMBA_TRY(check_training(dataset));
cleanup:
  for (int64_t i = 0; s.reason && i < s.count; i++) free(s.reason[i]);
  free(s.reason);
  free(pictures);
  return status;
}

int64_t comba_dataset_skipped(const comba_dataset *dataset) {
  return dataset->skipped_count;
}

void comba_dataset_skipped_entry(const comba_dataset *dataset, int64_t index, const char **path, const char **reason) {
  *path = dataset->skipped[index].path;
  *reason = dataset->skipped[index].reason;
}

/* ---- Statistics ---- */

comba_status comba_dataset_statistics(comba_dataset *dataset, comba_split split, double mean[3], double deviation[3]) {
  comba_status status = COMBA_OK;
  const int channels = dataset->prepared.channels;
  const int64_t count = comba_dataset_count(dataset, split);
  const int64_t *picture = dataset->order + (split == COMBA_SPLIT_ALL ? 0 : dataset->first[split]);
  uint64_t sum[3] = {0};
  unsigned __int128 squares[3] = {0};
  uint8_t *pixels = malloc(picture_size(dataset) + 1);
  if (!pixels) return comba_fail_memory(picture_size(dataset), "a picture");
  if (count == 0) {
    status =
        comba_fail(COMBA_ERROR_ARGUMENT, "%s: the %s split has no pictures", dataset->root, comba_split_name(split));
    goto cleanup;
  }
  for (int64_t i = 0; i < count; i++) {
    comba_sample *sample = &dataset->samples[picture[i]];
    if (!sample->summed) { /* of a split that was not prepared */
      COMBA_TRY(comba_sample_load(dataset, sample, pixels));
      add_up(dataset, sample, pixels);
    }
    for (int c = 0; c < channels; c++) {
      sum[c] += sample->sum[c];
      squares[c] += sample->squares[c];
    }
  }
  const double pixel_count = (double)count * (double)dataset->prepared.side * (double)dataset->prepared.side;
  for (int c = 0; c < channels; c++) {
    mean[c] = (double)sum[c] / pixel_count / 255;
    deviation[c] = sqrt(fmax(0, (double)squares[c] / pixel_count / (255 * 255) - mean[c] * mean[c]));
  }
cleanup:
  free(pixels);
  return status;
}
