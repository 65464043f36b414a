// The kernels that differentiate. They locate the samples anew from what the forward kernels were given.
#pragma once

#include "lanes.cuh"
#include "samples.cuh"
#include "sums.cuh"

namespace mask2former {
namespace cuda {

// The gradients of a (query, head)'s attention: of the weights, or through the softmax of the logits.
MASK2FORMER_DEVICE void store_attention(const Problem& problem, const Item& item, const Slots& slots,
                                        const float (&grad)[kSlots]) {
  float mean = 0.0f;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) mean += slots.attention[i] * grad[i];
  mean = sum<kLanes>(mean);
  if (!item.exists)
    return;
  float* to = problem.grad_attention + item.number * (kLanes * kSlots) + item.lane;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    to[kLanes * i] = problem.reference == nullptr ? grad[i] : slots.attention[i] * (grad[i] - mean);
  }
}

// The gradients of offsets and attention, for the sizes that Mask2Former has, as in forward_kernel.
template <typename Scalar, int kKnownHeads>
__global__ void __launch_bounds__(kThreads) sample_gradient_kernel(const __grid_constant__ Problem problem) {
  constexpr int kAll = kRowLanes<Scalar>;
  const Item item = item_of_tile(problem);
  const Slots slots(problem, item);
  const uint32_t across = row_bytes_of<Scalar, kKnownHeads>(problem);
  const char* const first = first_of<Scalar, kKnownHeads>(problem, item);
  Channels<Scalar> grads[kRowItems<Scalar>];
#pragma unroll
  for (int i = 0; i < kRowItems<Scalar>; ++i) {
    const Item row = item_of_lane<Scalar>(problem, item, i * kLanes);
    grads[i].load(problem.grad_output, output_byte_of<Scalar>(row) + row_lane<Scalar>() * 16);
  }
  float grad_attention[kSlots];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int index = i * kLanes / kPoints;
    const Level& level = problem.levels[index];
    const Frame frame = frame_of(problem, item, index);
    const Sample sample = locate<true>(frame, level, Slots::offset(problem, item, i));
    const uint32_t own = across * sample.pixel(level), down = across * level.width;
    float products[4][kAll];  // of this lane's channels
#pragma unroll
    for (int owner = 0; owner < kAll; ++owner) {
      const char* const at = first + broadcast<kAll>(own, owner);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Channels<Scalar> corner;
        corner.load(at + k / 2 * down, k % 2 * across);
        products[k][owner] = grads[owner / kLanes].dot(corner);
      }
    }
    float product[4];  // of all channels, for the lane's own sample
#pragma unroll
    for (int k = 0; k < 4; ++k) product[k] = sum_to_owners<kAll>(products[k], row_lane<Scalar>());
    const SampleGradient result(sample, frame, slots.attention[i], product);
    grad_attention[i] = result.attention;
    if (item.exists) {
      float2* to = reinterpret_cast<float2*>(problem.grad_offsets);
      to[item.number * (kLanes * kSlots) + kLanes * i + item.lane] = result.offset;
    }
  }
  store_attention(problem, item, slots, grad_attention);
}

// Any sizes, one sample at a time.
template <typename Scalar, typename Sums>
__global__ void __launch_bounds__(kThreads) backward_any_kernel(const __grid_constant__ Problem problem) {
  const Sums sums(problem);
  const Item item = item_in_order(problem);
  const AnySamples samples(problem, item);
  const int32_t row_stride = problem.num_heads * problem.head_dim;
  const Scalar* value = static_cast<const Scalar*>(problem.value);
  const Scalar* grad_output = static_cast<const Scalar*>(problem.grad_output) + item.number * problem.head_dim;
  const int64_t first_row =
      static_cast<int64_t>(item.image) * problem.num_pixels * row_stride + item.head * problem.head_dim;
  float* grad_offsets = problem.grad_offsets + item.number * problem.num_samples * 2;
  float* grad_attention = problem.grad_attention + item.number * problem.num_samples;
  float mean = 0.0f;
  for (int32_t s = 0; s < problem.num_samples; ++s) {
    const Level& level = problem.levels[s / problem.num_points];
    const Frame frame = frame_of(problem, item, s / problem.num_points);
    const float attention = samples.weight(problem, item, s);
    const Sample sample = locate<false>(frame, level, samples.offset(problem, item, s));
    float weight[4];
    weigh_corners(sample, attention, weight);
    uint32_t pixel[4];
    corner_pixels(sample, level, pixel);
    float product[4] = {};
    for (int32_t channel = item.lane; channel < problem.head_dim; channel += kAnyLanes) {
      const float grad = static_cast<float>(grad_output[channel]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t place = first_row + static_cast<int64_t>(pixel[k]) * row_stride + channel;
        product[k] += grad * static_cast<float>(value[place]);
        if (item.exists && weight[k] != 0.0f)
          sums.add(place, weight[k] * grad);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) product[k] = sum<kAnyLanes>(product[k]);
    const SampleGradient result(sample, frame, attention, product);
    mean += attention * result.attention;
    if (item.exists && s % kAnyLanes == item.lane) {
      grad_offsets[2 * s] = result.offset.x;
      grad_offsets[2 * s + 1] = result.offset.y;
      grad_attention[s] = result.attention;
    }
  }
  if (problem.reference == nullptr || !item.exists)
    return;
  // Through the softmax. A lane reads only what it has written itself.
  for (int32_t s = item.lane; s < problem.num_samples; s += kAnyLanes) {
    grad_attention[s] = samples.weight(problem, item, s) * (grad_attention[s] - mean);
  }
}

}  // namespace cuda
}  // namespace mask2former
