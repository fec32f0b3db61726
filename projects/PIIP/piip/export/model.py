"""Which models can be exported, and how each is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..backbone import PIIP
from ..classification.classifier import PIIPClassifier
from ..detection.dino.detector import DINODetector
from ..engine.checkpoints.checkpoint import Checkpointer
from ..engine.data.custom_data import follow_weights
from ..engine.train import build_model
from ..segmentation.segmentor import Segmentor
from .classifier import ExportableClassifier
from .dino import ExportableDINO
from .errors import ExportError
from .rcnn import ExportableRCNN
from .segmentor import ExportableSegmentor

__all__ = ["Exportable", "exportable", "load_exportable"]

_FALLBACK_SIDE = 224  # of the image that a model without a PIIP is traced with


class _Module(Protocol):
    """A model as a function of images, with names for what it returns."""

    @property
    def outputs(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Exportable:
    """A model ready for tracing, and the original to compare it with.

    Attributes:
        module: from images ``(B, 3, H, W)``, 0 to 255, to a dict of tensors.
        original: the model it was made of.
        side: of the images the model is made for, in pixels.
        batches: whether more than one image may go through at once.
        smallest, largest: height and width that images may have, in pixels; None for no limit.
        input_format: "RGB" or "BGR".
    """

    module: nn.Module
    original: nn.Module
    side: int
    batches: bool
    smallest: int
    largest: int | None
    input_format: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the module returns."""
        return cast(_Module, self.module).outputs

    def example(self) -> Tensor:
        """Images for tracing, of unequal, unspecial sizes, so that the tracer sees no coincidence as a
        rule."""
        height, width = self.side + 32, self.side + 64
        if self.largest is not None:
            height, width = self.largest // 4 * 3, self.largest // 8 * 5
        return torch.zeros(2 if self.batches else 1, 3, height, width, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @torch.inference_mode()
    def reference(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs of the original for one image ``(3, H, W)``, with the exported names and shapes."""
        if isinstance(self.module, ExportableClassifier):
            module = self.module
            return {"logits": module.model((image[None] - module.pixel_mean) / module.pixel_std)}
        (output,) = self.original([{"image": image}])
        return _named(output)


def _named(output: Mapping[str, Any]) -> dict[str, Tensor]:
    if "sem_seg" in output:
        return {"sem_seg": output["sem_seg"][None]}
    instances = output["instances"]
    found = {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    return {**found, "masks": instances.pred_masks} if instances.has("pred_masks") else found


def exportable(model: nn.Module, cfg: DictConfig | None = None) -> Exportable:
    """A model's exportable form.

    Args:
        model: a GeneralizedRCNN, a DINODetector, a Segmentor or a PIIPClassifier, in eval mode.
        cfg: its config, which says how a classifier's images are normalised; ImageNet's way without.

    Raises:
        ExportError: it is another model, or has a part that cannot be exported.
    """
    module: ExportableRCNN | ExportableDINO | ExportableSegmentor | ExportableClassifier
    batches, smallest, largest = True, 1, None
    if isinstance(model, GeneralizedRCNN):
        module, batches = ExportableRCNN(model), False
        largest = model.backbone.padding_constraints.get("square_size", 0) or None
    elif isinstance(model, DINODetector):
        module = ExportableDINO(model)
    elif isinstance(model, Segmentor):
        module = ExportableSegmentor(model)
        smallest = module.smallest
    elif isinstance(model, PIIPClassifier):
        loader = {} if cfg is None else cfg.dataloader.test
        mean, std = loader.get("mean", IMAGENET_DEFAULT_MEAN), loader.get("std", IMAGENET_DEFAULT_STD)
        module = ExportableClassifier(model, list(mean), list(std))
    else:
        raise ExportError(
            f"the model is a {type(model).__name__}: expected a GeneralizedRCNN, a DINODetector, a Segmentor "
            "or a PIIPClassifier"
        )
    sides = [part.input_size for part in model.modules() if isinstance(part, PIIP)]
    return Exportable(
        module=module.eval().to(next(model.parameters()).device),
        original=model,
        side=max(sides, default=_FALLBACK_SIDE),
        batches=batches,
        smallest=smallest,
        largest=largest,
        input_format=getattr(model, "input_format", "RGB"),
    )


def load_exportable(cfg: DictConfig, weights: str) -> Exportable:
    """Build a config's model, load its weights and make it exportable.

    Raises:
        ExportError: it cannot be.
        ValueError, FileNotFoundError: the weights do not fit or are not there.
    """
    follow_weights(cfg, weights)
    model = build_model(cfg).eval().requires_grad_(False)
    Checkpointer(model).load(weights)
    return exportable(model, cfg)
