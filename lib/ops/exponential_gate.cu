/* The gates of mLSTM, (B,T,H), formulas as exponential_gate.c has them:
 *   m_t = max(f_t + m_{t-1}, i_t);  g_t = f_t + m_{t-1} - m_t;  s_t = e^{i_t - m_t}
 *
 * A warp a sequence and head. The lanes are 32 tokens, which compute their gates side by side; what passes from token to token goes
 * through them one by one, in every lane alike. */
#include "ops/cuda_gates.h"
#include "ops/cuda_rows.h"
#include "ops/cuda_sequences.h"

enum { INPUT_GATE, FORGET_GATE, STATE, CU_SEQLENS };
enum { DECAY, SCALE, MAXIMUM };

struct gates {
  float cap;
  bool exponential_forget;
  int64_t heads;
  cuda_sequences sequences;
  const float *x, *y, *state;

  __device__ float capped(float value) const {
    return cap > 0 ? cap * tanhf(value / cap) : value;
  }
  __device__ float log_forget(float value) const {
    return exponential_forget ? capped(value) : -softplus(-capped(value));
  }
};

static gates gates_of(const comba_call *call) {
  const comba_exponential_gate_attributes *attributes = (const comba_exponential_gate_attributes *)call->attributes;
  return {(float)attributes->cap,
          attributes->exponential_forget,
          call->input[INPUT_GATE].shape.size[2],
          cuda_sequences_of(&call->input[INPUT_GATE], &call->input[CU_SEQLENS]),
          (const float *)call->input[INPUT_GATE].data,
          (const float *)call->input[FORGET_GATE].data,
          (const float *)call->input[STATE].data};
}

/* f + m rounded up, so that g <= 0 and the g of a sequence add up to what its m say. */
static __device__ float carried(float f, float m) {
  const double sum = (double)f + (double)m;
  const float nearest = (float)sum;
  return (double)nearest < sum ? nextafterf(nearest, INFINITY) : nearest;
}

template <class T> static void forward(const comba_call *call) {
  const gates p = gates_of(call);
  float *g = (float *)call->output[DECAY].data, *s = (float *)call->output[SCALE].data;
  float *maximum = (float *)call->output[MAXIMUM].data;
  comba_each_row(p.sequences.count * p.heads, [=] __device__(int64_t task, int64_t lane) {
    const int64_t n = task / p.heads, h = task % p.heads, end = sequence_start(p.sequences, n + 1);
    float m = p.state ? p.state[task] : 0;
    for (int64_t first = sequence_start(p.sequences, n); first < end; first += 32) {
      const int count = (int)min((int64_t)32, end - first);
      const int64_t at = (first + lane) * p.heads + h;
      const bool live = lane < count;
      const float input = live ? p.capped(p.x[at]) : 0, forget = live ? p.log_forget(p.y[at]) : 0;
      float before = 0, after = 0; /* m, of this lane's token */
      for (int j = 0; j < count; j++) {
        const float i = __shfl_sync(~0u, input, j), kept = carried(__shfl_sync(~0u, forget, j), m);
        if (j == lane) before = m;
        m = i > kept ? i : kept;
        if (j == lane) after = m;
      }
      if (!live) continue;
      g[at] = (float)((double)forget + (double)before - (double)after);
      s[at] = expf(input - after);
      maximum[at] = after;
    }
  });
}

/* With u_t the gradient of m_t, what passes backwards is dg_t + u_t where m_t took f_t + m_{t-1}, else dg_t: that of m_{t-1} from t. */
template <class T> static void backward(const comba_call *call) {
  const gates p = gates_of(call);
  const float *s = (const float *)call->output[SCALE].data, *maximum = (const float *)call->output[MAXIMUM].data;
  const float *dg = (const float *)call->output_gradient[DECAY].data;
  const float *ds = (const float *)call->output_gradient[SCALE].data;
  const float *dm = (const float *)call->output_gradient[MAXIMUM].data;
  float *dx = (float *)call->input_gradient[INPUT_GATE].data, *dy = (float *)call->input_gradient[FORGET_GATE].data;
  float *dstate = (float *)call->input_gradient[STATE].data;
  const bool add_x = call->accumulate[INPUT_GATE], add_y = call->accumulate[FORGET_GATE];
  const bool add_state = call->accumulate[STATE];
  comba_each_row(p.sequences.count * p.heads, [=] __device__(int64_t task, int64_t lane) {
    const int64_t n = task / p.heads, h = task % p.heads, start = sequence_start(p.sequences, n);
    const int64_t parts = (sequence_start(p.sequences, n + 1) - start + 31) / 32;
    float from_after = 0;
    for (int64_t first = start + (parts - 1) * 32; first >= start; first -= 32) {
      const int count = (int)min((int64_t)32, sequence_start(p.sequences, n + 1) - first);
      const int64_t row = first + lane, at = row * p.heads + h;
      const bool live = lane < count;
      float input = 0, cap_y = 0, to_decay = 0, to_scale = 0, direct = 0;
      int takes_input = 0;
      if (live) {
        const float before = row > start ? maximum[at - p.heads] : (p.state ? p.state[task] : 0);
        input = p.capped(p.x[at]);
        cap_y = p.capped(p.y[at]);
        takes_input = input > carried(p.log_forget(p.y[at]), before);
        to_decay = dg ? dg[at] : 0;
        to_scale = ds ? s[at] * ds[at] : 0;
        direct = (dm ? dm[at] : 0) - to_decay - to_scale;
      }
      float u = 0; /* of this lane's token */
      for (int j = count - 1; j >= 0; j--) {
        const float sum = __shfl_sync(~0u, direct, j) + from_after;
        if (j == lane) u = sum;
        from_after = __shfl_sync(~0u, to_decay, j) + (__shfl_sync(~0u, takes_input, j) ? 0 : sum);
      }
      if (!live) continue;
      float di = to_scale + (takes_input ? u : 0), df = to_decay + (takes_input ? 0 : u);
      if (!p.exponential_forget) df *= precise_sigmoid(-cap_y);
      if (p.cap > 0) {
        di *= 1 - (input / p.cap) * (input / p.cap);
        df *= 1 - (cap_y / p.cap) * (cap_y / p.cap);
      }
      if (dx) put(dx + at, di, add_x);
      if (dy) put(dy + at, df, add_y);
    }
    if (dstate && !lane) put(dstate + task, from_after, add_state);
  });
}

COMBA_CUDA_ROW(exponential_gate);
