/* The device, its memory, and recordings of a step. */
#include "core/cuda_kernel.h"
#include "core/device_failure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
  bool open, clusters, recording; /* clusters: of blocks, and chains, from compute capability 9.0 on */
  cudaStream_t stream;
  int64_t shared_bytes;
  char name[320];
  cudaError_t error; /* the first since the last read */
  const char *what;
} device;

/* Streams beside that of the device, which is lane 0, and events: what a lane of this recording begins behind, and what ends a part. */
static struct {
  bool used;    /* in this recording */
  bool refused; /* by the driver, once: all goes to one stream from then on */
  int now;      /* lane */
  bool joined[COMBA_BACKEND_LANES];
  cudaStream_t stream[COMBA_BACKEND_LANES];
  cudaEvent_t start, *end;
  int ends; /* events that there are */
} lanes;

cudaStream_t comba_cuda_stream() {
  return lanes.now ? lanes.stream[lanes.now] : device.stream;
}
int comba_cuda_lane() {
  return lanes.used ? lanes.now : -1;
}

void comba_cuda_note(cudaError_t error, const char *what) {
  if (error == cudaSuccess || device.error != cudaSuccess) return;
  device.error = error;
  device.what = what;
}

#define SAME(theirs, ours) static_assert((int)theirs == ours, "codes of the runtime")
SAME(cudaErrorMemoryAllocation, COMBA_CUDA_OUT_OF_MEMORY);
SAME(cudaErrorStubLibrary, COMBA_CUDA_STUB_LIBRARY);
SAME(cudaErrorInsufficientDriver, COMBA_CUDA_OLD_DRIVER);
SAME(cudaErrorDevicesUnavailable, COMBA_CUDA_DEVICE_IN_USE);
SAME(cudaErrorNoDevice, COMBA_CUDA_NO_DEVICE);
SAME(cudaErrorNoKernelImageForDevice, COMBA_CUDA_NO_KERNEL_IMAGE);
SAME(cudaErrorECCUncorrectable, COMBA_CUDA_MEMORY_ERROR);
SAME(cudaErrorNvlinkUncorrectable, COMBA_CUDA_LINK_ERROR);
SAME(cudaErrorUnsupportedPtxVersion, COMBA_CUDA_OLD_PTX);
SAME(cudaErrorContained, COMBA_CUDA_CONTAINED);
SAME(cudaErrorIllegalAddress, COMBA_CUDA_ILLEGAL_ADDRESS);
SAME(cudaErrorLaunchTimeout, COMBA_CUDA_TIMEOUT);
SAME(cudaErrorMisalignedAddress, COMBA_CUDA_MISALIGNED);
SAME(cudaErrorLaunchFailure, COMBA_CUDA_LAUNCH_FAILED);
SAME(cudaErrorSystemNotReady, COMBA_CUDA_NOT_READY);
SAME(cudaErrorSystemDriverMismatch, COMBA_CUDA_DRIVER_MISMATCH);
SAME(cudaErrorUnknown, COMBA_CUDA_UNKNOWN);

static size_t available(void) {
  size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? free : 0;
}

static comba_status fail_bytes(cudaError_t error, size_t asked, const char *what) {
  comba_device_failure failure = {(int)error, cudaGetErrorString(error), what, device.name[0] ? device.name : NULL};
  cudaDriverGetVersion(&failure.driver);
  cudaRuntimeGetVersion(&failure.runtime);
  failure.asked = asked;
  if (error == cudaErrorMemoryAllocation) failure.available = available();
  return comba_device_fail(&failure);
}

static comba_status fail(cudaError_t error, const char *what) {
  return fail_bytes(error, 0, what);
}

static __global__ void sum_rows(const float *partial, int64_t rows, int64_t n, bool accumulate, float *sum);
static cudaError_t open_staging();

comba_status comba_cuda_open() {
  if (device.open) return COMBA_OK;
  cudaDeviceProp properties;
  cudaFuncAttributes attributes;
  int version = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&version);
  if (error != cudaSuccess) return fail(error, "looking for a GPU");
  snprintf(device.name, sizeof device.name, "%s, sm_%d%d, CUDA %d.%d", properties.name, properties.major,
           properties.minor, version / 1000, version % 1000 / 10);
  if (properties.major < 8)
    return comba_fail(COMBA_ERROR_UNSUPPORTED,
                      "%s has compute capability %d.%d, expected at least 8.0; use --device cpu", properties.name,
                      properties.major, properties.minor);
  device.clusters = properties.major >= 9;
  device.shared_bytes = (int64_t)properties.sharedMemPerBlockOptin;
  error = cudaFuncGetAttributes(&attributes, sum_rows); /* fails where no kernel is for this GPU */
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&device.stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = comba_cuda_open_products();
  if (error == cudaSuccess) error = open_staging();
  if (error != cudaSuccess) return fail(error, "a stream and cuBLASLt");
  device.open = true;
  return COMBA_OK;
}

