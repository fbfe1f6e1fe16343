/* op-bench: walks the operator table.
 *
 *     op-bench test [PATTERN]                 float32 variants against the oracle
 *     op-bench grad [PATTERN]                 the oracle's backward against central differences
 *     op-bench launch [PATTERN]               each kernel of the tests' cases once, for a tool that watches it: nothing is compared
 *     op-bench perf [PATTERN] [--threads N]   time of the benchmark cases
 *     op-bench list [PATTERN]                 the cases, a line each
 *     ... --device cuda                       the GPU's kernels in place of the CPU's
 *
 * PATTERN is a shell pattern or a part of "OPERATOR, case 'NAME'". Exit status 1 if a check failed, 2 for a wrong command. */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>

#include "comba.h"
#include "core/backend.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "op_check.h"
#include "op_perf.h"

typedef struct tally {
  int passed, failed;
} tally;

typedef struct bench {
  const char *pattern;
  op_variant variant[OP_VARIANTS];
  int variants;
  op_ceiling ceiling;
  tally tally;
} bench;

static void count(bench *b, const char *failure) {
  if (!failure)
    b->tally.passed++;
  else
    b->tally.failed++;
  if (failure) printf("FAILED %s\n", failure);
  fflush(stdout);
}

static void test(bench *b, int id, const comba_case *c) {
  op_reference *reference = NULL, *narrow = NULL;
  const char *failure = op_reference_create(&reference, id, c, NULL);
  if (failure) count(b, failure);
  for (int i = 0; i < b->variants && !failure; i++) {
    if (b->variant[i].narrow && !narrow) failure = op_reference_create(&narrow, id, c, reference);
    count(b, failure ? failure : op_check_variant(b->variant[i].narrow ? narrow : reference, &b->variant[i]));
  }
  op_reference_free(narrow);
  op_reference_free(reference);
}

static void grad(bench *b, int id, const comba_case *c) {
  if (op_oracle.op[id]->backward) count(b, op_check_gradient(id, c, op_check_coordinates()));
}

/* Forward without saved tensors and with them, then backward with every gradient. */
static void launch(bench *b, int id, const comba_case *c) {
  for (int i = 0; i < b->variants; i++) {
    const op_variant *variant = &b->variant[i];
    op_instance instance;
    if (op_case_create(&instance, variant, id, c) != COMBA_OK) {
      count(b, comba_last_error());
      continue;
    }
    op_case_fill(&instance, c, variant->narrow);
    op_instance_forward(&instance, false);
    op_instance_forward(&instance, true);
    if (instance.op->backward) {
      op_case_fill_output_gradients(&instance, c, variant->narrow);
      op_instance_backward(&instance, op_case_wanted(&instance, c), op_case_accumulated(&instance),
                           op_instance_differentiable_outputs(&instance));
    }
    count(b, NULL);
    op_instance_free(&instance);
  }
}

static void perf(bench *b, int id, const comba_case *c) {
  op_print_perf(&b->variant[b->variants - 1], id, c, &b->ceiling);
}

static void list(bench *b, int id, const comba_case *c) {
  (void)b;
  char text[OP_CASE_TEXT];
  printf("%s%s\n", op_case_text(op_oracle.op[id], c, text), c->benchmark ? "; benchmark" : "");
}

typedef struct mode {
  const char *name;
  void (*run)(bench *b, int id, const comba_case *c);
  bool tests, benchmarks; /* which cases */
} mode;

static const mode modes[] = {{"test", test, true, false},
                             {"grad", grad, true, false},
                             {"launch", launch, true, false},
                             {"perf", perf, false, true},
                             {"list", list, true, true}};

static bool matches(const char *pattern, const comba_op *op, const comba_case *c) {
  char name[256];
  snprintf(name, sizeof name, "%s, case '%s'", op->name, c->name);
  return !pattern || strstr(name, pattern) || !fnmatch(pattern, op->name, 0) || !fnmatch(pattern, name, 0);
}

static void walk(bench *b, const mode *m) {
  for (int id = 0; id < COMBA_OP_COUNT; id++)
    for (const comba_case *c = op_oracle.op[id]->cases; c && c->name; c++)
      if ((c->benchmark ? m->benchmarks : m->tests) && matches(b->pattern, op_oracle.op[id], c)) m->run(b, id, c);
}

static int usage(void) {
  fprintf(stderr, "usage: op-bench test|grad|launch|perf|list [PATTERN] [--threads N] [--device cpu|cuda]\n");
  return 2;
}

int main(int argc, char **argv) {
  bench b = {0};
  const mode *m = NULL;
  bool on_device = false;
  for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
    if (!strcmp(argv[1], modes[i].name)) m = &modes[i];
  if (!m) return usage();
  for (int i = 2; i < argc; i++) {
    if (!strcmp(argv[i], "--threads") && i + 1 < argc) {
      char *end;
      const long threads = strtol(argv[++i], &end, 10);
      if (*end || threads < 1 || threads > 1024 || comba_set_threads((int)threads) != COMBA_OK) return usage();
    } else if (!strcmp(argv[i], "--device") && i + 1 < argc) {
      on_device = !strcmp(argv[++i], "cuda");
      if (!on_device && strcmp(argv[i], "cpu")) return usage();
    } else if (argv[i][0] != '-' && !b.pattern) {
      b.pattern = argv[i];
    } else {
      return usage();
    }
  }
  b.variants = on_device ? op_device_variants(b.variant) : op_variants(b.variant);
  if (!b.variants) {
    fprintf(stderr, "op-bench: %s\n", comba_last_error());
    return 77; /* automake's "skipped" */
  }
  if (m->run == perf && on_device) {
    const op_variant *last = &b.variant[b.variants - 1];
    b.ceiling = op_measure_device_ceiling(last->backend);
    printf("%s\nceilings: %.1f GFLOP/s (linear, 8192 cubed), %.1f GB/s (copy)\n", last->name, b.ceiling.flops * 1e-9,
           b.ceiling.bytes * 1e-9);
  } else if (m->run == perf) {
    b.ceiling = op_measure_ceiling();
    printf("%s, %d threads; products: %s\nceilings: %.1f GFLOP/s (sgemm, 2048 cubed), %.1f GB/s (copy)\n",
           comba_backend_cpu()->name, comba_threads(), comba_gemm_library(), b.ceiling.flops * 1e-9,
           b.ceiling.bytes * 1e-9);
  }
  walk(&b, m);
  if (m->tests && !m->benchmarks) printf("%d passed, %d failed\n", b.tally.passed, b.tally.failed);
  return b.tally.failed > 0;
}
