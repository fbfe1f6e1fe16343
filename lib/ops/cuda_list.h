/* The operators that have CUDA kernels: comba_cuda_NAME in NAME.cu. Included like list.h. */
COMBA_LIST_OP(linear)
COMBA_LIST_OP(add)
COMBA_LIST_OP(activation)
COMBA_LIST_OP(rms_norm)
COMBA_LIST_OP(embedding)
