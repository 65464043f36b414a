// Compares the kernels for AVX-512 with those for the baseline on random problems; the last line is PASS or FAIL.
//
//   driver NUMBER_OF_PROBLEMS
//
// It is linked with the objects of *_kernels.cpp for both, and needs no PyTorch. Positions, masks and how these are
// resized are such that float32 holds them exactly, so that rounding can decide nothing but last places.
#include "masked_attention.h"
#include "masks.h"
#include "ms_deform_attn.h"
#include "points.h"
#include "testing.h"
#include "winograd.h"

#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace mask2former;

// ---- Deformable attention ----

template <typename Scalar>
struct Results {
  Array<Scalar> output, grad_value;
  Array<float> grad_offsets, grad_attention;

  // The ranges are halved, as between threads.
  Results(const Kernels& kernels, Problem problem)
      : output(problem.num_images * problem.num_queries * problem.num_heads * problem.head_dim),
        grad_value(problem.num_images * problem.num_pixels * problem.num_heads * problem.head_dim),
        grad_offsets(problem.num_images * problem.num_queries * problem.num_heads * problem.num_samples * 2),
        grad_attention(grad_offsets.size() / 2) {
    problem.output = output.begin();
    problem.grad_value = grad_value.begin();
    problem.grad_offsets = grad_offsets.begin();
    problem.grad_attention = grad_attention.begin();
    const Array<float> samples = scratch_array<float>(problem.num_samples * kVectorsPerSample * kMaxLanes);
    const Array<float> padded = scratch_array<float>(kMaxLanes * (2 * problem.num_samples + kMaxLanes));
    const Array<float> products = scratch_array<float>(kMaxLanes * (4 * problem.num_samples + kMaxLanes));
    const Array<float> row = scratch_array<float>(problem.head_dim);
    const Array<float> rows = scratch_array<float>(problem.num_pixels * problem.head_dim);
    const Array<float> both_rows = scratch_array<float>(2 * problem.num_pixels * problem.head_dim);
    constexpr bool kBFloat16 = std::is_same<Scalar, uint16_t>::value;
    const auto run = [&](auto function, int64_t count, float* head) {
      const Scratch scratch = {samples.begin(), padded.begin(), products.begin(), row.begin(), head};
      function(problem, 0, count / 2, scratch);
      function(problem, count / 2, count, scratch);
    };
    run(kernels.forward[kBFloat16], problem.num_images * problem.num_heads * problem.num_queries, rows.begin());
    run(kernels.backward[kBFloat16], problem.num_images * problem.num_heads, both_rows.begin());
  }
};

// Random levels of `points` samples each.
std::vector<Level> make_levels(Problem& problem, int64_t levels, int64_t points) {
  problem.num_levels = levels;
  problem.num_points = points;
  problem.num_samples = levels * points;
  std::vector<Level> result;
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t width = choose({1, 2, 3, 7, 16, 33}), height = choose({1, 2, 5, 8, 21});
    result.push_back({float(height), float(width), int32_t(problem.num_pixels)});
    problem.num_pixels += width * height;
  }
  return result;
}

