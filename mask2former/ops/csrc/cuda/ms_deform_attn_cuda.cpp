// The operators of ../ms_deform_attn.cpp on CUDA: checks, memory, the current stream.
//
// Only libtorch's stable ABI is used here too. The schemas are in the CPU's library, which is loaded first.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "binding.h"
#include "problem.h"

namespace mask2former {
namespace cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shapes = std::vector<int64_t>;  // height, width of each level

constexpr char kName[] = "ms_deform_attn";  // in messages

void check_tensors(const Tensor& value, const Tensor& offsets, const Tensor& attention) {
  STD_TORCH_CHECK(is_on_device(value, offsets) && is_on_device(value, attention),
                  "ms_deform_attn: all must be on one CUDA device");
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Float && attention.scalar_type() == ScalarType::Float,
                  "ms_deform_attn: locations or offsets, and weights or logits must be float32");
  STD_TORCH_CHECK(
      value.dim() == 4 && offsets.dim() == 6 && attention.dim() == 5,
      "ms_deform_attn: expected value (N, S, M, D), locations or offsets (N, Q, M, L, P, 2) and weights or logits "
      "(N, Q, M, L, P)");
  for (int64_t i = 0; i < 5; ++i) {
    STD_TORCH_CHECK(offsets.size(i) == attention.size(i),
                    "ms_deform_attn: locations and weights disagree in dimension ", i);
  }
  STD_TORCH_CHECK(offsets.size(5) == 2 && offsets.size(0) == value.size(0) && offsets.size(2) == value.size(2),
                  "ms_deform_attn: value and locations disagree");
  // The kernels count blocks and the numbers within an image in 32 bits, and pixels in 30.
  const double blocks = static_cast<double>(offsets.size(0)) * (offsets.size(1) + kQueriesPerBlock) * offsets.size(2);
  const double samples = static_cast<double>(offsets.size(3)) * offsets.size(4);
  const double channels = static_cast<double>(value.size(2)) * value.size(3);
  constexpr double kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(value.size(1) < (1 << 30) && channels <= kMost && samples <= kMost && blocks <= kMost,
                  "ms_deform_attn: too large for the CUDA kernels (2^30 pixels, 2^31 channels or (query, head)s)");
}

// Describes the levels to the kernels, and chooses the tiles of queries.
void set_levels(Problem& problem, const Shapes& shapes) {
  STD_TORCH_CHECK(static_cast<int64_t>(shapes.size()) == 2 * static_cast<int64_t>(problem.num_levels),
                  "ms_deform_attn: value, spatial_shapes (L pairs) and locations disagree");
  STD_TORCH_CHECK(problem.num_levels <= kMaxLevels, "ms_deform_attn: at most ", kMaxLevels, " levels on CUDA, not ",
                  problem.num_levels);
  int64_t pixels = 0, tiles = 0;
  for (int32_t i = 0; i < problem.num_levels; ++i) {
    const int64_t height = shapes[2 * i], width = shapes[2 * i + 1];
    // Positions are compared with sizes in float32, which counts to 2^24.
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24),
                    "ms_deform_attn: heights and widths must be from 1 to 2^24");
    problem.levels[i] = {static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(pixels),
                         static_cast<int32_t>(tiles)};
    tiles += (height + kTileHeight - 1) / kTileHeight * ((width + kTileWidth - 1) / kTileWidth);
    pixels += height * width;
    STD_TORCH_CHECK(pixels <= problem.num_pixels, "ms_deform_attn: spatial_shapes hold more pixels than value, which "
                                                  "has ", problem.num_pixels);
  }
  STD_TORCH_CHECK(pixels == problem.num_pixels, "ms_deform_attn: spatial_shapes hold ", pixels, " pixels and value ",
                  problem.num_pixels);
  const int64_t in_order = (problem.num_queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
  // Tiles of levels that are thin or tiny are mostly empty.
  problem.tiled = problem.num_queries == problem.num_pixels && tiles <= 2 * in_order;
  problem.num_tiles = static_cast<int32_t>(problem.tiled ? tiles : in_order);
}

void check_reference(const Tensor& reference, const Tensor& offsets) {
  const auto broadcasts = [](int64_t size, int64_t to) { return size == 1 || size == to; };
  STD_TORCH_CHECK(is_on_device(reference, offsets) && reference.scalar_type() == ScalarType::Float &&
                      reference.dim() == 4 && broadcasts(reference.size(0), offsets.size(0)) &&
                      reference.size(1) == offsets.size(1) && broadcasts(reference.size(2), offsets.size(3)) &&
                      reference.size(3) == 2,
                  "ms_deform_attn: reference_points must be float32 (1 or N, Q, 1 or L, 2) on the device of value");
}

// The inputs of a call: contiguous, checked, and described for the kernels. `reference` is null but for the fused
// operator.
struct Inputs {
  Tensor value, offsets, attention, reference;
  Type type;
  Problem problem = {};

