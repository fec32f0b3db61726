"""The cost of a whole detector, backbone, neck and heads, for one image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor, nn

from ..backbone import PIIP
from ..branches import ViTBranch
from ..branches.published import VIT_SIZES
from ..classification.classifier import PIIPClassifier
from ..detection.dino.detector import DINODetector
from ..engine.config import apply_overrides, load_config
from ..flops import Report, count_operators, published_cost
from ..flops.actual import check_input_size, collect, neck_part, piip_locator, transformer_part
from ..segmentation.segmentor import Segmentor
from .classifier_cost import classifier_cost

__all__ = ["detector_cost", "find_trunk", "load_detector", "own_input_size"]


def find_trunk(backbone: nn.Module) -> tuple[str, nn.Module]:
    """The network of a Detectron2 backbone below its neck, with its name.

    That is the PIIP where there is one; otherwise what a feature pyramid is built on.

    Raises:
        ValueError: the backbone has no such part.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, PIIP):
            return name, module
    for name in ("net", "bottom_up"):  # SimpleFeaturePyramid, FPN
        module = getattr(backbone, name, None)
        if isinstance(module, nn.Module):
            return name, module
    kind = type(backbone).__name__
    raise ValueError(
        f"backbone {kind} has no part below its neck: expected a PIIP, or a pyramid of Detectron2"
    )


def own_input_size(detector: GeneralizedRCNN | DINODetector | Segmentor) -> tuple[int, int]:
    """The square that a model is made for: the input of its PIIP, or what it pads to.

    Raises:
        ValueError: the detector names no size.
    """
    backbone = detector.backbone
    _, trunk = find_trunk(backbone)
    made_for = trunk.input_size if isinstance(trunk, PIIP) else None
    side = made_for or backbone.padding_constraints.get("square_size", 0)
    if not side:
        raise ValueError(
            f"{type(backbone).__name__} names no input size of its own: give --input-size HEIGHT WIDTH"
        )
    return side, side


def load_detector(
    config_file: str,
    *,
    branches: str | None = None,
    resolutions: str | None = None,
    overrides: Sequence[str] = (),
) -> nn.Module:
    """Build the model of a LazyConfig, changed as one likes, on the device that is current.

    Args:
        config_file: path of the config.
        branches: other models, by the paper's letters, smallest first ("tsb"); the windows and the like of
            the config's branches stay, place by place, the last one's for further places.
        resolutions: image size of each branch, smallest model first ("1568/1120/672").
        overrides: "key=value" as on Detectron2's command lines; they come last.

    Raises:
        ValueError: the config has no model, or cannot be changed so.
        OSError: the config cannot be read.
    """
    config = load_config(config_file)
    if "model" not in config:
        raise ValueError(f"{config_file} is not the config of a detector: it defines no `model`")
    if branches or resolutions:
        piip = config.model.get("backbone", config.model).get("piip")
        if piip is None:
            raise ValueError(
                f"{config_file} has no PIIP (model.backbone.piip, or model.piip of a classifier) whose "
                "branches could be changed"
            )
        if branches:
            piip.branches = _replace_models(piip.branches, branches)
        if resolutions:
            piip.image_sizes = _parse_sizes(resolutions, piip.branches)
    model: nn.Module = instantiate(apply_overrides(config, overrides).model)
    return model


def _replace_models(old: Sequence[Any], letters: str) -> list[Any]:
    names = re.findall("6B|[A-Z]", letters.upper())
    if "".join(names) != letters.upper() or not set(names) <= set(VIT_SIZES):
        raise ValueError(
            f"branches {letters!r} are not models: expected letters out of {', '.join(VIT_SIZES)}"
        )
    models = []
    for place, name in enumerate(reversed(names)):
        settings = dict(old[min(place, len(old) - 1)])
        del settings["_target_"]
        settings["embed_dim"], settings["depth"], settings["num_heads"] = VIT_SIZES[name]
        models.append(LazyCall(ViTBranch)(**settings))
    return models


