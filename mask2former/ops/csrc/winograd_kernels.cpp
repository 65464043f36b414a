// The transforms of Winograd's convolution for one instruction set: compiled once for each, with the compiler's flags
// for it and MASK2FORMER_KERNELS set to its name. Vectorised over channels.
//
// The tile's polynomials are evaluated at 0, a, -a, b, -b and infinity. Common choices, as 1 and 2, lose a digit; with
// 3/4 and 3/2 errors are those of a direct convolution. These two and their products are exact in float32.
#include "vector.h"
#include "winograd.h"

namespace mask2former {
namespace {

static_assert(kChannelsTogether % kLanes == 0, "no vector has channels left over");

constexpr float a = 0.75f, b = 1.5f;
constexpr float aa = a * a, bb = b * b;

// B^T x of the paper.
MASK2FORMER_INLINE void to_points(const Float (&x)[kInput], Float (&y)[kInput]) {
  const Float even_a = x[4] - bb * x[2], odd_a = a * (x[3] - bb * x[1]);
  const Float even_b = x[4] - aa * x[2], odd_b = b * (x[3] - aa * x[1]);
  y[0] = aa * bb * x[0] - (aa + bb) * x[2] + x[4];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = aa * bb * x[1] - (aa + bb) * x[3] + x[5];
}

// A^T x of the paper.
MASK2FORMER_INLINE void from_points(const Float (&x)[kInput], Float (&y)[kTile]) {
  const Float even_a = x[1] + x[2], odd_a = x[1] - x[2];
  const Float even_b = x[3] + x[4], odd_b = x[3] - x[4];
  y[0] = x[0] + even_a + even_b;
  y[1] = a * odd_a + b * odd_b;
  y[2] = aa * even_a + bb * even_b;
  y[3] = aa * a * odd_a + bb * b * odd_b + x[5];
}

// The transpose of from_points.
MASK2FORMER_INLINE void to_points(const Float (&x)[kTile], Float (&y)[kInput]) {
  const Float even_a = x[0] + aa * x[2], odd_a = a * x[1] + aa * a * x[3];
  const Float even_b = x[0] + bb * x[2], odd_b = b * x[1] + bb * b * x[3];
  y[0] = x[0];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = x[3];
}

// Where a tile begins in the maps.
struct Place {
  int64_t image, y, x;
  Place(const Tiling& tiling, int64_t tile)
      : image(tile / (tiling.rows * tiling.columns)),
        y(tile / tiling.columns % tiling.rows * kTile),
        x(tile % tiling.columns * kTile) {}
};

// Transforms squares of kSide pixels, which begin kBorder pixels before their tiles.
template <int64_t kSide, int64_t kBorder>
MASK2FORMER_INLINE void transform(const Tiling& tiling, const float* pixels, const float* zeros, int64_t channels,
                                  int64_t begin, int64_t end, float* to, Strides strides) {
  for (int64_t tile = begin; tile < end; ++tile, to += strides.tile) {
    const Place place(tiling, tile);
    const float* from[kSide][kSide];
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t j = 0; j < kSide; ++j) {
        const int64_t y = place.y + i - kBorder, x = place.x + j - kBorder;
        const bool inside = y >= 0 && y < tiling.height && x >= 0 && x < tiling.width;
        from[i][j] = inside ? pixels + ((place.image * tiling.height + y) * tiling.width + x) * channels : zeros;
      }
    }
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      Float half[kSide][kInput];  // columns transformed, transposed
#pragma GCC unroll 6
      for (int64_t j = 0; j < kSide; ++j) {
        Float column[kSide];
#pragma GCC unroll 6
        for (int64_t i = 0; i < kSide; ++i) column[i] = load<Float>(from[i][j] + channel);
        to_points(column, half[j]);
      }
#pragma GCC unroll 6
      for (int64_t i = 0; i < kInput; ++i) {
        Float row[kSide], result[kInput];
#pragma GCC unroll 6
        for (int64_t j = 0; j < kSide; ++j) row[j] = half[j][i];
        to_points(row, result);
#pragma GCC unroll 6
        for (int64_t j = 0; j < kInput; ++j) store(to + (kInput * i + j) * strides.plane + channel, result[j]);
      }
    }
  }
}

void transform_input(const Tiling& tiling, const float* pixels, const float* zeros, int64_t channels, int64_t begin,
                     int64_t end, float* to, Strides strides) {
  transform<kInput, 1>(tiling, pixels, zeros, channels, begin, end, to, strides);
}

void transform_gradient(const Tiling& tiling, const float* pixels, const float* zeros, int64_t channels, int64_t begin,
                        int64_t end, float* to, Strides strides) {
  transform<kTile, 0>(tiling, pixels, zeros, channels, begin, end, to, strides);
}

void transform_output(const Tiling& tiling, const float* tiles, Strides strides, const float* bias, int64_t channels,
                      int64_t begin, int64_t end, float* pixels) {
  for (int64_t tile = begin; tile < end; ++tile, tiles += strides.tile) {
    const Place place(tiling, tile);
    const int64_t below = tiling.height - place.y, right = tiling.width - place.x;
    const int64_t rows = below < kTile ? below : kTile, columns = right < kTile ? right : kTile;
    float* to = pixels + ((place.image * tiling.height + place.y) * tiling.width + place.x) * channels;
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
      const Float offset = load<Float>(bias + channel);
      Float half[kInput][kTile];
#pragma GCC unroll 6
      for (int64_t j = 0; j < kInput; ++j) {
        Float column[kInput];
#pragma GCC unroll 6
        for (int64_t i = 0; i < kInput; ++i)
          column[i] = load<Float>(tiles + (kInput * i + j) * strides.plane + channel);
        from_points(column, half[j]);
      }
#pragma GCC unroll 4
      for (int64_t i = 0; i < kTile; ++i) {
        if (i >= rows)
          break;
        Float row[kInput], result[kTile];
#pragma GCC unroll 6
        for (int64_t j = 0; j < kInput; ++j) row[j] = half[j][i];
        from_points(row, result);
#pragma GCC unroll 4
        for (int64_t j = 0; j < kTile; ++j) {
          if (j < columns)
            store(to + (i * tiling.width + j) * channels + channel, result[j] + offset);
        }
      }
    }
  }
}

}  // namespace

const WinogradKernels MASK2FORMER_NAME(winograd_, MASK2FORMER_KERNELS) = {transform_input, transform_gradient,
                                                                          transform_output};

}  // namespace mask2former
