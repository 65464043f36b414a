// Products by oneDNN.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace mask2former {

// Rows (N, groups, C) times the transposes of weights (groups, K, C), plus a bias (groups K): (N, groups, K), all
// float32 and contiguous. PyTorch asks oneDNN for such products as convolutions of one pixel alone, and other libraries
// for matrix products, of which MKL knows AVX-512 on Intel's processors only.
torch::stable::Tensor multiply_by_onednn(const torch::stable::Tensor& rows, const torch::stable::Tensor& weight,
                                         const std::optional<torch::stable::Tensor>& bias);

}  // namespace mask2former
