/* `info`: what a model is, what it costs, what computes it; and the table of mixers. */
#ifndef COMBA_PROGRAM_DESCRIBE_H
#define COMBA_PROGRAM_DESCRIBE_H

#include <stdbool.h>

#include "comba.h"
#include "core/graph.h"

/* Parameters, sizes, FLOPs and the memory plan of one training step of `batch` sequences of `length` tokens (vision: pictures),
 * and the backend; text or one JSON object on standard output. */
comba_status comba_describe_model(comba_model *model, int64_t batch, int64_t length, bool json);
/* What a plan computes again: "light in 13 of 24 blocks". */
enum { COMBA_RECOMPUTE_TEXT = 96 };
const char *comba_describe_recompute(const comba_graph_cost *cost, char text[COMBA_RECOMPUTE_TEXT]);
/* All mixers: recurrence, size of the state, FLOPs a token, source. */
comba_status comba_describe_mixers(bool json);
/* The config's fields as a Markdown table. */
comba_status comba_describe_fields(const char *model_type);
/* The time of every operator so far, slowest first (--profile). */
void comba_describe_profile(void);

#endif
