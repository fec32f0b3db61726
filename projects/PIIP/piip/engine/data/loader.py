"""Data loaders. A training batch depends on seed and iteration only; unusable images are replaced."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import detectron2.data
import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import detection_utils
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from ...images import UnreadableFileError, open_image, printable
from ...seeding import mix_seed, seed_all
from .prefetch import prefetch_to_device
from .workers import START_METHOD, preload, restart_on_worker_death, start_worker

_logger = logging.getLogger("detectron2.piip")


def _read_image(file_name: str, format: str | None = None) -> npt.NDArray[np.uint8]:
    """`detectron2.data.detection_utils.read_image` by the rules of `piip.images`."""
    image = open_image(PathManager.get_local_path(file_name))
    array: npt.NDArray[np.uint8] = detection_utils.convert_PIL_to_numpy(image, format)
    return array


# Where Detectron2's mappers look it up. Its own turns TIFF files twice and makes 16 bits white.
detection_utils.read_image = _read_image


Draw = tuple[int, int]
"""Index into the dataset, and the number of this draw since training began (over all ranks)."""


class BatchSampler(Sampler[list[Draw]]):
    """Endless batches of shuffled indices for one rank, from any batch onwards.

    The shuffled indices are dealt to the ranks in turn. With `wide`, a batch holds only wide or only tall
    images, as with Detectron2's aspect-ratio grouping. Going to batch `start` takes microseconds per batch.
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
        repeats: Sequence[float] | None = None,
    ) -> None:
        """
        Args:
            num_images: size of the dataset.
            batch_size: images per batch on this rank.
            seed: of the shuffles, the same on all ranks.
            start: number of the first batch to produce.
            rank, world_size: this process among all that train.
            wide: for each image whether it is wider than tall; None for no grouping.
            repeats: how often each image comes in an epoch, on average; None for once.
        """
        self.num_images, self.batch_size, self.seed, self.start = num_images, batch_size, seed, start
        self.rank, self.world_size, self.wide = rank, world_size, wide
        self.repeats = None if repeats is None else torch.as_tensor(repeats, dtype=torch.float32)

    def _shuffle(self, generator: torch.Generator) -> list[int]:
        """The images of one epoch."""
        if self.repeats is None:
            return torch.randperm(self.num_images, generator=generator).tolist()
        times = (self.repeats + torch.rand(self.num_images, generator=generator)).floor().long()
        images = torch.arange(self.num_images).repeat_interleave(times)
        return images[torch.randperm(len(images), generator=generator)].tolist()

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        shuffles = (self._shuffle(generator) for _ in itertools.count())
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


