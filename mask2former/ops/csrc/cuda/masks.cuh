// The kernels on masks: each thread works on kPixels neighbouring pixels of an output row.
#pragma once

#include "lanes.cuh"
#include "masks.h"

namespace mask2former {
namespace cuda {

// ---- Resized masks ----

// The first place of a mask that a place of the output is made of. The CPU checks beforehand that no index leaves the
// mask; here that would mean to wait for the indices.
MASK2FORMER_DEVICE int32_t first_of(const MaskAxis& axis, int32_t place) {
  const int32_t first = axis.first[place], last = axis.size - axis.taps;
  return first < 0 ? 0 : first < last ? first : last;
}

// What a row of the output is made of. kTaps is the most that an axis has, or 0: any number.
template <int kTaps>
struct Row {
  int32_t first;
  float weight[kTaps];

  MASK2FORMER_DEVICE Row(const MaskAxis& rows, int32_t row) : first(first_of(rows, row)) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) weight[tap] = tap < rows.taps ? rows.weights[tap * rows.length + row] : 0.0f;
  }
  MASK2FORMER_DEVICE float weight_of(const MaskAxis&, int tap) const { return weight[tap]; }
};

template <>
struct Row<0> {
  int32_t first, row;

  MASK2FORMER_DEVICE Row(const MaskAxis& rows, int32_t row_) : first(first_of(rows, row_)), row(row_) {}
  MASK2FORMER_DEVICE float weight_of(const MaskAxis& rows, int tap) const {
    return rows.weights[tap * rows.length + row];
  }
};

// A thread's pixels of resized masks, row by row. kHolds is whether what several rows of the output need of a mask's row
// is held for the next one. The arithmetic is that of ../mask_kernels.cpp.
template <typename Scalar, int kTaps, bool kHolds>
class Pixels {
  static_assert(kTaps > 0 || !kHolds, "there are registers for a few rows only");

 public:
  MASK2FORMER_DEVICE Pixels(const MaskProblem& problem, int32_t column) : problem_(problem) {
    const MaskAxis& columns = problem.columns;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      // Beyond the end the last pixel is computed again, and not stored.
      place_[i] = column + i < columns.length ? column + i : columns.length - 1;
      first_[i] = first_of(columns, place_[i]);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) weight_[tap][i] = tap < columns.taps ? weight_in_memory(tap, i) : 0.0f;
    }
  }

  // Goes on to a mask; before anything else.
  MASK2FORMER_DEVICE void start(int32_t mask) {
    logits_ = static_cast<const Scalar*>(problem_.logits) +
              static_cast<int64_t>(mask) * problem_.rows.size * problem_.columns.size;
    first_held_ = kNone;
  }

  // Whether anything is positive that the pixels of some rows are made of. If not, none of them is, for no weight is
  // negative.
  MASK2FORMER_DEVICE bool can_be_positive(int32_t begin, int32_t end) const {
    const MaskAxis &rows = problem_.rows, &columns = problem_.columns;
    const int32_t last_row = first_of(rows, end - 1) + rows.taps, last_column = first_[kPixels - 1] + columns.taps;
    for (int32_t row = first_of(rows, begin); row < last_row; ++row) {
      bool found = false;
      for (int32_t column = first_[0]; column < last_column; ++column) {
        found |= static_cast<float>(logits_[row * columns.size + column]) > 0.0f;
      }
      if (found)
        return true;
    }
    return false;
  }

  // The logits in a row of the output.
  MASK2FORMER_DEVICE void row(const Row<kTaps>& row, float (&to)[kPixels]) {
    const MaskAxis& rows = problem_.rows;
    if (kHolds)
      hold(row.first);
    const int32_t taps = kTaps > 0 ? kTaps : rows.taps;
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int32_t tap = 0; tap < taps; ++tap) {
      const float weight = row.weight_of(rows, tap);
      if (tap > 0 && weight == 0.0f)  // not to be multiplied, for what is there can be infinite
        continue;
      float wide[kPixels];
      if (!kHolds)
        widen(row.first + tap, wide);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const float product = weight * (kHolds ? held_[kHolds ? tap : 0][i] : wide[i]);
        to[i] = tap == 0 ? product : to[i] + product;
      }
    }
  }

 private:
  static constexpr int kWeights = kTaps > 0 ? kTaps : 1, kHeld = kHolds ? kTaps : 1;
  static constexpr int32_t kNone = -2;  // nor the row before any

  // Has held_ begin with a mask's row. Where masks are made larger, several rows of the output have the same, and the
  // next ones mostly the next.
  MASK2FORMER_DEVICE void hold(int32_t first) {
    if (first == first_held_)
      return;
    const bool is_next = first == first_held_ + 1;
#pragma unroll
    for (int tap = 0; tap < kHeld; ++tap) {
      if (tap >= problem_.rows.taps)
        continue;
      if (is_next && tap + 1 < kHeld && tap + 1 < problem_.rows.taps) {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) held_[tap][i] = held_[tap + 1 < kHeld ? tap + 1 : 0][i];
      } else {
        widen(first + tap, held_[tap]);
      }
    }
    first_held_ = first;
  }

  // A mask's row at the thread's pixels.
  MASK2FORMER_DEVICE void widen(int32_t mask_row, float (&to)[kPixels]) const {
    const Scalar* from = logits_ + mask_row * problem_.columns.size;
    const int32_t taps = kTaps > 0 ? kTaps : problem_.columns.taps;
#pragma unroll(kTaps > 0 ? kTaps : 1)
    for (int32_t tap = 0; tap < taps; ++tap) {
      if (tap >= problem_.columns.taps)
        continue;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const float weight = kTaps > 0 ? weight_[kTaps > 0 ? tap : 0][i] : weight_in_memory(tap, i);
        const float product = weight * static_cast<float>(from[first_[i] + tap]);
        to[i] = tap == 0 ? product : to[i] + product;
      }
    }
  }

  MASK2FORMER_DEVICE float weight_in_memory(int32_t tap, int i) const {
    return problem_.columns.weights[tap * problem_.columns.length + place_[i]];
  }

  const MaskProblem& problem_;
  const Scalar* logits_;
  int32_t place_[kPixels], first_[kPixels];
  float weight_[kWeights][kPixels];
  int32_t first_held_;  // the mask's row that is held_[0]
  float held_[kHeld][kPixels];
};