bool comba_cuda_is_there() {
  int driver = 0, count = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver && cudaGetDeviceCount(&count) != cudaErrorNoDevice;
}

const char *comba_cuda_name() {
  return device.name;
}

/* ---- Memory --------------------------------------------------------------------------------------------------------- */

/* Slabs of weights that products read in bfloat16: each has a copy, written whenever the slab is. */
enum { MAX_SLABS = 256 };
static struct {
  const char *data;
  size_t bytes;
  bfloat16 *copy;
} slabs[MAX_SLABS];

static int slab_of(const void *data) {
  for (int i = 0; i < MAX_SLABS; i++)
    if (slabs[i].data && (const char *)data >= slabs[i].data && (const char *)data < slabs[i].data + slabs[i].bytes)
      return i;
  return -1;
}

bfloat16 *comba_cuda_narrow_copy(const void *parameter) {
  const int slab = slab_of(parameter);
  return slab < 0 ? NULL : slabs[slab].copy + ((const char *)parameter - slabs[slab].data) / sizeof(float);
}

template <> const float *comba_cuda_weight<float>(const void *parameter) {
  return (const float *)parameter;
}
template <> const bfloat16 *comba_cuda_weight<bfloat16>(const void *parameter) {
  return comba_cuda_narrow_copy(parameter);
}

static void narrow(const void *data, size_t bytes) {
  bfloat16 *copy = comba_cuda_narrow_copy(data);
  const float *from = (const float *)data;
  if (copy) comba_each((int64_t)(bytes / sizeof(float)), [=] __device__(int64_t i) { store(copy + i, from[i]); });
}

static void *allocate(size_t bytes, const char *what) {
  void *data = NULL;
  cudaError_t error = cudaMalloc(&data, bytes ? bytes : 1);
  if (error == cudaSuccess) error = cudaMemsetAsync(data, 0, bytes, device.stream);
  if (error == cudaSuccess) return data;
  cudaGetLastError();
  cudaFree(data);
  fail_bytes(error, bytes, what);
  return NULL;
}

static void release(void *data) {
  if (!data) return;
  cudaStreamSynchronize(device.stream);
  for (int i = 0; i < MAX_SLABS; i++)
    if (slabs[i].data == data) {
      cudaFree(slabs[i].copy);
      memset(&slabs[i], 0, sizeof slabs[i]);
    }
  cudaFree(data);
}

static void *allocate_weights(size_t bytes, const char *what) {
  void *data = allocate(bytes, what);
  int slab = 0;
  while (slab < MAX_SLABS && slabs[slab].data) slab++;
  bfloat16 *copy = slab < MAX_SLABS && data ? (bfloat16 *)allocate(bytes / 2, "the weights in bfloat16") : NULL;
  if (data && !copy) {
    if (slab == MAX_SLABS) comba_fail(COMBA_ERROR_MEMORY, "CUDA: more than %d models at once", MAX_SLABS / 2);
    release(data);
    return NULL;
  }
  if (data) {
    slabs[slab].data = (const char *)data;
    slabs[slab].bytes = bytes;
    slabs[slab].copy = copy;
  }
  return data;
}

/* The first error of what was queued, or that of waiting for it. */
static comba_status finished(cudaError_t error) {
  const char *what = "running the queued work";
  if (device.error != cudaSuccess) {
    error = device.error;
    what = device.what;
    device.error = cudaSuccess;
  }
  return error == cudaSuccess ? COMBA_OK : fail(error, what);
}

/* Pinned memory through which small values go, in two halves: a copy from elsewhere could make the host wait for the queue. Whoever
 * comes back to a half waits for the copies that were queued from it. */
enum { STAGING_HALF = 4 << 20 };
static struct {
  char *data;
  size_t used;
  int half;
  cudaEvent_t left[2];
} staging;

