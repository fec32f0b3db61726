"""The models on another device than the CPU: PIIP_DEVICE=cuda pytest tests/piip/test_device.py

Each compares with the CPU in the same process; PIIP_DEVICE=cpu shows that the tests themselves run.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from piip import optimize_for_inference
from piip.inference.graphs import ReplayedMaps, replay_maps

from .. import require
from .models import KINDS, randomise, tiny_piip

DEVICE = os.environ.get("PIIP_DEVICE", "")
if not DEVICE:
    pytest.skip("PIIP_DEVICE names no device", allow_module_level=True)
SIZE = (2, 3, 64, 80)


def inputs() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """No TF32, whose ten bits would hide mistakes; PyTorch allows it in convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_maps_and_gradients() -> None:
    """As in float64 on the CPU, up to float32 rounding through a few dozen layers.

    Bilinear sampling has a kink at every grid line: a point within rounding of one has another gradient,
    and moves those of all parameters by up to a tenth. With the weights of the tests' seed none lies there:
    inputs may change by 1e-5.
    """
    there = randomise(tiny_piip().eval()).to(DEVICE)
    here = copy.deepcopy(there).to("cpu", torch.float64)
    out, expected = there(inputs().to(DEVICE)), here(inputs().double())
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-3, atol=1e-3)
    out.square().mean().backward()
    expected.square().mean().backward()
    for (name, parameter), reference in zip(there.named_parameters(), here.parameters(), strict=True):
        assert parameter.grad is not None and reference.grad is not None, name
        error = (parameter.grad.cpu().double() - reference.grad).norm() / reference.grad.norm().clamp(1e-6)
        assert error < 1e-3, f"{name}: {error:.1e}"


@torch.no_grad()
def test_bfloat16() -> None:
    """Autocast has eight bits: a few percent after as many layers."""
    piip = randomise(tiny_piip().eval()).to(DEVICE)
    expected = piip(inputs().to(DEVICE))
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        out = piip(inputs().to(DEVICE))
    assert (out.float() - expected).norm() / expected.norm() < 0.05


def replayed(piip: torch.nn.Module) -> ReplayedMaps:
    """What replays the maps of a PIIP."""
    return vars(piip)["forward_pyramid"]


