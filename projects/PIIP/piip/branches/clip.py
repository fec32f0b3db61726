"""CLIP's vision transformer as a branch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import get_act_fn
from torch import Tensor, nn

from ..resizing import resize_bicubic
from .base import Branch, Pretrained

__all__ = ["ACTIVATIONS", "CLIPBranch", "CLIPLayer"]


_SAME_IN_TIMM = (
    *("quick_gelu", "gelu", "relu", "relu6", "leaky_relu", "hardswish"),
    *("mish", "sigmoid", "silu", "swish", "tanh"),
)
_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: get_act_fn(name) for name in _SAME_IN_TIMM},
    "gelu_python": get_act_fn("gelu"),
    **dict.fromkeys(_TANH_GELU, get_act_fn("gelu_tanh")),
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "relu2": lambda x: F.relu(x).square(),
    "linear": lambda x: x,
}
"""By the names of Hugging Face's configurations."""


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split into {num_heads} heads: choose a divisor")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x)
            .flatten(1, 2)
            .unflatten(2, (self.num_heads, -1))
            .transpose(1, 2)  # (B, heads, h*w, C/heads)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.out_proj(seen.reshape(x.shape))
        return out


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class CLIPLayer(nn.Module):
    """A layer of CLIP on a map ``(B, h, w, C)``; attention is over the whole map."""

    def __init__(self, dim: int, hidden_dim: int, num_heads: int, eps: float, activation: str) -> None:
        super().__init__()
        self.self_attn = _Attention(dim, num_heads)
        self.layer_norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = _MLP(dim, hidden_dim, activation)
        self.layer_norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    """Patches, a class token, and a position for each: the parameters of CLIP's embeddings."""

    def __init__(self, hidden_size: int, grid: int, patch_size: int) -> None:
        super().__init__()
        self.grid = grid
        self.class_embedding = nn.Parameter(torch.empty(hidden_size))
        self.patch_embedding = nn.Conv2d(3, hidden_size, patch_size, stride=patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + grid**2, hidden_size)

    def reset_parameters(self) -> None:
        """Initialise as CLIP does."""
        size = self.class_embedding.shape[0]
        nn.init.normal_(self.class_embedding, std=size**-0.5)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, image: Tensor | None = None) -> Tensor:
        """From an image ``(B, 3, H, W)`` of any precision to patches ``(B, h, w, C)``.

        Without one it is the class token ``(C,)``. Weights are reached through calls of the modules that own
        them, so that those kept elsewhere (accelerate's offloading) are brought in.
        """
        rows = torch.arange(1 + self.grid**2, device=self.class_embedding.device)
        table = self.position_embedding(rows)
        if image is None:
            token: Tensor = self.class_embedding + table[0]
            return token
        x = self.patch_embedding(image.to(self.class_embedding.dtype)).permute(0, 2, 3, 1)
        grid = table[1:].unflatten(0, (self.grid, self.grid))[None]
        return x + resize_bicubic(grid, *x.shape[1:3])


class CLIPBranch(Branch):
    """CLIP's image encoder, stepped layer by layer, without its last norm.

    Its class token takes part in attention, not in interactions. Positions are resized bicubically at each
    forward pass, but for the class token's own. Names of parameters are Hugging Face's, but for "blocks".

    Args:
        hidden_size, intermediate_size, num_layers, num_heads: the usual sizes.
        image_size: side in pixels of the images it was trained on.
        patch_size: side of a patch in pixels.
        pretrain_patch_size: that of the training, where it was another one; with ``image_size`` it tells how
            many positions there are.
        hidden_act: activation, by its name in Hugging Face's configurations.
        layer_norm_eps: of all norms.
        use_class_token: False drops the class token after the embedding.
        pretrained: see :class:`Branch`.

    Raises:
        ValueError: for an activation that is not known, and heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
        image_size: int,
        patch_size: int = 16,
        pretrain_patch_size: int | None = None,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        use_class_token: bool = True,
        pretrained: Pretrained | None = None,
    ) -> None:
        super().__init__(pretrained)
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"unknown activation '{hidden_act}': expected one of {', '.join(ACTIVATIONS)}")
        self.hidden_size, self._patch_size, self.use_class_token = hidden_size, patch_size, use_class_token
        grid = image_size // (pretrain_patch_size or patch_size)
        self.embeddings = _Embeddings(hidden_size, grid, patch_size)
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)  # as CLIP's checkpoints spell it
        self.blocks = nn.ModuleList(
            CLIPLayer(hidden_size, intermediate_size, num_heads, layer_norm_eps, hidden_act)
            for _ in range(num_layers)
        )
        # in every checkpoint, but unused: kept so that checkpoints fit, frozen
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps).requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as CLIP does: matrices normal, the deeper the model the smaller; biases zero, norms one."""
        self.embeddings.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5 * (2 * self.depth) ** -0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    @property
    def patch_size(self) -> int:
        return self._patch_size

    def channels(self, block: int) -> int:
        return self.hidden_size

    def stride(self, block: int) -> int:
        return self._patch_size

    def prefix_tokens(self, batch: int) -> Tensor | None:
        if not self.use_class_token:
            return None
        token: Tensor = self.pre_layrnorm(self.embeddings())
        return token.expand(batch, 1, -1)

    def embed(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.pre_layrnorm(self.embeddings(image))
        return tokens
