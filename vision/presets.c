#include "vision.h"

/* num_classes and num_channels are taken from the data where a config leaves them out. The presets write the paper's Comba
 * out: feedback p = sigmoid(decay) k, correction q - D p after the norm, D = 0.02. */
#define PAPER_COMBA                                                                                                    \
  "\"correction_factor\": 0.02, \"honor_ablation_fields\": true, \"p_normalize\": false, \"correction_after_norm\": "  \
  "true"

static const char demo[] =
    "{\"model_type\": \"comba_vision\", \"image_size\": 32, \"patch_size\": 4, \"hidden_size\": 96, "
    "\"num_hidden_layers\": 3,\n"
    " \"num_heads\": 3, \"head_dim\": 32, \"expand_v\": 1, \"channel_mixer_dim\": 192,\n"
    " \"train_scan_type\": \"bi-scan-aligned\", \"pooling\": \"sequence\", \"tokenizer_convolutions\": 2,\n"
    " " PAPER_COMBA "}";

/* One direction a layer, turned from layer to layer, and a narrow first convolution: most accuracy a second. */
static const char fashion_mnist[] =
    "{\"model_type\": \"comba_vision\", \"image_size\": 28, \"patch_size\": 4, \"hidden_size\": 96, "
    "\"num_hidden_layers\": 3,\n"
    " \"num_heads\": 3, \"head_dim\": 32, \"expand_v\": 1, \"channel_mixer_dim\": 192,\n"
    " \"train_scan_type\": \"switch-scan\", \"pooling\": \"sequence\", \"tokenizer_convolutions\": 2, "
    "\"tokenizer_width\": 32,\n"
    " " PAPER_COMBA "}";

static const char cifar10[] =
    "{\"model_type\": \"comba_vision\", \"image_size\": 32, \"patch_size\": 4, \"hidden_size\": 256, "
    "\"num_hidden_layers\": 6,\n"
    " \"num_heads\": 4, \"head_dim\": 64, \"expand_v\": 1, \"channel_mixer_dim\": 512,\n"
    " \"train_scan_type\": \"bi-scan-aligned\", \"pooling\": \"sequence\", \"tokenizer_convolutions\": 2,\n"
    " \"drop_path_rate\": 0.1, " PAPER_COMBA "}";

static const char imagenette[] =
    "{\"model_type\": \"comba_vision\", \"image_size\": 64, \"patch_size\": 8, \"hidden_size\": 128, "
    "\"num_hidden_layers\": 4,\n"
    " \"num_heads\": 4, \"head_dim\": 32, \"expand_v\": 1, \"channel_mixer_dim\": 256,\n"
    " \"train_scan_type\": \"bi-scan-aligned\", \"pooling\": \"mean\", \"tokenizer_convolutions\": 3,\n"
    " " PAPER_COMBA "}";

static const char transformer[] = "{\"model_type\": \"transformer_vision\", \"image_size\": 32, \"patch_size\": 4, "
                                  "\"hidden_size\": 256, \"num_hidden_layers\": 6,\n"
                                  " \"num_heads\": 4, \"channel_mixer_dim\": 512}";

static const char comba[] = "{\"model_type\": \"comba_vision\", \"image_size\": 32, \"patch_size\": 4, "
                            "\"hidden_size\": 256, \"num_hidden_layers\": 6,\n"
                            " \"num_heads\": 4, \"head_dim\": 64, \"expand_v\": 1, \"channel_mixer_dim\": 512, "
                            "\"train_scan_type\": \"bi-scan-aligned\",\n"
                            " " PAPER_COMBA "}";

const comba_preset vision_presets[] = {
    {.name = "demo",
     .help = "the demo's drawn shapes, 32 px: minutes on two CPU cores",
     .config = demo,
     .training = {.batch_size = 64, .learning_rate = 3e-3, .weight_decay = 0.05, .max_minutes = 4},
     .epochs = 6,
     .label_smoothing = 0.1,
     .crop_padding = 2},
    {.name = "fashion-mnist",
     .help = "Fashion-MNIST, 28 px grey: 10 minutes on two CPU cores",
     .config = fashion_mnist,
     .training = {.batch_size = 64, .learning_rate = 3e-3, .weight_decay = 0.05, .evaluate_every = 937},
     .epochs = 4,
     .label_smoothing = 0.1,
     .crop_padding = 1,
     .flip = 1},
    {.name = "cifar10",
     .help = "CIFAR-10, 32 px colour",
     .config = cifar10,
     .training = {.batch_size = 128, .learning_rate = 1e-3, .weight_decay = 0.06},
     .epochs = 100,
     .label_smoothing = 0.1,
     .crop_padding = 4,
     .flip = 1},
    {.name = "imagenette",
     .help = "Imagenette or any small set of photographs, 64 px",
     .config = imagenette,
     .training = {.batch_size = 32, .learning_rate = 2e-3, .weight_decay = 0.05},
     .epochs = 20,
     .label_smoothing = 0.1,
     .crop_padding = 4,
     .flip = 1},
    {.name = "transformer_vision",
     .help = "fla-zoo's base model with softmax attention, 32 px",
     .config = transformer,
     .training = {.batch_size = 128, .learning_rate = 1e-3, .weight_decay = 0.06},
     .epochs = 100,
     .label_smoothing = 0.1,
     .crop_padding = 4,
     .flip = 1},
    {.name = "comba_vision",
     .help = "the same model with Comba, both directions",
     .config = comba,
     .training = {.batch_size = 128, .learning_rate = 1e-3, .weight_decay = 0.06},
     .epochs = 100,
     .label_smoothing = 0.1,
     .crop_padding = 4,
     .flip = 1},
    {0}};
