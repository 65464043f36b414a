// What the dispatcher side (masks_cuda.cpp) and the kernels (mask_kernels.cu) agree on.
//
// What is computed is said in ../masks.h, and words are those of there: Q masks, whose logits are at the network's
// resolution, and for each axis of the output which few places of a mask a place is made of.
#pragma once

#include "call.h"

namespace mask2former {
namespace cuda {

constexpr int kPixels = 4;  // of a thread, beside each other
constexpr int kRows = 16;   // of a thread, below each other, where it works on one mask

struct MaskAxis {
  int32_t length, taps;
  int32_t size;          // of a mask
  const int32_t* first;  // (length,); what would leave the mask is moved into it
  const float* weights;  // (taps, length)
};

// Of a binary mask. All begin at zero, and are added up or raised, so that the order makes no difference.
struct MaskSums {
  unsigned long long area;         // pixels
  unsigned long long probability;  // summed over the area, in steps of 2^-24: exact, for they are from 1/2 to 1
  uint32_t left, top;              // pixels from the box's edge to the output's right or lower one
  uint32_t right, bottom;
};

// Sizes and contiguous arrays of one call, passed to the kernels by value. Scalar is the type of the logits.
struct MaskProblem {
  int32_t count;  // Q
  MaskAxis rows, columns;
  const void* logits;  // (Q, rows.size, columns.size) Scalar
  int32_t begin, end;  // rows of the output that are computed

  // resize
  bool sigmoid;
  float* resized;  // (Q, end - begin, columns.length)

  // binarise
  bool* binary;        // (Q, rows.length, columns.length)
  MaskSums* sums;      // (Q,)
  int64_t* area;       // (Q,)
  float* probability;  // (Q,)
  float* boxes;        // (Q, 4)

  // compete
  const float* scores;        // (Q,)
  int32_t* winner;            // (rows.length, columns.length)
  bool* inside;               // likewise
  unsigned long long* areas;  // (3, Q), zeros at first
};

// Enqueue the kernels on a cudaStream_t. Return null, or what went wrong. There is at least one mask, and one pixel.
const char* run_resize(const MaskProblem& problem, Type type, void* stream);
const char* run_binarise(const MaskProblem& problem, Type type, void* stream);
const char* run_compete(const MaskProblem& problem, Type type, void* stream);

}  // namespace cuda
}  // namespace mask2former
