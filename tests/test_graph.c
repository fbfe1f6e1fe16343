/* The graph: what is planned computes what the nodes say, forward and backward, however memory is shared. */
#include <limits.h>
#include <stdio.h>

#include "core/graph_private.h"
#include "op_instance.h"
#include "ops/ops.h"
#include "testing.h"

enum { ROWS = 4, WIDTH = 8, COUNT = ROWS * WIDTH };
#define ACTIVATION COMBA_SHAPE(ROWS, WIDTH)

static comba_graph *create(unsigned flags) {
  comba_graph *graph = NULL;
  ck_assert_int_eq(comba_graph_create(&graph, comba_backend_cpu(), flags), COMBA_OK);
  return graph;
}

static void plan(comba_graph *graph) {
  ck_assert_msg(comba_graph_plan(graph) == COMBA_OK, "%s", comba_last_error());
}

static void write_normal(void *data, int64_t count, uint64_t stream) {
  double *values = op_memory((size_t)count * sizeof *values);
  fill_normal(values, count, 1, stream);
  for (int64_t i = 0; i < count; i++) ((float *)data)[i] = (float)values[i];
  free(values);
}

/* ---- Small graphs -------------------------------------------------------------------------------------------------- */

START_TEST(parameter_gradients_add_up_over_runs) {
  float weight[WIDTH * WIDTH], gradient[WIDTH * WIDTH] = {0}, once[WIDTH * WIDTH], input_once[COUNT];
  write_normal(weight, WIDTH * WIDTH, 1);
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  comba_tensor *y =
      comba_linear(graph, x, comba_graph_parameter(graph, "w", COMBA_SHAPE(WIDTH, WIDTH), weight, gradient), NULL);
  comba_graph_seed(graph, y);
  plan(graph);
  for (int run = 0; run < 2; run++) {
    write_normal(x->data, COUNT, 2);
    comba_graph_forward(graph);
    write_normal(y->gradient, COUNT, 3);
    comba_graph_backward(graph);
    if (run) break;
    memcpy(once, gradient, sizeof once);
    memcpy(input_once, x->gradient, sizeof input_once);
  }
  for (int i = 0; i < WIDTH * WIDTH; i++) ck_assert_float_eq_tol(gradient[i], 2 * once[i], 1e-4f);
  ck_assert(!memcmp(input_once, x->gradient, sizeof input_once));
  comba_graph_free(graph);
}
END_TEST

/* x reaches y along three ways, two of them through one node. */
START_TEST(gradient_of_a_tensor_used_several_times) {
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  comba_tensor *twice = comba_add(graph, x, x);
  comba_tensor *y = comba_add(graph, twice, comba_activation(graph, x, COMBA_RELU, 10));
  comba_graph_seed(graph, y);
  plan(graph);
  write_normal(x->data, COUNT, 1);
  comba_graph_forward(graph);
  for (int i = 0; i < COUNT; i++) ((float *)y->gradient)[i] = 1;
  comba_graph_backward(graph);
  for (int i = 0; i < COUNT; i++)
    ck_assert_float_eq_tol(((float *)x->gradient)[i], ((float *)x->data)[i] > 0 ? 12 : 2, 1e-5f);
  comba_graph_free(graph);
}
END_TEST

/* The gradients of a sum's operands are one memory, unless another node adds to one of them. */
START_TEST(equal_gradients_are_the_same_memory) {
  for (int used = 0; used < 2; used++) {
    comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
    comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
    comba_tensor *a = comba_activation(graph, x, COMBA_RELU, 2), *b = comba_activation(graph, x, COMBA_RELU, 3);
    comba_tensor *y = comba_add(graph, a, b);
    if (used) y = comba_add(graph, y, a);
    comba_graph_seed(graph, y);
    plan(graph);
    ck_assert_int_eq(a->gradient == b->gradient, !used);
    write_normal(x->data, COUNT, 1);
    comba_graph_forward(graph);
    for (int i = 0; i < COUNT; i++) ((float *)y->gradient)[i] = 1;
    comba_graph_backward(graph);
    for (int i = 0; i < COUNT; i++)
      ck_assert_float_eq_tol(((float *)x->gradient)[i], ((float *)x->data)[i] > 0 ? 5 + 2 * used : 0, 1e-5f);
    comba_graph_free(graph);
  }
}
END_TEST

