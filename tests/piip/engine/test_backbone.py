"""PIIP as a Detectron2 backbone: levels, padding, both necks."""

from __future__ import annotations

import pytest
import torch

from ... import require
from ..models import tiny_piip

require.detectron2()

from detectron2.modeling import Backbone
from detectron2.structures import ImageList

from piip.engine.backbone import piip_backbone


def stride16_piip(sizes: tuple[int, ...] = (64, 128, 160)):
    return tiny_piip(image_sizes=sizes, branch={"patch_size": 16})


@pytest.mark.parametrize("neck", ["simple", "released"])
@pytest.mark.parametrize(("height", "width"), [(160, 160), (160, 320), (96, 224)])
def test_levels(neck: str, height: int, width: int) -> None:
    """p2 to p6 at strides 4 to 64, as announced, also where branches drop a fraction of a patch."""
    backbone = piip_backbone(stride16_piip(), neck=neck, out_channels=32)
    assert isinstance(backbone, Backbone)
    announced = backbone.output_shape()
    assert {name: shape.stride for name, shape in announced.items()} == {f"p{i}": 2**i for i in range(2, 7)}
    levels = backbone(torch.randn(2, 3, height, width))
    assert list(levels) == list(announced)
    for name, level in levels.items():
        stride = announced[name].stride
        assert level.shape == (2, announced[name].channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("neck", ["simple", "released"])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((64, 128, 160), 160),  # 2/5 and 4/5 are whole patches at multiples of 80 px, p5 wants 32
        ((96, 160, 224), 224),
        ((128, 128, 128), 32),
        ((127, 131, 139), 32),  # no common divisor: only the levels are served
    ],
)
def test_padding_is_exact(neck: str, sizes: tuple[int, ...], expected: int) -> None:
    """The padding reaches Detectron2 both ways it asks, and leaves every branch with whole patches."""
    piip = stride16_piip(sizes)
    backbone = piip_backbone(piip, neck=neck, out_channels=32)
    assert backbone.size_divisibility == backbone.padding_constraints["size_divisibility"] == expected
    images = ImageList.from_tensors(
        [torch.zeros(3, 100, 161)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    height, width = images.tensor.shape[2:]
    assert height % expected == width % expected == 0 and (height, width) >= (100, 161)
    if expected != 32 or len(set(sizes)) == 1:
        for image in piip.image_pyramid(images.tensor):
            assert image.shape[2] % 16 == image.shape[3] % 16 == 0


def test_published_padding() -> None:
    """224, by configuration; 1120/896/448 then leaves branch 2 of a 672 px side with 537 px."""
    piip = tiny_piip(image_sizes=(448, 896, 1120), branch={"patch_size": 16})
    backbone = piip_backbone(piip, neck="released", out_channels=32, size_divisibility=224)
    assert backbone.padding_constraints == {"size_divisibility": 224, "square_size": 0}
    sides = [image.shape[2] for image in piip.image_pyramid(torch.zeros(1, 3, 672, 224))]
    assert sides == [268, 537, 672]


def test_square_padding() -> None:
    backbone = piip_backbone(stride16_piip(), square_pad=320)
    images = ImageList.from_tensors(
        [torch.zeros(3, 100, 161)], padding_constraints=backbone.padding_constraints
    )
    assert images.tensor.shape == (1, 3, 320, 320)


def test_levels_of_a_coarser_start() -> None:
    """Other scale factors: strides 4, 8, 16 from a stride of 8, and no level beyond."""
    backbone = piip_backbone(tiny_piip(), scale_factors=(2.0, 1.0, 0.5), out_channels=16)
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
    }


def test_unknown_neck() -> None:
    with pytest.raises(ValueError, match="unknown neck 'fpn': expected 'simple' or 'released'"):
        piip_backbone(tiny_piip(), neck="fpn")
