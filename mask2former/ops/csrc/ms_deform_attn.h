// What the dispatcher side (ms_deform_attn.cpp) and the vector code (ms_deform_attn_kernels.cpp) agree on.
//
// Shapes, as in the Python functions: N images, S pixels of all levels, M heads, D channels per head, Q queries,
// L levels, P points. One "sample" is one of the L * P points of a (query, head); its value is interpolated from four
// "corners", the pixels around it.
#pragma once

#include <cstdint>

namespace mask2former {

// The widest vectors have this many floats, and what the kernels keep of one sample is this many vectors.
constexpr int kMaxLanes = 16, kVectorsPerSample = 20;

struct Level {
  float height, width;
  int32_t first_pixel;  // in the value
};

// Sizes and contiguous arrays of one call. Scalar is float or bfloat16 (as uint16_t) for void pointers.
struct Problem {
  int64_t num_images, num_pixels, num_heads, head_dim, num_queries, num_levels, num_points;
  int64_t num_samples;  // L * P
  const Level* levels;  // L

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
  float* samples;   // L * P * kVectorsPerSample * kMaxLanes
  float* padded;    // kMaxLanes * (2 * L * P + kMaxLanes)
  float* products;  // kMaxLanes * (4 * L * P + kMaxLanes), backward only
  float* row;       // D, backward only
  float* head;      // S * D forward, S * 2 * D backward: what a head needs of all pixels
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
