"""A segmentor with Detectron2's interface: backbone, UPerNet, inference in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from .heads import IGNORED, SegmentationHeads, resize
from .inference import slide_inference

__all__ = ["Segmentor"]


class Segmentor(nn.Module):
    """Semantic segmentation as Detectron2's `SemanticSegmentor` has it.

    Takes a list of dicts with "image", ``(3, H, W)`` in `input_format`, 0 to 255, and in training "sem_seg",
    classes ``(H, W)``, 255 where a pixel is ignored; in evaluation "height" and "width" say at which size the
    answer is wanted, the image's own where they are absent. Returns a dict of losses in training, otherwise a
    list of dicts with "sem_seg", logits ``(classes, height, width)``, float32.

    In evaluation each image runs by itself, so that what is in a batch with it changes nothing.

    Args:
        backbone: gives the maps.
        heads: takes them.
        in_features: names of the maps, finest first.
        pixel_mean, pixel_std: of each channel.
        crop_size: side of the squares that training pads to and inference cuts windows of, in pixels.
        stride: step between windows; None to look at the image as a whole.
        max_windows: windows in one forward pass, which bounds memory.
        input_format: "RGB" or "BGR".
        sync_norm: take the batch norms' statistics over all processes in training, as released; GPUs only.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        heads: SegmentationHeads,
        *,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        crop_size: int,
        stride: int | None,
        max_windows: int = 4,
        input_format: str = "RGB",
        sync_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.SyncBatchNorm.convert_sync_batchnorm(heads) if sync_norm else heads
        self.in_features, self.input_format = list(in_features), input_format
        self.crop_size, self.stride, self.max_windows = crop_size, stride, max_windows
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps ``(B, C_i, h_i, w_i)``, finest first, of normalised images ``(B, 3, H, W)``."""
        features = self.backbone(images)
        return [features[name] for name in self.in_features]

    def _normalised(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses "loss_sem_seg" and "loss_sem_seg_auxiliary", or logits; see the class."""
        images = [self._normalised(inputs["image"]) for inputs in batched_inputs]
        if self.training:
            return self._losses(images, [inputs["sem_seg"].to(self.device) for inputs in batched_inputs])
        results = []
        for inputs, image in zip(batched_inputs, images, strict=True):
            size = int(inputs.get("height", image.shape[1])), int(inputs.get("width", image.shape[2]))
            results.append({"sem_seg": resize(self.logits(image[None]).float(), size)[0]})
        return results

    def _losses(self, images: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        divisibility, square = self.backbone.size_divisibility, {"square_size": self.crop_size}
        padded = ImageList.from_tensors(images, divisibility, padding_constraints=square)
        targets = ImageList.from_tensors(labels, divisibility, IGNORED, square)
        losses = self.heads.losses(self.maps(padded.tensor), targets.tensor)
        return {"loss_sem_seg": losses.main, "loss_sem_seg_auxiliary": losses.auxiliary}

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes, H, W)`` of normalised images ``(B, 3, H, W)``, averaged over windows."""
        window = stride = (images.shape[2], images.shape[3])
        if self.stride is not None:
            window, stride = (self.crop_size, self.crop_size), (self.stride, self.stride)
        return slide_inference(self.window_logits, images, window, stride, max_windows=self.max_windows)

    def window_logits(self, images: Tensor) -> Tensor:
        """Logits ``(N, classes, h, w)`` of windows ``(N, 3, h, w)``, padded to what the backbone divides."""
        height, width = images.shape[2:]
        multiple = max(self.backbone.size_divisibility, 1)
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        logits = self.heads.decode_head(self.maps(padded))
        return resize(logits, padded.shape[2:])[:, :, :height, :width]