def _parse_sizes(resolutions: str, branches: Sequence[Any]) -> list[int]:
    if not re.fullmatch(r"[0-9]+(/[0-9]+)*", resolutions):
        raise ValueError(f"resolutions {resolutions!r} are not sizes: expected something like 1568/1120/672")
    sizes = [int(size) for size in reversed(resolutions.split("/"))]
    if len(sizes) != len(branches):
        raise ValueError(
            f"{len(sizes)} resolutions for {len(branches)} branches: give one each, smallest model first"
        )
    for size, branch in zip(sizes, branches, strict=True):
        patch = branch.get("patch_size", 16)
        if size < patch or size % patch:
            raise ValueError(f"resolution {size} is no multiple of the patch of {patch} px: give one that is")
    return sizes


def _as_list(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


class _Forward(nn.Module):
    """A detector's forward pass at a fixed number of proposals and detections, as tensors only."""

    def __init__(self, detector: GeneralizedRCNN) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.backbone = detector.backbone
        self.proposal_head = detector.proposal_generator.rpn_head
        self.levels = detector.proposal_generator.in_features
        # a cascade has a list of box heads, each of which sees all proposals
        self.box_head = nn.ModuleList(_as_list(heads.box_head))
        self.box_predictor = nn.ModuleList(_as_list(heads.box_predictor))
        self.mask_head = nn.ModuleList(_as_list(heads.mask_head) if heads.mask_on else [])

    def forward(self, image: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        features: Mapping[str, Tensor] = self.backbone(image)
        scores, deltas = self.proposal_head([features[level] for level in self.levels])
        outputs = [*features.values(), *scores, *deltas]
        for head, predictor in zip(self.box_head, self.box_predictor, strict=True):
            outputs.extend(predictor(head(boxes)))
        for head in self.mask_head:
            layers: Any = head.layers
            outputs.append(layers(masks))
        return tuple(outputs)


def _image(size: tuple[int, int]) -> tuple[Tensor, ...]:
    return (torch.empty(1, 3, *size, device="meta"),)


def _inputs(detector: GeneralizedRCNN, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """An image, the pooled features of all proposals, and those of all detections."""
    heads = detector.roi_heads
    channels = {name: shape.channels for name, shape in detector.backbone.output_shape().items()}

    def pooled(kind: str, count: int) -> Tensor:
        side = getattr(heads, f"{kind}_pooler").output_size
        level = getattr(heads, f"{kind}_in_features")[0]
        return torch.empty(count, channels[level], *side, device="meta")

    boxes = pooled("box", detector.proposal_generator.post_nms_topk[False])
    detections: Any = _as_list(heads.box_predictor)[-1].test_topk_per_image
    masks = pooled("mask", detections) if heads.mask_on else boxes
    return *_image(size), boxes, masks


class _SegmentorForward(nn.Module):
    """A segmentor's forward pass on one window."""

    def __init__(self, segmentor: Segmentor) -> None:
        super().__init__()
        self.backbone, self.in_features = segmentor.backbone, segmentor.in_features
        self.decode_head = segmentor.heads.decode_head
        self.auxiliary_head = segmentor.heads.auxiliary_head  # has parameters, but runs in training only

    def forward(self, image: Tensor) -> Tensor:
        features: Mapping[str, Tensor] = self.backbone(image)
        logits: Tensor = self.decode_head([features[name] for name in self.in_features])
        return logits


class _DINOForward(nn.Module):
    """A DINO's forward pass, up to the logits and boxes of all queries."""

    def __init__(self, detector: DINODetector) -> None:
        super().__init__()
        self.backbone, self.head, self.in_features = detector.backbone, detector.head, detector.in_features

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features: Mapping[str, Tensor] = self.backbone(image)
        size = image.shape[2], image.shape[3]
        found = self.head.predict([features[name] for name in self.in_features], [size], size)
        return found.logits, found.boxes, found.encoder_logits


_DINO_PARTS = {"neck": "neck", "encoder": "encoder", "decoder": "decoder"}


def _check_countable(detector: nn.Module) -> GeneralizedRCNN | DINODetector | Segmentor:
    if isinstance(detector, Segmentor | DINODetector):
        return detector
    if not isinstance(detector, GeneralizedRCNN):
        raise ValueError(
            f"the model is a {type(detector).__name__}: expected a GeneralizedRCNN, a DINODetector, a "
            "Segmentor or a PIIPClassifier"
        )
    kinds = type(detector.proposal_generator), type(detector.roi_heads)
    if not issubclass(kinds[0], RPN) or not issubclass(kinds[1], StandardROIHeads):
        names = " and ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"cannot count {names}: expected an RPN and box heads of Detectron2")
    return detector


def detector_cost(
    detector: nn.Module, input_size: tuple[int, int] | None = None, *, accounting: str = "actual"
) -> Report:
    """Count a detector, a segmentor or a classifier.

    Args:
        detector: a Mask or Faster R-CNN, cascaded or not, a DINO, a segmentor, or a classifier, on the meta
            device.
        input_size: height and width of the padded image, or of a segmentor's window, in pixels; None for the
            model's own.
        accounting: "actual", everything from the image to the heads, at as many proposals and detections as
            the detector keeps in test; or "published", the backbone as the published tables count it.

    Returns:
        Parts "branch1", ..., "interactions", "merge" (of another backbone than PIIP: "backbone"), "neck",
        and what follows it: "proposal_head", "box_head", "mask_head"; "encoder", "decoder", "heads" of a
        DINO; "decode_head", "auxiliary_head" of a segmentor; "heads" of a classifier.

    Raises:
        ValueError: unknown accounting, a detector of another kind, or a size it cannot take.
    """
    if accounting not in ("actual", "published"):
        raise ValueError(f"unknown accounting {accounting!r}: expected 'actual' or 'published'")
    if isinstance(detector, PIIPClassifier):
        return classifier_cost(detector, input_size, accounting)
    detector = _check_countable(detector)
    trunk_name, trunk = find_trunk(detector.backbone)
    size = input_size or own_input_size(detector)
    if isinstance(trunk, PIIP):
        check_input_size(size, trunk.stride)
        if accounting == "published":
            return published_cost(trunk, size)
        locate_trunk = piip_locator(trunk)
    elif accounting == "published":
        raise ValueError(
            "published accounting is that of PIIP and its baselines, and this config builds neither"
        )
    else:
        check_input_size(size, max(1, detector.backbone.size_divisibility))

        def locate_trunk(name: Sequence[str], operator: str | None) -> tuple[str, ...]:
            return "backbone", transformer_part(name, operator)

    model: nn.Module
    if isinstance(detector, Segmentor):
        model, inputs = _SegmentorForward(detector).eval(), _image(size)
        left_out = "sums of overlapping windows, enlargement of the logits"
    elif isinstance(detector, DINODetector):
        model, inputs = _DINOForward(detector).eval(), _image(size)
        left_out = "choice of the best cells and of the best detections"
    else:
        model, inputs = _Forward(detector).eval(), _inputs(detector, size)
        left_out = "RoI pooling, non-maximum suppression, drawing of masks"
    prefix = ["backbone", *trunk_name.split(".")]

    def locate(name: Sequence[str], operator: str | None) -> tuple[str, ...]:
        if list(name[: len(prefix)]) == prefix:
            return locate_trunk(name[len(prefix) :], operator)
        if list(name[:1]) == ["backbone"]:
            return neck_part(operator)
        if not name or name[0] == "head":  # what DINO computes between its modules has no name
            return (_DINO_PARTS.get(name[1] if len(name) > 1 else "", "heads"),)
        return ("box_head",) if name[0] == "box_predictor" else (name[0],)

    return collect(model, count_operators(model, inputs), locate, size, [left_out])
