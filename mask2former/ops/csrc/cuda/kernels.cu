// Chooses and launches the kernels.
#include <cuda_runtime.h>

#include <algorithm>

#include "backward.cuh"
#include "forward.cuh"
#include "launch.cuh"
#include "problem.h"
#include "value_gradient.cuh"

namespace mask2former {
namespace cuda {
namespace {

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether the sizes are those of the fast kernels, the memory is aligned for them, levels have two rows and columns,
// and arrays of Scalar or float in the shapes of value and output have less than 2^32 bytes. A grid has at most 65535
// blocks in y and z.
bool is_fast(const Problem& problem) {
  const int64_t rows = static_cast<int64_t>(problem.num_images) * std::max(problem.num_pixels, problem.num_queries);
  const int64_t rows_in_reach = (int64_t{1} << 30) / problem.num_heads / problem.head_dim;
  return problem.head_dim == kHeadDim && problem.num_levels == kLevels && problem.num_points == kPoints &&
         is_aligned(problem.value) && is_aligned(problem.offsets) && is_aligned(problem.grad_output) &&
         std::all_of(problem.levels, problem.levels + kLevels, [](Level x) { return x.height > 1 && x.width > 1; }) &&
         rows < rows_in_reach && problem.num_tiles <= 65535 && problem.num_images <= 65535;
}

dim3 tile_blocks(const Problem& problem) {
  return dim3(static_cast<unsigned>(problem.num_heads), static_cast<unsigned>(problem.num_tiles),
              static_cast<unsigned>(problem.num_images));
}

dim3 any_blocks(const Problem& problem) {
  return blocks_for(static_cast<int64_t>(problem.num_images) * problem.num_queries * problem.num_heads * kAnyLanes);
}

template <typename Scalar>
cudaError_t forward(const Problem& problem, cudaStream_t stream) {
  if (is_fast(problem)) {
    const auto kernel = problem.num_heads == kHeads ? forward_kernel<Scalar, kHeads> : forward_kernel<Scalar, 0>;
    return launch(tile_blocks(problem), stream, kernel, problem);
  }
  return launch(any_blocks(problem), stream, forward_any_kernel<Scalar>, problem);
}

template <typename Scalar, typename Sums>
cudaError_t backward(const Problem& problem, cudaStream_t stream) {
  if (is_fast(problem)) {
    const auto kernel =
        problem.num_heads == kHeads ? sample_gradient_kernel<Scalar, kHeads> : sample_gradient_kernel<Scalar, 0>;
    const cudaError_t error = launch(tile_blocks(problem), stream, kernel, problem);
    if (error != cudaSuccess)
      return error;
    return launch(tile_blocks(problem), stream, value_gradient_kernel<Scalar, Sums>, problem);
  }
  return launch(any_blocks(problem), stream, backward_any_kernel<Scalar, Sums>, problem);
}

template <typename Scalar>
cudaError_t raise_magnitude(const Scalar* values, int64_t count, uint32_t* result, cudaStream_t stream) {
  const dim3 blocks = blocks_for(std::min<int64_t>(count, 1024 * kThreads));
  return launch(blocks, stream, magnitude_kernel<Scalar>, values, count, result);
}

template <typename Scalar>
cudaError_t deterministic_backward(const Problem& problem, cudaStream_t stream) {
  const int64_t items = static_cast<int64_t>(problem.num_images) * problem.num_queries * problem.num_heads;
  cudaError_t error = raise_magnitude(static_cast<const Scalar*>(problem.grad_output), items * problem.head_dim,
                                      problem.magnitudes, stream);
  if (error == cudaSuccess && problem.reference == nullptr)
    error = raise_magnitude(problem.attention, items * problem.num_samples, problem.magnitudes + 1, stream);
  if (error == cudaSuccess)
    error = backward<Scalar, FixedSums>(problem, stream);
  const int64_t values =
      static_cast<int64_t>(problem.num_images) * problem.num_pixels * problem.num_heads * problem.head_dim;
  if (error == cudaSuccess)
    error = launch(blocks_for(values), stream, round_kernel<Scalar>, problem, values);
  return error;
}

template <typename Scalar>
cudaError_t any_backward(const Problem& problem, cudaStream_t stream) {
  return problem.grad_value == nullptr ? deterministic_backward<Scalar>(problem, stream)
                                       : backward<Scalar, FloatSums>(problem, stream);
}

}  // namespace

const char* run_forward(const Problem& problem, Type type, void* stream) {
  return run_for(type, [&](auto scalar) {
    return forward<decltype(scalar)>(problem, static_cast<cudaStream_t>(stream));
  });
}

const char* run_backward(const Problem& problem, Type type, void* stream) {
  return run_for(type, [&](auto scalar) {
    return any_backward<decltype(scalar)>(problem, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace mask2former

// Whether the library has code for a GPU, 0 or 1: it is compiled for some architectures only. Called by name.
extern "C" __attribute__((visibility("default"))) int mask2former_has_code_for(int device) {
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess || cudaSetDevice(device) != cudaSuccess)
    return 0;
  cudaFuncAttributes attributes;
  void (*const kernel)(mask2former::cuda::Problem) = mask2former::cuda::forward_any_kernel<float>;
  const bool found = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess;
  cudaGetLastError();  // the failure is no error of anything that follows
  cudaSetDevice(current);
  return found;
}