/* The gradient of logits takes their memory, unless they are wanted afterwards. */
START_TEST(gradient_lies_over_what_is_read_last) {
  for (int kept = 0; kept < 2; kept++) {
    comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
    comba_tensor *x = comba_graph_input_with_gradient(graph, "x", COMBA_SHAPE(2, 3)), *rows = NULL;
    comba_tensor *targets = comba_graph_input(graph, "targets", COMBA_INDEX, COMBA_SHAPE(2));
    comba_tensor *logits = comba_add(graph, x, x);
    comba_tensor *loss = comba_cross_entropy(graph, logits, targets, NULL, (comba_cross_entropy_attributes){0}, &rows);
    if (kept) comba_graph_keep(graph, logits);
    comba_graph_seed(graph, loss);
    plan(graph);
    ck_assert_int_eq(logits->gradient == logits->data, !kept);
    memcpy(x->data, (const float[]){0, 0.5f, -1, 2, 0, 0}, 6 * sizeof(float));
    memcpy(targets->data, (const int32_t[]){1, -100}, 2 * sizeof(int32_t));
    comba_graph_forward(graph);
    *(float *)loss->gradient = 1;
    comba_graph_backward(graph);
    const double sum = 1 + exp(1) + exp(-2), expected[6] = {2 / sum, 2 * exp(1) / sum - 2, 2 * exp(-2) / sum};
    for (int i = 0; i < 6; i++) ck_assert_float_eq_tol(((float *)x->gradient)[i], (float)expected[i], 1e-6f);
    if (kept) ck_assert_float_eq(((float *)logits->data)[3], 4);
    comba_graph_free(graph);
  }
}
END_TEST

START_TEST(reshape_is_the_same_memory) {
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  comba_tensor *doubled = comba_add(graph, x, x);
  comba_tensor *flat = comba_reshape(graph, doubled, COMBA_SHAPE(COUNT));
  comba_tensor *y = comba_reshape(graph, comba_add(graph, flat, flat), ACTIVATION);
  comba_graph_keep(graph, doubled);
  comba_graph_seed(graph, y);
  plan(graph);
  ck_assert_ptr_eq(flat->data, doubled->data);
  write_normal(x->data, COUNT, 1);
  comba_graph_forward(graph);
  write_normal(y->gradient, COUNT, 2);
  comba_graph_backward(graph);
  for (int i = 0; i < COUNT; i++)
    ck_assert_float_eq_tol(((float *)x->gradient)[i], 4 * ((float *)y->gradient)[i], 1e-5f);
  comba_graph_free(graph);
}
END_TEST

/* Neither a product that nobody reads nor what only that product reads. */
START_TEST(what_is_not_read_does_not_run) {
  float weight[WIDTH * WIDTH] = {0};
  comba_graph_cost cost;
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  comba_tensor *w = comba_graph_parameter(graph, "w", COMBA_SHAPE(WIDTH, WIDTH), weight, NULL);
  comba_tensor *unread = comba_linear(graph, comba_add(graph, x, x), w, NULL);
  comba_tensor *const *operands = comba_graph_operands(graph, unread, COMBA_OP_linear);
  ck_assert_ptr_eq(operands[1], w);
  ck_assert_ptr_null(comba_graph_operands(graph, unread, COMBA_OP_add));
  ck_assert_ptr_null(comba_graph_operands(graph, x, COMBA_OP_add));
  comba_tensor *y = comba_add(graph, x, x);
  comba_graph_seed(graph, y);
  plan(graph);
  comba_graph_describe(graph, &cost);
  ck_assert_int_eq(cost.nodes, 1);
  ck_assert_double_eq(cost.forward_flops, 0);
  ck_assert_ptr_null(unread->data);
  comba_graph_free(graph);
}
END_TEST

/* A state that each run adds to, in the caller's memory. */
START_TEST(result_is_stored_in_a_state) {
  float state[COUNT] = {0};
  comba_graph *graph = create(0);
  comba_tensor *x = comba_graph_input(graph, "x", COMBA_ACTIVATION, ACTIVATION);
  comba_tensor *old = comba_graph_external(graph, "state", COMBA_STATE, ACTIVATION, state);
  comba_graph_store(graph, comba_add(graph, old, x), old);
  plan(graph);
  for (int run = 1; run <= 3; run++) {
    for (int i = 0; i < COUNT; i++) ((float *)x->data)[i] = (float)i;
    comba_graph_forward(graph);
    for (int i = 0; i < COUNT; i++) ck_assert_float_eq(state[i], (float)(run * i));
  }
  comba_graph_free(graph);
}
END_TEST

