// The gradient of the value, for the sizes that Mask2Former has.
//
// A corner's pixel gets its weight times the gradient of the query's output. The queries of a block are neighbours, so
// most of what it has to add goes to the same few pixels. Atomic additions to memory are what takes time on a GPU;
// therefore a block sorts what it has by pixel, and adds to memory about once for each pixel and head.
#pragma once

#include "lanes.cuh"
#include "samples.cuh"
#include "sums.cuh"

namespace mask2former {
namespace cuda {

// What a pixel gets from a corner: weight times the output's gradient of a query of the block.
struct alignas(8) Summand {
  float weight;
  uint32_t place;  // pixel * kQueriesPerBlock + query: that of the fast kernels' sizes has 32 bits

  MASK2FORMER_DEVICE uint32_t pixel() const { return place / kQueriesPerBlock; }
  MASK2FORMER_DEVICE uint32_t query() const { return place % kQueriesPerBlock; }
};

// By counting: a pixel's bin is its place in a square of 32 x 32 pixels. Within one bin, pixels 32 apart may take
// turns, which costs additions to memory but is no less right.
constexpr uint32_t kBinSide = 32, kBins = kBinSide * kBinSide, kSummands = 4 * kThreads, kWarps = kThreads / 32;
static_assert(kBins == 4 * kThreads, "a thread has four bins");
static_assert(kQueriesPerBlock <= 128, "a summand's place has 32 bits");

MASK2FORMER_DEVICE uint32_t bin_of(int32_t x, int32_t y) { return y % kBinSide * kBinSide + x % kBinSide; }

// The block's memory.
struct Shared {
  float4 grads[kQueriesPerBlock][kHeadDim / 4];  // of the output
  Summand summands[kSummands];
  uint4 counts[2][kThreads];  // of summands in a bin, then of those in the bins before it; another one every round
  uint32_t warps[kWarps];

  MASK2FORMER_DEVICE uint32_t* bins(int round) { return &counts[round % 2][0].x; }
};

// From the numbers of summands in the bins to where each bin begins. Returns how many summands there are.
MASK2FORMER_DEVICE uint32_t begin_bins(Shared& shared, int round) {
  const unsigned thread = threadIdx.x;
  uint4& own = shared.counts[round % 2][thread];
  const uint4 count = own;
  const uint32_t up_to = sum_up_to(count.x + count.y + count.z + count.w, thread % 32);
  if (thread % 32 == 31)
    shared.warps[thread / 32] = up_to;
  __syncthreads();
  uint32_t total = 0, before = 0;
#pragma unroll
  for (unsigned i = 0; i < kWarps; ++i) {
    before += i < thread / 32 ? shared.warps[i] : 0;
    total += shared.warps[i];
  }
  uint4 begin;
  begin.w = before + up_to - count.w;
  begin.z = begin.w - count.z;
  begin.y = begin.z - count.y;
  begin.x = begin.y - count.x;
  own = begin;
  __syncthreads();
  return total;
}

// Adds sorted summands up, about as many in each group of lanes as in any other, four channels in a lane.
template <typename Sums>
MASK2FORMER_DEVICE void add_summands(const Problem& problem, const Sums& sums, const Item& item, const Shared& shared,
                                     uint32_t count) {
  constexpr uint32_t kGroupLanes = kHeadDim / 4, kGroups = kThreads / kGroupLanes;
  const uint32_t group = threadIdx.x / kGroupLanes, lane = threadIdx.x % kGroupLanes;
  const uint32_t row_stride = problem.num_heads * kHeadDim;
  const uint32_t first = item.image * problem.num_pixels * row_stride + item.head * kHeadDim + 4 * lane;
  // An odd number of summands each, so that groups read from different banks of the shared memory.
  const uint32_t length = (count + kGroups - 1) / kGroups | 1;
  const uint32_t begin = group * length, end = begin + length < count ? begin + length : count;
  typename Sums::Subtotal subtotal;
  uint32_t pixel = 0;
  for (uint32_t i = begin; i < end; ++i) {
    const Summand summand = shared.summands[i];
    if (i > begin && summand.pixel() != pixel) {
      subtotal.store(sums, first + pixel * row_stride);
      subtotal = {};
    }
    pixel = summand.pixel();
    subtotal.add(sums, summand.weight, shared.grads[summand.query()][lane]);
  }
  if (begin < end)
    subtotal.store(sums, first + pixel * row_stride);
}

// Reads the gradient of the output for all queries of the block.
template <typename Scalar>
MASK2FORMER_DEVICE void share_grads(const Problem& problem, const Item& item, float4 (&row)[kHeadDim / 4]) {
#pragma unroll
  for (int piece = item.lane; piece < kRowLanes<Scalar>; piece += kLanes) {
    Channels<Scalar> grad;
    grad.load(problem.grad_output, output_byte_of<Scalar>(item) + piece * 16);
#pragma unroll
    for (int i = 0; i < grad.kWidth; i += 4) {
      const float* from = grad.channel + i;
      row[(piece * grad.kWidth + i) / 4] = make_float4(from[0], from[1], from[2], from[3]);
    }
  }
}

template <typename Scalar, typename Sums>
__global__ void __launch_bounds__(kThreads) value_gradient_kernel(const __grid_constant__ Problem problem) {
  __shared__ Shared shared;
  const Sums sums(problem);
  const Item item = item_of_tile(problem);
  const Slots slots(problem, item);
  const uint32_t query = threadIdx.x / kLanes;
  share_grads<Scalar>(problem, item, shared.grads[query]);
  shared.counts[0][threadIdx.x] = make_uint4(0, 0, 0, 0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int index = i * kLanes / kPoints;
    const Level& level = problem.levels[index];
    const Sample sample = locate<true>(frame_of(problem, item, index), level, Slots::offset(problem, item, i));
    float weight[4];
    weigh_corners(sample, slots.attention[i], weight);
    uint32_t* const bins = shared.bins(i);
    uint32_t rank[4];  // among those in the same bin
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!item.exists)
        weight[k] = 0.0f;
      if (weight[k] != 0.0f)
        rank[k] = atomicAdd(bins + bin_of(sample.x.pixel + k % 2, sample.y.pixel + k / 2), 1u);
    }
    __syncthreads();
    shared.counts[(i + 1) % 2][threadIdx.x] = make_uint4(0, 0, 0, 0);
    const uint32_t count = begin_bins(shared, i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int32_t x = sample.x.pixel + k % 2, y = sample.y.pixel + k / 2;
      const uint32_t pixel = level.first_pixel + y * level.width + x;
      if (weight[k] != 0.0f)
        shared.summands[bins[bin_of(x, y)] + rank[k]] = {weight[k], pixel * kQueriesPerBlock + query};
    }
    __syncthreads();
    add_summands(problem, sums, item, shared, count);
  }
}

}  // namespace cuda
}  // namespace mask2former
