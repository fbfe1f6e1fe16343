#include "program/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/file.h"
#include "model/json.h"

enum { LOG_LIMIT = 1 << 30, JSON_LIMIT = 1 << 24 };

char *comba_run_folder_path(const comba_run_folder *folder, const char *name) {
  char *path = NULL;
  return comba_path_join(&path, folder->path, name) == COMBA_OK ? path : NULL;
}

static comba_status lock(comba_run_folder *folder) {
  char *path = comba_run_folder_path(folder, ".lock");
  if (!path) return COMBA_ERROR_MEMORY;
  folder->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  const int failure = errno;
  free(path);
  if (folder->lock < 0) return comba_fail(COMBA_ERROR_IO, "%s: cannot be written: %s", folder->path, strerror(failure));
  if (flock(folder->lock, LOCK_EX | LOCK_NB))
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: another process is training there; choose another --output",
                      folder->path);
  return COMBA_OK;
}

/* A JSON object from FOLDER/NAME. */
static comba_status read_object(const char *folder, const char *name, json_t **object) {
  char *path = NULL, *text = NULL;
  size_t size = 0;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_path_join(&path, folder, name));
  COMBA_TRY(comba_file_read(path, JSON_LIMIT, &text, &size));
  COMBA_TRY(comba_json_parse(object, text, size, path));
  if (!json_is_object(*object)) {
    char found[COMBA_JSON_DESCRIPTION_SIZE];
    status =
        comba_fail(COMBA_ERROR_FORMAT, "%s: %s, expected a JSON object", path, comba_json_describe(*object, found));
    json_decref(*object);
    *object = NULL;
  }
cleanup:
  free(path);
  free(text);
  return status;
}

static comba_status compare_settings(const comba_run_folder *folder, const json_t *settings,
                                     const char *const *may_differ) {
  json_t *before = NULL;
  comba_status status = read_object(folder->path, "run.json", &before);
  if (status != COMBA_OK) return comba_fail_in(status, "--resume");
  const bool longer = !json_equal(json_object_get(before, may_differ[0]), json_object_get(settings, may_differ[0]));
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)settings, key, value) {
    bool free_to_differ = false;
    for (int i = 0; longer && may_differ[i]; i++) free_to_differ |= !strcmp(key, may_differ[i]);
    json_t *old = json_object_get(before, key);
    if (free_to_differ || (old && json_equal(old, value))) continue;
    char *was = old ? json_dumps(old, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
    char *is = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    status = comba_fail(
        COMBA_ERROR_ARGUMENT,
        "--resume: %s was %.300s when %s was begun and is %.300s now; give the old value, or another --output", key,
        was ? was : "not set", folder->path, is ? is : "?");
    free(was);
    free(is);
    break;
  }
  json_decref(before);
  return status;
}

static int64_t checkpoint_step(const char *name) {
  static const char prefix[] = "checkpoint-";
  char *end = NULL;
  if (strncmp(name, prefix, sizeof prefix - 1)) return -1;
  const long long step = strtoll(name + sizeof prefix - 1, &end, 10);
  return end == name + sizeof prefix - 1 || *end || step < 0 ? -1 : step;
}

/* Steps of the checkpoint folders, newest first; to be freed. */
static comba_status list_checkpoints(const comba_run_folder *folder, int64_t **steps, size_t *count) {
  *steps = NULL;
  *count = 0;
  DIR *directory = opendir(folder->path);
  if (!directory) return comba_fail(COMBA_ERROR_IO, "%s: %s", folder->path, strerror(errno));
  comba_status status = COMBA_OK;
  for (struct dirent *entry; (entry = readdir(directory));) {
    const int64_t step = checkpoint_step(entry->d_name);
    if (step < 0) continue;
    int64_t *grown = realloc(*steps, (*count + 1) * sizeof *grown);
    if (!grown) {
      status = comba_fail_memory((*count + 1) * sizeof *grown, "the list of checkpoints");
      break;
    }
    *steps = grown;
    size_t place = (*count)++;
    for (; place > 0 && grown[place - 1] < step; place--) grown[place] = grown[place - 1];
    grown[place] = step;
  }
  closedir(directory);
  return status;
}

static comba_status find_checkpoint(comba_run_folder *folder) {
  int64_t *steps = NULL;
  size_t count = 0;
  comba_status status = list_checkpoints(folder, &steps, &count);
  if (status == COMBA_OK && count > 0) {
    char name[64];
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)steps[0]);
    folder->resume_step = steps[0];
    folder->resume_folder = comba_run_folder_path(folder, name);
    status = folder->resume_folder ? read_object(folder->resume_folder, "trainer_state.json", &folder->resume_state)
                                   : COMBA_ERROR_MEMORY;
  }
  free(steps);
  return status;
}

/* Keeps the lines of log.jsonl up to the step that the run goes on from. */
static comba_status cut_log(const comba_run_folder *folder, const char *path) {
  char *text = NULL, *kept = NULL;
  size_t size = 0, length = 0;
  comba_status status = COMBA_OK;
  if (!comba_path_exists(path)) return COMBA_OK;
  COMBA_TRY(comba_file_read(path, LOG_LIMIT, &text, &size));
  kept = comba_allocate(size + 1, "the log");
  if (!kept) COMBA_TRY(COMBA_ERROR_MEMORY);
  for (char *line = text, *end; (end = memchr(line, '\n', size - (size_t)(line - text))); line = end + 1) {
    json_t *object = json_loadb(line, (size_t)(end - line), 0, NULL);
    const json_t *step = json_object_get(object, "step");
    if (json_is_integer(step) && json_integer_value(step) <= folder->resume_step) {
      memcpy(kept + length, line, (size_t)(end + 1 - line));
      length += (size_t)(end + 1 - line);
    }
    json_decref(object);
  }
  COMBA_TRY(comba_file_write(path, kept, length));
cleanup:
  free(text);
  free(kept);
  return status;
}

