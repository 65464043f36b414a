// The operator mask2former::linear on CPU: PyTorch's 1x1 convolution by oneDNN.
#include "linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <vector>

#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_type(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float, "linear: all must be float32 on the CPU");
}

Tensor linear(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  check_type(x);
  check_type(weight);
  if (bias)
    check_type(*bias);
  STD_TORCH_CHECK(x.dim() > 0 && weight.dim() == 2 && x.size(-1) == weight.size(1) && weight.numel() > 0 &&
                      (!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0))),
                  "linear: expected x (..., C), weights (K, C) and a bias (K)");
  const int64_t channels_in = weight.size(1), channels_out = weight.size(0);
  const Tensor rows = torch::stable::view(torch::stable::contiguous(x), {x.numel() / channels_in, 1, channels_in});
  const Tensor weights = torch::stable::view(torch::stable::contiguous(weight), {1, channels_out, channels_in});
  if (bias)  // which the convolution reads as if it were so, whatever its stride
    bias = torch::stable::contiguous(*bias);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < x.dim() - 1; ++i) shape.push_back(x.size(i));
  shape.push_back(channels_out);
  if (rows.size(0) == 0)  // which oneDNN refuses
    return torch::stable::new_empty(x, shape);
  return torch::stable::view(multiply_by_onednn(rows, weights, bias), shape);
}

}  // namespace

Tensor multiply_by_onednn(const Tensor& rows, const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t count = rows.size(0), groups = weight.size(0), channels_in = weight.size(2);
  const int64_t channels_out = weight.size(1);
  // Rows are pixels of a map (1, groups C, 1, N) in channels_last, and so is the result.
  const Tensor map = torch::stable::view(rows, {1, 1, count, groups * channels_in});
  const Tensor filters = torch::stable::view(weight, {groups * channels_out, channels_in, 1, 1});
  const auto moved = [](const Tensor& x, int64_t from, int64_t to) {  // a dimension past the one between
    return torch::stable::transpose(torch::stable::transpose(x, from, 2), 2, to);
  };
  const std::vector<int64_t> one = {1, 1}, none = {0, 0};
  std::array<StableIValue, 7> stack = {torch::stable::detail::from(moved(map, 3, 1)),
                                       torch::stable::detail::from(filters),
                                       torch::stable::detail::from(bias),
                                       torch::stable::detail::from(none),  // padding
                                       torch::stable::detail::from(one),   // stride
                                       torch::stable::detail::from(one),   // dilation
                                       torch::stable::detail::from(groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mkldnn_convolution", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
  return torch::stable::view(moved(result, 1, 3), {count, groups, channels_out});
}

}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_linear(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) { library.impl("linear", TORCH_BOX(&mask2former::linear)); }