template <typename Scalar>
void check_attention(bool fused) {
  const bool wild = one_in(4);
  const bool usual = one_in(3);  // the sizes that Mask2Former has, for which there is code of its own
  const int64_t levels = usual ? 3 : any_of(1, 5), points = usual ? 4 : choose({1, 2, 3, 4, 5, 8, 11, 17});
  Problem problem = {};
  problem.num_images = any_of(1, 2);
  problem.num_heads = any_of(1, 3);
  problem.head_dim = usual ? 32 : choose({1, 2, 3, 7, 8, 15, 16, 17, 23, 31, 32, 33, 48, 64, 100});
  problem.num_queries = choose({0, 1, 2, 3, 17, 40});
  const std::vector<Level> all_levels = make_levels(problem, levels, points);
  problem.levels = all_levels.data();
  const int64_t items = problem.num_images * problem.num_queries * problem.num_heads;
  const int64_t all_samples = items * levels * points;

  const Array<Scalar> value(problem.num_images * problem.num_pixels * problem.num_heads * problem.head_dim);
  const Array<Scalar> grad_output(items * problem.head_dim);
  fill(value);
  fill(grad_output);
  // Many lie outside of their level, and many on a pixel's centre or an edge.
  const Array<float> offsets(2 * all_samples), attention(all_samples);
  const float fineness = one_in(3) ? 0.5f : 1.0f / 1024;
  for (float& x : offsets) x = wild && one_in(40) ? choose(kWild) : any_step(-0.5f, 1.5f, fineness) * (fused ? 4 : 1);
  const float range = !fused ? 1.0f : one_in(4) ? 300.0f : 5.0f;
  for (float& x : attention) x = wild && one_in(200) ? kNaN : any_step(fused ? -range : 0.0f, range, 1.0f / 4096);
  const bool per_image = one_in(2), per_level = one_in(2);
  const int64_t points_per_query = (per_image ? problem.num_images : 1) * (per_level ? levels : 1);
  const Array<float> reference(2 * problem.num_queries * points_per_query);
  for (float& x : reference) x = any_step(0.0f, 1.0f, fineness);

  problem.value = value.begin();
  problem.grad_output = grad_output.begin();
  problem.offsets = offsets.begin();
  problem.attention = attention.begin();
  if (fused) {
    problem.reference = reference.begin();
    problem.reference_level_stride = per_level ? 2 : 0;
    problem.reference_query_stride = per_level ? 2 * levels : 2;
    problem.reference_image_stride = per_image ? problem.num_queries * problem.reference_query_stride : 0;
  }
  const Results<Scalar> expected(kernels_baseline, problem), actual(kernels_avx512, problem);
  char description[200];
  std::snprintf(description, sizeof(description), "N=%d Q=%d M=%d D=%d L=%d P=%d wild=%d",
                int(problem.num_images), int(problem.num_queries), int(problem.num_heads), int(problem.head_dim),
                int(levels), int(points), wild);
  const bool bfloat16 = std::is_same<Scalar, uint16_t>::value;
  const std::string name = std::string(fused ? "fused " : "standard ") + (bfloat16 ? "bfloat16 " : "float32 ");
  const double exact = 5e-6, rounded = bfloat16 ? 1.0 / 128 : exact;
  compare(name + "output", actual.output, expected.output, rounded, description);
  compare(name + "grad_value", actual.grad_value, expected.grad_value, rounded, description);
  compare(name + "grad_offsets", actual.grad_offsets, expected.grad_offsets, exact, description);
  compare(name + "grad_attention", actual.grad_attention, expected.grad_attention, exact, description);
}

// ---- Masks ----

// A random axis of the output over `size` places of a mask.
struct RandomAxis {
  Array<int32_t> first;
  Array<float> weights;
  Axis axis;

  explicit RandomAxis(int64_t size)
      : first(choose({1, 3, 7, 16, 31, 32, 50, 97})), weights(first.size() * std::min<int64_t>(size, any_of(1, 4))) {
    axis = {first.size(), weights.size() / first.size(), first.begin(), weights.begin()};
    for (int32_t& place : first) place = any_of(0, size - axis.taps);
    std::sort(first.begin(), first.end());
    for (float& weight : weights) weight = any_step(0.0f, 1.0f, 0.25f);
  }
};

struct MaskResults {
  Array<float> resized;
  Array<uint8_t> binary;
  Array<int64_t> measured;
  Array<float> probabilities;
  Array<int32_t> winner;
  Array<bool> inside;
  Array<int64_t> areas;

  MaskResults(const MaskKernels& kernels, const Masks& masks, const Array<float>& scores, bool sigmoid)
      : resized(masks.count * masks.rows.length * masks.columns.length),
        binary(resized.size()),
        measured(5 * masks.count),
        probabilities(masks.count),
        winner(masks.rows.length * masks.columns.length),
        inside(winner.size()),
        areas(3 * masks.count) {
    const int64_t height = masks.rows.length, width = masks.columns.length;
    const Array<float> wide_rows = scratch_array<float>(masks.rows.taps * width), row = scratch_array<float>(width);
    const Array<float> best = scratch_array<float>(height * width);
    const Array<int64_t> held = scratch_array<int64_t>(masks.rows.taps);
    const MaskScratch scratch = {wide_rows.begin(), held.begin(), row.begin(), best.begin()};
    for (int64_t mask = 0; mask < masks.count; ++mask) {
      kernels.resize(masks, mask, 0, height, sigmoid, scratch, resized.begin() + mask * height * width);
      Measures found;
      kernels.binarise(masks, mask, scratch, binary.begin() + mask * height * width, found);
      const int64_t numbers[] = {found.area, found.left, found.top, found.right, found.bottom};
      std::copy_n(numbers, 5, &measured[5 * mask]);
      probabilities[mask] = static_cast<float>(found.probability);
    }
    std::fill(areas.begin(), areas.end(), 0);
    const int64_t half = height / 2;
    kernels.compete(masks, scores.begin(), 0, half, scratch, winner.begin(), inside.begin(), areas.begin());
    kernels.compete(masks, scores.begin(), half, height, scratch, winner.begin() + half * width,
                    inside.begin() + half * width, areas.begin());
  }
};

