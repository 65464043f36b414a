// From the offsets and attention of queries to the corners of their samples and the weights of these. One vector has
// one number of kLanes queries, a lane each, so that no lane idles whatever the number of samples. Only for
// ms_deform_attn_kernels.cpp, and internal to it like vector.h.
#pragma once

#include "bilinear.h"
#include "ms_deform_attn.h"
#include "vector.h"

namespace mask2former {
namespace {

// ---- Queries ----

// Up to kLanes neighbouring queries of one head.
struct Queries {
  int64_t image, head, first, count;

  // The number of a (query, head) among all of the call. Lanes without a query take part as the last one.
  MASK2FORMER_INLINE int64_t item(const Problem& problem, int64_t lane) const {
    return (image * problem.num_queries + first + min(lane, count - 1)) * problem.num_heads + head;
  }
};

// Where the rows of the queries are in an array that has a row of `length` numbers for every item of the call. Whole
// vectors can be read up to the end of a row: one that the array does not go far enough for is copied to `padded`.
MASK2FORMER_INLINE void find_rows(const Problem& problem, const Queries& queries, const float* array, int64_t length,
                                  float* padded, const float* (&rows)[kLanes]) {
  const int64_t readable = (length + kLanes - 1) / kLanes * kLanes;
  const int64_t end = problem.num_images * problem.num_queries * problem.num_heads * length;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t begin = queries.item(problem, lane) * length;
    rows[lane] = array + begin;
    if (begin + readable > end) {
      float* copy = padded + lane * readable;
      for (int64_t i = 0; i < length; ++i) copy[i] = array[begin + i];
      rows[lane] = copy;
    }
  }
}

// Reads rows, of which the lanes have one each. The numbers of a column go to to(column).
template <typename To>
MASK2FORMER_INLINE void load_columns(const float* const (&rows)[kLanes], int64_t length, const To& to) {
  for (int64_t column = 0; column < length; column += kLanes) {
    Float block[kLanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) block[lane] = load<Float>(rows[lane] + column);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (column + i < length)
        store(to(column + i), block[i]);
    }
  }
}

// The inverse, for `count` lanes: from(column) are the numbers of a column, and the row of a lane goes to to(lane).
template <typename From, typename To>
MASK2FORMER_INLINE void store_columns(int64_t count, int64_t length, const From& from, const To& to) {
  for (int64_t column = 0; column < length; column += kLanes) {
    Float rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = load<Float>(from(min(column + i, length - 1)));
    transpose(rows);
    const int64_t bytes = sizeof(float) * min(kLanes, length - column);
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane < count)
        __builtin_memcpy(to(lane) + column, &rows[lane], bytes);
    }
  }
}

// ---- Samples ----

// One sample of kLanes queries. Corner k is (row k / 2, column k % 2) of the 2 x 2 pixels around it.
struct Sample {
  float offset[2][kLanes];   // x and y; after the gradient is known, that
  float attention[kLanes];   // of the fused operator the logit, then the weight
  float weight[4][kLanes];   // of a corner: bilinear, times attention; 0 outside the level
  int32_t pixel[4][kLanes];  // row of the value; some pixel of the level where the corner is outside
  // For the gradient, of a column or row of corners: 1 inside the level and 0 outside, and its bilinear weight.
  float column_inside[2][kLanes], row_inside[2][kLanes];
  float column_weight[2][kLanes], row_weight[2][kLanes];
  float grad_attention[kLanes];
};
static_assert(sizeof(Sample) == sizeof(float) * kLanes * kVectorsPerSample && kLanes <= kMaxLanes, "as Scratch has it");

// Where a level's offsets count from and in what: position in pixels = start + scale * offset.
struct Frame {
  Float start_x, start_y;
  float scale_x, scale_y;
};

