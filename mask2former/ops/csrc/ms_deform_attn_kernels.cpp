// Multi-scale deformable attention for one instruction set: compiled once for each, with the compiler's flags for it
// and MASK2FORMER_KERNELS set to the name of its table of kernels.
//
// One (query, head) has L * P samples of four corners. Locating them is vectorised over queries, interpolating over
// channels. There are no branches on where a sample lies: a corner outside its level has weight 0.
//
// A head's rows of D channels lie M * D apart in the value, which the sets of a cache hold badly. So heads are the
// outer loop and a head's rows are copied next to each other first: neighbouring queries then find most of them in the
// first-level cache. What belongs to a query lies as far apart, but is needed in order: it is prefetched.
#include <type_traits>

#include "ms_deform_attn.h"
#include "samples.h"
#include "vector.h"

namespace mask2former {
namespace {

constexpr int kMaxChannels = 4 * kLanes;  // of one Channels

// ---- Sizes ----

// D and L * P: of types that hold them where the compiler shall know them, so that loops over them have known lengths.
template <typename HeadDim, typename Samples>
struct Sizes {
  HeadDim head_dim;
  Samples samples;
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
// What locating the samples of an item reads.
MASK2FORMER_INLINE void prefetch_samples(const Problem& problem, int64_t samples, int64_t item) {
  prefetch(problem.offsets + item * 2 * samples, 2 * samples * sizeof(float));
  prefetch(problem.attention + item * samples, samples * sizeof(float));
}
constexpr int64_t kPixelsAhead = 16;  // by measurement; beyond an array a prefetch does nothing

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

// Interpolates kChannels channels of one (query, head).
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void interpolate(const Sample* samples, int64_t num_samples, int64_t lane, const Scalar* value,
                                    int64_t row_stride, Scalar* output) {
  using Block = Channels<Scalar, kChannels>;
  constexpr int kSums = Block::kParts < 4 ? 4 : 2;  // so that additions need not wait for each other
  typename Block::Part sums[kSums][Block::kParts] = {};
  for (int64_t i = 0; i < num_samples; ++i) {
    for (int k = 0; k < 4; ++k) {
      const Block corner(value + samples[i].pixel[k][lane] * row_stride);
      for (int p = 0; p < Block::kParts; ++p) sums[k % kSums][p] += samples[i].weight[k][lane] * corner.part[p];
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
                                            int64_t row_stride, const Scratch& scratch) {
  const auto head_dim = sizes.head_dim;
  Sample* samples = reinterpret_cast<Sample*>(scratch.samples);
  Scalar* all_output = static_cast<Scalar*>(problem.output);
  for (int64_t first = first_query; first < last_query; first += kLanes) {
    const Queries queries = {image, head, first, min(kLanes, last_query - first)};
    locate<false>(problem, sizes.samples, queries, scratch.padded, samples);
    for (int64_t lane = 0; lane < queries.count; ++lane) {
      const int64_t item = queries.item(problem, lane), ahead = item + kLanes * problem.num_heads;
      prefetch_samples(problem, sizes.samples, ahead);
      prefetch_to_write(all_output + ahead * head_dim, head_dim * sizeof(Scalar));
      for_channels<kMaxChannels>(0, head_dim, [&](int64_t channel, auto channels) {
        interpolate<Scalar, decltype(channels)::value>(samples, sizes.samples, lane, value + channel, row_stride,
                                                       all_output + item * head_dim + channel);
      });
    }
  }
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
      interpolate_queries<Scalar>(problem, sizes, image, head, first_query, last_query, rows, head_dim, scratch);
    } else {  // most rows would be copied in vain
      interpolate_queries<Scalar>(problem, sizes, image, head, first_query, last_query, value, heads * head_dim,
                                  scratch);
    }
  }
}

template <typename Scalar>
void forward(const Problem& problem, int64_t begin, int64_t end, const Scratch& scratch) {
  with_sizes(problem, [&](const auto& sizes) { run_forward<Scalar>(problem, sizes, begin, end, scratch); });
}

// ---- Backward ----

// kChannels channels of one (query, head). `rows` has the gradient of the value (D) and the value (D) of every pixel.
// Adds to `products` (L * P, 4): of the output's gradient and a corner's value, summed over channels. They need memory
// for kLanes more than there are.
template <int kChannels>
MASK2FORMER_INLINE void differentiate(const Sample* samples, int64_t num_samples, int64_t lane,
                                      const float* grad_output, float* rows, int64_t head_dim, float* products) {
  using Block = Channels<float, kChannels>;
  using Part = typename Block::Part;
  constexpr int kWidth = Block::kWidth, kAtOnce = kWidth < 4 ? 1 : kWidth / 4;
  const Block grad(grad_output);
  for (int64_t first = 0; first < num_samples; first += kAtOnce) {
    Part partial[4 * kAtOnce] = {};
    for (int64_t i = 0; i < min(kAtOnce, num_samples - first); ++i) {
      for (int k = 0; k < 4; ++k) {
        const Sample& sample = samples[first + i];
        float* row = rows + sample.pixel[k][lane] * (2 * head_dim);
        const Block corner(row + head_dim);
        const float weight = sample.weight[k][lane];  // the compiler would read it again after each store
        Part product = grad.part[0] * corner.part[0];
        for (int p = 1; p < Block::kParts; ++p) product += grad.part[p] * corner.part[p];
        partial[4 * i + k] = product;
        for (int p = 0; p < Block::kParts; ++p) {
          store(row + p * kWidth, load<Part>(row + p * kWidth) + weight * grad.part[p]);
        }
      }
    }
    for (int i = 0; i < 4 * kAtOnce; i += kWidth) {
      float* to = products + 4 * first + i;
      store(to, load<Part>(to) + sum_rows<kWidth>(partial + i));
    }
  }
}

// From the products of a sample's corners to the gradients of its offset and attention.
MASK2FORMER_INLINE void finish_sample(const Float (&product)[4], float scale_x, float scale_y, Sample& sample) {
  const auto at = [](const float* values) { return load<Float>(values); };
  Float upper = {}, lower = {}, left = {}, right = {};  // the value in the row or column of corners
  for (int i = 0; i < 2; ++i) {
    upper += at(sample.column_weight[i]) * product[i];
    lower += at(sample.column_weight[i]) * product[2 + i];
    left += at(sample.row_weight[i]) * product[2 * i];
    right += at(sample.row_weight[i]) * product[2 * i + 1];
  }
  const Float slope_x = at(sample.column_inside[1]) * right - at(sample.column_inside[0]) * left;
  const Float slope_y = at(sample.row_inside[1]) * lower - at(sample.row_inside[0]) * upper;
  store(sample.grad_attention, at(sample.row_weight[0]) * upper + at(sample.row_weight[1]) * lower);
  store(sample.offset[0], at(sample.attention) * scale_x * slope_x);
  store(sample.offset[1], at(sample.attention) * scale_y * slope_y);
}

// From the gradients of the weights to those of their logits.
MASK2FORMER_INLINE void softmax_backward(Sample* samples, int64_t num_samples) {
  Float mean = {};
  for (int64_t i = 0; i < num_samples; ++i) {
    mean += load<Float>(samples[i].attention) * load<Float>(samples[i].grad_attention);
  }
  for (int64_t i = 0; i < num_samples; ++i) {
    const Float grad = load<Float>(samples[i].attention) * (load<Float>(samples[i].grad_attention) - mean);
    store(samples[i].grad_attention, grad);
  }
}

// Writes the gradients of some queries' offsets and attention. `products` has a row of `stride` for each of them.
MASK2FORMER_INLINE void finish(const Problem& problem, int64_t num_samples, const Queries& queries,
                               const float* products, int64_t stride, Sample* samples) {
  if (num_samples == 0)
    return;
  static_assert(kLanes % 4 == 0, "a block of columns has all corners of its samples");
  for (int64_t first = 0; first < num_samples; first += kLanes / 4) {
    Float columns[kLanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) columns[lane] = load<Float>(products + lane * stride + 4 * first);
    transpose(columns);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLanes / 4; ++i) {
      if (first + i >= num_samples)
        break;
      const Level& level = problem.levels[(first + i) / problem.num_points];
      const bool fused = problem.reference != nullptr;
      const Float product[4] = {columns[4 * i], columns[4 * i + 1], columns[4 * i + 2], columns[4 * i + 3]};
      finish_sample(product, fused ? 1.0f : level.width, fused ? 1.0f : level.height, samples[first + i]);
    }
  }
  if (problem.reference != nullptr)
    softmax_backward(samples, num_samples);
  store_columns(
      queries.count, num_samples, [=](int64_t sample) { return samples[sample].grad_attention; },
      [&](int64_t lane) { return problem.grad_attention + queries.item(problem, lane) * num_samples; });
  store_columns(
      queries.count, 2 * num_samples, [=](int64_t column) { return samples[column / 2].offset[column % 2]; },
      [&](int64_t lane) { return problem.grad_offsets + queries.item(problem, lane) * 2 * num_samples; });
}

template <typename Scalar, typename Sizes>
MASK2FORMER_INLINE void run_backward(const Problem& problem, const Sizes& sizes, int64_t begin, int64_t end,
                                     const Scratch& scratch) {
  const auto head_dim = sizes.head_dim;
  const auto samples = sizes.samples;
  const int64_t heads = problem.num_heads, pixels = problem.num_pixels, row_stride = heads * head_dim;
  const Scalar* all_grad_output = static_cast<const Scalar*>(problem.grad_output);
  const int64_t stride = 4 * samples + kLanes;
  Sample* located = reinterpret_cast<Sample*>(scratch.samples);
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
    for (int64_t first = 0; first < problem.num_queries; first += kLanes) {
      const Queries queries = {image, head, first, min(kLanes, problem.num_queries - first)};
      locate<true>(problem, samples, queries, scratch.padded, located);
      __builtin_memset(scratch.products, 0, kLanes * stride * sizeof(float));
      for (int64_t lane = 0; lane < queries.count; ++lane) {
        const int64_t item = queries.item(problem, lane), ahead = item + kLanes * heads;
        prefetch(all_grad_output + ahead * head_dim, head_dim * sizeof(Scalar));
        prefetch_samples(problem, samples, ahead);
        prefetch_to_write(problem.grad_offsets + ahead * 2 * samples, 2 * samples * sizeof(float));
        prefetch_to_write(problem.grad_attention + ahead * samples, samples * sizeof(float));
        widen_row(all_grad_output + item * head_dim, scratch.row, head_dim);
        for_channels<kMaxChannels>(0, head_dim, [&](int64_t channel, auto channels) {
          differentiate<decltype(channels)::value>(located, samples, lane, scratch.row + channel, rows + channel,
                                                   head_dim, scratch.products + lane * stride);
        });
      }
      finish(problem, samples, queries, scratch.products, stride, located);
    }
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