void check_masks() {
  const bool wild = one_in(4), sigmoid = one_in(2);
  const int64_t count = any_of(1, 6), height = choose({1, 2, 9, 20}), width = choose({1, 3, 16, 40});
  const RandomAxis rows(height), columns(width);
  const Array<float> logits(count * height * width), scores(count);
  const float low = choose({-16, -4}), high = choose({-1, 0, 4, 16});
  for (float& x : logits) x = wild && one_in(30) ? choose(kNotFinite) : any_step(low, high, 0.125f);
  for (int64_t mask = 0; mask < count; ++mask) scores[mask] = 0.5f + (5 * mask % 7) / 16.0f;
  if (count > 2) {  // the first of equals wins
    std::copy_n(logits.begin(), height * width, logits.begin() + 2 * height * width);
    scores[2] = scores[0];
  }
  const Masks masks = {count, height, width, logits.begin(), rows.axis, columns.axis};
  const MaskResults expected(mask_kernels_baseline, masks, scores, sigmoid);
  const MaskResults actual(mask_kernels_avx512, masks, scores, sigmoid);
  char description[200];
  std::snprintf(description, sizeof(description), "Q=%d %d x %d to %d x %d wild=%d", int(count), int(height),
                int(width), int(rows.axis.length), int(columns.axis.length), wild);
  compare(sigmoid ? "masks probabilities" : "masks logits", actual.resized, expected.resized, sigmoid ? 1e-6 : 0.0,
          description);
  compare_exactly("masks binary", actual.binary, expected.binary, description);
  compare_exactly("masks areas and boxes", actual.measured, expected.measured, description);
  compare("masks mean probabilities", actual.probabilities, expected.probabilities, 1e-6, description);
  compare_exactly("masks winner", actual.winner, expected.winner, description);
  compare_exactly("masks inside", actual.inside, expected.inside, description);
  compare_exactly("masks areas of winners", actual.areas, expected.areas, description);
}

// ---- Classes of pixels ----

void check_classes() {
  const bool wild = one_in(4);
  const int64_t masks = any_of(1, 6), classes = choose({1, 5, 6, 7, 20}), pixels = choose({1, 16, 63, 64, 150});
  const int64_t panels = (classes + kClassesTogether - 1) / kClassesTogether;
  const Array<float> packed(panels * masks * kClassesTogether), inside(masks * pixels);
  for (float& x : packed) x = wild && one_in(30) ? choose(kNotFinite) : any_step(0.0f, 1.0f, 0.125f);
  for (float& x : inside) x = wild && one_in(30) ? choose(kNotFinite) : any_step(0.0f, 1.0f, 0.125f);
  const ClassMix mix = {masks, classes, pixels, packed.begin(), inside.begin()};
  const Array<int64_t> expected(pixels), actual(pixels);
  const auto run = [&](const MaskKernels& kernels, const Array<int64_t>& output) {
    const Array<float> block = scratch_array<float>(masks * kPixelsTogether);
    const int64_t part = std::min(pixels, kPixelsTogether);  // where threads may begin
    kernels.classify(mix, 0, part, block.begin(), output.begin());
    kernels.classify(mix, part, pixels, block.begin(), output.begin());
  };
  run(mask_kernels_baseline, expected);
  run(mask_kernels_avx512, actual);
  char description[200];
  std::snprintf(description, sizeof(description), "Q=%d K=%d pixels=%d wild=%d", int(masks), int(classes), int(pixels),
                wild);
  compare_exactly("classes of pixels", actual, expected, description);
}

// ---- Convolutions ----

struct ConvolutionResults {
  Array<float> transformed, gradient, output;

