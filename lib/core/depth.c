/* The order of forward where nodes may run together (COMBA_GRAPH_TOGETHER): by depth, the longest way from an input to the node, and
 * by operator within a depth. Nodes of one depth touch nothing that another of them writes. */
#include <stdlib.h>

#include "core/graph_private.h"

typedef struct place {
  int depth, id, node;
} place;

static int larger(int a, int b) {
  return a > b ? a : b;
}

static int earlier(const void *a, const void *b) {
  const place *x = a, *y = b;
  if (x->depth != y->depth) return x->depth - y->depth;
  return x->id != y->id ? x->id - y->id : x->node - y->node;
}

/* In the order in which nodes were appended, which is one that memory of the caller, read and then overwritten, allows: a node comes
 * after those that wrote what it reads, and after those that read or wrote what it writes. */
static void find_depths(const comba_graph *graph, int *written, int *read, place *places) {
  for (int i = 0; i < graph->nodes; i++) {
    const comba_node *node = graph->node[i];
    const comba_signature *s = &node->signature;
    int depth = 0;
    if (!node->runs[COMBA_RUN_FORWARD]) continue;
    for (int k = 0; k < s->inputs; k++)
      if (node->input[k]) depth = larger(depth, written[node->input[k]->storage]);
    for (int k = 0; k < s->outputs; k++) {
      const int storage = node->output[k]->storage;
      depth = larger(depth, larger(written[storage], read[storage]));
    }
    depth++;
    for (int k = 0; k < s->inputs; k++)
      if (node->input[k]) read[node->input[k]->storage] = larger(depth, read[node->input[k]->storage]);
    for (int k = 0; k < s->outputs; k++) written[node->output[k]->storage] = depth;
    *places++ = (place){depth, (int)node->id, i};
  }
}

comba_status comba_graph_order_by_depth(comba_graph *graph) {
  comba_status status = COMBA_OK;
  int *depths = comba_allocate(2 * (size_t)(graph->storages + 1) * sizeof *depths, "depths in a graph");
  place *places = comba_allocate((size_t)(graph->nodes + 1) * sizeof *places, "depths in a graph");
  if (!depths || !places) {
    status = COMBA_ERROR_MEMORY;
    goto cleanup;
  }
  find_depths(graph, depths, depths + graph->storages, places);
  qsort(places, (size_t)graph->forward_steps, sizeof *places, earlier);
  for (int i = 0; i < graph->forward_steps; i++) {
    graph->schedule[i].node = places[i].node;
    graph->node[places[i].node]->depth = places[i].depth;
  }
cleanup:
  free(depths);
  free(places);
  return status;
}
