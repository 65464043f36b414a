// Vectors of floats of any width (GCC's and Clang's vector extensions), and rows of channels as such vectors.
//
// Only for *_kernels.cpp, which are compiled once per instruction set: everything here has internal linkage, so that
// the linker cannot take one instruction set's copy of a function for all of them.
#pragma once

#include <cstdint>
#include <utility>

namespace mask2former {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#define MASK2FORMER_INLINE inline __attribute__((always_inline))
// One name made of two, which may be macros themselves.
#define MASK2FORMER_JOIN(a, b) a##b
#define MASK2FORMER_NAME(a, b) MASK2FORMER_JOIN(a, b)

template <int kWidth>
struct Vector {
  typedef float Float __attribute__((vector_size(4 * kWidth)));
  typedef int32_t Int __attribute__((vector_size(4 * kWidth)));
  typedef uint32_t Bits __attribute__((vector_size(4 * kWidth)));
};
template <>
struct Vector<1> {
  using Float = float;
  using Int = int32_t;
  using Bits = uint32_t;
};

using Float = Vector<kLanes>::Float;
using Int = Vector<kLanes>::Int;
using Bits = Vector<kLanes>::Bits;

// Loads and stores need no alignment.
template <typename T>
MASK2FORMER_INLINE T load(const void* from) {
  T result;
  __builtin_memcpy(&result, from, sizeof(T));
  return result;
}
template <typename T>
MASK2FORMER_INLINE void store(void* to, T vector) {
  __builtin_memcpy(to, &vector, sizeof(T));
}
template <typename To, typename From>
MASK2FORMER_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  return load<To>(&from);
}

// Lanes of a and b, which are counted on from a to b.
template <typename T, int... kIndices>
MASK2FORMER_INLINE T shuffle(T a, T b, std::integer_sequence<int, kIndices...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndices...);
#else
  return __builtin_shuffle(a, b, typename Vector<sizeof...(kIndices)>::Int{kIndices...});
#endif
}

// From blocks of `kHalf` lanes: every other block of a and b in turns, from the first (kSecond = 0) or second
// (kSecond = 1) on.
template <int kHalf, int kSecond, typename T, int... kLane>
MASK2FORMER_INLINE T every_other_block(T a, T b, std::integer_sequence<int, kLane...>) {
  constexpr int kWidth = sizeof...(kLane), kInA = kSecond * kHalf, kInB = kWidth + (kSecond - 1) * kHalf;
  return shuffle(a, b, std::integer_sequence<int, (kLane + ((kLane & kHalf) != 0 ? kInB : kInA))...>{});
}

// Lane i of vector j and lane j of vector i change places.
template <int kHalf = kLanes / 2>
MASK2FORMER_INLINE void transpose(Float (&rows)[kLanes]) {
  if constexpr (kHalf > 0) {
    const auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & kHalf) != 0)
        continue;
      const Float a = rows[i], b = rows[i + kHalf];
      rows[i] = every_other_block<kHalf, 0>(a, b, lanes);
      rows[i + kHalf] = every_other_block<kHalf, 1>(a, b, lanes);
    }
    transpose<kHalf / 2>(rows);
  }
}

// Lane i of the result is the sum of the lanes of vector i, of as many vectors as they have lanes; these are
// overwritten.
template <int kWidth, int kHalf = kWidth / 2, typename T>
MASK2FORMER_INLINE T sum_rows(T* rows) {
  if constexpr (kHalf == 0) {
    return rows[0];
  } else {
    const auto lanes = std::make_integer_sequence<int, kWidth>{};
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) {
      const T a = rows[i], b = rows[i + kHalf];
      rows[i] = every_other_block<kHalf, 0>(a, b, lanes) + every_other_block<kHalf, 1>(a, b, lanes);
    }
    return sum_rows<kWidth, kHalf / 2>(rows);
  }
}

template <int kDistance, int... kLane>
MASK2FORMER_INLINE Float rotate(Float vector, std::integer_sequence<int, kLane...>) {
  return shuffle(vector, vector, std::integer_sequence<int, ((kLane + kDistance) % kLanes)...>{});
}
template <int kDistance>
MASK2FORMER_INLINE Float rotate(Float vector) {
  return rotate<kDistance>(vector, std::make_integer_sequence<int, kLanes>{});
}

// How many vectors of each of a few rows of results stay in registers.
constexpr int kAcross = kLanes == 16 ? 4 : 2;

// Adds to `sums` the product of kRows rows of `count` numbers and a matrix of `count` rows of kVectors vectors. The
// numbers of a row lie `step` apart, and the rows of both as far as the strides say.
template <int kRows, int kVectors>
MASK2FORMER_INLINE void add_products(Float (&sums)[kRows][kVectors], const float* rows, int64_t row_stride,
                                     int64_t step, int64_t count, const float* matrix, int64_t matrix_stride) {
  for (int64_t k = 0; k < count; ++k) {
    Float vectors[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) vectors[j] = load<Float>(matrix + k * matrix_stride + j * kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += rows[i * row_stride + k * step] * vectors[j];
    }
  }
}

