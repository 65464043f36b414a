// The operator mask2former::winograd_conv2d on CPU: checks and threads, and products by PyTorch.
#include "winograd.h"
#include "cpu.h"
#include "schemas.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const WinogradKernels& winograd_kernels() {
  static const WinogradKernels& chosen =
      choose_kernels(winograd_kernels_baseline, winograd_kernels_avx2, winograd_kernels_avx512);
  return chosen;
}

// How many tiles pass at a time: enough for a fast product, and so few that the last cache holds them.
int64_t tiles_at_once() { return std::max<int64_t>(256, 64 * torch::stable::get_num_threads()); }

void check(const Tensor& pixels, const Tensor& weight, const Tensor& bias) {
  for (const Tensor* tensor : {&pixels, &weight, &bias}) {
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == ScalarType::Float,
                    "winograd_conv2d: all must be float32 on the CPU");
  }
  STD_TORCH_CHECK(pixels.dim() == 4 && weight.dim() == 3 && bias.dim() == 1 && weight.size(0) == kPlanes &&
                      weight.size(1) == pixels.size(3) && weight.size(2) == bias.size(0),
                  "winograd_conv2d: expected pixels (N, H, W, C), transformed weights (36, C, K) and bias (K)");
  STD_TORCH_CHECK(weight.size(1) % kChannelsTogether == 0 && weight.size(2) % kChannelsTogether == 0,
                  "winograd_conv2d: numbers of channels must be multiples of ", kChannelsTogether, ", not ",
                  weight.size(1), " and ", weight.size(2));
}

Tensor winograd_conv2d(Tensor pixels_, Tensor weight, Tensor bias_) {
  check(pixels_, weight, bias_);
  const Tensor pixels = torch::stable::contiguous(pixels_), bias = torch::stable::contiguous(bias_);
  const int64_t images = pixels.size(0), height = pixels.size(1), width = pixels.size(2);
  const int64_t channels_in = weight.size(1), channels_out = weight.size(2);
  const Tiling tiling = {height, width, (height + kTile - 1) / kTile, (width + kTile - 1) / kTile};
  const int64_t all_tiles = images * tiling.rows * tiling.columns;
  const int64_t at_once = std::min(all_tiles, tiles_at_once());

  Tensor output = torch::stable::new_empty(pixels, {images, height, width, channels_out});
  Tensor transformed = torch::stable::new_empty(pixels, {kPlanes, at_once, channels_in});
  const std::vector<float> zeros(channels_in);
  const float* const from = static_cast<const float*>(pixels.const_data_ptr());
  const float* const offsets = static_cast<const float*>(bias.const_data_ptr());
  float* const to = static_cast<float*>(output.mutable_data_ptr());
  float* const inputs = static_cast<float*>(transformed.mutable_data_ptr());
  for (int64_t first = 0; first < all_tiles; first += at_once) {
    const int64_t count = std::min(at_once, all_tiles - first);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      winograd_kernels().transform_input(tiling, from, zeros.data(), channels_in, first + begin, first + end,
                                         inputs + begin * channels_in, at_once * channels_in);
    });
    const Tensor products = torch::stable::matmul(torch::stable::narrow(transformed, 1, 0, count), weight);
    const float* const outputs = static_cast<const float*>(products.const_data_ptr());
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      winograd_kernels().transform_output(tiling, outputs + begin * channels_out, count * channels_out, offsets,
                                          channels_out, first + begin, first + end, to);
    });
  }
  return output;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_convolutions(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("winograd_conv2d", TORCH_BOX(&mask2former::winograd_conv2d));
}
