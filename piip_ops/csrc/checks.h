// What the operators ask of their arguments, for every device (piip_ops/checks.py asks the same of the
// reference).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <vector>

namespace piip_ops {

struct Sizes {
  int64_t batch, queries, heads, channels, levels, points, length;
};

inline void check_dims(const char* name, const at::Tensor& tensor, const char* layout, int64_t dims) {
  TORCH_CHECK_VALUE(tensor.dim() == dims, name, ": expected ", dims, " dimensions ", layout, ", got shape ",
                    tensor.sizes());
}

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, name, ": expected shape ", expected, ", got ",
                    tensor.sizes());
}

inline bool is_half(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

// The side of a map up to which its positions, and two more behind it, are exact in the type of the sums
// (float32, or float64 for float64 tensors) and in 32-bit integers.
inline int64_t largest_side(at::ScalarType type) {
  return type == at::kDouble ? (int64_t{1} << 31) - 3 : (int64_t{1} << 24) - 1;
}

// Points and mixing weights go together: in the type of value or, as a half type is coarse for them, in
// float32.
inline void check_kinds(const at::Tensor& value, const char* points_name, const at::Tensor& points,
                        const char* mixing_name, const at::Tensor& mixing) {
  const auto type = value.scalar_type();
  TORCH_CHECK_VALUE(type == at::kDouble || type == at::kFloat || is_half(type),
                    "value: expected float64, float32, bfloat16 or float16, got ", type);
  const auto check = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.device() == value.device(), name, ": on ", tensor.device(), ", but value is on ",
                      value.device(), "; move one of them");
    TORCH_CHECK_VALUE(tensor.scalar_type() == type || (is_half(type) && tensor.scalar_type() == at::kFloat),
                      name, ": expected ", type, is_half(type) ? " or Float" : "", ", got ",
                      tensor.scalar_type());
  };
  check(points_name, points);
  check(mixing_name, mixing);
  TORCH_CHECK_VALUE(points.scalar_type() == mixing.scalar_type(), mixing_name, ": expected the type of ",
                    points_name, " (", points.scalar_type(), "), got ", mixing.scalar_type());
}

inline Sizes check_ms_deform_attn(const at::Tensor& value, at::IntArrayRef spatial_shapes,
                                  const at::Tensor& locations, const at::Tensor& weights) {
  check_dims("value", value, "(B, S, heads, C)", 4);
  check_dims("sampling_locations", locations, "(B, Q, heads, levels, points, 2)", 6);
  check_dims("attention_weights", weights, "(B, Q, heads, levels, points)", 5);
  TORCH_CHECK_VALUE(!spatial_shapes.empty() && spatial_shapes.size() % 2 == 0,
                    "spatial_shapes: expected (height, width) for every level, got ", spatial_shapes);
  const auto levels = static_cast<int64_t>(spatial_shapes.size()) / 2;
  const Sizes n{value.size(0), locations.size(1), value.size(2), value.size(3),
                levels,        locations.size(4), value.size(1)};
  const int64_t largest = largest_side(value.scalar_type());
  int64_t rest = n.length;  // counted down, for a sum of products can wrap
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    TORCH_CHECK_VALUE(height >= 1 && width >= 1 && height <= largest && width <= largest,
                      "spatial_shapes: expected heights and widths of 1 to ", largest, " for ",
                      value.scalar_type(), ", got ", spatial_shapes);
    TORCH_CHECK_VALUE(height * width <= rest, "spatial_shapes: these levels hold more than the ", n.length,
                      " positions of value (its dim 1)");
    rest -= height * width;
  }
  TORCH_CHECK_VALUE(rest == 0, "spatial_shapes: these levels hold ", n.length - rest,
                    " positions, but value has ", n.length, " (its dim 1)");
  check_shape("sampling_locations", locations, {n.batch, n.queries, n.heads, n.levels, n.points, 2});
  check_shape("attention_weights", weights, {n.batch, n.queries, n.heads, n.levels, n.points});
  check_kinds(value, "sampling_locations", locations, "attention_weights", weights);
  return n;
}

inline Sizes check_deform_cross_attn(const at::Tensor& value, const at::Tensor& offsets,
                                     const at::Tensor& logits, at::IntArrayRef query_shape,
                                     at::IntArrayRef value_shape) {
  check_dims("value", value, "(B, hv*wv, heads, C)", 4);
  check_dims("offsets", offsets, "(B, hq*wq, heads, points, 2)", 5);
  check_dims("logits", logits, "(B, hq*wq, heads, points)", 4);
  TORCH_CHECK_VALUE(query_shape.size() == 2, "query_shape: expected (height, width), got ", query_shape);
  TORCH_CHECK_VALUE(value_shape.size() == 2, "value_shape: expected (height, width), got ", value_shape);
  const int64_t largest = largest_side(value.scalar_type());
  TORCH_CHECK_VALUE(
      value_shape[0] >= 1 && value_shape[1] >= 1 && value_shape[0] <= largest && value_shape[1] <= largest,
      "value_shape: expected a height and a width of 1 to ", largest, " for ", value.scalar_type(), ", got ",
      value_shape);
  const Sizes n{value.size(0),   offsets.size(1), value.size(2), value.size(3), 1,
                offsets.size(3), value.size(1)};
  TORCH_CHECK_VALUE(value_shape[0] * value_shape[1] == n.length, "value_shape: ", value_shape[0], " x ",
                    value_shape[1], " positions, but value has ", n.length, " (its dim 1)");
  TORCH_CHECK_VALUE(query_shape[0] >= 0 && query_shape[1] >= 0 && query_shape[0] <= INT32_MAX &&
                        query_shape[1] <= INT32_MAX && query_shape[0] * query_shape[1] == n.queries,
                    "query_shape: ", query_shape[0], " x ", query_shape[1], " queries, but offsets has ",
                    n.queries, " (its dim 1)");
  check_shape("offsets", offsets, {n.batch, n.queries, n.heads, n.points, 2});
  check_shape("logits", logits, {n.batch, n.queries, n.heads, n.points});
  check_kinds(value, "offsets", offsets, "logits", logits);
  return n;
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& value, const Sizes& n) {
  check_shape("grad", grad, {n.batch, n.queries, n.heads * n.channels});
  TORCH_CHECK_VALUE(grad.device() == value.device() && grad.scalar_type() == value.scalar_type(),
                    "grad: expected ", value.scalar_type(), " on ", value.device(), " as value, got ",
                    grad.scalar_type(), " on ", grad.device());
}

}  // namespace piip_ops
