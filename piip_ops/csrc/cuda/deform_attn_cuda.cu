// The operators on CUDA tensors: checks, memory and the choice of kernels.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>

#include "../checks.h"
#include "../tensors.h"
#include "backward.cuh"
#include "forward.cuh"

namespace piip_ops {
namespace {

using at::Tensor;

constexpr int64_t kMaxBlocks = 1 << 20;  // the kernels go round in strides of the grid

bool aligned(const void* p, std::initializer_list<int64_t> strides, int64_t elements, int64_t item_size) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(elements * item_size) == 0 &&
         std::all_of(strides.begin(), strides.end(), [&](int64_t stride) { return stride % elements == 0; });
}

struct Call {
  Tensor value, points, mixing;
  Arguments a{};
  Sizes n;
  bool cross;

  Call(const Sizes& sizes, const Tensor& value_, const Tensor& points_, const Tensor& mixing_,
       at::IntArrayRef shapes, bool cross_)
      : value(with_contiguous_rows(value_)),
        points(with_contiguous_rows(points_)),
        mixing(with_contiguous_rows(mixing_)),
        n(sizes),
        cross(cross_) {
    TORCH_CHECK_VALUE(n.levels <= kMaxLevels, "spatial_shapes: the CUDA kernel takes up to ", kMaxLevels,
                      " levels, got ", n.levels);
    TORCH_CHECK_VALUE(!cross || n.points <= kMaxCrossPoints, "offsets: the CUDA kernel takes up to ",
                      kMaxCrossPoints, " points, got ", n.points);
    a.pairs = n.batch * n.queries * n.heads;
    a.queries = n.queries;
    a.heads = static_cast<int>(n.heads);
    a.channels = static_cast<int>(n.channels);
    a.levels = static_cast<int>(n.levels);
    a.points = static_cast<int>(n.points);
    a.wide_points = is_half(value.scalar_type()) && points.scalar_type() == at::kFloat;
    int64_t start = 0;
    for (int64_t l = 0; l < n.levels; ++l) {
      a.level[l] = {static_cast<int32_t>(shapes[2 * l]), static_cast<int32_t>(shapes[2 * l + 1]), start};
      start += shapes[2 * l] * shapes[2 * l + 1];
    }
    a.value = value.const_data_ptr();
    a.value_batch_stride = value.stride(0);
    a.value_row_stride = value.stride(1);
    a.points_xy = points.const_data_ptr();
    a.points_batch_stride = points.stride(0);
    a.points_row_stride = points.stride(1);
    a.mixing = mixing.const_data_ptr();
    a.mixing_batch_stride = mixing.stride(0);
    a.mixing_row_stride = mixing.stride(1);
  }

  bool empty() const { return a.pairs == 0 || a.channels == 0 || a.points == 0; }

  // Channels a lane loads at once, and with them the lanes of a group.
  int choose_width(std::initializer_list<std::pair<const void*, std::initializer_list<int64_t>>> tensors) {
    const int64_t item_size = value.element_size();
    int width = static_cast<int>(16 / item_size);
    const auto fits = [&](const auto& tensor) {
      return aligned(tensor.first, tensor.second, width, item_size);
    };
    while (width > 1 && (n.channels % width != 0 || !std::all_of(tensors.begin(), tensors.end(), fits)))
      width /= 2;
    const int64_t wanted = std::max<int64_t>((n.channels + width - 1) / width, cross ? n.points : 1);
    a.lanes = 4;
    while (a.lanes < kWarp && a.lanes < wanted) a.lanes *= 2;
    return width;
  }

