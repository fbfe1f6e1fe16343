#include "core/device_failure.h"

static double gib(size_t bytes) {
  return (double)bytes / (1024.0 * 1024 * 1024);
}

comba_status comba_device_fail(const comba_device_failure *f) {
  const char *device = f->device ? f->device : "the GPU";
  switch (f->code) {
  case COMBA_CUDA_OUT_OF_MEMORY:
    if (!f->asked)
      return comba_fail(COMBA_ERROR_MEMORY,
                        "out of memory on %s at %s, %.3f GiB are free; nvidia-smi says what else is on it", device,
                        f->what, gib(f->available));
    return comba_fail(
        COMBA_ERROR_MEMORY,
        "out of memory on %s: %.3f GiB for %s, %.3f GiB are free; --recompute block, a smaller --batch-size "
        "(with --gradient-accumulation) or a smaller --sequence-length take less",
        device, gib(f->asked), f->what, gib(f->available));
  case COMBA_CUDA_OLD_DRIVER:
    if (f->driver)
      return comba_fail(COMBA_ERROR_UNSUPPORTED,
                        "the NVIDIA driver is for CUDA %d.%d, expected %d.%d or later; update the driver, or use "
                        "--device cpu",
                        f->driver / 1000, f->driver % 1000 / 10, f->runtime / 1000, f->runtime % 1000 / 10);
    /* fall through */
  case COMBA_CUDA_STUB_LIBRARY:
    return comba_fail(COMBA_ERROR_UNSUPPORTED, "no NVIDIA driver is loaded (%s); install it, or use --device cpu",
                      f->text);
  case COMBA_CUDA_NO_DEVICE:
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "no GPU was found (%s): does nvidia-smi list one, does CUDA_VISIBLE_DEVICES name one? Or use "
                      "--device cpu",
                      f->text);
  case COMBA_CUDA_DRIVER_MISMATCH:
  case COMBA_CUDA_NOT_READY:
    return comba_fail(COMBA_ERROR_DEVICE,
                      "the NVIDIA driver does not work (%s); restart the machine, or use --device cpu", f->text);
  case COMBA_CUDA_DEVICE_IN_USE:
    return comba_fail(COMBA_ERROR_DEVICE, "%s is taken by another process (%s); use another by CUDA_VISIBLE_DEVICES",
                      device, f->text);
  case COMBA_CUDA_NO_KERNEL_IMAGE:
  case COMBA_CUDA_OLD_PTX:
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "%s is of a kind that this library was not compiled for (%s); configure "
                      "--with-cuda-architectures for it, or use --device cpu",
                      device, f->text);
  case COMBA_CUDA_MEMORY_ERROR:
  case COMBA_CUDA_LINK_ERROR:
  case COMBA_CUDA_CONTAINED:
  case COMBA_CUDA_ILLEGAL_ADDRESS:
  case COMBA_CUDA_TIMEOUT:
  case COMBA_CUDA_MISALIGNED:
  case COMBA_CUDA_LAUNCH_FAILED:
  case COMBA_CUDA_UNKNOWN:
    return comba_fail(COMBA_ERROR_DEVICE,
                      "%s was lost at %s: %s; what it held is gone, files are whole: --resume goes on from the last "
                      "checkpoint",
                      device, f->what, f->text);
  default: return comba_fail(COMBA_ERROR_DEVICE, "CUDA: %s: %s", f->what, f->text);
  }
}
