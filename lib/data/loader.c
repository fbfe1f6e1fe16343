#include "data/loader.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/order.h"

/* Threads take this many pictures of a batch at a time, so that several work on the batch that is wanted first. */
enum { PIECE = 16, MAX_THREADS = 256, MAX_DEPTH = 1024 };

/* A place in the ring: batch number n, counted from the loader's start, is made in slot n % depth. */
typedef struct slot {
  int64_t epoch, batch, count;
  int64_t done;      /* pictures that are ready */
  uint8_t *pixels;   /* (batch_size, side, side, channels) */
  int32_t *crops;    /* (batch_size, 3) */
  int32_t *labels;   /* (batch_size) */
  int64_t *numbers;  /* (batch_size) */
  int64_t failed_at; /* the first picture that failed, or -1: its failure follows */
  comba_status status;
  char message[1024];
} slot;

struct comba_loader {
  comba_loader_options options;
  comba_augment augment;
  int64_t total, batches, picture_size;
  slot *slots;
  int64_t *order;   /* (total) of the epoch that is being handed out */
  uint8_t *storage; /* what the slots point into */
  pthread_t *threads;
  int thread_count;
  pthread_mutex_t lock; /* of everything below and of the slots but for the pictures of pieces handed out */
  pthread_cond_t work;  /* a slot became free, or the end */
  pthread_cond_t ready; /* a batch became ready */
  bool stop;
  int64_t opened;       /* batches handed out or being handed out */
  int64_t next;         /* next picture to hand out of batch opened - 1 */
  int64_t consumed;     /* batches that next returned; the last of them is still in use */
  int64_t epoch, batch; /* of the next batch to open */
};

/* ---- Handing out work (with the lock held) ---- */

static void start_epoch(comba_loader *l) {
  for (int64_t i = 0; i < l->total; i++) l->order[i] = i;
  if (l->options.shuffle)
    comba_order_shuffle(l->order, l->total, l->options.seed, comba_random_stream("epoch") + (uint64_t)l->epoch);
}

static bool ended(const comba_loader *l) {
  return l->options.epochs && l->epoch >= l->options.epochs;
}

/* Opens the next batch if there is one and its slot is free: the batch before it in the slot must be out of use. */
static bool open_batch(comba_loader *l) {
  if (ended(l) || l->opened - (l->consumed ? l->consumed - 1 : 0) >= l->options.depth) return false;
  slot *s = &l->slots[l->opened % l->options.depth];
  const int64_t size = l->options.batch_size, start = l->batch * size;
  s->epoch = l->epoch;
  s->batch = l->batch;
  s->count = l->total - start < size ? l->total - start : size;
  s->done = 0;
  s->failed_at = -1;
  s->status = COMBA_OK;
  memcpy(s->numbers, l->order + start, (size_t)s->count * sizeof *s->numbers);
  memset(s->pixels + s->count * l->picture_size, 0, (size_t)((size - s->count) * l->picture_size));
  memset(s->crops, 0, (size_t)(size * 3) * sizeof *s->crops);
  for (int64_t i = s->count; i < size; i++) s->labels[i] = -100;
  l->opened++;
  l->next = 0;
  if (++l->batch == l->batches) {
    l->batch = 0;
    l->epoch++;
    if (!ended(l)) start_epoch(l);
  }
  return true;
}

/* ---- Threads ---- */

static comba_status load(const comba_loader *l, slot *s, int64_t i) {
  const comba_loader_options *o = &l->options;
  s->labels[i] = comba_dataset_label(o->dataset, o->split, s->numbers[i]);
  if (o->augment) comba_augment_draw(&l->augment, s->epoch, s->numbers[i], s->crops + 3 * i);
  return comba_dataset_load(o->dataset, o->split, s->numbers[i], s->pixels + i * l->picture_size);
}

