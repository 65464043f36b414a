// As much of CUDA as mask2former/ops/csrc/cuda needs, on the CPU: the same sources compile with a C++ compiler, and
// tests run them on machines without a GPU.
//
// Every thread of a block is a fiber. Those of a warp run one after the other from one shuffle to the next, where all 32
// must meet in the same one; warps run one after the other from one __syncthreads to the next, where all must meet; and
// so do blocks. Warps and blocks run in either order.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // there is one block at a time

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorIllegalInstruction, cudaErrorMisalignedAddress };
const char* cudaGetErrorString(cudaError_t error);

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

extern dim3 threadIdx, blockIdx, gridDim;

namespace emulation {

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

// Waits until every thread of the warp calls this with the same name, number and width, and returns the bits that the
// thread `source` of the warp came with.
uint64_t exchange(char name, int number, int width, unsigned mask, uint64_t bits, unsigned source);

// Waits until every thread of the block calls this.
void meet();

// Ends the kernel with an error where the address is not aligned as CUDA needs it.
void check_alignment(const void* address, size_t size);

template <typename T>
T exchange(char name, int number, int width, unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(name, number, width, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  return emulation::run(*config, [=] { kernel(arguments...); });
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width) {
  const unsigned source = threadIdx.x % 32 / width * width + lane % width;
  return emulation::exchange('=', lane, width, mask, value, source);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32) {
  // All distances here are smaller than the width, so the source is in the same group.
  return emulation::exchange('^', distance, width, mask, value, threadIdx.x % 32 ^ distance);
}

// A bit for each thread of the warp.
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned votes = unsigned{vote} << threadIdx.x % 32;
  for (int distance = 16; distance > 0; distance /= 2) {
    votes |= emulation::exchange('v', distance, 32, mask, votes, threadIdx.x % 32 ^ distance);
  }
  return votes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return emulation::exchange('-', distance, 32, mask, value, lane < distance ? lane : lane - distance);
}

inline void __syncthreads() { emulation::meet(); }

template <typename T>
T __ldg(const T* address) {
  emulation::check_alignment(address, sizeof(T));
  return *address;
}

inline float __uint_as_float(unsigned bits) {
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline unsigned __float_as_uint(float value) {
  unsigned result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

inline int __float2int_rd(float value) {
  if (!(value > -2147483648.0f))
    return value == value ? INT_MIN : 0;
  return value < 2147483648.0f ? static_cast<int>(std::floor(value)) : INT_MAX;
}

inline float __fdividef(float a, float b) { return a / b; }

inline void atomicAdd(float* address, float summand) { *address += summand; }
inline void atomicAdd(unsigned long long* address, unsigned long long summand) { *address += summand; }
inline void atomicAdd(float4* address, const float4& summand) {
  emulation::check_alignment(address, sizeof(float4));
  address->x += summand.x;
  address->y += summand.y;
  address->z += summand.z;
  address->w += summand.w;
}
inline unsigned atomicAdd(unsigned* address, unsigned summand) {
  const unsigned before = *address;
  *address += summand;
  return before;
}
inline void atomicMax(unsigned* address, unsigned value) { *address = *address < value ? value : *address; }

struct cudaFuncAttributes {};
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
