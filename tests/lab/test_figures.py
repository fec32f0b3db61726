"""Where attention looks, in closed form for a new model and against the operator; and figures of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .. import require

require.detectron2()

import torch
from matplotlib.figure import Figure

from lab.architecture import draw_architecture, layout
from lab.sampling import draw_sampling, locations, sampling_points
from piip.cross_attention import DeformableCrossAttention
from piip.flops import build_on_meta
from piip.measure.cost import detector_cost, load_detector
from piip_ops import ms_deform_attn_reference

from ..piip.models import randomise, tiny_piip
from ..piip.tiny_config import QUICK_CONFIG


def test_a_new_model_looks_one_to_four_cells_around_itself() -> None:
    """Its heads look in a direction each, point k at k cells of the other map, all weights alike."""
    piip = tiny_piip().eval()
    image = torch.randn(1, 3, 64, 64)
    shown = sampling_points(piip, image)
    assert [(one.source, one.target) for one in shown] == [(3, 2), (2, 3), (2, 1), (1, 2)]
    first = shown[0]  # a query of branch 2, 6x6 cells, looks at branch 3, 8x8 cells
    assert first.places.shape == (6, 6, 4, 4, 2)
    assert torch.allclose(first.weights, torch.tensor(0.25))
    own = torch.tensor([(2 + 0.5) / 6, (1 + 0.5) / 6])  # row 1, column 2
    steps = (first.places[1, 2] - own) * 8
    distances = steps.abs().amax(dim=-1)
    assert torch.allclose(distances, torch.arange(1.0, 5.0).expand(4, 4), atol=1e-5)


def test_places_are_those_that_the_operator_samples() -> None:
    """Sampling at them by the definition gives what the layer computes."""
    torch.manual_seed(0)
    layer = randomise(DeformableCrossAttention(32, 48, num_heads=4)).double()
    query, feat = torch.randn(1, 5, 6, 32).double(), torch.randn(1, 7, 8, 48).double()
    with torch.no_grad():
        places, weights = locations(layer, query, feat)
        value = layer.value_proj(feat).reshape(1, 56, 4, 4)
        sampled = ms_deform_attn_reference(
            value,
            torch.tensor([[7, 8]]),
            places.reshape(1, 30, 4, 1, 4, 2),
            weights.reshape(1, 30, 4, 1, 4),
        )
        expected = layer(query, feat)
        assert torch.allclose(layer.output_proj(sampled).reshape(expected.shape), expected, atol=1e-10)


def test_what_has_no_points() -> None:
    with pytest.raises(ValueError, match="has no interactions: nothing looks at another branch"):
        sampling_points(tiny_piip(num_interactions=0), torch.zeros(1, 3, 64, 64))


def test_points_are_drawn_where_they_are() -> None:
    piip = tiny_piip().eval()
    points = sampling_points(piip, torch.randn(1, 3, 64, 64))[0]
    axes = Figure().add_subplot()
    draw_sampling(axes, np.zeros((64, 64, 3), np.uint8), points, [(0.4, 0.3), (0.9, 0.9)])
    assert axes.get_title() == "branch 2 looks at branch 3"
    drawn = np.asarray(axes.collections[0].get_offsets())
    assert np.allclose((drawn + 0.5) / 64, points.places[1, 2].reshape(-1, 2), atol=1e-6)


def test_an_architecture_is_read_from_the_model(tmp_path: Path) -> None:
    with build_on_meta():
        detector = load_detector(str(QUICK_CONFIG))
    shown = layout(detector)
    assert [(row.name, row.image_size, row.blocks) for row in shown.rows] == [
        ("ViT, 64 channels", 64, [1, 1, 1]),
        ("ViT, 48 channels", 96, [1, 1, 1]),
        ("ViT, 32 channels", 128, [1, 1, 1]),
    ]
    assert sorted(shown.links) == [(1, 2), (2, 1), (2, 3), (3, 2)]
    counted = sum(row.gflops for row in shown.rows) + shown.interaction_gflops
    counted += sum(part.gflops for part in shown.after.values())
    assert counted == pytest.approx(detector_cost(detector).total.gflops, rel=1e-3)  # resizing apart
    figure = draw_architecture(detector, "quick")
    figure.savefig(tmp_path / "figure.png")
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "branch 3: ViT, 32 channels" in texts and "3 interactions" in texts
