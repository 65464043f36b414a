// What the dispatcher side (winograd.cpp) and the vector code (winograd_kernels.cpp) agree on.
//
// A convolution of 3x3 pixels by Winograd's algorithm F(4x4, 3x3): Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", CVPR 2016. A tile of 6x6 pixels and the weights are transformed; then 36 products of numbers make
// what 144 would make: 4x4 pixels of the result, transformed. The gradient of the weights is made of as few: the
// transforms are linear, so that of the result's gradient is its transform's transpose.
#pragma once

#include <cstdint>

namespace mask2former {

constexpr int64_t kTile = 4;                  // pixels of the result on a side
constexpr int64_t kInput = kTile + 2;         // pixels that these are made of
constexpr int64_t kPlanes = kInput * kInput;  // numbers of a transformed tile
constexpr int64_t kChannelsTogether = 16;     // numbers of channels are multiples of this

// Maps (N, height, width, channels) in tiles, which are counted row by row, image after image.
struct Tiling {
  int64_t height, width, rows, columns;  // the latter two in tiles
};

// How far transformed tiles lie apart, and the 36 numbers of each: either may be the outer dimension.
struct Strides {
  int64_t tile, plane;
};

// The kernels for one instruction set. Pointers to transformed tiles are those of tile `begin`.
struct WinogradKernels {
  // Transforms tiles begin..end of `pixels`, around which all is 0; `zeros` are as many as channels.
  void (*transform_input)(const Tiling&, const float* pixels, const float* zeros, int64_t channels, int64_t begin,
                          int64_t end, float* to, Strides strides);
  // Transforms tiles begin..end of the result's gradient by the transpose of the transform back.
  void (*transform_gradient)(const Tiling&, const float* pixels, const float* zeros, int64_t channels, int64_t begin,
                             int64_t end, float* to, Strides strides);
  // Transforms them back and writes them, the bias added, where they lie inside the maps.
  void (*transform_output)(const Tiling&, const float* tiles, Strides strides, const float* bias, int64_t channels,
                           int64_t begin, int64_t end, float* pixels);
};

extern const WinogradKernels winograd_kernels_baseline, winograd_kernels_avx2, winograd_kernels_avx512;

}  // namespace mask2former
