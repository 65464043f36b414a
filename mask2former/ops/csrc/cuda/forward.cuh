// The kernels that interpolate.
#pragma once

#include "lanes.cuh"
#include "samples.cuh"

namespace mask2former {
namespace cuda {

// The sizes that Mask2Former has; kKnownHeads is how many heads there are, or 0 if that is not known. Every lane locates
// kSlots samples, tells the others of them, and interpolates its own channels of all.
template <typename Scalar, int kKnownHeads>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Problem problem) {
  const Item item = item_of_tile(problem);
  const Slots slots(problem, item);
  const uint32_t across = row_bytes_of<Scalar, kKnownHeads>(problem);
  const char* const first = first_of<Scalar, kKnownHeads>(problem, item);
  Channels<Scalar> results[kRowItems<Scalar>] = {};
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int index = i * kLanes / kPoints;  // the points of a level are a multiple of kLanes: a slot has one level
    const Level& level = problem.levels[index];
    const Sample sample = locate<true>(frame_of(problem, item, index), level, Slots::offset(problem, item, i));
    const uint32_t own = across * sample.pixel(level), down = across * level.width;
    float own_weight[4];
    weigh_corners(sample, slots.attention[i], own_weight);
#pragma unroll
    for (int owner = 0; owner < kRowLanes<Scalar>; ++owner) {
      const char* const at = first + broadcast<kRowLanes<Scalar>>(own, owner);
      Channels<Scalar> corner[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) corner[k].load(at + k / 2 * down, k % 2 * across);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        results[owner / kLanes].add(broadcast<kRowLanes<Scalar>>(own_weight[k], owner), corner[k]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowItems<Scalar>; ++i) {
    const Item row = item_of_lane<Scalar>(problem, item, i * kLanes);
    if (row.exists)
      results[i].store(problem.output, output_byte_of<Scalar>(row) + row_lane<Scalar>() * 16);
  }
}

// Any sizes: a lane interpolates every kAnyLanes-th channel, up to kBlock of them at a time.
template <typename Scalar>
__global__ void __launch_bounds__(kThreads) forward_any_kernel(const __grid_constant__ Problem problem) {
  constexpr int kBlock = 4;
  const Item item = item_in_order(problem);
  const AnySamples samples(problem, item);
  const int32_t row_stride = problem.num_heads * problem.head_dim;
  const Scalar* value = static_cast<const Scalar*>(problem.value) +
                        static_cast<int64_t>(item.image) * problem.num_pixels * row_stride +
                        item.head * problem.head_dim;
  Scalar* output = static_cast<Scalar*>(problem.output) + item.number * problem.head_dim;
  for (int32_t first = item.lane; first < problem.head_dim; first += kBlock * kAnyLanes) {
    float sums[kBlock] = {};
    for (int32_t s = 0; s < problem.num_samples; ++s) {
      const Level& level = problem.levels[s / problem.num_points];
      const Frame frame = frame_of(problem, item, s / problem.num_points);
      const Sample sample = locate<false>(frame, level, samples.offset(problem, item, s));
      float weight[4];
      weigh_corners(sample, samples.weight(problem, item, s), weight);
      uint32_t pixel[4];
      corner_pixels(sample, level, pixel);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Scalar* row = value + static_cast<int64_t>(pixel[k]) * row_stride;
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
          const int32_t channel = first + i * kAnyLanes;
          if (channel < problem.head_dim)
            sums[i] += weight[k] * static_cast<float>(row[channel]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      const int32_t channel = first + i * kAnyLanes;
      if (item.exists && channel < problem.head_dim)
        output[channel] = static_cast<Scalar>(sums[i]);
    }
  }
}

}  // namespace cuda
}  // namespace mask2former
