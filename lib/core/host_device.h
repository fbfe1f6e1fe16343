/* COMBA_HOST_DEVICE marks a function that CUDA kernels call as well as the host. */
#ifndef COMBA_CORE_HOST_DEVICE_H
#define COMBA_CORE_HOST_DEVICE_H

#ifdef __CUDACC__
#define COMBA_HOST_DEVICE __host__ __device__
#else
#define COMBA_HOST_DEVICE
#endif

#endif
