/* What the suites of engines with a state share: a problem as data, both forms run on it, and what must hold of every engine. */
#ifndef COMBA_TESTS_SCAN_CASE_H
#define COMBA_TESTS_SCAN_CASE_H

#include "op_case.h"
#include "ops/ops.h"
#include "testing.h"

typedef struct scan_problem scan_problem;

typedef struct scan_engine {
  int op;                   /* COMBA_OP_... */
  int inputs;               /* the last two are the initial state and cu_seqlens; outputs are o and the final state */
  int value, gate;          /* numbers of the operands v and g */
  const char *const *names; /* of the operands up to the initial state */
  /* Attributes for the problem's option, valid until the next call. */
  const void *(*attributes)(int64_t option, comba_mode mode);
  /* The recurrence of one head of the state over tokens [first, first + T) of all B T, in place: o of the first token and head,
   * state (K,V). */
  void (*recurrence)(const scan_problem *x, int64_t first, int64_t T, int64_t head, double *o, double *state);
} scan_engine;

struct scan_problem {
  const scan_engine *engine;
  int64_t B, T, heads, K, V; /* o (B,T,heads,V), a state (heads,K,V) for each of `sequences` */
  int64_t sequences;         /* B without cu_seqlens */
  int64_t option;
  comba_shape shape[COMBA_MAX_INPUTS]; /* rank 0: left out */
  double *input[COMBA_MAX_INPUTS];
};

typedef struct scan_result {
  double *o, *final_state;
  double *gradient[COMBA_MAX_INPUTS];
} scan_result;

static const comba_mode scan_modes[] = {COMBA_MODE_CHUNK, COMBA_MODE_RECURRENT};
enum { SCAN_MODES = 2 };

/* A problem with a random initial state; operands follow by scan_operand, which returns their memory. */
scan_problem scan_create(const scan_engine *engine, int64_t B, int64_t T, int64_t heads, int64_t K, int64_t V);
double *scan_operand(scan_problem *x, int input, comba_shape shape);
void scan_leave_out(scan_problem *x, int input);
/* Makes six sequences of a problem with B = 1 and T = 200: short, empty and long ones, among them some that end on a chunk's
 * edge. */
void scan_pack(scan_problem *x);
void scan_free(scan_problem *x);
/* Elements of an operand, 0 where it is left out; of a token in it. */
int64_t scan_count(const scan_problem *x, int input);
int64_t scan_row(const scan_problem *x, int input);
int64_t scan_outputs(const scan_problem *x);
int64_t scan_states(const scan_problem *x);

/* The fastest variant that this processor runs. */
op_variant scan_fastest(void);
/* What the row computes; `backward` adds the gradients under random output gradients. */
scan_result scan_run(const scan_problem *x, const op_variant *variant, comba_mode mode, bool backward);
scan_result scan_result_create(const scan_problem *x);
void scan_result_free(scan_result *y);
void scan_expect_close(const scan_problem *x, const scan_result *found, const scan_result *expected, double tolerance);

/* Both forms: forward against the recurrence, backward against the oracle's recurrent form, which the operator suite holds
 * against central differences. */
void scan_expect_right(const scan_problem *x, double tolerance);
/* Pieces that end at `end`, each from the state that the one before left, equal the whole. */
void scan_expect_pieces_right(const scan_problem *x, const int64_t *end, int pieces);
/* Tokens from t on may change; what comes out before them does not. B is 1. */
void scan_expect_causal(scan_problem *x, int64_t t);
/* Outputs are linear in v and the initial state together. */
void scan_expect_linear(scan_problem *x);
/* The final state may lie on the initial one, as in a decoder. */
void scan_expect_in_place(const scan_problem *x, comba_mode mode);

/* Hard gates: all -100; all 0; strong and weak ones mixed. */
void scan_forget_everything(scan_problem *x);
void scan_forget_nothing(scan_problem *x);
void scan_mix_gates(scan_problem *x);

#endif
