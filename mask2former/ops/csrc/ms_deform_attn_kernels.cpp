// Multi-scale deformable attention for one instruction set: compiled once for each, with the compiler's flags for it
// and MASK2FORMER_KERNELS set to the name of its table of kernels.
//
// One (query, head) has L * P samples of four corners. Locating them is vectorised over samples, interpolating over
// channels. There are no branches on where a sample lies: a corner outside its level has weight 0.
//
// A head's rows of D channels lie M * D apart in the value, which the sets of a cache hold badly. So heads are the
// outer loop and a head's rows are copied next to each other first: neighbouring queries then find most of them in the
// first-level cache. What belongs to a query lies as far apart, but is needed in order: it is prefetched.
#include "ms_deform_attn.h"
#include "samples.h"
#include "vector.h"

#include <type_traits>

namespace mask2former {
namespace {

constexpr int kMaxChannels = 4 * kLanes;  // of one Channels

// ---- Sizes ----

// D and L * P: of types that hold them where the compiler shall know them, so that loops over them have known lengths.
template <typename HeadDim, typename Samples>
struct Sizes {
  HeadDim head_dim;
  Samples samples;
  MASK2FORMER_INLINE int64_t groups() const { return (samples + kGroup - 1) / kGroup; }
};

// Calls body(sizes).
template <typename Body>
MASK2FORMER_INLINE void with_sizes(const Problem& problem, const Body& body) {
  if (problem.head_dim == 32 && problem.num_samples == 12) {  // Mask2Former's
    body(Sizes<std::integral_constant<int64_t, 32>, std::integral_constant<int64_t, 12>>{});
  } else {
    body(Sizes<int64_t, int64_t>{problem.head_dim, problem.num_samples});
  }
}

// ---- Memory ----

MASK2FORMER_INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}
MASK2FORMER_INLINE void prefetch_to_write(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 1);
}
constexpr int64_t kQueriesAhead = 8, kPixelsAhead = 16;  // by measurement; beyond an array a prefetch does nothing

// Calls body(channel, number of channels) for all channels: as many as possible at a time, the rest in halves of that.
template <int kChannels, typename Body>
MASK2FORMER_INLINE void for_channels(int64_t channel, int64_t head_dim, const Body& body) {
  for (; channel + kChannels <= head_dim; channel += kChannels) body(channel, std::integral_constant<int, kChannels>{});
  if constexpr (kChannels > 1) {
    if (channel < head_dim)
      for_channels<kChannels / 2>(channel, head_dim, body);
  }
}

// A row as floats, in the order of its parts.
template <typename Scalar>
MASK2FORMER_INLINE void widen_row(const Scalar* from, float* to, int64_t head_dim) {
  for_channels<kMaxChannels>(0, head_dim, [=](int64_t channel, auto channels) {
    using Block = Channels<Scalar, decltype(channels)::value>;
    const Block block(from + channel);
    for (int p = 0; p < Block::kParts; ++p) store(to + channel + p * Block::kWidth, block.part[p]);
  });
}

// The inverse of widen_row.
template <typename Scalar>
MASK2FORMER_INLINE void narrow_row(const float* from, Scalar* to, int64_t head_dim) {
  for_channels<kMaxChannels>(0, head_dim, [=](int64_t channel, auto channels) {
    using Block = Channels<Scalar, decltype(channels)::value>;
    Block block;
    for (int p = 0; p < Block::kParts; ++p) {
      block.part[p] = load<typename Block::Part>(from + channel + p * Block::kWidth);
    }
    block.store_to(to + channel);
  });
}

// ---- Forward ----

// Calls body(query, count) for batches of queries. Locating all samples of a batch first overlaps the latencies of its
// queries, with no need to look beyond the long interpolation between them.
template <typename Body>
MASK2FORMER_INLINE void for_batches(int64_t first_query, int64_t last_query, const Body& body) {
  for (int64_t query = first_query; query < last_query; query += kBatch) body(query, min(kBatch, last_query - query));
}

