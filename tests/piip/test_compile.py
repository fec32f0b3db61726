"""The whole backbone within PyTorch's compiler: one graph, any batch and size."""

from __future__ import annotations

import pytest
import torch

from .models import randomise, tiny_piip

SIZES = ((2, 3, 64, 80), (3, 3, 96, 64), (4, 3, 72, 120))


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_for_all_sizes() -> None:
    """fullgraph: no Python in between; dynamic: the graph of the first size serves the others."""
    piip = randomise(tiny_piip((64, 32), depth=1, num_interactions=1, branch={"window_sizes": 3}).eval())
    compiled = torch.compile(piip, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in SIZES:
        x = torch.randn(size)
        # float32 rounding: the traced operators are not fused in the same order
        torch.testing.assert_close(compiled(x), piip(x), rtol=1e-4, atol=1e-4)
