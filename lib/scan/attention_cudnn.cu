/* cuDNN gets attention as a graph of small operations and runs it as one kernel, if the operations and their order are those that its
 * engines know: in forward, scores, mask, softmax with its largest score and sum, and the product with v; in backward, delta = do o summed
 * over channels, the weights from the saved ln sum e^score, and the four products.
 *
 * Backward writes ds to its workspace, T^2 a head, and reads it for dq: the other way to sum dq, atomics, gives other bits each time. */
#include "scan/cuda_attention.h"

#ifdef HAVE_CUDNN

#include <cudnn.h>
#include <stdio.h>
#include <stdlib.h>

#if CUDNN_MAJOR < 9
#error "cuDNN 9 or later is needed"
#endif

/* ---- Graphs --------------------------------------------------------------------------------------------------------- */

enum { MOST_DESCRIPTORS = 128, MOST_OPERATIONS = 32, MOST_CONFIGS = 8 };

/* Names of what a plan reads and writes; what lies between has numbers from INNER on. */
enum { Q = 1, KEY, VALUE, OUTPUT, LSE, OUTPUT_GRADIENT, DQ, DK, DV, DELTA, SCALE, MINUS_INFINITY, ONE, INNER = 100 };

typedef cudnnBackendDescriptor_t descriptor;

typedef struct tensor {
  descriptor of;
  int64_t size[4], stride[4];
} tensor;

typedef struct graph {
  const attention_shape *shape;
  descriptor made[MOST_DESCRIPTORS], operation[MOST_OPERATIONS];
  int count, operations;
  int64_t next; /* name */
  cudnnStatus_t status;
} graph;

static void check(graph *g, cudnnStatus_t status) {
  if (g->status == CUDNN_STATUS_SUCCESS) g->status = status;
}

static descriptor create(graph *g, cudnnBackendDescriptorType_t type) {
  descriptor made = NULL;
  if (g->status != CUDNN_STATUS_SUCCESS) return NULL;
  if (g->count == MOST_DESCRIPTORS) g->status = CUDNN_STATUS_INTERNAL_ERROR;
  check(g, cudnnBackendCreateDescriptor(type, &made));
  if (g->status == CUDNN_STATUS_SUCCESS) g->made[g->count++] = made;
  return made;
}

