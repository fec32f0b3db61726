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
from ...images import Image, printable, write_image
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

LARGEST_PICTURE = 12_000_000
"""Maximum number of pixels of a drawn picture: drawing takes some hundred bytes per pixel."""

_SAME_SUFFIX = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})  # drawn in this format, others as .png
_LARGEST = 4  # times the pixels of the square that a model is made for; attention grows with their square
_MAX_WAITING = 2  # results that wait to be drawn while the model goes on


class Predicts(Protocol):
    """A trained model that takes images of any size, such as a :class:`Predictor`."""

    def batch(
        self, images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """The outputs for some images, on the CPU; each is for one of the sizes, height and width."""


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
        """The model's output for one image, on the CPU.

        Args:
            image: the image.
            size: height and width that the output is for; None for those of the image.

        Raises:
            ValueError: the config does not resize, and the image is far larger than the model is made for.
        """
        (output,) = self.batch([image], None if size is None else [size])
        return output

    @torch.inference_mode()
    def batch(
        self, images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """The model's outputs for some images, on the CPU.

        Images are batched only if they have one size after the resize: others would be padded, and padding
        changes what a PIIP computes.

        Args:
            images: the images.
            sizes: height and width that each output is for; None for those of the images.

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
        """The input of Detectron2's models for an image: resized, with the size that the output is for.

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
    """Summary of a prediction run.

    Attributes:
        drawn: number of images and frames drawn.
        skipped: files without a result, and the reason.
        damaged: videos some frames of which have no result, and the reason.
        passed_over: number of frames of a live source that came while the model was busy.
    """

    drawn: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    passed_over: int = 0

    def skip(self, source: Path | str, reason: str, *, partly: bool = False) -> None:
        """Note a file that is skipped, or of which a part is; a line says so the first time."""
        source, noted = Path(source), self.damaged if partly else self.skipped
        if source not in noted:
            noted[source] = reason
            tqdm.write(f"{'damaged' if partly else 'skipped'} {printable(source)}: {reason}")


class _Results:
    """Draws and writes the outputs for images and frames, in a thread of its own and in order."""

    def __init__(self, renderer: Renderer, output: Path, records: JsonWriter, report: Report) -> None:
        self.renderer, self.output, self.records, self.report = renderer, output, records, report
        self._names: set[str] = set()
        self._video: VideoWriter | None = None
        self._source: Path | str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")
        self._waiting: deque[Future[None]] = deque()
        output.mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, output: dict[str, Any], image_id: int) -> None:
        """Have one result drawn and written; waits where drawing lags behind."""
        while len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, frame, output, image_id))

    def close(self) -> None:
        """Wait for the last results and finish the video. Errors of the thread are raised here."""
        self._thread.shutdown()
        if self._video is not None:
            self._video.close()
        while self._waiting:
            self._waiting.popleft().result()

    def _target(self, source: Path | str, suffix: str) -> Path:
        """A file in the output folder named after the source, with a number if the name is taken."""
        stem = f"camera-{source}" if str(source).isdecimal() else Path(source).stem
        return self.output / unused_name(stem, suffix, self._names)

    def _write(self, frame: Frame, output: dict[str, Any], image_id: int) -> None:
        try:
            records = self.renderer.records(output, image_id)
            drawn = self.renderer.draw(frame.image, output)
            if frame.moment is None:
                self._picture(Path(frame.source), frame.image, drawn, output)
        except OSError:  # of the disk
            raise
        except Exception as error:  # noqa: BLE001  (see _outputs)
            _skip_frame(self.report, frame, "its result cannot be drawn", error)
            return
        origin: dict[str, Any] = {"file_name": str(frame.source)}
        if frame.moment is not None:
            origin["frame"] = frame.moment.number
            if frame.moment.length is None:
                origin["seconds"] = round(frame.moment.seconds, 3)
        self.records.write({**record, **origin} for record in records)
        self.report.drawn += 1
        if frame.moment is None:
            return
        if self._video is None or self._source != frame.source or frame.moment.first:
            if self._video is not None:
                self._video.close()
            self._video = VideoWriter(self._target(frame.source, ".mp4"), frame.moment.rate)
            self._source = frame.source
        self._video.write(drawn, frame.moment.seconds)

    def _picture(self, source: Path, image: Image, drawn: Image, output: dict[str, Any]) -> None:
        suffix = source.suffix.lower()
        target = self._target(source, suffix if suffix in _SAME_SUFFIX else ".png")
        write_image(target, drawn)
        self.renderer.save(output, target, (image.shape[0], image.shape[1]))


