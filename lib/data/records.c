/* Pictures of one size behind each other in a file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "data/dataset_parts.h"
#include "data/fingerprint.h"
#include "data/image_codec.h"
#include "data/read_at.h"

comba_status comba_dataset_add_file(comba_dataset *dataset, const char *name, int64_t *size) {
  comba_status status = COMBA_OK;
  struct stat information;
  comba_record_file *files = realloc(dataset->files, ((size_t)dataset->file_count + 1) * sizeof *files);
  if (!files) return comba_fail_memory(((size_t)dataset->file_count + 1) * sizeof *files, "a list of files");
  dataset->files = files;
  comba_record_file *file = &files[dataset->file_count];
  *file = (comba_record_file){.name = strdup(name), .descriptor = -1};
  dataset->file_count++;
  if (!file->name) return comba_fail_memory(strlen(name), "a list of files");
  COMBA_TRY(comba_path_join(&file->path, dataset->root, name));
  file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
  if (file->descriptor < 0 || fstat(file->descriptor, &information) != 0) {
    status = comba_fail(COMBA_ERROR_IO, "%s: cannot open: %s", file->path, strerror(errno));
    goto cleanup;
  }
  *size = information.st_size;
  dataset->fingerprint = comba_fingerprint_add_text(dataset->fingerprint, name);
  COMBA_TRY(comba_fingerprint_add_file(&dataset->fingerprint, file->descriptor, file->path));
cleanup:
  return status;
}

comba_status comba_record_read(const comba_record_file *file, int64_t record, int channels, comba_image *image) {
  comba_status status = COMBA_OK;
  comba_image found = {0}, wanted = {0};
  const int64_t count = file->width * file->height;
  const int have = file->channels;
  COMBA_TRY(comba_image_create(&found, file->width, file->height, have));
  COMBA_TRY(comba_read_at(file->descriptor, file->path, found.pixels, (size_t)(count * have),
                          file->offset + record * file->stride));
  if (!file->planar && have == channels) {
    *image = found;
    return COMBA_OK;
  }
  COMBA_TRY(comba_image_create(&wanted, file->width, file->height, channels));
  const int64_t plane = file->planar ? count : 1, pixel = file->planar ? 1 : have;
  for (int64_t i = 0; i < count; i++) {
    const uint8_t *from = found.pixels + i * pixel;
    uint8_t *to = wanted.pixels + i * channels;
    if (have == 3 && channels == 1)
      to[0] = comba_image_grey(from[0], from[plane], from[2 * plane]);
    else
      for (int c = 0; c < channels; c++) to[c] = from[have == 1 ? 0 : c * plane];
  }
  *image = wanted;
  wanted.pixels = NULL;
cleanup:
  comba_image_free(&wanted);
  comba_image_free(&found);
  return status;
}
