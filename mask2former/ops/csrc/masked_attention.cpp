// The operator mask2former::masked_attention on CPU and its gradients: checks and threads.
#include "masked_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "cpu.h"
#include "schemas.h"

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const AttentionKernels& attention_kernels() {
  static const AttentionKernels& chosen = MASK2FORMER_CHOOSE(attention_kernels);
  return chosen;
}

// Memory of one thread for the kernels.
class ThreadScratch {
 public:
  ThreadScratch(int64_t queries, int64_t head_dim)
      : rows_(allocate<float>(queries * 2 * (head_dim + 1))),
        block_(allocate<float>(kKeysTogether * 2 * head_dim)),
        weights_(allocate<float>(kQueriesTogether * kKeysTogether)),
        queries_(queries),
        head_dim_(head_dim) {}
  AttentionScratch get() const {
    float *const query = rows_.get(), *const sums = query + queries_ * head_dim_;
    float *const largest = sums + queries_ * head_dim_, *const keys = block_.get();
    return {query, sums, largest, largest + queries_, keys, keys + kKeysTogether * head_dim_, weights_.get()};
  }

 private:
  std::unique_ptr<float[], Free> rows_, block_, weights_;
  int64_t queries_, head_dim_;
};

void check(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& attend, int64_t heads) {
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK(query.is_cpu() && key.is_cpu() && value.is_cpu() && attend.is_cpu() &&
                      (type == ScalarType::Float || type == ScalarType::BFloat16) && key.scalar_type() == type &&
                      value.scalar_type() == type && attend.scalar_type() == ScalarType::Bool,
                  "masked_attention: query, key and value must be float32 or bfloat16, and attend bool, on the CPU");
  bool fit = query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && attend.dim() == 3;
  fit = fit && key.size(0) == query.size(0) && key.size(2) == query.size(2);
  for (int64_t i = 0; fit && i < 3; ++i) fit = value.size(i) == key.size(i);
  fit = fit && attend.size(0) == query.size(0) && attend.size(1) == query.size(1) && attend.size(2) == key.size(1);
  STD_TORCH_CHECK(fit, "masked_attention: expected query (N, Q, C), key and value (N, S, C) and attend (N, Q, S)");
  const int64_t channels = query.size(2);  // which are divided, for heads * kHeadDims could overflow
  STD_TORCH_CHECK(heads > 0 && channels > 0 && channels % heads == 0 && channels / heads % kHeadDims == 0,
                  "masked_attention: heads must have a multiple of ", kHeadDims, " channels, not ", channels, " in ",
                  heads, " heads");
}

// Memory of one thread for the kernels of gradients.
class GradientThreadScratch {
 public:
  GradientThreadScratch(int64_t queries, int64_t head_dim)
      : rows_(allocate<float>(queries * (2 * head_dim + 1))),
        block_(allocate<float>(kKeysTogether * 3 * head_dim)),
        products_(allocate<float>(queries * 2 * kKeysTogether)),
        groups_(allocate<int64_t>(queries / kQueriesTogether)),
        queries_(queries),
        head_dim_(head_dim) {}
  AttentionGradientScratch get() const {
    float *const query = rows_.get(), *const grad_output = query + queries_ * head_dim_;
    float *const keys = block_.get(), *const values = keys + kKeysTogether * head_dim_;
    float* const weights = products_.get();
    return {query,
            grad_output,
            grad_output + queries_ * head_dim_,
            keys,
            values,
            values + kKeysTogether * head_dim_,
            weights,
            weights + queries_ * kKeysTogether,
            groups_.get()};
  }

 private:
  std::unique_ptr<float[], Free> rows_, block_, products_;
  std::unique_ptr<int64_t[], Free> groups_;
  int64_t queries_, head_dim_;
};

// The inputs of a call, contiguous, and the problem that they are, without results.
struct AttentionInputs {
  Tensor query, key, value, attend;
  int64_t images, rows;  // a row is a head of an image
  bool is_bfloat16;
  Attention problem;

  AttentionInputs(const Tensor& query_, const Tensor& key_, const Tensor& value_, const Tensor& attend_, int64_t heads)
      : query(torch::stable::contiguous(query_)),
        key(torch::stable::contiguous(key_)),
        value(torch::stable::contiguous(value_)),
        attend(torch::stable::contiguous(attend_)) {
    check(query, key, value, attend, heads);
    images = query.size(0);
    rows = images * heads;
    is_bfloat16 = query.scalar_type() == ScalarType::BFloat16;
    problem = {query.size(1),
               key.size(1),
               heads,
               query.size(2) / heads,
               query.const_data_ptr(),
               key.const_data_ptr(),
               value.const_data_ptr(),
               static_cast<const uint8_t*>(attend.const_data_ptr()),
               nullptr,
               nullptr};
  }
};

