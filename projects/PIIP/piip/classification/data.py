"""Batches of timm's loaders whose order and augmentations depend on seed and position only."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..images import UnreadableFileError, as_rgb, open_image, printable
from ..seeding import mix_seed, seed_all
from ..workers import start_worker

__all__ = [
    "Batch",
    "Processes",
    "TrainBatches",
    "class_names",
    "evaluation_batches",
    "leave_out_strays",
    "warn_of_shared_images",
]

_logger = logging.getLogger("piip.classification")
_NAMED = 3  # folders named in a line
_TRIES = 10  # images in a row that may be unusable: beyond that it is not the images

Batch = tuple[Tensor, Tensor]
"""Normalised images ``(B, 3, H, W)`` float32, and their classes ``(B,)`` int64."""


@dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes.

    Attributes:
        rank: from 0.
        count: the world size.
    """

    rank: int = 0
    count: int = 1


def _load(dataset: Any, index: int) -> Any:
    """An item of a timm data set, its image read by the rules of `piip.images`."""
    reader = dataset.reader
    # timm would open the path itself, and a named pipe would block
    source, target, *_ = reader.samples[index] if isinstance(reader, ReaderImageFolder) else reader[index]
    try:
        image = open_image(source)
    except UnreadableFileError as error:
        raise UnreadableFileError(dataset.filename(index), error.reason) from error
    target = -1 if target is None else target
    try:
        transformed = image if dataset.transform is None else dataset.transform(image)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UnreadableFileError(dataset.filename(index), reason) from error
    return transformed, target if dataset.target_transform is None else dataset.target_transform(target)


class _Seeded(Dataset[Any]):
    """A timm data set to train on, whose random augmentations depend on seed, epoch and index only.

    The next image takes the place of one that cannot be read. The log names it once: `named` (N,) keeps for
    which images it did, in memory that the workers of all epochs share.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, named: Tensor) -> None:
        self.dataset, self.seed, self.named = dataset, seed, named

    def __getitem__(self, index: int) -> Any:
        seed_all(mix_seed(self.seed, index))
        for attempt in range(1, _TRIES + 1):
            try:
                return _load(self.dataset, index)
            except UnreadableFileError as error:
                if not self.named[index]:
                    self.named[index] = True
                    _logger.warning(f"an image cannot be used, the next takes its place: {error}")
                if attempt == _TRIES:
                    raise ValueError(f"{_TRIES} images in a row cannot be used, lastly {error}") from error
                index = (index + 1) % len(self.dataset)  # type: ignore[arg-type]


class _Strict(Dataset[Any]):
    """A timm data set to measure on: an image that cannot be read is an error, and none stands in for it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return _load(self.dataset, index)
        except UnreadableFileError as error:
            raise ValueError(
                f"{printable(self.dataset.filename(index))} cannot be evaluated ({error.reason}): mend it or "
                "take it out of the data set"
            ) from error


class _RgbFirst:
    """A transform for images of a stream, which timm decodes."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(
            as_rgb(image, "an image of the stream") if isinstance(image, Image.Image) else image
        )


def _read_by_our_rules(stream: Any) -> None:
    """Let a stream of timm hand over images as they are stored, and convert them here."""
    if not isinstance(stream.transform, _RgbFirst):
        stream.reader.input_img_mode = None
        stream.transform = _RgbFirst(stream.transform)


def _start_worker(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    np.random.seed(info.seed % 2**32)  # PyTorch seeds the other generators
    start_worker(worker)


def _rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], **order: Any) -> DataLoader[Any]:
    """timm's loader for another data set or another order; its workers live for one epoch."""
    return DataLoader(
        dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=_start_worker,
        **order,
    )


def _plain(loader: Any) -> DataLoader[Any]:
    if not isinstance(loader, DataLoader):
        raise ValueError(
            "the loader has timm's prefetcher, whose draws cannot be repeated: set use_prefetcher=False"
        )
    return loader