START_TEST(memory_is_shared) {
  comba_graph *graph = create(0);
  comba_tensor *x = comba_graph_input(graph, "x", COMBA_ACTIVATION, ACTIVATION);
  for (int i = 0; i < 50; i++) x = comba_activation(graph, x, COMBA_TANH, 1);
  comba_graph_keep(graph, x);
  plan(graph);
  comba_graph_cost cost;
  comba_graph_describe(graph, &cost);
  ck_assert_int_eq(cost.nodes, 50);
  ck_assert_uint_eq(cost.unshared_bytes, 51 * COUNT * sizeof(float));
  ck_assert_uint_le(cost.arena_bytes, 4 * COUNT * sizeof(float));
  comba_graph_free(graph);
}
END_TEST

/* A chain whose backward reads every result: between blocks of ten alone are they held. */
START_TEST(memory_of_blocks_is_shared) {
  size_t arena[COMBA_RECOMPUTE_BLOCK + 1];
  for (comba_recompute level = COMBA_RECOMPUTE_NONE; level <= COMBA_RECOMPUTE_BLOCK; level++) {
    comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
    comba_graph_set_recompute(graph, level, INT_MAX);
    comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
    for (int i = 0; i < 100; i++) {
      if (i % 10 == 0) comba_graph_begin_block(graph);
      x = comba_activation(graph, x, COMBA_TANH, 1);
    }
    comba_graph_seed(graph, x);
    plan(graph);
    comba_graph_cost cost;
    comba_graph_describe(graph, &cost);
    arena[level] = cost.arena_bytes / (COUNT * sizeof(float));
    comba_graph_free(graph);
  }
  ck_assert_uint_ge(arena[COMBA_RECOMPUTE_NONE], 100);
  ck_assert_uint_le(arena[COMBA_RECOMPUTE_BLOCK], 10 + 10 + 5);
  ck_assert_uint_le(arena[COMBA_RECOMPUTE_LIGHT], arena[COMBA_RECOMPUTE_BLOCK]);
}
END_TEST

/* What reads or writes a state that is updated in place runs once. */
START_TEST(nothing_that_meets_a_state_runs_again) {
  float state[COUNT] = {0};
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_graph_set_recompute(graph, COMBA_RECOMPUTE_BLOCK, INT_MAX);
  comba_tensor *x = comba_graph_input_with_gradient(graph, "x", ACTIVATION);
  comba_tensor *old = comba_graph_external(graph, "state", COMBA_STATE, ACTIVATION, state);
  comba_graph_begin_block(graph);
  comba_tensor *gate = comba_activation(graph, old, COMBA_SIGMOID, 1);
  comba_tensor *sum = comba_add(graph, old, x);
  comba_graph_store(graph, sum, old);
  comba_tensor *y = comba_activation(graph, comba_product(graph, x, gate), COMBA_TANH, 1);
  comba_graph_end_block(graph);
  comba_graph_seed(graph, y);
  plan(graph);
  ck_assert(!graph->node[0]->runs[COMBA_RUN_AGAIN] && !graph->node[1]->runs[COMBA_RUN_AGAIN]);
  ck_assert(graph->node[2]->runs[COMBA_RUN_AGAIN]);
  for (int run = 1; run <= 2; run++) {
    for (int i = 0; i < COUNT; i++) ((float *)x->data)[i] = 1;
    comba_graph_forward(graph);
    for (int i = 0; i < COUNT; i++) ((float *)y->gradient)[i] = 1;
    comba_graph_backward(graph);
    for (int i = 0; i < COUNT; i++) ck_assert_float_eq(state[i], (float)run);
    const double g = 1 / (1 + exp(1.0 - run)), t = tanh(g);
    ck_assert_float_eq_tol(((float *)x->gradient)[0], (float)((1 - t * t) * g), 1e-5f);
  }
  comba_graph_free(graph);
}
END_TEST