  // Transforms all tiles of `pixels`, as the input and as the gradient, and others back; the ranges are halved, as
  // between threads.
  ConvolutionResults(const WinogradKernels& kernels, const Tiling& tiling, int64_t images, int64_t channels,
                     const Array<float>& pixels, const Array<float>& products, const Array<float>& bias)
      : transformed(products.size()), gradient(products.size()), output(pixels.size()) {
    const Array<float> zeros(channels);
    std::fill(zeros.begin(), zeros.end(), 0.0f);
    const int64_t tiles = images * tiling.rows * tiling.columns, half = tiles / 2;
    const Strides planes_outside = {channels, tiles * channels}, tiles_outside = {kPlanes * channels, channels};
    const auto run = [&](int64_t begin, int64_t end) {
      kernels.transform_input(tiling, pixels.begin(), zeros.begin(), channels, begin, end,
                              transformed.begin() + begin * tiles_outside.tile, tiles_outside);
      kernels.transform_gradient(tiling, pixels.begin(), zeros.begin(), channels, begin, end,
                                 gradient.begin() + begin * planes_outside.tile, planes_outside);
      kernels.transform_output(tiling, products.begin() + begin * tiles_outside.tile, tiles_outside, bias.begin(),
                               channels, begin, end, output.begin());
    };
    run(0, half);
    run(half, tiles);
  }
};

void check_convolution() {
  const int64_t images = any_of(1, 2), channels = kChannelsTogether * any_of(1, 3);
  const int64_t height = any_of(1, 13), width = any_of(1, 13);
  const Tiling tiling = {height, width, (height + kTile - 1) / kTile, (width + kTile - 1) / kTile};
  const Array<float> pixels(images * height * width * channels), bias(channels);
  const Array<float> products(kPlanes * images * tiling.rows * tiling.columns * channels);
  fill(pixels);
  fill(products);
  fill(bias);
  const ConvolutionResults expected(winograd_kernels_baseline, tiling, images, channels, pixels, products, bias);
  const ConvolutionResults actual(winograd_kernels_avx512, tiling, images, channels, pixels, products, bias);
  char description[200];
  std::snprintf(description, sizeof(description), "N=%d %d x %d C=%d", int(images), int(height), int(width),
                int(channels));
  compare("convolution input", actual.transformed, expected.transformed, 1e-6, description);
  compare("convolution gradient", actual.gradient, expected.gradient, 1e-6, description);
  compare("convolution output", actual.output, expected.output, 1e-6, description);
}

// ---- Masked attention ----

