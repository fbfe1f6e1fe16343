/* product-bench [TOKENS]: the products of a training step of the 340M models on the GPU, forward and both gradients, each by the
 * library's choice and by the other answers of cuBLASLt's heuristic: whether a better one is left lying. Rates in TFLOP/s. */
#include <stdio.h>
#include <stdlib.h>

#include "core/cuda.h"
#include "core/random.h"
#include "op_perf.h"

typedef enum form { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, FORMS } form;
static const char *const form_names[FORMS] = {"y", "dx", "dweight"};

/* y (tokens, n) from x (tokens, k) */
static const struct {
  int64_t n, k;
  const char *where;
} shapes[] = {{1024, 1024, "projections of a mixer"},
              {2816, 1024, "up"},
              {1024, 2816, "down"},
              {32000, 1024, "logits"},
              {4, 1024, "gates"}};

static void check(comba_status status) {
  if (status == COMBA_OK) return;
  fprintf(stderr, "product-bench: %s\n", comba_last_error());
  exit(status == COMBA_ERROR_DEVICE || status == COMBA_ERROR_UNSUPPORTED ? 77 : 1);
}

/* Normal numbers of any class, one block of them repeated: what they are has an effect on power, and so on the rate. */
static void *filled(const comba_backend *backend, int64_t elements, comba_class kind) {
  enum { BLOCK = 1 << 20 };
  static float wide[BLOCK];
  static uint16_t narrow[BLOCK];
  const size_t size = backend->size[kind];
  if (wide[0] == 0)
    for (int64_t i = 0; i < BLOCK; i++) {
      wide[i] = (float)op_narrow(comba_random_normal(1, 2, (uint64_t)i));
      uint32_t bits;
      memcpy(&bits, &wide[i], sizeof bits);
      narrow[i] = (uint16_t)(bits >> 16);
    }
  const comba_device_memory *memory = backend->memory;
  char *data =
      (kind == COMBA_PARAMETER ? memory->allocate_weights : memory->allocate)((size_t)elements * size, "values");
  if (!data) check(COMBA_ERROR_MEMORY);
  for (int64_t i = 0; i < elements; i += BLOCK) {
    const size_t bytes = (size_t)(elements - i < BLOCK ? elements - i : BLOCK) * size;
    check(memory->write(data + (size_t)i * size, size == sizeof *narrow ? (void *)narrow : wide, bytes));
  }
  return data;
}

static double seconds(const comba_backend *backend, const comba_call *whole, form form) {
  const comba_op *linear = backend->op[COMBA_OP_linear];
  comba_call call = *whole;
  if (form != INPUT_GRADIENT) call.input_gradient[0].data = NULL;
  if (form != WEIGHT_GRADIENT) call.input_gradient[1].data = NULL;
  return op_device_seconds(backend, form == FORWARD ? linear->forward : linear->backward, &call);
}

int main(int argc, char **argv) {
  const int64_t tokens = argc > 1 ? strtoll(argv[1], NULL, 10) : 32768;
  const comba_backend *backend;
  if (tokens < 1 || argc > 2) {
    fprintf(stderr, "usage: product-bench [TOKENS]\n");
    return 2;
  }
  check(comba_backend_cuda(&backend, true));
  printf("%s; rates in TFLOP/s\n", backend->name);
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    const comba_shape x = COMBA_SHAPE(tokens, shapes[i].k), weight = COMBA_SHAPE(shapes[i].n, shapes[i].k);
    const comba_shape y = COMBA_SHAPE(tokens, shapes[i].n);
    comba_signature signature = {.op = "linear", .inputs = 3, .input = {x, weight}};
    check(backend->op[COMBA_OP_linear]->infer(&signature));
    const int64_t elements[] = {comba_shape_elements(&x), comba_shape_elements(&weight), comba_shape_elements(&y)};
    const comba_device_memory *memory = backend->memory;
    comba_call call = {
        .input = {{filled(backend, elements[0], COMBA_ACTIVATION), x},
                  {filled(backend, elements[1], COMBA_PARAMETER), weight}},
        .output = {{filled(backend, elements[2], COMBA_ACTIVATION), y}},
        .output_gradient = {{filled(backend, elements[2], COMBA_ACTIVATION), y}},
        .input_gradient = {{filled(backend, elements[0], COMBA_ACTIVATION), x},
                           {filled(backend, elements[1], COMBA_STATE), weight}},
        .accumulate = {[1] = true},
        .workspace = memory->allocate((size_t)(signature.backward_workspace + 1) * sizeof(float), "a workspace"),
    };
    for (form form = FORWARD; form < FORMS; form++) {
      printf("%-8s %lld x %lld x %lld, %s\n", form_names[form], (long long)tokens, (long long)shapes[i].n,
             (long long)shapes[i].k, shapes[i].where);
      char before[160] = "";
      for (int rank = 0; rank < COMBA_CUDA_PRODUCT_RANKS; rank++) {
        comba_cuda_rank_products(rank);
        const double rate = signature.forward_flops / seconds(backend, &call, form) * 1e-12;
        if (!strcmp(before, comba_cuda_last_product())) break; /* there are no more, or the product is not cuBLASLt's */
        snprintf(before, sizeof before, "%s", comba_cuda_last_product());
        printf("    %d: %6.1f  %s\n", rank, rate, before);
        fflush(stdout);
      }
    }
    memory->release(call.input[0].data);
    memory->release(call.input[1].data);
    memory->release(call.output[0].data);
    memory->release(call.output_gradient[0].data);
    memory->release(call.input_gradient[0].data);
    memory->release(call.input_gradient[1].data);
    memory->release(call.workspace);
  }
  return 0;
}