START_TEST(wrong_shape_is_reported_by_plan) {
  comba_graph *graph = create(COMBA_GRAPH_BACKWARD);
  comba_tensor *x = comba_graph_input(graph, "x", COMBA_ACTIVATION, ACTIVATION);
  comba_tensor *w = comba_graph_input(graph, "w", COMBA_PARAMETER, COMBA_SHAPE(WIDTH, WIDTH + 1));
  comba_tensor *y = comba_linear(graph, x, w, NULL);
  ck_assert_ptr_null(y);
  y = comba_add(graph, comba_reshape(graph, y, COMBA_SHAPE(COUNT)), y); /* builders accept what failed */
  ck_assert_ptr_null(y);
  comba_graph_keep(graph, y);
  comba_graph_seed(graph, y);
  comba_graph_store(graph, y, x);
  comba_fail(COMBA_ERROR_IO, "another failure");
  ck_assert_int_eq(comba_graph_plan(graph), COMBA_ERROR_ARGUMENT);
  ck_assert_msg(strstr(comba_last_error(), "linear: input 1 has shape (8, 9)"), "%s", comba_last_error());
  comba_graph_free(graph);
}
END_TEST

START_TEST(missing_input_is_reported_by_plan) {
  comba_graph *graph = create(0);
  comba_add(graph, comba_graph_input(graph, "x", COMBA_ACTIVATION, ACTIVATION), NULL);
  ck_assert_int_eq(comba_graph_plan(graph), COMBA_ERROR_ARGUMENT);
  ck_assert_ptr_nonnull(strstr(comba_last_error(), "add: input 1"));
  comba_graph_free(graph);
}
END_TEST

START_TEST(reshape_that_does_not_fit_is_reported) {
  comba_graph *graph = create(0);
  comba_reshape(graph, comba_graph_input(graph, "x", COMBA_ACTIVATION, ACTIVATION), COMBA_SHAPE(COUNT + 1));
  ck_assert_int_eq(comba_graph_plan(graph), COMBA_ERROR_ARGUMENT);
  comba_graph_free(graph);
}
END_TEST

START_TEST(huge_tensor_is_refused) {
  comba_graph *graph = create(0);
  comba_graph_input(graph, "x", COMBA_ACTIVATION, COMBA_SHAPE(INT64_MAX, 3));
  ck_assert_int_ne(comba_graph_plan(graph), COMBA_OK);
  comba_graph_free(graph);
}
END_TEST

/* ---- Random graphs ------------------------------------------------------------------------------------------------- */

/* A random graph over tensors (ROWS, WIDTH), and the same nodes run one by one with memory of their own. Tensors 0 and 1
 * are inputs, 2 to 4 weights of linear, 5 one of rms_norm; the others are results. */
enum { NODES = 40, BLOCK = 7, INPUT_TENSORS = 2, WEIGHTS = 3, NORM = INPUT_TENSORS + WEIGHTS, FIRST_RESULT = NORM + 1 };
enum { TENSORS = FIRST_RESULT + 2 * NODES };

typedef struct random_node {
  comba_op_id id;
  int inputs, input[3];
  int outputs, first_output; /* tensors */
  union {
    comba_activation_attributes activation;
    comba_norm_attributes norm;
  } attributes;
} random_node;

typedef struct random_graph {
  random_node node[NODES];
  int tensors;
  bool seed[TENSORS];
} random_graph;

static int64_t elements_of(int tensor) {
  return tensor == NORM ? WIDTH : (tensor >= INPUT_TENSORS && tensor < NORM ? WIDTH * WIDTH : COUNT);
}

static random_graph draw(uint64_t seed) {
  random_graph g = {.tensors = FIRST_RESULT};
  uint64_t index = 0;
#define BELOW(n) ((int)comba_random_below(seed, 1, index++, (uint64_t)(n)))
  for (int i = 0; i < NODES; i++) {
    random_node *node = &g.node[i];
    /* an input, or one of the results, the later ones more often */
    const int results = g.tensors - FIRST_RESULT, recent = results < 6 ? results : 6;
    int any[2];
    for (int k = 0; k < 2; k++) {
      const int pick = BELOW(INPUT_TENSORS + results + 3 * recent);
      any[k] = pick < INPUT_TENSORS             ? pick
               : pick < INPUT_TENSORS + results ? FIRST_RESULT + pick - INPUT_TENSORS
                                                : g.tensors - 1 - (pick - INPUT_TENSORS - results) % recent;
    }
    *node = (random_node){.inputs = 2, .input = {any[0], any[1]}, .outputs = 1, .first_output = g.tensors};
    switch (BELOW(5)) {
    case 0: node->id = COMBA_OP_add; break;
    case 1: node->id = COMBA_OP_swiglu; break;
    case 2:
      node->id = COMBA_OP_activation;
      node->inputs = 1;
      node->attributes.activation = (comba_activation_attributes){.function = BELOW(2) ? COMBA_TANH : COMBA_SILU};
      break;
    case 3:
      node->id = COMBA_OP_linear;
      node->input[1] = INPUT_TENSORS + BELOW(WEIGHTS);
      break;
    default:
      node->id = COMBA_OP_rms_norm;
      node->inputs = 3;
      node->input[2] = node->input[1];
      node->input[1] = NORM;
      node->outputs = 2;
      node->attributes.norm = (comba_norm_attributes){1e-5};
    }
    g.tensors += node->outputs;
  }
  g.seed[g.tensors - 1] = true;
  g.seed[FIRST_RESULT + BELOW(g.tensors - FIRST_RESULT)] = true;
#undef BELOW
  return g;
}

