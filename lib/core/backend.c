#ifdef HAVE_CONFIG_H
#include "config.h"
#endif
#include "core/backend.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_CUDA
#include "core/cuda.h"
#endif

extern const comba_op *const comba_op_table_baseline[];
#ifdef COMBA_HAVE_X86_VARIANTS
extern const comba_op *const comba_op_table_v3[];
extern const comba_op *const comba_op_table_v4[];
#endif

#define FLOAT_SIZES                                                                                                    \
  { sizeof(float), sizeof(float), sizeof(float), sizeof(float), sizeof(int32_t) }

#define BACKEND(name_, table)                                                                                          \
  { .name = name_, .op = table, .size = FLOAT_SIZES, .memory = &comba_host_memory }
static const comba_backend baseline = BACKEND("CPU, baseline", comba_op_table_baseline);
#ifdef COMBA_HAVE_X86_VARIANTS
static const comba_backend v3 = BACKEND("CPU, x86-64-v3 (AVX2)", comba_op_table_v3);
static const comba_backend v4 = BACKEND("CPU, x86-64-v4 (AVX-512)", comba_op_table_v4);
#endif

const comba_backend *comba_backend_cpu(void) {
#ifdef COMBA_HAVE_X86_VARIANTS
  /* COMBA_CPU=baseline or v3 asks for less than the processor has, to compare or to reproduce another machine. */
  const char *limit = getenv("COMBA_CPU");
  if (limit && !strcmp(limit, "baseline")) return &baseline;
  __builtin_cpu_init();
  const bool has_v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_v4 = has_v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (has_v4 && !(limit && !strcmp(limit, "v3"))) return &v4;
  if (has_v3) return &v3;
#endif
  return &baseline;
}

static comba_status check_device(const comba_options *options) {
#ifndef HAVE_CUDA
  if (options->device == COMBA_DEVICE_CUDA)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "device cuda: this library was built without CUDA; use --device cpu");
#endif
  if (options->device != COMBA_DEVICE_CUDA && options->precision == COMBA_PRECISION_BFLOAT16)
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "precision bf16: the CPU computes in float32; use --precision float32");
  return COMBA_OK;
}

comba_status comba_backend_plan(const comba_backend **backend, const comba_options *options) {
  static comba_backend planned;
  static comba_device_memory memory;
#ifdef HAVE_CUDA
  const bool narrow = options->precision != COMBA_PRECISION_FLOAT32;
  if (options->device == COMBA_DEVICE_CUDA ||
      (options->device == COMBA_DEVICE_AUTO && comba_backend_cuda(backend, narrow) == COMBA_OK))
    return comba_backend_cuda_planned(backend, narrow);
#endif
  const comba_status status = check_device(options);
  if (status != COMBA_OK) return status;
  memory = comba_planned_memory(NULL);
  planned = *comba_backend_cpu();
  planned.memory = &memory;
  *backend = &planned;
  return COMBA_OK;
}

comba_status comba_backend_open(const comba_backend **backend, const comba_options *options) {
#ifdef HAVE_CUDA
  if (options->device != COMBA_DEVICE_CPU) {
    const comba_status status = comba_backend_cuda(backend, options->precision != COMBA_PRECISION_FLOAT32);
    if (status == COMBA_OK || options->device == COMBA_DEVICE_CUDA) return status;
  }
#endif
  const comba_status checked = check_device(options);
  if (checked != COMBA_OK) return checked;
  *backend = comba_backend_cpu();
  return COMBA_OK;
}

const char *comba_backend_unused_gpu(void) {
#ifdef HAVE_CUDA
  if (comba_cuda_open() != COMBA_OK && comba_cuda_is_there()) return comba_last_error();
#endif
  return NULL;
}
