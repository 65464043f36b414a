// Where samples lie between the pixels of a map. Only for *_kernels.cpp, and internal to them like vector.h.
#pragma once

#include "vector.h"

namespace mask2former {
namespace {

// Along one axis: the two pixels around a sample, clamped to the map, and for each
struct Axis {
  Int pixel[2];
  Float inside[2];  // 1 if it is in the map, else 0
  Float weight[2];  // its share of the sample's value; 0 outside the map
};

MASK2FORMER_INLINE Axis locate_on_axis(Float position, Float size, Int last) {
  // From two pixels beyond either end on nothing is read any more, and up to there the conversion to integers is safe.
  // A NaN goes on into the weights, and so into the output.
  const Float least = Float{} - 2.0f;
  position = least > position ? least : position;
  position = size < position ? size : position;
  const Float finite = position == position ? position : Float{};
  const Int truncated = __builtin_convertvector(finite, Int);
  const Int index = truncated + (__builtin_convertvector(truncated, Float) > finite);  // true is -1
  const Float fraction = position - __builtin_convertvector(index, Float);
  const Float weight[2] = {1.0f - fraction, fraction};
  Axis axis;
  for (int i = 0; i < 2; ++i) {
    const Int pixel = index + i;
    const Int at_least_0 = pixel < 0 ? Int{} : pixel;
    axis.pixel[i] = at_least_0 < last ? at_least_0 : last;
    // GCC makes one instruction of a comparison that is used at once, but many of masks that are kept and combined.
    axis.inside[i] = axis.pixel[i] == pixel ? Float{} + 1.0f : Float{};
    axis.weight[i] = axis.pixel[i] == pixel ? weight[i] : Float{};
  }
  return axis;
}

}  // namespace
}  // namespace mask2former
