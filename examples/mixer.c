/* A Comba mixer inside one's own training loop: it learns to recall the vector from two tokens ago.
 *   cc mixer.c $(pkg-config --cflags --libs comba) -lm -o mixer && ./mixer */
#include <comba.h>

#include <stdio.h>
#include <stdlib.h>

enum { B = 4, T = 64, D = 32, STEPS = 200, COUNT = B * T * D };

static float uniform(void) {
  return (float)rand() / (float)RAND_MAX * 2 - 1;
}

int main(void) {
  static float x[COUNT], y[COUNT], dy[COUNT];
  const char *config =
      "{\"model_type\": \"comba\", \"hidden_size\": 32, \"num_heads\": 2, \"head_dim\": 16, \"expand_v\": 1,"
      " \"initializer_range\": 0.2}";
  comba_mixer *mixer = NULL;
  if (comba_mixer_create(&mixer, config, NULL)) {
    fprintf(stderr, "%s\n", comba_last_error());
    return 1;
  }
  for (int step = 0; step < STEPS; step++) {
    for (int i = 0; i < COUNT; i++) x[i] = uniform();
    if (comba_mixer_forward(mixer, x, B, T, NULL, 0, y)) break;

    /* mean squared error against x two tokens earlier, and its gradient */
    double loss = 0;
    for (int i = 0; i < COUNT; i++) {
      const int t = i / D % T;
      const float error = y[i] - (t >= 2 ? x[i - 2 * D] : 0);
      loss += error * error / COUNT;
      dy[i] = 2 * error / COUNT;
    }
    comba_mixer_zero_gradient(mixer);
    if (comba_mixer_backward(mixer, dy, NULL)) break;

    for (size_t p = 0; p < comba_mixer_parameters(mixer); p++) { /* your own optimiser: gradient descent */
      comba_parameter parameter;
      comba_mixer_parameter(mixer, p, &parameter);
      for (int64_t i = 0; i < parameter.elements; i++) parameter.data[i] -= 3.0f * parameter.gradient[i];
    }
    if (step % 20 == 0 || step == STEPS - 1) printf("step %3d  loss %.4f\n", step, loss);
  }
  comba_mixer_free(mixer);
  return 0;
}