/* Keeps the failure of the earliest picture of a batch, whichever thread comes first. With the lock held. */
static void note_failure(slot *s, int64_t i, comba_status status) {
  if (s->failed_at >= 0 && s->failed_at < i) return;
  s->failed_at = i;
  s->status = status;
  snprintf(s->message, sizeof s->message, "%s", comba_last_error());
}

static void *run(void *argument) {
  comba_loader *l = argument;
  pthread_mutex_lock(&l->lock);
  while (!l->stop) {
    if (!(l->opened && l->next < l->slots[(l->opened - 1) % l->options.depth].count) && !open_batch(l)) {
      pthread_cond_wait(&l->work, &l->lock);
      continue;
    }
    slot *s = &l->slots[(l->opened - 1) % l->options.depth];
    const int64_t first = l->next, last = first + PIECE < s->count ? first + PIECE : s->count;
    l->next = last;
    pthread_mutex_unlock(&l->lock);
    comba_status status = COMBA_OK;
    int64_t i = first;
    for (; i < last && status == COMBA_OK; i++) status = load(l, s, i);
    pthread_mutex_lock(&l->lock);
    if (status != COMBA_OK) note_failure(s, i, status);
    s->done += last - first;
    if (s->done == s->count) pthread_cond_broadcast(&l->ready);
  }
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

/* ---- Interface ---- */

static comba_status check_options(const comba_loader_options *o, int64_t total) {
  if (total < 1)
    return comba_fail(COMBA_ERROR_ARGUMENT, "the %s split has no pictures, expected at least one",
                      comba_split_name(o->split));
  if (o->batch_size < 1 || o->side < 1 || o->channels < 1 || o->channels > 3 || o->first_epoch < 0 ||
      o->first_batch < 0)
    return comba_fail(COMBA_ERROR_ARGUMENT, "batch size %lld, pictures of side %lld, expected at least 1",
                      (long long)o->batch_size, (long long)o->side);
  if (o->threads < 1 || o->threads > MAX_THREADS || o->depth < 1 || o->depth > MAX_DEPTH)
    return comba_fail(COMBA_ERROR_ARGUMENT, "%d loader threads and %d batches ahead, expected 1 to %d and 1 to %d",
                      o->threads, o->depth, MAX_THREADS, MAX_DEPTH);
  return COMBA_OK;
}

/* One block: for each slot its pictures' numbers, its crops, its labels and its pixels. */
static comba_status allocate(comba_loader *l) {
  const size_t depth = (size_t)l->options.depth, size = (size_t)l->options.batch_size;
  const size_t each = (size_t)l->picture_size + sizeof(int64_t) + 4 * sizeof(int32_t);
  size_t bytes;
  if (__builtin_mul_overflow(size, each, &bytes) || __builtin_add_overflow(bytes, (size_t)128, &bytes) ||
      __builtin_mul_overflow(bytes, depth, &bytes))
    return comba_fail(COMBA_ERROR_ARGUMENT, "batch size %zu, expected one that fits into memory", size);
  l->slots = comba_allocate(depth * sizeof *l->slots, "the loader");
  l->order = comba_allocate((size_t)l->total * sizeof *l->order, "the order of the pictures");
  l->threads = comba_allocate((size_t)l->options.threads * sizeof *l->threads, "the loader");
  l->storage = comba_allocate(bytes, "batches of pictures");
  if (!l->slots || !l->order || !l->threads || !l->storage) return COMBA_ERROR_MEMORY;
  uint8_t *place = l->storage; /* numbers of 8 bytes first, so that all is aligned */
  for (size_t i = 0; i < depth; i++, place += size * sizeof(int64_t)) l->slots[i].numbers = (int64_t *)place;
  for (size_t i = 0; i < depth; i++, place += size * 3 * sizeof(int32_t)) l->slots[i].crops = (int32_t *)place;
  for (size_t i = 0; i < depth; i++, place += size * sizeof(int32_t)) l->slots[i].labels = (int32_t *)place;
  for (size_t i = 0; i < depth; i++, place += size * (size_t)l->picture_size) l->slots[i].pixels = place;
  return COMBA_OK;
}

static comba_status start_threads(comba_loader *l) {
  sigset_t all, old;
  int failure = 0;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &old); /* signals are for the program's own threads */
  while (l->thread_count < l->options.threads && !failure) {
    failure = pthread_create(&l->threads[l->thread_count], NULL, run, l);
    if (!failure) l->thread_count++;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (l->thread_count == 0)
    return comba_fail(COMBA_ERROR_MEMORY, "cannot start a loader thread: %s", strerror(failure));
  return COMBA_OK; /* fewer threads than wanted do the same work */
}

comba_status comba_loader_create(comba_loader **loader, const comba_loader_options *options) {
  const int64_t total = comba_dataset_count(options->dataset, options->split);
  comba_status status = check_options(options, total);
  if (status != COMBA_OK) return status;
  comba_loader *l = comba_allocate(sizeof *l, "the loader");
  if (!l) return COMBA_ERROR_MEMORY;
  l->options = *options;
  if (options->augment) l->augment = *options->augment;
  l->total = total;
  l->batches = total / options->batch_size;
  if (l->batches == 0 || (total % options->batch_size && !options->drop_short)) l->batches++;
  l->picture_size = options->channels * options->side * options->side;
  l->epoch = options->first_epoch + options->first_batch / l->batches;
  l->batch = options->first_batch % l->batches;
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->work, NULL);
  pthread_cond_init(&l->ready, NULL);
  COMBA_TRY(allocate(l));
  start_epoch(l);
  COMBA_TRY(start_threads(l));
  *loader = l;
  l = NULL;
cleanup:
  comba_loader_free(l);
  return status;
}

