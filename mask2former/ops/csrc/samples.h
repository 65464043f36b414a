// From the offsets and attention of a (query, head) to the corners of its samples and their weights, many samples at a
// time. Only for ms_deform_attn_kernels.cpp, and internal to it like vector.h.
#pragma once

#include "ms_deform_attn.h"
#include "vector.h"

namespace mask2former {
namespace {

MASK2FORMER_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Along one axis: the two pixels around a sample, clamped to the level, and for each
struct Axis {
  Int pixel[2];
  Float inside[2];  // 1 if it is in the level, else 0
  Float weight[2];  // its share of the sample's value; 0 outside the level
};

MASK2FORMER_INLINE Axis locate_on_axis(Float position, Float size) {
  // From two pixels beyond either end on nothing is read any more, and up to there the conversion to integers is safe.
  // A NaN goes on into the weights, and so into the output.
  position = position < -2.0f ? Float{} - 2.0f : position;
  position = position > size ? size : position;
  const Float finite = position == position ? position : Float{};
  const Float truncated = __builtin_convertvector(__builtin_convertvector(finite, Int), Float);
  const Float first = truncated > finite ? truncated - 1.0f : truncated;
  const Float fraction = position - first;
  const Float weight[2] = {1.0f - fraction, fraction};
  const Int index = __builtin_convertvector(first, Int), count = __builtin_convertvector(size, Int);
  Axis axis;
  for (int i = 0; i < 2; ++i) {
    const Int pixel = index + i;
    const Int at_least_0 = pixel < 0 ? Int{} : pixel;
    axis.pixel[i] = at_least_0 < count ? at_least_0 : count - 1;
    // GCC makes one instruction of a comparison that is used at once, but many of masks that are kept and combined.
    axis.inside[i] = axis.pixel[i] == pixel ? Float{} + 1.0f : Float{};
    axis.weight[i] = axis.inside[i] * weight[i];
  }
  return axis;
}

// Locates kLanes samples of a group from `lane` on. Its start and attention are set.
template <bool kForGradient>
MASK2FORMER_INLINE void locate_lanes(const float* offsets, const GroupLevels& levels, int lane, Group& group) {
  const auto lanes = std::make_integer_sequence<int, kLanes>{};
  const Float low = load<Float>(offsets + 2 * lane);
  const Float high = load<Float>(offsets + 2 * lane + kLanes);
  const auto at = [lane](const float* values) { return load<Float>(values + lane); };
  const Float width = at(levels.width);
  const Float position_x = at(group.start_x) + at(levels.scale_x) * half_blocks<2, 0>(low, high, lanes);
  const Float position_y = at(group.start_y) + at(levels.scale_y) * half_blocks<2, 1>(low, high, lanes);
  const Axis x = locate_on_axis(position_x, width);
  const Axis y = locate_on_axis(position_y, at(levels.height));
  const Int first_pixel = load<Int>(levels.first_pixel + lane);
  const Int stride = __builtin_convertvector(width, Int);
  for (int row = 0; row < 2; ++row) {
    const Float row_weight = at(group.attention) * y.weight[row];
    const Int row_pixel = first_pixel + y.pixel[row] * stride;
    for (int column = 0; column < 2; ++column) {
      store(group.weight[2 * row + column] + lane, row_weight * x.weight[column]);
      store(group.pixel[2 * row + column] + lane, row_pixel + x.pixel[column]);
    }
  }
  if constexpr (kForGradient) {
    for (int i = 0; i < 2; ++i) {
      store(group.column_inside[i] + lane, x.inside[i]);
      store(group.column_weight[i] + lane, x.weight[i]);
      store(group.row_inside[i] + lane, y.inside[i]);
      store(group.row_weight[i] + lane, y.weight[i]);
    }
  }
}

// Turns the logits in the groups into weights that add up to 1.
MASK2FORMER_INLINE void softmax(Group* groups, int64_t num_samples) {
  const auto attention = [groups](int64_t sample) { return groups[sample / kGroup].attention + sample % kGroup; };
  const Float nothing = Float{} - __builtin_inff();
  Float max = nothing;
  for (int64_t sample = 0; sample < num_samples; sample += kLanes) {
    const Float logit = load<Float>(attention(sample));
    const Float valid = count_from_zero() < static_cast<int32_t>(num_samples - sample) ? logit : nothing;
    store(attention(sample), valid);
    max = larger(max, valid);
  }
  max = reduce(max, larger);
  Float sum = {};
  for (int64_t sample = 0; sample < num_samples; sample += kLanes) {
    const Float weight = exp_of_negative(load<Float>(attention(sample)) - max);
    store(attention(sample), weight);
    sum += weight;
  }
  const Float scale = 1.0f / reduce(sum, add);
  for (int64_t sample = 0; sample < num_samples; sample += kLanes) {
    store(attention(sample), load<Float>(attention(sample)) * scale);
  }
}

// Sets where the offsets of a group start: at the edge of the level, or (fused) at the query's reference point.
MASK2FORMER_INLINE void set_start(const Problem& problem, int64_t image, int64_t query, const GroupLevels& levels,
                                  Group& group) {
  // Half a pixel, because positions count from the centre of the first pixel.
  if (problem.reference == nullptr) {
    for (int lane = 0; lane < kGroup; lane += kLanes) {
      store(group.start_x + lane, Float{} - 0.5f);
      store(group.start_y + lane, Float{} - 0.5f);
    }
    return;
  }
  const float* points =
      problem.reference + image * problem.reference_image_stride + query * problem.reference_query_stride;
  if (problem.reference_level_stride == 0) {
    for (int lane = 0; lane < kGroup; lane += kLanes) {
      store(group.start_x + lane, load<Float>(levels.width + lane) * points[0] - 0.5f);
      store(group.start_y + lane, load<Float>(levels.height + lane) * points[1] - 0.5f);
    }
  } else {
    for (int lane = 0; lane < kGroup; ++lane) {
      const float* point = points + levels.level[lane] * problem.reference_level_stride;
      group.start_x[lane] = levels.width[lane] * point[0] - 0.5f;
      group.start_y[lane] = levels.height[lane] * point[1] - 0.5f;
    }
  }
}

// The number of a (query, head) among all of the call.
MASK2FORMER_INLINE int64_t item_of(const Problem& problem, int64_t image, int64_t query, int64_t head) {
  return (image * problem.num_queries + query) * problem.num_heads + head;
}

// kCount numbers from `first` on of an array that ends before `end`. Whole vectors can be read from the result: it is
// `padded` where the array is too short for that.
template <int kCount>
MASK2FORMER_INLINE const float* readable(const float* array, int64_t first, int64_t end, float* padded) {
  if (first + kCount <= end)
    return array + first;
  for (int64_t i = 0; i < kCount; ++i) padded[i] = first + i < end ? array[first + i] : 0.0f;
  return padded;
}

// Locates the samples of one (query, head).
template <bool kForGradient>
MASK2FORMER_INLINE void locate(const Problem& problem, int64_t samples, int64_t image, int64_t query, int64_t head,
                               Group* groups) {
  const int64_t begin = item_of(problem, image, query, head) * samples;
  const int64_t end = problem.num_images * problem.num_queries * problem.num_heads * samples;
  float padded[2 * kGroup];
  for (int64_t sample = 0, g = 0; sample < samples; sample += kGroup, ++g) {
    set_start(problem, image, query, problem.levels[g], groups[g]);
    const float* attention = readable<kGroup>(problem.attention, begin + sample, end, padded);
    for (int i = 0; i < kGroup; i += kLanes) store(groups[g].attention + i, load<Float>(attention + i));
  }
  if (problem.reference != nullptr)
    softmax(groups, samples);
  for (int64_t sample = 0, g = 0; sample < samples; sample += kGroup, ++g) {
    const float* offsets = readable<2 * kGroup>(problem.offsets, 2 * (begin + sample), 2 * end, padded);
    for (int lane = 0; lane < min(samples - sample, kGroup); lane += kLanes) {
      locate_lanes<kForGradient>(offsets, problem.levels[g], lane, groups[g]);
    }
  }
}

}  // namespace
}  // namespace mask2former
