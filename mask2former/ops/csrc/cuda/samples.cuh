// From the offsets and attention of a (query, head) to the corners of its samples and their weights.
//
// Results are those of ../samples.h: no branches on where a sample lies, weight 0 for a corner that is not next to it,
// and a NaN goes on into the weights and so into the output.
#pragma once

#include "lanes.cuh"
#include "problem.h"

namespace mask2former {
namespace cuda {

// A (query, head) and one of the kLanes lanes that locate its samples.
struct Item {
  int32_t image, query, head;
  int64_t number;  // among all of the call
  int lane;
  bool exists;  // else the lanes only keep others company: they read what is there, and write nothing

  MASK2FORMER_DEVICE Item(const Problem& problem, int32_t image_, int32_t query_, int32_t head_, int lane_, bool exists_)
      : image(image_),
        query(query_),
        head(head_),
        number((static_cast<int64_t>(image_) * problem.num_queries + query_) * problem.num_heads + head_),
        lane(lane_),
        exists(exists_) {}
};

// Where a level's offsets count from and in what, for one query: position in pixels = start + scale * offset.
struct Frame {
  float start_x, start_y, scale_x, scale_y;
};

MASK2FORMER_DEVICE Frame frame_of(const Problem& problem, const Item& item, int32_t level) {
  const float width = static_cast<float>(problem.levels[level].width);
  const float height = static_cast<float>(problem.levels[level].height);
  // Half a pixel, because positions count from the centre of the first pixel.
  if (problem.reference == nullptr)
    return {-0.5f, -0.5f, width, height};
  const float* point = problem.reference + item.image * problem.reference_image_stride +
                       item.query * problem.reference_query_stride + level * problem.reference_level_stride;
  return {__ldg(point) * width - 0.5f, __ldg(point + 1) * height - 0.5f, 1.0f, 1.0f};
}

// Along one axis of a level, of which the fast kernels know that it is at least two pixels long:
struct Axis {
  int32_t pixel;    // the first of two neighbours in the level, of which one is the next to the sample, if any is near
  float weight[2];  // their shares of the sample's value: 1 - distance, or 0 if that is negative
  float slope[2];   // of the weights, by the position
};

template <bool kAtLeastTwo>
MASK2FORMER_DEVICE Axis locate_on_axis(float position, int32_t size) {
  const int32_t last = size - 2;
  const int32_t first = __float2int_rd(position);  // far away the farthest integer, and 0 for a NaN
  const int32_t at_most_last = first < last ? first : last;
  Axis axis;
  axis.pixel = at_most_last > 0 ? at_most_last : 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float distance = position - static_cast<float>(axis.pixel + i);
    const float weight = 1.0f - fabsf(distance);
    const float slope = distance < 0.0f ? 1.0f : -1.0f;
    const bool exists = kAtLeastTwo || i < size;
    axis.weight[i] = weight < 0.0f || !exists ? 0.0f : weight;
    axis.slope[i] = distance >= -1.0f && distance < 1.0f && exists ? slope : 0.0f;
  }
  return axis;
}

// What the lane that owns a sample knows of it.
struct Sample {
  Axis x, y;

  // Of the first of its corners, in the value.
  MASK2FORMER_DEVICE uint32_t pixel(const Level& level) const {
    return level.first_pixel + y.pixel * level.width + x.pixel;
  }
};

template <bool kAtLeastTwo>
MASK2FORMER_DEVICE Sample locate(const Frame& frame, const Level& level, float2 offset) {
  return {locate_on_axis<kAtLeastTwo>(frame.start_x + frame.scale_x * offset.x, level.width),
          locate_on_axis<kAtLeastTwo>(frame.start_y + frame.scale_y * offset.y, level.height)};
}

// Corner k of a sample is (row k / 2, column k % 2) of 2 x 2 pixels. Its weight is bilinear, times attention.
MASK2FORMER_DEVICE void weigh_corners(const Sample& sample, float attention, float (&weight)[4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float row_weight = attention * sample.y.weight[row];
    weight[2 * row] = row_weight * sample.x.weight[0];
    weight[2 * row + 1] = row_weight * sample.x.weight[1];
  }
}

// The pixels of a sample's corners, in a level of any size: where there is no second row or column, the first again.
MASK2FORMER_DEVICE void corner_pixels(const Sample& sample, const Level& level, uint32_t (&pixel)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    pixel[k] = sample.pixel(level) + (level.height > 1 ? k / 2 * level.width : 0) + (level.width > 1 ? k % 2 : 0);
  }
}

