/* The order in which everything runs, and which values backward computes again instead of reading what forward left.
 *
 * Forward runs the nodes in their order, backward those that have one in reverse. Where values are dropped, the nodes of a
 * block that write them run forward again just before the backward of its last node. What they write then has a second
 * storage, whose life begins there; the life of the first ends with its last reader in forward. The same kernels see the
 * same operands, so the results are the same bits.
 *
 * The first blocks may drop more than the others: backward reaches them last, when what the others kept is free again.
 *
 * Held in any case is what another block reads (a block's inputs among it), what is not of a block, and the caller's. */
#include "core/graph_private.h"

#include <stdlib.h>

/* Up to so many FLOPs for each byte moved an operator is bound by memory on any device, and cheap to run again. */
enum { CHEAP_FLOPS_PER_BYTE = 8 };

comba_recompute comba_graph_level(const comba_graph *graph, const comba_node *node) {
  if (!node->block || graph->level <= COMBA_RECOMPUTE_NONE) return COMBA_RECOMPUTE_NONE;
  return node->block <= graph->level_blocks ? graph->level : graph->level - 1;
}

static double operand_bytes(const comba_graph *graph, comba_tensor *const *operand, int count) {
  double bytes = 0;
  for (int k = 0; k < count; k++)
    if (operand[k]) bytes += (double)graph->storage[operand[k]->storage].bytes;
  return bytes;
}

/* Whether the node may run again at all. Memory of the caller that a node writes, a state, has another value after that. */
static bool may_run_again(const comba_graph *graph, const comba_node *node) {
  const comba_signature *s = &node->signature;
  const comba_recompute level = comba_graph_level(graph, node);
  if (level == COMBA_RECOMPUTE_NONE) return false;
  for (int k = 0; k < s->inputs; k++)
    if (node->input[k] && graph->storage[node->input[k]->storage].written) return false;
  for (int k = 0; k < s->outputs; k++)
    if (graph->storage[node->output[k]->storage].written) return false;
  if (level == COMBA_RECOMPUTE_BLOCK) return true;
  return s->forward_flops <= CHEAP_FLOPS_PER_BYTE * (operand_bytes(graph, node->input, s->inputs) +
                                                     operand_bytes(graph, node->output, s->outputs));
}

/* Marks what is held in any case, and the nodes that may run again. */
static void mark_held(comba_graph *graph) {
  for (int i = 0; i < graph->storages; i++) {
    comba_storage *s = &graph->storage[i];
    s->held = s->external || s->whole_life || s->keep;
  }
  for (int i = 0; i < graph->nodes; i++) {
    const comba_node *node = graph->node[i];
    for (int k = 0; k < node->signature.outputs; k++) {
      comba_storage *s = &graph->storage[node->output[k]->storage];
      s->written = s->external;
    }
    for (int k = 0; k < node->signature.inputs; k++) {
      const comba_tensor *input = node->input[k];
      if (input && input->producer >= 0 && graph->node[input->producer]->block != node->block)
        graph->storage[input->storage].held = true;
    }
  }
  for (int i = 0; i < graph->nodes; i++) {
    comba_node *node = graph->node[i];
    node->runs[COMBA_RUN_AGAIN] = may_run_again(graph, node);
    for (int k = 0; k < node->signature.outputs; k++)
      graph->storage[node->output[k]->storage].held |= !node->runs[COMBA_RUN_AGAIN];
  }
}

static void want(comba_graph *graph, comba_tensor *const *operand, int count, uint32_t mask) {
  for (int k = 0; k < count; k++)
    if (operand[k] && mask >> k & 1) graph->storage[operand[k]->storage].wanted = true;
}

/* Bytes of what backward wants of the node and forward need not hold. */
static double freed_bytes(const comba_graph *graph, const comba_node *node) {
  double bytes = 0;
  for (int k = 0; k < node->signature.outputs; k++) {
    const comba_storage *s = &graph->storage[node->output[k]->storage];
    if (s->wanted && !s->held) bytes += (double)s->bytes;
  }
  for (int k = 0; k < node->signature.saved; k++)
    if (node->saved[k] >= 0) bytes += (double)graph->storage[node->saved[k]].bytes;
  return bytes;
}

