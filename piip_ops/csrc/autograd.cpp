// Gradients. In C++ instead of through torch.library.register_autograd, whose Python costs the host more than
// the rest of the call; on a GPU, PIIP's small maps would wait for it.
#include <ATen/FuncTorchTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "dispatch.h"

namespace piip_ops {
namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The gradients of either operator, which cannot be differentiated again.
struct DifferentiatedOnce : Function<DifferentiatedOnce> {
  // The tensors are those that `gradients` uses: autograd looks at them to know whether a second time may
  // come.
  template <typename Call>
  static variable_list forward(AutogradContext*, const Call& gradients, const Tensor& /*grad*/,
                               const Tensor& /*value*/, const Tensor& /*points*/, const Tensor& /*mixing*/) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [grad_value, grad_points, grad_mixing] = gradients();
    return {grad_value, grad_points, grad_mixing};
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(
        false,
        "piip_ops: deformable attention can be differentiated once only; use ms_deform_attn_reference "
        "or deform_cross_attn_reference where second derivatives are needed");
  }
};

struct MsDeformAttn : Function<MsDeformAttn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& value, SymIntArrayRef spatial_shapes,
                        const Tensor& locations, const Tensor& weights) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({value, locations, weights});
    ctx->saved_data["spatial_shapes"] = spatial_shapes;
    return call_ms_deform_attn(value, spatial_shapes, locations, weights);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto spatial_shapes = ctx->saved_data["spatial_shapes"].toSymIntVector();
    const auto [grad_value, grad_locations, grad_weights] =
        call_ms_deform_attn_backward(grads[0], saved[0], spatial_shapes, saved[1], saved[2]);
    return {grad_value, Tensor(), grad_locations, grad_weights};
  }
};

struct DeformCrossAttn : Function<DeformCrossAttn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& value, const Tensor& offsets,
                        const Tensor& logits, SymIntArrayRef query_shape, SymIntArrayRef value_shape) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    ctx->save_for_backward({value, offsets, logits});
    ctx->saved_data["query_shape"] = query_shape;
    ctx->saved_data["value_shape"] = value_shape;
    return call_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto query_shape = ctx->saved_data["query_shape"].toSymIntVector();
    const auto value_shape = ctx->saved_data["value_shape"].toSymIntVector();
    const auto [grad_value, grad_offsets, grad_logits] =
        call_deform_cross_attn_backward(grads[0], saved[0], saved[1], saved[2], query_shape, value_shape);
    return {grad_value, grad_offsets, grad_logits, Tensor(), Tensor()};
  }
};

// Ends in one line what C++ gradients cannot take part in.
void refuse_transforms() {
  TORCH_CHECK(false,
              "piip_ops: deformable attention does not run under torch.func (vmap, grad, jvp and others); "
              "ms_deform_attn_reference and deform_cross_attn_reference run under vmap and grad");
}
void refuse_vmap(const c10::OperatorHandle&, torch::jit::Stack*) { refuse_transforms(); }

void check_backward_mode(std::initializer_list<std::reference_wrapper<const Tensor>> tensors) {
  if (const auto& transforms = at::functorch::functorchTLSAccessor()) {
    try {
      transforms->checkSupportsCppAutogradFunction();
    } catch (const c10::Error&) {
      refuse_transforms();
    }
  }
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK(!tensor._fw_grad(/*level=*/0).defined(),
                "piip_ops: deformable attention has no forward-mode derivatives; use backward mode");
  }
}

Tensor ms_deform_attn(const Tensor& value, SymIntArrayRef spatial_shapes, const Tensor& locations,
                      const Tensor& weights) {
  check_backward_mode({value, locations, weights});
  return MsDeformAttn::apply(value, spatial_shapes, locations, weights);
}

Gradients ms_deform_attn_backward(const Tensor& grad, const Tensor& value, SymIntArrayRef spatial_shapes,
                                  const Tensor& locations, const Tensor& weights) {
  check_backward_mode({grad, value, locations, weights});
  const auto gradients = [&] {
    return call_ms_deform_attn_backward(grad, value, spatial_shapes, locations, weights);
  };
  const auto grads = DifferentiatedOnce::apply(gradients, grad, value, locations, weights);
  return {grads[0], grads[1], grads[2]};
}

Tensor deform_cross_attn(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                         SymIntArrayRef query_shape, SymIntArrayRef value_shape) {
  check_backward_mode({value, offsets, logits});
  return DeformCrossAttn::apply(value, offsets, logits, query_shape, value_shape);
}

Gradients deform_cross_attn_backward(const Tensor& grad, const Tensor& value, const Tensor& offsets,
                                     const Tensor& logits, SymIntArrayRef query_shape,
                                     SymIntArrayRef value_shape) {
  check_backward_mode({grad, value, offsets, logits});
  const auto gradients = [&] {
    return call_deform_cross_attn_backward(grad, value, offsets, logits, query_shape, value_shape);
  };
  const auto grads = DifferentiatedOnce::apply(gradients, grad, value, offsets, logits);
  return {grads[0], grads[1], grads[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, Autograd, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  m.impl("deform_cross_attn", deform_cross_attn);
  m.impl("deform_cross_attn_backward", deform_cross_attn_backward);
}

// The backward operators stay with PyTorch's loop: torch.autograd.grad(is_grads_batched=True) goes there.
TORCH_LIBRARY_IMPL(piip_ops, FuncTorchBatched, m) {
  m.impl("ms_deform_attn", torch::CppFunction::makeFromBoxedFunction<&refuse_vmap>());
  m.impl("deform_cross_attn", torch::CppFunction::makeFromBoxedFunction<&refuse_vmap>());
}

}  // namespace piip_ops
