"""DINO as a Detectron2 detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .model import DINO

__all__ = ["DINODetector"]


class DINODetector(nn.Module):
    """A DINO (arXiv 2203.03605) on a backbone's maps, with Detectron2's interface.

    Takes a list of dicts with "image", ``(3, H, W)`` in `input_format`, 0 to 255; in training "instances", in
    evaluation "height" and "width", the size at which boxes are wanted. Returns the published losses in
    training, otherwise a list of dicts with "instances" of `pred_boxes`, `scores` and `pred_classes`.

    DINO codes places as shares of the padded batch, so padding changes what it sees. In evaluation each image
    therefore runs by itself, with no more padding than its own.

    Args:
        backbone: gives the maps.
        head: takes them; it runs in float32, as released, whatever the precision of the backbone.
        in_features: names of the maps, finest first.
        pixel_mean, pixel_std: of each channel.
        size_divisibility: images are padded to multiples of it.
        input_format: "RGB" or "BGR".
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: DINO,
        *,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.in_features, self.input_format = list(in_features), input_format
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _batch(self, inputs: Sequence[Mapping[str, Any]]) -> ImageList:
        images = [(entry["image"].to(self.device) - self.pixel_mean) / self.pixel_std for entry in inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _maps(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images)
        dtype = self.head.level_embeds.dtype
        return [features[name].to(dtype) for name in self.in_features]

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses or instances; see the class.

        Raises:
            FloatingPointError: in training, a prediction is not finite.
        """
        if self.training:
            return self._losses(batched_inputs)
        return [{"instances": self._detect(inputs)} for inputs in batched_inputs]

    def _losses(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images = self._batch(batched_inputs)
        maps = self._maps(images.tensor)
        objects = [inputs["instances"].to(self.device) for inputs in batched_inputs]
        with torch.autocast(self.device.type, enabled=False):
            losses = self.head.losses(
                maps,
                images.image_sizes,
                (images.tensor.shape[2], images.tensor.shape[3]),
                [one.gt_boxes.tensor for one in objects],
                [one.gt_classes for one in objects],
            )
        return {name: loss.reshape(()) for name, loss in losses.items()}

    def _detect(self, inputs: Mapping[str, Any]) -> Instances:
        images = self._batch([inputs])
        maps = self._maps(images.tensor)
        (size,) = images.image_sizes
        with torch.autocast(self.device.type, enabled=False):
            (found,) = self.head(maps, [size], (images.tensor.shape[2], images.tensor.shape[3]))
        instances = Instances(
            size,
            pred_boxes=Boxes(found["boxes"]),
            scores=found["scores"],
            pred_classes=found["labels"],
        )
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        return detector_postprocess(instances, height, width)