static void set(graph *g, descriptor of, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *values) {
  if (g->status == CUDNN_STATUS_SUCCESS) check(g, cudnnBackendSetAttribute(of, name, type, count, values));
}
static void set_descriptor(graph *g, descriptor of, cudnnBackendAttributeName_t name, descriptor value) {
  set(g, of, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finish(graph *g, descriptor of) {
  if (g->status == CUDNN_STATUS_SUCCESS) check(g, cudnnBackendFinalize(of));
}

typedef enum place { IN_MEMORY, INNER_TENSOR, BY_VALUE } place;

static tensor make(graph *g, int64_t name, place place, cudnnDataType_t type, const int64_t (&size)[4],
                   const int64_t (&stride)[4]) {
  tensor t = {create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR)};
  const int64_t alignment = place == IN_MEMORY ? 16 : 4;
  const bool inner = place == INNER_TENSOR, by_value = place == BY_VALUE;
  memcpy(t.size, size, sizeof size);
  memcpy(t.stride, stride, sizeof stride);
  set(g, t.of, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &name);
  set(g, t.of, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(g, t.of, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, size);
  set(g, t.of, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
  set(g, t.of, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  set(g, t.of, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner);
  set(g, t.of, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
  finish(g, t.of);
  return t;
}

/* (B,T,heads,D) in memory as (B,heads,T,D), or as (B,heads,D,T) */
static tensor activation(graph *g, int64_t name, int64_t heads, bool transposed) {
  const attention_shape *s = g->shape;
  const int64_t row = heads * s->D;
  if (transposed)
    return make(g, name, IN_MEMORY, CUDNN_DATA_BFLOAT16, {s->batch, heads, s->D, s->length},
                {s->length * row, s->D, 1, row});
  return make(g, name, IN_MEMORY, CUDNN_DATA_BFLOAT16, {s->batch, heads, s->length, s->D},
              {s->length * row, s->D, row, 1});
}
/* (B,T,H) of float in memory as (B,H,T,1) */
static tensor statistic(graph *g, int64_t name) {
  const attention_shape *s = g->shape;
  return make(g, name, IN_MEMORY, CUDNN_DATA_FLOAT, {s->batch, s->heads, s->length, 1},
              {s->length * s->heads, 1, s->heads, 1});
}
static tensor inner(graph *g, int64_t columns, cudnnDataType_t type) {
  const attention_shape *s = g->shape;
  return make(g, g->next++, INNER_TENSOR, type, {s->batch, s->heads, s->length, columns},
              {s->heads * s->length * columns, s->length * columns, columns, 1});
}
static tensor number(graph *g, int64_t name) {
  return make(g, name, BY_VALUE, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1});
}

static void append(graph *g, descriptor operation) {
  finish(g, operation);
  if (g->operations == MOST_OPERATIONS) check(g, CUDNN_STATUS_INTERNAL_ERROR);
  if (g->status == CUDNN_STATUS_SUCCESS) g->operation[g->operations++] = operation;
}

/* y = f(x, b) or f(x, b, t); `b`, `t` may be NULL. `axis`: of an index, else -1 */
static void pointwise(graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t precision, const tensor &x, const tensor *b,
                      const tensor *t, const tensor &y, int64_t axis) {
  descriptor function = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  set(g, function, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  set(g, function, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
  if (axis >= 0) set(g, function, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
  finish(g, function);
  descriptor operation = create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x.of);
  if (b) set_descriptor(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b->of);
  if (t) set_descriptor(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t->of);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y.of);
  append(g, operation);
}
/* The result is like x. */
static tensor apply(graph *g, cudnnPointwiseMode_t mode, const tensor &x, const tensor *b) {
  const tensor y = inner(g, x.size[3], CUDNN_DATA_FLOAT);
  pointwise(g, mode, CUDNN_DATA_FLOAT, x, b, NULL, y, -1);
  return y;
}

/* y = x over the dimensions in which y has size 1, or fewer heads */
static void reduce(graph *g, cudnnReduceTensorOp_t how, const tensor &x, const tensor &y) {
  const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
  descriptor reduction = create(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  set(g, reduction, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
  set(g, reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
  finish(g, reduction);
  descriptor operation = create(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x.of);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y.of);
  append(g, operation);
}
/* Over each row. */
static tensor reduce_rows(graph *g, cudnnReduceTensorOp_t how, const tensor &x) {
  const tensor y = inner(g, 1, CUDNN_DATA_FLOAT);
  reduce(g, how, x, y);
  return y;
}

static void multiply(graph *g, const tensor &a, const tensor &b, const tensor &c) {
  const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
  descriptor product = create(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  set(g, product, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision);
  finish(g, product);
  descriptor operation = create(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, product);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.of);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.of);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c.of);
  append(g, operation);
}

/* x with its last two dimensions exchanged, rounded to bfloat16 */
static tensor transpose(graph *g, const tensor &x) {
  const tensor y = make(g, g->next++, INNER_TENSOR, CUDNN_DATA_BFLOAT16, {x.size[0], x.size[1], x.size[3], x.size[2]},
                        {x.stride[0], x.stride[1], x.stride[3], x.stride[2]});
  descriptor operation = create(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x.of);
  set_descriptor(g, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y.of);
  append(g, operation);
  return y;
}

/* ---- Attention as a graph ------------------------------------------------------------------------------------------- */

/* score (B,H,T,T) where the key is not after the query, else -infinity */
static tensor mask(graph *g, const tensor &score) {
  const int64_t T = g->shape->length;
  const tensor row = inner(g, T, CUDNN_DATA_INT32), column = inner(g, T, CUDNN_DATA_INT32);
  const tensor seen = inner(g, T, CUDNN_DATA_BOOLEAN), masked = inner(g, T, CUDNN_DATA_FLOAT);
  const tensor minus_infinity = number(g, MINUS_INFINITY);
  pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, score, NULL, NULL, row, 2);
  pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, score, NULL, NULL, column, 3);
  pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row, &column, NULL, seen, -1);
  pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, score, &minus_infinity, &seen, masked, -1);
  return masked;
}

static void build_forward(graph *g) {
  const attention_shape *s = g->shape;
  const tensor q = activation(g, Q, s->heads, false), k = activation(g, KEY, s->key_heads, true);
  const tensor v = activation(g, VALUE, s->key_heads, false), o = activation(g, OUTPUT, s->heads, false);
  const tensor scale = number(g, SCALE), lse = statistic(g, LSE), product = inner(g, s->length, CUDNN_DATA_FLOAT);
  multiply(g, q, k, product);
  tensor score = apply(g, CUDNN_POINTWISE_MUL, product, &scale);
  if (s->causal) score = mask(g, score);
  const tensor largest = reduce_rows(g, CUDNN_REDUCE_TENSOR_MAX, score);
  const tensor power = apply(g, CUDNN_POINTWISE_EXP, apply(g, CUDNN_POINTWISE_SUB, score, &largest), NULL);
  const tensor sum = reduce_rows(g, CUDNN_REDUCE_TENSOR_ADD, power);
  const tensor logarithm = apply(g, CUDNN_POINTWISE_LOG, sum, NULL);
  pointwise(g, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, largest, &logarithm, NULL, lse, -1);
  const tensor weight = inner(g, s->length, CUDNN_DATA_BFLOAT16);
  pointwise(g, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, power, &sum, NULL, weight, -1);
  multiply(g, weight, v, o);
}

/* The gradient of k or v: a product for each head, and their sum over the heads that share a key. */
static void key_gradient(graph *g, const tensor &a, const tensor &b, int64_t name) {
  const attention_shape *s = g->shape;
  const tensor gradient = activation(g, name, s->key_heads, false);
  if (s->heads == s->key_heads) return multiply(g, a, b, gradient);
  const tensor each = inner(g, s->D, CUDNN_DATA_BFLOAT16);
  multiply(g, a, b, each);
  reduce(g, CUDNN_REDUCE_TENSOR_ADD, each, gradient);
}

static void build_backward(graph *g) {
  const attention_shape *s = g->shape;
  const int64_t T = s->length;
  const tensor q = activation(g, Q, s->heads, false), k = activation(g, KEY, s->key_heads, true);
  const tensor v = activation(g, VALUE, s->key_heads, true), o = activation(g, OUTPUT, s->heads, false);
  const tensor d_o = activation(g, OUTPUT_GRADIENT, s->heads, false), dq = activation(g, DQ, s->heads, false);
  const tensor scale = number(g, SCALE), one = number(g, ONE), lse = statistic(g, LSE), delta = statistic(g, DELTA);

  const tensor sum = reduce_rows(g, CUDNN_REDUCE_TENSOR_ADD, apply(g, CUDNN_POINTWISE_MUL, d_o, &o));
  pointwise(g, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, sum, &one, NULL, delta, -1);

  const tensor product = inner(g, T, CUDNN_DATA_FLOAT), weight_gradient = inner(g, T, CUDNN_DATA_FLOAT);
  multiply(g, q, k, product);
  tensor score = apply(g, CUDNN_POINTWISE_SUB, apply(g, CUDNN_POINTWISE_MUL, product, &scale), &lse);
  if (s->causal) score = mask(g, score);
  const tensor weight = apply(g, CUDNN_POINTWISE_EXP, score, NULL);
  key_gradient(g, transpose(g, weight), d_o, DV);

  multiply(g, d_o, v, weight_gradient);
  const tensor difference = apply(g, CUDNN_POINTWISE_SUB, weight_gradient, &delta);
  const tensor score_gradient =
      apply(g, CUDNN_POINTWISE_MUL, apply(g, CUDNN_POINTWISE_MUL, difference, &weight), &scale);
  key_gradient(g, transpose(g, score_gradient), q, DK);
  multiply(g, score_gradient, transpose(g, k), dq);
}

/* ---- Plans ---------------------------------------------------------------------------------------------------------- */

enum { PLANS = 128 };

typedef struct plan {
  attention_shape shape;
  attention_pass pass;
  descriptor execution;  /* NULL: cuDNN has none */
  int64_t own_workspace; /* bytes */
} plan;

static cudnnHandle_t handle;
static plan plans[PLANS];
static int planned;

static bool read(descriptor from, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,
                 int64_t *count, void *values) {
  return cudnnBackendGetAttribute(from, name, type, most, count, values) == CUDNN_STATUS_SUCCESS;
}

/* Whether an engine gives the same bits each time. */
static bool repeats(descriptor config) {
  cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  descriptor engine = NULL;
  int64_t count = 0;
  if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS) return false;
  bool result = read(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine) &&
                read(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                     CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, note);
  for (int64_t i = 0; result && i < count; i++) result = note[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
  cudnnBackendDestroyDescriptor(engine);
  return result;
}

/* Makes `config` ready to run; false if that fails. */
static bool prepare(plan *p, descriptor config) {
  int64_t count;
  if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->execution) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendSetAttribute(p->execution, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle) ==
          CUDNN_STATUS_SUCCESS &&
      cudnnBackendSetAttribute(p->execution, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                               &config) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendFinalize(p->execution) == CUDNN_STATUS_SUCCESS &&
      read(p->execution, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &p->own_workspace))
    return true;
  if (p->execution) cudnnBackendDestroyDescriptor(p->execution);
  p->execution = NULL;
  return false;
}

