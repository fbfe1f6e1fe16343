/* comba-lm: train, evaluate and run language models of Comba and its peers. */
#include "lm.h"

#include "core/status.h"
#include "program/info.h"

comba_status lm_load(comba_model **out, const char *directory, const comba_options *options) {
  comba_model *model = NULL;
  comba_model_info info;
  const comba_status status = comba_model_load(&model, directory, options);
  if (status != COMBA_OK) return status;
  comba_model_describe(model, &info);
  if (info.kind != COMBA_KIND_LANGUAGE) {
    comba_model_free(model);
    return comba_fail(COMBA_ERROR_ARGUMENT,
                      "%s: model_type is a vision model, expected a language model; use comba-vision", directory);
  }
  *out = model;
  return COMBA_OK;
}

static int info(int argc, char **argv) {
  return comba_info_run(argc, argv, lm_presets, lm_load);
}

int main(int argc, char **argv) {
  static const comba_command commands[] = {
      {"train", "train a model on text files or token files", lm_train, &lm_train_argp},
      {"eval", "loss, perplexity and bits per byte of a model on a file", lm_eval, &lm_eval_argp},
      {"generate", "continue a prompt", lm_generate, &lm_generate_argp},
      {"forward", "one batch from a safetensors file: logits, loss, gradients", lm_forward, &lm_forward_argp},
      {"convert", "a model from or to the layout of another project", lm_convert, &lm_convert_argp},
      {"info", "what a model or a preset is and costs; the table of mixers", info, &comba_info_argp},
      {0}};
  return comba_program_run(argc, argv, "Language models on Comba and its peers.", commands);
}
