"""The tiny published Mask R-CNN of the golden data, built from a config of this repository, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import detectron2.modeling.proposal_generator.proposal_utils as proposal_utils
import detectron2.modeling.roi_heads.fast_rcnn as fast_rcnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from piip.engine.backbone import ReleasedFPN, ReleasedPyramidBackbone
from piip.official import build_backbone, convert_detector, to_official_detector

from ....shared_data import Golden

CONFIG = Path(__file__).parents[4] / "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py"


class _Float64Transform:
    """Detectron2's `Box2BoxTransform`, which rounds to float32, without rounding."""

    def __init__(self, weights: tuple[float, ...], scale_clamp: float) -> None:
        self.weights, self.scale_clamp = torch.tensor(weights, dtype=torch.float64), scale_clamp

    def get_deltas(self, source: Tensor, target: Tensor) -> Tensor:
        (at, size), (target_at, target_size) = _centres(source), _centres(target)
        return self.weights * torch.cat([(target_at - at) / size, (target_size / size).log()], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        at, size = (x[:, None] for x in _centres(boxes))
        moves = deltas.unflatten(1, (-1, 4)) / self.weights
        at, size = at + moves[..., :2] * size, moves[..., 2:].clamp(max=self.scale_clamp).exp() * size
        return torch.cat([at - size / 2, at + size / 2], dim=-1).flatten(1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + size / 2, size


def _keep(boxes: Boxes, tensor: Any) -> None:
    boxes.tensor = torch.as_tensor(tensor, dtype=torch.float64).reshape(-1, 4)


def use_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift Detectron2's rounding of boxes and labels to float32, and sample as the golden data did."""
    monkeypatch.setattr(Boxes, "__init__", _keep)
    for module in (proposal_utils, fast_rcnn):
        monkeypatch.setattr(module, "batched_nms", torchvision.ops.batched_nms)
    plain = F.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        F, "binary_cross_entropy_with_logits", lambda x, y, **options: plain(x, y.to(x.dtype), **options)
    )
    monkeypatch.setattr(
        torch,
        "randperm",
        lambda n, **_: torch.from_numpy(np.random.RandomState(1234 + n).permutation(n)),
    )


def build(case: Golden) -> GeneralizedRCNN:
    """The golden detector with its weights, for training; call :func:`use_float64` first."""
    sizes = case.meta["sizes"]
    model = LazyConfig.load(str(CONFIG)).model
    model.backbone = L(_backbone)(config=case.meta["model"]["backbone"], sizes=sizes)
    model.proposal_generator.head.in_channels = sizes["channels"]
    heads = model.roi_heads
    heads.num_classes, heads.batch_size_per_image = sizes["classes"], 4096
    for kind, side in (("box", 7), ("mask", 14)):
        heads[f"{kind}_head"].input_shape = ShapeSpec(channels=sizes["channels"], width=side, height=side)
    heads.box_head.fc_dims = [sizes["fc"]] * 2
    heads.box_predictor.input_shape = ShapeSpec(channels=sizes["fc"])
    heads.mask_head.conv_dims = [sizes["mask_channels"]] * 5
    detector: GeneralizedRCNN = instantiate(model)
    detector.load_state_dict(convert_detector(case.group("state")), strict=False)  # but for means of pixels
    detector.double()
    rpn, predictor = detector.proposal_generator, detector.roi_heads.box_predictor
    for part in (rpn, predictor):
        part.box2box_transform = _Float64Transform(tuple(part.box2box_transform.weights), math.log(1000 / 16))
    ratios = torch.tensor([0.5, 1, 2], dtype=torch.float64).sqrt()
    for cells, stride in zip(rpn.anchor_generator.cell_anchors, rpn.anchor_generator.strides, strict=True):
        half = 4 * stride * torch.stack([1 / ratios, ratios], dim=1)
        cells.copy_(torch.cat([-half, half], dim=1))  # Detectron2's are rounded to float32
    return detector


def _backbone(config: dict[str, Any], sizes: dict[str, Any]) -> ReleasedFPN:
    published = build_backbone(config)
    bottom_up = ReleasedPyramidBackbone(published.piip, published.pyramid)
    neck = ReleasedFPN(bottom_up, ["f1", "f2", "f3", "f4"], sizes["channels"], top_block=LastLevelMaxPool())
    neck._size_divisibility = sizes["divisor"]
    return neck


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Masks of a shape from packed bits."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape)).reshape(shape).astype(bool))


def training_batch(case: Golden, scene: str) -> list[dict[str, Any]]:
    """Two images with objects, as the detector takes them."""
    batch = []
    for number, (height, width) in enumerate(case.meta["train"][scene]["crops"]):
        truth = case.group(f"train/{scene}/{number}")
        boxes = truth["gt_boxes"]
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=truth["gt_labels"])
        instances.gt_masks = BitMasks(unpacked(truth["gt_masks"], (len(boxes), height, width)))
        image = case.arrays[f"train/image{number}"][:height, :width].permute(2, 0, 1)
        batch.append({"image": image, "instances": instances})
    return batch


def published_gradients(detector: GeneralizedRCNN) -> dict[str, Tensor]:
    """Gradients of all parameters by their published names."""
    gradients = {
        name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in detector.named_parameters()
    }
    return to_official_detector({**detector.state_dict(), **gradients})
