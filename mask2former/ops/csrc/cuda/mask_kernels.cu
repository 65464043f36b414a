// Chooses and launches the kernels on masks.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "masks.cuh"

namespace mask2former {
namespace cuda {
namespace {

// The taps of masks that are made larger, at whatever side an image was padded: the threads keep that many rows.
constexpr int kFewTaps = 3;

using Kernel = void (*)(MaskProblem);

bool has_few_taps(const MaskProblem& problem) {
  return problem.rows.taps <= kFewTaps && problem.columns.taps <= kFewTaps;
}

int64_t threads_across(const MaskProblem& problem) { return (problem.columns.length + kPixels - 1) / kPixels; }

// Blocks of threads that work on kRows rows of one mask each.
dim3 blocks_in_masks(const MaskProblem& problem) {
  const int64_t threads = threads_across(problem) * ((problem.end - problem.begin + kRows - 1) / kRows);
  return dim3(static_cast<unsigned>(problem.count * num_blocks(threads)));
}

template <typename Scalar>
cudaError_t resize(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel = has_few_taps(problem) ? resize_kernel<Scalar, kFewTaps> : resize_kernel<Scalar, 0>;
  return launch(blocks_in_masks(problem), stream, kernel, problem);
}

template <typename Scalar>
cudaError_t binarise(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel = has_few_taps(problem) ? binarise_kernel<Scalar, kFewTaps> : binarise_kernel<Scalar, 0>;
  const cudaError_t error = launch(blocks_in_masks(problem), stream, kernel, problem);
  return error == cudaSuccess ? launch(blocks_for(problem.count), stream, measure_kernel, problem) : error;
}

template <typename Scalar>
cudaError_t compete(const MaskProblem& problem, cudaStream_t stream) {
  const Kernel kernel = has_few_taps(problem) ? compete_kernel<Scalar, kFewTaps> : compete_kernel<Scalar, 0>;
  return launch(blocks_for(threads_across(problem) * problem.rows.length), stream, kernel, problem);
}

}  // namespace

#define MASK2FORMER_RUN(operation)                                                           \
  const char* run_##operation(const MaskProblem& problem, Type type, void* stream) {         \
    const cudaStream_t on = static_cast<cudaStream_t>(stream);                               \
    switch (type) {                                                                          \
      case Type::kHalf:                                                                      \
        return message(operation<Half>(problem, on));                                        \
      case Type::kBFloat16:                                                                  \
        return message(operation<BFloat16>(problem, on));                                    \
      default:                                                                               \
        return message(operation<float>(problem, on));                                       \
    }                                                                                        \
  }

MASK2FORMER_RUN(resize)
MASK2FORMER_RUN(binarise)
MASK2FORMER_RUN(compete)

}  // namespace cuda
}  // namespace mask2former
