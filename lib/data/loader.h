/* Batches of pictures, made ahead by threads of their own.
 *
 * The order of an epoch and what happens to each picture depend on the seed, the epoch and the picture alone: the batches are
 * the same for every number of threads, and a loader started at (epoch, batch) continues as one that came there. */
#ifndef COMBA_DATA_LOADER_H
#define COMBA_DATA_LOADER_H

#include "comba.h"
#include "data/augment.h"
#include "data/dataset.h"

typedef struct comba_loader comba_loader;

typedef struct comba_loader_options {
  const comba_dataset *dataset; /* prepared; must outlive the loader */
  comba_split split;
  int64_t side; /* as prepared */
  int channels;
  comba_normalization normalization; /* of the pictures that are handed out */
  const comba_augment *augment;      /* copied; NULL: none */
  int64_t batch_size;
  bool shuffle; /* a new order each epoch from `seed` */
  uint64_t seed;
  bool drop_short; /* leave out an epoch's last batch if it is short (and not the only one) */
  int64_t epochs;  /* epochs are 0 to epochs - 1; 0: without end */
  int64_t first_epoch, first_batch;
  int threads; /* 1 or more */
  int depth;   /* batches that may be ready ahead, 1 or more */
} comba_loader_options;

typedef struct comba_loader_batch {
  int64_t epoch, batch;
  int64_t count;           /* pictures; 0 after the last batch of the last epoch */
  comba_pictures pictures; /* batch_size of them; black beyond `count` */
  const int32_t *labels;   /* (batch_size); -100 beyond `count` */
  const int64_t *numbers;  /* (count): index within the split */
} comba_loader_batch;

comba_status comba_loader_create(comba_loader **loader, const comba_loader_options *options);
/* May be called at any time; waits only for pictures that are being decoded. */
void comba_loader_free(comba_loader *loader);
/* Number of batches an epoch has. */
int64_t comba_loader_batches(const comba_loader *loader);
/* Waits for the next batch. It belongs to the loader until the next call. A picture that cannot be loaded fails the call for
 * its batch, and every call after it. */
comba_status comba_loader_next(comba_loader *loader, comba_loader_batch *batch);

#endif