static cudaError_t open_staging() {
  cudaError_t error = cudaMallocHost((void **)&staging.data, 2 * STAGING_HALF);
  for (int i = 0; i < 2 && error == cudaSuccess; i++)
    error = cudaEventCreateWithFlags(&staging.left[i], cudaEventDisableTiming);
  return error;
}

static const void *stage(const void *from, size_t bytes) {
  if (bytes > STAGING_HALF) return from;
  if (staging.used + bytes > STAGING_HALF) {
    comba_cuda_note(cudaEventRecord(staging.left[staging.half], device.stream), "a copy to the GPU");
    staging.half ^= 1;
    staging.used = 0;
    comba_cuda_note(cudaEventSynchronize(staging.left[staging.half]), "a copy to the GPU");
  }
  char *place = staging.data + staging.half * STAGING_HALF + staging.used;
  staging.used += (bytes + 63) / 64 * 64;
  return memcpy(place, from, bytes);
}

static comba_status write(void *to, const void *from, size_t bytes) {
  const cudaError_t error = cudaMemcpyAsync(to, stage(from, bytes), bytes, cudaMemcpyHostToDevice, device.stream);
  narrow(to, bytes);
  return error == cudaSuccess ? COMBA_OK : fail(error, "a copy to the GPU");
}

/* Two buffers of pinned memory, a stream for copies, and what was queued on the other stream at the call before. */
static struct {
  cudaStream_t stream;
  cudaEvent_t queued;
  struct {
    void *data;
    size_t bytes;
    cudaEvent_t copied;
  } buffer[2];
  int next;
} ahead;

static cudaError_t open_ahead() {
  if (ahead.stream) return cudaSuccess;
  cudaError_t error = cudaEventCreateWithFlags(&ahead.queued, cudaEventDisableTiming);
  for (int i = 0; i < 2 && error == cudaSuccess; i++)
    error = cudaEventCreateWithFlags(&ahead.buffer[i].copied, cudaEventDisableTiming);
  return error == cudaSuccess ? cudaStreamCreateWithFlags(&ahead.stream, cudaStreamNonBlocking) : error;
}

static comba_status write_ahead(void *to, const void *from, size_t bytes) {
  auto *buffer = &ahead.buffer[ahead.next];
  ahead.next ^= 1;
  cudaError_t error = open_ahead();
  if (error == cudaSuccess) error = cudaEventSynchronize(buffer->copied);
  if (error == cudaSuccess && buffer->bytes < bytes) {
    if (buffer->data) error = cudaFreeHost(buffer->data);
    buffer->data = NULL;
    buffer->bytes = 0;
    if (error == cudaSuccess) error = cudaMallocHost(&buffer->data, bytes);
    if (error == cudaSuccess) buffer->bytes = bytes;
  }
  if (error != cudaSuccess) return fail(error, "a buffer for copies to the GPU");
  memcpy(buffer->data, from, bytes);
  error = cudaStreamWaitEvent(ahead.stream, ahead.queued, 0);
  if (error == cudaSuccess) error = cudaMemcpyAsync(to, buffer->data, bytes, cudaMemcpyHostToDevice, ahead.stream);
  if (error == cudaSuccess) error = cudaEventRecord(buffer->copied, ahead.stream);
  if (error == cudaSuccess) error = cudaEventRecord(ahead.queued, device.stream);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(device.stream, buffer->copied, 0);
  return error == cudaSuccess ? COMBA_OK : fail(error, "a copy to the GPU");
}

static comba_status read(void *to, const void *from, size_t bytes) {
  comba_cuda_note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device.stream), "a copy from the GPU");
  return finished(cudaStreamSynchronize(device.stream));
}

static comba_status read_behind(void *to, const void *from, size_t bytes) {
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device.stream);
  return error == cudaSuccess ? COMBA_OK : fail(error, "a copy from the GPU");
}

static cudaEvent_t marks[2];

static comba_status mark(int which) {
  cudaError_t error = cudaSuccess;
  if (!marks[which]) error = cudaEventCreateWithFlags(&marks[which], cudaEventDisableTiming);
  if (error == cudaSuccess) error = cudaEventRecord(marks[which], device.stream);
  return error == cudaSuccess ? COMBA_OK : fail(error, "a mark in the queue");
}

static comba_status wait(int which) {
  return finished(cudaEventSynchronize(marks[which]));
}

static void *allocate_shared(size_t bytes, const char *what) {
  void *data = NULL;
  const cudaError_t error = cudaMallocHost(&data, bytes);
  if (error == cudaSuccess) return memset(data, 0, bytes);
  cudaGetLastError();
  fail_bytes(error, bytes, what);
  return NULL;
}

