// The operators mask2former::winograd_conv2d and winograd_weight_gradient on CPU: checks and threads, and products by
// oneDNN or PyTorch's matmul.
#include "winograd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <vector>

#include "cpu.h"
#include "linear.h"
#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const WinogradKernels& winograd_kernels() {
  static const WinogradKernels& chosen = MASK2FORMER_CHOOSE(winograd_kernels);
  return chosen;
}

// How many tiles pass at a time: enough for a fast product, and so few that the last cache holds them.
int64_t tiles_at_once() { return std::max<int64_t>(256, 64 * torch::stable::get_num_threads()); }

void check_types(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->scalar_type() == ScalarType::Float,
                    "winograd_conv2d: all must be float32 on the CPU");
  }
}

void check_channels(int64_t in, int64_t out) {
  STD_TORCH_CHECK(in % kChannelsTogether == 0 && out % kChannelsTogether == 0,
                  "winograd_conv2d: numbers of channels must be multiples of ", kChannelsTogether, ", not ", in,
                  " and ", out);
}

void check(const Tensor& pixels, const Tensor& weight, const Tensor& bias) {
  check_types({&pixels, &weight, &bias});
  STD_TORCH_CHECK(pixels.dim() == 4 && weight.dim() == 3 && bias.dim() == 1 && weight.size(0) == kPlanes &&
                      weight.size(2) == pixels.size(3) && weight.size(1) == bias.size(0),
                  "winograd_conv2d: expected pixels (N, H, W, C), transformed weights (36, K, C) and bias (K)");
  check_channels(weight.size(2), weight.size(1));
}

void check_gradient(const Tensor& pixels, const Tensor& gradient) {
  check_types({&pixels, &gradient});
  bool fit = pixels.dim() == 4 && gradient.dim() == 4;
  for (int64_t i = 0; fit && i < 3; ++i) fit = pixels.size(i) == gradient.size(i);
  STD_TORCH_CHECK(fit, "winograd_weight_gradient: expected pixels (N, H, W, C) and the result's gradient (N, H, W, K)");
  check_channels(pixels.size(3), gradient.size(3));
}

Tiling make_tiling(const Tensor& pixels) {
  const int64_t height = pixels.size(1), width = pixels.size(2);
  return {height, width, (height + kTile - 1) / kTile, (width + kTile - 1) / kTile};
}

float* data(Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }
const float* data(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

// A dimension of planes and one of tiles, turned round.
Tensor turned(const Tensor& x) { return torch::stable::transpose(x, 0, 1); }

Tensor winograd_conv2d(Tensor pixels_, Tensor weight_, Tensor bias_, bool onednn) {
  check(pixels_, weight_, bias_);
  const Tensor pixels = torch::stable::contiguous(pixels_), bias = torch::stable::contiguous(bias_);
  const Tensor weight = torch::stable::contiguous(weight_);
  const int64_t images = pixels.size(0), channels_in = weight.size(2), channels_out = weight.size(1);
  const Tiling tiling = make_tiling(pixels);
  const int64_t all_tiles = images * tiling.rows * tiling.columns;
  const int64_t at_once = std::min(all_tiles, tiles_at_once());

  onednn = onednn && weight.numel() > 0;  // for it refuses to multiply nothing

  Tensor output = torch::stable::new_empty(pixels, {images, tiling.height, tiling.width, channels_out});
  Tensor memory = torch::stable::new_empty(pixels, {at_once * kPlanes * channels_in});
  const std::vector<float> zeros(channels_in);
  for (int64_t first = 0; first < all_tiles; first += at_once) {
    const int64_t count = std::min(at_once, all_tiles - first);
    const Tensor part = torch::stable::narrow(memory, 0, 0, count * kPlanes * channels_in);
    // (tiles, 36, C), in memory as the products want them: oneDNN as groups of channels, PyTorch as a batch of
    // matrices.
    Tensor tiles = onednn ? torch::stable::view(part, {count, kPlanes, channels_in})
                          : turned(torch::stable::view(part, {kPlanes, count, channels_in}));
    const Strides in = {tiles.stride(0), tiles.stride(1)};
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      winograd_kernels().transform_input(tiling, data(pixels), zeros.data(), channels_in, first + begin, first + end,
                                         data(tiles) + begin * in.tile, in);
    });
    const Tensor products = onednn
                                ? multiply_by_onednn(tiles, weight, std::nullopt)
                                : turned(torch::stable::matmul(turned(tiles), torch::stable::transpose(weight, 1, 2)));
    const Strides out = {products.stride(0), products.stride(1)};
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      winograd_kernels().transform_output(tiling, data(products) + begin * out.tile, out, data(bias), channels_out,
                                          first + begin, first + end, data(output));
    });
  }
  return output;
}

// The gradient of transformed weights (36, K, C), for pixels (N, H, W, C) and the result's gradient (N, H, W, K).
Tensor winograd_weight_gradient(Tensor pixels_, Tensor gradient_) {
  check_gradient(pixels_, gradient_);
  const Tensor pixels = torch::stable::contiguous(pixels_), gradient = torch::stable::contiguous(gradient_);
  const int64_t channels_in = pixels.size(3), channels_out = gradient.size(3);
  const Tiling tiling = make_tiling(pixels);
  const int64_t all_tiles = pixels.size(0) * tiling.rows * tiling.columns;
  const int64_t at_once = std::min(all_tiles, tiles_at_once());

  Tensor sums = torch::stable::new_zeros(pixels, {kPlanes, channels_out, channels_in});
  Tensor inputs = torch::stable::new_empty(pixels, {kPlanes, at_once, channels_in});
  Tensor outputs = torch::stable::new_empty(pixels, {kPlanes, at_once, channels_out});
  const std::vector<float> zeros(std::max(channels_in, channels_out));
  for (int64_t first = 0; first < all_tiles; first += at_once) {
    const int64_t count = std::min(at_once, all_tiles - first);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      winograd_kernels().transform_input(tiling, data(pixels), zeros.data(), channels_in, first + begin, first + end,
                                         data(inputs) + begin * channels_in, {channels_in, at_once * channels_in});
      winograd_kernels().transform_gradient(tiling, data(gradient), zeros.data(), channels_out, first + begin,
                                            first + end, data(outputs) + begin * channels_out,
                                            {channels_out, at_once * channels_out});
    });
    const Tensor rows = torch::stable::transpose(torch::stable::narrow(outputs, 1, 0, count), 1, 2);
    const Tensor products = torch::stable::matmul(rows, torch::stable::narrow(inputs, 1, 0, count));
    torch::stable::parallel_for(0, sums.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
      const float* const from = data(products);
      float* const to = data(sums);
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
    });
  }
  return sums;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_convolutions(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("winograd_conv2d", TORCH_BOX(&mask2former::winograd_conv2d));
  library.impl("winograd_weight_gradient", TORCH_BOX(&mask2former::winograd_weight_gradient));
}