@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA graphs")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_maps(kind: str, half: bool) -> None:
    """Computed, recorded and replayed, at two sizes in turn, the maps are the same; earlier ones stay."""
    piip = randomise(KINDS[kind]().eval()).to(DEVICE)
    as_it_was = copy.deepcopy(piip)
    replay_maps(piip)
    generator = torch.Generator().manual_seed(1)
    kept = []
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        for size in ((1, 3, 96, 96), (2, 3, 64, 96)) * 4:
            x = torch.randn(size, generator=generator).to(DEVICE)
            kept.append((piip(x), as_it_was(x)))
    for out, expected in kept:
        # the same kernels, but libraries may choose others while a graph is recorded
        tolerance = 2e-2 if half else 1e-5
        assert (out - expected).abs().max() <= tolerance * expected.abs().max()
        assert out.stride() == expected.stride()
    assert replayed(piip).num_graphs == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_optimised(kind: str, dtype: torch.dtype) -> None:
    """What :func:`piip.optimize_for_inference` makes of a model says what the model said."""
    piip = randomise(KINDS[kind]().eval()).to(DEVICE)
    # no map of a single place: a group norm of two numbers tells their sign only, which rounding may turn
    x = torch.randn((2, 3, 96, 128), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.inference_mode():
        expected = piip(x)
    optimize_for_inference(piip, dtype)
    for _ in range(3):  # computed, recorded, replayed
        out = piip(x)
        error = float((out.float() - expected).norm() / expected.norm())
        assert error < (1e-4 if dtype == torch.float32 else 0.05), error
    if DEVICE == "cuda":
        assert replayed(piip).num_graphs == 1


@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA graphs")
def test_replayed_maps_follow_the_weights() -> None:
    """Loaded in place they are read by the graphs; moved, cast or trained they are not replayed blindly."""
    piip = randomise(tiny_piip().eval()).to(DEVICE)
    x = torch.randn(1, 3, 64, 64, device=DEVICE)
    replay_maps(piip)

    def maps() -> torch.Tensor:
        with torch.no_grad():
            return [piip(x) for _ in range(3)][-1]

    before = maps()
    other = randomise(tiny_piip().eval(), seed=1).to(DEVICE)
    piip.load_state_dict(other.state_dict())
    assert replayed(piip).num_graphs == 1
    torch.testing.assert_close(maps(), other(x).detach(), rtol=1e-4, atol=1e-4)  # float32 rounding
    assert not torch.allclose(before, maps())
    places = [parameter.data for parameter in piip.parameters()]  # kept, or others would be given them
    for parameter, place in zip(piip.parameters(), places, strict=True):
        parameter.data = place.clone()
    torch.testing.assert_close(maps(), other(x).detach(), rtol=1e-4, atol=1e-4)
    assert replayed(piip).num_graphs == 2
    piip(x).mean().backward()
    assert all(parameter.grad is not None for parameter in piip.parameters())
    seen = []
    handle = piip.merge.register_forward_hook(lambda *_: seen.append(1))
    maps()
    handle.remove()
    assert len(seen) == 3


@pytest.mark.slow
@torch.no_grad()
def test_compiled() -> None:
    backend = "aot_eager" if DEVICE == "cpu" else "inductor"  # C++ code takes a minute to compile
    piip = randomise(tiny_piip((64, 32), depth=1, num_interactions=1).eval()).to(DEVICE)
    compiled = torch.compile(piip, backend=backend)
    # float32 rounding: fused operators sum in another order
    torch.testing.assert_close(compiled(inputs().to(DEVICE)), piip(inputs().to(DEVICE)), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_detector() -> None:
    """The quick Mask R-CNN learns from a batch, and finds the same on the device as on the CPU."""
    require.detectron2()
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    from piip.engine.config import load_config
    from piip.engine.train import build_model

    from .tiny_config import QUICK_CONFIG

    torch.manual_seed(0)
    model = build_model(load_config(str(QUICK_CONFIG), [f"train.device={DEVICE}"]))
    image = (255 * torch.rand(3, 128, 128)).byte()
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 10:50, 10:50] = masks[1, 60:120, 40:100] = True
    boxes = Boxes(torch.tensor([[10.0, 10, 50, 50], [40, 60, 100, 120]]))
    truth = Instances((128, 128), gt_boxes=boxes, gt_masks=BitMasks(masks), gt_classes=torch.tensor([0, 1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    totals = []
    with EventStorage():
        for _ in range(4):
            torch.manual_seed(0)
            total = sum(model([{"image": image, "instances": truth}]).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
    assert totals[-1] < totals[0]
    model.eval()
    (found,) = model([{"image": image, "height": 128, "width": 128}])
    (expected,) = copy.deepcopy(model).to("cpu")([{"image": image, "height": 128, "width": 128}])
    scores, reference = (output["instances"].scores.detach().cpu()[:5] for output in (found, expected))
    # the best of them: further down, rounding decides which of two boxes suppresses the other
    torch.testing.assert_close(scores, reference, rtol=1e-2, atol=1e-3)
    replay_maps(model)
    with torch.no_grad():
        for _ in range(3):  # computed, recorded, replayed
            (again,) = model([{"image": image, "height": 128, "width": 128}])
            torch.testing.assert_close(again["instances"].scores.cpu()[:5], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE != "cuda", reason="waiting for a GPU needs one")
def test_dino_waits_for_the_gpu_once_to_match() -> None:
    """However many layers and images: the costs come to the host together, and the pairs go back together."""
    require.detectron2()
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from piip.engine.config import load_config
    from piip.engine.train import build_model

    from .tiny_config import REPOSITORY

    config = str(REPOSITORY / "configs/quick/dino_piip_128_96_64_shapes.py")
    model = build_model(load_config(config, [f"train.device={DEVICE}"]))
    truth = Instances((128, 128), gt_boxes=Boxes(torch.tensor([[10.0, 10, 50, 50], [40, 60, 100, 120]])))
    truth.gt_classes = torch.tensor([0, 1])
    batch = [{"image": (255 * torch.rand(3, 128, 128)).byte(), "instances": truth}] * 3
    with EventStorage():
        model(batch)  # the first step sets up what is kept
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]
    print(Counter(places))
    assert sum(place.startswith("matching.py") for place in places) == 1
