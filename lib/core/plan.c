/* Planning a graph: which nodes run backward, how long each piece of memory is needed, and where it lies in one arena.
 *
 * Time: forward of node i is i, its backward 2n - 1 - i. Two storages whose intervals do not meet may share bytes. Offsets
 * are assigned greedily, largest storage first, each at the lowest offset that is free during its whole interval. */
#include "core/graph_private.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

static void need(comba_graph *graph, int storage, int time) {
  comba_storage *s = &graph->storage[storage];
  if (s->first < 0 || time < s->first) s->first = time;
  if (time > s->last) s->last = time;
}

static int gradient_storage(comba_graph *graph, int storage) {
  if (graph->storage[storage].gradient < 0) {
    const int gradient = comba_graph_add_storage(graph, graph->storage[storage].bytes);
    if (gradient < 0) return -1;
    graph->storage[storage].gradient = gradient;
  }
  return graph->storage[storage].gradient;
}

/* Marks the nodes whose backward runs, and for each input gradient whether it is the first to be written. */
static comba_status derive_backward(comba_graph *graph) {
  for (int i = 0; i < graph->storages; i++) {
    if (!graph->storage[i].seed) continue;
    const int gradient = gradient_storage(graph, i);
    if (gradient < 0) return comba_graph_status(graph);
    graph->storage[gradient].written = true;
  }
  const int end = 2 * graph->nodes;
  for (int i = graph->nodes - 1; i >= 0; i--) {
    comba_node *node = graph->node[i];
    const int time = end - 1 - i;
    bool reached = false, wanted = false;
    for (int k = 0; k < node->signature.outputs; k++) {
      const int gradient = graph->storage[node->output[k]->storage].gradient;
      reached |= node->output[k]->needs_gradient && gradient >= 0 && graph->storage[gradient].written;
    }
    for (int k = 0; k < node->signature.inputs; k++) wanted |= node->input[k] && node->input[k]->needs_gradient;
    node->runs_backward = reached && wanted && node->op->backward;
    if (!node->runs_backward) continue;
    for (int k = 0; k < node->signature.outputs; k++) {
      const int gradient = graph->storage[node->output[k]->storage].gradient;
      if (gradient < 0 || !graph->storage[gradient].written) continue;
      need(graph, gradient, time);
      node->backward.output_gradient[k].data = graph; /* replaced by the address in resolve() */
    }
    for (int k = 0; k < node->signature.inputs; k++) {
      if (!node->input[k] || !node->input[k]->needs_gradient) continue;
      const int gradient = gradient_storage(graph, node->input[k]->storage);
      if (gradient < 0) return comba_graph_status(graph);
      comba_storage *s = &graph->storage[gradient];
      node->backward.accumulate[k] = s->written || s->external;
      s->written = true;
      need(graph, gradient, time);
      node->backward.input_gradient[k].data = graph;
    }
  }
  return COMBA_OK;
}

static comba_status measure_lifetimes(comba_graph *graph) {
  const int end = 2 * graph->nodes;
  const size_t real_size = graph->backend->size[COMBA_STATE];
  for (int i = 0; i < graph->nodes; i++) {
    comba_node *node = graph->node[i];
    const comba_signature *s = &node->signature;
    const int times[2] = {i, end - 1 - i};
    const int64_t workspace[2] = {s->forward_workspace, s->backward_workspace};
    for (int pass = 0; pass <= node->runs_backward; pass++) {
      for (int k = 0; k < s->inputs; k++)
        if (node->input[k] && (!pass || node->op->backward_inputs >> k & 1))
          need(graph, node->input[k]->storage, times[pass]);
      for (int k = 0; k < s->outputs; k++)
        if (!pass || node->op->backward_outputs >> k & 1) need(graph, node->output[k]->storage, times[pass]);
      node->workspace[pass] = -1;
      if (!workspace[pass]) continue;
      node->workspace[pass] = comba_graph_add_storage(graph, (size_t)workspace[pass] * real_size);
      if (node->workspace[pass] < 0) return comba_graph_status(graph);
      need(graph, node->workspace[pass], times[pass]);
    }
    for (int k = 0; k < s->saved; k++) {
      node->saved[k] = -1;
      if (!node->runs_backward) continue;
      node->saved[k] = comba_graph_add_storage(graph, (size_t)comba_shape_elements(&s->saved_shape[k]) * real_size);
      if (node->saved[k] < 0) return comba_graph_status(graph);
      need(graph, node->saved[k], times[0]);
      need(graph, node->saved[k], times[1]);
    }
  }
  for (int i = 0; i < graph->storages; i++) {
    if (graph->storage[i].whole_life) {
      need(graph, i, 0);
      need(graph, i, end);
    }
    if (graph->storage[i].keep && graph->storage[i].first >= 0) need(graph, i, end);
    const int gradient = graph->storage[i].gradient;
    if (graph->storage[i].keep_gradient &&
        gradient >= 0) { /* the caller writes a seed at any time before, reads it after */
      need(graph, gradient, 0);
      need(graph, gradient, end);
    }
  }
  return COMBA_OK;
}

typedef struct placement {
  size_t bytes, offset;
  int storage, first, last;
} placement;

