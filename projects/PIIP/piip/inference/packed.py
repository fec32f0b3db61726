"""Linear layers with weights packed in the layout of oneDNN's kernels."""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn

__all__ = ["PackedLinear", "is_packable", "pack_linears"]


class PackedLinear(nn.Module):
    """A linear layer on a CPU, for inference only.

    PyTorch sends float32 matrix products to the BLAS it was built with, and where they do reach oneDNN,
    weights are laid out anew at every call. Here that is done once, by the operators that ``torch.compile``
    itself packs weights with (``torch.ops.mkldnn``).

    Args:
        linear: what to replace, float32 or, where the processor has instructions for it, bfloat16.
        gelu: an activation to apply to the results while they are at hand.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, gelu: nn.GELU | None = None) -> None:
        super().__init__()
        self.gelu = gelu.approximate if gelu else None
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        weight = linear.weight.detach().contiguous()
        # opaque, hence neither parameter nor buffer
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weights ``(out_features, in_features)``, unpacked: a copy."""
        return self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``, in the precision of the weights."""
        if x.dtype != self.dtype:
            x = x.to(self.dtype)
        if x.numel() == 0:  # no box, say
            return x.new_zeros(*x.shape[:-1], self.out_features)
        name, approximate = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, name, [], approximate)

    def extra_repr(self) -> str:
        bias, gelu = self.bias is not None, self.gelu
        return f"{self.in_features}, {self.out_features}, bias={bias}, {self.dtype}, gelu={gelu}"


def is_packable(linear: nn.Module) -> bool:
    """Whether a module is a linear layer, exactly, that oneDNN can run on this processor."""
    if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    if linear.weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return linear.weight.dtype == torch.float32


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of a model by packed ones, in place, where oneDNN can run them."""
    # oneDNN's kernels for AVX2 take longer for both together than for one after the other
    together = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for module in model.modules():
        if together and isinstance(module, Mlp) and type(module.act) is nn.GELU and is_packable(module.fc1):
            module.fc1, module.act = PackedLinear(module.fc1, module.act), nn.Identity()
        for name, child in module.named_children():
            if is_packable(child):
                setattr(module, name, PackedLinear(child))  # type: ignore[arg-type]
