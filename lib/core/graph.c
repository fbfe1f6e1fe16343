/* Building and running a graph. What runs and where it lies is decided in plan.c. */
#include "core/graph_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

comba_status comba_graph_create(comba_graph **out, const comba_backend *backend, unsigned flags) {
  comba_graph *graph = comba_allocate(sizeof *graph, "a graph");
  if (!graph) return COMBA_ERROR_MEMORY;
  graph->backend = backend;
  graph->flags = flags;
  *out = graph;
  return COMBA_OK;
}

void comba_graph_free(comba_graph *graph) {
  if (!graph) return;
  for (int i = 0; i < graph->tensors; i++) {
    free((char *)graph->tensor[i]->name);
    free(graph->tensor[i]);
  }
  for (int i = 0; i < graph->nodes; i++) {
    free(graph->node[i]->attributes);
    free(graph->node[i]);
  }
  free(graph->tensor);
  free(graph->node);
  free(graph->storage);
  free(graph->schedule);
  for (int pass = 0; pass < 2; pass++)
    if (graph->recording[pass]) graph->backend->forget(graph->recording[pass]);
  graph->backend->memory->release(graph->device_run);
  graph->backend->memory->release(graph->arena);
  free(graph);
}

void comba_graph_fail(comba_graph *graph, comba_status status) {
  if (graph->status != COMBA_OK) return;
  graph->status = status;
  snprintf(graph->message, sizeof graph->message, "%s", comba_last_error());
}

comba_status comba_graph_status(const comba_graph *graph) {
  return graph->status == COMBA_OK ? COMBA_OK : comba_fail(graph->status, "%s", graph->message);
}

/* Room for one more element in an array that doubles; false with the graph failed if there is no memory. */
static bool reserve(comba_graph *graph, void **array, int *capacity, int count, size_t size) {
  if (count < *capacity) return true;
  const int larger = *capacity ? *capacity * 2 : 64;
  void *grown = realloc(*array, (size_t)larger * size);
  if (!grown) {
    comba_graph_fail(graph, comba_fail_memory((size_t)larger * size, "a graph"));
    return false;
  }
  *array = grown;
  *capacity = larger;
  return true;
}

int comba_graph_add_storage(comba_graph *graph, size_t bytes) {
  if (!reserve(graph, (void **)&graph->storage, &graph->storage_capacity, graph->storages, sizeof *graph->storage))
    return -1;
  graph->storage[graph->storages] =
      (comba_storage){.bytes = bytes, .first = -1, .last = -1, .gradient = -1, .again = -1};
  return graph->storages++;
}

static comba_tensor *add_tensor(comba_graph *graph, const char *name, comba_class kind, comba_shape shape,
                                int storage) {
  if (graph->status != COMBA_OK || storage < 0) return NULL;
  if (!reserve(graph, (void **)&graph->tensor, &graph->tensor_capacity, graph->tensors, sizeof *graph->tensor))
    return NULL;
  comba_tensor *tensor = comba_allocate(sizeof *tensor, "a tensor");
  char *copy = name ? strdup(name) : NULL;
  if (!tensor || (name && !copy)) {
    free(tensor);
    free(copy);
    comba_graph_fail(graph, comba_fail_memory(sizeof *tensor, "a tensor"));
    return NULL;
  }
  *tensor = (comba_tensor){.name = copy, .kind = kind, .shape = shape, .producer = -1, .storage = storage};
  return graph->tensor[graph->tensors++] = tensor;
}

static int new_storage(comba_graph *graph, comba_class kind, const comba_shape *shape) {
  if (graph->status != COMBA_OK) return -1;
  const int64_t elements = comba_shape_elements(shape);
  if (elements < 0 || elements > (int64_t)1 << 40) {
    char text[COMBA_SHAPE_TEXT];
    comba_graph_fail(
        graph, comba_fail(COMBA_ERROR_ARGUMENT, "a tensor of shape %s is too large", comba_shape_text(shape, text)));
    return -1;
  }
  return comba_graph_add_storage(graph, (size_t)elements * graph->backend->size[kind]);
}