static comba_status open_log(comba_run_folder *folder) {
  char *path = comba_run_folder_path(folder, "log.jsonl");
  if (!path) return COMBA_ERROR_MEMORY;
  comba_status status = cut_log(folder, path);
  if (status == COMBA_OK && !(folder->log = fopen(path, "ae")))
    status = comba_fail(COMBA_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
  free(path);
  return status;
}

static comba_status write_settings(const comba_run_folder *folder, const json_t *settings) {
  comba_status status = COMBA_ERROR_MEMORY;
  char *path = comba_run_folder_path(folder, "run.json");
  char *text = json_dumps(settings, JSON_INDENT(2) | JSON_SORT_KEYS);
  if (path && text) status = comba_file_write(path, text, strlen(text));
  free(path);
  free(text);
  return status;
}

/* A folder without run.json is one of a run only if nothing but hidden files was written before the run was stopped. */
static comba_status refuse_foreign(const char *path) {
  comba_status status = COMBA_OK;
  DIR *directory = opendir(path);
  if (!directory) return comba_fail(COMBA_ERROR_IO, "%s: %s", path, strerror(errno));
  for (struct dirent *entry; status == COMBA_OK && (entry = readdir(directory));)
    if (entry->d_name[0] != '.')
      status =
          comba_fail(COMBA_ERROR_ARGUMENT, "%s: holds '%s' but no run.json of a run to resume; choose another --output",
                     path, entry->d_name);
  closedir(directory);
  return status;
}

comba_status comba_run_folder_check(const char *path, bool resume) {
  bool empty = true;
  const comba_status status = comba_folder_is_empty(path, &empty);
  if (status != COMBA_OK || empty || resume) return status;
  return comba_fail(COMBA_ERROR_ARGUMENT,
                    "%s: the folder is not empty; go on with --resume, or choose another --output", path);
}

comba_status comba_run_folder_open(comba_run_folder *folder, const char *path, bool resume, const json_t *settings,
                                   const char *const *may_differ) {
  comba_status status = COMBA_OK;
  bool empty = true;
  *folder = (comba_run_folder){.lock = -1};
  COMBA_TRY(comba_run_folder_check(path, resume));
  COMBA_TRY(comba_folder_is_empty(path, &empty));
  COMBA_TRY(comba_folder_make(path));
  folder->path = strdup(path);
  if (!folder->path) COMBA_TRY(comba_fail_memory(strlen(path), "a path"));
  COMBA_TRY(lock(folder));
  COMBA_TRY(comba_folder_sweep(path));
  if (!empty) {
    char *run = comba_run_folder_path(folder, "run.json");
    const bool begun = run && comba_path_exists(run);
    free(run);
    COMBA_TRY(begun ? compare_settings(folder, settings, may_differ) : refuse_foreign(path));
    COMBA_TRY(find_checkpoint(folder));
  }
  COMBA_TRY(write_settings(folder, settings));
  COMBA_TRY(open_log(folder));
  return COMBA_OK;
cleanup:
  comba_run_folder_close(folder);
  return status;
}

void comba_run_folder_close(comba_run_folder *folder) {
  if (folder->log) fclose(folder->log);
  if (folder->lock >= 0) close(folder->lock);
  json_decref(folder->resume_state);
  free(folder->resume_folder);
  free(folder->path);
  *folder = (comba_run_folder){.lock = -1};
}

comba_status comba_run_folder_log(comba_run_folder *folder, json_t *line) {
  const bool written = line && json_dumpf(line, folder->log, JSON_REAL_PRECISION(7)) == 0 &&
                       fputc('\n', folder->log) >= 0 && fflush(folder->log) == 0;
  json_decref(line);
  return written ? COMBA_OK
                 : comba_fail(COMBA_ERROR_IO, "%s/log.jsonl: cannot be written: %s", folder->path, strerror(errno));
}

comba_status comba_run_folder_write(const comba_run_folder *folder, const char *name,
                                    comba_status (*fill)(void *context, const char *path), void *context) {
  char made[96];
  snprintf(made, sizeof made, "%s.tmp", name);
  comba_status status = COMBA_OK;
  char *path = comba_run_folder_path(folder, made);
  if (!path) return COMBA_ERROR_MEMORY;
  if (!comba_path_exists(folder->path)) /* making it again would hide what became of the run's files */
    COMBA_TRY(comba_fail(COMBA_ERROR_IO, "%s: the output folder has vanished", folder->path));
  COMBA_TRY(comba_folder_remove(folder->path, made));
  COMBA_TRY(comba_folder_make(path));
  COMBA_TRY(fill(context, path));
  COMBA_TRY(comba_folder_replace(folder->path, made, name));
cleanup:
  if (status != COMBA_OK) { /* the message of the first failure stays */
    char message[1024];
    snprintf(message, sizeof message, "%s", comba_last_error());
    comba_folder_remove(folder->path, made);
    comba_fail(status, "%s", message);
  }
  free(path);
  return status;
}

comba_status comba_run_folder_prune(const comba_run_folder *folder, int64_t keep) {
  int64_t *steps = NULL;
  size_t count = 0;
  comba_status status = list_checkpoints(folder, &steps, &count);
  for (size_t i = (size_t)keep; status == COMBA_OK && i < count; i++) {
    char name[64];
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)steps[i]);
    status = comba_folder_remove(folder->path, name);
  }
  free(steps);
  return status;
}
