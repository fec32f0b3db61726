// The operators as calls through PyTorch's dispatcher: what autocast and autograd hand a call on to.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "tensors.h"

namespace piip_ops {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline at::Tensor call_ms_deform_attn(const at::Tensor& value, c10::SymIntArrayRef spatial_shapes,
                                      const at::Tensor& locations, const at::Tensor& weights) {
  static const auto op = find_operator<decltype(call_ms_deform_attn)>("piip_ops::ms_deform_attn");
  return op.call(value, spatial_shapes, locations, weights);
}

inline Gradients call_ms_deform_attn_backward(const at::Tensor& grad, const at::Tensor& value,
                                              c10::SymIntArrayRef spatial_shapes, const at::Tensor& locations,
                                              const at::Tensor& weights) {
  static const auto op =
      find_operator<decltype(call_ms_deform_attn_backward)>("piip_ops::ms_deform_attn_backward");
  return op.call(grad, value, spatial_shapes, locations, weights);
}

inline at::Tensor call_deform_cross_attn(const at::Tensor& value, const at::Tensor& offsets,
                                         const at::Tensor& logits, c10::SymIntArrayRef query_shape,
                                         c10::SymIntArrayRef value_shape) {
  static const auto op = find_operator<decltype(call_deform_cross_attn)>("piip_ops::deform_cross_attn");
  return op.call(value, offsets, logits, query_shape, value_shape);
}

inline Gradients call_deform_cross_attn_backward(const at::Tensor& grad, const at::Tensor& value,
                                                 const at::Tensor& offsets, const at::Tensor& logits,
                                                 c10::SymIntArrayRef query_shape,
                                                 c10::SymIntArrayRef value_shape) {
  static const auto op =
      find_operator<decltype(call_deform_cross_attn_backward)>("piip_ops::deform_cross_attn_backward");
  return op.call(grad, value, offsets, logits, query_shape, value_shape);
}

}  // namespace piip_ops
