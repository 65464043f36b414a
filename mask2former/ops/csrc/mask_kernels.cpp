// Resizing masks for one instruction set, and what is asked of the result: compiled once for each, with the compiler's
// flags for it and MASK2FORMER_KERNELS set to its name.
//
// A mask is widened row by row, each row once, and the few widened rows that an output row needs are added up while
// they are in the first-level cache. No resized mask is ever written to memory unless it is the result.
#include "masks.h"
#include "vector.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mask2former {
namespace {

// A range of places on an axis.
struct Range {
  int64_t begin, end;
};

MASK2FORMER_INLINE Float sigmoid(Float x) {
  // Of the exponential of -|x|, which cannot overflow.
  const Float small = exp_of_negative(x > 0.0f ? -x : x);
  return (x > 0.0f ? Float{} + 1.0f : small) / (1.0f + small);
}

MASK2FORMER_INLINE float sigmoid(float x) { return sigmoid(Float{} + x)[0]; }

// Asked of every vector, and GCC takes one apart lane by lane for that.
MASK2FORMER_INLINE bool any(Int condition) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(condition)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bit_cast<__m256>(condition)) != 0;
#else
  int64_t lanes[sizeof(Int) / 8];
  store(lanes, condition);
  int64_t found = 0;
  for (int64_t lane : lanes) found |= lane;
  return found != 0;
#endif
}

// One mask, its rows widened as they are needed.
class WideRows {
 public:
  WideRows(const Masks& masks, int64_t mask, Range columns, const MaskScratch& scratch)
      : masks_(masks), logits_(masks.logits + mask * masks.height * masks.width), columns_(columns), scratch_(scratch) {
    for (int64_t i = 0; i < masks.rows.taps; ++i) scratch.held[i] = -1;
  }

  // Writes an output row between the columns.
  MASK2FORMER_INLINE void add_up(int64_t output_row, float* __restrict to) const {
    const Axis& rows = masks_.rows;
    const float* weights = rows.weights + output_row;
    const float* first = widened(rows.first[output_row]);
    const float weight = weights[0];
    for (int64_t x = columns_.begin; x < columns_.end; ++x) to[x] = weight * first[x];
    for (int64_t tap = 1; tap < rows.taps; ++tap) {
      const float next_weight = weights[tap * rows.length];
      if (next_weight == 0.0f)
        continue;
      const float* __restrict next = widened(rows.first[output_row] + tap);
      for (int64_t x = columns_.begin; x < columns_.end; ++x) to[x] += next_weight * next[x];
    }
  }

 private:
  // A row of the mask at the output's width.
  MASK2FORMER_INLINE const float* widened(int64_t mask_row) const {
    const int64_t slot = mask_row % masks_.rows.taps;
    float* __restrict to = scratch_.wide_rows + slot * masks_.columns.length;
    if (scratch_.held[slot] == mask_row)
      return to;
    scratch_.held[slot] = mask_row;
    const Axis& columns = masks_.columns;
    const float* __restrict from = logits_ + mask_row * masks_.width;
    for (int64_t x = columns_.begin; x < columns_.end; ++x) to[x] = columns.weights[x] * from[columns.first[x]];
    for (int64_t tap = 1; tap < columns.taps; ++tap) {
      const float* __restrict weights = columns.weights + tap * columns.length;
      for (int64_t x = columns_.begin; x < columns_.end; ++x) to[x] += weights[x] * from[columns.first[x] + tap];
    }
    return to;
  }

  const Masks& masks_;
  const float* logits_;
  Range columns_;
  const MaskScratch& scratch_;
};

void resize(const Masks& masks, int64_t mask, int64_t begin, int64_t end, bool as_probability,
            const MaskScratch& scratch, float* to) {
  const int64_t width = masks.columns.length;
  const WideRows rows(masks, mask, {0, width}, scratch);
  for (int64_t row = begin; row < end; ++row, to += width) {
    rows.add_up(row, to);
    if (!as_probability)
      continue;
    int64_t x = 0;
    for (; x + kLanes <= width; x += kLanes) store(to + x, sigmoid(load<Float>(to + x)));
    for (; x < width; ++x) to[x] = sigmoid(to[x]);
  }
}

