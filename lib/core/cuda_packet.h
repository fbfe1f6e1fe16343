/* Several neighbouring values in one access to memory: kernels that are bound by bytes reach the rate of a copy with 8 or 16 bytes a
 * thread and access, and a few of those under way at a time. */
#ifndef COMBA_CORE_CUDA_PACKET_H
#define COMBA_CORE_CUDA_PACKET_H

#include "core/cuda_kernel.h"

/* Entry i of N values. Of two neighbours in bfloat16 each takes one instruction. */
template <class T, int N> __device__ inline float entry(const T (&at)[N], int i) {
  return (float)at[i];
}
template <int N> __device__ inline float entry(const bfloat16 (&at)[N], int i) {
  if (N == 1) return (float)at[i];
  unsigned two;
  memcpy(&two, at + i / 2 * 2, sizeof two);
  return __uint_as_float(i % 2 ? two & 0xffff0000 : two << 16);
}

/* N values as memory holds them; N is a power of two. Reading one does not wait for it, converting its entries does. */
template <class T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) packet {
  T at[N];

  __device__ float operator[](int i) const {
    return entry(at, i);
  }
  __device__ void set(int i, float value) {
    at[i] = (T)value;
  }
};

template <int N, class T> __device__ inline packet<T, N> load_packet(const T *p) {
  return *(const packet<T, N> *)p;
}
/* By an intrinsic: an assignment may be taken apart into its entries and not be put together again. */
template <int BYTES> struct bits_of;
template <> struct bits_of<2> { typedef unsigned short type; };
template <> struct bits_of<4> { typedef unsigned type; };
template <> struct bits_of<8> { typedef uint2 type; };
template <> struct bits_of<16> { typedef uint4 type; };
template <class T, int N> __device__ inline void store_packet(T *p, const packet<T, N> &values) {
  typedef typename bits_of<(N * sizeof(T) < 16 ? N * sizeof(T) : 16)>::type bits;
#pragma unroll
  for (int i = 0; i < (int)(sizeof values / sizeof(bits)); i++) {
    bits word;
    memcpy(&word, (const bits *)&values + i, sizeof word);
    __stwb((bits *)p + i, word);
  }
}
/* N values on their way, in whole words: a packet that is chosen or carried from turn to turn is taken apart, which waits for it. Zero
 * where there is none. */
template <class T, int N> struct unread {
  typedef typename bits_of<(N * sizeof(T) < 16 ? N * sizeof(T) : 16)>::type word;
  word words[sizeof(packet<T, N>) / sizeof(word)];

  __device__ void load(bool there, const T *p) {
#pragma unroll
    for (int i = 0; i < (int)(sizeof words / sizeof(word)); i++) {
      words[i] = word();
      if (there) words[i] = ((const word *)p)[i];
    }
  }
  __device__ packet<T, N> read() const {
    packet<T, N> values;
    memcpy(&values, words, sizeof values);
    return values;
  }
};

/* Copies N values to shared memory while the thread works on, or zeros if they are not `there`. Less than four bytes are waited for. */
template <class T, int N> __device__ inline void fetch_packet(packet<T, N> *to, bool there, const T *from) {
  constexpr int BYTES = sizeof(packet<T, N>);
  static_assert(BYTES <= 16, "one copy");
  if constexpr (BYTES < 4) {
    unread<T, N> values;
    values.load(there, from);
    *to = values.read();
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "n"(BYTES), "r"(there ? BYTES : 0)
                 : "memory");
  }
}
/* y = or += values */
template <int N, class T> __device__ inline void put_packet(T *p, const float (&values)[N], bool accumulate) {
  packet<T, N> y;
  if (accumulate) {
    const packet<T, N> old = load_packet<N>(p);
#pragma unroll
    for (int i = 0; i < N; i++) y.set(i, old[i] + values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) y.set(i, values[i]);
  }
  store_packet(p, y);
}

/* Whether packets of `bytes` can be read from `data`, and from each of its rows of `count` values; true of what is absent. */
static inline bool comba_cuda_aligned(const void *data, size_t bytes) {
  return (uintptr_t)data % bytes == 0;
}

#endif