// Into how many parts to split the pieces of every row: not more than threads need, for each part packs anew.
int64_t count_parts(int64_t rows, int64_t pieces) {
  const int64_t threads = torch::stable::get_num_threads();
  return rows == 0 ? 1 : std::clamp<int64_t>((threads + rows - 1) / rows, 1, std::max<int64_t>(pieces, 1));
}

std::tuple<Tensor, Tensor> masked_attention(Tensor query, Tensor key, Tensor value, Tensor attend, int64_t heads) {
  const AttentionInputs inputs(query, key, value, attend, heads);
  Attention problem = inputs.problem;
  const int64_t queries = problem.num_queries;
  Tensor output = torch::stable::empty_like(inputs.query);
  Tensor logsumexp = torch::stable::new_empty(inputs.query, {inputs.images, heads, queries}, ScalarType::Float);
  problem.output = output.mutable_data_ptr();
  problem.logsumexp = static_cast<float*>(logsumexp.mutable_data_ptr());
  const int64_t groups = round_up_queries(queries) / kQueriesTogether, parts = count_parts(inputs.rows, groups);
  const int64_t part = (groups + parts - 1) / parts * kQueriesTogether;
  const auto kernel = attention_kernels().attend[inputs.is_bfloat16];
  torch::stable::parallel_for(0, inputs.rows * parts, 1, [&](int64_t begin, int64_t end) {
    const ThreadScratch scratch(part, problem.head_dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * part, last = std::min(queries, first + part);
      if (first < last)
        kernel(problem, i / parts / heads, i / parts % heads, first, last, scratch.get());
    }
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> masked_attention_backward(Tensor grad_output_, Tensor query, Tensor key,
                                                             Tensor value, Tensor attend, Tensor output_,
                                                             Tensor logsumexp_, int64_t heads) {
  const AttentionInputs inputs(query, key, value, attend, heads);
  check(grad_output_, key, value, attend, heads);
  check(output_, key, value, attend, heads);
  Attention forward = inputs.problem;
  const int64_t queries = forward.num_queries, keys = forward.num_keys, rows = inputs.rows;
  STD_TORCH_CHECK(logsumexp_.is_cpu() && logsumexp_.scalar_type() == ScalarType::Float && logsumexp_.dim() == 3 &&
                      logsumexp_.size(0) == inputs.images && logsumexp_.size(1) == heads &&
                      logsumexp_.size(2) == queries,
                  "masked_attention_backward: expected the logarithms of the forward pass, float32 (N, heads, Q)");
  const Tensor output = torch::stable::contiguous(output_), logsumexp = torch::stable::contiguous(logsumexp_);
  const Tensor grad_output = torch::stable::contiguous(grad_output_);
  forward.output = const_cast<void*>(output.const_data_ptr());
  forward.logsumexp = static_cast<float*>(const_cast<void*>(logsumexp.const_data_ptr()));
  Tensor grad_query = torch::stable::empty_like(inputs.query), grad_key = torch::stable::empty_like(inputs.key);
  Tensor grad_value = torch::stable::empty_like(inputs.value);
  // Whole blocks of keys for each thread.
  const int64_t blocks = (keys + kKeysTogether - 1) / kKeysTogether, parts = count_parts(rows, blocks);
  const int64_t part_keys = (blocks + parts - 1) / parts * kKeysTogether, padded = round_up_queries(queries);
  Tensor grad_query_parts =
      torch::stable::new_empty(inputs.query, {parts, rows, padded, forward.head_dim}, ScalarType::Float);
  const AttentionGradient problem = {forward,
                                     grad_output.const_data_ptr(),
                                     grad_query.mutable_data_ptr(),
                                     grad_key.mutable_data_ptr(),
                                     grad_value.mutable_data_ptr(),
                                     static_cast<float*>(grad_query_parts.mutable_data_ptr()),
                                     inputs.images,
                                     parts};
  torch::stable::parallel_for(0, rows * parts, 1, [&](int64_t begin, int64_t end) {
    const GradientThreadScratch scratch(padded, forward.head_dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts, part = i % parts, first = std::min(keys, part * part_keys);
      attention_kernels().differentiate[inputs.is_bfloat16](problem, row / heads, row % heads, part, first,
                                                            std::min(keys, first + part_keys), scratch.get());
    }
  });
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      attention_kernels().add_parts[inputs.is_bfloat16](problem, row / heads, row % heads);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_attention(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("masked_attention", TORCH_BOX(&mask2former::masked_attention));
  library.impl("masked_attention_backward", TORCH_BOX(&mask2former::masked_attention_backward));
}
