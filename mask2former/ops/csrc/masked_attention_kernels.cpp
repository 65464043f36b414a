// Masked attention for one instruction set: compiled once for each, with the compiler's flags for it and
// MASK2FORMER_KERNELS set to its name.
//
// A block of keys at a time, whose weights never leave the first cache; softmax is corrected when a larger logit comes.
// A block that none of a few queries may look at costs nothing but finding that out, and masks of segments have many.
// Keys are transposed, so that logits are vectorised over keys; sums of values are vectorised over channels.
#include <cmath>
#include <cstring>
#include <limits>

#include "masked_attention.h"
#include "vector.h"

namespace mask2former {
namespace {

constexpr int kParts = kHeadDims / kLanes;  // vectors of a block of channels
constexpr int kDown = kQueriesTogether;     // queries whose logits stay in registers
constexpr float kNothing = -1e30f;          // the largest logit of no key
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

// Adds to `sums` the product of kDown rows and a matrix, as add_products() does, and writes them.
template <int kVectors>
MASK2FORMER_INLINE void store_products(Float (&sums)[kDown][kVectors], const float* rows, int64_t row_stride,
                                       int64_t count, const float* matrix, int64_t matrix_stride, float* to,
                                       int64_t to_stride) {
  add_products(sums, rows, row_stride, 1, count, matrix, matrix_stride);
#pragma GCC unroll 4
  for (int i = 0; i < kDown; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(to + i * to_stride + j * kLanes, sums[i][j]);
  }
}

MASK2FORMER_INLINE void compute_logits(const float* query, const float* keys, int64_t head_dim, float* logits) {
  for (int64_t first = 0; first < kKeysTogether; first += kAcross * kLanes) {
    Float sums[kDown][kAcross] = {};
    store_products(sums, query, head_dim, head_dim, keys + first, kKeysTogether, logits + first, kKeysTogether);
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
    store_products(sum, weights, kKeysTogether, kKeysTogether, values + channel, head_dim, sums + channel, head_dim);
  }
}

// ---- A head ----

template <typename Scalar>
void attend(const Attention& problem, int64_t image, int64_t head, int64_t begin, int64_t end,
            const AttentionScratch& scratch) {
  const int64_t head_dim = problem.head_dim, keys = problem.num_keys, stride = problem.num_heads * head_dim;
  const int64_t count = end - begin, padded = round_up_queries(count);
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
  float* logsumexp = problem.logsumexp + (image * problem.num_heads + head) * problem.num_queries + begin;
  for (int64_t i = 0; i < count; ++i) {
    unpack_row(scratch.sums + i * head_dim, head_dim, 1.0f / scratch.total[i], output + i * stride);
    logsumexp[i] = scratch.largest[i] + std::log(scratch.total[i]);
  }
}

// ---- Gradients of a head ----

// A query's logits become weights, and the gradients of the weights those of the logits.
MASK2FORMER_INLINE void differentiate_softmax(float* logits, float* gradients, const uint8_t* attend, int64_t keys,
                                              float logsumexp, float overlap) {
  Int allowed[kKeysTogether / kLanes] = {};
  for (int64_t i = 0; i < keys; ++i) {
    const int32_t all_bits = attend[i] != 0 ? -1 : 0;
    __builtin_memcpy(reinterpret_cast<char*>(allowed) + i * sizeof(int32_t), &all_bits, sizeof(int32_t));
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < kKeysTogether; i += kLanes) {
    const Int mask = allowed[i / kLanes];
    const Float weight = mask ? exp_of_negative(load<Float>(logits + i) - logsumexp) : Float{};
    const Float gradient = mask ? weight * (load<Float>(gradients + i) - overlap) : Float{};
    store(logits + i, weight);
    store(gradients + i, gradient);
  }
}

// For kDown keys from the first on: sums over the groups' queries of a weight times the query's row, to rows that lie
// `stride` apart.
template <typename Scalar>
MASK2FORMER_INLINE void add_rows(const float* weights, const float* rows, const int64_t* groups, int64_t num_groups,
                                 int64_t head_dim, int64_t keys, Scalar* to, int64_t stride) {
  for (int64_t channel = 0; channel < head_dim; channel += kHeadDims) {
    Channels<Scalar, kHeadDims> results[kDown];
    for (int part = 0; part < kParts; part += 2) {
      Float sums[kDown][2] = {};
      for (int64_t group = 0; group < num_groups; ++group) {
        for (int64_t row = 0; row < kDown; ++row) {
          const float* from = rows + (groups[group] + row) * head_dim + channel + part * kLanes;
          const float* weight = weights + (group * kDown + row) * kKeysTogether;
          const Float vectors[2] = {load<Float>(from), load<Float>(from + kLanes)};
#pragma GCC unroll 4
          for (int i = 0; i < kDown; ++i) {
            sums[i][0] += weight[i] * vectors[0];
            sums[i][1] += weight[i] * vectors[1];
          }
        }
      }
      for (int i = 0; i < kDown; ++i) {
        results[i].part[part] = sums[i][0];
        results[i].part[part + 1] = sums[i][1];
      }
    }
    for (int i = 0; i < kDown && i < keys; ++i) results[i].store_to(to + i * stride + channel);
  }
}

template <typename Scalar>
void differentiate(const AttentionGradient& problem, int64_t image, int64_t head, int64_t part, int64_t begin,
                   int64_t end, const AttentionGradientScratch& scratch) {
  const Attention& forward = problem.forward;
  const int64_t head_dim = forward.head_dim, keys = forward.num_keys, stride = forward.num_heads * head_dim;
  const int64_t count = forward.num_queries, padded = round_up_queries(count);
  const int64_t own = head * head_dim, query_row = image * count, key_row = image * keys;
  const auto rows_of = [&](const void* array, int64_t row) {
    return static_cast<const Scalar*>(array) + row * stride + own;
  };
  const uint8_t* mask = forward.attend + query_row * keys;
  const float* logsumexp = forward.logsumexp + (image * forward.num_heads + head) * count;
  const int64_t which = (part * problem.num_images + image) * forward.num_heads + head;
  float* grad_query = problem.grad_query_parts + which * padded * head_dim;

  std::memset(scratch.query, 0, padded * head_dim * sizeof(float));
  std::memset(scratch.grad_output, 0, padded * head_dim * sizeof(float));
  if (padded > 0)  // else it can be null
    std::memset(grad_query, 0, padded * head_dim * sizeof(float));
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t i = 0; i < count; ++i) {
    float *query = scratch.query + i * head_dim, *gradient = scratch.grad_output + i * head_dim;
    pack_row(rows_of(forward.output, query_row + i), head_dim, 1.0f, query);  // which has this memory after it
    pack_row(rows_of(problem.grad_output, query_row + i), head_dim, 1.0f, gradient);
    Float overlap = {};
    for (int64_t channel = 0; channel < head_dim; channel += kLanes)
      overlap += load<Float>(query + channel) * load<Float>(gradient + channel);
    scratch.overlap[i] = sum_lanes(overlap);
    pack_row(rows_of(forward.query, query_row + i), head_dim, scale, query);
  }
  for (int64_t first = begin; first < end; first += kKeysTogether) {
    const int64_t here = end - first < kKeysTogether ? end - first : kKeysTogether;
    int64_t num_groups = 0;
    for (int64_t i = 0; i < count; i += kDown) {
      const int64_t rows = count - i < kDown ? count - i : kDown;
      if (any_attends(mask + i * keys + first, keys, rows, here))
        scratch.groups[num_groups++] = i;
    }
    if (num_groups > 0) {
      pack_keys(rows_of(forward.key, key_row + first), stride, here, head_dim, scratch.keys);
      pack_keys(rows_of(forward.value, key_row + first), stride, here, head_dim, scratch.values);
      pack_values(rows_of(forward.key, key_row + first), stride, here, head_dim, scratch.key_rows);
    }
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t i = scratch.groups[group], rows = count - i < kDown ? count - i : kDown;
      float* weights = scratch.weights + group * kDown * kKeysTogether;
      float* gradients = scratch.grad_logits + group * kDown * kKeysTogether;
      compute_logits(scratch.query + i * head_dim, scratch.keys, head_dim, weights);
      compute_logits(scratch.grad_output + i * head_dim, scratch.values, head_dim, gradients);
      for (int64_t row = 0; row < rows; ++row) {
        differentiate_softmax(weights + row * kKeysTogether, gradients + row * kKeysTogether,
                              mask + (i + row) * keys + first, here, logsumexp[i + row], scratch.overlap[i + row]);
      }
      std::memset(weights + rows * kKeysTogether, 0, (kDown - rows) * kKeysTogether * sizeof(float));
      std::memset(gradients + rows * kKeysTogether, 0, (kDown - rows) * kKeysTogether * sizeof(float));
      const float shrink[kDown] = {1.0f, 1.0f, 1.0f, 1.0f};
      add_values(gradients, scratch.key_rows, head_dim, shrink, grad_query + i * head_dim);
    }
    Scalar* grad_key = static_cast<Scalar*>(problem.grad_key) + (key_row + first) * stride + own;
    Scalar* grad_value = static_cast<Scalar*>(problem.grad_value) + (key_row + first) * stride + own;
    for (int64_t i = 0; i < here; i += kDown) {
      add_rows(scratch.weights + i, scratch.grad_output, scratch.groups, num_groups, head_dim, here - i,
               grad_value + i * stride, stride);
      add_rows(scratch.grad_logits + i, scratch.query, scratch.groups, num_groups, head_dim, here - i,
               grad_key + i * stride, stride);
    }
  }
}

template <typename Scalar>
void add_parts(const AttentionGradient& problem, int64_t image, int64_t head) {
  const Attention& forward = problem.forward;
  const int64_t head_dim = forward.head_dim, stride = forward.num_heads * head_dim, count = forward.num_queries;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int64_t size = round_up_queries(count) * head_dim, all = problem.num_images * forward.num_heads * size;
  float* sum = problem.grad_query_parts + (image * forward.num_heads + head) * size;
  for (int64_t part = 1; part < problem.num_parts; ++part) {
    const float* __restrict more = sum + part * all;
    for (int64_t i = 0; i < size; ++i) sum[i] += more[i];
  }
  Scalar* to = static_cast<Scalar*>(problem.grad_query) + image * count * stride + head * head_dim;
  for (int64_t i = 0; i < count; ++i) unpack_row(sum + i * head_dim, head_dim, scale, to + i * stride);
}

}  // namespace

const AttentionKernels MASK2FORMER_NAME(attention_, MASK2FORMER_KERNELS) = {
    {attend<float>, attend<BFloat16>},
    {differentiate<float>, differentiate<BFloat16>},
    {add_parts<float>, add_parts<BFloat16>}};

}  // namespace mask2former