template <typename Scalar>
void check_masked_attention() {
  const int64_t images = any_of(1, 2), heads = any_of(1, 2), head_dim = kHeadDims * any_of(1, 2);
  const int64_t queries = any_of(1, 11), keys = choose({1, 5, 63, 64, 65, 200});
  const Array<Scalar> query(images * queries * heads * head_dim), key(images * keys * heads * head_dim);
  const Array<Scalar> value(key.size());
  fill(query);
  fill(key);
  fill(value);
  const Array<uint8_t> attend(images * queries * keys);
  const int64_t nothing = any_of(1, 200);  // one place of so many is looked at
  for (uint8_t& x : attend) x = one_in(nothing);
  for (int64_t i = 0; i < images * queries; ++i) attend.begin()[i * keys + i % keys] = 1;

  const int64_t padded = round_up_queries(queries);
  const Array<float> rows = scratch_array<float>(padded * head_dim), sums = scratch_array<float>(padded * head_dim);
  const Array<float> largest = scratch_array<float>(padded), total = scratch_array<float>(padded);
  const Array<float> packed_keys = scratch_array<float>(head_dim * kKeysTogether);
  const Array<float> packed_values = scratch_array<float>(head_dim * kKeysTogether);
  const Array<float> weights = scratch_array<float>(kQueriesTogether * kKeysTogether);
  const AttentionScratch scratch = {rows.begin(),        sums.begin(),          largest.begin(), total.begin(),
                                    packed_keys.begin(), packed_values.begin(), weights.begin()};
  const auto run = [&](const AttentionKernels& kernels, const Array<Scalar>& output, const Array<float>& logsumexp) {
    const Attention problem = {queries,     keys,          heads,          head_dim,       query.begin(),
                               key.begin(), value.begin(), attend.begin(), output.begin(), logsumexp.begin()};
    for (int64_t i = 0; i < images * heads; ++i) {  // queries in two parts, as between threads
      const auto kernel = kernels.attend[std::is_same<Scalar, uint16_t>::value];
      const int64_t half = queries / 2;
      if (half > 0)
        kernel(problem, i / heads, i % heads, 0, half, scratch);
      kernel(problem, i / heads, i % heads, half, queries, scratch);
    }
  };
  const Array<Scalar> expected(query.size()), actual(query.size());
  const Array<float> expected_logsumexp(images * heads * queries), actual_logsumexp(images * heads * queries);
  run(attention_kernels_baseline, expected, expected_logsumexp);
  run(attention_kernels_avx512, actual, actual_logsumexp);
  char description[200];
  std::snprintf(description, sizeof(description), "N=%d Q=%d S=%d M=%d D=%d", int(images), int(queries), int(keys),
                int(heads), int(head_dim));
  const bool is_bfloat16 = std::is_same<Scalar, uint16_t>::value;
  const std::string name = is_bfloat16 ? "masked attention, bfloat16" : "masked attention";
  const double tolerance = is_bfloat16 ? 1e-2 : 2e-6;
  compare(name, actual, expected, tolerance, description);
  compare(name + " logsumexp", actual_logsumexp, expected_logsumexp, 2e-6, description);

  // The gradients of both are made of the same results.
  const Array<Scalar> grad_output(query.size());
  fill(grad_output);
  const int64_t parts = any_of(1, 2), blocks = (keys + kKeysTogether - 1) / kKeysTogether;
  const int64_t part_keys = (blocks + parts - 1) / parts * kKeysTogether;
  struct Gradients {
    Array<Scalar> query, key, value;
  };
  const Gradients of_baseline{Array<Scalar>(query.size()), Array<Scalar>(key.size()), Array<Scalar>(key.size())};
  const Gradients of_avx512{Array<Scalar>(query.size()), Array<Scalar>(key.size()), Array<Scalar>(key.size())};
  const auto differentiate = [&](const AttentionKernels& kernels, const Gradients& gradients) {
    const Array<float> grad_query_parts(parts * images * heads * padded * head_dim);
    const AttentionGradient problem = {
        {queries, keys, heads, head_dim, query.begin(), key.begin(), value.begin(), attend.begin(), expected.begin(),
         expected_logsumexp.begin()},
        grad_output.begin(), gradients.query.begin(), gradients.key.begin(), gradients.value.begin(),
        grad_query_parts.begin(), images, parts};
    const Array<float> scaled = scratch_array<float>(padded * head_dim), overlap = scratch_array<float>(padded);
    const Array<float> packed = scratch_array<float>(padded * head_dim);
    const Array<float> key_rows = scratch_array<float>(head_dim * kKeysTogether);
    const Array<float> products = scratch_array<float>(padded * kKeysTogether);
    const Array<float> grad_logits = scratch_array<float>(padded * kKeysTogether);
    const Array<int64_t> groups = scratch_array<int64_t>(padded / kQueriesTogether);
    const AttentionGradientScratch memory = {scaled.begin(),        packed.begin(),   overlap.begin(),
                                             packed_keys.begin(),   packed_values.begin(), key_rows.begin(),
                                             products.begin(),      grad_logits.begin(),   groups.begin()};
    const bool which = std::is_same<Scalar, uint16_t>::value;
    for (int64_t i = 0; i < images * heads; ++i) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = std::min(keys, part * part_keys), last = std::min(keys, first + part_keys);
        kernels.differentiate[which](problem, i / heads, i % heads, part, first, last, memory);
      }
      kernels.add_parts[which](problem, i / heads, i % heads);
    }
  };
  differentiate(attention_kernels_baseline, of_baseline);
  differentiate(attention_kernels_avx512, of_avx512);
  const double cancelled = is_bfloat16 ? 1e-2 : 1e-5;  // differences of sums over channels, 0 for a single key
  compare(name + " grad_query", of_avx512.query, of_baseline.query, cancelled, description);
  compare(name + " grad_key", of_avx512.key, of_baseline.key, cancelled, description);
  compare(name + " grad_value", of_avx512.value, of_baseline.value, tolerance, description);
}

// ---- Points ----

// Some of them on a pixel's centre or an edge.
void fill_points(const Array<float>& points) {
  const bool wild = one_in(4);
  for (float& x : points) x = wild && one_in(40) ? choose(kWild) : any_step(-0.25f, 1.25f, 1.0f / 64);
}

