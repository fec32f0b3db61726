"""The quick models with two branches of one block, whose random weights find many things."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from piip import PIIP, InteractionConfig
from piip.classification.classifier import PIIPClassifier
from piip.engine.config import load_config
from piip.engine.model import build_model
from piip.export.model import Exportable, exportable

from ..models import randomise, tiny_branch
from ..tiny_config import REPOSITORY

CONFIGS = {
    "rcnn": "mask_rcnn_piip_128_96_64_shapes",
    "cascade": "cascade_mask_rcnn_piip_128_96_64_shapes",
    "dino": "dino_piip_128_96_64_shapes",
    "segmentor": "upernet_piip_128_96_64_shapes",
}


def small_config(task: str) -> DictConfig:
    cfg = load_config(str(REPOSITORY / "configs/quick" / f"{CONFIGS[task]}.py"))
    piip = cfg.model.backbone.piip
    piip.branches, piip.image_sizes = [piip.branches[0], piip.branches[2]], [64, 128]
    piip.num_interactions = 1
    for branch in piip.branches:
        branch.depth = 1
    if task in ("rcnn", "cascade"):
        cfg.model.proposal_generator.pre_nms_topk = [60, 60]
        cfg.model.proposal_generator.post_nms_topk = [40, 40]
    if task == "dino":
        cfg.model.head.encoder_layers = 1
        cfg.model.head.decoder_layers = 2
    return cfg


def small_model(task: str) -> nn.Module:
    """Weights are drawn, so that every parameter shows, and detectors find much."""
    torch.manual_seed(0)
    if task == "classifier":
        piip = PIIP(
            [tiny_branch(64, 1), tiny_branch(32, 1)],
            (32, 64),
            num_interactions=1,
            interaction=InteractionConfig(num_heads=4),
            merge="linear",
        )
        return randomise(PIIPClassifier(piip, 5)).eval()
    model = build_model(small_config(task)).eval()
    return randomise(model) if task in ("dino", "segmentor") else _undecided(model)


@torch.no_grad()
def _undecided(model: nn.Module) -> nn.Module:
    """Show vectors and the last layers only: an R-CNN randomised throughout is sure of the background."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "box_predictor" in name or "mask_head.predictor" in name:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def small(task: str) -> Exportable:
    return exportable(small_model(task))


def image(height: int = 128, width: int = 128, seed: int = 0) -> Tensor:
    """Rectangles over noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (3, height, width), dtype=torch.uint8, generator=generator)
    for _ in range(6):
        top, left = (int(torch.randint(0, n - 20, (), generator=generator)) for n in (height, width))
        colour = torch.randint(60, 256, (3, 1, 1), dtype=torch.uint8, generator=generator)
        pixels[:, top : top + 30, left : left + 24] = colour
    return pixels
