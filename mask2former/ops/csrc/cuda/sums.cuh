// How the summands of the value's gradient are added up: many (query, head)s add to the same pixel.
#pragma once

#include "lanes.cuh"
#include "problem.h"

// Whether four floats can be added to memory at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MASK2FORMER_VECTOR_ATOMICS 1
#elif !defined(MASK2FORMER_VECTOR_ATOMICS)
#define MASK2FORMER_VECTOR_ATOMICS 0
#endif

namespace mask2former {
namespace cuda {

// In float32, in the order in which they come: fast, but not the same bits every time.
struct FloatSums {
  float* sums;

  MASK2FORMER_DEVICE explicit FloatSums(const Problem& problem) : sums(problem.grad_value) {}

  MASK2FORMER_DEVICE void add(int64_t index, float summand) const { atomicAdd(sums + index, summand); }

  // What one thread adds up of four neighbours, before it adds that to memory.
  struct Subtotal {
    float parts[4] = {};

    MASK2FORMER_DEVICE void add(const FloatSums&, float weight, const float4& grad) {
      parts[0] += weight * grad.x;
      parts[1] += weight * grad.y;
      parts[2] += weight * grad.z;
      parts[3] += weight * grad.w;
    }

    // The first of the neighbours is aligned.
    MASK2FORMER_DEVICE void store(const FloatSums& to, uint32_t index) const {
#if MASK2FORMER_VECTOR_ATOMICS
      atomicAdd(reinterpret_cast<float4*>(to.sums + index), make_float4(parts[0], parts[1], parts[2], parts[3]));
#else
#pragma unroll
      for (int i = 0; i < 4; ++i) to.add(index + i, parts[i]);
#endif
    }
  };
};

// In 64-bit fixed point, for deterministic results: sums of integers do not depend on their order.
struct FixedSums {
  unsigned long long* sums;
  uint32_t* magnitudes;
  float scale;  // of the fixed-point numbers

  MASK2FORMER_DEVICE explicit FixedSums(const Problem& problem)
      : sums(reinterpret_cast<unsigned long long*>(problem.fixed_grad_value)),
        magnitudes(problem.magnitudes),
        scale(power_of_2(scale_exponent(problem))) {}

  MASK2FORMER_DEVICE void add(int64_t index, float summand) const { atomicAdd(sums + index, to_fixed(summand)); }

  struct Subtotal {
    unsigned long long parts[4] = {};

    MASK2FORMER_DEVICE void add(const FixedSums& to, float weight, const float4& grad) {
      parts[0] += to.to_fixed(weight * grad.x);
      parts[1] += to.to_fixed(weight * grad.y);
      parts[2] += to.to_fixed(weight * grad.z);
      parts[3] += to.to_fixed(weight * grad.w);
    }

    MASK2FORMER_DEVICE void store(const FixedSums& to, uint32_t index) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) atomicAdd(to.sums + index + i, parts[i]);
    }
  };

  // What a sum is in fixed point, as a float. NaN everywhere if there was an infinity or a NaN anywhere.
  static MASK2FORMER_DEVICE float to_float(const Problem& problem, int64_t sum) {
    const uint32_t infinity = 0x7f800000u;
    if (problem.magnitudes[0] >= infinity || problem.magnitudes[1] >= infinity || problem.magnitudes[2] != 0)
      return __uint_as_float(0x7fc00000u);
    return static_cast<float>(sum) * power_of_2(-scale_exponent(problem));
  }

 private:
  MASK2FORMER_DEVICE unsigned long long to_fixed(float summand) const {
    // The power of two changes no bits of the summand, and rounding is to an absolute unit, far below float32's.
    if (fabsf(summand) <= 3.402823466e38f)
      return static_cast<unsigned long long>(llrintf(summand * scale));
    atomicMax(magnitudes + 2, 1u);
    return 0;
  }

  // The largest power of two with which no sum can overflow: it has at most one summand for each sample of each query,
  // none larger than the largest gradient times the largest weight. The fused operator's weights add up to 1.
  static MASK2FORMER_DEVICE int scale_exponent(const Problem& problem) {
    int64_t count = problem.num_queries;
    int exponent = 62 - exponent_above(problem.magnitudes[0]);
    if (problem.reference == nullptr) {
      count *= problem.num_samples;
      exponent -= exponent_above(problem.magnitudes[1]);
    }
    for (; count > 1; count = (count + 1) / 2) --exponent;
    return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
  }

  // e with |x| < 2^e, from x's bits without the sign.
  static MASK2FORMER_DEVICE int exponent_above(uint32_t bits) { return static_cast<int>(bits >> 23) - 126; }

  static MASK2FORMER_DEVICE float power_of_2(int exponent) {
    return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
  }
};

// The largest |x| of an array: raises *result, which are its bits. An infinity is larger than all numbers, and a NaN
// larger than that.
template <typename Scalar>
__global__ void __launch_bounds__(kThreads) magnitude_kernel(const Scalar* values, int64_t count, uint32_t* result) {
  uint32_t bits = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const uint32_t next = __float_as_uint(fabsf(static_cast<float>(values[i])));
    bits = bits < next ? next : bits;
  }
  bits = reduce<32>(bits, [](uint32_t a, uint32_t b) { return a < b ? b : a; });
  if (threadIdx.x % 32 == 0)
    atomicMax(result, bits);
}

// From the sums in fixed point to the gradient of the value.
template <typename Scalar>
__global__ void __launch_bounds__(kThreads) round_kernel(const __grid_constant__ Problem problem, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) {
    static_cast<Scalar*>(problem.rounded_grad_value)[i] =
        static_cast<Scalar>(FixedSums::to_float(problem, problem.fixed_grad_value[i]));
  }
}

}  // namespace cuda
}  // namespace mask2former