static int largest_first(const void *a, const void *b) {
  const placement *x = a, *y = b;
  if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
  return x->storage - y->storage;
}

static comba_status assign_offsets(comba_graph *graph) {
  comba_status status = COMBA_OK;
  const size_t room = (size_t)(graph->storages ? graph->storages : 1);
  placement *todo = malloc(room * sizeof *todo);
  int *placed = malloc(room * sizeof *placed); /* indices into todo, by offset */
  if (!todo || !placed) {
    status = comba_fail_memory(room * sizeof *todo, "planning a graph");
    goto cleanup;
  }
  int count = 0;
  for (int i = 0; i < graph->storages; i++) {
    const comba_storage *s = &graph->storage[i];
    if (s->external || s->first < 0) continue;
    const size_t bytes = (s->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    todo[count++] = (placement){bytes ? bytes : ALIGNMENT, 0, i, s->first, s->last};
    graph->cost.unshared_bytes += todo[count - 1].bytes;
  }
  qsort(todo, (size_t)count, sizeof *todo, largest_first);
  for (int i = 0; i < count; i++) {
    size_t offset = 0;
    int position = 0; /* where i goes in `placed` */
    for (int k = 0; k < i; k++) {
      const placement *other = &todo[placed[k]];
      if (other->last < todo[i].first || todo[i].last < other->first) continue;
      if (offset + todo[i].bytes <= other->offset) break;
      if (other->offset + other->bytes > offset) offset = other->offset + other->bytes;
    }
    todo[i].offset = offset;
    while (position < i && todo[placed[position]].offset <= offset) position++;
    memmove(placed + position + 1, placed + position, (size_t)(i - position) * sizeof *placed);
    placed[position] = i;
    graph->storage[todo[i].storage].offset = offset;
    if (offset + todo[i].bytes > graph->cost.arena_bytes) graph->cost.arena_bytes = offset + todo[i].bytes;
  }
cleanup:
  free(todo);
  free(placed);
  return status;
}

static void *address(const comba_graph *graph, int storage) {
  if (storage < 0) return NULL;
  const comba_storage *s = &graph->storage[storage];
  if (s->external) return s->data;
  return s->first < 0 ? NULL : (char *)graph->arena + s->offset;
}

static void resolve(comba_graph *graph) {
  for (int i = 0; i < graph->tensors; i++) {
    comba_tensor *tensor = graph->tensor[i];
    tensor->data = address(graph, tensor->storage);
    tensor->gradient = address(graph, graph->storage[tensor->storage].gradient);
  }
  for (int i = 0; i < graph->nodes; i++) {
    comba_node *node = graph->node[i];
    const comba_signature *s = &node->signature;
    comba_call *forward = &node->forward, *backward = &node->backward;
    forward->attributes = backward->attributes = node->attributes;
    const size_t *size = graph->backend->size;
    for (int k = 0; k < s->inputs; k++) {
      if (!node->input[k]) continue;
      const double bytes = (double)comba_shape_elements(&s->input[k]) * (double)size[node->input[k]->kind];
      const bool gradient = backward->input_gradient[k].data;
      forward->input[k] = backward->input[k] = (comba_view){node->input[k]->data, s->input[k]};
      if (gradient) backward->input_gradient[k] = (comba_view){node->input[k]->gradient, s->input[k]};
      node->bytes[0] += bytes;
      node->bytes[1] += bytes * ((node->op->backward_inputs >> k & 1) + gradient * (1 + backward->accumulate[k]));
    }
    for (int k = 0; k < s->outputs; k++) {
      const double bytes = (double)comba_shape_elements(&s->output[k]) * (double)size[node->output[k]->kind];
      const bool gradient = backward->output_gradient[k].data;
      forward->output[k] = backward->output[k] = (comba_view){node->output[k]->data, s->output[k]};
      backward->output_gradient[k] = (comba_view){gradient ? node->output[k]->gradient : NULL, s->output[k]};
      node->bytes[0] += bytes;
      node->bytes[1] += bytes * ((node->op->backward_outputs >> k & 1) + gradient);
    }
    for (int k = 0; k < s->saved; k++)
      forward->saved[k] = backward->saved[k] = (comba_view){address(graph, node->saved[k]), s->saved_shape[k]};
    forward->workspace = address(graph, node->workspace[0]);
    if (node->runs_backward) backward->workspace = address(graph, node->workspace[1]);
    graph->cost.forward_flops += s->forward_flops;
    if (node->runs_backward) graph->cost.backward_flops += s->backward_flops;
  }
}

comba_status comba_graph_plan(comba_graph *graph) {
  comba_status status = comba_graph_status(graph);
  if (status != COMBA_OK) return status;
  COMBA_TRY(derive_backward(graph));
  COMBA_TRY(measure_lifetimes(graph));
  COMBA_TRY(assign_offsets(graph));
  graph->arena = graph->backend->memory->allocate(graph->cost.arena_bytes, "the arena of a graph");
  if (!graph->arena) return COMBA_ERROR_MEMORY;
  graph->cost.nodes = graph->nodes;
  resolve(graph);
cleanup:
  return status;
}

void comba_graph_describe(const comba_graph *graph, comba_graph_cost *cost) {
  *cost = graph->cost;
}
