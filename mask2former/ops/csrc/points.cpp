// The operators at points of maps of mask2former on CPU: checks and threads.
#include "points.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "cpu.h"
#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Places are found in float32 and clamped to a map's size: the largest of these numbers that is an int32, too.
constexpr int64_t kMostPixels = INT32_MAX - 127;

const PointKernels& point_kernels() {
  static const PointKernels& chosen = MASK2FORMER_CHOOSE(point_kernels);
  return chosen;
}

void check_points(const Tensor& points, int64_t dims) {
  STD_TORCH_CHECK(points.is_cpu() && points.scalar_type() == ScalarType::Float && points.dim() == dims &&
                      points.size(dims - 1) == 2,
                  "points: expected float32 (x, y) in ", dims, " dimensions on the CPU");
}

MapSize check_size(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= kMostPixels / width, "points: a map of ", height, " x ", width,
                  " pixels cannot be sampled");
  return {height, width};
}

Tensor sample_pixels(Tensor pixels_, Tensor points_) {
  const ScalarType type = pixels_.scalar_type();
  STD_TORCH_CHECK(pixels_.is_cpu() && (type == ScalarType::Float || type == ScalarType::BFloat16) &&
                      pixels_.dim() == 3 && pixels_.size(2) % kPixelChannels == 0,
                  "points: expected pixels (H, W, C) of float32 or bfloat16 on the CPU, C a multiple of ",
                  kPixelChannels);
  check_points(points_, 2);
  const Tensor pixels = torch::stable::contiguous(pixels_), points = torch::stable::contiguous(points_);
  const MapSize size = check_size(pixels.size(0), pixels.size(1));
  const int64_t count = points.size(0), channels = pixels.size(2);
  Tensor output = torch::stable::new_empty(pixels, {count, channels});
  const bool is_bfloat16 = type == ScalarType::BFloat16;
  const auto kernel = point_kernels().sample_pixels[is_bfloat16];
  const void* const from = pixels.const_data_ptr();
  const float* const point = static_cast<const float*>(points.const_data_ptr());
  char* const to = static_cast<char*>(output.mutable_data_ptr());
  const int64_t row = channels * (is_bfloat16 ? 2 : 4);
  torch::stable::parallel_for(0, count, kPointsTogether, [&](int64_t begin, int64_t end) {
    kernel(from, size, channels, point + 2 * begin, end - begin, to + begin * row);
  });
  return output;
}

Tensor sample_masks(Tensor maps_, Tensor indices_, Tensor ids_, Tensor points_) {
  const ScalarType type = maps_.scalar_type();
  STD_TORCH_CHECK(maps_.is_cpu() && (type == ScalarType::Byte || type == ScalarType::Int) && maps_.dim() == 3,
                  "points: expected maps (T, H, W) of uint8 or int32 on the CPU");
  STD_TORCH_CHECK(indices_.is_cpu() && indices_.scalar_type() == ScalarType::Long && indices_.dim() == 1 &&
                      ids_.is_cpu() && ids_.scalar_type() == ScalarType::Int && ids_.dim() == 1 &&
                      ids_.size(0) == indices_.size(0),
                  "points: expected for each mask the number of its map, int64 (R,), and its id, int32 (R,)");
  check_points(points_, 4);
  const int64_t rows = indices_.size(0), layers = points_.size(0), groups = points_.size(1), count = points_.size(2);
  STD_TORCH_CHECK(groups == 1 || groups == rows, "points: expected points (L, 1 or ", rows, ", P, 2), not ", groups,
                  " rows");
  const Tensor maps = torch::stable::contiguous(maps_), indices = torch::stable::contiguous(indices_);
  const Tensor ids = torch::stable::contiguous(ids_), points = torch::stable::contiguous(points_);
  Tensor output = torch::stable::new_empty(points, {layers, rows, count});
  if (output.numel() == 0)
    return output;
  const MapSize size = check_size(maps.size(1), maps.size(2));
  const int64_t* const index = static_cast<const int64_t*>(indices.const_data_ptr());
  STD_TORCH_CHECK(std::all_of(index, index + rows, [&](int64_t i) { return 0 <= i && i < maps.size(0); }),
                  "points: a mask's map is not among ", maps.size(0));
  const int32_t* const id = static_cast<const int32_t*>(ids.const_data_ptr());
  const auto kernel = point_kernels().sample_masks[type == ScalarType::Int];
  const void* const from = maps.const_data_ptr();
  const float* const point = static_cast<const float*>(points.const_data_ptr());
  float* const to = static_cast<float*>(output.mutable_data_ptr());
  const int64_t rows_together = rows / groups, blocks = (count + kPointsTogether - 1) / kPointsTogether;
  torch::stable::parallel_for(0, layers * groups * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t points_row = i / blocks, first = i % blocks * kPointsTogether;
      const int64_t row = points_row % groups * rows_together, output_row = points_row * rows_together;
      kernel(from, size, {rows_together, index + row, id + row}, point + 2 * (points_row * count + first),
             std::min(kPointsTogether, count - first), to + output_row * count + first, count);
    }
  });
  return output;
}

Tensor most_uncertain(Tensor logits_, Tensor candidates_, int64_t chosen) {
  STD_TORCH_CHECK(logits_.is_cpu() && logits_.scalar_type() == ScalarType::Float && logits_.dim() == 3,
                  "points: expected logits (R, H, W) of float32 on the CPU");
  check_points(candidates_, 3);
  const int64_t rows = logits_.size(0), count = candidates_.size(1);
  STD_TORCH_CHECK(candidates_.size(0) == rows && 0 <= chosen && chosen <= count, "points: expected candidates (", rows,
                  ", C, 2), at least as many as the ", chosen, " to be chosen");
  const Tensor logits = torch::stable::contiguous(logits_), candidates = torch::stable::contiguous(candidates_);
  Tensor output = torch::stable::new_empty(candidates, {rows, chosen, 2});
  if (output.numel() == 0)
    return output;
  const MapSize size = check_size(logits.size(1), logits.size(2));
  const float* const from = static_cast<const float*>(logits.const_data_ptr());
  const float* const point = static_cast<const float*>(candidates.const_data_ptr());
  float* const to = static_cast<float*>(output.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    const auto certainty = allocate<float>(count);
    for (int64_t row = begin; row < end; ++row) {
      point_kernels().most_uncertain(from + row * size.height * size.width, size, point + 2 * row * count, count,
                                     chosen, certainty.get(), to + 2 * row * chosen);
    }
  });
  return output;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_points(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("sample_pixels", TORCH_BOX(&mask2former::sample_pixels));
  library.impl("sample_masks", TORCH_BOX(&mask2former::sample_masks));
  library.impl("most_uncertain", TORCH_BOX(&mask2former::most_uncertain));
}
