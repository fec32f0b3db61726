"""BEiT and BEiTv2: relative positions instead of absolute ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import TokenMapAttention
from .vit import ViTBranch

__all__ = ["BEiTAttention", "BEiTBranch", "relative_position_index"]


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, ``(N, N)`` int64, N = window_size ** 2.

    Tokens are in row-major order; the row of a query at (y, x) and a key at (v, u) is
    ``(y - v + w - 1) * (2 * w - 1) + (x - u + w - 1)``, w the window size.
    """
    offset = torch.arange(window_size)[:, None] - torch.arange(window_size) + window_size - 1
    rows = offset[:, None, :, None] * (2 * window_size - 1)  # (y, 1, v, 1)
    return (rows + offset[None, :, None, :]).reshape(window_size**2, window_size**2)


class BEiTAttention(TokenMapAttention):
    """Attention in windows with a learned bias for each offset between two tokens, and no bias on keys.

    Args:
        dim, num_heads, pad_before_qkv: as in :class:`TokenMapAttention`.
        qkv_bias: must be true: queries and values have a bias, as every BEiT has.
        qk_norm: must be None: no BEiT has one.
        window_size: side w of the windows in tokens; the table has ``(2 * w - 1)**2`` rows.

    Raises:
        ValueError: without a window, whose size the table needs, or for an option that no BEiT has.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: Any = None,
        window_size: int | None = None,
        pad_before_qkv: bool = True,
    ) -> None:
        if window_size is None:
            raise ValueError("a block of BEiT attends in windows: give each block a window size")
        if not qkv_bias or qk_norm is not None:
            raise ValueError("a BEiT has biases on queries and values and no norm on queries and keys")
        super().__init__(
            dim, num_heads, qkv_bias=False, window_size=window_size, pad_before_qkv=pad_before_qkv
        )
        self.q_bias: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
        self.v_bias: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))

    def project_qkv(self, x: Tensor) -> Tensor:
        return self.qkv(x) if self.q_bias is None else F.linear(x, self.qkv.weight, self.qkv_bias())

    def qkv_bias(self) -> Tensor:
        """The bias of the joint projection: keys have none."""
        assert self.q_bias is not None and self.v_bias is not None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def fold(self) -> None:
        """Put the biases into the projection, see :mod:`piip.folding`."""
        if self.q_bias is not None:
            self.qkv.bias = nn.Parameter(self.qkv_bias())
            self.q_bias = self.v_bias = None

    def attention_bias(self) -> Tensor:
        """The table spread over all pairs of tokens, ``(heads, N, N)``."""
        assert self.window_size is not None
        size, side = self.window_size, 2 * self.window_size - 1
        table = self.relative_position_bias_table.reshape(side, side, -1)
        # windows[y, x, h, i, j] = table[y + i, x + j, h], a view: no index of N * N entries is needed
        windows = table.unfold(0, size, 1).unfold(1, size, 1)
        bias = windows.flip(3, 4).permute(2, 0, 1, 3, 4)  # (heads, y, x, v, u)
        return bias.reshape(-1, size**2, size**2)


class BEiTBranch(ViTBranch):
    """A BEiT or BEiTv2 without class token and final norm.

    Args:
        window_sizes: side of the windows in tokens: one for all blocks, or a list with one entry a block. The
            size of the bias tables follows from it, so there must be one.
        drop_path_schedule, layer_scale and all others: as in :class:`ViTBranch`.
    """

    attention_class = BEiTAttention

    def __init__(
        self,
        *,
        window_sizes: int | Sequence[int],
        drop_path_schedule: Literal["constant", "linear"] = "linear",
        layer_scale: float | None = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(
            window_sizes=window_sizes,
            pretrain_image_size=None,
            drop_path_schedule=drop_path_schedule,
            layer_scale=layer_scale,
            **options,
        )