static void release_shared(void *data) {
  if (data) cudaFreeHost(data);
}

static comba_status zero(void *data, size_t bytes) {
  const cudaError_t error = cudaMemsetAsync(data, 0, bytes, device.stream);
  narrow(data, bytes);
  return error == cudaSuccess ? COMBA_OK : fail(error, "clearing memory");
}

#define MEMORY(allocate_weights_)                                                                                      \
  {                                                                                                                    \
    false, false, allocate, allocate_weights_, release, write, write_ahead, read, read_behind, mark, wait,             \
        allocate_shared, release_shared, zero, available                                                               \
  }
const comba_device_memory comba_cuda_device_memory[COMBA_CUDA_TYPES] = {MEMORY(allocate), MEMORY(allocate_weights)};

void comba_cuda_zero(void *data, size_t bytes) {
  comba_cuda_note(cudaMemsetAsync(data, 0, bytes, comba_cuda_stream()), "clearing memory");
}

/* ---- Recordings ----------------------------------------------------------------------------------------------------- */

static cudaError_t capture(cudaGraphExec_t *executable, void (*run)(void *context), void *context) {
  cudaGraph_t graph = NULL;
  cudaError_t error = cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal);
  lanes.used = false;
  lanes.now = 0;
  if (error == cudaSuccess) {
    device.recording = true;
    run(context);
    lanes.now = 0;
    device.recording = false;
    error = cudaStreamEndCapture(device.stream, &graph);
  }
  if (error == cudaSuccess) error = cudaGraphInstantiate(executable, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  return error;
}

comba_status comba_cuda_record(void **recording, void (*run)(void *context), void *context) {
  cudaGraphExec_t executable = NULL;
  const cudaError_t before = device.error;
  cudaError_t error = capture(&executable, run, context);
  if (lanes.used && (error != cudaSuccess || device.error != before)) {
    lanes.refused = true;
    device.error = before;
    cudaGetLastError();
    comba_cuda_forget(executable);
    executable = NULL;
    error = capture(&executable, run, context);
  }
  lanes.used = false;
  *recording = executable;
  return error == cudaSuccess ? COMBA_OK : fail(error, "recording a step");
}

/* Not where kernels are in lanes: each is to begin when those that it waits for have ended. */
bool comba_cuda_chains() {
  static const char *wanted =
      getenv("COMBA_CUDA_CHAINS"); /* "0": each kernel begins when the one before it has ended */
  return device.recording && device.clusters && !lanes.used && (!wanted || strcmp(wanted, "0"));
}
bool comba_cuda_clusters() {
  return device.clusters;
}

bool comba_cuda_has_lanes() {
  static const char *wanted = getenv("COMBA_CUDA_LANES"); /* "1": kernels may overlap */
  return wanted && !strcmp(wanted, "1");
}

/* Streams join a recording by waiting for an event of it. What is created meanwhile is no part of it. */
static void open_lanes() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  comba_cuda_note(cudaThreadExchangeStreamCaptureMode(&mode), "a lane");
  if (!lanes.start) comba_cuda_note(cudaEventCreateWithFlags(&lanes.start, cudaEventDisableTiming), "an event");
  for (int i = 1; i < COMBA_BACKEND_LANES; i++) {
    lanes.joined[i] = false;
    if (!lanes.stream[i])
      comba_cuda_note(cudaStreamCreateWithFlags(&lanes.stream[i], cudaStreamNonBlocking), "a stream");
  }
  comba_cuda_note(cudaThreadExchangeStreamCaptureMode(&mode), "a lane");
  comba_cuda_note(cudaEventRecord(lanes.start, device.stream), "a lane");
  lanes.joined[0] = lanes.used = true;
}

static bool reserve_ends(int count) {
  cudaEvent_t *grown = (cudaEvent_t *)realloc(lanes.end, (size_t)count * sizeof *grown);
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (!grown) return false;
  lanes.end = grown;
  comba_cuda_note(cudaThreadExchangeStreamCaptureMode(&mode), "a lane");
  for (; lanes.ends < count; lanes.ends++)
    comba_cuda_note(cudaEventCreateWithFlags(&lanes.end[lanes.ends], cudaEventDisableTiming), "an event");
  comba_cuda_note(cudaThreadExchangeStreamCaptureMode(&mode), "a lane");
  return true;
}

