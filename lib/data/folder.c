/* Class folders, either at once in the root or inside train/, val/ or test/. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "data/dataset_parts.h"
#include "data/fingerprint.h"

/* ---- Listing ---- */

static int compare_entries(const void *a, const void *b) {
  return strcmp(((const comba_listing_entry *)a)->name, ((const comba_listing_entry *)b)->name);
}

static comba_status add_entry(comba_listing *listing, const char *path, const char *name) {
  comba_status status = COMBA_OK;
  char *full = NULL;
  struct stat information;
  COMBA_TRY(comba_path_join(&full, path, name));
  if (stat(full, &information) != 0) {
    status = comba_fail(COMBA_ERROR_IO, "%s: cannot read: %s", full, strerror(errno));
    goto cleanup;
  }
  if (!S_ISDIR(information.st_mode) && !S_ISREG(information.st_mode)) goto cleanup;
  if (listing->count == listing->capacity) {
    const int64_t capacity = listing->capacity ? listing->capacity * 2 : 64;
    comba_listing_entry *entries = realloc(listing->entries, (size_t)capacity * sizeof *entries);
    if (!entries) {
      status = comba_fail_memory((size_t)capacity * sizeof *entries, "a list of files");
      goto cleanup;
    }
    listing->entries = entries;
    listing->capacity = capacity;
  }
  char *copy = strdup(name);
  if (!copy) {
    status = comba_fail_memory(strlen(name), "a list of files");
    goto cleanup;
  }
  listing->entries[listing->count++] = (comba_listing_entry){copy, S_ISDIR(information.st_mode), information.st_size};
cleanup:
  free(full);
  return status;
}

comba_status comba_listing_read(comba_listing *listing, const char *path) {
  comba_status status = COMBA_OK;
  *listing = (comba_listing){0};
  DIR *folder = opendir(path);
  if (!folder) return comba_fail(COMBA_ERROR_IO, "%s: cannot read this folder: %s", path, strerror(errno));
  for (;;) {
    errno = 0;
    const struct dirent *entry = readdir(folder);
    if (!entry) break;
    if (entry->d_name[0] != '.') COMBA_TRY(add_entry(listing, path, entry->d_name));
  }
  if (errno) status = comba_fail(COMBA_ERROR_IO, "%s: cannot read this folder: %s", path, strerror(errno));
  if (listing->count) qsort(listing->entries, (size_t)listing->count, sizeof *listing->entries, compare_entries);
cleanup:
  closedir(folder);
  if (status != COMBA_OK) comba_listing_free(listing);
  return status;
}

const comba_listing_entry *comba_listing_find(const comba_listing *listing, const char *name) {
  for (int64_t i = 0; i < listing->count; i++)
    if (strcmp(listing->entries[i].name, name) == 0) return &listing->entries[i];
  return NULL;
}

void comba_listing_free(comba_listing *listing) {
  for (int64_t i = 0; i < listing->count; i++) free(listing->entries[i].name);
  free(listing->entries);
  *listing = (comba_listing){0};
}

/* ---- Class folders ---- */

static int64_t find_class(const comba_dataset *dataset, const char *name) {
  for (int64_t i = 0; i < dataset->class_count; i++)
    if (strcmp(dataset->classes[i], name) == 0) return i;
  return -1;
}

/* The files of one class folder; `below` is its path below the root. */
static comba_status add_class_folder(comba_dataset *dataset, const char *below, int32_t label, comba_split split) {
  comba_status status = COMBA_OK;
  comba_listing listing = {0};
  char *path = NULL;
  int64_t files = 0;
  COMBA_TRY(comba_path_join(&path, dataset->root, below));
  COMBA_TRY(comba_listing_read(&listing, path));
  for (int64_t i = 0; i < listing.count; i++) {
    const comba_listing_entry *entry = &listing.entries[i];
    if (entry->folder) continue;
    comba_sample sample = {.label = label, .split = (int32_t)split, .slot = -1};
    COMBA_TRY(comba_path_join(&sample.name, below, entry->name));
    dataset->fingerprint = comba_fingerprint_add_text(dataset->fingerprint, sample.name);
    dataset->fingerprint = comba_fingerprint_add_number(dataset->fingerprint, (uint64_t)entry->size);
    COMBA_TRY(comba_dataset_add_sample(dataset, sample));
    files++;
  }
  if (files == 0)
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: class folder without files, expected PNG or JPEG pictures", path);
cleanup:
  comba_listing_free(&listing);
  free(path);
  return status;
}

/* The class folders of one split. The first split found defines the classes; later ones may only lack some. */
static comba_status add_split(comba_dataset *dataset, const char *below, comba_split split) {
  comba_status status = COMBA_OK;
  comba_listing listing = {0};
  char *path = NULL, *folder = NULL;
  const bool defines = dataset->class_count == 0;
  COMBA_TRY(comba_path_join(&path, dataset->root, below));
  COMBA_TRY(comba_listing_read(&listing, path));
  for (int64_t i = 0; i < listing.count; i++) {
    const char *name = listing.entries[i].name;
    if (!listing.entries[i].folder) continue;
    if (defines) COMBA_TRY(comba_dataset_add_class(dataset, name));
    const int64_t label = defines ? dataset->class_count - 1 : find_class(dataset, name);
    if (label < 0) {
      status =
          comba_fail(COMBA_ERROR_FORMAT, "%s: class folder '%s' has no namesake in the training folder", path, name);
      goto cleanup;
    }
    COMBA_TRY(comba_path_join(&folder, below, name));
    COMBA_TRY(add_class_folder(dataset, folder, (int32_t)label, split));
    free(folder);
    folder = NULL;
  }
cleanup:
  free(folder);
  comba_listing_free(&listing);
  free(path);
  return status;
}

/* Whether root/name is a folder that holds folders: one that holds files is a class that happens to be called so. */
static comba_status holds_folders(const comba_dataset *dataset, const comba_listing *root, const char *name,
                                  bool *holds) {
  comba_status status = COMBA_OK;
  comba_listing listing = {0};
  char *path = NULL;
  const comba_listing_entry *entry = comba_listing_find(root, name);
  *holds = false;
  if (!entry || !entry->folder) return COMBA_OK;
  COMBA_TRY(comba_path_join(&path, dataset->root, name));
  COMBA_TRY(comba_listing_read(&listing, path));
  for (int64_t i = 0; i < listing.count; i++) *holds |= listing.entries[i].folder;
cleanup:
  comba_listing_free(&listing);
  free(path);
  return status;
}

comba_status comba_dataset_open_folders(comba_dataset *dataset, const comba_listing *root) {
  static const struct {
    const char *name;
    comba_split split;
  } names[] = {{"train", COMBA_SPLIT_TRAIN},
               {"val", COMBA_SPLIT_VALIDATION},
               {"validation", COMBA_SPLIT_VALIDATION},
               {"test", COMBA_SPLIT_TEST}};
  comba_status status = COMBA_OK;
  bool found[4] = {false};
  dataset->channels = 3;
  for (int i = 0; i < 4; i++) {
    status = holds_folders(dataset, root, names[i].name, &found[i]);
    if (status != COMBA_OK) return status;
  }
  if (found[1] && found[2])
    return comba_fail(COMBA_ERROR_FORMAT, "%s: both val/ and validation/ are there, expected one of them",
                      dataset->root);
  for (int i = 0; i < 4 && status == COMBA_OK; i++)
    if (found[i]) status = add_split(dataset, names[i].name, names[i].split);
  if (!found[0] && !found[1] && !found[2] && !found[3]) status = add_split(dataset, "", COMBA_SPLIT_TRAIN);
  return status;
}
