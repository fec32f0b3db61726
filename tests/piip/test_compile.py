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


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_takes_any_batch_and_size() -> None:
    """Sizes whose maps fill their windows and sizes whose maps do not: no guard tells them apart."""
    piip = randomise(tiny_piip((64, 32), depth=1, num_interactions=1, branch={"window_sizes": 3}).eval())
    free = torch.export.Dim.AUTO
    program = torch.export.export(
        piip, (torch.randn(SIZES[0]),), dynamic_shapes=({0: free, 2: free, 3: free},)
    ).module()
    for size in (*SIZES, (1, 3, 160, 128)):
        x = torch.randn(size)
        # float32 rounding, as above
        torch.testing.assert_close(program(x), piip(x), rtol=1e-4, atol=1e-4)
