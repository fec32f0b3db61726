"""Prediction with a LazyConfig's model on images, folders, globs, videos, cameras and streams."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from omegaconf import DictConfig
from tqdm import tqdm

from ...backbone import PIIP
from ...images import Image, write_image
from ...numerics import autocast
from ..checkpoints.checkpoint import METADATA, Checkpointer
from ..data.prefetch import prefetch
from ..evaluation import with_tta
from ..model import build_model, for_prediction
from ..renderer import Renderer, unused_name
from .sinks import JsonWriter, VideoWriter
from .sources import (
    Frame,
    LiveFrames,
    Skipped,
    expand_inputs,
    is_stream,
    open_stream,
    read_files,
)

__all__ = [
    "LARGEST_PICTURE",
    "Predictor",
    "Predicts",
    "Report",
    "expand_inputs",
    "predict",
]

_DRAWN_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
)  # written as they came, the others as .png

_LARGEST = 4  # times the pixels of the square that a model is made for; attention grows with their square

_DRAWN_BEHIND = 2  # pictures that wait to be drawn while the model goes on


LARGEST_PICTURE = 12_000_000
"""Pixels drawn: drawing takes some hundred bytes a pixel."""


class Predicts(Protocol):
    """A trained model that takes images of any size, such as a :class:`Predictor`."""

    def batch(
        self, images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """What it says of some images, on the CPU, each for one of the heights and widths."""


class Predictor:
    """A trained model that takes images of any size, resized as the config's test set is."""

    def __init__(self, cfg: DictConfig, weights: str) -> None:
        """
        Args:
            cfg: a LazyConfig with `model`, `dataloader.test` and `train`.
            weights: a checkpoint of the model, see :class:`Checkpointer`.
        """
        self.model = build_model(cfg).eval()
        loaded = Checkpointer(self.model).load(weights)
        self.augmentations = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentations))
        self.device, self.precision = cfg.train.device, cfg.train.get("eval_precision", "float32")
        self.metadata = _metadata(cfg, loaded.get(METADATA))
        self.model = with_tta(cfg, for_prediction(cfg, self.model))
        sizes = [max(module.image_sizes) for module in self.model.modules() if isinstance(module, PIIP)]
        self.side = max(sizes, default=None)

    @property
    def autocast(self) -> torch.autocast:
        """A context for one thread: an object that several enter mixes up what they return to."""
        return autocast(self.device, self.precision)

    def __call__(self, image: Image, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """What the model says of one image, on the CPU.

        Args:
            image: the image.
            size: height and width that the answer is for; None for the image's own.

        Raises:
            ValueError: the config does not resize, and the image is far larger than the model is made for.
        """
        (output,) = self.batch([image], None if size is None else [size])
        return output

    @torch.inference_mode()
    def batch(
        self, images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """What the model says of some images, on the CPU.

        Only images that reach the model in one size go through it together: others would be padded, and
        padding changes what a PIIP computes.

        Args:
            images: the images.
            sizes: height and width that each answer is for; None for the images' own.

        Raises:
            ValueError: as for one image.
        """
        inputs = [
            self.prepare(image, size)
            for image, size in zip(images, sizes or [image.shape[:2] for image in images], strict=True)
        ]
        outputs: list[dict[str, Any]] = []
        with self.autocast:
            for _, run in itertools.groupby(inputs, key=lambda prepared: prepared["image"].shape):
                outputs += self.model(list(run))
        return [{key: value.to("cpu") for key, value in output.items()} for output in outputs]

    def prepare(self, image: Image, size: tuple[int, ...]) -> dict[str, Any]:
        """An image as Detectron2's models take it: resized, with the size that the answer is for.

        Raises:
            ValueError: as above.
        """
        height, width = image.shape[:2]
        if self.model.input_format == "RGB":
            image = np.ascontiguousarray(image[:, :, ::-1])
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        resized_height, resized_width = augmented.image.shape[:2]
        if self.side is not None and resized_height * resized_width > _LARGEST * self.side**2:
            raise ValueError(
                f"an image of {width}x{height} px reaches the model as {resized_width}x{resized_height}, far "
                f"beyond the {self.side}x{self.side} px it is made for: add a resize to "
                "dataloader.test.mapper.augmentations, such as piip.engine.resize.ResizeToFit"
            )
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": size[0], "width": size[1]}


def _metadata(cfg: DictConfig, kept: dict[str, Any] | None) -> Metadata:
    """Names of the classes: those a checkpoint was trained on, or else those of the config's test set."""
    if kept:
        return Metadata(**kept)
    names = cfg.dataloader.test.dataset.names
    name = names if isinstance(names, str) else names[0]
    metadata = MetadataCatalog.get(name)
    if not any(
        metadata.get(key) for key in ("thing_classes", "stuff_classes")
    ):  # a dataset of the user's own: its annotations name the classes
        DatasetCatalog.get(name)
    return metadata


@dataclass
class Report:
    """What became of the inputs.

    Attributes:
        drawn: images and frames drawn.
        skipped: files that could not be read, and why.
        passed_over: frames of a live source that came while the model was busy.
    """

    drawn: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    passed_over: int = 0


class _Results:
    """Draws and writes, in a thread of its own and in order, what a model says of images and frames."""

    def __init__(self, renderer: Renderer, output: Path, records: JsonWriter) -> None:
        self.renderer, self.output, self.records = renderer, output, records
        self._names: set[str] = set()
        self._video: VideoWriter | None = None
        self._source: Path | str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")
        self._waiting: deque[Future[None]] = deque()
        output.mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, output: dict[str, Any], image_id: int) -> None:
        """Have one result drawn and written; waits where drawing lags behind."""
        while len(self._waiting) >= _DRAWN_BEHIND:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, frame, output, image_id))

    def close(self) -> None:
        """Wait for the last results, and finish the video. What went wrong meanwhile is raised here."""
        self._thread.shutdown()
        if self._video is not None:
            self._video.close()
        while self._waiting:
            self._waiting.popleft().result()

    def _target(self, source: Path | str, suffix: str) -> Path:
        """A file in the output folder named after the source, numbered where the name is taken."""
        stem = f"camera-{source}" if str(source).isdecimal() else Path(source).stem
        return self.output / unused_name(stem, suffix, self._names)

    def _write(self, frame: Frame, output: dict[str, Any], image_id: int) -> None:
        origin: dict[str, Any] = {"file_name": str(frame.source)}
        if frame.moment is not None:
            origin["frame"] = frame.moment.number
            if frame.moment.length is None:
                origin["seconds"] = round(frame.moment.seconds, 3)
        self.records.write({**record, **origin} for record in self.renderer.records(output, image_id))
        drawn = self.renderer.draw(frame.image, output)
        if frame.moment is None:
            self._picture(Path(frame.source), frame.image, drawn, output)
            return
        if self._video is None or self._source != frame.source or frame.moment.number == 0:
            if self._video is not None:
                self._video.close()
            self._video = VideoWriter(self._target(frame.source, ".mp4"), frame.moment.rate)
            self._source = frame.source
        self._video.write(drawn, frame.moment.seconds)

    def _picture(self, source: Path, image: Image, drawn: Image, output: dict[str, Any]) -> None:
        suffix = source.suffix.lower()
        target = self._target(source, suffix if suffix in _DRAWN_SUFFIXES else ".png")
        write_image(target, drawn)
        self.renderer.save(output, target, (image.shape[0], image.shape[1]))


