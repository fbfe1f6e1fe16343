/* A step of decoding is hundreds of nodes of so little work that launches would cost more than what they start. Here one kernel goes
 * through many of them: a program of stages, between which its blocks, one a processor, wait for one another. A stage is
 *   products of one input, with the norm that makes the input before (in each block again) and swiglu of their results behind,
 *   operators of tokens (cuda_token_step.h) that follow one another within a block,
 *   the engine of delta rule and scalar decay, or
 *   attention of a new token.
 * While blocks wait, the weights and the state that the next stage begins with are on their way to registers and shared memory, and
 * weights of later stages to the L2. */
#include "ops/cuda_together.h"

#include <stddef.h>

#include "ops/cuda_few_rows.h"
#include "scan/cuda_attention_decode.h"
#include "scan/cuda_scalar_token.h"

enum {
  MOST_TOKENS = 128,
  MOST_STEPS = 24,
  PROGRAM_BYTES = 32 << 10, /* what a kernel's arguments may take, less a few words */
  STAGE_BYTES = 4096,
};

typedef enum stage_kind { TOKENS, PRODUCT, SCALAR, ATTENTION } stage_kind;

/* Bytes that one of the next stages will read */
typedef struct stage_fetch {
  const void *from;
  int64_t bytes;
} stage_fetch;

/* In memory its operands follow, and then what it fetches. */
typedef struct alignas(16) stage {
  stage_kind kind;
  int bytes, next_bytes; /* of this stage, and of the next */
  int fetches, fetch;    /* how many there are, and where the first is */
  bool waits, next_waits;
} stage;

/* Operators for `groups` parts of each token; the block `block` has the first. */
typedef struct token_stage {
  int tokens, groups, block, steps;
  token_step step[MOST_STEPS];
} token_stage;

typedef struct program {
  int bytes;
  bool waits; /* one of its stages */
  alignas(16) unsigned char data[PROGRAM_BYTES - 64];
} program;

/* ---- On the device --------------------------------------------------------------------------------------------------- */

template <class T> static __device__ void run_tokens(const token_stage &s) {
  const int blocks = gridDim.x;
  for (int item = (blockIdx.x + blocks - s.block % blocks) % blocks; item < s.tokens * s.groups; item += blocks)
    for (int i = 0; i < s.steps; i++) {
      const token_step &step = s.step[i];
      const int count = (step.by_rows ? step.rows : step.rows * step.d) / s.groups;
      const token_part part = {(int64_t)item * count, count};
      if (step.waits) wait_for_workers();
      if (step.by_rows)
        run_by_rows<T>(step, part);
      else
        run_by_values<T>(step, part);
    }
}

/* So many warps a new token and head that each block has one, or that there is less to join where there are many. */
template <class T, int PIECES> static __device__ void attend_tokens(const attention_tokens &p, uint4 *shared) {
  attention_room<PIECES, STAGE_WARPS> *room = (attention_room<PIECES, STAGE_WARPS> *)shared;
  const int heads = (int)p.heads, items = (int)p.batch * heads, shared_by = heads / (int)p.key_heads;
  const int warps = items > 2 * (int)gridDim.x ? 4 : STAGE_WARPS, teams = STAGE_WARPS / warps;
  const int warp = threadIdx.x / 32, team = warp / warps;
  const int64_t place = *p.position % p.capacity, width = p.key_heads * p.D;
  for (int base = blockIdx.x * teams; base < items; base += gridDim.x * teams) {
    const int item = min(base + team, items - 1), row = item / heads, head = item % heads;
    const attention_part<PIECES> part = attend<T, PIECES>(p, row, head, warp % warps, warps);
    wait_for_workers();
    put_part(room, part, warp);
    wait_for_workers();
    for (int c = threadIdx.x % (warps * 32); c < p.D && base + team < items; c += warps * 32) {
      store((T *)p.o + item * p.D + c, join_parts(*room, team * warps, warps, c));
      if (head % shared_by) continue;
      const int64_t from = row * width + head / shared_by * p.D + c;
      const int64_t to = (row * p.capacity + place) * width + head / shared_by * p.D + c;
      p.new_cache_k[to] = load((const T *)p.k + from);
      p.new_cache_v[to] = load((const T *)p.v + from);
    }
  }
}
template <class T> static __device__ void attend_tokens(const attention_tokens &p, uint4 *shared) {
  if (p.D <= 64)
    attend_tokens<T, 2>(p, shared);
  else if (p.D <= 128)
    attend_tokens<T, 4>(p, shared);
  else
    attend_tokens<T, 8>(p, shared);
}