MASK2FORMER_DEVICE float sigmoid(float x) {
  // Of the exponential of -|x|, which cannot overflow.
  const float small = expf(-fabsf(x));
  return __fdividef(x > 0.0f ? 1.0f : small, 1.0f + small);
}

// ---- Where a thread works ----

struct Place {
  int32_t mask, row, column;
  bool exists;  // else the thread only keeps others company: it reads what is there, and writes nothing
};

// kRows rows of one mask. All threads of a block are in the same mask.
MASK2FORMER_DEVICE Place place_in_mask(const MaskProblem& problem) {
  const uint32_t blocks_of_mask = gridDim.x / problem.count;
  const uint32_t across = (problem.columns.length + kPixels - 1) / kPixels;
  const uint32_t thread = blockIdx.x % blocks_of_mask * kThreads + threadIdx.x;
  const uint32_t row = problem.begin + thread / across * kRows;
  return {static_cast<int32_t>(blockIdx.x / blocks_of_mask), static_cast<int32_t>(row),
          static_cast<int32_t>(thread % across * kPixels), row < static_cast<uint32_t>(problem.end)};
}

// One row, of all masks.
MASK2FORMER_DEVICE Place place_of_all(const MaskProblem& problem) {
  const uint32_t across = (problem.columns.length + kPixels - 1) / kPixels;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x, row = thread / across;
  const bool exists = row < static_cast<uint32_t>(problem.rows.length);
  return {0, exists ? static_cast<int32_t>(row) : 0, static_cast<int32_t>(thread % across * kPixels), exists};
}

template <int kBytes>
struct Piece;
template <>
struct Piece<4> {
  using type = uint32_t;
};
template <>
struct Piece<16> {
  using type = uint4;
};

// Writes a thread's pixels from a column on: in one piece, if rows begin where one can.
template <typename T>
MASK2FORMER_DEVICE void store(const T (&pixels)[kPixels], T* row, int32_t column, int32_t width) {
  if (width % kPixels == 0) {
    typename Piece<sizeof(pixels)>::type piece;
    memcpy(&piece, pixels, sizeof(piece));
    *reinterpret_cast<decltype(piece)*>(row + column) = piece;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (column + i < width)
      row[column + i] = pixels[i];
  }
}

// ---- resize ----