static comba_tensor *add_input(comba_graph *graph, const char *name, comba_class kind, comba_shape shape,
                               bool gradient) {
  comba_tensor *tensor = add_tensor(graph, name, kind, shape, new_storage(graph, kind, &shape));
  if (!tensor) return NULL;
  graph->storage[tensor->storage].whole_life = true;
  tensor->needs_gradient = gradient && graph->flags & COMBA_GRAPH_BACKWARD;
  graph->storage[tensor->storage].keep_gradient = tensor->needs_gradient;
  return tensor;
}

comba_tensor *comba_graph_input(comba_graph *graph, const char *name, comba_class kind, comba_shape shape) {
  return add_input(graph, name, kind, shape, false);
}

comba_tensor *comba_graph_input_with_gradient(comba_graph *graph, const char *name, comba_shape shape) {
  return add_input(graph, name, COMBA_ACTIVATION, shape, true);
}

comba_tensor *comba_graph_external(comba_graph *graph, const char *name, comba_class kind, comba_shape shape,
                                   void *data) {
  comba_tensor *tensor = add_tensor(graph, name, kind, shape, new_storage(graph, kind, &shape));
  if (!tensor) return NULL;
  graph->storage[tensor->storage].external = true;
  graph->storage[tensor->storage].data = tensor->data = data;
  return tensor;
}

comba_tensor *comba_graph_parameter(comba_graph *graph, const char *name, comba_shape shape, void *data,
                                    void *gradient) {
  comba_tensor *tensor = comba_graph_external(graph, name, COMBA_PARAMETER, shape, data);
  if (!tensor) return NULL;
  tensor->needs_gradient = gradient && graph->flags & COMBA_GRAPH_BACKWARD;
  if (tensor->needs_gradient) {
    const int storage = comba_graph_add_storage(graph, 0);
    if (storage < 0) return NULL;
    graph->storage[storage].external = true;
    graph->storage[storage].data = tensor->gradient = gradient;
    graph->storage[tensor->storage].gradient = storage;
  }
  return tensor;
}

/* The operand in the type of the class that an operator takes it as: activations may be narrower than gates. */
static comba_tensor *convert(comba_graph *graph, comba_tensor *tensor, comba_class wanted) {
  if (!tensor || graph->backend->size[tensor->kind] == graph->backend->size[wanted]) return tensor;
  return comba_graph_append(graph, wanted == COMBA_ACTIVATION ? COMBA_OP_narrow : COMBA_OP_widen, NULL, 1, &tensor,
                            NULL);
}

comba_tensor *comba_graph_append(comba_graph *graph, comba_op_id id, const void *attributes, int inputs,
                                 comba_tensor *const *input, comba_tensor **more) {
  if (graph->status != COMBA_OK) return NULL;
  const comba_op *op = graph->backend->op[id];
  comba_tensor *converted[COMBA_MAX_INPUTS];
  for (int i = 0; i < inputs; i++) converted[i] = convert(graph, input[i], op->input_class[i]);
  if (graph->status != COMBA_OK) return NULL;
  input = converted;
  comba_node *node = comba_allocate(sizeof *node, "a graph node");
  void *copy = op->attributes_size ? comba_allocate(op->attributes_size, "a node's attributes") : NULL;
  if (!node || (op->attributes_size && !copy) ||
      !reserve(graph, (void **)&graph->node, &graph->node_capacity, graph->nodes, sizeof *graph->node)) {
    free(node);
    free(copy);
    comba_graph_fail(graph, COMBA_ERROR_MEMORY);
    return NULL;
  }
  if (attributes && copy) memcpy(copy, attributes, op->attributes_size);
  const int index = graph->nodes;
  graph->node[graph->nodes++] = node;
  node->id = id;
  node->op = op;
  node->block = graph->block;
  node->attributes = copy;
  comba_signature *s = &node->signature;
  s->op = op->name;
  s->attributes = copy;
  s->inputs = inputs;
  bool differentiable = false;
  for (int i = 0; i < inputs; i++) {
    node->input[i] = input[i];
    if (input[i]) {
      s->input[i] = input[i]->shape;
      differentiable |= input[i]->needs_gradient && op->backward;
    } else if (!(op->optional_inputs >> i & 1)) {
      comba_graph_fail(graph, comba_fail(COMBA_ERROR_ARGUMENT, "%s: input %d is missing", op->name, i));
      return NULL;
    }
  }
  s->differentiable = differentiable && graph->flags & COMBA_GRAPH_BACKWARD;
  const comba_status status = op->infer(s);
  if (status != COMBA_OK) {
    comba_graph_fail(graph, status);
    return NULL;
  }
  for (int i = 0; i < s->outputs; i++) {
    comba_tensor *output = add_tensor(graph, NULL, op->output_class[i], s->output[i],
                                      new_storage(graph, op->output_class[i], &s->output[i]));
    if (!output) return NULL;
    output->producer = index;
    output->needs_gradient = differentiable && output->kind != COMBA_INDEX && !(op->constant_outputs >> i & 1);
    node->output[i] = output;
    if (more && i > 0) more[i - 1] = output;
  }
  return node->output[0];
}

