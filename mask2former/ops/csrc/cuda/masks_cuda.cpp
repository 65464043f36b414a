// The operators of ../masks.cpp on CUDA: checks, memory, the current stream. Nothing here waits for the GPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <tuple>

#include "binding.h"
#include "masks.h"

namespace mask2former {
namespace cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr char kName[] = "masks";  // in messages
// That the kernels count in 32 bits; the threads of a block may count on beyond the last row.
constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kThreads * kRows;

// One axis of an operator's arguments, contiguous.
struct InputAxis {
  Tensor first, weights;

  InputAxis(const Tensor& first_, const Tensor& weights_)
      : first(torch::stable::contiguous(first_)), weights(torch::stable::contiguous(weights_)) {}

  // Checked against a mask's size along it.
  MaskAxis describe(const Tensor& logits, int64_t size) const {
    STD_TORCH_CHECK(is_on_device(logits, first) && first.scalar_type() == ScalarType::Int && first.dim() == 1 &&
                        is_on_device(logits, weights) && weights.scalar_type() == ScalarType::Float &&
                        weights.dim() == 2 && weights.size(1) == first.size(0) && weights.size(0) > 0,
                    "masks: expected for each axis int32 (length,) and float32 (taps, length) on the masks' device");
    STD_TORCH_CHECK(weights.size(0) <= size, "masks: an axis of ", weights.size(0),
                    " taps must not leave the mask, which has ", size);
    STD_TORCH_CHECK(weights.numel() <= kMost, "masks: an axis must have less than 2^31 weights");
    return {static_cast<int32_t>(first.size(0)), static_cast<int32_t>(weights.size(0)), static_cast<int32_t>(size),
            static_cast<const int32_t*>(first.const_data_ptr()), static_cast<const float*>(weights.const_data_ptr())};
  }
};

// The inputs of a call: contiguous, checked, and described for the kernels.
struct MaskInputs {
  Tensor logits;
  InputAxis rows, columns;
  Type type;
  MaskProblem problem = {};

  MaskInputs(const Tensor& logits_, const Tensor& first_row, const Tensor& row_weights, const Tensor& first_column,
             const Tensor& column_weights)
      : logits(torch::stable::contiguous(logits_)),
        rows(first_row, row_weights),
        columns(first_column, column_weights),
        type(type_of(logits, kName)) {
    STD_TORCH_CHECK(is_on_device(logits, logits) && logits.dim() == 3, "masks: expected (Q, h, w) on CUDA");
    problem.rows = rows.describe(logits, logits.size(1));
    problem.columns = columns.describe(logits, logits.size(2));
    problem.end = problem.rows.length;
    // The kernels count masks, and pixels of one mask, in 32 bits; and blocks, of which each has several pixels.
    const double pixels = static_cast<double>(problem.rows.length) * problem.columns.length;
    STD_TORCH_CHECK(logits.size(0) < (1 << 30) && logits.size(1) * logits.size(2) <= kMost && pixels <= kMost,
                    "masks: too large for the CUDA kernels (2^30 masks, 2^31 pixels of one)");
    problem.count = static_cast<int32_t>(logits.size(0));
    problem.logits = logits.const_data_ptr();
  }

  bool is_empty() const {
    return problem.count == 0 || problem.begin == problem.end || problem.columns.length == 0;
  }

  template <typename Run>
  void enqueue(const Run& run) const {
    if (!is_empty())
      cuda::enqueue(kName, logits, [&](void* stream) { return run(problem, type, stream); });
  }
};

template <size_t kDims>
Tensor new_tensor(const Tensor& like, const int64_t (&shape)[kDims], ScalarType dtype) {
  return torch::stable::new_empty(like, {shape, kDims}, dtype);
}

template <size_t kDims>
Tensor new_zeros(const Tensor& like, const int64_t (&shape)[kDims], ScalarType dtype) {
  return torch::stable::new_zeros(like, {shape, kDims}, dtype);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor resize_masks(Tensor logits, Tensor first_row, Tensor row_weights, Tensor first_column, Tensor column_weights,
                    int64_t begin, int64_t end, bool sigmoid) {
  MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  MaskProblem& problem = inputs.problem;
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= problem.rows.length, "masks: rows ", begin, " to ", end,
                  " are not among ", problem.rows.length);
  const Tensor output = new_tensor(logits, {problem.count, end - begin, problem.columns.length}, ScalarType::Float);
  problem.begin = static_cast<int32_t>(begin);
  problem.end = static_cast<int32_t>(end);
  problem.sigmoid = sigmoid;
  problem.resized = data<float>(output);
  inputs.enqueue(run_resize);
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> binarise_masks(Tensor logits, Tensor first_row, Tensor row_weights,
                                                          Tensor first_column, Tensor column_weights) {
  MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  MaskProblem& problem = inputs.problem;
  static_assert(sizeof(MaskSums) == 4 * sizeof(int64_t), "they are allocated as such");
  const Tensor binary =
      new_tensor(logits, {problem.count, problem.rows.length, problem.columns.length}, ScalarType::Bool);
  const Tensor sums = new_zeros(logits, {problem.count, 4}, ScalarType::Long);
  if (inputs.is_empty()) {
    return {binary, new_zeros(logits, {problem.count}, ScalarType::Long),
            new_zeros(logits, {problem.count}, ScalarType::Float),
            new_zeros(logits, {problem.count, 4}, ScalarType::Float)};
  }
  const Tensor areas = new_tensor(logits, {problem.count}, ScalarType::Long);
  const Tensor probabilities = new_tensor(logits, {problem.count}, ScalarType::Float);
  const Tensor boxes = new_tensor(logits, {problem.count, 4}, ScalarType::Float);
  problem.binary = data<bool>(binary);
  problem.sums = data<MaskSums>(sums);
  problem.area = data<int64_t>(areas);
  problem.probability = data<float>(probabilities);
  problem.boxes = data<float>(boxes);
  inputs.enqueue(run_binarise);
  return {binary, areas, probabilities, boxes};
}

std::tuple<Tensor, Tensor, Tensor> compete_masks(Tensor logits, Tensor scores, Tensor first_row, Tensor row_weights,
                                                 Tensor first_column, Tensor column_weights) {
  MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  MaskProblem& problem = inputs.problem;
  STD_TORCH_CHECK(is_on_device(logits, scores) && scores.scalar_type() == ScalarType::Float && scores.dim() == 1 &&
                      scores.size(0) == problem.count && problem.count > 0,
                  "masks: expected float32 (Q,) scores of at least one mask on its device");
  const Tensor contiguous_scores = torch::stable::contiguous(scores);
  const Tensor winner = new_tensor(logits, {problem.rows.length, problem.columns.length}, ScalarType::Int);
  const Tensor inside = new_tensor(logits, {problem.rows.length, problem.columns.length}, ScalarType::Bool);
  const Tensor areas = new_zeros(logits, {3, problem.count}, ScalarType::Long);
  problem.scores = static_cast<const float*>(contiguous_scores.const_data_ptr());
  problem.winner = data<int32_t>(winner);
  problem.inside = data<bool>(inside);
  problem.areas = data<unsigned long long>(areas);
  inputs.enqueue(run_compete);
  return {winner, inside, areas};
}

}  // namespace
}  // namespace cuda
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(MASK2FORMER_LIBRARY, MASK2FORMER_DEVICE_KEY, library) {
  library.impl("resize_masks", TORCH_BOX(&mask2former::cuda::resize_masks));
  library.impl("binarise_masks", TORCH_BOX(&mask2former::cuda::binarise_masks));
  library.impl("compete_masks", TORCH_BOX(&mask2former::cuda::compete_masks));
}