static comba_shape shape_of(int tensor) {
  return tensor == NORM                             ? COMBA_SHAPE(WIDTH)
         : tensor >= INPUT_TENSORS && tensor < NORM ? COMBA_SHAPE(WIDTH, WIDTH)
                                                    : ACTIVATION;
}

typedef struct values {
  double *value[TENSORS], *gradient[TENSORS]; /* gradient NULL: nothing reaches it */
} values;

static void values_free(values *v) {
  for (int i = 0; i < TENSORS; i++) {
    free(v->value[i]);
    free(v->gradient[i]);
  }
}

static void add_to(double **sum, const op_buffer *buffer) {
  if (!*sum) *sum = op_memory((size_t)buffer->elements * sizeof(double));
  for (int64_t i = 0; i < buffer->elements; i++) (*sum)[i] += op_get(buffer, i);
}

/* Node by node. */
static values interpret(const random_graph *g) {
  values v = {{NULL}, {NULL}};
  op_instance instance[NODES];
  for (int i = 0; i < FIRST_RESULT; i++) {
    v.value[i] = op_memory((size_t)elements_of(i) * sizeof(double));
    fill_normal(v.value[i], elements_of(i), i >= INPUT_TENSORS && i < NORM ? 0.3 : 1, (uint64_t)i);
  }
  for (int i = 0; i < NODES; i++) {
    const random_node *node = &g->node[i];
    comba_shape shape[COMBA_MAX_INPUTS] = {{0}};
    for (int k = 0; k < node->inputs; k++) shape[k] = shape_of(node->input[k]);
    ck_assert_int_eq(
        op_instance_create(&instance[i], comba_backend_cpu()->op[node->id], sizeof(float), &node->attributes, shape),
        COMBA_OK);
    for (int k = 0; k < node->inputs; k++) op_write(&instance[i].input[k], v.value[node->input[k]]);
    op_instance_forward(&instance[i], true);
    for (int k = 0; k < node->outputs; k++) add_to(&v.value[node->first_output + k], &instance[i].output[k]);
  }
  for (int i = 0; i < g->tensors; i++) {
    if (!g->seed[i]) continue;
    v.gradient[i] = op_memory(COUNT * sizeof(double));
    fill_normal(v.gradient[i], COUNT, 1, 100 + (uint64_t)i);
  }
  for (int i = NODES - 1; i >= 0; i--) {
    const random_node *node = &g->node[i];
    uint32_t given = 0;
    for (int k = 0; k < node->outputs; k++) {
      if (!v.gradient[node->first_output + k]) continue;
      op_write(&instance[i].output_gradient[k], v.gradient[node->first_output + k]);
      given |= 1u << k;
    }
    if (given) {
      op_instance_backward(&instance[i], op_instance_differentiable_inputs(&instance[i]), 0, given);
      for (int k = 0; k < node->inputs; k++) add_to(&v.gradient[node->input[k]], &instance[i].input_gradient[k]);
    }
    op_instance_free(&instance[i]);
  }
  return v;
}

/* The planned graph; with `keep` every value keeps its memory to the end. */
typedef struct planned {
  comba_graph *graph;
  comba_tensor *tensor[TENSORS];
  float *weight[FIRST_RESULT], *weight_gradient[FIRST_RESULT];
} planned;

