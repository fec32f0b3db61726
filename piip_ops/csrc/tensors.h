// What the operators do with tensors on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <tuple>

namespace piip_ops {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Slices of a wider tensor, such as one linear layer's output holding offsets and logits, are read in place.
inline at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t dim = tensor.dim() - 1; dim >= 2; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return tensor.contiguous();
    expected *= tensor.size(dim);
  }
  return tensor;
}

// Room for the gradients of value, points and mixing. That of value is added to, which bfloat16 and float16
// are too coarse for: it is float32, or float64. The others are written, unless there is nothing to do.
inline Gradients allocate_gradients(const at::Tensor& value, const at::Tensor& points,
                                    const at::Tensor& mixing, bool nothing_to_do) {
  const auto sum_type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto make = [&](const at::Tensor& like) {
    return nothing_to_do ? at::zeros(like.sizes(), like.options()) : at::empty(like.sizes(), like.options());
  };
  return {at::zeros(value.sizes(), value.options().dtype(sum_type)), make(points), make(mixing)};
}

}  // namespace piip_ops