def _open(inputs: Sequence[str]) -> tuple[Generator[Frame | Skipped, None, None] | LiveFrames, int | None]:
    """What the inputs hold, and the number of files; None for a stream."""
    streams = [name for name in inputs if is_stream(name)]
    if not streams:
        files = expand_inputs(inputs)
        return prefetch(read_files(files)), len(files)
    if len(inputs) > 1:
        raise ValueError(f"{streams[0]} may have no end: give a camera or stream as the only input")
    return open_stream(streams[0]), None


def predict(
    predictor: Predicts,
    renderer: Renderer,
    inputs: Iterable[str],
    output: Path,
    *,
    batch: int = 1,
    save_json: Path | None = None,
) -> Report:
    """Draw what a model finds in images, folders, globs, videos, cameras and streams, and write its
    predictions.

    Files are decoded in one thread and drawn in another while the model runs; no more than a few images are
    in memory, however long a video is. A file that is missing or cannot be decoded is reported and skipped.
    Of a live source the newest frame is taken, others are passed over; Ctrl-C ends it, and what was written
    is whole.

    The predictions are a list of the renderer's records; `image_id` counts images and frames from 1,
    "file_name" says of which input they are, "frame", from 0, of which frame of a video or stream, "seconds"
    when a live source gave it.

    Args:
        predictor: the model.
        renderer: what to make of its output, such as `piip.detection.predict.InstanceRenderer`.
        inputs: names of files, folders and globs; or one number of a camera or address of a stream.
        output: folder for the pictures and videos, made if missing.
        batch: images or frames that go through the model together; a live source gives one at a time.
        save_json: file for the predictions, see :class:`piip.engine.prediction.sinks.JsonWriter`; None for
            `predictions.json` in the output folder.

    Raises:
        ValueError: the batch is not positive, or a stream is not the only input.
        OSError: a stream cannot be opened, or a result not be written.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected a positive number of images")
    report = Report()
    items, files = _open(list(inputs))
    with ExitStack() as stack:
        stack.enter_context(closing(items))
        records = stack.enter_context(JsonWriter(save_json or output / "predictions.json"))
        results = stack.enter_context(closing(_Results(renderer, output, records)))
        bar = stack.enter_context(tqdm(total=files, unit="image"))
        try:
            while chunk := list(itertools.islice(items, 1 if isinstance(items, LiveFrames) else batch)):
                frames = [item for item in chunk if isinstance(item, Frame)]
                for item in chunk:
                    _count(item, bar, report)
                sizes = [renderer.output_size(*frame.image.shape[:2]) for frame in frames]
                for frame, found in zip(
                    frames, predictor.batch([frame.image for frame in frames], sizes), strict=True
                ):
                    report.drawn += 1
                    results.add(frame, found, report.drawn)
                    bar.update()
        except KeyboardInterrupt:
            if not isinstance(items, LiveFrames):  # which have no other end
                raise
    if isinstance(items, LiveFrames):
        report.passed_over = items.received - report.drawn
    return report


def _count(item: Frame | Skipped, bar: tqdm, report: Report) -> None:
    """Take an item into account: how much is to come, or that it is skipped."""
    if isinstance(item, Skipped):
        report.skipped[Path(item.source)] = item.reason
        tqdm.write(f"skipped {item.source}: {item.reason}")
        bar.update()
    elif item.moment and item.moment.number == 0 and bar.total is not None and item.moment.length:
        bar.total += item.moment.length - 1  # the file itself is counted
