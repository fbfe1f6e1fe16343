/* A pass in lanes, of which a backend may overlap the work: small steps leave most of a GPU idle, and a layer has several that do not
 * depend on one another (projections, convolutions, gradients of weights). The schedule stays what it is: a step waits for those before it
 * that wrote what it reads, or read or wrote the bytes that it writes, whatever values shared them. */
#include <stdlib.h>

#include "core/graph_private.h"

enum { LANES = COMBA_BACKEND_LANES };
enum { TOUCHED = 2 * COMBA_MAX_INPUTS + 2 * COMBA_MAX_OUTPUTS + COMBA_MAX_SAVED + 1 };
/* A step that computes more than this on average fills the GPU by itself. */
static const double MOST_FLOPS = 4e9;

typedef struct touch {
  const char *begin, *end;
  bool written;
} touch;

typedef struct part {
  comba_step step;
  comba_call call;        /* some of the gradients that the step's call wants */
  int lane, known[LANES]; /* of each lane the last part that is done when this one is, -1: none */
  int touched;
  touch touch[TOUCHED];
} part;

bool comba_graph_has_lanes(const comba_graph *graph) {
  double flops = 0;
  int nodes = 0;
  if (!graph->backend->begin_in_lane || !(graph->flags & COMBA_GRAPH_BACKWARD)) return false;
  for (int i = 0; i < graph->nodes; i++) {
    if (!graph->node[i]->runs[COMBA_RUN_FORWARD]) continue;
    flops += graph->node[i]->signature.forward_flops;
    nodes++;
  }
  return flops < MOST_FLOPS * nodes;
}

static void add_touch(part *p, const void *data, size_t bytes, bool written) {
  if (data && bytes) p->touch[p->touched++] = (touch){data, (const char *)data + bytes, written};
}

static void list_touched(const comba_graph *graph, part *p) {
  const comba_node *node = graph->node[p->step.node];
  const comba_signature *s = &node->signature;
  const comba_call *call = &p->call;
  const size_t *size = graph->backend->size;
  const bool backward = p->step.kind == COMBA_RUN_BACKWARD;
  for (int i = 0; i < s->inputs; i++) {
    if (!node->input[i]) continue;
    const size_t bytes = (size_t)comba_shape_elements(&s->input[i]) * size[node->input[i]->kind];
    if (!backward || node->op->backward_inputs >> i & 1) add_touch(p, call->input[i].data, bytes, false);
    if (backward) add_touch(p, call->input_gradient[i].data, bytes, true);
  }
  for (int i = 0; i < s->outputs; i++) {
    const size_t bytes = (size_t)comba_shape_elements(&s->output[i]) * size[node->output[i]->kind];
    if (!backward || comba_node_backward_outputs(node) >> i & 1) add_touch(p, call->output[i].data, bytes, !backward);
    if (backward) add_touch(p, call->output_gradient[i].data, bytes, false);
  }
  for (int i = 0; i < s->saved; i++)
    add_touch(p, call->saved[i].data, (size_t)comba_shape_elements(&s->saved_shape[i]) * size[COMBA_STATE], true);
  add_touch(p, call->workspace, (size_t)(backward ? s->backward_workspace : s->forward_workspace) * size[COMBA_STATE],
            true);
}

/* Whether part b, the later one, has to wait for a. */
static bool depends(const part *a, const part *b) {
  for (int i = 0; i < a->touched; i++)
    for (int j = 0; j < b->touched; j++)
      if ((a->touch[i].written || b->touch[j].written) && a->touch[i].begin < b->touch[j].end &&
          b->touch[j].begin < a->touch[i].end)
        return true;
  return false;
}

/* The parts of a step: one, but a product's gradients of its input and of its weight, of which only the first is waited for soon, are
 * two. Returns their number. */
static int split(const comba_graph *graph, const comba_step *step, part *parts) {
  const comba_node *node = graph->node[step->node];
  const comba_call *call = &node->call[step->kind];
  parts[0] = (part){.step = *step, .call = *call};
  if (node->id != COMBA_OP_linear || step->kind != COMBA_RUN_BACKWARD || !call->input_gradient[0].data) return 1;
  parts[1] = parts[0];
  parts[0].call.workspace = NULL;
  parts[1].call.input_gradient[0].data = NULL;
  bool second = false;
  for (int i = 1; i < node->signature.inputs; i++) {
    second |= call->input_gradient[i].data != NULL;
    parts[0].call.input_gradient[i].data = NULL;
  }
  return second ? 2 : 1;
}

/* Chooses the lane of part `now`, whose part in each lane that it depends on last is last[]: that of the latest of these if nothing
 * has followed it there, else the lane that has been left alone for longest. */
static int choose_lane(const int *last, const int *tail) {
  int lane = -1;
  for (int i = 0; i < LANES; i++)
    if (last[i] >= 0 && last[i] == tail[i] && (lane < 0 || last[i] > last[lane])) lane = i;
  if (lane >= 0) return lane;
  lane = 0;
  for (int i = 1; i < LANES; i++)
    if (tail[i] < tail[lane]) lane = i;
  return lane;
}

static void run_part(const comba_graph *graph, part *parts, int now, int *tail) {
  part *p = &parts[now];
  int last[LANES], wait[LANES], waits = 0;
  list_touched(graph, p);
  for (int i = 0; i < LANES; i++) last[i] = -1;
  for (int i = now - 1; i >= 0; i--)
    if (last[parts[i].lane] < 0 && depends(&parts[i], p)) last[parts[i].lane] = i;
  p->lane = choose_lane(last, tail);
  for (int i = 0; i < LANES; i++) p->known[i] = tail[p->lane] >= 0 ? parts[tail[p->lane]].known[i] : -1;
  for (;;) { /* from the latest on, which may be known to follow others */
    int next = -1;
    for (int i = 0; i < LANES; i++)
      if (last[i] > p->known[i] && (next < 0 || last[i] > last[next])) next = i;
    if (next < 0) break;
    wait[waits++] = last[next];
    for (int i = 0; i < LANES; i++)
      if (parts[last[next]].known[i] > p->known[i]) p->known[i] = parts[last[next]].known[i];
  }
  graph->backend->begin_in_lane(p->lane, wait, waits);
  const comba_op *op = graph->node[p->step.node]->op;
  (p->step.kind == COMBA_RUN_BACKWARD ? op->backward : op->forward)(&p->call);
  graph->backend->end_in_lane(now);
  p->known[p->lane] = tail[p->lane] = now;
}

bool comba_graph_run_in_lanes(const comba_graph *graph, int first, int end) {
  part *parts = malloc(2 * (size_t)(end - first + 1) * sizeof *parts);
  int tail[LANES], count = 0;
  if (!parts) return false;
  for (int i = 0; i < LANES; i++) tail[i] = -1;
  for (int i = first; i < end; i++) {
    const int step_parts = split(graph, &graph->schedule[i], parts + count);
    for (int k = 0; k < step_parts; k++) run_part(graph, parts, count++, tail);
  }
  int used = 0;
  for (int i = 0; i < LANES; i++)
    if (tail[i] >= 0) tail[used++] = tail[i];
  graph->backend->begin_in_lane(0, tail, used);
  free(parts);
  return true;
}