// Interpolates kChannels channels of one (query, head).
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void interpolate(const Group* groups, int64_t num_samples, const Scalar* value, int64_t row_stride,
                                    Scalar* output) {
  using Block = Channels<Scalar, kChannels>;
  constexpr int kSums = Block::kParts < 4 ? 4 : 2;  // so that additions need not wait for each other
  typename Block::Part sums[kSums][Block::kParts] = {};
  for (const Group* group = groups; num_samples > 0; ++group, num_samples -= kGroup) {
    const int count = static_cast<int>(min(num_samples, kGroup));
    for (int i = 0; i < count; ++i) {
      for (int k = 0; k < 4; ++k) {
        const Block corner(value + group->pixel[k][i] * row_stride);
        for (int p = 0; p < Block::kParts; ++p) sums[k % kSums][p] += group->weight[k][i] * corner.part[p];
      }
    }
  }
  Block result;
  for (int p = 0; p < Block::kParts; ++p) {
    result.part[p] = sums[0][p] + sums[1][p];
    if constexpr (kSums == 4)
      result.part[p] += sums[2][p] + sums[3][p];
  }
  result.store_to(output);
}

// Copies the rows of a head next to each other.
template <typename Scalar>
MASK2FORMER_INLINE void pack_rows(const Scalar* value, int64_t row_stride, int64_t pixels, int64_t head_dim,
                                  Scalar* rows) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const Scalar* from = value + pixel * row_stride;
    Scalar* to = rows + pixel * head_dim;
    prefetch(from + kPixelsAhead * row_stride, head_dim * sizeof(Scalar));
    for_channels<kMaxChannels>(0, head_dim, [=](int64_t channel, auto channels) {
      __builtin_memcpy(to + channel, from + channel, decltype(channels)::value * sizeof(Scalar));
    });
  }
}

// Interpolates queries first_query..last_query of one head. `value` is that of its first pixel and channel.
template <typename Scalar, typename Sizes>
MASK2FORMER_INLINE void interpolate_queries(const Problem& problem, const Sizes& sizes, int64_t image, int64_t head,
                                            int64_t first_query, int64_t last_query, const Scalar* value,
                                            int64_t row_stride, Group* groups) {
  const auto head_dim = sizes.head_dim;
  const auto samples = sizes.samples;
  Scalar* all_output = static_cast<Scalar*>(problem.output);
  for_batches(first_query, last_query, [&](int64_t query, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t ahead = item_of(problem, image, query + i + kQueriesAhead, head);
      prefetch(problem.offsets + ahead * 2 * samples, 2 * samples * sizeof(float));
      prefetch(problem.attention + ahead * samples, samples * sizeof(float));
      prefetch_to_write(all_output + ahead * head_dim, head_dim * sizeof(Scalar));
      locate<false>(problem, samples, image, query + i, head, groups + i * sizes.groups());
    }
    for (int64_t i = 0; i < count; ++i) {
      Scalar* output = all_output + item_of(problem, image, query + i, head) * head_dim;
      for_channels<kMaxChannels>(0, head_dim, [&](int64_t channel, auto channels) {
        interpolate<Scalar, decltype(channels)::value>(groups + i * sizes.groups(), samples, value + channel, row_stride,
                                                       output + channel);
      });
    }
  });
}

template <typename Scalar, typename Sizes>
MASK2FORMER_INLINE void run_forward(const Problem& problem, const Sizes& sizes, int64_t begin, int64_t end,
                                    const Scratch& scratch) {
  const int64_t queries = problem.num_queries, heads = problem.num_heads, pixels = problem.num_pixels;
  const auto head_dim = sizes.head_dim;
  while (begin < end) {  // one head a turn
    const int64_t image = begin / queries / heads, head = begin / queries % heads;
    const int64_t first_query = begin % queries, last_query = min(queries, first_query + end - begin);
    begin += last_query - first_query;
    const Scalar* value = static_cast<const Scalar*>(problem.value) + (image * pixels * heads + head) * head_dim;
    if ((last_query - first_query) * sizes.samples >= pixels) {
      Scalar* rows = reinterpret_cast<Scalar*>(scratch.head);
      pack_rows(value, heads * head_dim, pixels, head_dim, rows);
      interpolate_queries<Scalar>(problem, sizes, image, head, first_query, last_query, rows, head_dim, scratch.groups);
    } else {  // most rows would be copied in vain
      interpolate_queries<Scalar>(problem, sizes, image, head, first_query, last_query, value, heads * head_dim,
                                  scratch.groups);
    }
  }
}

