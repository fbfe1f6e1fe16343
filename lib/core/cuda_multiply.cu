/* Matrix products by cuBLASLt. Its heuristic is asked once for each kind of product, the answer is kept.
 *
 * Gradients of weights sum over all tokens and have few tiles: split over the sum they fill the GPU, and the partial sums take several
 * times the weight's bytes, hence the size of the workspace. */
#include "core/cuda_kernel.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE = COMBA_CUDA_PRODUCTS_BYTES, PLANS = 1024 };

typedef struct plan {
  comba_cuda_product key; /* without pointers */
  comba_cuda_type type;
  bool float_c, has_bias, aligned; /* aligned: operands begin at multiples of 16 bytes */
  size_t limit;                    /* of its workspace */
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, c;
  cublasLtMatmulHeuristicResult_t chosen;
} plan;

static cublasLtHandle_t handle;
static void *workspace;
static plan plans[PLANS];
static int planned;
static int rank; /* of the heuristic's answers */
static const plan *last;

static cudaDataType_t data_type(comba_cuda_type type) {
  return type == COMBA_CUDA_FLOAT32 ? CUDA_R_32F : CUDA_R_16BF;
}

/* Row-major (rows, columns) with leading dimension ld is column-major (columns, rows) with the same. */
static cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t ld, int64_t batch,
                                     int64_t stride) {
  cublasLtMatrixLayout_t result = NULL;
  cublasLtMatrixLayoutCreate(&result, type, (uint64_t)columns, (uint64_t)rows, ld);
  const int32_t count = (int32_t)batch;
  cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
  cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
  return result;
}

static bool make(plan *p) {
  const comba_cuda_product *k = &p->key;
  const cudaDataType_t type = data_type(p->type), c_type = p->float_c ? CUDA_R_32F : type;
  /* C^T = B^T A^T: cuBLASLt's first operand is ours of the right */
  const cublasOperation_t first = k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                          second = k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtMatmulPreference_t preference = NULL;
  cublasLtMatmulHeuristicResult_t found[COMBA_CUDA_PRODUCT_RANKS];
  int count = 0;
  if (cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS) return false;
  cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
  cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
  if (p->has_bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
  }
  p->a = k->transpose_a ? layout(type, k->k, k->m, k->lda, k->batch, k->stride_a)
                        : layout(type, k->m, k->k, k->lda, k->batch, k->stride_a);
  p->b = k->transpose_b ? layout(type, k->n, k->k, k->ldb, k->batch, k->stride_b)
                        : layout(type, k->k, k->n, k->ldb, k->batch, k->stride_b);
  p->c = layout(c_type, k->m, k->n, k->ldc, k->batch, k->stride_c);
  cublasLtMatmulPreferenceCreate(&preference);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &p->limit,
                                       sizeof p->limit);
  const uint32_t alignment = p->aligned ? 16 : (p->type == COMBA_CUDA_FLOAT32 ? 4 : 2);
  const cublasLtMatmulPreferenceAttributes_t operands[] = {
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
  for (cublasLtMatmulPreferenceAttributes_t operand : operands)
    cublasLtMatmulPreferenceSetAttribute(preference, operand, &alignment, sizeof alignment);
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, p->operation, p->b, p->a, p->c, p->c, preference, rank + 1, found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || !count) return false;
  p->chosen = found[rank < count ? rank : count - 1];
  return true;
}

static plan *find(const comba_cuda_product *product, comba_cuda_type type, bool float_c, size_t limit) {
  comba_cuda_product key = *product;
  const bool has_bias = key.bias;
  const bool aligned = !(((uintptr_t)key.a | (uintptr_t)key.b | (uintptr_t)key.c) & 15);
  key.a = key.b = key.bias = NULL;
  key.c = NULL;
  key.scale = 0;
  key.accumulate = false;
  for (int i = 0; i < planned; i++)
    if (plans[i].type == type && plans[i].float_c == float_c && plans[i].has_bias == has_bias &&
        plans[i].aligned == aligned && plans[i].limit == limit && !memcmp(&plans[i].key, &key, sizeof key))
      return &plans[i];
  if (planned == PLANS) planned = 0; /* so many shapes in one process: begin anew */
  plan *p = &plans[planned];
  memset(p, 0, sizeof *p);
  memcpy(&p->key, &key, sizeof key);
  p->type = type;
  p->float_c = float_c;
  p->has_bias = has_bias;
  p->aligned = aligned;
  p->limit = limit;
  if (!make(p)) return NULL;
  planned++;
  return p;
}

cudaError_t comba_cuda_open_products() {
  if (cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) return cudaErrorInitializationError;
  return cudaMalloc(&workspace, WORKSPACE);
}

void comba_cuda_multiply(const comba_cuda_product *product, comba_cuda_type type, bool float_c) {
  comba_cuda_product whole;
  memset(&whole, 0, sizeof whole); /* padding is compared as well */
  whole.transpose_a = product->transpose_a;
  whole.transpose_b = product->transpose_b;
  whole.m = product->m;
  whole.n = product->n;
  whole.k = product->k;
  whole.lda = product->lda;
  whole.ldb = product->ldb;
  whole.ldc = product->ldc;
  whole.a = product->a;
  whole.b = product->b;
  whole.c = product->c;
  whole.bias = product->bias;
  whole.batch = product->batch ? product->batch : 1;
  whole.stride_a = product->stride_a;
  whole.stride_b = product->stride_b;
  whole.stride_c = product->stride_c;
  const int lane = comba_cuda_lane(); /* each has a part of the workspace */
  const size_t limit = lane < 0 ? WORKSPACE : WORKSPACE / COMBA_BACKEND_LANES;
  plan *p = find(&whole, type, float_c, limit);
  if (!p) {
    comba_cuda_note(cudaErrorNotSupported, "cuBLASLt has no algorithm for a product");
    return;
  }
  last = p;
  const float alpha = product->scale ? product->scale : 1, beta = product->accumulate ? 1 : 0;
  if (p->has_bias)
    cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product->bias,
                                   sizeof product->bias);
  const cublasStatus_t status = cublasLtMatmul(
      handle, p->operation, &alpha, product->b, p->b, product->a, p->a, &beta, product->c, p->c, product->c, p->c,
      &p->chosen.algo, (char *)workspace + (lane < 0 ? 0 : lane * limit), limit, comba_cuda_stream());
  if (status != CUBLAS_STATUS_SUCCESS) comba_cuda_note(cudaErrorUnknown, "a product by cuBLASLt");
}

/* ---- For measurements ----------------------------------------------------------------------------------------------- */

void comba_cuda_rank_products(int wanted) {
  rank = wanted;
  planned = 0;
  last = NULL;
}

const char *comba_cuda_last_product() {
  static char text[160];
  if (!last) return "none";
  uint32_t tile = 0, stages = 0, split = 0, reduction = 0;
  uint16_t cluster = 0;
  const cublasLtMatmulAlgo_t *algorithm = &last->chosen.algo;
  size_t size;
  cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, &size);
  cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID, &stages, sizeof stages, &size);
  cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split, &size);
  cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction, sizeof reduction,
                                       &size);
  cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster, sizeof cluster,
                                       &size);
  snprintf(text, sizeof text, "tile %u, stages %u, cluster %u, split %u by %u, %.2f waves, workspace %.1f MiB", tile,
           stages, cluster, split, reduction, last->chosen.wavesCount, (double)last->chosen.workspaceSize / (1 << 20));
  return text;
}