MASK2FORMER_INLINE Frame frame_of(const Problem& problem, const Queries& queries, int64_t level) {
  const float width = problem.levels[level].width, height = problem.levels[level].height;
  // Half a pixel, because positions count from the centre of the first pixel.
  const Float half = Float{} + 0.5f;
  if (problem.reference == nullptr)
    return {-half, -half, width, height};
  float x[kLanes], y[kLanes];
  const float* points = problem.reference + queries.image * problem.reference_image_stride +
                        queries.first * problem.reference_query_stride + level * problem.reference_level_stride;
  for (int lane = 0; lane < kLanes; ++lane) {
    const float* point = points + min(lane, queries.count - 1) * problem.reference_query_stride;
    x[lane] = point[0];
    y[lane] = point[1];
  }
  return {load<Float>(x) * width - half, load<Float>(y) * height - half, 1.0f, 1.0f};
}

// Its offset and attention are set.
template <bool kForGradient>
MASK2FORMER_INLINE void locate_sample(const Frame& frame, const Level& level, Sample& sample) {
  const int32_t height = static_cast<int32_t>(level.height), width = static_cast<int32_t>(level.width);
  const Axis x = locate_on_axis(frame.start_x + frame.scale_x * load<Float>(sample.offset[0]), Float{} + level.width,
                                Int{} + (width - 1));
  const Axis y = locate_on_axis(frame.start_y + frame.scale_y * load<Float>(sample.offset[1]), Float{} + level.height,
                                Int{} + (height - 1));
  for (int row = 0; row < 2; ++row) {
    const Float row_weight = load<Float>(sample.attention) * y.weight[row];
    const Int row_pixel = y.pixel[row] * width + level.first_pixel;
    for (int column = 0; column < 2; ++column) {
      store(sample.weight[2 * row + column], row_weight * x.weight[column]);
      store(sample.pixel[2 * row + column], row_pixel + x.pixel[column]);
    }
  }
  if constexpr (kForGradient) {
    for (int i = 0; i < 2; ++i) {
      store(sample.column_inside[i], x.inside[i]);
      store(sample.column_weight[i], x.weight[i]);
      store(sample.row_inside[i], y.inside[i]);
      store(sample.row_weight[i], y.weight[i]);
    }
  }
}

// Turns the samples' logits into weights that add up to 1.
MASK2FORMER_INLINE void softmax(Sample* samples, int64_t num_samples) {
  Float max = load<Float>(samples[0].attention), sum = {};
  for (int64_t i = 1; i < num_samples; ++i) max = larger(max, load<Float>(samples[i].attention));
  for (int64_t i = 0; i < num_samples; ++i) {
    const Float weight = exp_of_negative(load<Float>(samples[i].attention) - max);
    store(samples[i].attention, weight);
    sum += weight;
  }
  const Float scale = 1.0f / sum;
  for (int64_t i = 0; i < num_samples; ++i) store(samples[i].attention, load<Float>(samples[i].attention) * scale);
}

// Locates all samples of some queries.
template <bool kForGradient>
MASK2FORMER_INLINE void locate(const Problem& problem, int64_t num_samples, const Queries& queries, float* padded,
                               Sample* samples) {
  if (num_samples == 0)
    return;
  const float* rows[kLanes];
  find_rows(problem, queries, problem.attention, num_samples, padded, rows);
  load_columns(rows, num_samples, [=](int64_t sample) { return samples[sample].attention; });
  find_rows(problem, queries, problem.offsets, 2 * num_samples, padded, rows);
  load_columns(rows, 2 * num_samples, [=](int64_t column) { return samples[column / 2].offset[column % 2]; });
  if (problem.reference != nullptr)
    softmax(samples, num_samples);
  for (int64_t level = 0; level < problem.num_levels; ++level) {
    const Frame frame = frame_of(problem, queries, level);
    const Level copy = problem.levels[level];  // else the compiler would read it again after each store
    const int64_t points = problem.num_points;
    for (int64_t point = 0; point < points; ++point) {
      locate_sample<kForGradient>(frame, copy, samples[level * points + point]);
    }
  }
}

}  // namespace
}  // namespace mask2former
