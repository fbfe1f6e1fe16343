/* The output folder of a training run:
 *     run.json              what was asked for and the data's fingerprint; --resume compares it
 *     log.jsonl             one JSON object a logged step
 *     curves.svg
 *     config.json, model.safetensors, ...   the last weights, written at the end
 *     best/                 the weights with the best validation result
 *     checkpoint-N/         weights, optimizer.safetensors and trainer_state.json after N steps
 *     .lock                 held while a process trains
 * Folders appear whole or not at all. */
#ifndef COMBA_PROGRAM_RUN_FOLDER_H
#define COMBA_PROGRAM_RUN_FOLDER_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core/status.h"

typedef struct comba_run_folder {
  char *path;
  int lock; /* file descriptor, -1 without */
  FILE *log;
  int64_t resume_step;  /* of the checkpoint found, 0 without */
  char *resume_folder;  /* its path, NULL without */
  json_t *resume_state; /* its trainer_state.json, NULL without */
} comba_run_folder;

/* Whether DIR may be opened so, before long work on the data: a non-empty one is refused without `resume`. */
comba_status comba_run_folder_check(const char *path, bool resume);
/* Creates or reopens DIR. A non-empty one is refused without `resume`; with it, `settings` must equal those in run.json,
 * except that the first key of `may_differ` (NULL at the end) may have another value, and then the others too; the newest
 * checkpoint is found and the log cut back to it. */
comba_status comba_run_folder_open(comba_run_folder *folder, const char *path, bool resume, const json_t *settings,
                                   const char *const *may_differ);
void comba_run_folder_close(comba_run_folder *folder);

/* Appends one line to log.jsonl and flushes it. Takes over `line`. */
comba_status comba_run_folder_log(comba_run_folder *folder, json_t *line);

/* Writes the folder NAME through `fill`, which gets the path of a temporary folder; it then gets its name in one step. */
comba_status comba_run_folder_write(const comba_run_folder *folder, const char *name,
                                    comba_status (*fill)(void *context, const char *path), void *context);
/* Removes all but the newest `keep` checkpoint folders. */
comba_status comba_run_folder_prune(const comba_run_folder *folder, int64_t keep);
/* DIR/NAME; to be freed; NULL if there is no memory. */
char *comba_run_folder_path(const comba_run_folder *folder, const char *name);

#endif
