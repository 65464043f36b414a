// The operators mask2former::ms_deform_attn and its backward on CPU: schemas, checks, threads, choice of instructions.
//
// Only libtorch's stable ABI is used, so one library serves every torch from 2.11 on and every Python.
#include "ms_deform_attn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <tuple>
#include <vector>

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& choose_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kernels_avx512;
  }
  if (avx2) return kernels_avx2;
#endif
  return kernels_baseline;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

std::vector<GroupLevels> make_levels(const std::vector<int64_t>& spatial_shapes, int64_t num_points) {
  const int64_t num_samples = static_cast<int64_t>(spatial_shapes.size()) / 2 * num_points;
  std::vector<GroupLevels> groups((num_samples + kGroup - 1) / kGroup);
  for (GroupLevels& group : groups) {
    for (int i = 0; i < kGroup; ++i) {
      group.width[i] = group.height[i] = 1.0f;
      group.start[i] = 0;
    }
  }
  int64_t start = 0;
  for (int64_t sample = 0; sample < num_samples; ++sample) {
    const int64_t height = spatial_shapes[sample / num_points * 2], width = spatial_shapes[sample / num_points * 2 + 1];
    GroupLevels& group = groups[sample / kGroup];
    group.height[sample % kGroup] = static_cast<float>(height);
    group.width[sample % kGroup] = static_cast<float>(width);
    group.start[sample % kGroup] = static_cast<int32_t>(start);
    if (sample % num_points == num_points - 1) start += height * width;
  }
  return groups;
}

void check(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations, const Tensor& attention) {
  STD_TORCH_CHECK(value.is_cpu() && locations.is_cpu() && attention.is_cpu(), "ms_deform_attn: all tensors must be on the CPU");
  const bool supported = value.scalar_type() == ScalarType::Float || value.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(supported, "ms_deform_attn: value must be float32 or bfloat16");
  STD_TORCH_CHECK(locations.scalar_type() == ScalarType::Float && attention.scalar_type() == ScalarType::Float,
      "ms_deform_attn: sampling_locations and attention_weights must be float32");
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && attention.dim() == 5,
      "ms_deform_attn: expected value (N, S, M, D), sampling_locations (N, Q, M, L, P, 2), attention_weights (N, Q, M, L, P)");
  for (int64_t i = 0; i < 5; ++i) {
    STD_TORCH_CHECK(locations.size(i) == attention.size(i),
        "ms_deform_attn: sampling_locations and attention_weights disagree in dimension ", i);
  }
  const int64_t num_levels = locations.size(3);
  STD_TORCH_CHECK(locations.size(5) == 2 && locations.size(0) == value.size(0) && locations.size(2) == value.size(2) &&
          static_cast<int64_t>(spatial_shapes.size()) == 2 * num_levels,
      "ms_deform_attn: value, spatial_shapes (L pairs) and sampling_locations disagree");
  int64_t pixels = 0;
  for (int64_t level = 0; level < num_levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    // Positions are compared with sizes in float32, which counts to 2^24.
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24),
        "ms_deform_attn: heights and widths must be from 1 to 2^24");
    pixels += height * width;
  }
  STD_TORCH_CHECK(pixels == value.size(1) && pixels <= std::numeric_limits<int32_t>::max(),
      "ms_deform_attn: spatial_shapes hold ", pixels, " pixels and value ", value.size(1));
}

Problem make_problem(const Tensor& value, const Tensor& locations, const Tensor& attention, const std::vector<GroupLevels>& levels) {
  Problem problem = {};
  problem.num_images = value.size(0);
  problem.num_pixels = value.size(1);
  problem.num_heads = value.size(2);
  problem.head_dim = value.size(3);
  problem.num_queries = locations.size(1);
  problem.num_samples = locations.size(3) * locations.size(4);
  problem.levels = levels.data();
  problem.value = value.const_data_ptr();
  problem.locations = static_cast<const float*>(locations.const_data_ptr());
  problem.attention = static_cast<const float*>(attention.const_data_ptr());
  return problem;
}

Tensor forward(Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor attention) {
  check(value, spatial_shapes, locations, attention);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  attention = torch::stable::contiguous(attention);
  const std::vector<GroupLevels> levels = make_levels(spatial_shapes, locations.size(4));
  Problem problem = make_problem(value, locations, attention, levels);
  const int64_t output_shape[] = {problem.num_images, problem.num_queries, problem.num_heads * problem.head_dim};
  Tensor output = torch::stable::new_empty(value, {output_shape, 3});
  problem.output = output.mutable_data_ptr();
  const bool bfloat16 = value.scalar_type() == ScalarType::BFloat16;
  torch::stable::parallel_for(0, problem.num_images * problem.num_queries, 32, [&](int64_t begin, int64_t end) {
    std::vector<Group> scratch(levels.size());
    kernels().forward[bfloat16](problem, begin, end, scratch.data());
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor attention) {
  check(value, spatial_shapes, locations, attention);
  STD_TORCH_CHECK(grad_output.is_cpu() && grad_output.scalar_type() == value.scalar_type() && grad_output.dim() == 3 &&
          grad_output.size(0) == value.size(0) && grad_output.size(1) == locations.size(1) &&
          grad_output.size(2) == value.size(2) * value.size(3),
      "ms_deform_attn_backward: grad_output must be (N, Q, M * D) in the dtype of value");
  grad_output = torch::stable::contiguous(grad_output);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  attention = torch::stable::contiguous(attention);
  const std::vector<GroupLevels> levels = make_levels(spatial_shapes, locations.size(4));
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_attention = torch::stable::empty_like(attention);
  Problem problem = make_problem(value, locations, attention, levels);
  problem.grad_output = grad_output.const_data_ptr();
  problem.grad_value = grad_value.mutable_data_ptr();
  problem.grad_locations = static_cast<float*>(grad_locations.mutable_data_ptr());
  problem.grad_attention = static_cast<float*>(grad_attention.mutable_data_ptr());
  const bool bfloat16 = value.scalar_type() == ScalarType::BFloat16;
  torch::stable::parallel_for(0, problem.num_images * problem.num_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(problem.num_pixels * problem.head_dim);
    kernels().backward[bfloat16](problem, begin, end, scratch.data());
  });
  return {grad_value, grad_locations, grad_attention};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY(mask2former, library) {
  library.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::backward));
}
