// Multi-scale deformable attention for one instruction set: compiled once for each, with the compiler's flags for it
// and MASK2FORMER_KERNELS set to the name of its table of kernels.
//
// One (query, head) has L * P samples of four corners. Locating them is vectorised over samples, interpolating over
// channels. There are no branches on where a sample lies: a corner outside its level has weight 0.
#include "ms_deform_attn.h"
#include "vector.h"

namespace mask2former {
namespace {

constexpr int kMaxChannels = 2 * kLanes;  // of one Channels

// Along one axis: the pixel before a sample, the distance to it, and which of the two pixels around it exist.
struct Axis {
  Int pixel[2];   // clamped to the level
  Int inside[2];  // all bits set, or none
  Float fraction;
};

MASK2FORMER_INLINE Axis locate(Float location, Float size) {
  Float position = location * size - 0.5f;
  // Two pixels beyond either end nothing is read any more, and the conversion to integers is safe. A NaN goes on into
  // the fraction, and so into the output.
  position = position < -2.0f ? Float{} - 2.0f : position;
  position = position > size ? size : position;
  const Float finite = position == position ? position : Float{};
  const Float truncated = __builtin_convertvector(__builtin_convertvector(finite, Int), Float);
  const Float first = truncated > finite ? truncated - 1.0f : truncated;
  const Int index = __builtin_convertvector(first, Int);
  const Int last = __builtin_convertvector(size, Int) - 1;
  Axis axis;
  axis.fraction = position - first;
  for (int i = 0; i < 2; ++i) {
    const Int pixel = index + i;
    axis.inside[i] = (pixel >= 0) & (pixel <= last);
    const Int low = pixel < 0 ? Int{} : pixel;
    axis.pixel[i] = low > last ? last : low;
  }
  return axis;
}

// Locates kLanes samples of a group, starting at the lane `first`.
MASK2FORMER_INLINE void locate_samples(
    const float* locations, const float* attention, const GroupLevels& levels, int first, Group& group) {
  const auto lanes = std::make_integer_sequence<int, kLanes>{};
  const Float low = load<Float>(locations + 2 * first);
  const Float high = load<Float>(locations + 2 * first + kLanes);
  const Float width = load<Float>(levels.width + first);
  const Axis x = locate(half_blocks<2, 0>(low, high, lanes), width);
  const Axis y = locate(half_blocks<2, 1>(low, high, lanes), load<Float>(levels.height + first));
  const Float weight = load<Float>(attention + first);
  const Float column_weight[2] = {1.0f - x.fraction, x.fraction};
  const Float row_weight[2] = {weight * (1.0f - y.fraction), weight * y.fraction};
  const Int start = load<Int>(levels.start + first);
  const Int stride = __builtin_convertvector(width, Int);
  for (int k = 0; k < 4; ++k) {
    const int row = k / 2, column = k % 2;
    const Int inside = y.inside[row] & x.inside[column];
    store(group.weight[k] + first, inside ? row_weight[row] * column_weight[column] : Float{});
    store(group.pixel[k] + first, start + y.pixel[row] * stride + x.pixel[column]);
    store(group.inside[k] + first, inside);
  }
  store(group.right + first, x.fraction);
  store(group.below + first, y.fraction);
}

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Locates the `count` samples from `first` on, of all the call's samples in one row.
MASK2FORMER_INLINE void locate_group(const Problem& problem, int64_t first, int count, const GroupLevels& levels, Group& group) {
  const float* locations = problem.locations + 2 * first;
  const float* attention = problem.attention + first;
  const int64_t all = problem.num_images * problem.num_queries * problem.num_heads * problem.num_samples;
  float padded_locations[2 * kGroup], padded_attention[kGroup];
  if (first + kGroup > all) {  // whole vectors would read beyond the arrays
    for (int i = 0; i < kGroup; ++i) {
      padded_locations[2 * i] = i < count ? locations[2 * i] : 0.0f;
      padded_locations[2 * i + 1] = i < count ? locations[2 * i + 1] : 0.0f;
      padded_attention[i] = i < count ? attention[i] : 0.0f;
    }
    locations = padded_locations;
    attention = padded_attention;
  }
  for (int lane = 0; lane < count; lane += kLanes) locate_samples(locations, attention, levels, lane, group);
}

// ---- Forward ----

// Interpolates kChannels channels of one (query, head).
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void interpolate(
    const Group* groups, int64_t num_samples, const Scalar* value, int64_t row_stride, Scalar* output) {
  using Block = Channels<Scalar, kChannels>;
  typename Block::Part sums[4][Block::kParts] = {};  // one per corner, so that additions need not wait for each other
  for (const Group* group = groups; num_samples > 0; ++group, num_samples -= kGroup) {
    const int count = static_cast<int>(min(num_samples, kGroup));
    for (int i = 0; i < count; ++i) {
      for (int k = 0; k < 4; ++k) {
        const Block corner(value + group->pixel[k][i] * row_stride);
        for (int p = 0; p < Block::kParts; ++p) sums[k][p] += group->weight[k][i] * corner.part[p];
      }
    }
  }
  Block result;
  for (int p = 0; p < Block::kParts; ++p) result.part[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
  result.store_to(output);
}

// Interpolates all channels from `channel` on: as many as possible at a time, and the rest in halves of that.
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void interpolate_all(
    const Group* groups, const Problem& problem, const Scalar* value, Scalar* output, int64_t channel) {
  for (; channel + kChannels <= problem.head_dim; channel += kChannels) {
    interpolate<Scalar, kChannels>(
        groups, problem.num_samples, value + channel, problem.num_heads * problem.head_dim, output + channel);
  }
  if constexpr (kChannels > 1) {
    if (channel < problem.head_dim) interpolate_all<Scalar, kChannels / 2>(groups, problem, value, output, channel);
  }
}

template <typename Scalar>
void forward(const Problem& problem, int64_t begin, int64_t end, Group* groups) {
  const int64_t heads = problem.num_heads, head_dim = problem.head_dim;
  for (int64_t image_query = begin; image_query < end; ++image_query) {
    const int64_t image = image_query / problem.num_queries;
    const Scalar* value = static_cast<const Scalar*>(problem.value) + image * problem.num_pixels * heads * head_dim;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t item = image_query * heads + head;
      for (int64_t sample = 0, g = 0; sample < problem.num_samples; sample += kGroup, ++g) {
        const int count = static_cast<int>(min(problem.num_samples - sample, kGroup));
        locate_group(problem, item * problem.num_samples + sample, count, problem.levels[g], groups[g]);
      }
      Scalar* output = static_cast<Scalar*>(problem.output) + item * head_dim;
      interpolate_all<Scalar, kMaxChannels>(groups, problem, value + head * head_dim, output, 0);
    }
  }
}

// ---- Backward ----

// Per corner and sample of a group: the product of the output's gradient and the corner's value, summed over channels.
struct Products {
  float sum[4][kGroup];
};

// kChannels channels of one group: adds to the products, and to the gradient of the value.
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void differentiate(const Group& group, int count, const Scalar* grad_output, const Scalar* value,
    int64_t row_stride, float* grad_value, int64_t grad_row_stride, Products& products) {
  using Block = Channels<Scalar, kChannels>;
  using Part = typename Block::Part;
  constexpr int kWidth = Block::kWidth;
  const Block grad(grad_output);
  Part partial[4][kGroup] = {};
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < 4; ++k) {
      const Block corner(value + group.pixel[k][i] * row_stride);
      float* row = grad_value + group.pixel[k][i] * grad_row_stride;
      Part product = grad.part[0] * corner.part[0];
      if constexpr (Block::kParts == 2) product += grad.part[1] * corner.part[1];
      partial[k][i] = product;
      for (int p = 0; p < Block::kParts; ++p) {
        store(row + p * kWidth, load<Part>(row + p * kWidth) + group.weight[k][i] * grad.part[p]);
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

template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void differentiate_all(const Group& group, int count, const Problem& problem,
    const Scalar* grad_output, const Scalar* value, float* grad_value, int64_t channel, Products& products) {
  const int64_t head_dim = problem.head_dim;
  for (; channel + kChannels <= head_dim; channel += kChannels) {
    differentiate<Scalar, kChannels>(group, count, grad_output + channel, value + channel,
        problem.num_heads * head_dim, grad_value + channel, head_dim, products);
  }
  if constexpr (kChannels > 1) {
    if (channel < head_dim) {
      differentiate_all<Scalar, kChannels / 2>(group, count, problem, grad_output, value, grad_value, channel, products);
    }
  }
}

// From the products of a group to the gradients of its locations and attention.
MASK2FORMER_INLINE void finish_group(
    const Problem& problem, int64_t first, int count, const GroupLevels& levels, const Group& group, const Products& products) {
  float grad_x[kGroup], grad_y[kGroup], grad_attention[kGroup];
  float attention[kGroup];
  for (int i = 0; i < kGroup; ++i) attention[i] = i < count ? problem.attention[first + i] : 0.0f;
  for (int lane = 0; lane < count; lane += kLanes) {
    Float corner[4];
    for (int k = 0; k < 4; ++k) {
      corner[k] = load<Int>(group.inside[k] + lane) ? load<Float>(products.sum[k] + lane) : Float{};
    }
    const Float right = load<Float>(group.right + lane), left = 1.0f - right;
    const Float below = load<Float>(group.below + lane), above = 1.0f - below;
    const Float weight = load<Float>(attention + lane);
    const Float upper = left * corner[0] + right * corner[1], lower = left * corner[2] + right * corner[3];
    store(grad_attention + lane, above * upper + below * lower);
    const Float slope_x = above * (corner[1] - corner[0]) + below * (corner[3] - corner[2]);
    store(grad_x + lane, weight * load<Float>(levels.width + lane) * slope_x);
    store(grad_y + lane, weight * load<Float>(levels.height + lane) * (lower - upper));
  }
  for (int i = 0; i < count; ++i) {
    problem.grad_attention[first + i] = grad_attention[i];
    problem.grad_locations[2 * (first + i)] = grad_x[i];
    problem.grad_locations[2 * (first + i) + 1] = grad_y[i];
  }
}

// Writes the float32 sums of the value's gradient (S, D) into one head of `grad_value` (S, M, D).
template <typename Scalar, int kChannels>
MASK2FORMER_INLINE void write_row(const float* sums, Scalar* grad_value, int64_t head_dim, int64_t channel) {
  using Block = Channels<Scalar, kChannels>;
  for (; channel + kChannels <= head_dim; channel += kChannels) {
    Block block;
    for (int p = 0; p < Block::kParts; ++p) {
      block.part[p] = load<typename Block::Part>(sums + channel + p * Block::kWidth);
    }
    block.store_to(grad_value + channel);
  }
  if constexpr (kChannels > 1) {
    if (channel < head_dim) write_row<Scalar, kChannels / 2>(sums, grad_value, head_dim, channel);
  }
}

template <typename Scalar>
void backward(const Problem& problem, int64_t begin, int64_t end, float* grad_sums) {
  const int64_t heads = problem.num_heads, head_dim = problem.head_dim, pixels = problem.num_pixels;
  for (int64_t image_head = begin; image_head < end; ++image_head) {
    const int64_t image = image_head / heads, head = image_head % heads;
    const int64_t value_offset = image * pixels * heads * head_dim + head * head_dim;
    const Scalar* value = static_cast<const Scalar*>(problem.value) + value_offset;
    Scalar* grad_value = static_cast<Scalar*>(problem.grad_value) + value_offset;
    __builtin_memset(grad_sums, 0, pixels * head_dim * sizeof(float));
    for (int64_t query = 0; query < problem.num_queries; ++query) {
      const int64_t item = (image * problem.num_queries + query) * heads + head;
      const Scalar* grad_output = static_cast<const Scalar*>(problem.grad_output) + item * head_dim;
      for (int64_t sample = 0, g = 0; sample < problem.num_samples; sample += kGroup, ++g) {
        const int64_t first = item * problem.num_samples + sample;
        const int count = static_cast<int>(min(problem.num_samples - sample, kGroup));
        Group group;
        Products products = {};
        locate_group(problem, first, count, problem.levels[g], group);
        differentiate_all<Scalar, kMaxChannels>(group, count, problem, grad_output, value, grad_sums, 0, products);
        finish_group(problem, first, count, problem.levels[g], group, products);
      }
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      write_row<Scalar, kMaxChannels>(grad_sums + pixel * head_dim, grad_value + pixel * heads * head_dim, head_dim, 0);
    }
  }
}

}  // namespace

extern const Kernels MASK2FORMER_KERNELS = {{forward<float>, forward<BFloat16>}, {backward<float>, backward<BFloat16>}};

}  // namespace mask2former
