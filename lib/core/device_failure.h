/* What a GPU's runtime reports, as one message that says what to do.
 *
 * Codes are those of CUDA's runtime, which do not change from version to version. They are numbers here so that the messages are
 * tested where there is no CUDA; cuda.cu holds them against its own. */
#ifndef COMBA_CORE_DEVICE_FAILURE_H
#define COMBA_CORE_DEVICE_FAILURE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "core/status.h"

enum {
  COMBA_CUDA_OUT_OF_MEMORY = 2,
  COMBA_CUDA_STUB_LIBRARY = 34,
  COMBA_CUDA_OLD_DRIVER = 35,
  COMBA_CUDA_DEVICE_IN_USE = 46,
  COMBA_CUDA_NO_DEVICE = 100,
  COMBA_CUDA_NO_KERNEL_IMAGE = 209,
  COMBA_CUDA_MEMORY_ERROR = 214,
  COMBA_CUDA_LINK_ERROR = 220,
  COMBA_CUDA_OLD_PTX = 222,
  COMBA_CUDA_CONTAINED = 226,
  COMBA_CUDA_ILLEGAL_ADDRESS = 700,
  COMBA_CUDA_TIMEOUT = 702,
  COMBA_CUDA_MISALIGNED = 716,
  COMBA_CUDA_LAUNCH_FAILED = 719,
  COMBA_CUDA_NOT_READY = 802,
  COMBA_CUDA_DRIVER_MISMATCH = 803,
  COMBA_CUDA_UNKNOWN = 999
};

typedef struct comba_device_failure {
  int code;                /* cudaError_t */
  const char *text;        /* the runtime's own words */
  const char *what;        /* was being done, or what memory was for */
  const char *device;      /* its name; NULL: not known yet */
  int driver, runtime;     /* versions of CUDA that they are made for, 13000 is 13.0; 0: no driver */
  size_t asked, available; /* bytes, where memory was asked for */
} comba_device_failure;

/* Stores the message. COMBA_ERROR_MEMORY, COMBA_ERROR_UNSUPPORTED where no such work can run here, or COMBA_ERROR_DEVICE. */
comba_status comba_device_fail(const comba_device_failure *failure);

#ifdef __cplusplus
}
#endif
#endif
