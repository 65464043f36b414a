// What the dispatcher side (points.cpp) and the vector code (points_kernels.cpp) agree on.
//
// Points are (x, y) in 0..1; 0 and 1 are the outer edges of a map, whatever its resolution, and outside it is 0.
#pragma once

#include <cstdint>

namespace mask2former {

constexpr int64_t kPixelChannels = 32;    // a pixel's embedding has a multiple of so many channels
constexpr int64_t kPointsTogether = 256;  // whose places are found at once for several masks

// How many pixels a map has.
struct MapSize {
  int64_t height, width;
};

// Masks that are looked at in the same points: mask i is where the map `maps[i]` has the number `ids[i]`.
struct MaskRows {
  int64_t count;
  const int64_t* maps;
  const int32_t* ids;
};

// The kernels for one instruction set.
struct PointKernels {
  // Bilinear samples (count, channels) of embeddings (H, W, channels), of float or bfloat16 (as uint16_t).
  void (*sample_pixels[2])(const void* pixels, MapSize, int64_t channels, const float* points, int64_t count, void* to);
  // Bilinear samples of masks at up to kPointsTogether points, each `stride` floats after the one before, of maps
  // (T, H, W) of uint8_t or int32_t.
  void (*sample_masks[2])(const void* maps, MapSize, const MaskRows&, const float* points, int64_t count, float* to,
                          int64_t stride);
  // Of candidates those where the logits (H, W) are nearest to 0; of equal ones the first, and those with NaN only if
  // nothing else is left. `certainty` is memory for as many floats as there are candidates.
  void (*most_uncertain)(const float* logits, MapSize, const float* candidates, int64_t count, int64_t chosen,
                         float* certainty, float* to);
};

extern const PointKernels point_kernels_baseline, point_kernels_avx2, point_kernels_avx512;

}  // namespace mask2former