template <typename Scalar, int kTaps>
__global__ void __launch_bounds__(kThreads) resize_kernel(const __grid_constant__ MaskProblem problem) {
  const Place place = place_in_mask(problem);
  if (!place.exists)
    return;
  const int32_t width = problem.columns.length;
  Pixels<Scalar, kTaps, (kTaps > 0)> pixels(problem, place.column);
  pixels.start(place.mask);
  const int32_t end = place.row + kRows < problem.end ? place.row + kRows : problem.end;
#pragma unroll 1
  for (int32_t row = place.row; row < end; ++row) {
    float logits[kPixels];
    pixels.row(Row<kTaps>(problem.rows, row), logits);
    if (problem.sigmoid) {
#pragma unroll
      for (int i = 0; i < kPixels; ++i) logits[i] = sigmoid(logits[i]);
    }
    const int64_t output_row = static_cast<int64_t>(place.mask) * (problem.end - problem.begin) + row - problem.begin;
    store(logits, problem.resized + output_row * width, place.column, width);
  }
}

// ---- binarise ----

// What a thread finds in its pixels of a mask. Names are those of MaskSums.
struct Found {
  uint32_t area = 0, probability = 0;  // fits: 2^24 for each of kPixels * kRows pixels at most
  uint32_t left = 0, top = 0, right = 0, bottom = 0;
};

// Adds the warp's to the mask's. Whole warps call this.
MASK2FORMER_DEVICE void add(const Found& found, MaskSums& sums) {
  if (__ballot_sync(kWarp, found.area != 0) == 0)
    return;
  const auto plus = [](uint32_t a, uint32_t b) { return a + b; };
  const auto larger = [](uint32_t a, uint32_t b) { return a > b ? a : b; };
  const uint32_t area = reduce<32>(found.area, plus);
  // In two halves, for a warp's does not fit.
  const uint32_t low = reduce<32>(found.probability & 0xffffu, plus);
  const uint32_t high = reduce<32>(found.probability >> 16, plus);
  const uint32_t left = reduce<32>(found.left, larger), top = reduce<32>(found.top, larger);
  const uint32_t right = reduce<32>(found.right, larger), bottom = reduce<32>(found.bottom, larger);
  if (threadIdx.x % 32 != 0)
    return;
  atomicAdd(&sums.area, static_cast<unsigned long long>(area));
  atomicAdd(&sums.probability, (static_cast<unsigned long long>(high) << 16) + low);
  atomicMax(&sums.left, left);
  atomicMax(&sums.top, top);
  atomicMax(&sums.right, right);
  atomicMax(&sums.bottom, bottom);
}

template <typename Scalar, int kTaps>
__global__ void __launch_bounds__(kThreads) binarise_kernel(const __grid_constant__ MaskProblem problem) {
  const Place place = place_in_mask(problem);
  const int32_t height = problem.rows.length, width = problem.columns.length;
  Pixels<Scalar, kTaps, (kTaps > 0)> pixels(problem, place.column);
  pixels.start(place.mask);
  Found found;
  uint32_t columns = 0;  // a bit for each that has a pixel of the mask
  const int32_t end = place.row + kRows < height ? place.row + kRows : height;
  const bool is_empty = !place.exists || !pixels.can_be_positive(place.row, end);
  bool* to = problem.binary + (static_cast<int64_t>(place.mask) * height + place.row) * width;
#pragma unroll 1
  for (int32_t row = place.row; row < end; ++row, to += width) {
    bool positive[kPixels] = {};
    uint32_t in_row = 0;
    if (!is_empty) {
      float logits[kPixels];
      pixels.row(Row<kTaps>(problem.rows, row), logits);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        positive[i] = logits[i] > 0.0f && place.column + i < width;
        in_row |= positive[i] ? 1u << i : 0;
        if (positive[i])
          found.probability += static_cast<uint32_t>(sigmoid(logits[i]) * 16777216.0f);
      }
    }
    store(positive, to, place.column, width);
    if (in_row == 0)
      continue;
    columns |= in_row;
    found.area += __popc(in_row);
    found.top = found.top == 0 ? height - row : found.top;
    found.bottom = row + 1;
  }
  if (columns != 0) {
    found.left = width - (place.column + __ffs(columns) - 1);
    found.right = place.column + 32 - __clz(columns);
  }
  add(found, problem.sums[place.mask]);
}

