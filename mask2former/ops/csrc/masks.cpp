// The operators on masks of mask2former on CPU: checks and threads.
#include "masks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBand = 32;  // output rows that masks compete for at a time: what is kept of them fits a cache

const MaskKernels& mask_kernels() {
  static const MaskKernels& chosen = MASK2FORMER_CHOOSE(mask_kernels);
  return chosen;
}

class ThreadScratch {
 public:
  explicit ThreadScratch(const Masks& masks, int64_t band = 0)
      : wide_rows_(allocate<float>(masks.rows.taps * masks.columns.length)),
        held_(allocate<int64_t>(masks.rows.taps)),
        row_(allocate<float>(masks.columns.length)),
        best_(allocate<float>(band * masks.columns.length)) {}
  MaskScratch get() const { return {wide_rows_.get(), held_.get(), row_.get(), best_.get()}; }

 private:
  std::unique_ptr<float[], Free> wide_rows_;
  std::unique_ptr<int64_t[], Free> held_;
  std::unique_ptr<float[], Free> row_, best_;
};

// One axis of an operator's arguments: contiguous, and checked so that no kernel reads outside a mask.
struct CheckedAxis {
  Tensor first, weights;
  Axis axis;

  CheckedAxis(const Tensor& first_, const Tensor& weights_, int64_t size)
      : first(torch::stable::contiguous(first_)), weights(torch::stable::contiguous(weights_)) {
    STD_TORCH_CHECK(first.is_cpu() && first.scalar_type() == ScalarType::Int && first.dim() == 1 && weights.is_cpu() &&
                        weights.scalar_type() == ScalarType::Float && weights.dim() == 2 &&
                        weights.size(1) == first.size(0) && weights.size(0) > 0,
                    "masks: expected for each axis int32 (length,) and float32 (taps, length) on the CPU");
    axis = {first.size(0), weights.size(0), static_cast<const int32_t*>(first.const_data_ptr()),
            static_cast<const float*>(weights.const_data_ptr())};
    // Memory is for so many places at a time, even if none is in the output.
    STD_TORCH_CHECK(axis.taps <= std::max<int64_t>(size, 1), "masks: an axis takes ", axis.taps,
                    " places at a time of a mask that has ", size);
    for (int64_t i = 0; i < axis.length; ++i) {
      STD_TORCH_CHECK(axis.first[i] >= (i == 0 ? 0 : axis.first[i - 1]) && axis.first[i] + axis.taps <= size,
                      "masks: an axis must not decrease, nor leave the mask");
    }
  }
};

// The inputs of a call.
struct MaskInputs {
  Tensor logits;
  CheckedAxis rows, columns;
  Masks masks;

  MaskInputs(const Tensor& logits_, const Tensor& first_row, const Tensor& row_weights, const Tensor& first_column,
             const Tensor& column_weights)
      : logits(checked(logits_)),
        rows(first_row, row_weights, logits.size(1)),
        columns(first_column, column_weights, logits.size(2)),
        masks{logits.size(0), logits.size(1), logits.size(2), static_cast<const float*>(logits.const_data_ptr()),
              rows.axis,      columns.axis} {}

  static Tensor checked(const Tensor& logits) {
    STD_TORCH_CHECK(logits.is_cpu() && logits.scalar_type() == ScalarType::Float && logits.dim() == 3,
                    "masks: expected float32 (Q, h, w) on the CPU");
    return torch::stable::contiguous(logits);
  }
};

template <size_t kDims>
Tensor new_tensor(const Tensor& like, const int64_t (&shape)[kDims], ScalarType dtype) {
  return torch::stable::new_empty(like, {shape, kDims}, dtype);
}

