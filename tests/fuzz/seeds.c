/* seeds FOLDER: small valid files for the fuzz targets to start from, in FOLDER/TARGET/. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "data/image_write.h"
#include "data/tokens.h"
#include "model/safetensors.h"

enum { SIDE = 9, RECORD = 1 + 3 * 32 * 32 };

static const char *const configs[] = {
    "{\"model_type\": \"comba\", \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_heads\": 2, \"head_dim\": 8, "
    "\"vocab_size\": 256, \"attn\": {\"layers\": [1], \"num_heads\": 2, \"window_size\": null}, \"norm_eps\": 1e-5}",
    "{\"model_type\": \"comba_vision\", \"hidden_size\": 16, \"num_hidden_layers\": 1, \"num_heads\": 2, "
    "\"image_size\": 8, "
    "\"patch_size\": 4, \"id2label\": {\"0\": \"a\", \"1\": \"b\"}, \"num_classes\": 2, \"train_scan_type\": "
    "\"bi-scan\", "
    "\"other\": [Infinity, {\"__float__\": \"NaN\"}]}",
    "{\"model_type\": \"transformer\", \"hidden_size\": 32, \"num_heads\": 4, \"num_kv_heads\": 2, \"rope_theta\": "
    "1e4}",
};

static const char split[] = "a/1\ttrain\na/2\\t3\tvalidation\nb/4\tskipped\nb/5\\\\\\n6\ttrain\n";

static const char idx_labels[] = "\0\0\10\1\0\0\0\2\0\1", idx_images[] = "\0\0\10\3\0\0\0\2\0\0\0\2\0\0\0\2abcdefgh";
static const char cifar_classes[] = "cat\ndog\n";

static void demand(comba_status status) {
  if (status == COMBA_OK) return;
  fprintf(stderr, "seeds: %s\n", comba_last_error());
  exit(EXIT_FAILURE);
}

/* The path FOLDER/TARGET/NAME, whose folder is made. */
static char *place(const char *folder, const char *target, const char *name) {
  char *below = NULL, *path = NULL;
  demand(comba_path_join(&below, folder, target));
  demand(comba_folder_make(below));
  demand(comba_path_join(&path, below, name));
  free(below);
  return path;
}

static void save(const char *folder, const char *target, const char *name, const void *data, size_t size) {
  char *path = place(folder, target, name);
  demand(comba_file_write(path, data, size));
  free(path);
}

/* Two files as one input: see fuzz_first_size. */
static void save_pair(const char *folder, const char *target, const char *first, size_t first_size, const void *second,
                      size_t second_size) {
  char *both = malloc(1 + first_size + second_size);
  if (!both) exit(EXIT_FAILURE);
  both[0] = (char)first_size;
  memcpy(both + 1, first, first_size);
  memcpy(both + 1 + first_size, second, second_size);
  save(folder, target, "pair", both, 1 + first_size + second_size);
  free(both);
}

static void save_pictures(const char *folder) {
  for (int channels = 1; channels <= 3; channels += 2) {
    comba_image image = {0};
    uint8_t *data = NULL;
    size_t size = 0;
    demand(comba_image_create(&image, SIDE, SIDE, channels));
    for (int i = 0; i < SIDE * SIDE * channels; i++) image.pixels[i] = (uint8_t)(i * i);
    demand(comba_image_encode_png(&image, &data, &size));
    save(folder, "picture", channels == 1 ? "grey.png" : "colour.png", data, size);
    free(data);
    demand(comba_image_encode_jpeg(&image, 80, &data, &size));
    save(folder, "picture", channels == 1 ? "grey.jpeg" : "colour.jpeg", data, size);
    free(data);
    comba_image_free(&image);
  }
}

static void save_safetensors(const char *folder) {
  static const float floats[] = {1, 2, 3, 4, 5, 6};
  static const int32_t integers[] = {7, 8};
  const comba_written_tensor tensors[] = {
      {"model.weight", COMBA_STORED_F32, 2, (const int64_t[]){2, 3}, floats},
      {"ids", COMBA_STORED_I32, 1, (const int64_t[]){2}, integers},
      {"half", COMBA_STORED_BF16, 1, (const int64_t[]){2}, integers},
      {"empty", COMBA_STORED_F64, 2, (const int64_t[]){0, 4}, floats},
  };
  char *path = place(folder, "safetensors", "four");
  demand(comba_safetensors_write(path, tensors, sizeof tensors / sizeof *tensors, NULL));
  free(path);
}

static void save_tokens(const char *folder) {
  static const int32_t ids[20] = {1, 2, 3, 999, 0, 5};
  static const uint8_t marks[20] = {0, 1, 0, 1, [13] = 1};
  char *narrow = place(folder, "tokens", "narrow"), *wide = place(folder, "tokens", "wide");
  char *examples = place(folder, "tokens", "examples");
  demand(comba_tokens_write(narrow, ids, 20, 1000));
  demand(comba_tokens_write(wide, ids, 20, 100000));
  demand(comba_tokens_write_examples(examples, ids, marks, 2, 10, 1000));
  free(narrow);
  free(wide);
  free(examples);
}

int main(int argc, char **argv) {
  static const uint8_t record[RECORD] = {1, 2, 3};
  if (argc != 2) {
    fprintf(stderr, "usage: seeds FOLDER\n");
    return EXIT_FAILURE;
  }
  const char *folder = argv[1];
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    char name[16];
    snprintf(name, sizeof name, "%zu.json", i);
    save(folder, "config", name, configs[i], strlen(configs[i]));
  }
  save(folder, "split", "split.tsv", split, sizeof split - 1);
  save_pair(folder, "idx", idx_labels, sizeof idx_labels - 1, idx_images, sizeof idx_images - 1);
  save_pair(folder, "cifar", cifar_classes, sizeof cifar_classes - 1, record, sizeof record);
  save_pictures(folder);
  save_safetensors(folder);
  save_tokens(folder);
  return EXIT_SUCCESS;
}