// Where on an axis of the output something can be positive, if masks are so in [begin, end) only.
Range reach(const Axis& axis, Range positive) {
  Range result{0, axis.length};
  while (result.begin < result.end && axis.first[result.begin] + axis.taps <= positive.begin) ++result.begin;
  while (result.begin < result.end && axis.first[result.end - 1] >= positive.end) --result.end;
  return result;
}

// The rows and columns of a mask between which its positive logits are.
void find_positive(const Masks& masks, int64_t mask, Range& rows, Range& columns) {
  rows = columns = {0, 0};
  const float* logits = masks.logits + mask * masks.height * masks.width;
  for (int64_t row = 0; row < masks.height; ++row, logits += masks.width) {
    int64_t first = 0, last = masks.width;
    while (first < last && !(logits[first] > 0.0f)) ++first;
    if (first == last)
      continue;
    while (!(logits[last - 1] > 0.0f)) --last;
    const bool is_first = rows.end == 0;
    rows = {is_first ? row : rows.begin, row + 1};
    columns = {is_first || first < columns.begin ? first : columns.begin, last > columns.end ? last : columns.end};
  }
}

// Writes 1 where a logit is positive, and returns the number of these; adds up their probabilities.
MASK2FORMER_INLINE int64_t threshold(const float* logits, Range columns, uint8_t* to, double& probability) {
  int32_t area = 0;
  for (int64_t x = columns.begin; x < columns.end; ++x) {
    to[x] = logits[x] > 0.0f;
    area += to[x];
  }
  if (area == 0)
    return 0;
  Float sum = {};
  int64_t x = columns.begin;
  for (; x + kLanes <= columns.end; x += kLanes) {
    const Float logit = load<Float>(logits + x);
    const Int positive = logit > 0.0f;
    if (any(positive))
      sum += positive ? sigmoid(logit) : Float{};
  }
  probability += sum_lanes(sum);
  for (; x < columns.end; ++x) probability += logits[x] > 0.0f ? sigmoid(logits[x]) : 0.0f;
  return area;
}

void binarise(const Masks& masks, int64_t mask, const MaskScratch& scratch, uint8_t* to, Measures& measures) {
  const int64_t height = masks.rows.length, width = masks.columns.length;
  if (height * width > 0)  // else `to` can be null
    __builtin_memset(to, 0, height * width);
  // A weighted mean is not positive where no logit is.
  Range mask_rows, mask_columns;
  find_positive(masks, mask, mask_rows, mask_columns);
  const Range reached = reach(masks.rows, mask_rows), columns = reach(masks.columns, mask_columns);
  const WideRows rows(masks, mask, columns, scratch);
  measures = {0, width, height, 0, 0, 0.0};
  for (int64_t row = reached.begin; row < reached.end; ++row) {
    rows.add_up(row, scratch.row);
    uint8_t* pixels = to + row * width;
    const int64_t area = threshold(scratch.row, columns, pixels, measures.probability);
    if (area == 0)
      continue;
    int64_t left = columns.begin, right = columns.end;
    while (!pixels[left]) ++left;
    while (!pixels[right - 1]) --right;
    measures.area += area;
    measures.left = left < measures.left ? left : measures.left;
    measures.right = right > measures.right ? right : measures.right;
    measures.top = row < measures.top ? row : measures.top;
    measures.bottom = row + 1;
  }
}

// Lets a mask compete for a vector of pixels: `best` is the highest score so far, and `winner` 2 * mask + inside.
// `area` counts where the mask's own probability is at least one half.
MASK2FORMER_INLINE void compete_for(Float logit, float score, int32_t mask, float* best, int32_t* winner, Int& area) {
  const Float so_far = load<Float>(best);
  const Int own = logit >= 0.0f;
  // Outside of a mask its probability is below one half.
  if (!any(own | (so_far < 0.5f * score)))
    return;
  const Float strength = score * sigmoid(logit);
  const Int better = strength > so_far;
  store(best, better ? strength : so_far);
  const Int claim = (own ? Int{} + 1 : Int{}) + 2 * mask;
  store(winner, better ? claim : load<Int>(winner));
  area -= own;
}