template <typename Scalar>
void forward(const Problem& problem, int64_t begin, int64_t end, const Scratch& scratch) {
  with_sizes(problem, [&](const auto& sizes) { run_forward<Scalar>(problem, sizes, begin, end, scratch); });
}

// ---- Backward ----

// Per corner and sample of a group: the product of the output's gradient and the corner's value, summed over channels.
struct Products {
  float sum[4][kGroup];
};

// kChannels channels of one group. `rows` has the gradient of the value (D) and the value (D) of every pixel.
template <int kChannels>
MASK2FORMER_INLINE void differentiate(const Group& group, int count, const float* grad_output, float* rows,
                                      int64_t head_dim, Products& products) {
  using Block = Channels<float, kChannels>;
  using Part = typename Block::Part;
  constexpr int kWidth = Block::kWidth;
  const Block grad(grad_output);
  Part partial[4][kGroup];  // beyond `count` anything: it stays in lanes that are not used
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < 4; ++k) {
      float* row = rows + group.pixel[k][i] * (2 * head_dim);
      const Block corner(row + head_dim);
      const float weight = group.weight[k][i];  // the compiler would read it again after each store
      Part product = grad.part[0] * corner.part[0];
      for (int p = 1; p < Block::kParts; ++p) product += grad.part[p] * corner.part[p];
      partial[k][i] = product;
      for (int p = 0; p < Block::kParts; ++p) {
        store(row + p * kWidth, load<Part>(row + p * kWidth) + weight * grad.part[p]);
      }
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < count; i += kWidth) {
      const Part sums = sum_rows<kWidth, kWidth>(partial[k] + i);
      store(products.sum[k] + i, load<Part>(products.sum[k] + i) + sums);
    }
  }
}

// From the products of a group to the gradients of its offsets and attention; `first` counts all samples of the call.
MASK2FORMER_INLINE void finish_group(const Problem& problem, int64_t first, int count, const GroupLevels& levels,
                                     const Group& group, const Products& products) {
  float grad_x[kGroup], grad_y[kGroup], grad_attention[kGroup];
  for (int lane = 0; lane < count; lane += kLanes) {
    const auto at = [lane](const float* values) { return load<Float>(values + lane); };
    Float upper = {}, lower = {}, left = {}, right = {};  // the value in the row or column of corners
    for (int i = 0; i < 2; ++i) {
      upper += at(group.column_weight[i]) * at(products.sum[i]);
      lower += at(group.column_weight[i]) * at(products.sum[2 + i]);
      left += at(group.row_weight[i]) * at(products.sum[2 * i]);
      right += at(group.row_weight[i]) * at(products.sum[2 * i + 1]);
    }
    const Float slope_x = at(group.column_inside[1]) * right - at(group.column_inside[0]) * left;
    const Float slope_y = at(group.row_inside[1]) * lower - at(group.row_inside[0]) * upper;
    store(grad_attention + lane, at(group.row_weight[0]) * upper + at(group.row_weight[1]) * lower);
    store(grad_x + lane, at(group.attention) * at(levels.scale_x) * slope_x);
    store(grad_y + lane, at(group.attention) * at(levels.scale_y) * slope_y);
  }
  for (int i = 0; i < count; ++i) {
    problem.grad_attention[first + i] = grad_attention[i];
    problem.grad_offsets[2 * (first + i)] = grad_x[i];
    problem.grad_offsets[2 * (first + i) + 1] = grad_y[i];
  }
}

