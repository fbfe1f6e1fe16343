/* A safetensors file, and the conversion of every tensor in it. */
#include "fuzz.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  comba_safetensors *tensors = NULL;
  if (comba_safetensors_open_memory(&tensors, data, size, "input") != COMBA_OK) return 0;
  comba_safetensors_metadata(tensors, "format");
  for (size_t i = 0; i < comba_safetensors_count(tensors); i++) {
    const comba_stored_tensor *tensor = comba_safetensors_tensor(tensors, i);
    void *values =
        malloc((size_t)tensor->elements * sizeof(float) + 1); /* they lie in the file: their number is small */
    if (!values || comba_safetensors_find(tensors, tensor->name) != tensor) abort();
    comba_stored_tensor_floats(tensor, values);
    comba_stored_tensor_integers(tensor, values);
    free(values);
  }
  comba_safetensors_free(tensors);
  return 0;
}
