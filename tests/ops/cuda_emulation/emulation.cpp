// The fibers behind cuda_runtime.h, and the operators' schemas under the name that the emulated library has.
#include "cuda_runtime.h"

#include <ucontext.h>

#include <vector>

#include "schemas.h"

STABLE_TORCH_LIBRARY(mask2former_emulation, library) {
  mask2former::define_operators(library);
  mask2former::define_mask_operators(library);
}

dim3 threadIdx, blockIdx, gridDim;

namespace emulation {
namespace {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10;
constexpr char kBlock = 'b';  // the name of the meeting of a block

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool finished = false;
  // Where it waits, if it does.
  char name = 0;
  int number = 0, width = 0;
  unsigned mask = 0;

  bool is_with(const Thread& other) const {
    return finished == other.finished &&
           (finished || (name == other.name && number == other.number && width == other.width && mask == other.mask));
  }
};

std::vector<Thread> threads(kMaxThreads);
ucontext_t scheduler;
Thread* current = nullptr;
uint64_t bits_of[2][kWarp];  // of this meeting and of the next one, which the first threads reach before the last left
unsigned meeting = 0;
const std::function<void()>* body = nullptr;
cudaError_t failure = cudaSuccess;
bool backwards = false;

void fiber() {
  (*body)();
  current->finished = true;
}

void start(Thread& thread) {
  thread.finished = false;
  thread.stack.resize(kStack);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.data();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = &scheduler;
  makecontext(&thread.context, fiber, 0);
}

// Waits for the others.
void wait(char name, int number, int width, unsigned mask) {
  Thread& thread = *current;
  thread.name = name;
  thread.number = number;
  thread.width = width;
  thread.mask = mask;
  swapcontext(&thread.context, &scheduler);
}

// The threads of a warp, one after the other, each to the next meeting or to its end. False if they do not all meet
// there.
bool advance(unsigned first_thread) {
  const Thread& first = threads[first_thread];
  for (unsigned i = 0; i < kWarp; ++i) {
    current = &threads[first_thread + i];
    threadIdx.x = first_thread + i;
    swapcontext(&scheduler, &current->context);
    if (failure != cudaSuccess)
      return false;
  }
  ++meeting;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!threads[first_thread + i].is_with(first))
      return false;
  }
  return first.finished || first.mask == 0xffffffffu;
}

bool run_block(unsigned count) {
  for (unsigned i = 0; i < count; ++i) start(threads[i]);
  do {
    for (unsigned i = 0; i < count; i += kWarp) {
      const unsigned first_thread = backwards ? count - kWarp - i : i;
      do {
        if (!advance(first_thread))
          return false;
      } while (!threads[first_thread].finished && threads[first_thread].name != kBlock);
    }
    for (unsigned i = 0; i < count; i += kWarp) {
      if (threads[i].finished != threads[0].finished)
        return false;
    }
  } while (!threads[0].finished);
  return true;
}

}  // namespace

uint64_t exchange(char name, int number, int width, unsigned mask, uint64_t bits, unsigned source) {
  const unsigned now = meeting % 2;
  bits_of[now][(current - threads.data()) % kWarp] = bits;
  wait(name, number, width, mask);
  return bits_of[now][source];
}

void meet() { wait(kBlock, 0, 0, 0xffffffffu); }

void check_alignment(const void* address, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % size == 0)
    return;
  failure = cudaErrorMisalignedAddress;
  swapcontext(&current->context, &scheduler);  // and never comes back
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const unsigned threads_in_block = config.blockDim.x, blocks = config.gridDim.x * config.gridDim.y * config.gridDim.z;
  if (threads_in_block == 0 || threads_in_block > kMaxThreads || threads_in_block % kWarp != 0 || blocks == 0 ||
      config.gridDim.y > 65535 || config.gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  body = &kernel;
  failure = cudaSuccess;
  gridDim = config.gridDim;
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned block = backwards ? blocks - 1 - i : i;
    blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y);
    if (!run_block(threads_in_block))
      return failure == cudaSuccess ? cudaErrorIllegalInstruction : failure;
  }
  return cudaSuccess;
}

}  // namespace emulation

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    default:
      return "the threads do not meet in the same shuffle or barrier";
  }
}

// Whether blocks and warps run from the last to the first, as they might on a GPU. Called by name.
extern "C" __attribute__((visibility("default"))) void emulation_backwards(int yes) { emulation::backwards = yes != 0; }

// Runs kernels with a mistake each; a bit of the result for every mistake that was noticed. Called by name.
extern "C" __attribute__((visibility("default"))) int emulation_of_mistakes() {
  cudaLaunchConfig_t config = {dim3(1), dim3(32), 0, nullptr};
  alignas(16) static float numbers[8] = {};
  const auto leaves = [] {
    if (threadIdx.x != 5)
      __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  };
  const auto meets_another = [] { __shfl_xor_sync(0xffffffffu, 1.0f, threadIdx.x < 8 ? 1 : 2); };
  const auto misses_the_barrier = [] {
    if (threadIdx.x < 32)
      __syncthreads();
  };
  const auto misreads = [] { __ldg(reinterpret_cast<const uint4*>(numbers + 1)); };
  int noticed = 0;
  noticed |= (emulation::run(config, leaves) == cudaErrorIllegalInstruction) << 0;
  noticed |= (emulation::run(config, meets_another) == cudaErrorIllegalInstruction) << 1;
  noticed |= (emulation::run(config, misreads) == cudaErrorMisalignedAddress) << 2;
  config.blockDim = dim3(64);
  noticed |= (emulation::run(config, misses_the_barrier) == cudaErrorIllegalInstruction) << 3;
  return noticed;
}