void compete(const Masks& masks, const float* scores, int64_t begin, int64_t end, const MaskScratch& scratch,
             int32_t* winner, bool* inside, int64_t* areas) {
  const int64_t width = masks.columns.length, pixels = (end - begin) * width;
  if (pixels == 0)
    return;
  for (int64_t i = 0; i < pixels; ++i) scratch.best[i] = -1.0f;
  __builtin_memset(winner, 0, pixels * sizeof(int32_t));
  for (int64_t mask = 0; mask < masks.count; ++mask) {
    if (!(scores[mask] > 0.0f))
      continue;
    const WideRows rows(masks, mask, {0, width}, scratch);
    for (int64_t row = 0; row < end - begin; ++row) {
      rows.add_up(begin + row, scratch.row);
      float* best = scratch.best + row * width;
      int32_t* winners = winner + row * width;
      Int area = {};
      for (int64_t x = 0; x < width; x += kLanes) {
        if (x + kLanes <= width) {
          compete_for(load<Float>(scratch.row + x), scores[mask], static_cast<int32_t>(mask), best + x, winners + x,
                      area);
          continue;
        }
        // The rest of a row, in a vector of its own whose other lanes can neither win nor be inside.
        float logits[kLanes], bests[kLanes];
        int32_t claims[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const bool exists = x + i < width;
          logits[i] = exists ? scratch.row[x + i] : -1.0f;
          bests[i] = exists ? best[x + i] : 2.0f;
          claims[i] = exists ? winners[x + i] : 0;
        }
        compete_for(load<Float>(logits), scores[mask], static_cast<int32_t>(mask), bests, claims, area);
        for (int64_t i = 0; x + i < width; ++i) {
          best[x + i] = bests[i];
          winners[x + i] = claims[i];
        }
      }
      for (int i = 0; i < kLanes; ++i) areas[mask] += area[i];
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    const int32_t mask = winner[i] >> 1;
    inside[i] = winner[i] & 1;
    winner[i] = mask;
    areas[masks.count + mask] += 1;
    areas[2 * masks.count + mask] += inside[i];
  }
}

constexpr int kBlock = kAcross * kLanes;  // pixels whose scores stay in registers
static_assert(kBlock <= kPixelsTogether, "a block has memory");

// Lets a panel of classes, from `first` on, compete for a block of pixels; `best` are the highest scores so far.
MASK2FORMER_INLINE void compete_in_panel(const ClassMix& mix, int64_t first, const float* block, Float (&best)[kAcross],
                                         Int (&winner)[kAcross]) {
  Float scores[kClassesTogether][kAcross] = {};
  add_products(scores, mix.panels + first * mix.masks, 1, kClassesTogether, mix.masks, block, kBlock);
#pragma GCC unroll 6
  for (int i = 0; i < kClassesTogether; ++i) {
    if (first + i >= mix.classes)
      break;
#pragma GCC unroll 4
    for (int j = 0; j < kAcross; ++j) {
      const Int better = ~(scores[i][j] <= best[j]) & (best[j] == best[j]);  // a NaN stays the best
      best[j] = better ? scores[i][j] : best[j];
      winner[j] = better ? Int{} + static_cast<int32_t>(first + i) : winner[j];
    }
  }
}

void classify(const ClassMix& mix, int64_t begin, int64_t end, float* block, int64_t* classes) {
  const float lowest = -__builtin_inff();
  for (int64_t x = begin; x < end; x += kBlock) {
    const int64_t here = min(kBlock, end - x);
    // Together, for all panels: pixels of different masks can lie so far apart that a cache has no room for them.
    for (int64_t mask = 0; mask < mix.masks; ++mask) {
      float* to = block + mask * kBlock;
      __builtin_memcpy(to, mix.inside + mask * mix.pixels + x, here * sizeof(float));
      for (int64_t i = here; i < kBlock; ++i) to[i] = 0.0f;
    }
    Float best[kAcross];
    Int winner[kAcross] = {};
    for (int j = 0; j < kAcross; ++j) best[j] = Float{} + lowest;
    for (int64_t first = 0; first < mix.classes; first += kClassesTogether)
      compete_in_panel(mix, first, block, best, winner);
    for (int64_t i = 0; i < here; ++i) classes[x + i] = winner[i / kLanes][i % kLanes];
  }
}

}  // namespace

const MaskKernels MASK2FORMER_NAME(mask_, MASK2FORMER_KERNELS) = {resize, binarise, compete, classify};

}  // namespace mask2former
