#include "lm.h"

/* The paper's 340M model and recipe (arXiv 2506.02475 and the released configs): D = 0.02, N(0, 0.006) with rescaled residual
 * projections, AdamW 3e-4 with weight decay on everything, 524,288 tokens a step. */
static const char comba_340m[] =
    "{\"model_type\": \"comba\", \"hidden_size\": 1024, \"num_hidden_layers\": 24, \"num_heads\": 4, \"head_dim\": "
    "256,\n"
    " \"expand_v\": 1, \"vocab_size\": 32000, \"tie_word_embeddings\": true, \"initializer_range\": 0.006,\n"
    " \"initialization\": \"paper\", \"correction_factor\": 0.02, \"honor_ablation_fields\": true,\n"
    " \"p_normalize\": false, \"correction_after_norm\": true}";

/* Byte models for a CPU: under 0.9 M parameters. */
static const char comba_tiny[] =
    "{\"model_type\": \"comba\", \"hidden_size\": 128, \"num_hidden_layers\": 4, \"num_heads\": 2, \"head_dim\": 64,\n"
    " \"expand_v\": 1, \"intermediate_size\": 320, \"vocab_size\": 256, \"tie_word_embeddings\": true,\n"
    " \"initializer_range\": 0.02, \"initialization\": \"paper\", \"correction_factor\": 0.02,\n"
    " \"honor_ablation_fields\": true, \"p_normalize\": false, \"correction_after_norm\": true}";

static const char transformer_tiny[] =
    "{\"model_type\": \"transformer\", \"hidden_size\": 128, \"num_hidden_layers\": 4, \"num_heads\": 4, "
    "\"intermediate_size\": 384,\n"
    " \"vocab_size\": 256, \"tie_word_embeddings\": true, \"initializer_range\": 0.02, \"initialization\": \"paper\"}";

const comba_preset lm_presets[] = {
    {.name = "comba-tiny",
     .help = "0.9 M parameters on bytes: minutes on two CPU cores",
     .config = comba_tiny,
     .training = {.steps = 1500, .batch_size = 16, .learning_rate = 4e-3, .warmup_steps = 50, .weight_decay = 0.1},
     .sequence_length = 256},
    {.name = "transformer-tiny",
     .help = "softmax attention of the same size and recipe",
     .config = transformer_tiny,
     .training = {.steps = 1500, .batch_size = 16, .learning_rate = 4e-3, .warmup_steps = 50, .weight_decay = 0.1},
     .sequence_length = 256},
    {.name = "comba-340m",
     .help = "the paper's 340M model and recipe (token file with vocabulary 32,000)",
     .config = comba_340m,
     .training = {.steps = 30720,
                  .batch_size = 256,
                  .learning_rate = 3e-4,
                  .warmup_steps = 1024,
                  .weight_decay = 0.01,
                  .decay_scalars = 1},
     .sequence_length = 2048},
    {0}};