// One thread for each mask.
__global__ void __launch_bounds__(kThreads) measure_kernel(const __grid_constant__ MaskProblem problem) {
  const int32_t mask = blockIdx.x * kThreads + threadIdx.x;
  if (mask >= problem.count)
    return;
  const MaskSums& sums = problem.sums[mask];
  const bool is_empty = sums.area == 0;
  problem.area[mask] = static_cast<int64_t>(sums.area);
  problem.probability[mask] = static_cast<float>(0x1p-24 * sums.probability / (sums.area + 1e-6));
  float* box = problem.boxes + 4 * static_cast<int64_t>(mask);
  box[0] = is_empty ? 0.0f : static_cast<float>(problem.columns.length - sums.left);
  box[1] = is_empty ? 0.0f : static_cast<float>(problem.rows.length - sums.top);
  box[2] = static_cast<float>(sums.right);
  box[3] = static_cast<float>(sums.bottom);
}

// ---- compete ----

// A pixel's winner: 2 * mask + inside; this where there is none to be counted.
constexpr int32_t kNobody = -2;

// The number of the warp's pixels for which something is true. Whole warps call this.
MASK2FORMER_DEVICE uint32_t count(const bool (&is_true)[kPixels]) {
  bool any = false;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) any |= is_true[i];
  if (__ballot_sync(kWarp, any) == 0)
    return 0;
  uint32_t result = 0;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) result += __popc(__ballot_sync(kWarp, is_true[i]));
  return result;
}

// Adds what the warp's pixels are won by to the areas; neighbours are mostly won by the same mask.
MASK2FORMER_DEVICE void add_wins(const MaskProblem& problem, int32_t (&claims)[kPixels]) {
  while (true) {
    int32_t own = kNobody;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) own = claims[i] != kNobody ? claims[i] : own;
    const uint32_t waiting = __ballot_sync(kWarp, own != kNobody);
    if (waiting == 0)
      return;
    const int32_t mask = __shfl_sync(kWarp, own, __ffs(waiting) - 1, 32) / 2;
    bool won[kPixels], inside[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      won[i] = claims[i] != kNobody && claims[i] / 2 == mask;
      inside[i] = won[i] && claims[i] % 2 != 0;
      claims[i] = won[i] ? kNobody : claims[i];
    }
    const uint32_t area = count(won), area_inside = count(inside);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(problem.areas + problem.count + mask, static_cast<unsigned long long>(area));
      if (area_inside != 0)
        atomicAdd(problem.areas + 2 * static_cast<int64_t>(problem.count) + mask,
                  static_cast<unsigned long long>(area_inside));
    }
  }
}

// Blocks that a multiprocessor holds at least: with four, all threads of a picture find room on a large GPU at once, and
// are many enough to hide how long memory takes. Three taps need more registers than that leaves.
template <int kTaps>
constexpr int kBlocks = kTaps == 3 ? 3 : 4;

template <typename Scalar, int kTaps>
__global__ void __launch_bounds__(kThreads, kBlocks<kTaps>) compete_kernel(const __grid_constant__ MaskProblem problem) {
  const Place place = place_of_all(problem);
  const int32_t width = problem.columns.length;
  Pixels<Scalar, kTaps, false> pixels(problem, place.column);
  const Row<kTaps> row(problem.rows, place.row);
  float best[kPixels];
  int32_t claims[kPixels];
  bool exists[kPixels];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    best[i] = -1.0f;
    claims[i] = 0;
    exists[i] = place.exists && place.column + i < width;
  }
#pragma unroll 1
  for (int32_t mask = 0; mask < problem.count; ++mask) {
    const float score = problem.scores[mask];
    if (!(score > 0.0f))
      continue;
    float logits[kPixels];
    pixels.start(mask);
    pixels.row(row, logits);
    bool own[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const bool is_own = logits[i] >= 0.0f;
      own[i] = is_own && exists[i];
      // Outside of a mask its probability is below one half.
      if (!is_own && !(best[i] < 0.5f * score))
        continue;
      const float strength = score * sigmoid(logits[i]);
      const bool is_better = strength > best[i];
      best[i] = is_better ? strength : best[i];
      claims[i] = is_better ? 2 * mask + is_own : claims[i];
    }
    const uint32_t area = count(own);
    if (area != 0 && threadIdx.x % 32 == 0)
      atomicAdd(problem.areas + mask, static_cast<unsigned long long>(area));
  }
  if (place.exists) {
    int32_t winner[kPixels];
    bool inside[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      winner[i] = claims[i] / 2;
      inside[i] = claims[i] % 2 != 0;
    }
    const int64_t first = static_cast<int64_t>(place.row) * width;
    store(winner, problem.winner + first, place.column, width);
    store(inside, problem.inside + first, place.column, width);
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) claims[i] = exists[i] ? claims[i] : kNobody;
  add_wins(problem, claims);
}

}  // namespace cuda
}  // namespace mask2former
