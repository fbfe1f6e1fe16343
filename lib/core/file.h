/* Files and folders: whole reads, memory maps, and writes after which a file is either the new one or the old one.
 *
 * Paths are byte strings as the system takes them. Messages name the path, what was tried and the system's reason;
 * codes are COMBA_ERROR_IO for the system, COMBA_ERROR_FORMAT for a file over its limit, COMBA_ERROR_ARGUMENT for a name
 * that may not be used. */
#ifndef COMBA_CORE_FILE_H
#define COMBA_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

/* "folder/name"; an empty folder gives the name alone. To be freed. */
comba_status comba_path_join(char **path, const char *folder, const char *name);
/* True for one plain component: not empty, not "." or "..", without '/'. Names that a file brings with it (shards of a
 * model, say) must pass before they are joined to a folder. */
bool comba_path_is_name(const char *name);
bool comba_path_exists(const char *path);

/* Reads the file or pipe to its end, at most `limit` bytes; a longer one is COMBA_ERROR_FORMAT. `data` (to be freed) has a
 * zero byte after its `size` bytes. */
comba_status comba_file_read(const char *path, size_t limit, char **data, size_t *size);

/* Maps a regular file for reading. An empty file gives a size of 0 and a pointer that is not NULL. */
comba_status comba_file_map(const char *path, const void **data, size_t *size);
/* Accepts NULL. */
void comba_file_unmap(const void *data, size_t size);

/* A file in the making: bytes go to a temporary name in the destination's folder, and commit gives it its name after they
 * are on the disk. Until then the old file stays as it is. A destination that exists and is no regular file is refused. */
typedef struct comba_file_writer comba_file_writer;

comba_status comba_file_writer_create(comba_file_writer **writer, const char *path);
comba_status comba_file_writer_write(comba_file_writer *writer, const void *data, size_t size);
/* fsync, rename, fsync of the folder. On failure the temporary is removed. The writer is freed either way and set to NULL. */
comba_status comba_file_writer_commit(comba_file_writer **writer);
/* Removes the temporary and frees the writer; accepts NULL, so that a cleanup label can call it after a commit. */
void comba_file_writer_free(comba_file_writer *writer);

/* Create, write, commit. */
comba_status comba_file_write(const char *path, const void *data, size_t size);

/* Makes the folder and its parents; one that exists is fine. */
comba_status comba_folder_make(const char *path);
/* A folder that does not exist is empty; a path that is no folder is an error. */
comba_status comba_folder_is_empty(const char *path, bool *empty);
/* Removes the tree `parent`/`name`. The name is one plain component, symbolic links are removed and never followed, so nothing
 * outside of `parent` is touched. One that does not exist is fine. */
comba_status comba_folder_remove(const char *parent, const char *name);
/* Puts the finished folder `parent`/`made` in place as `parent`/`name`. An older folder of that name is exchanged in one step
 * where the file system can (otherwise it is first moved aside to NAME.old) and then removed. */
comba_status comba_folder_replace(const char *parent, const char *made, const char *name);
/* Removes the temporaries that killed processes left in a folder. Only for the one process that writes there. */
comba_status comba_folder_sweep(const char *path);

#endif