  template <typename S, int width, bool is_cross>
  void launch_as(bool backward) const {
    const int64_t pairs_in_block = kThreads / a.lanes;
    const auto blocks =
        static_cast<unsigned>(std::min((a.pairs + pairs_in_block - 1) / pairs_in_block, kMaxBlocks));
    const auto stream = c10::cuda::getCurrentCUDAStream();
    if (backward) {
      backward_kernel<S, width, is_cross><<<blocks, kThreads, 0, stream>>>(a);
    } else {
      forward_kernel<S, width, is_cross><<<blocks, kThreads, 0, stream>>>(a);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  template <typename S, int width>
  void launch_width(int wanted, bool backward) const {
    if constexpr (width > 1) {
      if (wanted < width) return launch_width<S, width / 2>(wanted, backward);
    }
    cross ? launch_as<S, width, true>(backward) : launch_as<S, width, false>(backward);
  }
  void launch(int width, bool backward) const {
    switch (value.scalar_type()) {
      case at::kDouble:
        return launch_width<double, 2>(width, backward);
      case at::kFloat:
        return launch_width<float, 4>(width, backward);
      case at::kBFloat16:
        return launch_width<at::BFloat16, 8>(width, backward);
      default:
        return launch_width<at::Half, 8>(width, backward);
    }
  }

  Tensor forward() {
    const c10::cuda::CUDAGuard guard(value.device());
    const auto sizes = {n.batch, n.queries, n.heads * n.channels};
    if (empty()) return at::zeros(sizes, value.options());
    const Tensor out = at::empty(sizes, value.options());
    a.out = out.mutable_data_ptr();
    const int width = choose_width({{a.value, {a.value_batch_stride, a.value_row_stride}}, {a.out, {}}});
    launch(width, false);
    return out;
  }

  Gradients backward(const Tensor& grad, const char* name) {
    const c10::cuda::CUDAGuard guard(value.device());
    at::globalContext().alertNotDeterministic(name);
    const auto [grad_value, grad_points, grad_mixing] = allocate_gradients(value, points, mixing, empty());
    if (!empty()) {
      const Tensor grad_rows = with_contiguous_rows(grad);
      a.grad_out = grad_rows.const_data_ptr();
      a.grad_out_batch_stride = grad_rows.stride(0);
      a.grad_out_row_stride = grad_rows.stride(1);
      a.grad_value = grad_value.mutable_data_ptr();
      a.grad_points = grad_points.mutable_data_ptr();
      a.grad_mixing = grad_mixing.mutable_data_ptr();
      const int width = choose_width({{a.value, {a.value_batch_stride, a.value_row_stride}},
                                      {a.grad_out, {a.grad_out_batch_stride, a.grad_out_row_stride}}});
      launch(width, true);
    }
    return {grad_value.to(value.scalar_type()), grad_points, grad_mixing};
  }
};

Call ms_call(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& locations,
             const Tensor& weights) {
  const Sizes n = check_ms_deform_attn(value, spatial_shapes, locations, weights);
  return Call(n, value, locations, weights, spatial_shapes, false);
}

Call cross_call(const Tensor& value, const Tensor& offsets, const Tensor& logits, at::IntArrayRef query_shape,
                at::IntArrayRef value_shape) {
  const Sizes n = check_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
  Call call(n, value, offsets, logits, value_shape, true);
  call.a.query_height = static_cast<int>(query_shape[0]);
  call.a.query_width = static_cast<int>(query_shape[1]);
  return call;
}

Tensor ms_deform_attn(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights).forward();
}

Gradients ms_deform_attn_backward(const Tensor& grad, const Tensor& value, at::IntArrayRef spatial_shapes,
                                  const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_grad(grad, value, check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights));
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights)
      .backward(grad, "ms_deform_attn_backward_cuda");
}

Tensor deform_cross_attn(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                         at::IntArrayRef query_shape, at::IntArrayRef value_shape) {
  return cross_call(value, offsets, logits, query_shape, value_shape).forward();
}

Gradients deform_cross_attn_backward(const Tensor& grad, const Tensor& value, const Tensor& offsets,
                                     const Tensor& logits, at::IntArrayRef query_shape,
                                     at::IntArrayRef value_shape) {
  check_grad(grad, value, check_deform_cross_attn(value, offsets, logits, query_shape, value_shape));
  return cross_call(value, offsets, logits, query_shape, value_shape)
      .backward(grad, "deform_cross_attn_backward_cuda");
}

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, CUDA, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  m.impl("deform_cross_attn", deform_cross_attn);
  m.impl("deform_cross_attn_backward", deform_cross_attn_backward);
}

}  // namespace piip_ops