// From the products of the output's gradient with the value of every corner, summed over channels, to the gradients
// of a sample's offset and attention.
struct SampleGradient {
  float2 offset;
  float attention;

  MASK2FORMER_DEVICE SampleGradient(const Sample& sample, const Frame& frame, float weight, const float (&product)[4]) {
    const Axis &x = sample.x, &y = sample.y;
    // The value in the row or column of corners.
    const float upper = x.weight[0] * product[0] + x.weight[1] * product[1];
    const float lower = x.weight[0] * product[2] + x.weight[1] * product[3];
    const float left = y.weight[0] * product[0] + y.weight[1] * product[2];
    const float right = y.weight[0] * product[1] + y.weight[1] * product[3];
    attention = y.weight[0] * upper + y.weight[1] * lower;
    offset.x = weight * frame.scale_x * (x.slope[0] * left + x.slope[1] * right);
    offset.y = weight * frame.scale_y * (y.slope[0] * upper + y.slope[1] * lower);
  }
};

// ---- Samples in registers, of the fast kernels ----

struct Slots {
  float attention[kSlots];  // weights, for the fused operator after the softmax

  MASK2FORMER_DEVICE Slots(const Problem& problem, const Item& item) {
    const int64_t first = item.number * (kLanes * kSlots) + item.lane;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) attention[i] = __ldg(problem.attention + first + kLanes * i);
    if (problem.reference != nullptr)
      softmax();
  }

  // Not kept, because the registers are needed for more.
  static MASK2FORMER_DEVICE float2 offset(const Problem& problem, const Item& item, int i) {
    const float2* offsets = reinterpret_cast<const float2*>(problem.offsets);
    return __ldg(offsets + item.number * (kLanes * kSlots) + item.lane + kLanes * i);
  }

  MASK2FORMER_DEVICE void softmax() {
    float max = attention[0];
#pragma unroll
    for (int i = 1; i < kSlots; ++i) max = fmaxf(max, attention[i]);
    max = largest<kLanes>(max);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      attention[i] = expf(attention[i] - max);
      total += attention[i];
    }
    const float scale = 1.0f / sum<kLanes>(total);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) attention[i] *= scale;
  }
};

// ---- Samples in memory, any number of them: every lane locates each one when it is its turn ----

struct AnySamples {
  float max = 0.0f, scale = 1.0f;  // weight = scale * exp(logit - max), for the fused operator

  MASK2FORMER_DEVICE AnySamples(const Problem& problem, const Item& item) {
    if (problem.reference == nullptr)
      return;
    const float* logits = problem.attention + item.number * problem.num_samples;
    max = __ldg(logits);
    for (int32_t s = item.lane; s < problem.num_samples; s += kAnyLanes) max = fmaxf(max, __ldg(logits + s));
    max = largest<kAnyLanes>(max);
    float total = 0.0f;
    for (int32_t s = item.lane; s < problem.num_samples; s += kAnyLanes) total += expf(__ldg(logits + s) - max);
    scale = 1.0f / sum<kAnyLanes>(total);
  }

  MASK2FORMER_DEVICE float weight(const Problem& problem, const Item& item, int32_t sample) const {
    const float attention = __ldg(problem.attention + item.number * problem.num_samples + sample);
    return problem.reference == nullptr ? attention : scale * expf(attention - max);
  }