class TrainBatches:
    """Epochs of training batches. Batch b of epoch e depends on the seed, e and b only: runs resume exactly.

    Data sets with random access (folders, those of Hugging Face) are shuffled and dealt to the ranks in turn:
    the ranks together see the batches of a single process, with the same augmentations. Streams (tar shards,
    ``hfids/``) are dealt shard by shard, as in timm; resuming within an epoch reads it from its beginning.

    Args:
        loader: result of ``timm.data.create_loader``, without its prefetcher.
        seed: seed of the run.
        processes: rank and world size.

    Raises:
        ValueError: the loader has timm's prefetcher, an epoch has no batch, or a stream has no worker.
    """

    def __init__(self, loader: DataLoader[Any], *, seed: int = 0, processes: Processes | None = None) -> None:
        self.loader, self.seed, self.processes = _plain(loader), seed, processes or Processes()
        self.dataset = cast(Any, loader.dataset)
        self.is_stream = isinstance(self.dataset, IterableDataset)
        if self.is_stream:
            _read_by_our_rules(self.dataset)
        else:
            self._named = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()
        assert loader.batch_size is not None
        self.batch_size = loader.batch_size
        if self.is_stream and loader.num_workers == 0:
            raise ValueError(
                "the workers shuffle a stream, new ones in each epoch: num_workers must be at least 1"
            )
        if len(self) == 0:
            raise ValueError(
                f"the training set has {len(self.dataset)} images, fewer than a batch of "
                f"{self.batch_size * self.processes.count}: make the batch smaller"
            )

    def __len__(self) -> int:
        """Batches per epoch. Images that do not fill a batch come in other epochs."""
        if self.is_stream:
            return len(self.loader)
        number: int = len(self.dataset)
        return number // (self.batch_size * self.processes.count)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on; both count from 0."""
        if self.is_stream:
            self.dataset.set_epoch(epoch)
            generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, self.processes.rank))
            whole = _rebuilt(
                self.loader, self.dataset, batch_size=self.batch_size, drop_last=True, generator=generator
            )
            for number, batch in enumerate(whole):
                if start <= number < len(self):
                    yield batch
            return
        seeded = _Seeded(self.dataset, mix_seed(self.seed, epoch), self._named)
        yield from _rebuilt(self.loader, seeded, batch_sampler=self._indices(epoch)[start:])

    def _indices(self, epoch: int) -> list[list[int]]:
        """The images of each batch of an epoch."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        own = order[self.processes.rank :: self.processes.count]
        return [own[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]

    def files(self, epoch: int, batch: int) -> list[str]:
        """Names of the images of a batch; empty for streams."""
        if self.is_stream:
            return []
        return [str(self.dataset.filename(index)) for index in self._indices(epoch)[batch]]


def evaluation_batches(loader: DataLoader[Any], processes: Processes | None = None) -> DataLoader[Any]:
    """Batches of a test set, with each image once over all ranks.

    Args:
        loader: result of ``timm.data.create_loader``, without its prefetcher.
        processes: rank and world size. Streams are dealt shard by shard, as in timm: an image comes exactly
            once only if the number of shards is a multiple of the number of ranks.
    """
    own, plain = processes or Processes(), _plain(loader)
    if isinstance(plain.dataset, IterableDataset):
        _read_by_our_rules(plain.dataset)
        return _rebuilt(plain, plain.dataset, batch_size=plain.batch_size)
    indices = range(own.rank, len(plain.dataset), own.count)  # type: ignore[arg-type]
    return _rebuilt(plain, _Strict(plain.dataset), batch_size=plain.batch_size, sampler=indices)


def leave_out_strays(dataset: Any) -> None:
    """Take hidden files, and those in hidden folders or in none, out of a timm data set of folders, in place.

    timm makes a class of every folder with images, ``.ipynb_checkpoints`` too. The log says how many are left
    out, and which classes have several folders.

    Raises:
        ValueError: nothing is left, or the names of the classes begin with a byte order mark.
    """
    reader = dataset.reader
    if not isinstance(reader, ReaderImageFolder):
        return
    if any(name.startswith("\ufeff") for name in reader.class_to_idx):
        raise ValueError("the class map begins with a byte order mark: save it as UTF-8 without one")

    def is_stray(path: str) -> bool:
        below = os.sep + path[len(str(reader.root)) :].lstrip(os.sep)
        return below.count(os.sep) == 1 or f"{os.sep}." in below or f"{os.sep}__MACOSX{os.sep}" in below

    kept = [sample for sample in reader.samples if not is_stray(sample[0])]
    if strays := [sample for sample in reader.samples if is_stray(sample[0])]:
        _logger.warning(
            f"{reader.root}: left out {len(strays)} images that are hidden or in no class's folder, such as "
            f"{strays[0][0]}"
        )
        if not kept:
            raise ValueError(f"{reader.root} has no images in folders of classes")
        gone = {target for _, target in strays} - {target for _, target in kept}
        names = {number: name for name, number in reader.class_to_idx.items() if number not in gone}
        numbers = {old: new for new, old in enumerate(sorted(names))}
        reader.class_to_idx = {names[old]: new for old, new in numbers.items()}
        reader.samples = [(path, numbers[target]) for path, target in kept]
    folders = defaultdict(set)
    for path, target in reader.samples:
        folders[target].add(os.path.dirname(path))
    for name, number in reader.class_to_idx.items():
        if len(shared := sorted(folders[number])) > 1:
            _logger.warning(f"class '{name}' is that of several folders: {', '.join(shared[:_NAMED])}")


def warn_of_shared_images(train: Any, test: Any) -> None:
    """Say how many images of a test set are trained on: timm takes a whole folder that has no splits."""
    if isinstance(train.reader, ReaderImageFolder) and isinstance(test.reader, ReaderImageFolder):
        trained_on = {path for path, _ in train.reader.samples}
        if shared := sum(path in trained_on for path, _ in test.reader.samples):
            _logger.warning(
                f"{shared} of the {len(test.reader.samples)} test images in {test.reader.root} are used for "
                "training, too: the figures say nothing of other images (the folder needs train/ and val/)"
            )


def class_names(dataset: Any) -> list[str]:
    """Names of a timm data set's classes in the order of their numbers; empty where it does not tell.

    Raises:
        ValueError: several names have one number.
    """
    numbers: dict[str, int] = getattr(dataset.reader, "class_to_idx", None) or {}
    names = sorted(numbers, key=numbers.__getitem__)
    if [numbers[name] for name in names] != list(range(len(names))):
        raise ValueError(f"the data set's {len(names)} classes are not numbered from 0 to {len(names) - 1}")
    return names
