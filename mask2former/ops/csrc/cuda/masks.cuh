// The kernels on masks.
#pragma once

#include "lanes.cuh"
#include "mask_pixels.cuh"
#include "masks.h"

namespace mask2former {
namespace cuda {

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
