// Chooses and launches the kernels on masks.
#include <cuda_runtime.h>

#include <algorithm>

#include "launch.cuh"
#include "masks.cuh"

namespace mask2former {
namespace cuda {
namespace {

using Kernel = void (*)(MaskProblem);

// The kernel for as many taps as there are. Masks that are made larger have two, and three if padding was cut off in
// between, or the output is smaller than the network's input.
Kernel choose(const MaskProblem& problem, Kernel for_two, Kernel for_three, Kernel for_any) {
  const int32_t taps = std::max(problem.rows.taps, problem.columns.taps);
  return taps <= 2 ? for_two : taps == 3 ? for_three : for_any;
}

int64_t threads_across(const MaskProblem& problem) { return (problem.columns.length + kPixels - 1) / kPixels; }

// Blocks of threads that work on kRows rows of one mask each.
dim3 blocks_in_masks(const MaskProblem& problem) {
  const int64_t threads = threads_across(problem) * ((problem.end - problem.begin + kRows - 1) / kRows);
  return dim3(static_cast<unsigned>(problem.count * num_blocks(threads)));
}

template <typename Scalar>
cudaError_t resize(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel =
      choose(problem, resize_kernel<Scalar, 2>, resize_kernel<Scalar, 3>, resize_kernel<Scalar, 0>);
  return launch(blocks_in_masks(problem), stream, kernel, problem);
}

template <typename Scalar>
cudaError_t binarise(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel =
      choose(problem, binarise_kernel<Scalar, 2>, binarise_kernel<Scalar, 3>, binarise_kernel<Scalar, 0>);
  const cudaError_t error = launch(blocks_in_masks(problem), stream, kernel, problem);
  return error == cudaSuccess ? launch(blocks_for(problem.count), stream, measure_kernel, problem) : error;
}

template <typename Scalar>
cudaError_t compete(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel =
      choose(problem, compete_kernel<Scalar, 2>, compete_kernel<Scalar, 3>, compete_kernel<Scalar, 0>);
  return launch(blocks_for(threads_across(problem) * problem.rows.length), stream, kernel, problem);
}

}  // namespace

const char* run_resize(const MaskProblem& problem, Type type, void* stream) {
  return run_for(type, [&](auto scalar) {
    return resize<decltype(scalar)>(problem, static_cast<cudaStream_t>(stream));
  });
}

const char* run_binarise(const MaskProblem& problem, Type type, void* stream) {
  return run_for(type, [&](auto scalar) {
    return binarise<decltype(scalar)>(problem, static_cast<cudaStream_t>(stream));
  });
}

const char* run_compete(const MaskProblem& problem, Type type, void* stream) {
  return run_for(type, [&](auto scalar) {
    return compete<decltype(scalar)>(problem, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace cuda
}  // namespace mask2former
