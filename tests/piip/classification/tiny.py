"""A classifier, data and a trainer small enough for tests of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from piip import PIIP, InteractionConfig
from piip.branches import ViTBranch
from piip.classification.classifier import PIIPClassifier
from piip.classification.data import Processes, TrainBatches
from piip.classification.optim import FasterBesidesBranches
from piip.classification.trainer import Plan, Trainer
from piip.engine.ema import AverageWeights

CLASSES = ("ash", "birch", "cedar")
SIDE = 32


def write_images(root: Path, split: str, number: int) -> Path:
    """`number` noisy images of classes that differ in brightness, in a folder a class."""
    for index in range(number):
        label = index % len(CLASSES)
        rng = np.random.default_rng([index, *split.encode()])
        pixels = rng.integers(0, 60, (SIDE, SIDE + 8, 3)) + 80 * label
        folder = root / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")
    return root / split


def classifier(*, separate: bool = False, drop_path: float = 0.2) -> PIIPClassifier:
    """Two branches, at 16 and 32 px; a head each, or one on the merged map."""
    piip = PIIP(
        [
            ViTBranch(
                embed_dim=32,
                depth=2,
                num_heads=2,
                patch_size=8,
                pretrain_image_size=size,
                drop_path_rate=drop_path,
                class_token=separate,
            )
            for size in (16, 32)
        ],
        [16, 32],
        num_interactions=2,
        interaction=InteractionConfig(num_heads=2, drop_path_rate=drop_path),
        merge=None if separate else "linear",
    )
    return PIIPClassifier(piip, len(CLASSES))


def loader(root: Path, split: str, batch_size: int, **options: Any) -> Any:
    training = split == "train"
    augmentation = {"auto_augment": "rand-m9-mstd0.5-inc1"} if training else {"crop_pct": 1.0}
    return create_loader(
        create_dataset("", root=str(root), split=split),
        SIDE,
        batch_size,
        use_prefetcher=False,
        **{"is_training": training, "num_workers": 0, **augmentation, **options},
    )


def trainer(
    root: Path,
    output: Path,
    *,
    batch_size: int = 4,
    processes: Processes | None = None,
    mixing: float = 1.0,
    drop_path: float = 0.2,
    ema: bool = True,
    seed: int = 3,
    num_workers: int = 0,
    **plan: Any,
) -> Trainer:
    """One epoch of three iterations where the set has 12 images."""
    torch.manual_seed(seed)
    model = classifier(drop_path=drop_path)
    batches = TrainBatches(
        loader(root, "train", batch_size, num_workers=num_workers), seed=seed, processes=processes
    )
    settings = Plan(**{"epochs": 2, "output_dir": str(output), "log_period": 1, **plan})
    optimizer = create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.1, param_group_fn=FasterBesidesBranches(lr=1e-3)
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=settings.epochs,
        warmup_epochs=1,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    return Trainer(
        model,
        batches,
        mixup=Mixup(0.8, 1.0, prob=mixing, label_smoothing=0.1, num_classes=len(CLASSES)),
        loss=SoftTargetCrossEntropy(),
        optimizer=optimizer,
        scheduler=scheduler,
        plan=settings,
        ema=AverageWeights(model, decay=0.9) if ema else None,
        seed=seed,
        processes=processes,
        classes=list(CLASSES),
    )
