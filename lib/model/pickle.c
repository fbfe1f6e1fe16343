#include "model/pickle.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

bool comba_pickle_is(const void *data, size_t size) {
  static const unsigned char zip[] = {'P', 'K', 3, 4};
  const unsigned char *bytes = data;
  if (size < sizeof zip) return false;
  return memcmp(bytes, zip, sizeof zip) == 0 || (bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5); /* PROTO 2 to 5 */
}

comba_status comba_pickle_fail(const char *path) {
  const char *slash = strrchr(path, '/');
  const int folder = slash ? (int)(slash - path) + 1 : 0;
  return comba_fail(COMBA_ERROR_FORMAT,
                    "%s: a pickle of PyTorch, expected a safetensors file; this makes one: python3 -c \"import torch, "
                    "safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in torch.load('%s', "
                    "map_location='cpu', weights_only=True).items()}, '%.*smodel.safetensors')\"",
                    path, path, folder, path);
}

static bool has_name_of_pickle(const char *name) {
  static const char *const endings[] = {".bin", ".pth", ".pt"};
  const size_t length = strlen(name);
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    const size_t ending = strlen(endings[i]);
    if (length > ending && strcmp(name + length - ending, endings[i]) == 0) return true;
  }
  return false;
}

comba_status comba_pickle_fail_folder(const char *folder) {
  comba_status status = COMBA_OK;
  char *path = NULL;
  DIR *directory = opendir(folder[0] ? folder : ".");
  if (!directory) return COMBA_OK;
  for (const struct dirent *entry; status == COMBA_OK && (entry = readdir(directory));) {
    if (!has_name_of_pickle(entry->d_name)) continue;
    status = comba_path_join(&path, folder, entry->d_name);
    if (status == COMBA_OK) status = comba_pickle_fail(path);
    free(path);
    path = NULL;
  }
  closedir(directory);
  return status;
}