Tensor resize_masks(Tensor logits, Tensor first_row, Tensor row_weights, Tensor first_column, Tensor column_weights,
                    int64_t begin, int64_t end, bool sigmoid) {
  const MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  const Masks& masks = inputs.masks;
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= masks.rows.length, "masks: rows ", begin, " to ", end,
                  " are not among ", masks.rows.length);
  Tensor output = new_tensor(logits, {masks.count, end - begin, masks.columns.length}, ScalarType::Float);
  float* const pixels = static_cast<float*>(output.mutable_data_ptr());
  const int64_t size = (end - begin) * masks.columns.length;
  torch::stable::parallel_for(0, masks.count, 1, [&](int64_t first, int64_t last) {
    const ThreadScratch scratch(masks);
    for (int64_t mask = first; mask < last; ++mask) {
      mask_kernels().resize(masks, mask, begin, end, sigmoid, scratch.get(), pixels + mask * size);
    }
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> binarise_masks(Tensor logits, Tensor first_row, Tensor row_weights,
                                                          Tensor first_column, Tensor column_weights) {
  const MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  const Masks& masks = inputs.masks;
  Tensor binary = new_tensor(logits, {masks.count, masks.rows.length, masks.columns.length}, ScalarType::Bool);
  Tensor areas = new_tensor(logits, {masks.count}, ScalarType::Long);
  Tensor probabilities = new_tensor(logits, {masks.count}, ScalarType::Float);
  Tensor boxes = new_tensor(logits, {masks.count, 4}, ScalarType::Float);
  uint8_t* const pixels = static_cast<uint8_t*>(binary.mutable_data_ptr());
  int64_t* const area = static_cast<int64_t*>(areas.mutable_data_ptr());
  float* const probability = static_cast<float*>(probabilities.mutable_data_ptr());
  float* const box = static_cast<float*>(boxes.mutable_data_ptr());
  const int64_t size = masks.rows.length * masks.columns.length;
  torch::stable::parallel_for(0, masks.count, 1, [&](int64_t first, int64_t last) {
    const ThreadScratch scratch(masks);
    for (int64_t mask = first; mask < last; ++mask) {
      Measures found;
      mask_kernels().binarise(masks, mask, scratch.get(), pixels + mask * size, found);
      area[mask] = found.area;
      probability[mask] = static_cast<float>(found.probability / (found.area + 1e-6));
      const int64_t sides[] = {found.left, found.top, found.right, found.bottom};
      for (int i = 0; i < 4; ++i) box[4 * mask + i] = found.area ? static_cast<float>(sides[i]) : 0.0f;
    }
  });
  return {binary, areas, probabilities, boxes};
}

std::tuple<Tensor, Tensor, Tensor> compete_masks(Tensor logits, Tensor scores, Tensor first_row, Tensor row_weights,
                                                 Tensor first_column, Tensor column_weights) {
  const MaskInputs inputs(logits, first_row, row_weights, first_column, column_weights);
  const Masks& masks = inputs.masks;
  STD_TORCH_CHECK(scores.is_cpu() && scores.scalar_type() == ScalarType::Float && scores.dim() == 1 &&
                      scores.size(0) == masks.count && masks.count > 0 && masks.count < (1 << 30),
                  "masks: expected float32 (Q,) scores of at least one mask");
  const Tensor contiguous_scores = torch::stable::contiguous(scores);
  const float* const score = static_cast<const float*>(contiguous_scores.const_data_ptr());
  const int64_t height = masks.rows.length, width = masks.columns.length;
  Tensor winner = new_tensor(logits, {height, width}, ScalarType::Int);
  Tensor inside = new_tensor(logits, {height, width}, ScalarType::Bool);
  Tensor areas = new_tensor(logits, {3, masks.count}, ScalarType::Long);
  int32_t* const winners = static_cast<int32_t*>(winner.mutable_data_ptr());
  bool* const insides = static_cast<bool*>(inside.mutable_data_ptr());
  int64_t* const all_areas = static_cast<int64_t*>(areas.mutable_data_ptr());
  std::fill_n(all_areas, 3 * masks.count, 0);
  std::mutex adding;
  torch::stable::parallel_for(0, (height + kBand - 1) / kBand, 1, [&](int64_t first, int64_t last) {
    const ThreadScratch scratch(masks, kBand);
    std::vector<int64_t> own_areas(3 * masks.count);
    for (int64_t band = first; band < last; ++band) {
      const int64_t begin = band * kBand, end = std::min(height, begin + kBand);
      mask_kernels().compete(masks, score, begin, end, scratch.get(), winners + begin * width, insides + begin * width,
                             own_areas.data());
    }
    const std::lock_guard<std::mutex> lock(adding);
    for (size_t i = 0; i < own_areas.size(); ++i) all_areas[i] += own_areas[i];
  });
  return {winner, inside, areas};
}

// Class probabilities (Q, K) as panels.
std::unique_ptr<float[], Free> pack_classes(const float* probabilities, int64_t masks, int64_t classes) {
  const int64_t panels = (classes + kClassesTogether - 1) / kClassesTogether;
  auto packed = allocate<float>(panels * masks * kClassesTogether);
  float* to = packed.get();
  for (int64_t first = 0; first < panels * kClassesTogether; first += kClassesTogether) {
    for (int64_t mask = 0; mask < masks; ++mask) {
      for (int64_t i = first; i < first + kClassesTogether; ++i)
        *to++ = i < classes ? probabilities[mask * classes + i] : 0.0f;
    }
  }
  return packed;
}

Tensor classify_pixels(Tensor probabilities, Tensor inside) {
  for (const Tensor* x : {&probabilities, &inside}) {
    STD_TORCH_CHECK(x->is_cpu() && x->scalar_type() == ScalarType::Float && x->dim() == 2,
                    "masks: expected float32 (Q, K) and (Q, pixels) on the CPU");
  }
  const int64_t masks = inside.size(0), classes = probabilities.size(1), pixels = inside.size(1);
  STD_TORCH_CHECK(probabilities.size(0) == masks && 0 < classes && classes < (1 << 30), "masks: ", masks,
                  " masks have no probabilities (", probabilities.size(0), ", ", classes, ") of at least one class");
  const Tensor contiguous_probabilities = torch::stable::contiguous(probabilities);
  const Tensor contiguous_inside = torch::stable::contiguous(inside);
  const auto panels =
      pack_classes(static_cast<const float*>(contiguous_probabilities.const_data_ptr()), masks, classes);
  const ClassMix mix{masks, classes, pixels, panels.get(),
                     static_cast<const float*>(contiguous_inside.const_data_ptr())};
  Tensor output = new_tensor(inside, {pixels}, ScalarType::Long);
  int64_t* const winners = static_cast<int64_t*>(output.mutable_data_ptr());
  const int64_t blocks = (pixels + kPixelsTogether - 1) / kPixelsTogether;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    const auto block = allocate<float>(masks * kPixelsTogether);
    mask_kernels().classify(mix, first * kPixelsTogether, std::min(pixels, last * kPixelsTogether), block.get(),
                            winners);
  });
  return output;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_mask_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("resize_masks", TORCH_BOX(&mask2former::resize_masks));
  library.impl("binarise_masks", TORCH_BOX(&mask2former::binarise_masks));
  library.impl("compete_masks", TORCH_BOX(&mask2former::compete_masks));
  library.impl("classify_pixels", TORCH_BOX(&mask2former::classify_pixels));
}