void comba_cuda_begin_in_lane(int lane, const int *after, int count) {
  if (lanes.refused) return;
  if (!lanes.used) open_lanes();
  lanes.now = lane;
  if (!lanes.joined[lane]) comba_cuda_note(cudaStreamWaitEvent(comba_cuda_stream(), lanes.start, 0), "a lane");
  lanes.joined[lane] = true;
  for (int i = 0; i < count; i++)
    comba_cuda_note(cudaStreamWaitEvent(comba_cuda_stream(), lanes.end[after[i]], 0), "a lane");
}

void comba_cuda_end_in_lane(int number) {
  if (lanes.refused) return;
  if (number >= lanes.ends && !reserve_ends(2 * number + 256))
    return comba_cuda_note(cudaErrorMemoryAllocation, "events of lanes");
  comba_cuda_note(cudaEventRecord(lanes.end[number], comba_cuda_stream()), "a lane");
}

int64_t comba_cuda_shared_bytes() {
  return device.open ? device.shared_bytes : 227 << 10;
}

void comba_cuda_replay(void *recording) {
  comba_cuda_note(cudaGraphLaunch((cudaGraphExec_t)recording, device.stream), "replaying a step");
}

void comba_cuda_forget(void *recording) {
  if (recording) cudaGraphExecDestroy((cudaGraphExec_t)recording);
}

/* ---- Timing --------------------------------------------------------------------------------------------------------- */

/* Keeps the queue from going on while the host fills it: longer than any operator takes to be queued. */
enum { HOLD_NANOSECONDS = 100000 };
static __device__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}
static __global__ void hold() {
  const uint64_t end = nanoseconds() + HOLD_NANOSECONDS;
  while (nanoseconds() < end) __nanosleep(1000);
}

double comba_cuda_time(void (*run)(void *context), void *context) {
  static cudaEvent_t begin, end;
  float milliseconds = 0;
  if (!begin) comba_cuda_note(cudaEventCreate(&begin), "an event");
  if (!end) comba_cuda_note(cudaEventCreate(&end), "an event");
  hold<<<1, 1, 0, device.stream>>>();
  comba_cuda_note(cudaEventRecord(begin, device.stream), "an event");
  run(context);
  comba_cuda_note(cudaEventRecord(end, device.stream), "an event");
  comba_cuda_note(cudaEventSynchronize(end), "running the queued work");
  comba_cuda_note(cudaEventElapsedTime(&milliseconds, begin, end), "an event");
  return 1e-3 * milliseconds;
}

/* ---- Sums ----------------------------------------------------------------------------------------------------------- */

/* A block has eight columns, 32 bytes of a row: so few rows are left to a thread that the time is that of a few reads. */
enum { SUM_COLUMNS = 8, SUM_GROUPS = 128, SUM_WARPS = SUM_COLUMNS * SUM_GROUPS / 32 };

/* A thread a column and group of rows; then the groups of a warp, and the warps. */
static __global__ void sum_rows(const float *partial, int64_t rows, int64_t n, bool accumulate, float *sum) {
  __shared__ float part[SUM_WARPS][SUM_COLUMNS];
  const int column_here = threadIdx.x % SUM_COLUMNS, group = threadIdx.x / SUM_COLUMNS, lane = threadIdx.x % 32;
  const int64_t first = (int64_t)blockIdx.x * SUM_COLUMNS, column = first + column_here;
  float total = 0;
  if (column < n)
    for (int64_t row = group; row < rows; row += SUM_GROUPS) total += partial[row * n + column];
  for (int apart = SUM_COLUMNS; apart < 32; apart *= 2) total += __shfl_xor_sync(~0u, total, apart);
  if (lane < SUM_COLUMNS) part[threadIdx.x / 32][lane] = total;
  __syncthreads();
  const int64_t own = first + threadIdx.x / 32; /* from here on a warp a column */
  if (threadIdx.x / 32 >= SUM_COLUMNS || own >= n) return;
  total = warp_sum(part[lane][threadIdx.x / 32]);
  if (!lane) put(sum + own, total, accumulate);
}

void comba_cuda_sum_rows(const float *partial, int64_t rows, int64_t n, bool accumulate, float *sum) {
  sum_rows<<<(unsigned)((n + SUM_COLUMNS - 1) / SUM_COLUMNS), SUM_COLUMNS * SUM_GROUPS, 0, comba_cuda_stream()>>>(
      partial, rows, n, accumulate, sum);

  comba_cuda_note(cudaGetLastError(), "sums of rows");
}
