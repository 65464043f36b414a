// What the dispatcher side (ms_deform_attn.cpp) and the vector code (ms_deform_attn_kernels.cpp) agree on.
//
// Shapes, as in the Python functions: N images, S pixels of all levels, M heads, D channels per head, Q queries,
// L levels, P points. One "sample" is one of the L * P points of a (query, head); its value is interpolated from four
// "corners", the pixels around it.
#pragma once

#include <cstdint>

namespace mask2former {

// Samples are located this many at a time, whatever the width of the machine's registers.
constexpr int kGroup = 16;

// The samples of this many queries are located before the first of these is interpolated (by measurement).
constexpr int64_t kBatch = 2;

// What is the same for all queries and heads about a group of samples. Position in pixels = start + scale * offset,
// where the start of the fused operator depends on the query. Beyond the last sample: a level of one pixel.
struct GroupLevels {
  float width[kGroup], height[kGroup];  // of the level
  float scale_x[kGroup], scale_y[kGroup];
  int32_t first_pixel[kGroup];  // of the level, in the value
  int32_t level[kGroup];
};

// The samples of a group and their corners. Corner k is (row k / 2, column k % 2) of the 2 x 2 pixels around a sample.
struct Group {
  float start_x[kGroup], start_y[kGroup];  // position of a sample whose offset is 0, in pixels
  float attention[kGroup];
  float weight[4][kGroup];   // of a corner: bilinear, times attention; 0 outside the level
  int32_t pixel[4][kGroup];  // row of the value; some pixel of the level where the corner is outside
  // For the gradient, of a column or row of corners: 1 inside the level and 0 outside, and its bilinear weight.
  float column_inside[2][kGroup], row_inside[2][kGroup];
  float column_weight[2][kGroup], row_weight[2][kGroup];
};

// Sizes and contiguous arrays of one call. Scalar is float or bfloat16 (as uint16_t) for void pointers.
struct Problem {
  int64_t num_images, num_pixels, num_heads, head_dim, num_queries, num_samples;
  const GroupLevels* levels;  // one per group of samples

  const void* value;       // (N, S, M, D) Scalar
  const float* offsets;    // (N, Q, M, L, P, 2): locations in 0..1; fused: offsets in pixels
  const float* attention;  // (N, Q, M, L, P): weights; fused: logits
  const float* reference;  // null; fused: (1 or N, Q, 1 or L, 2) reference points in 0..1
  int64_t reference_image_stride, reference_query_stride, reference_level_stride;
  void* output;  // (N, Q, M, D) Scalar, forward only

  const void* grad_output;  // (N, Q, M, D) Scalar, here and below backward only
  void* grad_value;         // like value
  float* grad_offsets;      // like offsets
  float* grad_attention;    // like attention
};

// Memory of one thread, aligned for vectors.
struct Scratch {
  Group* groups;  // the samples of kBatch queries for one head
  float* row;     // D
  float* head;    // S * D forward, S * 2 * D backward: what a head needs of all pixels
};

// The kernels for one instruction set, indexed by whether Scalar is bfloat16.
struct Kernels {
  // Writes the output of queries begin..end, counted over (image, head, query).
  void (*forward[2])(const Problem&, int64_t begin, int64_t end, const Scratch&);
  // Writes all gradients of heads begin..end, counted over (image, head).
  void (*backward[2])(const Problem&, int64_t begin, int64_t end, const Scratch&);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

}  // namespace mask2former
