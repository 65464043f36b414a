// The operators' schemas. Sizes of levels may be symbols, so that one compiled graph serves images of any size.
#pragma once

#include <torch/csrc/stable/library.h>

namespace mask2former {

template <typename Library>
void define_operators(Library& library) {
  library.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> "
      "Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights, *, bool deterministic=False) -> (Tensor, Tensor, Tensor)");
  library.def(
      "fused_ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
      "Tensor attention_logits) -> Tensor");
  library.def(
      "fused_ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, *, bool deterministic=False) -> "
      "(Tensor, Tensor, Tensor)");
}

// Of masks: logits (Q, h, w), and for rows and columns an int32 (length,) and a float32 (taps, length), see masks.h.
template <typename Library>
void define_mask_operators(Library& library) {
  library.def(
      "resize_masks(Tensor logits, Tensor first_row, Tensor row_weights, Tensor first_column, Tensor column_weights, "
      "int begin, int end, bool sigmoid) -> Tensor");
  library.def(
      "binarise_masks(Tensor logits, Tensor first_row, Tensor row_weights, Tensor first_column, Tensor column_weights) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "compete_masks(Tensor logits, Tensor scores, Tensor first_row, Tensor row_weights, Tensor first_column, Tensor "
      "column_weights) -> (Tensor, Tensor, Tensor)");
  library.def("classify_pixels(Tensor probabilities, Tensor inside) -> Tensor");
}

// Queries (N, Q, C), keys and values (N, S, C), and where a query may look (N, Q, S): see masked_attention.h.
template <typename Library>
void define_attention(Library& library) {
  library.def(
      "masked_attention(Tensor query, Tensor key, Tensor value, Tensor attend, int num_heads) -> (Tensor, Tensor)");
  library.def(
      "masked_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor attend, "
      "Tensor output, Tensor logsumexp, int num_heads) -> (Tensor, Tensor, Tensor)");
}

// Embeddings (H, W, C), maps (T, H, W), logits (R, H, W), and points (x, y) on them: see points.h.
template <typename Library>
void define_points(Library& library) {
  library.def("sample_pixels(Tensor pixels, Tensor points) -> Tensor");
  library.def("sample_masks(Tensor maps, Tensor indices, Tensor ids, Tensor points) -> Tensor");
  library.def("most_uncertain(Tensor logits, Tensor candidates, int chosen) -> Tensor");
}

// Rows of x (..., C), weights (K, C) and a bias (K): see linear.h.
template <typename Library>
void define_linear(Library& library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}

// Pixels (N, H, W, C), transformed weights (36, K, C) or their gradient, and a bias (K): see winograd.h.
template <typename Library>
void define_convolutions(Library& library) {
  library.def("winograd_conv2d(Tensor pixels, Tensor weight, Tensor bias, *, bool onednn=False) -> Tensor");
  library.def("winograd_weight_gradient(Tensor pixels, Tensor grad_output) -> Tensor");
}

}  // namespace mask2former