comba_tensor *comba_reshape(comba_graph *graph, comba_tensor *x, comba_shape shape) {
  if (graph->status != COMBA_OK || !x) return NULL;
  if (comba_shape_elements(&shape) != comba_shape_elements(&x->shape)) {
    char from[COMBA_SHAPE_TEXT], to[COMBA_SHAPE_TEXT];
    comba_graph_fail(graph, comba_fail(COMBA_ERROR_ARGUMENT, "reshape: %s does not hold as many values as %s",
                                       comba_shape_text(&shape, to), comba_shape_text(&x->shape, from)));
    return NULL;
  }
  comba_tensor *view = add_tensor(graph, NULL, x->kind, shape, x->storage);
  if (!view) return NULL;
  view->data = x->data;
  view->gradient = x->gradient;
  view->producer = x->producer;
  view->needs_gradient = x->needs_gradient;
  return view;
}

comba_tensor *const *comba_graph_operands(const comba_graph *graph, const comba_tensor *tensor, comba_op_id op) {
  if (!tensor || tensor->producer < 0) return NULL;
  const comba_node *node = graph->node[tensor->producer];
  return node->id == op && node->output[0] == tensor ? node->input : NULL;
}

void comba_graph_keep(comba_graph *graph, comba_tensor *tensor) {
  if (tensor) graph->storage[tensor->storage].keep = true;
}

void comba_graph_store(comba_graph *graph, comba_tensor *tensor, comba_tensor *target) {
  if (!tensor || !target) return;
  if (comba_shape_equal(&tensor->shape, &target->shape)) {
    tensor->storage = target->storage;
    return;
  }
  char from[COMBA_SHAPE_TEXT], to[COMBA_SHAPE_TEXT];
  comba_graph_fail(graph, comba_fail(COMBA_ERROR_ARGUMENT, "a result of shape %s cannot be stored in '%s' of shape %s",
                                     comba_shape_text(&tensor->shape, from), target->name,
                                     comba_shape_text(&target->shape, to)));
}

void comba_graph_seed(comba_graph *graph, comba_tensor *tensor) {
  if (!tensor) return;
  graph->storage[tensor->storage].seed = true;
  graph->storage[tensor->storage].keep_gradient = true;
}

void comba_graph_begin_block(comba_graph *graph) {
  graph->block = ++graph->blocks;
}

void comba_graph_end_block(comba_graph *graph) {
  graph->block = 0;
}

void comba_graph_set_recompute(comba_graph *graph, comba_recompute level, int blocks) {
  graph->level = level;
  graph->level_blocks = blocks;
}

bool comba_graph_is_narrow(const comba_graph *graph) {
  return graph->backend->size[COMBA_ACTIVATION] < graph->backend->size[COMBA_PARAMETER];
}

uint64_t comba_graph_stream(comba_graph *graph) {
  return graph->streams++;
}

void comba_graph_bind_run(comba_graph *graph, const comba_run *run) {
  const comba_device_memory *memory = graph->backend->memory;
  graph->run = run;
  if (!memory->is_host) run = graph->device_run = memory->allocate(sizeof *run, "seed and step");
  for (int i = 0; i < graph->nodes; i++)
    for (int kind = 0; kind < COMBA_RUNS; kind++) graph->node[i]->call[kind].run = run;
}

/* ---- Running ------------------------------------------------------------------------------------------------------- */

static bool profiling;
static struct {
  int64_t calls;
  double seconds, flops, bytes;
} profile[COMBA_OP_COUNT][COMBA_RUNS];
static const char *profile_name[COMBA_OP_COUNT];

