// The operators on CPU tensors: checks, memory, threads and the choice of kernels.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "../operators.h"
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

// An operator at work on checked arguments. `problem` points into it: it stays where it is.
class Call {
 public:
  explicit Call(const Arguments& arguments)
      : a(arguments), level_shape(a.level_shapes.begin(), a.level_shapes.end()) {
    const Sizes& n = a.n;
    problem.batch = n.batch;
    problem.queries = n.queries;
    problem.heads = n.heads;
    problem.channels = n.channels;
    problem.levels = n.levels;
    problem.points = n.points;
    problem.length = n.length;
    problem.level_shape = level_shape.data();
    problem.cross = a.cross();
    if (a.cross()) {
      problem.query_height = a.query_shape[0];
      problem.query_width = a.query_shape[1];
    }
    problem.value_type = to_scalar_type(a.value.scalar_type());
    problem.point_type = to_scalar_type(a.points.scalar_type());
    problem.value = rows_of(a.value);
    problem.points_xy = rows_of(a.points);
    problem.mixing = rows_of(a.mixing);
    TORCH_CHECK_VALUE(n.length <= std::numeric_limits<int32_t>::max(), "value: ", n.length,
                      " positions are too many for the CPU kernel, which counts them in 32 bits");
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Tensor forward() {
    const auto sizes = {problem.batch, problem.queries, problem.heads * problem.channels};
    if (a.empty()) return at::zeros(sizes, a.value.options());
    const Tensor out = at::empty(sizes, a.value.options());
    problem.out = mutable_rows_of(out);
    in_parallel(problem.batch * problem.head_groups() * problem.query_blocks(), kGrain, false,
                kernels().forward);
    return out;
  }

  Gradients backward(const Tensor& grad) {
    const auto [grad_value, grad_points, grad_mixing] =
        allocate_gradients(a.value, a.points, a.mixing, a.empty());
    if (!a.empty()) {
      const Tensor grad_rows = with_contiguous_rows(grad);
      problem.grad_out = rows_of(grad_rows);
      problem.grad_value = mutable_rows_of(grad_value);
      problem.grad_points = mutable_rows_of(grad_points);
      problem.grad_mixing = mutable_rows_of(grad_mixing);
      // Two passes are three times the work: worth it where most threads would be idle in one.
      if (at::get_num_threads() >= 8 * problem.batch * problem.head_groups()) {
        run_backward(Pass::kPoints);
        run_backward(Pass::kValue);
      } else {
        run_backward(Pass::kEverything);
      }
    }
    return {grad_value.to(a.value.scalar_type()), grad_points, grad_mixing};
  }

 private:
  void run_backward(Pass pass) {
    problem.pass = pass;
    in_parallel(problem.backward_tasks(), pass == Pass::kPoints ? kGrain : 1, true, kernels().backward);
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

  const Arguments& a;
  std::vector<int32_t> level_shape;
  Problem problem{};
};

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, CPU, m) { Operators<Call>::add_to(m); }

}  // namespace piip_ops
