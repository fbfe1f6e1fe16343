/* Loads a language model that reads bytes and continues a prompt greedily; the state is saved and restored on the way.
 *   cc decode.c $(pkg-config --cflags --libs comba) -o decode && ./decode runs/shakespeare "ROMEO:" */
#include <comba.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t most_probable(const float *logits, int64_t count) {
  int32_t best = 0;
  for (int64_t i = 1; i < count; i++)
    if (logits[i] > logits[best]) best = (int32_t)i;
  return best;
}

int main(int argc, char **argv) {
  if (argc != 3 || !*argv[2]) {
    fprintf(stderr, "usage: decode MODEL_FOLDER PROMPT\n");
    return 2;
  }
  comba_model *model = NULL;
  comba_decoder *decoder = NULL;
  comba_model_info info;
  int32_t *prompt = malloc(strlen(argv[2]) * sizeof *prompt);
  float *logits = NULL;
  int result = 1;
  if (!prompt || comba_model_load(&model, argv[1], NULL)) goto failed;
  comba_model_describe(model, &info);
  logits = malloc((size_t)info.vocab_size * sizeof *logits);
  for (size_t i = 0; i < strlen(argv[2]); i++) prompt[i] = (uint8_t)argv[2][i];

  /* one sequence; layers with unwindowed softmax attention may look back on 4096 tokens */
  if (!logits || comba_decoder_create(&decoder, model, 1, 4096)) goto failed;
  if (comba_decoder_feed(decoder, prompt, (int64_t)strlen(argv[2]), logits)) goto failed;
  fputs(argv[2], stdout);
  for (int i = 0; i < 200; i++) {
    const int32_t token = most_probable(logits, info.vocab_size);
    putchar(token);
    if (i == 100) { /* hand the sequence to another decoder (of another process, say) */
      if (comba_decoder_save(decoder, "state.safetensors")) goto failed;
      comba_decoder_free(decoder);
      decoder = NULL;
      if (comba_decoder_create(&decoder, model, 1, 4096)) goto failed;
      if (comba_decoder_restore(decoder, "state.safetensors")) goto failed;
      remove("state.safetensors");
    }
    if (comba_decoder_feed(decoder, &token, 1, logits)) goto failed;
  }
  putchar('\n');
  result = 0;
failed:
  if (result) fprintf(stderr, "decode: %s\n", comba_last_error());
  comba_decoder_free(decoder);
  comba_model_free(model);
  free(logits);
  free(prompt);
  return result;
}
