// Resized masks, computed where they are needed: each thread works on kPixels neighbouring pixels of an output row.
#pragma once

#include <type_traits>

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

// Writes a thread's pixels from a column on: in one piece, if rows begin where one can.
template <typename T>
MASK2FORMER_DEVICE void store(const T (&pixels)[kPixels], T* row, int32_t column, int32_t width) {
  if (width % kPixels == 0) {
    using Piece = std::conditional_t<sizeof(pixels) == sizeof(uint4), uint4, uint32_t>;
    Piece piece;
    memcpy(&piece, pixels, sizeof(pixels));
    *reinterpret_cast<Piece*>(row + column) = piece;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (column + i < width)
      row[column + i] = pixels[i];
  }
}

}  // namespace cuda
}  // namespace mask2former