/* Bytes that would have to be held for the node alone. */
static double spent_bytes(const comba_graph *graph, const comba_node *node) {
  double bytes = 0;
  for (int k = 0; k < node->signature.inputs; k++) {
    const comba_tensor *input = node->input[k];
    if (!input || input->producer < 0 || graph->node[input->producer]->runs[COMBA_RUN_AGAIN]) continue;
    const comba_storage *s = &graph->storage[input->storage];
    const bool crosses = graph->node[input->producer]->block != node->block;
    if (!s->wanted && !crosses) bytes += (double)s->bytes;
  }
  return bytes;
}

/* From the last node to the first: when a node's turn comes, all that reads its results has said what it wants. */
static void choose_nodes(comba_graph *graph) {
  for (int i = graph->nodes - 1; i >= 0; i--) {
    comba_node *node = graph->node[i];
    const comba_signature *s = &node->signature;
    if (node->runs[COMBA_RUN_BACKWARD]) {
      want(graph, node->input, s->inputs, node->op->backward_inputs);
      want(graph, node->output, s->outputs, comba_node_backward_outputs(node));
    }
    if (!node->runs[COMBA_RUN_AGAIN]) continue;
    const double freed = freed_bytes(graph, node);
    node->runs[COMBA_RUN_AGAIN] =
        freed > 0 && (comba_graph_level(graph, node) == COMBA_RECOMPUTE_BLOCK || freed > spent_bytes(graph, node));
    if (node->runs[COMBA_RUN_AGAIN]) want(graph, node->input, s->inputs, UINT32_MAX);
  }
}

static bool add_second(comba_graph *graph, int storage) {
  if (storage < 0) return true;
  const int again = comba_graph_add_storage(graph, graph->storage[storage].bytes);
  if (again >= 0) graph->storage[storage].again = again;
  return again >= 0;
}

comba_status comba_graph_schedule(comba_graph *graph) {
  mark_held(graph);
  choose_nodes(graph);
  graph->schedule = comba_allocate((size_t)(COMBA_RUNS * graph->nodes + 1) * sizeof *graph->schedule, "a schedule");
  if (!graph->schedule) return COMBA_ERROR_MEMORY;
  for (int i = 0; i < graph->nodes; i++) {
    const comba_node *node = graph->node[i];
    if (node->runs[COMBA_RUN_FORWARD]) graph->schedule[graph->forward_steps++] = (comba_step){i, COMBA_RUN_FORWARD};
    if (!node->runs[COMBA_RUN_AGAIN]) continue;
    for (int k = 0; k < node->signature.outputs; k++)
      if (!graph->storage[node->output[k]->storage].held && !add_second(graph, node->output[k]->storage))
        return comba_graph_status(graph);
    for (int k = 0; k < node->signature.saved; k++)
      if (!add_second(graph, node->saved[k])) return comba_graph_status(graph);
  }
  graph->steps = graph->forward_steps;
  if (graph->flags & COMBA_GRAPH_TOGETHER) return comba_graph_order_by_depth(graph);
  for (int i = graph->nodes - 1, block = 0; i >= 0; i--) {
    if (graph->node[i]->block != block) { /* the last node of its block */
      block = graph->node[i]->block;
      int first = i;
      while (block && first > 0 && graph->node[first - 1]->block == block) first--;
      for (int k = first; k <= i; k++)
        if (graph->node[k]->runs[COMBA_RUN_AGAIN]) graph->schedule[graph->steps++] = (comba_step){k, COMBA_RUN_AGAIN};
    }
    if (graph->node[i]->runs[COMBA_RUN_BACKWARD]) graph->schedule[graph->steps++] = (comba_step){i, COMBA_RUN_BACKWARD};
  }
  return COMBA_OK;
}