MASK2FORMER_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
MASK2FORMER_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }

// The sum of all lanes, pair by pair.
template <int kDistance = kLanes / 2>
MASK2FORMER_INLINE float sum_lanes(Float vector) {
  if constexpr (kDistance == 0) {
    return vector[0];
  } else {
    return sum_lanes<kDistance / 2>(vector + rotate<kDistance>(vector));
  }
}

// The largest of all lanes; a NaN counts or does not.
template <int kDistance = kLanes / 2>
MASK2FORMER_INLINE float largest_lane(Float vector) {
  if constexpr (kDistance == 0) {
    return vector[0];
  } else {
    return largest_lane<kDistance / 2>(larger(vector, rotate<kDistance>(vector)));
  }
}

// exp for numbers that are not positive, to 2 units in the last place; 0 for those below -80, because denormal weights
// would be a hundred times as slow. A NaN stays one.
MASK2FORMER_INLINE Float exp_of_negative(Float x) {
  // x = exponent * ln 2 + rest; the number that is added and taken away again rounds to an integer. Its 127 is that of
  // powers of two, whose bits the sum then has.
  const Float magic = Float{} + (12582912.0f + 127.0f);
  const Float shifted = x * 1.44269504f + magic;
  const Float exponent = shifted - magic;
  const Float rest = (x - exponent * 0.693359375f) + exponent * 2.12194440e-4f;
  Float series = rest * (1.0f / 5040) + 1.0f / 720;
  series = series * rest + 1.0f / 120;
  series = series * rest + 1.0f / 24;
  series = series * rest + 1.0f / 6;
  series = series * rest + 0.5f;
  series = series * rest + 1.0f;
  series = series * rest + 1.0f;
  const Float result = series * bit_cast<Float>(bit_cast<Bits>(shifted) << 23);
  return x < -80.0f ? Float{} : result;
}

// kChannels channels as one or more vectors of floats ("parts"), in an order that only load and store need to know.
template <typename Scalar, int kChannels>
struct Channels;

template <int kChannels>
struct Channels<float, kChannels> {
  static constexpr int kParts = kChannels > kLanes ? kChannels / kLanes : 1;
  static constexpr int kWidth = kChannels / kParts;
  using Part = typename Vector<kWidth>::Float;
  Part part[kParts];

  MASK2FORMER_INLINE explicit Channels(const float* from) {
    for (int i = 0; i < kParts; ++i) part[i] = load<Part>(from + i * kWidth);
  }
  MASK2FORMER_INLINE void store_to(float* to) const {
    for (int i = 0; i < kParts; ++i) store(to + i * kWidth, part[i]);
  }
  Channels() = default;
};

using BFloat16 = uint16_t;

// The float's bits whose upper half is the nearest bfloat16, ties to even; a NaN stays one.
template <typename Bits, typename Part>
MASK2FORMER_INLINE Bits round_to_bfloat16(Part part) {
  const Bits bits = bit_cast<Bits>(part);
  const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return part == part ? rounded : Bits{} + 0x7fc00000u;
}

// Two neighbouring bfloat16 are one 32-bit lane: even channels in one part, odd ones in the next, without a shuffle.
template <int kChannels>
struct Channels<BFloat16, kChannels> {
  static constexpr int kParts = kChannels > 2 * kLanes ? kChannels / kLanes : 2;
  static constexpr int kWidth = kChannels / kParts;
  using Part = typename Vector<kWidth>::Float;
  using Bits = typename Vector<kWidth>::Bits;
  Part part[kParts];

  MASK2FORMER_INLINE explicit Channels(const BFloat16* from) {
    for (int i = 0; i < kParts; i += 2) {
      const Bits pairs = load<Bits>(from + i * kWidth);
      part[i] = bit_cast<Part>(pairs << 16);
      part[i + 1] = bit_cast<Part>(pairs & 0xffff0000u);
    }
  }
  MASK2FORMER_INLINE void store_to(BFloat16* to) const {
    for (int i = 0; i < kParts; i += 2) {
      const Bits even = round_to_bfloat16<Bits>(part[i]), odd = round_to_bfloat16<Bits>(part[i + 1]);
      store(to + i * kWidth, (even >> 16) | (odd & 0xffff0000u));
    }
  }
  Channels() = default;
};

template <>
struct Channels<BFloat16, 1> {
  static constexpr int kParts = 1;
  static constexpr int kWidth = 1;
  using Part = float;
  Part part[kParts];

  MASK2FORMER_INLINE explicit Channels(const BFloat16* from)
      : part{bit_cast<float>(static_cast<uint32_t>(*from) << 16)} {}
  MASK2FORMER_INLINE void store_to(BFloat16* to) const {
    *to = static_cast<BFloat16>(round_to_bfloat16<uint32_t>(part[0]) >> 16);
  }
  Channels() = default;
};

}  // namespace
}  // namespace mask2former
