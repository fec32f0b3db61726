// The operators on CUDA tensors: checks, memory and the choice of kernels.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "../operators.h"
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

// An operator at work on checked arguments.
class Call {
 public:
  explicit Call(const Arguments& arguments) : given(arguments), n(given.n) {
    TORCH_CHECK_VALUE(n.levels <= kMaxLevels, "spatial_shapes: the CUDA kernel takes up to ", kMaxLevels,
                      " levels, got ", n.levels);
    TORCH_CHECK_VALUE(!given.cross() || n.points <= kMaxCrossPoints, "offsets: the CUDA kernel takes up to ",
                      kMaxCrossPoints, " points, got ", n.points);
    // What a kernel counts within a query is an int.
    const int64_t of_query = n.heads * std::max(n.channels, 2 * n.levels * n.points);
    TORCH_CHECK_VALUE(of_query <= std::numeric_limits<int32_t>::max(), "value: ", of_query,
                      " numbers per query are too many for the CUDA kernel");
    a.pairs = n.batch * n.queries * n.heads;
    a.queries = n.queries;
    a.heads = static_cast<int>(n.heads);
    a.channels = static_cast<int>(n.channels);
    a.levels = static_cast<int>(n.levels);
    a.points = static_cast<int>(n.points);
    a.wide_points = is_half(given.value.scalar_type()) && given.points.scalar_type() == at::kFloat;
    int64_t start = 0;
    for (int64_t l = 0; l < n.levels; ++l) {
      const int64_t height = given.level_shapes[2 * l], width = given.level_shapes[2 * l + 1];
      a.level[l] = {static_cast<int32_t>(height), static_cast<int32_t>(width), start};
      start += height * width;
    }
    if (given.cross()) {
      a.query_height = static_cast<int>(given.query_shape[0]);
      a.query_width = static_cast<int>(given.query_shape[1]);
    }
    a.value = given.value.const_data_ptr();
    a.value_batch_stride = given.value.stride(0);
    a.value_row_stride = given.value.stride(1);
    a.points_xy = given.points.const_data_ptr();
    a.points_batch_stride = given.points.stride(0);
    a.points_row_stride = given.points.stride(1);
    a.mixing = given.mixing.const_data_ptr();
    a.mixing_batch_stride = given.mixing.stride(0);
    a.mixing_row_stride = given.mixing.stride(1);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Tensor forward() {
    const c10::cuda::CUDAGuard guard(given.value.device());
    const auto sizes = {n.batch, n.queries, n.heads * n.channels};
    if (given.empty()) return at::zeros(sizes, given.value.options());
    const Tensor out = at::empty(sizes, given.value.options());
    a.out = out.mutable_data_ptr();
    const int width = choose_width({{a.value, {a.value_batch_stride, a.value_row_stride}}, {a.out, {}}});
    launch(width, false);
    return out;
  }

  Gradients backward(const Tensor& grad) {
    const c10::cuda::CUDAGuard guard(given.value.device());
    at::globalContext().alertNotDeterministic(given.cross() ? "deform_cross_attn_backward_cuda"
                                                            : "ms_deform_attn_backward_cuda");
    const auto [grad_value, grad_points, grad_mixing] =
        allocate_gradients(given.value, given.points, given.mixing, given.empty());
    if (!given.empty()) {
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
    return {grad_value.to(given.value.scalar_type()), grad_points, grad_mixing};
  }

 private:
  // Channels a lane loads at once, and with them the lanes of a group.
  int choose_width(std::initializer_list<std::pair<const void*, std::initializer_list<int64_t>>> tensors) {
    const int64_t item_size = given.value.element_size();
    int width = static_cast<int>(16 / item_size);
    const auto fits = [&](const auto& tensor) {
      return aligned(tensor.first, tensor.second, width, item_size);
    };
    while (width > 1 && (n.channels % width != 0 || !std::all_of(tensors.begin(), tensors.end(), fits)))
      width /= 2;
    const int64_t wanted = std::max<int64_t>((n.channels + width - 1) / width, given.cross() ? n.points : 1);
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
    given.cross() ? launch_as<S, width, true>(backward) : launch_as<S, width, false>(backward);
  }
  void launch(int width, bool backward) const {
    switch (given.value.scalar_type()) {
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

  const Arguments& given;
  const Sizes& n;
  KernelArguments a{};
};

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, CUDA, m) { Operators<Call>::add_to(m); }

}  // namespace piip_ops
