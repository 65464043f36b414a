// What the operators on the CPU share: choice of instructions, and memory for vectors.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

namespace mask2former {

#if defined(__x86_64__)
// The best of three sets of kernels that the machine can run, and that PyTorch's own switch ATEN_CPU_CAPABILITY allows.
template <typename Kernels>
const Kernels& choose_kernels(const Kernels& baseline, const Kernels& with_avx2, const Kernels& with_avx512) {
  __builtin_cpu_init();
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string allowed = capability == nullptr ? "" : capability;
  const bool avx2 = allowed != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && allowed != "avx2" && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512)
    return with_avx512;
  if (avx2)
    return with_avx2;
  return baseline;
}
#define MASK2FORMER_CHOOSE(name) choose_kernels(name##_baseline, name##_avx2, name##_avx512)
#else
#define MASK2FORMER_CHOOSE(name) name##_baseline  // the others do not exist
#endif

// Frees what allocate() allocates.
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Uninitialised memory for a number of elements, aligned for vectors.
template <typename T>
std::unique_ptr<T[], Free> allocate(int64_t count) {
  constexpr int64_t kCacheLine = 64, kSize = sizeof(T);
  void* memory = nullptr;
  if (0 <= count && count < (INT64_MAX - kCacheLine) / kSize)  // else it would be less memory than was asked for
    memory = std::aligned_alloc(kCacheLine, (count * kSize / kCacheLine + 1) * kCacheLine);
  STD_TORCH_CHECK(memory != nullptr, "mask2former: no memory for ", count, " numbers of ", kSize, " bytes");
  return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

}  // namespace mask2former