/* ROWS of x in products: up to FEW_ROWS, or tiles of 8 */
template <int ROWS> static __device__ void multiply(const few_rows_product<float> &p, uint4 *shared) {
  multiply_few<float, ROWS>(p, shared);
}
template <int ROWS> static __device__ void multiply(const few_rows_product<bfloat16> &p, uint4 *shared) {
  if constexpr (ROWS > FEW_ROWS)
    multiply_some<ROWS / 8>(p, shared);
  else
    multiply_few<bfloat16, ROWS>(p, shared);
}

/* In pieces, which lanes of all blocks take by turns */
static __device__ inline void fetch_ahead(const stage &s) {
#if __CUDA_ARCH__ >= 900
  enum { PIECE = 4096 };
  for (int i = 0; i < s.fetches; i++) {
    const stage_fetch f = ((const stage_fetch *)((const char *)&s + s.fetch))[i];
    for (int64_t at = ((int64_t)(threadIdx.x % 32) * gridDim.x + blockIdx.x) * PIECE; at < f.bytes;
         at += (int64_t)gridDim.x * 32 * PIECE)
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"((const char *)f.from + at),
                   "r"((int)min((int64_t)PIECE, f.bytes - at))
                   : "memory");
  }
#endif
}

/* A stage's place in shared memory */
struct stage_room {
  uint4 words[STAGE_BYTES / 16];
};
enum {
  STAGES = 3
}; /* the one that is worked on, the next, which workers look into while they wait, and one that is being copied */

/* The warp that waits: it tells the workers when a stage may begin, and has the next but one in shared memory by then. */
static __device__ void lead(const uint4 *from, int bytes, stage_room (&rooms)[STAGES]) {
  grid_wait grid;
  const int lane = threadIdx.x % 32;
  const auto copy = [&](int i, int count) {
    for (int word = lane; word < count / 16; word += 32) rooms[i % STAGES].words[word] = from[word];
    from += count / 16;
    __syncwarp();
  };
  const auto of = [&](int i) -> const stage & { return *(const stage *)&rooms[i % STAGES]; };
  copy(0, min(bytes, (int)sizeof(stage)));
  from -= sizeof(stage) / 16;
  copy(0, of(0).bytes);
  if (of(0).next_bytes) copy(1, of(0).next_bytes);
  __syncthreads();
  for (int i = 0;; i++) {
    arrive_at(STAGE_BEGINS, STAGE_THREADS);
    if (!of(i).next_bytes) break;
    if (of(i + 1).next_bytes) copy(i + 2, of(i + 1).next_bytes);
    wait_at(STAGE_ENDED, STAGE_THREADS);
    if (of(i + 1).waits && !lane) grid.arrive();
    fetch_ahead(of(i + 1));
    if (of(i + 1).waits && !lane) grid.wait();
    __syncwarp();
  }
}

template <class T, int ROWS> static __device__ void work(uint4 *shared, const stage_room (&rooms)[STAGES]) {
  __syncthreads();
  for (int i = 0;; i++) {
    const stage &s = *(const stage *)&rooms[i % STAGES];
    switch (s.kind) {
    case PRODUCT: multiply<ROWS>(*(const few_rows_product<T> *)(&s + 1), shared); break;
    case SCALAR: pass_scalar<T>(*(const scalar_tokens *)(&s + 1), shared); break;
    case ATTENTION:
      begin_stage();
      attend_tokens<T>(*(const attention_tokens *)(&s + 1), shared);
      break;
    default: begin_stage(); run_tokens<T>(*(const token_stage *)(&s + 1));
    }
    if (!s.next_bytes) break;
    end_stage();
  }
}