def _open(inputs: Sequence[str]) -> tuple[Generator[Frame | Skipped, None, None] | LiveFrames, int | None]:
    """The frames of the inputs, and the number of files; None for a stream."""
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
    """Draw a model's predictions for images, folders, globs, videos, cameras and streams; write them as JSON.

    One thread decodes files and another draws while the model runs; only a few images are in memory, however
    long a video is. A file that is missing, cannot be decoded or makes the model fail is skipped, and a line
    says why. Of a live source the newest frame is taken, others are passed over; Ctrl-C ends it, and the
    files are complete.

    The predictions are a list of the renderer's records; "image_id" counts images and frames from 1,
    "file_name" is the input, "frame" the number of the frame in a video or stream, from 0, and "seconds" the
    time of the frame of a live source.

    Args:
        predictor: the model.
        renderer: draws its output and writes it down, such as `piip.detection.predict.InstanceRenderer`.
        inputs: names of files, folders and globs; or one number of a camera or address of a stream.
        output: folder for the pictures and videos, made if missing.
        batch: number of images or frames per batch; a live source gives one at a time.
        save_json: file for the predictions, see :class:`piip.engine.prediction.sinks.JsonWriter`; None for
            `predictions.json` in the output folder.

    Raises:
        ValueError: the batch is not positive, or a stream is not the only input.
        OSError: a stream cannot be opened, or a result cannot be written.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}: expected a positive number of images")
    report = Report()
    items, files = _open(list(inputs))
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(closing(items))
        records = stack.enter_context(JsonWriter(save_json or output / "predictions.json"))
        results = stack.enter_context(closing(_Results(renderer, output, records, report)))
        bar = stack.enter_context(tqdm(total=files, unit="image"))
        try:
            while chunk := list(itertools.islice(items, 1 if isinstance(items, LiveFrames) else batch)):
                frames = []
                for item in chunk:
                    if isinstance(item, Skipped):
                        report.skip(item.source, item.reason, partly=item.partly)
                        bar.update(0 if item.partly else 1)
                        continue
                    frames.append(item)
                    if item.moment and item.moment.first and bar.total is not None and item.moment.length:
                        bar.total += item.moment.length - 1  # the file itself is counted
                for frame, found in _outputs(predictor, renderer, frames):
                    seen += 1
                    if isinstance(found, Exception):
                        _skip_frame(report, frame, "the model fails on it", found)
                    else:
                        results.add(frame, found, seen)
                    bar.update()
        except KeyboardInterrupt:
            if not isinstance(items, LiveFrames):  # which have no other end
                raise
    if isinstance(items, LiveFrames):
        report.passed_over = items.received - seen
    return report


def _outputs(
    predictor: Predicts, renderer: Renderer, frames: Sequence[Frame]
) -> list[tuple[Frame, dict[str, Any] | Exception]]:
    """Each frame with the model's output for it, or with the error that it caused."""
    sizes = [renderer.output_size(*frame.image.shape[:2]) for frame in frames]
    try:
        return list(zip(frames, predictor.batch([frame.image for frame in frames], sizes), strict=True))
    except torch.AcceleratorError:  # of the device, which is of no use afterwards
        raise
    except Exception as error:  # noqa: BLE001  (libraries fail on a line of pixels, or for memory, in any way)
        if len(frames) == 1:
            return [(frames[0], error)]
    return [output for frame in frames for output in _outputs(predictor, renderer, [frame])]


def _skip_frame(report: Report, frame: Frame, what: str, error: Exception) -> None:
    height, width = frame.image.shape[:2]
    reason = f"{width}x{height} px, {what} ({type(error).__name__}: {error})"
    report.skip(frame.source, reason, partly=frame.moment is not None)
