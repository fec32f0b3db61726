// The operators' schemas and what does not depend on a device. autograd.cpp adds gradients,
// the Python side (piip_ops/ops.py) fake kernels.
#include <Python.h>

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>

#include "checks.h"
#include "dispatch.h"

namespace piip_ops {

std::string cpu_kernels_name();  // cpu/deform_attn_cpu.cpp

namespace {

using at::Tensor;
using c10::SymIntArrayRef;

#if defined(PIIP_OPS_WITH_CUDA)
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

bool built_with_cuda() { return kWithCuda; }

// Under autocast value takes autocast's type; points and mixing weights keep theirs where the operator takes
// it, for a half type rounds positions: where it must choose, it chooses float32.
struct Cast {
  Tensor value, points, mixing;
  Cast(c10::DeviceType device, const Tensor& v, const Tensor& p, const Tensor& m)
      : value(at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), v, device)),
        points(p),
        mixing(m) {
    const auto type = value.scalar_type();
    const auto fits = [&](const Tensor& t) {
      return t.scalar_type() == at::kFloat || t.scalar_type() == type;
    };
    if (is_half(type) && !(fits(p) && fits(m) && p.scalar_type() == m.scalar_type())) {
      points = at::autocast::cached_cast(at::kFloat, p, device);
      mixing = at::autocast::cached_cast(at::kFloat, m, device);
    }
  }
};

constexpr c10::DispatchKey autocast_key(c10::DeviceType device) {
  return device == c10::DeviceType::CUDA ? c10::DispatchKey::AutocastCUDA : c10::DispatchKey::AutocastCPU;
}

template <c10::DeviceType device>
Tensor ms_deform_attn_autocast(const Tensor& value, SymIntArrayRef spatial_shapes, const Tensor& locations,
                               const Tensor& weights) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key(device));
  const Cast cast(device, value, locations, weights);
  return call_ms_deform_attn(cast.value, spatial_shapes, cast.points, cast.mixing);
}

template <c10::DeviceType device>
Tensor deform_cross_attn_autocast(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                                  SymIntArrayRef query_shape, SymIntArrayRef value_shape) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_key(device));
  const Cast cast(device, value, offsets, logits);
  return call_deform_cross_attn(cast.value, cast.points, cast.mixing, query_shape, value_shape);
}

}  // namespace

TORCH_LIBRARY(piip_ops, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad, Tensor value, SymInt[] spatial_shapes, Tensor "
      "sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  m.def(
      "deform_cross_attn(Tensor value, Tensor offsets, Tensor logits, SymInt[] query_shape, "
      "SymInt[] value_shape) -> Tensor");
  m.def(
      "deform_cross_attn_backward(Tensor grad, Tensor value, Tensor offsets, Tensor logits, "
      "SymInt[] query_shape, SymInt[] value_shape) -> (Tensor, Tensor, Tensor)");
  m.def("_cpu_kernels() -> str", cpu_kernels_name);
  m.def("_built_with_cuda() -> bool", built_with_cuda);
}

TORCH_LIBRARY_IMPL(piip_ops, AutocastCPU, m) {
  m.impl("ms_deform_attn", ms_deform_attn_autocast<c10::DeviceType::CPU>);
  m.impl("deform_cross_attn", deform_cross_attn_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(piip_ops, AutocastCUDA, m) {
  m.impl("ms_deform_attn", ms_deform_attn_autocast<c10::DeviceType::CUDA>);
  m.impl("deform_cross_attn", deform_cross_attn_autocast<c10::DeviceType::CUDA>);
}

}  // namespace piip_ops

// Importing piip_ops._C loads this library and with it the registrations above; the module itself is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
