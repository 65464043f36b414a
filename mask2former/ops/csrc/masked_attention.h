// What the dispatcher side (masked_attention.cpp) and the vector code (masked_attention_kernels.cpp) agree on.
#pragma once

#include <cstdint>

namespace mask2former {

constexpr int64_t kHeadDims = 32;      // a head has a multiple of so many channels
constexpr int64_t kKeysTogether = 64;  // that are looked at, or left out, at once
constexpr int64_t kQueriesTogether = 4;

// Contiguous arrays, (N, Q or S, heads * head_dim) of float or bfloat16 (as uint16_t), and (N, Q, S) of 0 and 1.
struct Attention {
  int64_t num_queries, num_keys, num_heads, head_dim;
  const void *query, *key, *value;
  const uint8_t* attend;
  void* output;
};

// Memory of one thread for so many queries, a multiple of kQueriesTogether.
struct AttentionScratch {
  float *query, *sums;     // (queries, head_dim): scaled queries, and weighted sums of values
  float *largest, *total;  // (queries,): the largest logit so far, and the sum of weights relative to it
  float *keys, *values;    // (head_dim, kKeysTogether) and (kKeysTogether, head_dim)
  float* weights;          // (kQueriesTogether, kKeysTogether)
};

// The kernels for one instruction set, indexed by whether the arrays are of bfloat16: one head's output for queries
// begin..end of an image.
struct AttentionKernels {
  void (*attend[2])(const Attention&, int64_t image, int64_t head, int64_t begin, int64_t end, const AttentionScratch&);
};

extern const AttentionKernels attention_kernels_baseline, attention_kernels_avx2, attention_kernels_avx512;

}  // namespace mask2former
