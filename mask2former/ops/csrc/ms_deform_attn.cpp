// The operators mask2former::ms_deform_attn and its backward on CPU: checks and threads.
//
// Only libtorch's stable ABI is used, so one library serves every torch from 2.11 on and every Python.
#include "ms_deform_attn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = MASK2FORMER_CHOOSE(kernels);
  return chosen;
}

// Memory of one thread for `kernels`.
class ThreadScratch {
 public:
  ThreadScratch(const Problem& problem, bool backward)
      : samples_(allocate<float>(problem.num_samples * kVectorsPerSample * kMaxLanes)),
        padded_(allocate<float>(kMaxLanes * (2 * problem.num_samples + kMaxLanes))),
        products_(allocate<float>(backward ? kMaxLanes * (4 * problem.num_samples + kMaxLanes) : 0)),
        row_(allocate<float>(problem.head_dim)),
        head_(allocate<float>(problem.num_pixels * problem.head_dim * (backward ? 2 : 1))) {}
  Scratch get() const { return {samples_.get(), padded_.get(), products_.get(), row_.get(), head_.get()}; }

 private:
  std::unique_ptr<float[], Free> samples_, padded_, products_, row_, head_;
};

using Shapes = std::vector<int64_t>;  // height, width of each level

std::vector<Level> make_levels(const Shapes& shapes) {
  std::vector<Level> levels;
  int64_t first_pixel = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    levels.push_back(
        {static_cast<float>(shapes[i]), static_cast<float>(shapes[i + 1]), static_cast<int32_t>(first_pixel)});
    first_pixel += shapes[i] * shapes[i + 1];
  }
  return levels;
}

void check(const Tensor& value, const Shapes& shapes, const Tensor& offsets, const Tensor& attention) {
  STD_TORCH_CHECK(value.is_cpu() && offsets.is_cpu() && attention.is_cpu(), "ms_deform_attn: all must be on the CPU");
  const bool supported = value.scalar_type() == ScalarType::Float || value.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(supported, "ms_deform_attn: value must be float32 or bfloat16");
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
  const int64_t num_levels = offsets.size(3);
  STD_TORCH_CHECK(offsets.size(5) == 2 && offsets.size(0) == value.size(0) && offsets.size(2) == value.size(2) &&
                      static_cast<int64_t>(shapes.size()) == 2 * num_levels,
                  "ms_deform_attn: value, spatial_shapes (L pairs) and locations disagree");
  int64_t pixels = 0;
  for (int64_t level = 0; level < num_levels; ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    // Positions are compared with sizes in float32, which counts to 2^24.
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24),
                    "ms_deform_attn: heights and widths must be from 1 to 2^24");
    pixels += height * width;
    // Asked of each sum, for that of very many levels could overflow.
    STD_TORCH_CHECK(pixels <= std::numeric_limits<int32_t>::max(), "ms_deform_attn: spatial_shapes hold ", pixels,
                    " pixels or more, which are too many");
  }
  STD_TORCH_CHECK(pixels == value.size(1), "ms_deform_attn: spatial_shapes hold ", pixels, " pixels and value ",
                  value.size(1));
}

void check_reference(const Tensor& reference, const Tensor& offsets) {
  const auto broadcasts = [](int64_t size, int64_t to) { return size == 1 || size == to; };
  STD_TORCH_CHECK(reference.is_cpu() && reference.scalar_type() == ScalarType::Float && reference.dim() == 4 &&
                      broadcasts(reference.size(0), offsets.size(0)) && reference.size(1) == offsets.size(1) &&
                      broadcasts(reference.size(2), offsets.size(3)) && reference.size(3) == 2,
                  "ms_deform_attn: reference_points must be float32 (1 or N, Q, 1 or L, 2)");
}

// The inputs of a call: contiguous, checked, and described for the kernels. `reference` is null but for the fused
// operator.
struct Inputs {
  Tensor value, offsets, attention, reference;
  std::vector<Level> levels;
  Problem problem = {};

