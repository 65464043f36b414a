// What the dispatcher sides of the CUDA operators share: devices, types, the current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "call.h"

// A test compiles this library for the CPU, as operators of another name.
#ifdef MASK2FORMER_EMULATION
#define MASK2FORMER_LIBRARY mask2former_emulation
#define MASK2FORMER_DEVICE_KEY CPU
#else
#define MASK2FORMER_LIBRARY mask2former
#define MASK2FORMER_DEVICE_KEY CUDA
#endif

namespace mask2former {
namespace cuda {

inline bool is_on_device(const torch::stable::Tensor& tensor, const torch::stable::Tensor& other) {
#ifdef MASK2FORMER_EMULATION
  return tensor.is_cpu() && other.is_cpu();
#else
  return tensor.is_cuda() && other.is_cuda() && tensor.get_device_index() == other.get_device_index();
#endif
}

// `name` is the operator's, for messages.
inline Type type_of(const torch::stable::Tensor& value, const char* name) {
  using torch::headeronly::ScalarType;
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": values must be float32, float16 or bfloat16 on CUDA");
  }
}

// Calls run(stream) for the value's device and its current stream.
template <typename Run>
void enqueue(const char* name, const torch::stable::Tensor& value, const Run& run) {
#ifdef MASK2FORMER_EMULATION
  const char* error = run(nullptr);
  (void)value;
#else
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  void* stream = nullptr;
  const AOTITorchError failure = aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream);
  STD_TORCH_CHECK(failure == AOTI_TORCH_SUCCESS, name, ": there is no current CUDA stream");
  const char* error = run(stream);
#endif
  STD_TORCH_CHECK(error == nullptr, name, ": CUDA says: ", error == nullptr ? "" : error);
}

}  // namespace cuda
}  // namespace mask2former
