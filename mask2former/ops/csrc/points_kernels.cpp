// Values of maps at points for one instruction set: compiled once for each, with the compiler's flags for it and
// MASK2FORMER_KERNELS set to its name.
#include <utility>

#include "bilinear.h"
#include "points.h"
#include "vector.h"

namespace mask2former {
namespace {

// ---- Places of points ----

// Of kLanes points the four pixels around them, row by row, and their weights.
struct Places {
  int32_t pixel[4][kLanes];
  float weight[4][kLanes];
};

template <int... kLane>
MASK2FORMER_INLINE void split_pairs(const float* pairs, Float& x, Float& y, std::integer_sequence<int, kLane...>) {
  const Float a = load<Float>(pairs), b = load<Float>(pairs + kLanes);
  x = shuffle(a, b, std::integer_sequence<int, (2 * kLane)...>{});
  y = shuffle(a, b, std::integer_sequence<int, (2 * kLane + 1)...>{});
}

// The places of up to kLanes points; lanes without one have one of those that are there.
MASK2FORMER_INLINE void locate(MapSize size, const float* points, int64_t count, Places& places) {
  float padded[2 * kLanes];
  if (count < kLanes) {
    for (int64_t i = 0; i < 2 * kLanes; ++i) padded[i] = points[i < 2 * count ? i : i % 2];
    points = padded;
  }
  Float x, y;
  split_pairs(points, x, y, std::make_integer_sequence<int, kLanes>{});
  const float width = size.width, height = size.height;
  const Axis columns = locate_on_axis(x * width - 0.5f, Float{} + width, Int{} + static_cast<int32_t>(size.width - 1));
  const Axis rows = locate_on_axis(y * height - 0.5f, Float{} + height, Int{} + static_cast<int32_t>(size.height - 1));
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    store(places.pixel[k], rows.pixel[k / 2] * static_cast<int32_t>(size.width) + columns.pixel[k % 2]);
    store(places.weight[k], rows.weight[k / 2] * columns.weight[k % 2]);
  }
}

// Numbers of a map around the points of vector v.
template <typename From, typename To>
MASK2FORMER_INLINE void look_up(const From* map, const Places& places, int64_t v, To (&to)[4][kPointsTogether]) {
  for (int k = 0; k < 4; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) to[k][v * kLanes + lane] = map[places.pixel[k][lane]];
  }
}

// ---- Embeddings of pixels ----

template <typename Scalar>
void sample_pixels(const void* pixels_, MapSize size, int64_t channels, const float* points, int64_t count, void* to_) {
  const Scalar* pixels = static_cast<const Scalar*>(pixels_);
  Scalar* to = static_cast<Scalar*>(to_);
  using Block = Channels<Scalar, kPixelChannels>;
  for (int64_t first = 0; first < count; first += kLanes) {
    Places places;
    locate(size, points + 2 * first, count - first, places);
    for (int64_t lane = 0; lane < min(kLanes, count - first); ++lane, to += channels) {
      for (int64_t channel = 0; channel < channels; channel += kPixelChannels) {
        Block sum = {};
        for (int k = 0; k < 4; ++k) {
          const Block corner(pixels + places.pixel[k][lane] * channels + channel);
          for (int p = 0; p < Block::kParts; ++p) sum.part[p] += places.weight[k][lane] * corner.part[p];
        }
        sum.store_to(to + channel);
      }
    }
  }
}

// ---- Masks ----