template <typename Scalar>
void check_pixels() {
  const MapSize size = {choose({1, 2, 5, 8, 21}), choose({1, 2, 3, 7, 16, 33})};
  const int64_t channels = kPixelChannels * any_of(1, 3), count = choose({1, 3, 16, 17, 40});
  const Array<Scalar> pixels(size.height * size.width * channels), expected(count * channels), actual(count * channels);
  const Array<float> points(2 * count);
  fill(pixels);
  fill_points(points);
  const bool is_bfloat16 = std::is_same<Scalar, uint16_t>::value;
  const auto run = [&](const PointKernels& kernels, const Array<Scalar>& output) {
    kernels.sample_pixels[is_bfloat16](pixels.begin(), size, channels, points.begin(), count, output.begin());
  };
  run(point_kernels_baseline, expected);
  run(point_kernels_avx512, actual);
  char description[200];
  std::snprintf(description, sizeof(description), "%d x %d C=%d P=%d", int(size.height), int(size.width), int(channels),
                int(count));
  compare(is_bfloat16 ? "pixels at points, bfloat16" : "pixels at points", actual, expected,
          is_bfloat16 ? 1.0 / 128 : 1e-6, description);
}

template <typename Id>
void check_masks_at_points() {
  const MapSize size = {choose({1, 2, 5, 8, 21}), choose({1, 2, 3, 7, 16, 33})};
  const int64_t maps = any_of(1, 3), rows = any_of(1, 5);
  const int64_t count = choose({1, 3, 16, 17, int(kPointsTogether)}), stride = count + any_of(0, 2);
  const Array<Id> ids_of_pixels(maps * size.height * size.width);
  for (Id& id : ids_of_pixels) id = any_of(0, 3);
  const Array<int64_t> map(rows);
  const Array<int32_t> ids(rows);
  for (int64_t& x : map) x = any_of(0, maps - 1);
  for (int32_t& x : ids) x = any_of(1, 3);
  const Array<float> points(2 * count), expected(rows * stride), actual(rows * stride);
  fill_points(points);
  const auto run = [&](const PointKernels& kernels, const Array<float>& output) {
    kernels.sample_masks[std::is_same<Id, int32_t>::value](
        ids_of_pixels.begin(), size, {rows, map.begin(), ids.begin()}, points.begin(), count, output.begin(), stride);
  };
  run(point_kernels_baseline, expected);
  run(point_kernels_avx512, actual);
  char description[200];
  std::snprintf(description, sizeof(description), "T=%d R=%d %d x %d P=%d", int(maps), int(rows), int(size.height),
                int(size.width), int(count));
  compare("masks at points", actual, expected, 1e-6, description);
}

void check_uncertain() {
  const MapSize size = {choose({1, 2, 5, 8, 21}), choose({1, 2, 3, 7, 16, 33})};
  const int64_t count = choose({1, 3, 16, 17, 300, 513}), chosen = any_of(1, count);
  const bool wild = one_in(4);
  const Array<float> logits(size.height * size.width), candidates(2 * count);
  for (float& x : logits) x = wild && one_in(30) ? choose(kNotFinite) : any_step(-8.0f, 8.0f, 0.25f);
  fill_points(candidates);
  const Array<float> expected(2 * chosen), actual(2 * chosen);
  const auto run = [&](const PointKernels& kernels, const Array<float>& output) {
    const Array<float> certainty = scratch_array<float>(count);
    kernels.most_uncertain(logits.begin(), size, candidates.begin(), count, chosen, certainty.begin(), output.begin());
  };
  run(point_kernels_baseline, expected);
  run(point_kernels_avx512, actual);
  char description[200];
  std::snprintf(description, sizeof(description), "%d x %d C=%d K=%d wild=%d", int(size.height), int(size.width),
                int(count), int(chosen), wild);
  compare("uncertain points", actual, expected, 0.0, description);
}

}  // namespace

int main(int count, char** arguments) {
  const int problems = count > 1 ? std::atoi(arguments[1]) : 0;
  failed = problems < 1;
  for (int problem = 0; problem < problems; ++problem) {
    generator.seed(problem);
    check_attention<float>(false);
    check_attention<float>(true);
    check_attention<uint16_t>(false);
    check_attention<uint16_t>(true);
    check_masks();
    check_classes();
    check_convolution();
    check_masked_attention<float>();
    check_masked_attention<uint16_t>();
    check_pixels<float>();
    check_pixels<uint16_t>();
    check_masks_at_points<uint8_t>();
    check_masks_at_points<int32_t>();
    check_uncertain();
  }
  for (const auto& [what, error] : worst) std::printf("%-40s largest error %.2g\n", what.c_str(), error);
  std::printf("%s: %d problems of each kind\n", failed ? "FAIL" : "PASS", problems);
  std::fflush(stdout);
  tcdrain(STDOUT_FILENO);  // a serial console is slow, and this may be the only process of its machine
  return failed;
}
