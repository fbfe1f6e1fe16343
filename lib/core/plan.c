/* Planning a graph: which nodes run backward, how long each piece of memory is needed, and where it lies in one arena.
 *
 * Time is the place in the schedule (recompute.c). Two storages whose intervals do not meet may share bytes. Offsets are
 * assigned greedily, largest storage first, each at the lowest offset that is free during its whole interval. */
#include "core/graph_private.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

static void need(comba_graph *graph, int storage, int time) {
  comba_storage *s = &graph->storage[storage];
  /* of nodes that run together, none may write where an earlier one still reads */
  int last = graph->flags & COMBA_GRAPH_TOGETHER ? time + COMBA_MOST_TOGETHER - 1 : time;
  if (graph->in_lanes) last += COMBA_LANE_STEPS;
  if (s->first < 0 || time < s->first) s->first = time;
  if (last > s->last) s->last = last;
}

static int gradient_storage(comba_graph *graph, int storage) {
  if (graph->storage[storage].gradient < 0) {
    const int gradient = comba_graph_add_storage(graph, graph->storage[storage].bytes);
    if (gradient < 0) return -1;
    graph->storage[storage].gradient = gradient;
  }
  return graph->storage[storage].gradient;
}

/* Marks the nodes that run forward, the last first: those with a result that somebody reads, who then reads their operands. */
static void mark_forward(comba_graph *graph) {
  for (int i = 0; i < graph->storages; i++) {
    comba_storage *s = &graph->storage[i];
    s->read = s->external || s->keep || s->seed;
  }
  for (int i = graph->nodes - 1; i >= 0; i--) {
    comba_node *node = graph->node[i];
    for (int k = 0; k < node->signature.outputs; k++)
      node->runs[COMBA_RUN_FORWARD] |= graph->storage[node->output[k]->storage].read;
    for (int k = 0; k < node->signature.inputs && node->runs[COMBA_RUN_FORWARD]; k++)
      if (node->input[k]) graph->storage[node->input[k]->storage].read = true;
  }
}

/* Whether a gradient has no part but that of the one node which reads the value. */
static bool has_one_part(const comba_storage *value) {
  return value->readers == 1 && !value->keep_gradient && !value->seed && !value->external;
}

/* Where inputs of a node have equal gradients without other parts, one memory holds them, written as that of the first. Whether input k
 * is a later one of these. */
static bool shares_gradient(comba_graph *graph, const comba_node *node, int k) {
  const uint32_t equal = node->op->equal_gradients;
  comba_storage *own = &graph->storage[node->input[k]->storage];
  for (int i = 0; i < k && equal >> k & 1 && has_one_part(own); i++) {
    if (!(equal >> i & 1) || !node->call[COMBA_RUN_BACKWARD].input_gradient[i].data) continue;
    const comba_storage *first = &graph->storage[node->input[i]->storage];
    if (!has_one_part(first) || first->bytes != own->bytes) continue;
    own->gradient = first->gradient;
    return true;
  }
  return false;
}

/* Whether the gradient of input k takes the memory of the value, which nobody reads after this node's backward. Values of a block may
 * be written twice. */
static bool lies_over_value(const comba_graph *graph, const comba_node *node, int k) {
  const comba_tensor *input = node->input[k];
  const comba_storage *value = &graph->storage[input->storage];
  if (!(node->op->gradient_over_input >> k & 1) || !has_one_part(value) || value->keep || value->whole_life)
    return false;
  if (value->gradient >= 0 || input->producer < 0) return false;
  const comba_node *producer = graph->node[input->producer];
  for (int i = 0; i < producer->signature.outputs; i++)
    if (producer->output[i]->storage == input->storage && comba_node_backward_outputs(producer) >> i & 1) return false;
  return !node->block && !producer->block;
}

/* Marks the nodes whose backward runs, and for each input gradient whether it is the first to be written. Until resolve(),
 * data that is not NULL says of a gradient that it is there. */