template <typename Id>
void sample_masks(const void* maps_, MapSize size, const MaskRows& masks, const float* points, int64_t count, float* to,
                  int64_t stride) {
  const Id* maps = static_cast<const Id*>(maps_);
  Places places[kPointsTogether / kLanes];
  int32_t ids[4][kPointsTogether];  // of the pixels around the points, in the map that was looked at last
  const int64_t vectors = (count + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; ++v) locate(size, points + 2 * v * kLanes, count - v * kLanes, places[v]);
  for (int64_t i = 0; i < masks.count; ++i, to += stride) {
    if (i == 0 || masks.maps[i] != masks.maps[i - 1]) {
      const Id* map = maps + masks.maps[i] * size.height * size.width;
      for (int64_t v = 0; v < vectors; ++v) look_up(map, places[v], v, ids);
    }
    for (int64_t v = 0; v < vectors; ++v) {
      Float sum = {};
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Int id = load<Int>(ids[k] + v * kLanes);
        sum += id == masks.ids[i] ? load<Float>(places[v].weight[k]) : Float{};
      }
      sum = sum > 1.0f ? Float{} + 1.0f : sum;  // by rounding alone
      if (count - v * kLanes >= kLanes) {
        store(to + v * kLanes, sum);
      } else {
        __builtin_memcpy(to + v * kLanes, &sum, sizeof(float) * (count - v * kLanes));
      }
    }
  }
}

// ---- The most uncertain points ----

// Of numbers that are not negative, NaN counting as the largest, the `rank`th in increasing order (from 1), as its
// bits, and how many are smaller. Bits of such numbers are in the same order as the numbers.
MASK2FORMER_INLINE int32_t select(const float* numbers, int64_t count, int64_t rank, int64_t& smaller_ones) {
  int32_t found = 0;
  smaller_ones = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const int32_t tried = found | (1 << bit);
    Int below = {};
    int64_t i = 0, total = 0;
    for (; i + kLanes <= count; i += kLanes) below -= load<Int>(numbers + i) < tried;
    for (int lane = 0; lane < kLanes; ++lane) total += below[lane];
    for (; i < count; ++i) total += bit_cast<int32_t>(numbers[i]) < tried;
    if (total < rank) {
      found = tried;
      smaller_ones = total;
    }
  }
  return found;
}

// Writes the absolute values of logits at points.
MASK2FORMER_INLINE void measure_certainty(const float* logits, MapSize size, const float* points, int64_t count,
                                          float* certainty) {
  Places places[kPointsTogether / kLanes];
  float values[4][kPointsTogether];
  for (int64_t first = 0; first < count; first += kPointsTogether) {
    // One loop after the other, so that no vector is read whose parts have only just been written.
    const int64_t here = min(kPointsTogether, count - first), vectors = (here + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vectors; ++v) locate(size, points + 2 * (first + v * kLanes), here - v * kLanes, places[v]);
    for (int64_t v = 0; v < vectors; ++v) look_up(logits, places[v], v, values);
    for (int64_t v = 0; v < vectors; ++v) {
      Float sum = {};
      for (int k = 0; k < 4; ++k) sum += load<Float>(values[k] + v * kLanes) * load<Float>(places[v].weight[k]);
      const Float absolute = bit_cast<Float>(bit_cast<Int>(sum) & 0x7fffffff);
      const int64_t i = first + v * kLanes;
      __builtin_memcpy(certainty + i, &absolute, sizeof(float) * min(kLanes, count - i));
    }
  }
}

void most_uncertain(const float* logits, MapSize size, const float* candidates, int64_t count, int64_t chosen,
                    float* certainty, float* to) {
  measure_certainty(logits, size, candidates, count, certainty);
  int64_t taken = 0, smaller_ones;
  const int32_t limit = select(certainty, count, chosen, smaller_ones);
  const auto take = [&](int64_t i) { __builtin_memcpy(to + 2 * taken, candidates + 2 * i, 2 * sizeof(float)); };
  for (int64_t i = 0; i < count; ++i) {
    take(i);  // or the next one in its place: without a branch, which nobody could predict
    taken += bit_cast<int32_t>(certainty[i]) < limit;
  }
  for (int64_t i = 0; taken < chosen; ++i) {
    if (bit_cast<int32_t>(certainty[i]) == limit) {
      take(i);
      ++taken;
    }
  }
}

}  // namespace

const PointKernels MASK2FORMER_NAME(point_, MASK2FORMER_KERNELS) = {
    {sample_pixels<float>, sample_pixels<BFloat16>}, {sample_masks<uint8_t>, sample_masks<int32_t>}, most_uncertain};

}  // namespace mask2former