Mapper = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the model's input of a record in Detectron2's standard format, such as `DatasetMapper`."""

_SKIPPED = "skipped"  # key of a sample: names of the files that it replaces, with the reasons
_TRIES = 10  # unusable images in a row; beyond that the images are not the cause


def _file(record: dict[str, Any]) -> str:
    return printable(record.get("file_name", "an image without a file name"))


def _reason(record: dict[str, Any], error: Exception) -> str:
    """Why an image cannot be used, on one line."""
    id_ = f"image id {record['image_id']}, " if "image_id" in record else ""
    if isinstance(error, UnreadableFileError):
        return f"{id_}{error.reason}"
    return f"{id_}{type(error).__name__}: {' '.join(str(error).split())}"


class _SeededSamples(Dataset[dict[str, Any]]):
    """Mapped records. The mapper's random numbers depend on the seed and the number of the draw only.

    An image that cannot be used is replaced by another, the choice of which depends on these two as well.
    """

    def __init__(self, records: Dataset[dict[str, Any]], mapper: Mapper, seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, number = draw
        seed_all(mix_seed(self.seed, number))
        skipped: dict[str, str] = {}
        for attempt in range(1, _TRIES + 1):
            record = self.records[index]
            try:
                sample = self.mapper(record)
            except Exception as error:
                name = _file(record)
                skipped[name] = _reason(record, error)
                if attempt == _TRIES:
                    raise ValueError(
                        f"{_TRIES} images in a row cannot be used, lastly {name} ({skipped[name]}): "
                        "look at the data set and at dataloader.train.mapper"
                    ) from error
                replacement = mix_seed(self.seed, number, attempt)
                seed_all(replacement)
                index = replacement % len(self.records)  # type: ignore[arg-type]
            else:
                break
        return {**sample, _SKIPPED: skipped} if skipped else sample


def _as_list(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return batch


class TrainLoader:
    """Endless training batches. Batch n depends on the seed and n only, with any number of workers.

    A run resumes exactly with `set_position` before the first batch. An image that cannot be read is replaced
    by another, counted in `skipped`, and named once in the log. A worker that dies is restarted, and the log
    says so. A batch is the list of the mapper's results, the input of Detectron2's models.
    Without workers, loading reseeds the generators of this process; the trainer seeds them before each step.

    Attributes:
        device: device of the batches. For a GPU, batches of workers are pinned and copied ahead.
    """

    def __init__(
        self,
        dataset: list[dict[str, Any]],
        *,
        mapper: Mapper,
        total_batch_size: int,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        aspect_ratio_grouping: bool = True,
        repeat_threshold: float | None = None,
    ) -> None:
        """
        Args:
            dataset: records in Detectron2's standard format.
            mapper: makes the model's input of a record, such as `DatasetMapper`.
            total_batch_size: images per batch over all ranks.
            num_workers: processes that load data; 0 to load in the training process.
            prefetch_factor: batches that each of them reads ahead.
            aspect_ratio_grouping: batch wide images with wide ones and tall with tall, which saves padding.
            repeat_threshold: images of classes that are in a smaller share of the images come more often,
                sqrt(threshold / share) times per epoch (LVIS, arXiv 1908.03195, section 5); None for once.

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
        self.repeats = (
            None
            if repeat_threshold is None
            else RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, repeat_threshold)
        )
        self.records = DatasetFromList(dataset, copy=False)
        self.mapper, self.num_workers, self.prefetch_factor = mapper, num_workers, prefetch_factor
        self.device = torch.device("cpu")
        self.seed, self.start = 0, 0
        self.skipped: dict[str, str] = {}

    def set_position(self, seed: int, iteration: int) -> None:
        """Make the next iteration begin with batch number `iteration` of the run seeded by `seed`."""
        self.seed, self.start = seed, iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches: Iterator[list[dict[str, Any]]]
        if self.num_workers:
            preload(__name__, type(self.mapper).__module__)
            ahead = self.num_workers * self.prefetch_factor
            batches = restart_on_worker_death(self._load, self.start, self._images_of, ahead)
            if self.device.type == "cuda":
                batches = prefetch_to_device(batches, self.device)
        else:
            batches = iter(self._load(self.start))
        for batch in batches:
            yield self._note_skipped(batch)

    def _sampler(self, start: int) -> BatchSampler:
        return BatchSampler(
            self.num_images,
            self.batch_size,
            seed=mix_seed(self.seed),
            start=start,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            wide=self.wide,
            repeats=self.repeats,
        )

    def _load(self, start: int, one_by_one: bool = False) -> DataLoader[Any]:
        """Batches from number `start` on; with `one_by_one`, none is loaded ahead."""
        ahead = self.num_workers > 0
        workers, prefetch = (1, 1) if one_by_one else (self.num_workers, self.prefetch_factor)
        return DataLoader(
            # the wrapper lets mappers be lambdas, as in the rest of a LazyConfig
            _SeededSamples(self.records, PicklableWrapper(self.mapper) if ahead else self.mapper, self.seed),
            batch_sampler=self._sampler(start),
            num_workers=workers,
            collate_fn=_as_list,
            worker_init_fn=start_worker,
            multiprocessing_context=START_METHOD if ahead else None,
            prefetch_factor=prefetch if ahead else None,
            pin_memory=ahead and self.device.type == "cuda",
            generator=torch.Generator(),  # for DataLoader's seed: the training step has the global one
        )

    def _images_of(self, number: int) -> list[str]:
        """Files of a batch."""
        draws = next(iter(self._sampler(number)))
        return [_file(self.records[index]) for index, _ in draws]

    def _note_skipped(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Log each file that cannot be used once; workers report them in their samples."""
        for sample in batch:
            for name, reason in sample.pop(_SKIPPED, {}).items():
                if name not in self.skipped:
                    self.skipped[name] = reason
                    _logger.warning(f"image {len(self.skipped)} that cannot be used, {name}: {reason}")
        return batch


class _NamesItsFile:
    """A mapper whose errors name the image."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.mapper(record)
        except Exception as error:
            raise ValueError(
                f"{_file(record)} cannot be evaluated ({_reason(record, error)}): mend it, or take it out of "
                "the annotations"
            ) from error


def evaluation_loader(
    dataset: list[dict[str, Any]], *, mapper: Mapper, num_workers: int = 0
) -> DataLoader[Any]:
    """Detectron2's loader of a test set, one image per batch.

    An image that cannot be used is an error that names it: leaving it out would change the metrics.

    Args:
        dataset: records in Detectron2's standard format.
        mapper: makes the model's input of a record.
        num_workers: processes that load data; 0 to load in this one.
    """
    loader: DataLoader[Any] = detectron2.data.build_detection_test_loader(
        dataset, mapper=_NamesItsFile(mapper), num_workers=num_workers
    )
    if num_workers:
        preload(__name__, type(mapper).__module__)
        loader.multiprocessing_context = START_METHOD
        loader.worker_init_fn = start_worker
    return loader
