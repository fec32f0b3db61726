// The operators on CPU tensors: checks, memory, threads and the choice of kernels.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "../checks.h"
#include "../tensors.h"
#include "kernels.h"

namespace piip_ops {

// Follows PyTorch, and with it the environment variable ATEN_CPU_CAPABILITY.
static const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& chosen = [&]() -> const Kernels& {
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return kAvx512Kernels;
    if (capability == "AVX2") return kAvx2Kernels;
    return kBaselineKernels;
  }();
  return chosen;
#else
  return kBaselineKernels;
#endif
}

std::string cpu_kernels_name() { return kernels().name; }

namespace {

using at::Tensor;

// Forward tasks a thread takes at least: about ten microseconds of work.
constexpr int64_t kGrain = 16;

ScalarType to_scalar_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return ScalarType::kFloat64;
    case at::kFloat:
      return ScalarType::kFloat32;
    case at::kBFloat16:
      return ScalarType::kBFloat16;
    default:
      return ScalarType::kFloat16;
  }
}

Rows rows_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}
Rows mutable_rows_of(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

// The arguments of either operator, made readable for the kernels.
struct Call {
  Tensor value, points, mixing;
  std::vector<int32_t> level_shape;
  Problem problem{};

  Call(const Sizes& n, const Tensor& value_, const Tensor& points_, const Tensor& mixing_,
       at::IntArrayRef shapes)
      : value(with_contiguous_rows(value_)),
        points(with_contiguous_rows(points_)),
        mixing(with_contiguous_rows(mixing_)),
        level_shape(shapes.begin(), shapes.end()) {
    problem.batch = n.batch;
    problem.queries = n.queries;
    problem.heads = n.heads;
    problem.channels = n.channels;
    problem.levels = n.levels;
    problem.points = n.points;
    problem.length = n.length;
    problem.level_shape = level_shape.data();
    problem.value_type = to_scalar_type(value.scalar_type());
    problem.point_type = to_scalar_type(points.scalar_type());
    problem.value = rows_of(value);
    problem.points_xy = rows_of(points);
    problem.mixing = rows_of(mixing);
    TORCH_CHECK_VALUE(n.length <= std::numeric_limits<int32_t>::max(), "value: ", n.length,
                      " positions are too many for the CPU kernel, which counts them in 32 bits");
  }

  bool empty() const {
    return problem.batch == 0 || problem.queries == 0 || problem.heads == 0 || problem.channels == 0 ||
           problem.points == 0;
  }

  template <typename Run>
  void in_parallel(int64_t tasks, int64_t grain, bool backward, Run run) const {
    // One allocation by the calling thread: worker threads would fetch theirs from the system again every
    // time.
    const size_t bytes = (kernels().scratch_bytes(problem, backward) + 63) / 64 * 64;
    const auto threads = std::min<int64_t>(tasks, at::get_num_threads());
    const auto scratch = c10::GetCPUAllocator()->allocate(static_cast<size_t>(threads) * bytes);
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      run(problem, begin, end,
          static_cast<char*>(scratch.get()) + static_cast<size_t>(at::get_thread_num()) * bytes);
    });
  }

  Tensor forward() {
    const auto sizes = {problem.batch, problem.queries, problem.heads * problem.channels};
    if (empty()) return at::zeros(sizes, value.options());
    const Tensor out = at::empty(sizes, value.options());
    problem.out = mutable_rows_of(out);
    in_parallel(problem.batch * problem.head_groups() * problem.query_blocks(), kGrain, false,
                kernels().forward);
    return out;
  }

  Gradients backward(const Tensor& grad) {
    const auto [grad_value, grad_points, grad_mixing] = allocate_gradients(value, points, mixing, empty());
    if (!empty()) {
      const Tensor grad_rows = with_contiguous_rows(grad);
      problem.grad_out = rows_of(grad_rows);
      problem.grad_value = mutable_rows_of(grad_value);
      problem.grad_points = mutable_rows_of(grad_points);
      problem.grad_mixing = mutable_rows_of(grad_mixing);
      in_parallel(problem.batch * problem.head_groups(), 1, true, kernels().backward);
    }
    return {grad_value.to(value.scalar_type()), grad_points, grad_mixing};
  }
};

Call ms_call(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& locations,
             const Tensor& weights) {
  const Sizes n = check_ms_deform_attn(value, spatial_shapes, locations, weights);
  return Call(n, value, locations, weights, spatial_shapes);
}

Call cross_call(const Tensor& value, const Tensor& offsets, const Tensor& logits, at::IntArrayRef query_shape,
                at::IntArrayRef value_shape) {
  const Sizes n = check_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
  Call call(n, value, offsets, logits, value_shape);
  call.problem.cross = true;
  call.problem.query_height = query_shape[0];
  call.problem.query_width = query_shape[1];
  return call;
}

Tensor ms_deform_attn(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights).forward();
}

Gradients ms_deform_attn_backward(const Tensor& grad, const Tensor& value, at::IntArrayRef spatial_shapes,
                                  const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_grad(grad, value, check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights));
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights).backward(grad);
}

Tensor deform_cross_attn(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                         at::IntArrayRef query_shape, at::IntArrayRef value_shape) {
  return cross_call(value, offsets, logits, query_shape, value_shape).forward();
}

Gradients deform_cross_attn_backward(const Tensor& grad, const Tensor& value, const Tensor& offsets,
                                     const Tensor& logits, at::IntArrayRef query_shape,
                                     at::IntArrayRef value_shape) {
  check_grad(grad, value, check_deform_cross_attn(value, offsets, logits, query_shape, value_shape));
  return cross_call(value, offsets, logits, query_shape, value_shape).backward(grad);
}

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, CPU, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  m.impl("deform_cross_attn", deform_cross_attn);
  m.impl("deform_cross_attn_backward", deform_cross_attn_backward);
}

}  // namespace piip_ops
