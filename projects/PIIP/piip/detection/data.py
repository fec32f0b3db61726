"""Training data that depend on seed and iteration only, and datasets that say what is wrong with them."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

_COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_STREAMS = 2**32  # distinct streams of random numbers a seed is mixed into


def mix_seed(seed: int, *numbers: int) -> int:
    """A seed in [0, 2**32) that depends on all arguments, for streams that must not resemble one another."""
    # The count is there because SeedSequence takes [1] and [1, 0] for the same.
    return int(np.random.SeedSequence([seed % _STREAMS, len(numbers), *numbers]).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices) in this process. `seed` is in [0, 2**32)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def register_coco(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    metadata: dict[str, Any] | None = None,
) -> None:
    """Register a COCO-format dataset under `name`; a second call with the same name replaces the first.

    LazyConfig files run each time they are loaded, so registering must not fail the second time as
    Detectron2's does.

    Args:
        name: what configs call the dataset.
        json_file: its annotations, in COCO's instances format.
        image_root: the folder that its file names are relative to.
        metadata: more of what Detectron2 should know about it, such as "thing_classes", "thing_colors" and
            "thing_dataset_id_to_contiguous_id"; without it classes are known once the annotations are read.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, metadata or {}, os.fspath(json_file), os.fspath(image_root))


def dataset_root() -> Path:
    """Where datasets are: `DETECTRON2_DATASETS`, or `datasets` in the working folder, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def _what_is_not_coco(path: Path) -> str:
    """What keeps a file from being COCO instance annotations; empty where nothing obvious does."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"it is not JSON ({error})"
    if not isinstance(content, dict):
        return f"its top level is a {type(content).__name__}, expected an object"
    for section, keys in _COCO_KEYS.items():
        entries = content.get(section)
        if not isinstance(entries, list):
            return f"it has no list '{section}'"
        for position, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                return f"{section}[{position}] lacks {', '.join(missing)}"
    known = {category["id"] for category in content["categories"]}
    for position, entry in enumerate(content["annotations"]):
        if entry["category_id"] not in known:
            return f"annotations[{position}] has category_id {entry['category_id']}, not among the categories"
    return ""


def dataset_dicts(names: str | Sequence[str], *, filter_empty: bool = True) -> list[dict[str, Any]]:
    """The records of registered datasets, in Detectron2's standard format.

    Args:
        names: one registered name or several.
        filter_empty: leave out images without annotations.

    Raises:
        KeyError: a name is not registered.
        FileNotFoundError: the annotation file of a dataset is missing.
        ValueError: the annotation file is not COCO instance annotations, or has no image to use.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in DatasetCatalog:
            raise KeyError(
                f"dataset '{name}' is not registered: register_coco(name, json_file, image_root) does it"
            )
        path = Path(MetadataCatalog.get(name).get("json_file", ""))
        if path.name and not path.is_file():
            raise FileNotFoundError(
                f"annotation file {path} of dataset '{name}' does not exist: "
                "put the dataset there, or set DETECTRON2_DATASETS to the folder that holds it"
            )
    try:
        records: list[dict[str, Any]] = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        if any(
            "bbox" not in annotation for record in records for annotation in record.get("annotations", ())
        ):
            raise KeyError("bbox")  # Detectron2 would fail on it in the middle of training
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        for path in (Path(MetadataCatalog.get(name).get("json_file", "")) for name in names):
            reason = _what_is_not_coco(path) if path.is_file() else ""
            if reason:
                raise ValueError(f"{path} is not a COCO annotation file: {reason}") from error
        raise ValueError(
            f"dataset {', '.join(names)} cannot be used: {error or type(error).__name__}"
        ) from error
    return records


Draw = tuple[int, int]
"""Index into the dataset, and the number of this draw since training began (over all ranks)."""


class BatchSampler(Sampler[list[Draw]]):
    """Endless batches of shuffled indices for one rank, from any batch onwards.

    The stream of shuffles is dealt to the ranks in turn. With `wide` given, batches hold only wide or only
    tall images, as Detectron2's aspect-ratio grouping does. Replaying the stream up to `start` costs
    microseconds a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        wide: Sequence[bool] | None = None,
    ) -> None:
        """
        Args:
            num_images: size of the dataset.
            batch_size: images a batch on this rank.
            seed: of the shuffles, the same on all ranks.
            start: number of the first batch to produce.
            rank, world_size: this process among all that train.
            wide: for each image whether it is wider than tall; None for no grouping.
        """
        self.num_images, self.batch_size, self.seed, self.start = num_images, batch_size, seed, start
        self.rank, self.world_size, self.wide = rank, world_size, wide

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        shuffles = (torch.randperm(self.num_images, generator=generator).tolist() for _ in itertools.count())
        stream = zip(itertools.chain.from_iterable(shuffles), itertools.count(), strict=False)
        return itertools.islice(stream, self.rank, None, self.world_size)

    def _batches(self) -> Iterator[list[Draw]]:
        groups: dict[bool, list[Draw]] = {False: [], True: []}
        for draw in self._draws():
            group = groups[self.wide is not None and self.wide[draw[0]]]
            group.append(draw)
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self._batches(), self.start, None)


class _SeededSamples(Dataset[dict[str, Any]]):
    """Records through a mapper whose random numbers depend on the seed and the number of the draw only."""

    def __init__(
        self, records: Dataset[dict[str, Any]], mapper: Callable[[dict[str, Any]], dict[str, Any]], seed: int
    ) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, number = draw
        seed_all(mix_seed(self.seed, number))
        return self.mapper(self.records[index])


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group: only the training process should answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_list(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch


class TrainLoader:
    """Endless training batches in which batch n depends on the seed and n only.

    That holds with any number of workers, so a run that stopped goes on exactly where it was: `set_position`
        before the
    first batch. A batch is the list of what `mapper` returned, as Detectron2's models take it. Without
    workers, loading reseeds this process's generators; the trainer seeds them again before each step.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        *,
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        total_batch_size: int,
        num_workers: int = 0,
        aspect_ratio_grouping: bool = True,
    ) -> None:
        """
        Args:
            dataset: records in Detectron2's standard format.
            mapper: turns one into what the model takes, such as `DatasetMapper`.
            total_batch_size: images a batch over all processes.
            num_workers: processes that load data; 0 to load in the training process.
            aspect_ratio_grouping: batch wide images with wide ones and tall with tall, which saves padding.

        Raises:
            ValueError: the batch cannot be split evenly over the processes.
        """
        world_size = comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(
                f"total_batch_size {total_batch_size} must be a positive multiple of {world_size} processes"
            )
        self.batch_size = total_batch_size // world_size
        self.num_images = len(dataset)
        self.wide = [r["width"] > r["height"] for r in dataset] if aspect_ratio_grouping else None
        self.records = DatasetFromList(dataset, copy=False)
        self.mapper, self.num_workers = mapper, num_workers
        self.seed, self.start = 0, 0

    def set_position(self, seed: int, iteration: int) -> None:
        """Make the next iteration begin with batch number `iteration` of the run seeded by `seed`."""
        self.seed, self.start = seed, iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        sampler = BatchSampler(
            self.num_images,
            self.batch_size,
            seed=mix_seed(self.seed),
            start=self.start,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            wide=self.wide,
        )
        return iter(
            DataLoader(
                _SeededSamples(self.records, self.mapper, self.seed),
                batch_sampler=sampler,
                num_workers=self.num_workers,
                collate_fn=_as_list,
                worker_init_fn=_ignore_interrupt,
            )
        )
