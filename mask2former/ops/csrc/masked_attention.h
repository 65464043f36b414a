// What the dispatcher side (masked_attention.cpp) and the vector code (masked_attention_kernels.cpp) agree on.
#pragma once

#include <cstdint>

namespace mask2former {

constexpr int64_t kHeadDims = 32;      // a head has a multiple of so many channels
constexpr int64_t kKeysTogether = 64;  // that are looked at, or left out, at once
constexpr int64_t kQueriesTogether = 4;

// How many queries there are in whole groups.
inline int64_t round_up_queries(int64_t queries) {
  return (queries + kQueriesTogether - 1) / kQueriesTogether * kQueriesTogether;
}

// Contiguous arrays, (N, Q or S, heads * head_dim) of float or bfloat16 (as uint16_t), and (N, Q, S) of 0 and 1.
struct Attention {
  int64_t num_queries, num_keys, num_heads, head_dim;
  const void *query, *key, *value;
  const uint8_t* attend;
  void* output;
  float* logsumexp;  // (N, heads, Q): the logarithm of what a query's weights were divided by
};

// The same and what its gradients are made of. The gradient of the queries is a sum over parts of the keys.
struct AttentionGradient {
  Attention forward;
  const void* grad_output;
  void *grad_query, *grad_key, *grad_value;
  float* grad_query_parts;  // (parts, N, heads, whole groups of queries, head_dim), channels in the kernels' order
  int64_t num_images, num_parts;
};

// Memory of one thread for so many queries, a multiple of kQueriesTogether.
struct AttentionScratch {
  float *query, *sums;     // (queries, head_dim): scaled queries, and weighted sums of values
  float *largest, *total;  // (queries,): the largest logit so far, and the sum of weights relative to it
  float *keys, *values;    // (head_dim, kKeysTogether) and (kKeysTogether, head_dim)
  float* weights;          // (kQueriesTogether, kKeysTogether)
};

// Memory of one thread for so many queries, a multiple of kQueriesTogether.
struct AttentionGradientScratch {
  float *query, *grad_output;       // (queries, head_dim), the queries scaled
  float* overlap;                   // (queries,): products of the output and its gradient
  float *keys, *values, *key_rows;  // (head_dim, kKeysTogether) twice, and (kKeysTogether, head_dim)
  float *weights, *grad_logits;     // (queries, kKeysTogether), of groups of queries that look at a block
  int64_t* groups;                  // (queries / kQueriesTogether,): the first query of each of these
};

// The kernels for one instruction set, indexed by whether the arrays are of bfloat16, for one head of an image.
struct AttentionKernels {
  // The output for queries begin..end.
  void (*attend[2])(const Attention&, int64_t image, int64_t head, int64_t begin, int64_t end, const AttentionScratch&);
  // The gradients of keys and values begin..end, where blocks of keys begin, and one part of that of the queries.
  void (*differentiate[2])(const AttentionGradient&, int64_t image, int64_t head, int64_t part, int64_t begin,
                           int64_t end, const AttentionGradientScratch&);
  // The gradient of the queries.
  void (*add_parts[2])(const AttentionGradient&, int64_t image, int64_t head);
};

extern const AttentionKernels attention_kernels_baseline, attention_kernels_avx2, attention_kernels_avx512;

}  // namespace mask2former
