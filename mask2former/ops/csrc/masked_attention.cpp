// The operator mask2former::masked_attention on CPU: checks and threads.
#include "masked_attention.h"
#include "cpu.h"
#include "schemas.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>

namespace mask2former {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const AttentionKernels& attention_kernels() {
  static const AttentionKernels& chosen =
      choose_kernels(attention_kernels_baseline, attention_kernels_avx2, attention_kernels_avx512);
  return chosen;
}

// Memory of one thread for the kernels.
class ThreadScratch {
 public:
  ThreadScratch(int64_t queries, int64_t head_dim)
      : rows_(allocate<float>(queries * 2 * (head_dim + 1))), block_(allocate<float>(kKeysTogether * 2 * head_dim)),
        weights_(allocate<float>(kQueriesTogether * kKeysTogether)), queries_(queries), head_dim_(head_dim) {}
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
  STD_TORCH_CHECK(heads > 0 && query.size(2) % (heads * kHeadDims) == 0,
                  "masked_attention: heads must have a multiple of ", kHeadDims, " channels, not ", query.size(2),
                  " in ", heads, " heads");
}

Tensor masked_attention(Tensor query_, Tensor key_, Tensor value_, Tensor attend_, int64_t heads) {
  check(query_, key_, value_, attend_, heads);
  const Tensor query = torch::stable::contiguous(query_), key = torch::stable::contiguous(key_);
  const Tensor value = torch::stable::contiguous(value_), attend = torch::stable::contiguous(attend_);
  Tensor output = torch::stable::empty_like(query);
  const int64_t images = query.size(0), queries = query.size(1), head_dim = query.size(2) / heads;
  const Attention problem = {queries,
                             key.size(1),
                             heads,
                             head_dim,
                             query.const_data_ptr(),
                             key.const_data_ptr(),
                             value.const_data_ptr(),
                             static_cast<const uint8_t*>(attend.const_data_ptr()),
                             output.mutable_data_ptr()};
  // A head's keys are packed once for each part of its queries, so that there are no more parts than threads need.
  const int64_t threads = torch::stable::get_num_threads(), rows = images * heads;
  const int64_t groups = (queries + kQueriesTogether - 1) / kQueriesTogether;
  const int64_t most = std::max<int64_t>(groups, 1);
  const int64_t parts = rows == 0 ? 1 : std::clamp<int64_t>((threads + rows - 1) / rows, 1, most);
  const int64_t part = (groups + parts - 1) / parts * kQueriesTogether;
  const auto kernel = attention_kernels().attend[query.scalar_type() == ScalarType::BFloat16];
  torch::stable::parallel_for(0, rows * parts, 1, [&](int64_t begin, int64_t end) {
    const ThreadScratch scratch(part, head_dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * part, last = std::min(queries, first + part);
      if (first < last)
        kernel(problem, i / parts / heads, i / parts % heads, first, last, scratch.get());
    }
  });
  return output;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, library) { mask2former::define_attention(library); }

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("masked_attention", TORCH_BOX(&mask2former::masked_attention));
}