static planned build(const random_graph *g, const values *v, bool keep, comba_recompute recompute) {
  planned p = {.graph = create(COMBA_GRAPH_BACKWARD)};
  comba_graph_set_recompute(p.graph, recompute, INT_MAX);
  for (int i = 0; i < FIRST_RESULT; i++) {
    if (i < INPUT_TENSORS) {
      p.tensor[i] = comba_graph_input_with_gradient(p.graph, "x", shape_of(i));
      continue;
    }
    p.weight[i] = op_memory((size_t)elements_of(i) * sizeof(float));
    p.weight_gradient[i] = op_memory((size_t)elements_of(i) * sizeof(float));
    for (int64_t k = 0; k < elements_of(i); k++) p.weight[i][k] = (float)v->value[i][k];
    p.tensor[i] = comba_graph_parameter(p.graph, "w", shape_of(i), p.weight[i], p.weight_gradient[i]);
  }
  for (int i = 0; i < NODES; i++) {
    const random_node *node = &g->node[i];
    comba_tensor *input[3], *more[COMBA_MAX_OUTPUTS] = {NULL};
    if (i % BLOCK == 2) comba_graph_begin_block(p.graph);
    if (i == NODES - 3) comba_graph_end_block(p.graph);
    for (int k = 0; k < node->inputs; k++) input[k] = p.tensor[node->input[k]];
    p.tensor[node->first_output] = comba_graph_append(p.graph, node->id, &node->attributes, node->inputs, input, more);
    if (node->outputs == 2) p.tensor[node->first_output + 1] = more[0];
  }
  for (int i = FIRST_RESULT; i < g->tensors; i++) {
    if (keep) comba_graph_keep(p.graph, p.tensor[i]);
    if (g->seed[i]) comba_graph_seed(p.graph, p.tensor[i]);
  }
  comba_graph_keep(p.graph, p.tensor[g->tensors - 1]);
  plan(p.graph);
  return p;
}

static void run(const planned *p, const random_graph *g, const values *v) {
  for (int i = 0; i < INPUT_TENSORS; i++)
    for (int k = 0; k < COUNT; k++) ((float *)p->tensor[i]->data)[k] = (float)v->value[i][k];
  for (int i = INPUT_TENSORS; i < FIRST_RESULT; i++)
    memset(p->weight_gradient[i], 0, (size_t)elements_of(i) * sizeof(float));
  comba_graph_forward(p->graph);
  for (int i = 0; i < g->tensors; i++)
    if (g->seed[i]) write_normal(p->tensor[i]->gradient, COUNT, 100 + (uint64_t)i);
  comba_graph_backward(p->graph);
}

static void planned_free(planned *p) {
  comba_graph_free(p->graph);
  for (int i = 0; i < FIRST_RESULT; i++) {
    free(p->weight[i]);
    free(p->weight_gradient[i]);
  }
}

static void expect_equal(const float *found, const double *expected, int64_t count, const char *what, int tensor) {
  double *values = op_memory((size_t)count * sizeof *values);
  for (int64_t i = 0; i < count; i++) values[i] = found[i];
  const double error = relative_error(values, expected, count);
  ck_assert_msg(error <= 2e-5, "%s of tensor %d: relative error %.3g", what, tensor, error);
  free(values);
}

START_TEST(random_graph_equals_its_nodes) {
  const random_graph g = draw((uint64_t)_i);
  values expected = interpret(&g);
  planned shared = build(&g, &expected, false, COMBA_RECOMPUTE_NONE),
          kept = build(&g, &expected, true, COMBA_RECOMPUTE_NONE);
  comba_graph_cost shared_cost, kept_cost;
  comba_graph_describe(shared.graph, &shared_cost);
  comba_graph_describe(kept.graph, &kept_cost);
  ck_assert_uint_le(shared_cost.arena_bytes, kept_cost.arena_bytes);
  ck_assert_uint_lt(shared_cost.arena_bytes, shared_cost.unshared_bytes);
  for (int twice = 0; twice < 2; twice++) { /* the second run finds the arena dirty */
    run(&shared, &g, &expected);
    run(&kept, &g, &expected);
  }
  for (int i = FIRST_RESULT; i < g.tensors; i++)
    expect_equal(kept.tensor[i]->data, expected.value[i], COUNT, "value", i);
  expect_equal(shared.tensor[g.tensors - 1]->data, expected.value[g.tensors - 1], COUNT, "value", g.tensors - 1);
  for (int i = 0; i < FIRST_RESULT; i++) {
    if (!expected.gradient[i]) continue;
    const int64_t count = elements_of(i);
    expect_equal(shared.tensor[i]->gradient, expected.gradient[i], count, "gradient", i);
    ck_assert_msg(!memcmp(shared.tensor[i]->gradient, kept.tensor[i]->gradient, (size_t)count * sizeof(float)),
                  "gradient of tensor %d depends on how memory is shared", i);
  }
  planned_free(&shared);
  planned_free(&kept);
  values_free(&expected);
}
END_TEST