  Inputs(const Tensor& value_, const Shapes& shapes, const Tensor* reference_, const Tensor& offsets_,
         const Tensor& attention_)
      : value(torch::stable::contiguous(value_)),
        offsets(torch::stable::contiguous(offsets_)),
        attention(torch::stable::contiguous(attention_)),
        reference(reference_ ? torch::stable::contiguous(*reference_) : offsets) {
    check(value, shapes, offsets, attention);
    levels = make_levels(shapes);
    problem.num_images = value.size(0);
    problem.num_pixels = value.size(1);
    problem.num_heads = value.size(2);
    problem.head_dim = value.size(3);
    problem.num_queries = offsets.size(1);
    problem.num_levels = offsets.size(3);
    problem.num_points = offsets.size(4);
    problem.num_samples = problem.num_levels * problem.num_points;
    problem.levels = levels.data();
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

  bool is_bfloat16() const { return value.scalar_type() == ScalarType::BFloat16; }
};

Tensor run_forward(Inputs inputs) {
  Problem& problem = inputs.problem;
  const int64_t shape[] = {problem.num_images, problem.num_queries, problem.num_heads * problem.head_dim};
  Tensor output = torch::stable::new_empty(inputs.value, {shape, 3});
  problem.output = output.mutable_data_ptr();
  const int64_t all_queries = problem.num_images * problem.num_heads * problem.num_queries;
  torch::stable::parallel_for(0, all_queries, 64, [&](int64_t begin, int64_t end) {
    const ThreadScratch scratch(problem, false);
    kernels().forward[inputs.is_bfloat16()](problem, begin, end, scratch.get());
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad_output, Inputs inputs) {
  Problem& problem = inputs.problem;
  STD_TORCH_CHECK(grad_output.is_cpu() && grad_output.scalar_type() == inputs.value.scalar_type() &&
                      grad_output.dim() == 3 && grad_output.size(0) == problem.num_images &&
                      grad_output.size(1) == problem.num_queries &&
                      grad_output.size(2) == problem.num_heads * problem.head_dim,
                  "ms_deform_attn_backward: grad_output must be (N, Q, M * D) in the dtype of value");
  const Tensor grad_output_contiguous = torch::stable::contiguous(grad_output);
  Tensor grad_value = torch::stable::empty_like(inputs.value);
  Tensor grad_offsets = torch::stable::empty_like(inputs.offsets);
  Tensor grad_attention = torch::stable::empty_like(inputs.attention);
  problem.grad_output = grad_output_contiguous.const_data_ptr();
  problem.grad_value = grad_value.mutable_data_ptr();
  problem.grad_offsets = static_cast<float*>(grad_offsets.mutable_data_ptr());
  problem.grad_attention = static_cast<float*>(grad_attention.mutable_data_ptr());
  torch::stable::parallel_for(0, problem.num_images * problem.num_heads, 1, [&](int64_t begin, int64_t end) {
    const ThreadScratch scratch(problem, true);
    kernels().backward[inputs.is_bfloat16()](problem, begin, end, scratch.get());
  });
  return {grad_value, grad_offsets, grad_attention};
}

Tensor forward(Tensor value, Shapes shapes, Tensor locations, Tensor weights) {
  return run_forward(Inputs(value, shapes, nullptr, locations, weights));
}

// Here sums have one order only, so the operators' flag `deterministic` changes nothing.
std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor locations,
                                            Tensor weights, bool) {
  return run_backward(grad_output, Inputs(value, shapes, nullptr, locations, weights));
}

Tensor fused_forward(Tensor value, Shapes shapes, Tensor reference, Tensor offsets, Tensor logits) {
  return run_forward(Inputs(value, shapes, &reference, offsets, logits));
}

std::tuple<Tensor, Tensor, Tensor> fused_backward(Tensor grad_output, Tensor value, Shapes shapes, Tensor reference,
                                                  Tensor offsets, Tensor logits, bool) {
  return run_backward(grad_output, Inputs(value, shapes, &reference, offsets, logits));
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY(mask2former, library) { mask2former::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&mask2former::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::backward));
  library.impl("fused_ms_deform_attn", TORCH_BOX(&mask2former::fused_forward));
  library.impl("fused_ms_deform_attn_backward", TORCH_BOX(&mask2former::fused_backward));
}
