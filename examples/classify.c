/* Names what is on a picture, with a model that comba-vision trained.
 *   cc classify.c $(pkg-config --cflags --libs comba) -lm -o classify && ./classify runs/demo picture.png */
#include <comba.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: classify MODEL_FOLDER PICTURE\n");
    return 2;
  }
  comba_model *model = NULL;
  comba_model_info info;
  float *pixels = NULL;
  int result = 1;
  if (comba_model_load(&model, argv[1], NULL)) goto failed;
  comba_model_describe(model, &info);
  if (info.kind != COMBA_KIND_VISION) {
    fprintf(stderr, "classify: %s is no vision model\n", argv[1]);
    goto cleanup;
  }
  pixels = malloc((size_t)(info.num_channels * info.image_size * info.image_size) * sizeof *pixels);
  if (!pixels || comba_picture_read(argv[1], argv[2], pixels)) goto failed;

  comba_batch batch = {.batch = 1, .pixel_values = pixels};
  if (comba_model_forward(model, &batch, COMBA_PASS_EVALUATE, NULL)) goto failed;
  const float *logits = comba_model_logits(model); /* (1, num_classes) */
  int64_t best = 0;
  double total = 0;
  for (int64_t i = 1; i < info.num_classes; i++)
    if (logits[i] > logits[best]) best = i;
  for (int64_t i = 0; i < info.num_classes; i++) total += exp(logits[i] - logits[best]);
  const char *name = comba_model_class_name(model, best);
  printf("%s  %.1f %%\n", name ? name : "(a class without a name)", 100 / total);
  result = 0;
  goto cleanup;
failed:
  fprintf(stderr, "classify: %s\n", comba_last_error());
cleanup:
  comba_model_free(model);
  free(pixels);
  return result;
}