void comba_profile_enable(bool enabled) {
  profiling = enabled;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

typedef struct kernel {
  void (*run)(const comba_call *call);
  const comba_call *call;
} kernel;

static void run_kernel(void *context) {
  const kernel *k = context;
  k->run(k->call);
}

static double seconds(const comba_backend *backend, kernel *k) {
  if (backend->time) return backend->time(run_kernel, k);
  const double start = now();
  run_kernel(k);
  return now() - start;
}

static void run(const comba_graph *graph, const comba_step *step) {
  const comba_node *node = graph->node[step->node];
  const bool backward = step->kind == COMBA_RUN_BACKWARD;
  kernel k = {backward ? node->op->backward : node->op->forward, &node->call[step->kind]};
  if (!profiling) {
    run_kernel(&k);
    return;
  }
  profile[node->id][step->kind].seconds += seconds(graph->backend, &k);
  profile[node->id][step->kind].calls++;
  profile[node->id][step->kind].flops += backward ? node->signature.backward_flops : node->signature.forward_flops;
  profile[node->id][step->kind].bytes += node->bytes[step->kind];
  profile_name[node->id] = node->op->name;
}

/* Runs some nodes from step `first` on at once; returns their number, 0 where the backend does not. */
static int run_together(const comba_graph *graph, int first) {
  comba_forward forwards[COMBA_MOST_TOGETHER];
  int count = 0;
  if (profiling || !graph->backend->forward_together || !(graph->flags & COMBA_GRAPH_TOGETHER)) return 0;
  for (int i = first; i < graph->forward_steps && count < COMBA_MOST_TOGETHER; i++) {
    const comba_node *node = graph->node[graph->schedule[i].node];
    forwards[count++] = (comba_forward){node->id, node->depth, &node->call[COMBA_RUN_FORWARD]};
  }
  return graph->backend->forward_together(forwards, count);
}

static void run_forward(void *context) {
  const comba_graph *graph = context;
  if (graph->in_lanes && !profiling && comba_graph_run_in_lanes(graph, 0, graph->forward_steps)) return;
  for (int i = 0; i < graph->forward_steps;) {
    const int together = run_together(graph, i);
    if (!together) run(graph, &graph->schedule[i]);
    i += together ? together : 1;
  }
}

static void run_backward(void *context) {
  const comba_graph *graph = context;
  if (graph->in_lanes && !profiling && comba_graph_run_in_lanes(graph, graph->forward_steps, graph->steps)) return;
  for (int i = graph->forward_steps; i < graph->steps; i++) run(graph, &graph->schedule[i]);
}

static void run_pass(comba_graph *graph, int pass) {
  static void (*const passes[2])(void *) = {run_forward, run_backward};
  const comba_backend *backend = graph->backend;
  if (graph->device_run) backend->memory->write(graph->device_run, graph->run, sizeof *graph->run);
  if (profiling || !backend->record) {
    passes[pass](graph);
    return;
  }
  /* a recording that fails leaves its error for the next read */
  if (!graph->recording[pass] && backend->record(&graph->recording[pass], passes[pass], graph) != COMBA_OK) return;
  backend->replay(graph->recording[pass]);
}

void comba_graph_forward(comba_graph *graph) {
  run_pass(graph, 0);
}

void comba_graph_backward(comba_graph *graph) {
  run_pass(graph, 1);
}

static int by_time(const void *a, const void *b) {
  const double x = ((const comba_profile_row *)a)->seconds, y = ((const comba_profile_row *)b)->seconds;
  return (x < y) - (x > y);
}

int comba_profile_rows(comba_profile_row *rows, int capacity) {
  static const char *const names[COMBA_RUNS] = {"forward", "backward", "again"};
  comba_profile_row all[COMBA_PROFILE_ROWS];
  int count = 0;
  for (int id = 0; id < COMBA_OP_COUNT; id++)
    for (int kind = 0; kind < COMBA_RUNS; kind++)
      if (profile[id][kind].calls)
        all[count++] = (comba_profile_row){profile_name[id],        names[kind],
                                           profile[id][kind].calls, profile[id][kind].seconds,
                                           profile[id][kind].flops, profile[id][kind].bytes};
  qsort(all, (size_t)count, sizeof *all, by_time);
  memcpy(rows, all, (size_t)(count < capacity ? count : capacity) * sizeof *all);
  return count;
}
