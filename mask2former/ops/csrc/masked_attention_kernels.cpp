// Masked attention for one instruction set: compiled once for each, with the compiler's flags for it and
// MASK2FORMER_KERNELS set to its name.
//
// A block of keys at a time, whose weights never leave the first cache; softmax is corrected when a larger logit comes.
// A block that none of a few queries may look at costs nothing but finding that out, and masks of segments have many.
// Keys are transposed, so that logits are vectorised over keys; sums of values are vectorised over channels.
#include "masked_attention.h"
#include "vector.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace mask2former {
namespace {

constexpr int kParts = kHeadDims / kLanes;  // vectors of a block of channels
constexpr int kAcross = kLanes == 16 ? 4 : 2;  // vectors of keys whose logits stay in registers
constexpr int kDown = kQueriesTogether;  // for so many queries
constexpr float kNothing = -1e30f;  // the largest logit of no key
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// ---- Blocks as float ----

// Channels of a row, in an order that only unpack_row knows.
template <typename Scalar>
MASK2FORMER_INLINE void pack_row(const Scalar* from, int64_t head_dim, float scale, float* to) {
  for (int64_t channel = 0; channel < head_dim; channel += kHeadDims) {
    const Channels<Scalar, kHeadDims> row(from + channel);
    for (int p = 0; p < kParts; ++p) store(to + channel + p * kLanes, row.part[p] * scale);
  }
}

template <typename Scalar>
MASK2FORMER_INLINE void unpack_row(const float* from, int64_t head_dim, float scale, Scalar* to) {
  for (int64_t channel = 0; channel < head_dim; channel += kHeadDims) {
    Channels<Scalar, kHeadDims> row;
    for (int p = 0; p < kParts; ++p) row.part[p] = load<Float>(from + channel + p * kLanes) * scale;
    row.store_to(to + channel);
  }
}

// The keys of a block, each a column; those that are missing are 0.
template <typename Scalar>
MASK2FORMER_INLINE void pack_keys(const Scalar* from, int64_t stride, int64_t count, int64_t head_dim, float* to) {
  for (int64_t first = 0; first < kKeysTogether; first += kLanes) {
    for (int64_t channel = 0; channel < head_dim; channel += kHeadDims) {
      Float rows[kParts][kLanes] = {};
      for (int64_t i = 0; i < kLanes && first + i < count; ++i) {
        const Channels<Scalar, kHeadDims> row(from + (first + i) * stride + channel);
        for (int p = 0; p < kParts; ++p) rows[p][i] = row.part[p];
      }
      for (int p = 0; p < kParts; ++p) {
        transpose(rows[p]);
        for (int i = 0; i < kLanes; ++i) store(to + (channel + p * kLanes + i) * kKeysTogether + first, rows[p][i]);
      }
    }
  }
}

template <typename Scalar>
MASK2FORMER_INLINE void pack_values(const Scalar* from, int64_t stride, int64_t count, int64_t head_dim, float* to) {
  for (int64_t i = 0; i < count; ++i) pack_row(from + i * stride, head_dim, 1.0f, to + i * head_dim);
  std::memset(to + count * head_dim, 0, (kKeysTogether - count) * head_dim * sizeof(float));
}

// ---- A few queries and a block of keys ----

// Whether one of these queries may look at one of these keys; rows of `attend` lie `stride` apart.
MASK2FORMER_INLINE bool any_attends(const uint8_t* attend, int64_t stride, int64_t queries, int64_t keys) {
  uint8_t any = 0;
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t i = 0; i < keys; ++i) any |= attend[q * stride + i];
  }
  return any != 0;
}

