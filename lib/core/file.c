#define _GNU_SOURCE /* renameat2 */
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  READ_START = 64 * 1024,
  MAX_TREE_DEPTH = 32,
  TEMPORARY_TRIES = 1000,
};

/* ".NAME.PID-COUNT" and this: hidden, and recognised by comba_folder_sweep. */
static const char temporary_suffix[] = ".comba-tmp";

static comba_status fail_system(const char *path, const char *action) {
  const int reason = errno;
  return comba_fail(reason == ENOMEM ? COMBA_ERROR_MEMORY : COMBA_ERROR_IO, "%s: cannot %s: %s", path, action,
                    strerror(reason));
}

/* ---- Paths ---- */

comba_status comba_path_join(char **path, const char *folder, const char *name) {
  const size_t folder_length = strlen(folder), name_length = strlen(name);
  const bool slash = folder_length > 0 && folder[folder_length - 1] != '/';
  const size_t size = folder_length + slash + name_length + 1;
  char *joined = malloc(size);
  if (!joined) return comba_fail_memory(size, "a path");
  snprintf(joined, size, "%s%s%s", folder, slash ? "/" : "", name);
  *path = joined;
  return COMBA_OK;
}

bool comba_path_is_name(const char *name) {
  return name[0] && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/');
}

bool comba_path_exists(const char *path) {
  struct stat information;
  return stat(path, &information) == 0;
}

static comba_status check_name(const char *parent, const char *name) {
  if (comba_path_is_name(name)) return COMBA_OK;
  return comba_fail(COMBA_ERROR_ARGUMENT, "%s: '%s' is not the name of something inside this folder", parent, name);
}

/* The folder that holds `path`, "." for a bare name. */
static comba_status folder_of(char **folder, const char *path) {
  const char *slash = strrchr(path, '/');
  const size_t length = slash ? (size_t)(slash - path) + (slash == path) : 1;
  *folder = strndup(slash ? path : ".", length);
  return *folder ? COMBA_OK : comba_fail_memory(length, "a path");
}

/* ---- Reading ---- */

comba_status comba_file_read(const char *path, size_t limit, char **data, size_t *size) {
  comba_status status = COMBA_OK;
  char *bytes = NULL;
  size_t used = 0, capacity = 0;
  struct stat information;
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return fail_system(path, "open");
  if (fstat(file, &information) != 0) {
    status = fail_system(path, "read its size");
    goto cleanup;
  }
  if (S_ISREG(information.st_mode) && (uintmax_t)information.st_size > limit) {
    status = comba_fail(COMBA_ERROR_FORMAT, "%s: %ju bytes, expected at most %zu", path, (uintmax_t)information.st_size,
                        limit);
    goto cleanup;
  }
  /* A size of 0 may be that of a pipe, so the end of the file decides, not fstat. */
  for (;;) {
    if (capacity - used < 2) { /* one byte for the terminating zero */
      const size_t wanted = capacity ? capacity + capacity / 2 : (size_t)information.st_size + READ_START;
      char *grown = realloc(bytes, wanted);
      if (!grown) {
        status = comba_fail_memory(wanted, path);
        goto cleanup;
      }
      bytes = grown;
      capacity = wanted;
    }
    const ssize_t got = read(file, bytes + used, capacity - used - 1);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      status = fail_system(path, "read");
      goto cleanup;
    }
    if (got == 0) break;
    used += (size_t)got;
    if (used > limit) {
      status = comba_fail(COMBA_ERROR_FORMAT, "%s: more than %zu bytes, expected at most that", path, limit);
      goto cleanup;
    }
  }
  bytes[used] = 0;
  *data = bytes;
  *size = used;
  bytes = NULL;

cleanup:
  free(bytes);
  close(file);
  return status;
}

/* What an empty file maps to: mmap refuses a size of 0. */
static const char nothing[1];