template <class T, int ROWS>
static __global__ void __launch_bounds__(STAGE_THREADS, 1) run_program(const __grid_constant__ program p) {
  extern __shared__ uint4 shared[];
  __shared__ stage_room rooms[STAGES];
  if (threadIdx.x < STAGE_WORKERS) {
    work<T, ROWS>(shared, rooms);
    return;
  }
  const uint4 *from = (const uint4 *)p.data;
  asm("" : "+l"(from)); /* an access of the constant cache has one address for all lanes */
  lead(from, p.bytes, rooms);
}

/* ---- On the host ----------------------------------------------------------------------------------------------------- */

template <class T, int ROWS> static void launch_rows(const program &p) {
  const auto kernel = run_program<T, ROWS>;
  const int room = (int)few_rows_room(), for_few = room ? few_rows_ring + room : 0;
  const int for_products = ROWS > FEW_ROWS ? some_rows_bytes<ROWS / 8> : for_few;
  const int bytes = max(for_products, (int)sizeof(scalar_room) * SCALAR_HALVES);
  comba_cuda_note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "a step's nodes");
  comba_cuda_launch_grid("a step's nodes", kernel, STAGE_THREADS, bytes, p.waits, p);
}
static void launch(const program &p, int rows, float) {
  rows <= 1 ? launch_rows<float, 1>(p) : launch_rows<float, FEW_ROWS>(p);
}
static void launch(const program &p, int rows, bfloat16) {
  if (rows <= FEW_ROWS)
    rows <= 1 ? launch_rows<bfloat16, 1>(p) : launch_rows<bfloat16, FEW_ROWS>(p);
  else
    rows <= 16   ? launch_rows<bfloat16, 16>(p)
    : rows <= 32 ? launch_rows<bfloat16, 32>(p)
                 : launch_rows<bfloat16, 64>(p);
}

/* A program that grows stage by stage. Stages are named by their place in it. */
template <class T> struct writer {
  program p = {};
  int blocks = comba_cuda_processors(), rows = 0; /* rows: of x in products, 0: there are none yet */
  int products[2] = {-1, -1};                     /* the last stages with products, the later one first */

  stage *at(int place) {
    return (stage *)(p.data + place);
  }
  /* for the longest stage and what it has others fetch */
  bool has_room() const {
    return p.bytes + 2 * STAGE_BYTES <= (int)sizeof p.data;
  }
  int append(stage_kind kind, bool waits, const void *operands, size_t bytes) {
    const int place = p.bytes;
    stage *s = at(place);
    *s = {};
    s->kind = kind;
    s->waits = waits && place;
    p.waits |= s->waits;
    s->fetch = s->bytes = (int)(sizeof *s + (bytes + 15) / 16 * 16);
    memcpy(s + 1, operands, bytes);
    p.bytes += s->bytes;
    return place;
  }
  /* Makes the stage at `place` fetch these weights. */
  void fetch(int place, const few_rows_product<T> &later) {
    const int bytes = later.weights * (int)sizeof(stage_fetch), end = place + at(place)->bytes;
    if (at(place)->bytes + bytes > STAGE_BYTES) return;
    memmove(p.data + end + bytes, p.data + end, (size_t)(p.bytes - end));
    for (int i = 0; i < later.weights; i++)
      ((stage_fetch *)(p.data + end))[i] = {later.of[i].weight, (int64_t)later.of[i].n * later.k * (int64_t)sizeof(T)};
    at(place)->bytes += bytes;
    at(place)->fetches += later.weights;
    p.bytes += bytes;
    if (products[0] > place) products[0] += bytes;
  }
  void append_product(few_rows_product<T> *product, bool waits) {
    few_rows_deal(product, blocks);
    /* much state goes through the L2 where there are many rows: it would not stay there until the stage after the next */
    const int fetching = products[product->rows > FEW_ROWS ? 0 : 1];
    if (fetching >= 0) fetch(fetching, *product);
    rows = product->rows;
    products[1] = products[0];
    products[0] =
        append(PRODUCT, waits, product, offsetof(few_rows_product<T>, of) + product->weights * sizeof product->of[0]);
  }
  void append_scalar(const cuda_scalar &c) {
    const scalar_tokens s = scalar_tokens_of(c);
    append(SCALAR, true, &s, sizeof s);
  }
  void run() {
    for (int place = 0, next; place < p.bytes; place = next) {
      next = place + at(place)->bytes;
      if (next == p.bytes) break;
      at(place)->next_bytes = at(next)->bytes;
      at(place)->next_waits = at(next)->waits;
    }
    if (p.bytes) launch(p, rows, T());
  }
};