// Adds to `sums` the product of kDown rows of `count` numbers and a matrix of `count` rows of `kVectors` vectors, and
// writes them; rows lie as far apart as the strides say.
template <int kVectors>
MASK2FORMER_INLINE void add_products(Float (&sums)[kDown][kVectors], const float* rows, int64_t row_stride,
                                     int64_t count, const float* matrix, int64_t matrix_stride, float* to,
                                     int64_t to_stride) {
  for (int64_t k = 0; k < count; ++k) {
    Float vectors[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) vectors[j] = load<Float>(matrix + k * matrix_stride + j * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += rows[i * row_stride + k] * vectors[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(to + i * to_stride + j * kLanes, sums[i][j]);
  }
}

MASK2FORMER_INLINE void compute_logits(const float* query, const float* keys, int64_t head_dim, float* logits) {
  for (int64_t first = 0; first < kKeysTogether; first += kAcross * kLanes) {
    Float sums[kDown][kAcross] = {};
    add_products(sums, query, head_dim, head_dim, keys + first, kKeysTogether, logits + first, kKeysTogether);
  }
}

// A query's logits become weights relative to the largest so far. Returns by how much earlier sums shrink for it.
MASK2FORMER_INLINE float weigh(float* logits, const uint8_t* attend, int64_t keys, float& largest, float& total) {
  for (int64_t i = 0; i < keys; ++i) logits[i] = attend[i] != 0 ? logits[i] : kMasked;
  for (int64_t i = keys; i < kKeysTogether; ++i) logits[i] = kMasked;
  Float best = Float{} + largest;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kKeysTogether; i += kLanes) best = larger(best, load<Float>(logits + i));
  const float now = largest_lane(best);
  Float sum = {};
#pragma GCC unroll 4
  for (int64_t i = 0; i < kKeysTogether; i += kLanes) {
    const Float weight = exp_of_negative(load<Float>(logits + i) - now);
    store(logits + i, weight);
    sum += weight;
  }
  const float shrink = std::exp(largest - now);
  total = total * shrink + sum_lanes(sum);
  largest = now;
  return shrink;
}

MASK2FORMER_INLINE void add_values(const float* weights, const float* values, int64_t head_dim, const float* shrink,
                                   float* sums) {
  constexpr int kChannelVectors = 2;  // that stay in registers: with AVX-512 a whole block of channels
  for (int64_t channel = 0; channel < head_dim; channel += kChannelVectors * kLanes) {
    Float sum[kDown][kChannelVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kChannelVectors; ++j)
        sum[i][j] = load<Float>(sums + i * head_dim + channel + j * kLanes) * shrink[i];
    }
    add_products(sum, weights, kKeysTogether, kKeysTogether, values + channel, head_dim, sums + channel, head_dim);
  }
}

// ---- A head ----

template <typename Scalar>
void attend(const Attention& problem, int64_t image, int64_t head, int64_t begin, int64_t end,
            const AttentionScratch& scratch) {
  const int64_t head_dim = problem.head_dim, keys = problem.num_keys, stride = problem.num_heads * head_dim;
  const int64_t count = end - begin, padded = (count + kDown - 1) / kDown * kDown;
  const int64_t first_row = image * problem.num_queries + begin;
  const int64_t own = head * head_dim;
  const Scalar* query = static_cast<const Scalar*>(problem.query) + first_row * stride + own;
  const Scalar* key = static_cast<const Scalar*>(problem.key) + image * keys * stride + own;
  const Scalar* value = static_cast<const Scalar*>(problem.value) + image * keys * stride + own;
  Scalar* output = static_cast<Scalar*>(problem.output) + first_row * stride + own;
  const uint8_t* mask = problem.attend + first_row * keys;

  std::memset(scratch.query, 0, padded * head_dim * sizeof(float));
  std::memset(scratch.sums, 0, padded * head_dim * sizeof(float));
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t i = 0; i < count; ++i) pack_row(query + i * stride, head_dim, scale, scratch.query + i * head_dim);
  for (int64_t i = 0; i < padded; ++i) {
    scratch.largest[i] = kNothing;
    scratch.total[i] = 0.0f;
  }
  for (int64_t first = 0; first < keys; first += kKeysTogether) {
    const int64_t here = keys - first < kKeysTogether ? keys - first : kKeysTogether;
    bool is_packed = false;
    for (int64_t i = 0; i < count; i += kDown) {
      const int64_t rows = count - i < kDown ? count - i : kDown;
      if (!any_attends(mask + i * keys + first, keys, rows, here))
        continue;
      if (!is_packed) {
        pack_keys(key + first * stride, stride, here, head_dim, scratch.keys);
        pack_values(value + first * stride, stride, here, head_dim, scratch.values);
        is_packed = true;
      }
      compute_logits(scratch.query + i * head_dim, scratch.keys, head_dim, scratch.weights);
      float shrink[kDown] = {};
      for (int64_t row = 0; row < rows; ++row) {
        shrink[row] = weigh(scratch.weights + row * kKeysTogether, mask + (i + row) * keys + first, here,
                            scratch.largest[i + row], scratch.total[i + row]);
      }
      add_values(scratch.weights, scratch.values, head_dim, shrink, scratch.sums + i * head_dim);
    }
  }
  for (int64_t i = 0; i < count; ++i)
    unpack_row(scratch.sums + i * head_dim, head_dim, 1.0f / scratch.total[i], output + i * stride);
}

}  // namespace

const AttentionKernels MASK2FORMER_NAME(attention_, MASK2FORMER_KERNELS) = {{attend<float>, attend<BFloat16>}};

}  // namespace mask2former
