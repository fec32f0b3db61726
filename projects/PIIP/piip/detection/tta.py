"""Test-time augmentation of detectors: several sizes of an image, each also mirrored, and merging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform, TransformList
from torch import Tensor, nn

from .dino.detector import DINODetector
from .soft_nms import SoftNMS

__all__ = ["DINOWithTTA", "RCNNWithTTA", "Views"]


@dataclass(frozen=True)
class Views:
    """An image at several sizes, each also mirrored where `flip` says so.

    Args:
        scales: factors of the size that the test set is resized to.
        flip: look at the mirror images, too.

    Raises:
        ValueError: there is no scale, or one that is not positive.
    """

    scales: Sequence[float]
    flip: bool

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales {list(self.scales)} must be positive factors of the image's size")

    def __call__(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A model's input for each view of an input.

        Args:
            inputs: "image", ``(3, H, W)`` of numbers from 0 to 255, "height" and "width", the size that boxes
                are wanted at.

        Returns:
            For each view its "image", "height", "width" and "transforms", from the wanted size to the view.
        """
        image = inputs["image"].permute(1, 2, 0).cpu().numpy()
        (height, width), size = image.shape[:2], (inputs["height"], inputs["width"])
        views = []
        for scale in self.scales:
            new = [max(round(side * scale), 1) for side in (height, width)]
            # Detectron2's mapper inverts the resize of the test set, and that of the view, one by one
            resize = ResizeTransform(height, width, *new)
            scaled = image if (height, width) == tuple(new) else resize.apply_image(image)
            for mirrored in (False, True) if self.flip else (False,):
                transforms = [ResizeTransform(*size, *new)] + [HFlipTransform(new[1])] * mirrored
                pixels = scaled[:, ::-1] if mirrored else scaled
                views.append(
                    {
                        "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
                        "height": size[0],
                        "width": size[1],
                        "transforms": TransformList(transforms),
                    }
                )
        return views


