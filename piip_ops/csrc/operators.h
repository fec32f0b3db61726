// The operators of a device: arguments checked, then handed to the device's Call, which is constructed from
// them and has forward() and backward(grad).
#pragma once

#include <torch/library.h>

#include "checks.h"
#include "tensors.h"

namespace piip_ops {

// The tensors of a call, with rows that kernels can read in place. query_shape is empty for ms_deform_attn.
// Devices keep pointers into it: it stays where it is.
struct Arguments {
  Sizes n;
  at::Tensor value, points, mixing;
  at::IntArrayRef level_shapes, query_shape;

  Arguments(const Sizes& sizes, const at::Tensor& value_, const at::Tensor& points_,
            const at::Tensor& mixing_, at::IntArrayRef level_shapes_, at::IntArrayRef query_shape_)
      : n(sizes),
        value(with_contiguous_rows(value_)),
        points(with_contiguous_rows(points_)),
        mixing(with_contiguous_rows(mixing_)),
        level_shapes(level_shapes_),
        query_shape(query_shape_) {}
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  bool cross() const { return !query_shape.empty(); }
  bool empty() const {
    return n.batch == 0 || n.queries == 0 || n.heads == 0 || n.channels == 0 || n.points == 0;
  }
};

template <typename Call>
struct Operators {
  using Tensor = at::Tensor;
  using Ints = at::IntArrayRef;

  static Tensor ms_deform_attn(const Tensor& value, Ints spatial_shapes, const Tensor& sampling_locations,
                               const Tensor& attention_weights) {
    const Sizes n = check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights);
    const Arguments arguments(n, value, sampling_locations, attention_weights, spatial_shapes, {});
    return Call(arguments).forward();
  }
  static Gradients ms_deform_attn_backward(const Tensor& grad, const Tensor& value, Ints spatial_shapes,
                                           const Tensor& sampling_locations,
                                           const Tensor& attention_weights) {
    const Sizes n = check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights);
    check_grad(grad, value, n);
    const Arguments arguments(n, value, sampling_locations, attention_weights, spatial_shapes, {});
    return Call(arguments).backward(grad);
  }
  static Tensor deform_cross_attn(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                                  Ints query_shape, Ints value_shape) {
    const Sizes n = check_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
    const Arguments arguments(n, value, offsets, logits, value_shape, query_shape);
    return Call(arguments).forward();
  }
  static Gradients deform_cross_attn_backward(const Tensor& grad, const Tensor& value, const Tensor& offsets,
                                              const Tensor& logits, Ints query_shape, Ints value_shape) {
    const Sizes n = check_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
    check_grad(grad, value, n);
    const Arguments arguments(n, value, offsets, logits, value_shape, query_shape);
    return Call(arguments).backward(grad);
  }

  static void add_to(torch::Library& m) {
    m.impl("ms_deform_attn", ms_deform_attn);
    m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
    m.impl("deform_cross_attn", deform_cross_attn);
    m.impl("deform_cross_attn_backward", deform_cross_attn_backward);
  }
};

}  // namespace piip_ops
