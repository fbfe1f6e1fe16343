/* Projections to heads, as the linear mixers share them. */
#ifndef COMBA_MIXERS_PROJECTION_H
#define COMBA_MIXERS_PROJECTION_H

#include "model/build.h"
#include "ops/ops.h"

/* (B,T,channels): the causal depthwise convolution NAME of x, then silu if asked. A decoder keeps its last inputs. */
comba_tensor *comba_build_convolution(comba_build *build, const char *name, comba_tensor *x, int64_t taps, bool silu,
                                      bool bias);

/* (B,T,heads,size): NAME_proj of x, then with taps > 0 the causal convolution NAME_conv1d, then silu if asked. */
comba_tensor *comba_build_projection(comba_build *build, const char *name, comba_tensor *x, int64_t heads, int64_t size,
                                     int64_t taps, bool silu);

/* The same, then divided by the length of each head (comba_l2_norm). */
comba_tensor *comba_build_unit_projection(comba_build *build, const char *name, comba_tensor *x, int64_t heads,
                                          int64_t size, int64_t taps, bool silu, double epsilon);

/* A low-rank map without activation: (B,T,outputs) = NAME.1 (NAME.0 x), NAME.0 without a bias. */
comba_tensor *comba_build_low_rank(comba_build *build, const char *name, comba_tensor *x, int64_t rank, int64_t outputs,
                                   bool bias);

/* (B,T,d): o (B,T,H,V) normed per head with the weight NAME (V), gated by f(gate) if there is one, then o_proj. NAME NULL: no
 * weight, and f is silu. */
comba_tensor *comba_build_head_output(comba_build *build, const char *name, comba_tensor *o, comba_tensor *gate,
                                      comba_function function, int64_t d);

/* The size of each of `heads` heads that share hidden_size * expand channels, rounded down, 0 where they do not divide; and the check of a
 * config that it is one, `field` naming expand. */
int64_t comba_expanded_head_size(int64_t hidden_size, double expand, int64_t heads);
comba_status comba_check_expansion(const char *field, int64_t hidden_size, double expand, int64_t heads);

#endif