def _with_size(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An input with the output size; the image's own size where none is given."""
    height, width = inputs["image"].shape[1:]
    return {"height": height, "width": width, **inputs}


@contextmanager
def _square_around(backbone: Any, views: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Let a backbone that pads to a square pad to one that holds the views: Detectron2 would cut them off."""
    square = getattr(backbone, "_square_pad", 0)
    if square:
        backbone._square_pad = max(square, *(max(view["image"].shape[1:]) for view in views))
    try:
        yield
    finally:
        if square:
            backbone._square_pad = square


class RCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation for a Mask or Cascade R-CNN of a LazyConfig.

    Boxes of all views are merged by NMS; masks are the mean of all views' masks for the merged boxes.

    Args:
        model: the detector, in evaluation.
        scales, flip: see :class:`Views`.
        batch_size: views that the model sees at once.
        soft_nms: method of :class:`SoftNMS` in the place of the detector's own suppression, which is for each
            view and then for all; None for the latter. With the scale 1 and no mirror image that is soft-NMS
            and nothing else.

    Raises:
        ValueError: the model is no `GeneralizedRCNN`, or has keypoints; or unknown soft-NMS.
    """

    model: GeneralizedRCNN

    def __init__(
        self,
        model: GeneralizedRCNN,
        *,
        scales: Sequence[float],
        flip: bool,
        batch_size: int = 1,
        soft_nms: Literal["linear", "gaussian"] | None = None,
    ) -> None:
        if not isinstance(model, GeneralizedRCNN):
            raise ValueError(f"this augmentation is for a GeneralizedRCNN, the model is a {_name(model)}")
        if getattr(model.roi_heads, "keypoint_on", False):
            raise ValueError("test-time augmentation of keypoints is not supported")
        predictor = _predictors(model)[-1]
        # Detectron2 asks the config of its older system for these
        settings = CfgNode(
            {
                "MODEL": {
                    "KEYPOINT_ON": False,
                    "LOAD_PROPOSALS": False,
                    "MASK_ON": model.roi_heads.mask_on,
                    "ROI_HEADS": {
                        "NUM_CLASSES": model.roi_heads.num_classes,
                        "NMS_THRESH_TEST": predictor.test_nms_thresh,
                    },
                },
                "TEST": {"DETECTIONS_PER_IMAGE": predictor.test_topk_per_image},
            }
        )
        super().__init__(settings, model, Views(scales, flip), batch_size)
        self.soft_nms = SoftNMS(soft_nms) if soft_nms else None
        self.input_format = model.input_format

    def __call__(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """As `GeneralizedRCNN` in evaluation."""
        outputs: list[dict[str, Instances]] = super().__call__([_with_size(x) for x in batched_inputs])
        return outputs

    def _batch_inference(
        self, batched_inputs: Sequence[dict[str, Any]], detected_instances: Sequence[Instances] | None = None
    ) -> list[Instances]:
        found: list[Instances] = []
        for start in range(0, len(batched_inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            views = batched_inputs[part]
            with _square_around(self.model.backbone, views):
                found += super()._batch_inference(views, detected_instances and detected_instances[part])
        return found

    def _get_augmented_boxes(self, *args: Any) -> Any:
        if self.soft_nms is None:
            return super()._get_augmented_boxes(*args)
        with _unsuppressed(_predictors(self.model)):
            return super()._get_augmented_boxes(*args)

    def _merge_detections(
        self, boxes: Tensor, scores: list[Tensor], classes: list[Tensor], size: tuple[int, int]
    ) -> Instances:
        if self.soft_nms is None or not len(boxes):
            return super()._merge_detections(boxes, scores, classes, size)
        limit = self.cfg.TEST.DETECTIONS_PER_IMAGE
        return _merged(boxes, torch.stack(scores), torch.stack(classes), size, self.soft_nms, limit)


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _predictors(model: GeneralizedRCNN) -> list[FastRCNNOutputLayers]:
    return [module for module in model.roi_heads.modules() if isinstance(module, FastRCNNOutputLayers)]


@contextmanager
def _unsuppressed(predictors: Sequence[FastRCNNOutputLayers]) -> Iterator[None]:
    """Let predictors give all boxes above their score threshold."""
    kept = [(one.test_nms_thresh, one.test_topk_per_image) for one in predictors]
    for one in predictors:
        one.test_nms_thresh, one.test_topk_per_image = 1.0, -1
    try:
        yield
    finally:
        for one, (threshold, limit) in zip(predictors, kept, strict=True):
            one.test_nms_thresh, one.test_topk_per_image = threshold, limit


def _merged(
    boxes: Tensor, scores: Tensor, classes: Tensor, size: tuple[int, int], suppress: SoftNMS, limit: int
) -> Instances:
    """Detections of several views as those of one image of `size` (height, width), at most `limit`."""
    inside = Boxes(boxes)
    inside.clip(size)
    kept, kept_scores = suppress(inside.tensor, scores, classes, limit)
    return Instances(size, pred_boxes=inside[kept], scores=kept_scores, pred_classes=classes[kept])


class DINOWithTTA(nn.Module):
    """Test-time augmentation for DINO.

    Within a view DINO needs no NMS. Several views find the same objects again, so they are merged by NMS.

    Args:
        model: the detector, in evaluation.
        scales, flip: see :class:`Views`.
        soft_nms: method of :class:`SoftNMS`.

    Raises:
        ValueError: the model is no `DINODetector`.
    """

    def __init__(
        self,
        model: DINODetector,
        *,
        scales: Sequence[float],
        flip: bool,
        soft_nms: Literal["linear", "gaussian"] = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(model, DINODetector):
            raise ValueError(f"this augmentation is for a DINODetector, the model is a {_name(model)}")
        self.model, self.views, self.soft_nms = model, Views(scales, flip), SoftNMS(soft_nms)
        self.input_format = model.input_format

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """As :class:`DINODetector` in evaluation."""
        return [{"instances": self._detect(_with_size(inputs))} for inputs in batched_inputs]

    def _detect(self, inputs: Mapping[str, Any]) -> Instances:
        size = inputs["height"], inputs["width"]
        found = []
        for view in self.views(inputs):
            (output,) = self.model([{"image": view["image"]}])  # boxes in pixels of the view
            instances = output["instances"]
            boxes = view["transforms"].inverse().apply_box(instances.pred_boxes.tensor.cpu().numpy())
            found.append((torch.from_numpy(boxes).to(instances.scores), instances))
        if len(found) == 1:  # nothing to merge
            ((boxes, instances),) = found
            instances = Instances(size, **{**instances.get_fields(), "pred_boxes": Boxes(boxes)})
        else:
            instances = _merged(
                torch.cat([boxes for boxes, _ in found]),
                torch.cat([one.scores for _, one in found]),
                torch.cat([one.pred_classes for _, one in found]),
                size,
                self.soft_nms,
                self.model.head.max_detections,
            )
        return detector_postprocess(instances, *size)