/* The first of the heuristic's answers that can be built and repeats its bits. */
static void make_plan(plan *p) {
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  graph g = {&p->shape};
  g.next = INNER;
  (p->pass == ATTENTION_FORWARD ? build_forward : build_backward)(&g);
  descriptor whole = create(&g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set(&g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  set(&g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g.operations, g.operation);
  finish(&g, whole);
  descriptor heuristic = create(&g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set_descriptor(&g, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
  set(&g, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  finish(&g, heuristic);
  descriptor config[MOST_CONFIGS];
  for (descriptor &each : config) each = create(&g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  int64_t count = 0;
  if (g.status == CUDNN_STATUS_SUCCESS &&
      read(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST_CONFIGS, &count, config))
    for (int64_t i = 0; i < count && i < MOST_CONFIGS && !p->execution; i++)
      if (repeats(config[i])) prepare(p, config[i]);
  while (g.count) cudnnBackendDestroyDescriptor(g.made[--g.count]);
}

static plan *find(const attention_shape *s, attention_pass pass) {
  for (plan *p = plans; p < plans + planned; p++)
    if (p->pass == pass && p->shape.batch == s->batch && p->shape.length == s->length && p->shape.heads == s->heads &&
        p->shape.key_heads == s->key_heads && p->shape.D == s->D && p->shape.scale == s->scale &&
        p->shape.causal == s->causal)
      return p;
  return NULL;
}

static bool wanted(const attention_shape *shape) {
  const char *choice = getenv("COMBA_CUDNN");
  return (!choice || strcmp(choice, "0")) && shape->D % 8 == 0 && shape->length % 128 == 0;
}

/* Before cuDNN's own workspace: delta, or in forward the logarithms that nobody wants. */
static int64_t statistic_bytes(const attention_shape *s) {
  return (s->batch * s->length * s->heads * (int64_t)sizeof(float) + 255) / 256 * 256;
}

int64_t attention_cudnn_workspace(const attention_shape *shape, attention_pass pass) {
  static bool asked;
  if (!asked && (cudnnCreate(&handle) != CUDNN_STATUS_SUCCESS ||
                 cudnnSetStream(handle, comba_cuda_stream()) != CUDNN_STATUS_SUCCESS))
    handle = NULL;
  asked = true;
  if (!handle || !wanted(shape)) return -1;
  plan *p = find(shape, pass);
  if (!p && planned < PLANS) {
    p = &plans[planned++];
    p->shape = *shape;
    p->pass = pass;
    make_plan(p);
  }
  return p && p->execution ? statistic_bytes(shape) + p->own_workspace : -1;
}

bool attention_cudnn_run(const attention_shape *shape, attention_pass pass, const attention_operands *operands,
                         void *workspace) {
  const plan *p = wanted(shape) ? find(shape, pass) : NULL;
  if (!p || !p->execution) return false;
  const float scale = shape->scale, one = 1, minus_infinity = -INFINITY;
  const void *own = (char *)workspace + statistic_bytes(shape);
  const bool backward = pass == ATTENTION_BACKWARD;
  const struct {
    int64_t name;
    const void *data;
    bool present;
  } operand[] = {{Q, operands->q, true},
                 {KEY, operands->k, true},
                 {VALUE, operands->v, true},
                 {OUTPUT, operands->o, true},
                 {LSE, operands->lse ? operands->lse : workspace, true},
                 {SCALE, &scale, true},
                 {MINUS_INFINITY, &minus_infinity, shape->causal},
                 {OUTPUT_GRADIENT, operands->output_gradient, backward},
                 {DQ, operands->dq, backward},
                 {DK, operands->dk, backward},
                 {DV, operands->dv, backward},
                 {DELTA, workspace, backward},
                 {ONE, &one, backward}};
  int64_t name[sizeof operand / sizeof *operand], count = 0;
  const void *data[sizeof operand / sizeof *operand];
  for (const auto &each : operand) {
    if (!each.present) continue;
    if (each.name < SCALE && (uintptr_t)each.data % 16) return false;
    name[count] = each.name;
    data[count++] = each.data;
  }
  graph g = {shape};
  descriptor pack = create(&g, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set(&g, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, name);
  set(&g, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, data);
  set(&g, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &own);
  finish(&g, pack);
  if (g.status == CUDNN_STATUS_SUCCESS) check(&g, cudnnBackendExecute(handle, p->execution, pack));
  if (pack) cudnnBackendDestroyDescriptor(pack);
  return g.status == CUDNN_STATUS_SUCCESS;
}

const char *comba_cuda_attention_kernel(void) {
  static char text[80];
  const size_t version = cudnnGetVersion();
  snprintf(text, sizeof text, "cuDNN %zu.%zu.%zu where it has a plan, else comba", version / 10000, version / 100 % 100,
           version % 100);
  return text;
}

#else

int64_t attention_cudnn_workspace(const attention_shape *, attention_pass) {
  return -1;
}

bool attention_cudnn_run(const attention_shape *, attention_pass, const attention_operands *, void *) {
  return false;
}

const char *comba_cuda_attention_kernel(void) {
  return "comba";
}

#endif