/* Operators of tokens that follow one another, in components: those of one component read results of one another */
struct token_run {
  int64_t tokens;
  int steps;
  token_step step[MOST_STEPS];
  int depth[MOST_STEPS], component[MOST_STEPS];

  /* Whether the step can go with those before: it finds their results in its own block. */
  bool take(const token_step &s, int at_depth) {
    const int own = steps;
    for (int i = 0; i < steps; i++)
      if (reads(s, step[i]) && step[i].rows * step[i].d != s.rows * s.d) return false;
    step[own] = s;
    depth[own] = at_depth;
    component[own] = own;
    for (int i = 0; i < own; i++)
      if (reads(s, step[i])) join(component[i], component[own]);
    steps++;
    return true;
  }
  static bool reads(const token_step &s, const token_step &before) {
    for (const void *in : s.in)
      for (const void *out : before.out)
        if (in && in == out) return true;
    return false;
  }
  void join(int a, int b) {
    for (int i = 0; i <= steps; i++)
      if (component[i] == b) component[i] = a;
  }
};

/* In how many parts a token of a component is dealt to blocks: of what divides its rows and values the least that gives most of the blocks
 * some, or that leaves a thread a value. */
static int groups_of(const token_run &run, int component, int blocks) {
  int best = 1;
  for (int groups = 1; groups <= 64; groups++) {
    bool divides = true, is_small = true;
    for (int i = 0; i < run.steps; i++) {
      const token_step &s = run.step[i];
      if (run.component[i] != component) continue;
      divides &= s.rows * s.d % groups == 0 && (!s.by_rows || s.rows % groups == 0);
      is_small &= !s.by_rows && s.rows * s.d <= groups * STAGE_WORKERS;
    }
    if (!divides) continue;
    best = groups;
    if (is_small || run.tokens * groups * 2 >= blocks) break;
  }
  return best;
}

/* A stage a component, all of which run beside one another */
template <class T> static void append_tokens(writer<T> *w, const token_run &run) {
  bool waits = true;
  int block = 0;
  for (int component = 0; component < run.steps; component++) {
    token_stage s = {(int)run.tokens, groups_of(run, component, w->blocks), block};
    int thread = 0, depth = 0;
    for (int i = 0; i < run.steps; i++) {
      if (run.component[i] != component) continue;
      token_step *step = &s.step[s.steps];
      *step = run.step[i];
      step->waits = s.steps && run.depth[i] != depth;
      if (step->waits) thread = 0;
      step->thread = thread % STAGE_WORKERS;
      thread += (step->rows * step->d / s.groups + 31) / 32 * 32;
      depth = run.depth[i];
      s.steps++;
    }
    if (!s.steps) continue;
    w->append(TOKENS, waits, &s, offsetof(token_stage, step) + s.steps * sizeof s.step[0]);
    waits = false;
    block += s.tokens * s.groups;
  }
}

static int64_t tokens_of(const comba_call *call) {
  const comba_shape *x = &call->input[0].shape;
  return x->rank < 3 ? 0 : x->size[0] * x->size[1];
}

/* Operators of tokens from the first on; returns their number. */
static int take_tokens(const comba_forward *forwards, int count, token_run *run) {
  run->tokens = tokens_of(forwards->call);
  if (run->tokens < 1 || run->tokens > MOST_TOKENS) return 0;
  while (run->steps < count && run->steps < MOST_STEPS) {
    const comba_forward *f = &forwards[run->steps];
    token_step s;
    if (tokens_of(f->call) != run->tokens || !describe_step(f->id, f->call, run->tokens, &s) || !run->take(s, f->depth))
      break;
  }
  return run->steps;
}