// From the gradients of the weights of one (query, head) to those of their logits.
MASK2FORMER_INLINE void softmax_backward(const Group* groups, int64_t num_samples, float* grad_attention) {
  const auto attention = [groups](int64_t sample) { return groups[sample / kGroup].attention[sample % kGroup]; };
  float mean = 0.0f;
  for (int64_t sample = 0; sample < num_samples; ++sample) mean += attention(sample) * grad_attention[sample];
  for (int64_t sample = 0; sample < num_samples; ++sample) {
    grad_attention[sample] = attention(sample) * (grad_attention[sample] - mean);
  }
}

// Adds one (query, head), the number `item` of all, to the gradient of the value, and writes its other gradients.
template <typename Sizes>
MASK2FORMER_INLINE void differentiate_query(const Problem& problem, const Sizes& sizes, int64_t item,
                                            const Group* groups, const float* grad, float* rows) {
  const auto head_dim = sizes.head_dim;
  const auto samples = sizes.samples;
  for (int64_t sample = 0, g = 0; sample < samples; sample += kGroup, ++g) {
    const int count = static_cast<int>(min(samples - sample, kGroup));
    Products products = {};
    for_channels<kMaxChannels>(0, head_dim, [&](int64_t channel, auto channels) {
      differentiate<decltype(channels)::value>(groups[g], count, grad + channel, rows + channel, head_dim, products);
    });
    finish_group(problem, item * samples + sample, count, problem.levels[g], groups[g], products);
  }
  if (problem.reference != nullptr)
    softmax_backward(groups, samples, problem.grad_attention + item * samples);
}

template <typename Scalar, typename Sizes>
MASK2FORMER_INLINE void run_backward(const Problem& problem, const Sizes& sizes, int64_t begin, int64_t end,
                                     const Scratch& scratch) {
  const auto head_dim = sizes.head_dim;
  const auto samples = sizes.samples;
  const int64_t heads = problem.num_heads, pixels = problem.num_pixels, row_stride = heads * head_dim;
  const Scalar* all_grad_output = static_cast<const Scalar*>(problem.grad_output);
  float* rows = scratch.head;
  for (; begin < end; ++begin) {
    const int64_t image = begin / heads, head = begin % heads;
    const int64_t first_row = (image * pixels * heads + head) * head_dim;
    const Scalar* value = static_cast<const Scalar*>(problem.value) + first_row;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      prefetch(value + (pixel + kPixelsAhead) * row_stride, head_dim * sizeof(Scalar));
      float* row = rows + pixel * 2 * head_dim;
      __builtin_memset(row, 0, head_dim * sizeof(float));
      widen_row(value + pixel * row_stride, row + head_dim, head_dim);
    }
    for_batches(0, problem.num_queries, [&](int64_t query, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t ahead = item_of(problem, image, query + i + kQueriesAhead, head);
        prefetch(all_grad_output + ahead * head_dim, head_dim * sizeof(Scalar));
        prefetch(problem.offsets + ahead * 2 * samples, 2 * samples * sizeof(float));
        prefetch(problem.attention + ahead * samples, samples * sizeof(float));
        prefetch_to_write(problem.grad_offsets + ahead * 2 * samples, 2 * samples * sizeof(float));
        prefetch_to_write(problem.grad_attention + ahead * samples, samples * sizeof(float));
        locate<true>(problem, samples, image, query + i, head, scratch.groups + i * sizes.groups());
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t item = item_of(problem, image, query + i, head);
        widen_row(all_grad_output + item * head_dim, scratch.row, head_dim);
        differentiate_query(problem, sizes, item, scratch.groups + i * sizes.groups(), scratch.row, rows);
      }
    });
    Scalar* grad_value = static_cast<Scalar*>(problem.grad_value) + first_row;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      narrow_row(rows + pixel * 2 * head_dim, grad_value + pixel * row_stride, head_dim);
    }
  }
}

template <typename Scalar>
void backward(const Problem& problem, int64_t begin, int64_t end, const Scratch& scratch) {
  with_sizes(problem, [&](const auto& sizes) { run_backward<Scalar>(problem, sizes, begin, end, scratch); });
}

}  // namespace

extern const Kernels MASK2FORMER_KERNELS = {{forward<float>, forward<BFloat16>}, {backward<float>, backward<BFloat16>}};

}  // namespace mask2former
