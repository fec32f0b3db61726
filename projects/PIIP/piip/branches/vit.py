"""Plain vision transformers: DeiT, DeiT III, AugReg, MAE, DINOv2, InternViT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, LayerScale
from torch import Tensor, nn

from ..folding import scale_output
from ..resizing import resize_bicubic
from .attention import TokenMapAttention
from .base import Branch, Pretrained

__all__ = ["ViTBranch"]

_NORMS: dict[str, Callable[..., nn.Module]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
_ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}


def per_block(
    value: int | Sequence[int | None] | None,
    depth: int,
) -> list[int | None]:
    """Window size of each block, from one size for all or a list with one entry a block."""
    if value is None or isinstance(value, int):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(f"{len(value)} window sizes for {depth} blocks: give one per block, or one for all")
    return list(value)


class MapBlock(Block):
    """timm's transformer block on a token map ``(B, h, w, C)``, with the attention it is given."""

    def __init__(
        self, dim: int, attention: TokenMapAttention, *, layer_scale: float | None, **options: Any
    ) -> None:
        super().__init__(dim, attention.num_heads, **options)
        self.attn = attention
        if layer_scale is not None:  # timm builds none for 0, with which Uni-Perceiver starts
            self.ls1, self.ls2 = LayerScale(dim, layer_scale), LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def fold(self) -> None:
        """Multiply the layer scales into the projections before them, see :mod:`piip.folding`."""
        for name, projection in (("ls1", self.attn.proj), ("ls2", self.mlp.fc2)):
            scale = getattr(self, name)
            if isinstance(scale, LayerScale):
                scale_output(projection, scale.gamma)
                setattr(self, name, nn.Identity())


class ViTBranch(Branch):
    """A vision transformer without class token and final norm, stepped block by block.

    Blocks, patch embedding, layer scale and drop path are timm's, and so are the parameter names; attention
    is replaced by :class:`TokenMapAttention`, because blocks here work on maps and may be windowed.

    Args:
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias: the usual sizes.
        patch_size: side of a patch in pixels.
        pretrain_image_size: side of the image the position embedding was trained for; its grid has
            ``pretrain_image_size // patch_size`` rows and is resized, bicubically, at each forward pass. None
            for a model without.
        window_sizes: side of the attention windows in tokens: one for all blocks, or a list with one entry a
            block. None stands for global attention.
        pad_before_qkv: what window padding is, see :class:`TokenMapAttention`.
        drop_path_rate: stochastic depth rate.
        drop_path_schedule: "constant" over depth (the published DeiT branches) or "linear" from 0 to the
            rate.
        layer_scale: initial value of the per-channel residual scale; None builds none.
        norm: "layer_norm" or "rms_norm".
        norm_eps: their eps.
        qk_norm: normalise queries and keys over all heads together (InternViT-6B).
        activation: "gelu", or "gelu_tanh" for its tanh approximation (the published fused MLP).
        pos_embed_has_cls: keep the (unused) class-token row of the position embedding, as the checkpoints of
            the published AugReg, MAE, DINOv2 and InternViT branches do.
        class_token: whether a class token attends along (the published classifiers). It has no position.
        weight_init: "trunc_normal" of 0.02 for every matrix of the blocks, as in timm, or "xavier" (uniform),
            which learns faster where a narrow branch starts from nothing.
        pretrained: see :class:`Branch`.
    """

    attention_class: type[TokenMapAttention] = TokenMapAttention

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pretrain_image_size: int | None = 224,
        window_sizes: int | Sequence[int | None] | None = None,
        pad_before_qkv: bool = True,
        drop_path_rate: float = 0.0,
        drop_path_schedule: Literal["constant", "linear"] = "constant",
        layer_scale: float | None = 1.0,
        norm: Literal["layer_norm", "rms_norm"] = "layer_norm",
        norm_eps: float = 1e-6,
        qk_norm: bool = False,
        activation: Literal["gelu", "gelu_tanh"] = "gelu",
        pos_embed_has_cls: bool = False,
        class_token: bool = False,
        weight_init: Literal["trunc_normal", "xavier"] = "trunc_normal",
        pretrained: Pretrained | None = None,
    ) -> None:
        super().__init__(pretrained)
        if pretrain_image_size is not None and pretrain_image_size < patch_size:
            raise ValueError(
                f"pretrain_image_size {pretrain_image_size} is smaller than one patch of {patch_size} px: "
                "the position embedding would have no token"
            )
        if class_token and any(size is not None for size in per_block(window_sizes, depth)):
            raise ValueError("a class token belongs to no window: use global attention, or no class token")
        self.embed_dim = embed_dim
        self._patch_size = patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=patch_size, embed_dim=embed_dim, flatten=False, strict_img_size=False
        )
        self.num_prefix_tokens = int(pos_embed_has_cls)
        self.pos_embed: nn.Parameter | None = None
        if pretrain_image_size is not None:
            grid = pretrain_image_size // patch_size
            self.pos_embed = nn.Parameter(torch.zeros(1, self.num_prefix_tokens + grid * grid, embed_dim))
            self.pos_embed_grid = grid

        norm_layer = partial(_NORMS[norm], eps=norm_eps)
        if drop_path_schedule == "linear":
            drop_path_rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        else:
            drop_path_rates = [drop_path_rate] * depth
        self.blocks = nn.ModuleList()
        for rate, window_size in zip(drop_path_rates, per_block(window_sizes, depth), strict=True):
            attention = self.attention_class(
                embed_dim,
                num_heads,
                qkv_bias=qkv_bias,
                qk_norm=norm_layer if qk_norm else None,
                window_size=window_size,
                pad_before_qkv=pad_before_qkv,
            )
            block = MapBlock(
                embed_dim,
                attention,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=rate,
                norm_layer=norm_layer,
                act_layer=_ACTIVATIONS[activation],
            )
            self.blocks.append(block)
        self.reset_parameters(weight_init)

    def reset_parameters(self, weight_init: Literal["trunc_normal", "xavier"]) -> None:
        """Initialise as the class says; biases are zero."""
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        if weight_init == "xavier":
            kernel = self.patch_embed.proj.weight
            with torch.no_grad():  # flattening copies what is not contiguous
                kernel.copy_(nn.init.xavier_uniform_(kernel.flatten(1)).view(kernel.shape))
        for module in (module for block in self.blocks for module in block.modules()):
            if isinstance(module, nn.Linear):
                if weight_init == "xavier":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def patch_size(self) -> int:
        return self._patch_size

    def channels(self, block: int) -> int:
        return self.embed_dim

    def stride(self, block: int) -> int:
        return self._patch_size

    def position_embedding(self, height: int, width: int) -> Tensor:
        """The position embedding (there is one) for a map of the given size, ``(1, height, width, C)``.

        Plain bicubic (no antialiasing), in at least float32, as the published models do it at every forward
        pass.
        """
        assert self.pos_embed is not None
        grid = self.pos_embed_grid
        table = self.pos_embed.reshape(1, -1, self.embed_dim)[:, self.num_prefix_tokens :]
        table = table.reshape(1, grid, grid, -1)
        return resize_bicubic(table, height, width)

    def prefix_tokens(self, batch: int) -> Tensor | None:
        return None if self.cls_token is None else self.cls_token.expand(batch, -1, -1)

    def embed(self, image: Tensor) -> Tensor:
        # timm's patch embedding returns (B, C, h, w); a remainder smaller than a patch is dropped by its
        # convolution
        x = self.patch_embed(image).permute(0, 2, 3, 1)
        return x if self.pos_embed is None else x + self.position_embedding(x.shape[1], x.shape[2])