static comba_status derive_backward(comba_graph *graph) {
  for (int i = 0; i < graph->nodes; i++)
    for (int k = 0; k < graph->node[i]->signature.inputs; k++)
      if (graph->node[i]->input[k]) graph->storage[graph->node[i]->input[k]->storage].readers++;
  for (int i = 0; i < graph->storages; i++) {
    if (!graph->storage[i].seed) continue;
    const int gradient = gradient_storage(graph, i);
    if (gradient < 0) return comba_graph_status(graph);
    graph->storage[gradient].written = true;
  }
  for (int i = graph->nodes - 1; i >= 0; i--) {
    comba_node *node = graph->node[i];
    comba_call *call = &node->call[COMBA_RUN_BACKWARD];
    bool reached = false, wanted = false;
    for (int k = 0; k < node->signature.outputs; k++) {
      const int gradient = graph->storage[node->output[k]->storage].gradient;
      reached |= node->output[k]->needs_gradient && gradient >= 0 && graph->storage[gradient].written;
    }
    for (int k = 0; k < node->signature.inputs; k++) wanted |= node->input[k] && node->input[k]->needs_gradient;
    node->runs[COMBA_RUN_BACKWARD] = reached && wanted && node->op->backward;
    if (!node->runs[COMBA_RUN_BACKWARD]) continue;
    for (int k = 0; k < node->signature.outputs; k++) {
      const int gradient = graph->storage[node->output[k]->storage].gradient;
      if (gradient >= 0 && graph->storage[gradient].written) call->output_gradient[k].data = graph;
    }
    for (int k = 0; k < node->signature.inputs; k++) {
      if (!node->input[k] || !node->input[k]->needs_gradient || shares_gradient(graph, node, k)) continue;
      if (lies_over_value(graph, node, k)) graph->storage[node->input[k]->storage].gradient = node->input[k]->storage;
      const int gradient = gradient_storage(graph, node->input[k]->storage);
      if (gradient < 0) return comba_graph_status(graph);
      comba_storage *s = &graph->storage[gradient];
      call->accumulate[k] = s->written || s->external;
      call->input_gradient[k].data = graph;
      s->written = true;
    }
  }
  return COMBA_OK;
}

/* At LIGHT backward makes them itself where it can; at BLOCK forward, which runs again, writes them. */
static comba_status add_saved(comba_graph *graph) {
  const size_t real_size = graph->backend->size[COMBA_STATE];
  for (int i = 0; i < graph->nodes; i++) {
    comba_node *node = graph->node[i];
    const bool made_again = comba_graph_level(graph, node) == COMBA_RECOMPUTE_LIGHT && node->signature.saved_optional;
    for (int k = 0; k < node->signature.saved; k++) {
      node->saved[k] = -1;
      if (!node->runs[COMBA_RUN_BACKWARD] || made_again) continue;
      node->saved[k] =
          comba_graph_add_storage(graph, (size_t)comba_shape_elements(&node->signature.saved_shape[k]) * real_size);
      if (node->saved[k] < 0) return comba_graph_status(graph);
    }
  }
  return COMBA_OK;
}

/* Where a value lies that a run of this kind reads or writes. */
static int place(const comba_graph *graph, int storage, comba_run_kind kind) {
  return kind != COMBA_RUN_FORWARD && graph->storage[storage].again >= 0 ? graph->storage[storage].again : storage;
}

static comba_status add_workspace(comba_graph *graph, comba_node *node, comba_run_kind kind) {
  const int64_t size =
      kind == COMBA_RUN_BACKWARD ? node->signature.backward_workspace : node->signature.forward_workspace;
  const size_t bytes = (size_t)size * graph->backend->size[COMBA_STATE];
  node->workspace[kind] = bytes ? comba_graph_add_storage(graph, bytes) : -1;
  if (bytes > graph->cost.workspace_bytes) graph->cost.workspace_bytes = bytes;
  return comba_graph_status(graph);
}

