/* Lanes: whatever order they leave free, a pass computes the same. The backend is the CPU's, but what it is given to run it keeps, and runs
 * at the end in a random order that lanes and waits allow. */
#include <stdio.h>

#include "core/graph_private.h"
#include "core/random.h"
#include "op_instance.h"
#include "ops/ops.h"
#include "testing.h"

enum { ROWS = 4, WIDTH = 8, COUNT = ROWS * WIDTH, WEIGHTS = 4, NODES = 60, MOST = 4 * NODES };
#define ACTIVATION COMBA_SHAPE(ROWS, WIDTH)

/* ---- The backend ---------------------------------------------------------------------------------------------------- */

typedef struct deferred {
  void (*run)(const comba_call *call);
  comba_call call;
  int lane, waits, after[COMBA_BACKEND_LANES];
  bool done;
} deferred;

static struct {
  deferred part[MOST];
  int count, overlaps; /* overlaps: parts that ran before one that was queued earlier */
  uint64_t draws;
  deferred next;
} queue;

static bool is_ready(int number) {
  const deferred *p = &queue.part[number];
  for (int i = 0; i < number; i++)
    if (queue.part[i].lane == p->lane && !queue.part[i].done) return false;
  for (int i = 0; i < p->waits; i++)
    if (!queue.part[p->after[i]].done) return false;
  return true;
}

static void run_all(void) {
  for (int left = queue.count; left;) {
    const int number = (int)comba_random_below(1, 2, queue.draws++, (uint64_t)queue.count);
    if (queue.part[number].done || !is_ready(number)) continue;
    for (int i = 0; i < number; i++) queue.overlaps += !queue.part[i].done;
    queue.part[number].run(&queue.part[number].call);
    queue.part[number].done = true;
    left--;
  }
  queue.count = 0;
}

static void begin(int lane, const int *after, int count) {
  ck_assert(lane >= 0 && lane < COMBA_BACKEND_LANES && count <= COMBA_BACKEND_LANES);
  queue.next = (deferred){.lane = lane, .waits = count};
  for (int i = 0; i < count; i++) queue.next.after[i] = after[i];
}

static void end(int number) {
  ck_assert_int_eq(number, queue.count);
  queue.part[queue.count++] = queue.next;
  ck_assert_int_lt(queue.count, MOST);
}

static void defer(void (*run)(const comba_call *call), const comba_call *call) {
  queue.next.run = run;
  queue.next.call = *call;
}

#define COMBA_LIST_OP(name)                                                                                            \
  static void forward_##name(const comba_call *call) {                                                                 \
    defer(comba_backend_cpu()->op[COMBA_OP_##name]->forward, call);                                                    \
  }                                                                                                                    \
  static void backward_##name(const comba_call *call) {                                                                \
    defer(comba_backend_cpu()->op[COMBA_OP_##name]->backward, call);                                                   \
  }
#include "ops/list.h"
#undef COMBA_LIST_OP

static comba_op rows[COMBA_OP_COUNT];
static const comba_op *table[COMBA_OP_COUNT];

static comba_status record(void **recording, void (*run)(void *context), void *context) {
  run(context);
  run_all();
  *recording = NULL;
  return COMBA_OK;
}

static void replay(void *recording) {
  ck_assert_ptr_null(recording);
}

static const comba_backend *deferring(void) {
  static comba_backend backend;
  backend = *comba_backend_cpu();
#define COMBA_LIST_OP(name)                                                                                            \
  rows[COMBA_OP_##name] = *backend.op[COMBA_OP_##name];                                                                \
  rows[COMBA_OP_##name].forward = forward_##name;                                                                      \
  if (rows[COMBA_OP_##name].backward) rows[COMBA_OP_##name].backward = backward_##name;                                \
  table[COMBA_OP_##name] = &rows[COMBA_OP_##name];
#include "ops/list.h"
#undef COMBA_LIST_OP
  backend.op = table;
  backend.record = record;
  backend.replay = replay;
  backend.begin_in_lane = begin;
  backend.end_in_lane = end;
  return &backend;
}

/* ---- Graphs --------------------------------------------------------------------------------------------------------- */

typedef struct results {
  float weight_gradient[WEIGHTS][WIDTH * WIDTH], input_gradient[COUNT], output[COUNT];
} results;

static void write_normal(float *data, int64_t count, uint64_t stream) {
  double *values = op_memory((size_t)count * sizeof *values);
  fill_normal(values, count, 0.5, stream);
  for (int64_t i = 0; i < count; i++) data[i] = (float)values[i];
  free(values);
}

/* A random graph of products with shared weights, sums, maps and norms; two steps, of which the second finds memory as the first left it. */
static void run_graph(const comba_backend *backend, uint64_t seed, results *r) {
  static float weight[WEIGHTS][WIDTH * WIDTH];
  comba_tensor *weights[WEIGHTS], *value[NODES + 1], *sum = NULL;
  comba_graph *graph = NULL;
  memset(r, 0, sizeof *r);
  ck_assert_int_eq(comba_graph_create(&graph, backend, COMBA_GRAPH_BACKWARD), COMBA_OK);
  for (int i = 0; i < WEIGHTS; i++) {
    write_normal(weight[i], WIDTH * WIDTH, (uint64_t)i);
    weights[i] = comba_graph_parameter(graph, "w", COMBA_SHAPE(WIDTH, WIDTH), weight[i], r->weight_gradient[i]);
  }
  comba_tensor *x = value[0] = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  for (int i = 1; i <= NODES; i++) {
    const comba_random4 draw = comba_random_bits(seed, 3, (uint64_t)i);
    const int recent = i < 6 ? i : 6;
    comba_tensor *a = value[i - 1 - (int)(draw.value[0] % (uint32_t)recent)],
                 *b = value[i - 1 - (int)(draw.value[1] % (uint32_t)recent)];
    switch (draw.value[2] % 4) {
    case 0: value[i] = comba_add(graph, a, b); break;
    case 1: value[i] = comba_activation(graph, a, COMBA_SILU, 1); break;
    case 2: value[i] = comba_rms_norm(graph, a, NULL, NULL, 1e-5, NULL); break;
    default: value[i] = comba_linear(graph, a, weights[draw.value[3] % WEIGHTS], NULL); break;
    }
  }
  for (int i = NODES - 6; i <= NODES; i++) sum = sum ? comba_add(graph, sum, value[i]) : value[i];
  comba_graph_seed(graph, sum);
  comba_graph_keep(graph, sum);
  ck_assert_msg(comba_graph_plan(graph) == COMBA_OK, "%s", comba_last_error());
  for (int step = 0; step < 2; step++) {
    write_normal(x->data, COUNT, 10);
    comba_graph_forward(graph);
    write_normal(sum->gradient, COUNT, 11);
    comba_graph_backward(graph);
  }
  memcpy(r->input_gradient, x->gradient, sizeof r->input_gradient);
  memcpy(r->output, sum->data, sizeof r->output);
  comba_graph_free(graph);
}

START_TEST(any_order_that_lanes_allow_computes_the_same) {
  static results expected, found;
  run_graph(comba_backend_cpu(), (uint64_t)_i, &expected);
  queue.overlaps = 0;
  for (int order = 0; order < 5; order++) {
    run_graph(deferring(), (uint64_t)_i, &found);
    ck_assert(!memcmp(&expected, &found, sizeof found));
  }
  ck_assert_int_gt(queue.overlaps, 0);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("lanes");
  TCase *random = tcase_create("random");
  tcase_add_loop_test(random, any_order_that_lanes_allow_computes_the_same, 0, 20);
  suite_add_tcase(suite, random);
  return run_suite(suite);
}
