"""Attention on maps, and its windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from piip.branches.attention import TokenMapAttention, window_merge, window_partition

from .models import randomise

sides = st.integers(1, 9)


@given(sides, sides, st.integers(1, 6), st.integers(1, 2))
def test_windows_come_back(height: int, width: int, size: int, batch: int) -> None:
    x = torch.arange(batch * height * width * 2.0).view(batch, height, width, 2) + 1
    windows = window_partition(x, size)
    assert windows.shape == (batch * -(-height // size) * -(-width // size), size, size, 2)
    assert torch.equal(window_merge(windows, batch, height, width), x)
    assert windows.count_nonzero() == x.numel()  # the rest is padding, and zero


def reference(attention: TokenMapAttention, tokens: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Attention among the tokens ``(N, C)`` of one window, written out; padded ones (not valid) as
    configured.
    """
    channels = tokens.shape[1]
    qkv = attention.qkv(tokens)
    if not attention.pad_before_qkv:
        qkv = qkv * valid[:, None]
    heads = []
    for q, k, v in zip(*(part.chunk(attention.num_heads, -1) for part in qkv.chunk(3, -1)), strict=True):
        scores = q @ k.T / (channels // attention.num_heads) ** 0.5
        heads.append(scores.softmax(-1) @ v)
    return attention.proj(torch.cat(heads, -1))


@torch.inference_mode()
@settings(deadline=None, max_examples=25)
@given(sides, sides, st.integers(1, 5), st.booleans())
def test_windowed_attention(height: int, width: int, size: int, pad_before_qkv: bool) -> None:
    """Windows attend to themselves and their zero padding, put in before or after the projection."""
    attention = randomise(TokenMapAttention(8, 2, window_size=size, pad_before_qkv=pad_before_qkv).double())
    x = torch.randn(1, height, width, 8).double()
    out = attention(x)
    for top in range(0, height, size):
        for left in range(0, width, size):
            window = x[0, top : top + size, left : left + size]
            bottom, right = size - window.shape[0], size - window.shape[1]
            tokens = F.pad(window, (0, 0, 0, right, 0, bottom)).flatten(0, 1)
            valid = F.pad(torch.ones(window.shape[:2]).double(), (0, right, 0, bottom)).flatten()
            expected = reference(attention, tokens, valid).view(size, size, 8)[
                : window.shape[0], : window.shape[1]
            ]
            # 1e-12: float64 rounding
            actual = out[0, top : top + size, left : left + size]
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 7)])
def test_global_attention(height: int, width: int) -> None:
    attention = randomise(TokenMapAttention(8, 2).double())
    x = torch.randn(2, height, width, 8).double()
    for image, out in zip(x, attention(x), strict=True):
        expected = reference(attention, image.flatten(0, 1), torch.ones(height * width).double())
        torch.testing.assert_close(out.flatten(0, 1), expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_qk_norm_spans_all_heads() -> None:
    attention = randomise(TokenMapAttention(8, 2, qkv_bias=False, qk_norm=torch.nn.RMSNorm).double())
    x = torch.randn(1, 2, 3, 8).double()
    q, k, v = attention.qkv(x.flatten(0, 2)).chunk(3, -1)
    q = attention.q_norm.weight * q * (q.square().mean(-1, keepdim=True) + torch.finfo(q.dtype).eps).rsqrt()
    k = attention.k_norm.weight * k * (k.square().mean(-1, keepdim=True) + torch.finfo(k.dtype).eps).rsqrt()
    out = [
        (a @ b.T / 2).softmax(-1) @ c
        for a, b, c in zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True)
    ]
    expected = attention.proj(torch.cat(out, -1))
    torch.testing.assert_close(attention(x).flatten(0, 2), expected, rtol=1e-12, atol=1e-12)
