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

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 << 10;

struct Lane {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool finished = false;
  // Where it waits, if it does.
  char name = 0;
  int number = 0, width = 0;
  unsigned mask = 0;

  bool meets(const Lane& other) const {
    return finished == other.finished && name == other.name && number == other.number && width == other.width &&
           mask == 0xffffffffu;
  }
};

Lane lanes[kWarp];
ucontext_t scheduler;
Lane* current = nullptr;
uint64_t bits_of[2][kWarp];  // of this meeting and of the next one, which the first threads reach before the last left
unsigned meeting = 0;
const std::function<void()>* body = nullptr;
cudaError_t failure = cudaSuccess;
bool backwards = false;

void fiber() {
  (*body)();
  current->finished = true;
}

// One thread after the other, each to the next shuffle or to its end. False if they do not all meet there.
bool advance(unsigned first_thread) {
  for (unsigned i = 0; i < kWarp; ++i) {
    current = &lanes[i];
    threadIdx.x = first_thread + i;
    swapcontext(&scheduler, &current->context);
    if (failure != cudaSuccess)
      return false;
  }
  ++meeting;
  for (const Lane& lane : lanes) {
    if (!lane.finished && !lane.meets(lanes[0]))
      return false;
    if (lane.finished != lanes[0].finished)
      return false;
  }
  return true;
}

bool run_warp(unsigned first_thread) {
  for (Lane& lane : lanes) {
    lane.finished = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = kStack;
    lane.context.uc_link = &scheduler;
    makecontext(&lane.context, fiber, 0);
  }
  do {
    if (!advance(first_thread))
      return false;
  } while (!lanes[0].finished);
  return true;
}

}  // namespace

uint64_t exchange(char name, int number, int width, unsigned mask, uint64_t bits, unsigned source) {
  Lane& lane = *current;
  lane.name = name;
  lane.number = number;
  lane.width = width;
  lane.mask = mask;
  const unsigned now = meeting % 2;
  bits_of[now][&lane - lanes] = bits;
  swapcontext(&lane.context, &scheduler);
  return bits_of[now][source];
}

void check_alignment(const void* address, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % size == 0)
    return;
  failure = cudaErrorMisalignedAddress;
  swapcontext(&current->context, &scheduler);  // and never comes back
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const unsigned threads = config.blockDim.x, blocks = config.gridDim.x * config.gridDim.y * config.gridDim.z;
  if (threads == 0 || threads > 1024 || threads % kWarp != 0 || blocks == 0 || config.gridDim.y > 65535 ||
      config.gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  body = &kernel;
  failure = cudaSuccess;
  gridDim = config.gridDim;
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned block = backwards ? blocks - 1 - i : i;
    blockIdx = dim3(block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y);
    for (unsigned thread = 0; thread < threads; thread += kWarp) {
      if (!run_warp(backwards ? threads - kWarp - thread : thread))
        return failure == cudaSuccess ? cudaErrorIllegalInstruction : failure;
    }
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
      return "the threads of a warp do not meet in the same shuffle";
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
  const auto misreads = [] { __ldg(reinterpret_cast<const uint4*>(numbers + 1)); };
  int noticed = 0;
  noticed |= (emulation::run(config, leaves) == cudaErrorIllegalInstruction) << 0;
  noticed |= (emulation::run(config, meets_another) == cudaErrorIllegalInstruction) << 1;
  noticed |= (emulation::run(config, misreads) == cudaErrorMisalignedAddress) << 2;
  return noticed;
}
