// What the dispatcher side (masks.cpp) and the vector code (mask_kernels.cpp) agree on.
//
// Masks are logits at the network's resolution, and a mask at the output's is a linear function of them: each output
// row is a weighted sum of a few neighbouring mask rows, and likewise each column.
#pragma once

#include <cstdint>

namespace mask2former {

// Along one axis, for each place in the output `taps` neighbouring places of a mask, from `first` on, and their
// weights.
struct Axis {
  int64_t length, taps;
  const int32_t* first;  // (length,), not decreasing
  const float* weights;  // (taps, length): none is negative
};

// Q masks (Q, height, width) and how to resize them.
struct Masks {
  int64_t count, height, width;
  const float* logits;
  Axis rows, columns;
};

// Memory of one thread.
struct MaskScratch {
  float* wide_rows;  // rows.taps rows of columns.length: mask rows at the output's width
  int64_t* held;     // rows.taps: which mask row each of them is; -1 for none
  float* row;        // columns.length
  float* best;       // band rows of columns.length; for `compete` alone
};

// What is measured of a binary mask.
struct Measures {
  int64_t area, left, top, right, bottom;  // pixels; the box is [left, right) x [top, bottom), empty if area is 0
  double probability;                      // sum over the area
};

// So many classes are scored at a time, and the most pixels.
constexpr int64_t kClassesTogether = 6, kPixelsTogether = 64;

// Probabilities of K classes and of pixels (Q, pixels), for each of Q masks.
struct ClassMix {
  int64_t masks, classes, pixels;
  const float* panels;  // of classes: (K / kClassesTogether rounded up, Q, kClassesTogether), 0 where there is none
  const float* inside;  // of pixels
};

// The kernels for one instruction set.
struct MaskKernels {
  // Writes rows begin..end of a resized mask, as logits or as probabilities.
  void (*resize)(const Masks&, int64_t mask, int64_t begin, int64_t end, bool sigmoid, const MaskScratch&, float* to);
  // Writes a binary mask, 1 where its logit is positive, and measures it.
  void (*binarise)(const Masks&, int64_t mask, const MaskScratch&, uint8_t* to, Measures&);
  // For rows begin..end: which mask has the highest probability times score at a pixel, the first of equals, and
  // whether its probability there is at least one half. Masks whose score is not positive take no part; a pixel that
  // none wins, for logits can be NaN, goes to the first mask of all, outside of it. Adds to areas (3, Q): pixels where
  // a mask's own probability is so high, that it wins, and both.
  void (*compete)(const Masks&, const float* scores, int64_t begin, int64_t end, const MaskScratch&, int32_t* winner,
                  bool* inside, int64_t* areas);
  // For pixels begin..end: the class with the highest sum over masks of both probabilities, the first of equals or NaN.
  // `block` is memory for (Q, kPixelsTogether).
  void (*classify)(const ClassMix&, int64_t begin, int64_t end, float* block, int64_t* classes);
};

extern const MaskKernels mask_kernels_baseline, mask_kernels_avx2, mask_kernels_avx512;

}  // namespace mask2former
