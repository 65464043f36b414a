// Launching kernels.
#pragma once

#include <cuda_runtime.h>

#include "call.h"
#include "lanes.cuh"

namespace mask2former {
namespace cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(dim3 blocks, cudaStream_t stream, void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline const char* message(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Calls run(Scalar()) for the type, which enqueues kernels. Returns null, or what went wrong.
template <typename Run>
const char* run_for(Type type, const Run& run) {
  switch (type) {
    case Type::kHalf:
      return message(run(Half()));
    case Type::kBFloat16:
      return message(run(BFloat16()));
    default:
      return message(run(float()));
  }
}

inline int64_t num_blocks(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

inline dim3 blocks_for(int64_t threads) { return dim3(static_cast<unsigned>(num_blocks(threads))); }

}  // namespace cuda
}  // namespace mask2former
