"""Top-1 and top-5 of a classifier."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.utils import accuracy
from torch import Tensor, nn

from ..numerics import autocast
from .data import Batch, Processes

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    precision: str = "float32",
    processes: Processes | None = None,
) -> dict[str, float]:
    """Measure a classifier, on the device it is on.

    Args:
        model: from images to logits; its mode is left as it was.
        batches: of this process.
        precision: "float32" or "bfloat16" (autocast).
        processes: those that evaluate together, each its own batches.

    Returns:
        "top1" and "top5" in percent, "loss" (cross-entropy, no smoothing), "images", the number of them.

    Raises:
        ValueError: there are no images.
        FloatingPointError: a logit is infinite or NaN.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    try:
        for images, targets in batches:
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            with autocast(device, precision):
                logits: Tensor = model(images)
            logits = logits.float()
            if not torch.isfinite(logits).all():
                raise FloatingPointError("the model's logits are infinite or NaN: its weights have diverged")
            top1, top5 = accuracy(logits, targets, topk=(1, 5))
            count = len(targets)
            loss = F.cross_entropy(logits, targets)
            sums += torch.stack([top1 * count, top5 * count, loss * count, torch.full_like(loss, count)])
    finally:
        model.train(was_training)
    if processes is not None and processes.count > 1:
        torch.distributed.all_reduce(sums)
    top1_sum, top5_sum, loss_sum, number = sums.tolist()
    if number == 0:
        raise ValueError("the test set has no images")
    return {
        "top1": top1_sum / number,
        "top5": top5_sum / number,
        "loss": loss_sum / number,
        "images": number,
    }
