/* The CUDA backend's rows: those of the CPU with the kernels of NAME.cu beside NAME.c. */
#include "core/cuda.h"

#include <stdio.h>
#include <string.h>

extern const comba_op *const comba_op_table_baseline[];

#define COMBA_LIST_OP(name) extern const comba_cuda_op comba_cuda_##name;
#include "ops/list.h"
#undef COMBA_LIST_OP

static const comba_cuda_op *const kernels[COMBA_OP_COUNT] = {
#define COMBA_LIST_OP(name) [COMBA_OP_##name] = &comba_cuda_##name,
#include "ops/list.h"
#undef COMBA_LIST_OP
};

enum { NAME = 340 };

static comba_op rows[COMBA_CUDA_TYPES][COMBA_OP_COUNT];
static const comba_op *tables[COMBA_CUDA_TYPES][COMBA_OP_COUNT];
static comba_backend backends[COMBA_CUDA_TYPES];

/* The CPU's infer, then what differs here: the memory that the kernels need. */
static comba_status infer(comba_op_id id, comba_cuda_type type, comba_signature *signature) {
  const comba_cuda_op *op = kernels[id];
  comba_status (*own)(comba_signature *) =
      type == COMBA_CUDA_BFLOAT16 && op->infer_narrow ? op->infer_narrow : op->infer;
  const comba_status status = comba_op_table_baseline[id]->infer(signature);
  return status == COMBA_OK && own ? own(signature) : status;
}

#define COMBA_LIST_OP(name)                                                                                            \
  static comba_status infer_##name(comba_signature *signature) {                                                       \
    return infer(COMBA_OP_##name, COMBA_CUDA_FLOAT32, signature);                                                      \
  }                                                                                                                    \
  static comba_status narrow_##name(comba_signature *signature) {                                                      \
    return infer(COMBA_OP_##name, COMBA_CUDA_BFLOAT16, signature);                                                     \
  }
#include "ops/list.h"
#undef COMBA_LIST_OP

static comba_status (*const infers[COMBA_OP_COUNT][COMBA_CUDA_TYPES])(comba_signature *) = {
#define COMBA_LIST_OP(name) [COMBA_OP_##name] = {infer_##name, narrow_##name},
#include "ops/list.h"
#undef COMBA_LIST_OP
};

static const char *products(comba_cuda_type type) {
  static char text[160];
  if (type == COMBA_CUDA_FLOAT32) return "cuBLASLt";
  snprintf(text, sizeof text, "cuBLASLt; softmax attention by %s", comba_cuda_attention_kernel());
  return text;
}

static void fill(comba_cuda_type type, const comba_device_memory *memory, const char *device, comba_backend *backend,
                 char name[NAME]) {
  for (int id = 0; id < COMBA_OP_COUNT; id++) {
    comba_op *row = &rows[type][id];
    *row = *comba_op_table_baseline[id];
    row->infer = infers[id][type];
    row->forward = kernels[id]->forward[type];
    if (row->backward) row->backward = kernels[id]->backward[type];
    row->backward_inputs |= kernels[id]->backward_inputs;
    row->optional_outputs |= kernels[id]->optional_outputs;
    tables[type][id] = row;
  }
  snprintf(name, NAME, "%s, %s", device, type == COMBA_CUDA_FLOAT32 ? "float32" : "bfloat16");
  const size_t activation = type == COMBA_CUDA_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  *backend = (comba_backend){
      .name = name,
      .op = tables[type],
      .size = {activation, sizeof(float), sizeof(float), sizeof(float), sizeof(int32_t)},
      .memory = memory,
      .products = products(type),
      .products_bytes = COMBA_CUDA_PRODUCTS_BYTES,
      .record = comba_cuda_record,
      .replay = comba_cuda_replay,
      .forget = comba_cuda_forget,
      .begin_in_lane = comba_cuda_has_lanes() ? comba_cuda_begin_in_lane : NULL,
      .end_in_lane = comba_cuda_end_in_lane,
      .time = comba_cuda_time,
      .forward_together = comba_cuda_forward_together[type],
  };
}

comba_status comba_backend_cuda(const comba_backend **backend, bool narrow) {
  const comba_status status = comba_cuda_open();
  if (status != COMBA_OK) return status;
  const comba_cuda_type type = narrow ? COMBA_CUDA_BFLOAT16 : COMBA_CUDA_FLOAT32;
  static char names[COMBA_CUDA_TYPES][NAME];
  if (!backends[type].name)
    fill(type, &comba_cuda_device_memory[type], comba_cuda_name(), &backends[type], names[type]);
  *backend = &backends[type];
  return COMBA_OK;
}

comba_status comba_backend_cuda_planned(const comba_backend **backend, bool narrow) {
  static comba_backend planned[COMBA_CUDA_TYPES];
  static comba_device_memory memory;
  static char names[COMBA_CUDA_TYPES][NAME];
  const comba_cuda_type type = narrow ? COMBA_CUDA_BFLOAT16 : COMBA_CUDA_FLOAT32;
  const bool present = comba_cuda_open() == COMBA_OK;
  memory = comba_planned_memory(present ? comba_cuda_device_memory[type].available : NULL);
  fill(type, &memory, present ? comba_cuda_name() : "CUDA, no GPU here", &planned[type], names[type]);
  *backend = &planned[type];
  return COMBA_OK;
}