  Inputs(const Tensor& value_, const Shapes& shapes, const Tensor* reference_, const Tensor& offsets_,
         const Tensor& attention_)
      : value(torch::stable::contiguous(value_)),
        offsets(torch::stable::contiguous(offsets_)),
        attention(torch::stable::contiguous(attention_)),
        reference(reference_ ? torch::stable::contiguous(*reference_) : offsets),
        type(type_of(value, kName)) {
    check_tensors(value, offsets, attention);
    problem.num_images = static_cast<int32_t>(value.size(0));
    problem.num_pixels = static_cast<int32_t>(value.size(1));
    problem.num_heads = static_cast<int32_t>(value.size(2));
    problem.head_dim = static_cast<int32_t>(value.size(3));
    problem.num_queries = static_cast<int32_t>(offsets.size(1));
    problem.num_levels = static_cast<int32_t>(offsets.size(3));
    problem.num_points = static_cast<int32_t>(offsets.size(4));
    problem.num_samples = problem.num_levels * problem.num_points;
    set_levels(problem, shapes);
    problem.value = value.const_data_ptr();
    problem.offsets = static_cast<const float*>(offsets.const_data_ptr());
    problem.attention = static_cast<const float*>(attention.const_data_ptr());
    if (reference_ == nullptr)
      return;
    check_reference(reference, offsets);
    problem.reference = static_cast<const float*>(reference.const_data_ptr());
    problem.reference_level_stride = reference.size(2) == 1 ? 0 : 2;
    problem.reference_query_stride = 2 * reference.size(2);
    problem.reference_image_stride = reference.size(0) == 1 ? 0 : problem.num_queries * problem.reference_query_stride;
  }

  // Whether there is anything for a kernel to do: no (query, head) has a gradient without channels, for example.
  bool is_empty() const { return attention.numel() == 0 || value.numel() == 0; }
};

Tensor zeros(const Tensor& like, std::optional<ScalarType> type = std::nullopt) {
  const auto sizes = like.sizes();
  return torch::stable::new_zeros(like, sizes, type);
}

Tensor run_forward(Inputs inputs) {
  Problem& problem = inputs.problem;
  const int64_t shape[] = {problem.num_images, problem.num_queries,
                           static_cast<int64_t>(problem.num_heads) * problem.head_dim};
  if (inputs.is_empty())
    return torch::stable::new_zeros(inputs.value, {shape, 3});
  Tensor output = torch::stable::new_empty(inputs.value, {shape, 3});
  problem.output = output.mutable_data_ptr();
  enqueue(kName, inputs.value, [&](void* stream) { return cuda::run_forward(problem, inputs.type, stream); });
  return output;
}

// The gradient of the value, by sums in float32 or (deterministic) in fixed point. Writes the others too.
Tensor run_kernels(Inputs& inputs, bool deterministic) {
  Problem& problem = inputs.problem;
  const ScalarType type = inputs.value.scalar_type();
  const auto run = [&](void* stream) { return cuda::run_backward(problem, inputs.type, stream); };
  if (!deterministic) {
    const Tensor sums = zeros(inputs.value, ScalarType::Float);
    problem.grad_value = static_cast<float*>(sums.mutable_data_ptr());
    enqueue(kName, inputs.value, run);
    return type == ScalarType::Float ? sums : torch::stable::to(sums, type);
  }
  const Tensor sums = zeros(inputs.value, ScalarType::Long);
  const int64_t three[] = {3};
  const Tensor magnitudes = torch::stable::new_zeros(inputs.value, {three, 1}, ScalarType::Int);
  Tensor result = torch::stable::empty_like(inputs.value);
  problem.fixed_grad_value = static_cast<int64_t*>(sums.mutable_data_ptr());
  problem.magnitudes = static_cast<uint32_t*>(magnitudes.mutable_data_ptr());
  problem.rounded_grad_value = result.mutable_data_ptr();
  enqueue(kName, inputs.value, run);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad_output, Inputs inputs, bool deterministic) {
  Problem& problem = inputs.problem;
  STD_TORCH_CHECK(is_on_device(grad_output, inputs.value) && grad_output.scalar_type() == inputs.value.scalar_type() &&
                      grad_output.dim() == 3 && grad_output.size(0) == problem.num_images &&
                      grad_output.size(1) == problem.num_queries &&
                      grad_output.size(2) == static_cast<int64_t>(problem.num_heads) * problem.head_dim,
                  "ms_deform_attn_backward: grad_output must be (N, Q, M * D) in the dtype of value");
  if (inputs.is_empty())
    return {zeros(inputs.value), zeros(inputs.offsets), zeros(inputs.attention)};
  const Tensor grad_output_contiguous = torch::stable::contiguous(grad_output);
  Tensor grad_offsets = torch::stable::empty_like(inputs.offsets);
  Tensor grad_attention = torch::stable::empty_like(inputs.attention);
  problem.grad_output = grad_output_contiguous.const_data_ptr();
  problem.grad_offsets = static_cast<float*>(grad_offsets.mutable_data_ptr());
  problem.grad_attention = static_cast<float*>(grad_attention.mutable_data_ptr());
  return {run_kernels(inputs, deterministic), grad_offsets, grad_attention};
}

Tensor forward(Tensor value, Shapes shapes, Tensor locations, Tensor weights) {
  return run_forward(Inputs(value, shapes, nullptr, locations, weights));
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations,
                                            Tensor weights, bool deterministic) {
  return run_backward(grad_output, Inputs(value, shapes, nullptr, locations, weights), deterministic);
}

Tensor fused_forward(Tensor value, Shapes shapes, Tensor reference, Tensor offsets, Tensor logits) {
  return run_forward(Inputs(value, shapes, &reference, offsets, logits));
}

std::tuple<Tensor, Tensor, Tensor> fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor reference,
                                                  Tensor offsets, Tensor logits, bool deterministic) {
  return run_backward(grad_output, Inputs(value, shapes, &reference, offsets, logits), deterministic);
}

}  // namespace
}  // namespace cuda
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(MASK2FORMER_LIBRARY, MASK2FORMER_DEVICE_KEY, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::cuda::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::cuda::backward));
  library.impl("fused_ms_deform_attn", TORCH_BOX(&mask2former::cuda::fused_forward));
  library.impl("fused_ms_deform_attn_backward", TORCH_BOX(&mask2former::cuda::fused_backward));
}
