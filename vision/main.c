/* comba-vision: train, evaluate and use image classifiers on Comba and its peers. */
#include "vision.h"

#include "core/status.h"
#include "program/info.h"

comba_status vision_load(comba_model **out, const char *directory, const comba_options *options) {
  comba_model *model = NULL;
  comba_model_info info;
  const comba_status status = comba_model_load(&model, directory, options);
  if (status != COMBA_OK) return status;
  comba_model_describe(model, &info);
  if (info.kind != COMBA_KIND_VISION) {
    comba_model_free(model);
    return comba_fail(COMBA_ERROR_ARGUMENT, "%s: model_type is a language model, expected a vision model; use comba-lm",
                      directory);
  }
  *out = model;
  return COMBA_OK;
}

static int info(int argc, char **argv) {
  return comba_info_run(argc, argv, vision_presets, vision_load);
}

int main(int argc, char **argv) {
  static const comba_command commands[] = {
      {"train", "train a classifier on a folder of pictures", vision_train, &vision_train_argp},
      {"eval", "accuracy, loss and confusion matrix on a data set", vision_eval, &vision_eval_argp},
      {"predict", "name what is on pictures", vision_predict, &vision_predict_argp},
      {"forward", "one batch from a safetensors file: logits, loss, gradients", vision_forward, &vision_forward_argp},
      {"info", "what a model or a preset is and costs; the table of mixers", info, &comba_info_argp},
      {0}};
  return comba_program_run(argc, argv, "Image classifiers on Comba and its peers.", commands);
}