  MASK2FORMER_DEVICE float2 offset(const Problem& problem, const Item& item, int32_t sample) const {
    const float* offsets = problem.offsets + 2 * (item.number * problem.num_samples + sample);
    return {__ldg(offsets), __ldg(offsets + 1)};
  }
};

// ---- Which (query, head) a thread works on ----

// In the fast kernels, whose blocks are (head, tile of queries, image). The queries of a tile, of one head, find each
// other's pixels in the cache: a rectangle of the level, or just the next ones in order.
MASK2FORMER_DEVICE Item item_of_tile(const Problem& problem) {
  const int32_t head = static_cast<int32_t>(blockIdx.x);
  const int32_t tile = static_cast<int32_t>(blockIdx.y);
  const int32_t image = static_cast<int32_t>(blockIdx.z);
  const int32_t group = static_cast<int32_t>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (!problem.tiled) {
    const int32_t query = tile * kQueriesPerBlock + group;
    const bool exists = query < problem.num_queries;
    return Item(problem, image, exists ? query : problem.num_queries - 1, head, lane, exists);
  }
  int32_t index = kLevels - 1;
  while (tile < problem.levels[index].first_tile) --index;
  const Level& level = problem.levels[index];
  const int32_t tiles_in_row = (level.width + kTileWidth - 1) / kTileWidth;
  const int32_t x = (tile - level.first_tile) % tiles_in_row * kTileWidth + group % kTileWidth;
  const int32_t y = (tile - level.first_tile) / tiles_in_row * kTileHeight + group / kTileWidth;
  const bool exists = x < level.width && y < level.height;
  return Item(problem, image, level.first_pixel + (exists ? y * level.width + x : 0), head, lane, exists);
}

// In the fast kernels the lanes of kRowItems items read rows together: the one that lane `owner` of these works on.
template <typename Scalar>
MASK2FORMER_DEVICE Item item_of_lane(const Problem& problem, const Item& item, int owner) {
  const int32_t query = broadcast<kRowLanes<Scalar>>(item.query, owner);
  const int32_t exists = broadcast<kRowLanes<Scalar>>(static_cast<int32_t>(item.exists), owner);
  return Item(problem, item.image, query, item.head, item.lane, exists != 0);
}

template <typename Scalar>
MASK2FORMER_DEVICE int row_lane() {
  return static_cast<int>(threadIdx.x) % kRowLanes<Scalar>;
}

// In the fast kernels, where the whole value is small enough for that: bytes from row to row of the value, where the
// first channel of a head and lane is, and bytes up to an item's row of the output or its gradient.
template <typename Scalar, int kKnownHeads>
MASK2FORMER_DEVICE uint32_t row_bytes_of(const Problem& problem) {
  return (kKnownHeads > 0 ? kKnownHeads : problem.num_heads) * kHeadBytes<Scalar>;
}

template <typename Scalar, int kKnownHeads>
MASK2FORMER_DEVICE const char* first_of(const Problem& problem, const Item& item) {
  return static_cast<const char*>(problem.value) +
         (item.image * problem.num_pixels * row_bytes_of<Scalar, kKnownHeads>(problem) + item.head * kHeadBytes<Scalar> +
          row_lane<Scalar>() * 16);
}

template <typename Scalar>
MASK2FORMER_DEVICE uint32_t output_byte_of(const Item& item) {
  return static_cast<uint32_t>(item.number) * kHeadBytes<Scalar>;
}

// In the kernels for any sizes: items one after the other.
MASK2FORMER_DEVICE Item item_in_order(const Problem& problem) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t items = static_cast<int64_t>(problem.num_images) * problem.num_queries * problem.num_heads;
  const bool exists = thread / kAnyLanes < items;
  const int64_t number = exists ? thread / kAnyLanes : items - 1;
  const int64_t query = number / problem.num_heads;
  return Item(problem, static_cast<int32_t>(query / problem.num_queries),
              static_cast<int32_t>(query % problem.num_queries), static_cast<int32_t>(number % problem.num_heads),
              static_cast<int>(thread % kAnyLanes), exists);
}

}  // namespace cuda
}  // namespace mask2former