/* Products of one depth with one input from the first on, and what swiglu makes of two; returns their number. */
template <class T>
static int take_products(const comba_forward *forwards, int count, int rows, few_rows_product<T> *product) {
  for (int &i = product->weights; i < count && i < FEW_WEIGHTS; i++) {
    few_rows_product<T> one = {};
    if (forwards[i].id != COMBA_OP_linear || forwards[i].depth != forwards->depth ||
        !few_rows_describe(forwards[i].call, &one))
      break;
    if (i ? one.x != product->x || one.rows != product->rows || one.k != product->k : rows && one.rows != rows) break;
    product->x = one.x;
    product->rows = one.rows;
    product->k = one.k;
    product->of[i] = one.of[0];
  }
  if (product->weights == 2 && count > 2 && forwards[2].id == COMBA_OP_swiglu) {
    const comba_call *call = forwards[2].call;
    product->paired = call->input[0].data == product->of[0].y && call->input[1].data == product->of[1].y;
    product->swiglu = (T *)call->output[0].data;
  }
  return product->weights + product->paired;
}

/* Whether the products' input is made by this operator, row by row, and so few are they that each block does that itself. */
template <class T> static bool takes_norm(const few_rows_product<T> &product, const token_step &s) {
  const bool is_norm = s.op == COMBA_OP_rms_norm || s.op == COMBA_OP_gated_rms_norm || s.op == COMBA_OP_l2_norm;
  return product.rows <= FEW_ROWS && is_norm && s.out[0] == product.x && s.rows * s.d == product.k;
}

/* The operator's engine, where it goes token by token */
static bool takes_scalar(const comba_forward *forward, cuda_scalar *c) {
  const comba_call *call = forward->call;
  if (call->saved[0].data) return false;
  if (forward->id == COMBA_OP_delta_rule)
    *c = cuda_delta_rule_of(call);
  else if (forward->id == COMBA_OP_scalar_decay)
    *c = cuda_scalar_decay_of(call);
  else
    return false;
  return is_decoded(c);
}

/* Attention of one token that leaves the ring alone but for the place of this token, which no other block reads. */
static bool takes_attention(const comba_forward *forward, attention_tokens *p) {
  if (forward->id != COMBA_OP_attention_decode) return false;
  *p = cuda_attention_decode_of(forward->call);
  return p->length == 1 && p->cache_k == p->new_cache_k && p->cache_v == p->new_cache_v && p->batch <= MOST_TOKENS &&
         (p->heads == p->key_heads || (p->window && p->window <= p->capacity));
}

template <class T> static int together(const comba_forward *forwards, int count) {
  writer<T> w;
  int taken = 0;
  while (taken < count && w.has_room()) {
    const comba_forward *first = forwards + taken;
    const int left = count - taken;
    token_run run = {};
    few_rows_product<T> product = {};
    cuda_scalar c;
    attention_tokens attention;
    const int steps = take_tokens(first, left, &run);
    const int products = take_products(first + steps, left - steps, w.rows, &product);
    if (products && run.steps && takes_norm(product, run.step[run.steps - 1])) {
      product.normed = true;
      product.norm = run.step[--run.steps];
    }
    append_tokens(&w, run);
    if (products)
      w.append_product(&product, true);
    else if (!steps && takes_scalar(first, &c))
      w.append_scalar(c);
    else if (!steps && takes_attention(first, &attention))
      w.append(ATTENTION, true, &attention, sizeof attention);
    else if (!steps)
      break;
    taken += steps + products;
    taken += !steps && !products;
  }
  w.run();
  return taken;
}
extern "C" int (*const comba_cuda_forward_together[COMBA_CUDA_TYPES])(const comba_forward *,
                                                                      int) = {together<float>, together<bfloat16>};

template <class T> bool cuda_multiply_few_rows(const comba_call *call) {
  few_rows_product<T> product = {};
  if (!few_rows_describe(call, &product)) return false;
  writer<T> w;
  w.append_product(&product, false);
  w.run();
  return true;
}
template bool cuda_multiply_few_rows<float>(const comba_call *);
template bool cuda_multiply_few_rows<bfloat16>(const comba_call *);

template <class T> void cuda_scalar_decode(const cuda_scalar *c) {
  writer<T> w;
  w.append_scalar(*c);
  w.run();
}
template void cuda_scalar_decode<float>(const cuda_scalar *);
template void cuda_scalar_decode<bfloat16>(const cuda_scalar *);
