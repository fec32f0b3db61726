"""Self-attention on token maps, over the whole map or in windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TokenMapAttention", "attention_by_products", "window_merge", "window_partition"]


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """``F.scaled_dot_product_attention`` in three steps, scores ``(..., N, N)`` in memory.

    On a CPU without AMX, PyTorch's own multiplies bfloat16 no faster than float32.
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1), v)


def _windows(length: int, size: int) -> int:
    """Windows along a side: written without a remainder, which PyTorch's compiler cannot simplify."""
    return (length + size - 1) // size


def window_partition(x: Tensor, size: int) -> Tensor:
    """Cut a map into square windows, zero-padding it at the bottom and right.

    Args:
        x: ``(B, H, W, C)``.
        size: side of a window, in tokens.

    Returns:
        ``(B * nH * nW, size, size, C)``, windows of an image in row-major order. For a 10x10 map and size 4
        there are 3x3 windows, the last row and column of them half padding.
    """
    batch, height, width, channels = x.shape
    rows, columns = _windows(height, size), _windows(width, size)
    pad_height, pad_width = rows * size - height, columns * size - width
    # traced, the graph must fit other sizes: it always pads, even by nothing
    if torch.compiler.is_compiling() or pad_height or pad_width:
        x = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
    x = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)  # (B, nH, nW, size, size, C)
    return x.reshape(batch * rows * columns, size, size, channels)


def window_merge(windows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Undo :func:`window_partition`, cutting the padding off.

    Args:
        windows: ``(B * nH * nW, size, size, C)``.
        batch, height, width: size of the map that was cut.

    Returns:
        ``(B, height, width, C)``.
    """
    size, channels = windows.shape[1], windows.shape[3]
    rows, columns = _windows(height, size), _windows(width, size)
    x = windows.reshape(batch, rows, columns, size, size, channels).transpose(
        2, 3
    )  # (B, nH, size, nW, size, C)
    x = x.reshape(batch, rows * size, columns * size, channels)
    if torch.compiler.is_compiling():
        # whether a slice is contiguous depends on whether it cuts anything off; the graph must not
        # depend on it
        kept_rows, kept_columns = (torch.arange(n, device=x.device) for n in (height, width))
        return x.index_select(1, kept_rows).index_select(2, kept_columns)
    return x[:, :height, :width]


class TokenMapAttention(nn.Module):
    """Multi-head self-attention ``(B, h, w, C) -> (B, h, w, C)``.

    Within a window every token attends to every other, padding included: the published models neither mask
    nor shift. They differ in what padding is. Padded *before* the qkv projection (all released detectors), a
    padded token's query, key and value are the projection's bias; padded *after* it, they are zero.

    Args:
        dim: channels C.
        num_heads: heads; C must be a multiple of it.
        qkv_bias: whether the joint projection has a bias.
        qk_norm: builds a normalisation of width C applied to queries and keys before they are split into
            heads (InternViT-6B), or None.
        window_size: side of the windows in tokens; None attends over the whole map.
        pad_before_qkv: see above.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: Callable[[int], nn.Module] | None = None,
        window_size: int | None = None,
        pad_before_qkv: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"{dim} channels cannot be split into {num_heads} heads: choose a divisor of {dim}"
            )
        if window_size is not None and window_size < 1:
            raise ValueError(
                f"window size {window_size} is not a number of tokens: expected >= 1, or None for global"
            )
        self.num_heads = num_heads
        self.product: Callable[..., Tensor] = F.scaled_dot_product_attention
        self.window_size = window_size
        self.pad_before_qkv = pad_before_qkv
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = qk_norm(dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def project_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values of a map ``(..., C)``, side by side: ``(..., 3C)``."""
        return self.qkv(x)

    def attention_bias(self) -> Tensor | None:
        """What is added to the scores ``(B, heads, N, N)`` before the softmax."""
        return None

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention among all tokens of each map: ``(B, h, w, 3C) -> (B, h, w, C)``."""
        batch, height, width, channels = qkv.shape
        q, k, v = qkv.reshape(batch, height * width, 3, channels // 3).unbind(2)
        q, k, v = (
            t.reshape(batch, height * width, self.num_heads, -1).transpose(1, 2)  # (B, heads, h*w, C/heads)
            for t in (self.q_norm(q), self.k_norm(k), v)
        )
        out = self.product(q, k, v, attn_mask=self.attention_bias())
        return out.transpose(1, 2).reshape(batch, height, width, channels // 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.window_size is None:
            return self.proj(self.attend(self.project_qkv(x)))
        batch, height, width, _ = x.shape
        if self.pad_before_qkv:
            qkv = self.project_qkv(window_partition(x, self.window_size))
        else:
            qkv = window_partition(self.project_qkv(x), self.window_size)
        return self.proj(window_merge(self.attend(qkv), batch, height, width))
