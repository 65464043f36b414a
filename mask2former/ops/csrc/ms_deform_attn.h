// What the dispatcher side (ms_deform_attn.cpp) and the vector code (ms_deform_attn_kernels.cpp) agree on.
//
// Shapes, as in the Python function: N images, S pixels of all levels, M heads, D channels per head, Q queries,
// L levels, P points. One "sample" is one of the L * P points of a (query, head); its value is interpolated from four
// "corners", the pixels around it.
#pragma once

#include <cstdint>

namespace mask2former {

// Samples are located this many at a time, whatever the width of the machine's registers.
constexpr int kGroup = 16;

// The level that each sample of a group reads; beyond the last sample a 1 x 1 level that starts at pixel 0.
struct GroupLevels {
  float width[kGroup];
  float height[kGroup];
  int32_t start[kGroup];
};

// The corners of a group of samples. Corner k is (row k / 2, column k % 2) of the 2 x 2 pixels around a sample.
struct Group {
  float weight[4][kGroup];   // bilinear weight times attention; 0 outside the level
  int32_t pixel[4][kGroup];  // row of `value`; some pixel of the level where the corner is outside
  int32_t inside[4][kGroup]; // all bits set where the corner is inside the level
  float right[kGroup];       // distance to the left column of corners, in pixels
  float below[kGroup];       // distance to the upper row of corners
};

// Sizes and contiguous arrays of one call. Scalar is float or bfloat16 (as uint16_t) for void pointers.
struct Problem {
  int64_t num_images, num_pixels, num_heads, head_dim, num_queries, num_samples;
  const GroupLevels* levels;  // one per group of samples

  const void* value;         // (N, S, M, D) Scalar
  const float* locations;    // (N, Q, M, L, P, 2)
  const float* attention;    // (N, Q, M, L, P)
  void* output;              // (N, Q, M, D) Scalar, forward only

  const void* grad_output;   // (N, Q, M, D) Scalar, here and below backward only
  void* grad_value;          // like value
  float* grad_locations;     // like locations
  float* grad_attention;     // like attention
};

// The kernels for one instruction set, indexed by whether Scalar is bfloat16.
struct Kernels {
  // Writes the output of (image, query) pairs begin..end.
  void (*forward[2])(const Problem&, int64_t begin, int64_t end, Group* scratch);
  // Writes all gradients of (image, head) pairs begin..end; scratch holds S * D floats.
  void (*backward[2])(const Problem&, int64_t begin, int64_t end, float* scratch);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

}  // namespace mask2former
