// Lanes, which work on a (query, head) or read a row together, and their channels of a row.
//
// Lanes are neighbouring threads of a warp: a group of as many as the template says. Whole warps call these functions:
// no thread may have left, or be in another branch.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

namespace mask2former {
namespace cuda {

#define MASK2FORMER_DEVICE __device__ __forceinline__

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr unsigned kWarp = 0xffffffffu;

// ---- Lanes ----

// The value that lane `owner` of the group has.
template <int kLanes, typename T>
MASK2FORMER_DEVICE T broadcast(T value, int owner) {
  return kLanes == 1 ? value : __shfl_sync(kWarp, value, owner, kLanes);
}

// What all lanes of the group have, combined; every lane gets it, and the same bits of it.
template <int kLanes, typename T, typename Combine>
MASK2FORMER_DEVICE T reduce(T value, const Combine& combine) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kWarp, value, distance, kLanes));
  }
  return value;
}

template <int kLanes>
MASK2FORMER_DEVICE float sum(float value) {
  return reduce<kLanes>(value, [](float a, float b) { return a + b; });
}

template <int kLanes>
MASK2FORMER_DEVICE float largest(float value) {
  return reduce<kLanes>(value, [](float a, float b) { return fmaxf(a, b); });
}

// The sum of what the lanes of the warp up to this one have.
MASK2FORMER_DEVICE uint32_t sum_up_to(uint32_t value, unsigned lane_of_warp) {
#pragma unroll
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    const uint32_t lower = __shfl_up_sync(kWarp, value, distance);
    value += lane_of_warp >= distance ? lower : 0;
  }
  return value;
}

// Lane i gets the sum of all lanes' values[i]; `values` is overwritten. This takes kLanes - 1 exchanges, not the
// kLanes * log2(kLanes) of as many sums: with every exchange, each half of the lanes gives away half of its work.
template <int kLanes>
MASK2FORMER_DEVICE float sum_to_owners(float (&values)[kLanes], int lane) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = upper ? values[i] : values[i + half];
      const float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kWarp, given, half, kLanes);
    }
  }
  return values[0];
}

// ---- Rows ----

MASK2FORMER_DEVICE void widen(uint4 bits, float (&channels)[4], float) {
  channels[0] = __uint_as_float(bits.x);
  channels[1] = __uint_as_float(bits.y);
  channels[2] = __uint_as_float(bits.z);
  channels[3] = __uint_as_float(bits.w);
}

// A bfloat16 is the upper half of a float.
MASK2FORMER_DEVICE void widen(uint4 bits, float (&channels)[8], BFloat16) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    channels[2 * i] = __uint_as_float(words[i] << 16);
    channels[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

MASK2FORMER_DEVICE void widen(uint4 bits, float (&channels)[8], Half) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    channels[2 * i] = static_cast<float>(Half(static_cast<unsigned short>(words[i] & 0xffffu), Half::from_bits()));
    channels[2 * i + 1] = static_cast<float>(Half(static_cast<unsigned short>(words[i] >> 16), Half::from_bits()));
  }
}

// A lane's channels of a row: 16 bytes, where those of all lanes follow each other.
template <typename Scalar>
struct Channels {
  static constexpr int kWidth = 16 / sizeof(Scalar);
  float channel[kWidth];

  // From the lane's first channel on, which is `bytes` after `base`; a constant is part of the instruction.
  MASK2FORMER_DEVICE void load(const void* base, uint32_t bytes) {
    widen(__ldg(reinterpret_cast<const uint4*>(static_cast<const char*>(base) + bytes)), channel, Scalar());
  }

  MASK2FORMER_DEVICE void add(float weight, const Channels& other) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) channel[i] += weight * other.channel[i];
  }

  MASK2FORMER_DEVICE float dot(const Channels& other) const {
    float result = 0.0f;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result += channel[i] * other.channel[i];
    return result;
  }

  MASK2FORMER_DEVICE void store(void* base, uint32_t bytes) const {
    alignas(16) Scalar narrow[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) narrow[i] = static_cast<Scalar>(channel[i]);
    uint4 bits;
    memcpy(&bits, narrow, sizeof(bits));
    *reinterpret_cast<uint4*>(static_cast<char*>(base) + bytes) = bits;
  }
};

}  // namespace cuda
}  // namespace mask2former