static comba_status measure_lifetimes(comba_graph *graph) {
  comba_status status = COMBA_OK;
  for (int time = 0; time < graph->steps; time++) {
    const comba_run_kind kind = graph->schedule[time].kind;
    comba_node *node = graph->node[graph->schedule[time].node];
    const comba_signature *s = &node->signature;
    const bool backward = kind == COMBA_RUN_BACKWARD;
    COMBA_TRY(add_workspace(graph, node, kind));
    if (node->workspace[kind] >= 0) need(graph, node->workspace[kind], time);
    for (int k = 0; k < s->inputs; k++) {
      if (!node->input[k]) continue;
      if (!backward || node->op->backward_inputs >> k & 1)
        need(graph, place(graph, node->input[k]->storage, kind), time);
      if (backward && node->call[kind].input_gradient[k].data)
        need(graph, graph->storage[node->input[k]->storage].gradient, time);
    }
    for (int k = 0; k < s->outputs; k++) {
      const bool left_out = node->op->optional_outputs >> k & 1 && !graph->storage[node->output[k]->storage].read;
      if (backward ? comba_node_backward_outputs(node) >> k & 1 : !left_out)
        need(graph, place(graph, node->output[k]->storage, kind), time);
      if (backward && node->call[kind].output_gradient[k].data)
        need(graph, graph->storage[node->output[k]->storage].gradient, time);
    }
    for (int k = 0; k < s->saved; k++)
      if (node->saved[k] >= 0) need(graph, place(graph, node->saved[k], kind), time);
  }
  for (int i = 0; i < graph->storages; i++) {
    const int gradient = graph->storage[i].gradient, end = graph->steps;
    if (graph->storage[i].whole_life) {
      need(graph, i, 0);
      need(graph, i, end);
    }
    if (graph->storage[i].keep && graph->storage[i].first >= 0) need(graph, i, end);
    if (graph->storage[i].keep_gradient &&
        gradient >= 0) { /* the caller writes a seed at any time before, reads it after */
      need(graph, gradient, 0);
      need(graph, gradient, end);
    }
  }
cleanup:
  return status;
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

/* The operands of a node where it runs in this way, and the bytes that it moves. */
static void resolve_call(const comba_graph *graph, comba_node *node, comba_run_kind kind) {
  const comba_signature *s = &node->signature;
  const size_t *size = graph->backend->size;
  comba_call *call = &node->call[kind];
  const bool backward = kind == COMBA_RUN_BACKWARD;
  double *moved = &node->bytes[kind];
  call->attributes = node->attributes;
  for (int k = 0; k < s->inputs; k++) {
    const comba_tensor *input = node->input[k];
    if (!input) continue;
    const double bytes = (double)comba_shape_elements(&s->input[k]) * (double)size[input->kind];
    const bool gradient = call->input_gradient[k].data;
    call->input[k] = (comba_view){address(graph, place(graph, input->storage, kind)), s->input[k]};
    if (gradient) call->input_gradient[k] = (comba_view){input->gradient, s->input[k]};
    *moved += bytes * (!backward || node->op->backward_inputs >> k & 1);
    *moved += bytes * (gradient * (1 + call->accumulate[k]));
  }
  for (int k = 0; k < s->outputs; k++) {
    const comba_tensor *output = node->output[k];
    const double bytes = (double)comba_shape_elements(&s->output[k]) * (double)size[output->kind];
    const bool gradient = call->output_gradient[k].data;
    call->output[k] = (comba_view){address(graph, place(graph, output->storage, kind)), s->output[k]};
    call->output_gradient[k] = (comba_view){gradient ? output->gradient : NULL, s->output[k]};
    *moved += bytes * ((!backward || comba_node_backward_outputs(node) >> k & 1) + gradient);
  }
  for (int k = 0; k < s->saved; k++)
    call->saved[k] =
        (comba_view){node->saved[k] < 0 ? NULL : address(graph, place(graph, node->saved[k], kind)), s->saved_shape[k]};
  call->workspace = address(graph, node->workspace[kind]);
}

static void resolve(comba_graph *graph) {
  for (int i = 0; i < graph->tensors; i++) {
    comba_tensor *tensor = graph->tensor[i];
    tensor->data = address(graph, tensor->storage);
    tensor->gradient = address(graph, graph->storage[tensor->storage].gradient);
  }
  for (int i = 0; i < graph->nodes; i++)
    for (int kind = 0; kind < COMBA_RUNS; kind++)
      if (graph->node[i]->runs[kind]) resolve_call(graph, graph->node[i], kind);
}

static void count_flops(comba_graph *graph) {
  for (int i = 0; i < graph->nodes; i++) {
    const comba_node *node = graph->node[i];
    if (node->runs[COMBA_RUN_FORWARD]) graph->cost.forward_flops += node->signature.forward_flops;
    if (node->runs[COMBA_RUN_BACKWARD]) graph->cost.backward_flops += node->signature.backward_flops;
    if (node->runs[COMBA_RUN_AGAIN]) graph->cost.again_flops += node->signature.forward_flops;
  }
  graph->cost.nodes = graph->forward_steps;
  graph->cost.blocks = graph->blocks;
  graph->cost.recompute = graph->level;
  graph->cost.recompute_blocks = graph->level_blocks < graph->blocks ? graph->level_blocks : graph->blocks;
}

comba_status comba_graph_layout(comba_graph *graph) {
  comba_status status = comba_graph_status(graph);
  if (status != COMBA_OK) return status;
  mark_forward(graph);
  graph->in_lanes = comba_graph_has_lanes(graph);
  COMBA_TRY(derive_backward(graph));
  COMBA_TRY(add_saved(graph));
  COMBA_TRY(comba_graph_schedule(graph));
  COMBA_TRY(measure_lifetimes(graph));
  COMBA_TRY(assign_offsets(graph));
  count_flops(graph);
cleanup:
  return status;
}

comba_status comba_graph_plan(comba_graph *graph) {
  const comba_status status = graph->schedule ? COMBA_OK : comba_graph_layout(graph);
  if (status != COMBA_OK) return status;
  graph->arena = graph->backend->memory->allocate(graph->cost.arena_bytes, "the arena of a graph");
  if (!graph->arena) return COMBA_ERROR_MEMORY;
  resolve(graph);
  return COMBA_OK;
}

void comba_graph_describe(const comba_graph *graph, comba_graph_cost *cost) {
  *cost = graph->cost;
}