comba_status comba_file_map(const char *path, const void **data, size_t *size) {
  comba_status status = COMBA_OK;
  struct stat information;
  /* O_NONBLOCK: opening a named pipe must not wait for a writer, as it is refused below. */
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return fail_system(path, "open");
  if (fstat(file, &information) != 0) {
    status = fail_system(path, "read its size");
  } else if (!S_ISREG(information.st_mode)) {
    status = comba_fail(COMBA_ERROR_IO, "%s: is %s, expected a regular file", path,
                        S_ISDIR(information.st_mode) ? "a folder" : "a device or pipe");
  } else if ((uintmax_t)information.st_size > PTRDIFF_MAX) {
    status = comba_fail(COMBA_ERROR_IO, "%s: %ju bytes do not fit into memory", path, (uintmax_t)information.st_size);
  } else if (information.st_size == 0) {
    *data = nothing;
    *size = 0;
  } else {
    void *memory = mmap(NULL, (size_t)information.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (memory == MAP_FAILED) {
      status = fail_system(path, "map");
    } else {
      *data = memory;
      *size = (size_t)information.st_size;
    }
  }
  close(file);
  return status;
}

void comba_file_unmap(const void *data, size_t size) {
  if (data && size > 0) munmap((void *)(uintptr_t)data, size);
}

/* ---- Writing ---- */

struct comba_file_writer {
  int file;
  char *path, *folder, *temporary;
};

static comba_status sync_folder(const char *path) {
  const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return fail_system(path, "open");
  /* Some network file systems cannot sync a folder and say EINVAL; the rename stands all the same. */
  const bool failed = fsync(folder) != 0 && errno != EINVAL;
  const comba_status status = failed ? fail_system(path, "write to disk") : COMBA_OK;
  close(folder);
  return status;
}

comba_status comba_file_writer_create(comba_file_writer **writer, const char *path) {
  static atomic_uint counter;
  comba_status status = COMBA_OK;
  struct stat information;
  comba_file_writer *made = calloc(1, sizeof *made);
  if (!made) return comba_fail_memory(sizeof *made, "a file writer");
  made->file = -1;

  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  if (!comba_path_is_name(name)) {
    status = comba_fail(COMBA_ERROR_ARGUMENT, "'%s' is not the path of a file", path);
    goto cleanup;
  }
  /* Renaming over a device would replace it. */
  if (stat(path, &information) == 0 && !S_ISREG(information.st_mode)) {
    status = comba_fail(COMBA_ERROR_IO, "%s: exists and is not a regular file", path);
    goto cleanup;
  }
  COMBA_TRY(folder_of(&made->folder, path));
  const size_t room = strlen(name) + sizeof temporary_suffix + 32;
  char *temporary_name = malloc(room);
  made->path = strdup(path);
  if (!made->path || !temporary_name) {
    free(temporary_name);
    status = comba_fail_memory(room, "a path");
    goto cleanup;
  }
  /* Not mkstemp, whose mode 0600 would stay with the file: here the process's umask decides. */
  for (int try = 0; made->file < 0 && try < TEMPORARY_TRIES && status == COMBA_OK; try++) {
    snprintf(temporary_name, room, ".%s.%ld-%u%s", name, (long)getpid(), atomic_fetch_add(&counter, 1),
             temporary_suffix);
    free(made->temporary);
    made->temporary = NULL;
    status = comba_path_join(&made->temporary, made->folder, temporary_name);
    if (status != COMBA_OK) break;
    made->file = open(made->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (made->file < 0 && errno != EEXIST) status = fail_system(path, "create");
  }
  free(temporary_name);
  if (status == COMBA_OK && made->file < 0) status = fail_system(path, "create a temporary beside it");
  if (status != COMBA_OK) goto cleanup;
  *writer = made;
  made = NULL;

cleanup:
  comba_file_writer_free(made);
  return status;
}

comba_status comba_file_writer_write(comba_file_writer *writer, const void *data, size_t size) {
  const char *bytes = data;
  while (size > 0) {
    const ssize_t written = write(writer->file, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail_system(writer->path, "write");
    bytes += written;
    size -= (size_t)written;
  }
  return COMBA_OK;
}

comba_status comba_file_writer_commit(comba_file_writer **writer) {
  comba_file_writer *made = *writer;
  comba_status status = COMBA_OK;
  if (fsync(made->file) != 0) {
    status = fail_system(made->path, "write to disk");
    goto cleanup;
  }
  const int file = made->file;
  made->file = -1;
  if (close(file) != 0) {
    status = fail_system(made->path, "close");
    unlink(made->temporary);
    goto cleanup;
  }
  if (rename(made->temporary, made->path) != 0) {
    status = fail_system(made->path, "put in place");
    unlink(made->temporary);
    goto cleanup;
  }
  status = sync_folder(made->folder);

cleanup:
  comba_file_writer_free(made);
  *writer = NULL;
  return status;
}

void comba_file_writer_free(comba_file_writer *writer) {
  if (!writer) return;
  if (writer->file >= 0) {
    close(writer->file);
    unlink(writer->temporary);
  }
  free(writer->path);
  free(writer->folder);
  free(writer->temporary);
  free(writer);
}

comba_status comba_file_write(const char *path, const void *data, size_t size) {
  comba_file_writer *writer = NULL;
  comba_status status = COMBA_OK;
  COMBA_TRY(comba_file_writer_create(&writer, path));
  COMBA_TRY(comba_file_writer_write(writer, data, size));
  COMBA_TRY(comba_file_writer_commit(&writer));

cleanup:
  comba_file_writer_free(writer);
  return status;
}

/* ---- Folders ---- */

comba_status comba_folder_make(const char *path) {
  comba_status status = COMBA_OK;
  struct stat information;
  if (!path[0]) return comba_fail(COMBA_ERROR_ARGUMENT, "the path of a folder is empty");
  char *partial = strdup(path);
  if (!partial) return comba_fail_memory(strlen(path), "a path");
  for (char *end = partial; *end;) {
    end += strspn(end, "/");
    end += strcspn(end, "/");
    const char kept = *end;
    *end = 0;
    if (mkdir(partial, 0777) != 0) {
      const int reason = errno;
      if (stat(partial, &information) != 0 || !S_ISDIR(information.st_mode)) {
        errno = reason;
        status = fail_system(partial, "make the folder");
        goto cleanup;
      }
    }
    *end = kept;
  }

cleanup:
  free(partial);
  return status;
}

static bool is_dots(const char *name) {
  return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

comba_status comba_folder_is_empty(const char *path, bool *empty) {
  DIR *folder = opendir(path);
  if (!folder && errno == ENOENT) {
    *empty = true;
    return COMBA_OK;
  }
  if (!folder) return fail_system(path, "read the folder");
  const struct dirent *entry;
  errno = 0;
  do entry = readdir(folder);
  while (entry && is_dots(entry->d_name));
  const comba_status status = !entry && errno ? fail_system(path, "read the folder") : COMBA_OK;
  if (status == COMBA_OK) *empty = !entry;
  closedir(folder);
  return status;
}

/* Removes `name` in the open folder `parent`; returns 0 or -1 with errno set. */
static int remove_tree(int parent, const char *name, int depth) {
  if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return 0;
  if (errno != EISDIR && errno != EPERM) return -1;
  if (depth == MAX_TREE_DEPTH) {
    errno = ELOOP;
    return -1;
  }
  const int file = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (file < 0) return -1;
  DIR *folder = fdopendir(file);
  if (!folder) {
    close(file);
    return -1;
  }
  int result = 0;
  for (;;) {
    errno = 0;
    const struct dirent *entry = readdir(folder);
    if (!entry) {
      if (errno) result = -1;
      break;
    }
    if (!is_dots(entry->d_name)) result = remove_tree(file, entry->d_name, depth + 1);
    if (result != 0) break;
  }
  const int reason = errno;
  closedir(folder);
  errno = reason;
  return result == 0 ? unlinkat(parent, name, AT_REMOVEDIR) : -1;
}

comba_status comba_folder_remove(const char *parent, const char *name) {
  comba_status status = check_name(parent, name);
  if (status != COMBA_OK) return status;
  const int folder = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return errno == ENOENT ? COMBA_OK : fail_system(parent, "open");
  if (remove_tree(folder, name, 0) != 0) {
    const int reason = errno;
    status = comba_fail(COMBA_ERROR_IO, "%s/%s: cannot remove: %s", parent, name, strerror(reason));
  }
  close(folder);
  return status;
}

comba_status comba_folder_replace(const char *parent, const char *made, const char *name) {
  comba_status status = COMBA_OK;
  char *old = NULL;
  int folder = -1;
  COMBA_TRY(check_name(parent, made));
  COMBA_TRY(check_name(parent, name));
  folder = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    status = fail_system(parent, "open");
    goto cleanup;
  }

  const char *leftover = NULL; /* where the older folder ends up */
  if (renameat2(folder, made, folder, name, RENAME_EXCHANGE) == 0) {
    leftover = made;
  } else if (errno != ENOENT && errno != EINVAL && errno != ENOSYS) {
    status = comba_fail(COMBA_ERROR_IO, "%s/%s: cannot put in place: %s", parent, name, strerror(errno));
    goto cleanup;
  } else {
    /* There is no older folder, or the file system cannot exchange. */
    const size_t room = strlen(name) + sizeof ".old";
    old = malloc(room);
    if (!old) {
      status = comba_fail_memory(room, "a path");
      goto cleanup;
    }
    snprintf(old, room, "%s.old", name);
    if (remove_tree(folder, old, 0) == 0 && renameat(folder, name, folder, old) == 0) leftover = old;
    if (renameat(folder, made, folder, name) != 0) {
      status = comba_fail(COMBA_ERROR_IO, "%s/%s: cannot put in place: %s", parent, name, strerror(errno));
      if (leftover) renameat(folder, old, folder, name);
      goto cleanup;
    }
  }
  COMBA_TRY(sync_folder(parent));
  if (leftover && remove_tree(folder, leftover, 0) != 0)
    status = comba_fail(COMBA_ERROR_IO, "%s/%s: cannot remove: %s", parent, leftover, strerror(errno));

cleanup:
  free(old);
  if (folder >= 0) close(folder);
  return status;
}

comba_status comba_folder_sweep(const char *path) {
  comba_status status = COMBA_OK;
  DIR *folder = opendir(path);
  if (!folder) return fail_system(path, "read the folder");
  for (;;) {
    errno = 0;
    const struct dirent *entry = readdir(folder);
    if (!entry) {
      if (errno) status = fail_system(path, "read the folder");
      break;
    }
    const size_t length = strlen(entry->d_name), suffix = sizeof temporary_suffix - 1;
    if (entry->d_name[0] != '.' || length <= suffix) continue;
    if (strcmp(entry->d_name + length - suffix, temporary_suffix) != 0) continue;
    if (remove_tree(dirfd(folder), entry->d_name, 0) != 0) {
      status = comba_fail(COMBA_ERROR_IO, "%s/%s: cannot remove: %s", path, entry->d_name, strerror(errno));
      break;
    }
  }
  closedir(folder);
  return status;
}
