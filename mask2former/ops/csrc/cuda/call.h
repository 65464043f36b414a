// What the two sides of every CUDA operator, dispatcher and kernels, agree on.
#pragma once

#include <cstdint>

namespace mask2former {
namespace cuda {

constexpr int kThreads = 256;  // of a block

// Of a tensor's elements; "Scalar" in the kernels.
enum class Type { kFloat, kHalf, kBFloat16 };

}  // namespace cuda
}  // namespace mask2former