void comba_loader_free(comba_loader *l) {
  if (!l) return;
  pthread_mutex_lock(&l->lock);
  l->stop = true;
  pthread_cond_broadcast(&l->work);
  pthread_mutex_unlock(&l->lock);
  for (int i = 0; i < l->thread_count; i++) pthread_join(l->threads[i], NULL);
  pthread_cond_destroy(&l->ready);
  pthread_cond_destroy(&l->work);
  pthread_mutex_destroy(&l->lock);
  free(l->threads);
  free(l->slots);
  free(l->order);
  free(l->storage);
  free(l);
}

int64_t comba_loader_batches(const comba_loader *loader) {
  return loader->batches;
}

comba_status comba_loader_next(comba_loader *l, comba_loader_batch *batch) {
  comba_status status = COMBA_OK;
  pthread_mutex_lock(&l->lock);
  const int64_t wanted = l->consumed;
  slot *s = &l->slots[wanted % l->options.depth];
  /* the slot of the batch before becomes free now, also for the wanted batch itself where the depth is 1 */
  l->consumed++;
  pthread_cond_broadcast(&l->work);
  while (!(l->opened > wanted && s->done == s->count) && !(l->opened <= wanted && ended(l)))
    pthread_cond_wait(&l->ready, &l->lock);
  if (l->opened <= wanted) { /* the end; stay there */
    l->consumed--;
    *batch = (comba_loader_batch){.epoch = l->epoch};
  } else if (s->status != COMBA_OK) {
    l->consumed--;
    status = comba_fail(s->status, "%s", s->message);
  } else {
    *batch = (comba_loader_batch){
        .epoch = s->epoch, .batch = s->batch, .count = s->count, .labels = s->labels, .numbers = s->numbers};
    batch->pictures = (comba_pictures){.pixels = s->pixels, .crops = s->crops};
    memcpy(batch->pictures.scale, l->options.normalization.scale, sizeof batch->pictures.scale);
    memcpy(batch->pictures.shift, l->options.normalization.shift, sizeof batch->pictures.shift);
  }
  pthread_mutex_unlock(&l->lock);
  return status;
}