/* Values that are computed again are the same bits, and so are the gradients made of them. */
START_TEST(random_graph_recomputed_is_the_same) {
  const random_graph g = draw((uint64_t)_i);
  values v = interpret(&g);
  planned plain = build(&g, &v, false, COMBA_RECOMPUTE_NONE);
  run(&plain, &g, &v);
  for (comba_recompute level = COMBA_RECOMPUTE_LIGHT; level <= COMBA_RECOMPUTE_BLOCK; level++) {
    planned again = build(&g, &v, false, level);
    for (int twice = 0; twice < 2; twice++) run(&again, &g, &v);
    ck_assert(!memcmp(again.tensor[g.tensors - 1]->data, plain.tensor[g.tensors - 1]->data, COUNT * sizeof(float)));
    for (int i = 0; i < FIRST_RESULT; i++)
      if (v.gradient[i])
        ck_assert_msg(
            !memcmp(again.tensor[i]->gradient, plain.tensor[i]->gradient, (size_t)elements_of(i) * sizeof(float)),
            "gradient of tensor %d depends on what is computed again", i);
    planned_free(&again);
  }
  planned_free(&plain);
  values_free(&v);
}
END_TEST

/* What is needed at one time must not lie in one place, and the arena ends where the last of it does. */
START_TEST(storages_needed_together_lie_apart) {
  const random_graph g = draw((uint64_t)_i / 3);
  values v = interpret(&g);
  planned p = build(&g, &v, false, COMBA_RECOMPUTE_NONE + (comba_recompute)(_i % 3));
  const comba_graph *graph = p.graph;
  for (int i = 0; i < graph->storages; i++)
    for (int k = 0; k < i; k++) {
      const comba_storage *a = &graph->storage[i], *b = &graph->storage[k];
      if (a->external || b->external || a->first < 0 || b->first < 0 || a->last < b->first || b->last < a->first)
        continue;
      ck_assert(a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset);
      ck_assert_uint_le(a->offset + a->bytes, graph->cost.arena_bytes);
      ck_assert_uint_eq(a->offset % 64, 0);
    }
  size_t high_water = 0;
  for (int i = 0; i < graph->storages; i++) {
    const comba_storage *s = &graph->storage[i];
    const size_t end = s->external || s->first < 0 ? 0 : s->offset + (s->bytes + 63) / 64 * 64;
    high_water = end > high_water ? end : high_water;
  }
  ck_assert_uint_eq(high_water, graph->cost.arena_bytes);
  planned_free(&p);
  values_free(&v);
}
END_TEST

int main(void) {
  Suite *suite = suite_create("graph");
  TCase *small = tcase_create("small"), *random = tcase_create("random");
  tcase_add_test(small, parameter_gradients_add_up_over_runs);
  tcase_add_test(small, gradient_of_a_tensor_used_several_times);
  tcase_add_test(small, equal_gradients_are_the_same_memory);
  tcase_add_test(small, gradient_lies_over_what_is_read_last);
  tcase_add_test(small, reshape_is_the_same_memory);
  tcase_add_test(small, what_is_not_read_does_not_run);
  tcase_add_test(small, result_is_stored_in_a_state);
  tcase_add_test(small, memory_is_shared);
  tcase_add_test(small, memory_of_blocks_is_shared);
  tcase_add_test(small, nothing_that_meets_a_state_runs_again);
  tcase_add_test(small, wrong_shape_is_reported_by_plan);
  tcase_add_test(small, missing_input_is_reported_by_plan);
  tcase_add_test(small, reshape_that_does_not_fit_is_reported);
  tcase_add_test(small, huge_tensor_is_refused);
  tcase_add_loop_test(random, random_graph_equals_its_nodes, 0, 40);
  tcase_add_loop_test(random, random_graph_recomputed_is_the_same, 0, 40);
  tcase_add_loop_test(random, storages_needed_together_lie_apart, 0, 3 * 20);
  suite_add_tcase(suite, small);
  suite_add_tcase(suite, random);
  return run_suite(suite);
}
