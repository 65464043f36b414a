// What the dispatcher side (ms_deform_attn_cuda.cpp) and the kernels (kernels.cu) agree on.
//
// Shapes and words are those of ../ms_deform_attn.h: N images, S pixels of all levels, M heads, D channels per head,
// Q queries, L levels, P points; a "sample" is one of the L * P points of a (query, head), an "item", and is
// interpolated from four "corners".
#pragma once

#include "call.h"

namespace mask2former {
namespace cuda {

constexpr int kMaxLevels = 64;

// Lanes that locate the samples of a (query, head) where its sizes suit the fast kernels, and where they do not.
#ifndef MASK2FORMER_LANES
#define MASK2FORMER_LANES 4
#endif
constexpr int kLanes = MASK2FORMER_LANES, kAnyLanes = 8;

// How many heads Mask2Former's configurations have: known to the compiler, they are a tenth or so faster.
constexpr int kHeads = 8;

// The sizes of the fast kernels. Sample kLanes * i + lane of a (query, head) is slot i of the lane.
constexpr int kLevels = 3, kPoints = 4, kHeadDim = 32, kSlots = kLevels * kPoints / kLanes;

// They read a head's channels of a pixel at once, 16 bytes a lane: half precision with the lanes of one (query, head),
// float32 with those of two. For a GPU's cache, that is one access to one line.
template <typename Scalar>
constexpr uint32_t kHeadBytes = kHeadDim * sizeof(Scalar);
template <typename Scalar>
constexpr int kRowLanes = kHeadBytes<Scalar> / 16;
template <typename Scalar>
constexpr int kRowItems = kRowLanes<Scalar> / kLanes;

// If the queries are the levels' pixels, a block of the fast kernels takes a rectangle of them.
constexpr int kQueriesPerBlock = kThreads / kLanes, kTileWidth = 8, kTileHeight = kQueriesPerBlock / kTileWidth;

struct Level {
  int32_t height, width;
  int32_t first_pixel;  // in the value
  int32_t first_tile;   // of the level's tiles among those of an image; only where the queries are tiled
};

// Sizes and contiguous arrays of one call. It is passed to the kernels by value: reading it costs no memory access.
// Scalar is the type of the value, for void pointers.
struct Problem {
  int32_t num_images, num_pixels, num_heads, head_dim, num_queries, num_levels, num_points;
  int32_t num_samples;  // L * P
  int32_t num_tiles;    // in an image
  bool tiled;           // whether the queries are the levels' pixels, to be taken in tiles
  Level levels[kMaxLevels];

  const void* value;       // (N, S, M, D) Scalar
  const float* offsets;    // (N, Q, M, L, P, 2): locations in 0..1; fused: offsets in pixels
  const float* attention;  // (N, Q, M, L, P): weights; fused: logits
  const float* reference;  // null; fused: (1 or N, Q, 1 or L, 2) reference points in 0..1
  int64_t reference_image_stride, reference_query_stride, reference_level_stride;
  void* output;  // (N, Q, M, D) Scalar, forward only

  // Backward only.
  const void* grad_output;  // (N, Q, M, D) Scalar
  float* grad_offsets;      // like offsets
  float* grad_attention;    // like attention
  float* grad_value;        // (N, S, M, D), zeros at first; deterministic: null
  // Deterministic only: sums of fixed-point numbers do not depend on their order. All are zeros at first.
  int64_t* fixed_grad_value;  // (N, S, M, D)
  uint32_t* magnitudes;       // the bits of max |grad_output| and max |weights|; whether a summand was not finite
  void* rounded_grad_value;   // (N, S, M, D) Scalar, the result
};

// Enqueue the kernels on a cudaStream_t. Return null, or what went wrong.
const char* run_forward(const Problem& problem, Type type, void* stream);
const char* run_backward(const Problem& problem, Type type, void* stream);

}  // namespace cuda
}  // namespace mask2former
