"""Prediction with a LazyConfig's model on images, folders, globs and videos."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import detectron2.data.transforms as T
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig
from PIL.Image import DecompressionBombError
from tqdm import tqdm

from ..backbone import PIIP
from ..numerics import autocast
from .checkpoint import METADATA, Checkpointer
from .evaluation import with_tta
from .model import build_model, for_prediction

_logger = logging.getLogger("detectron2.piip")

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_DRAWN_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
)  # written as they came, the others as .png

Image = npt.NDArray[np.uint8]
"""(H, W, 3), BGR."""


_LARGEST = 4  # times the pixels of the square that a model is made for; attention grows with their square


LARGEST_PICTURE = 12_000_000
"""Pixels drawn: drawing takes some hundred bytes a pixel."""


class Renderer(Protocol):
    """What a task makes of a model's output for one image."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the model should answer for an image of this size."""

    def records(self, output: Any, image_id: int) -> list[dict[str, Any]]:
        """Entries of `predictions.json`."""

    def draw(self, image: Image, output: Any) -> Image:
        """The image with the output drawn on it, of the same size."""

    def save(self, output: Any, picture: Path, size: tuple[int, int]) -> None:
        """Write what belongs beside the picture drawn, if anything, for an image of that height and width."""


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
        self.autocast = autocast(cfg.train.device, cfg.train.get("eval_precision", "float32"))
        self.metadata = _metadata(cfg, loaded.get(METADATA))
        self.model = with_tta(cfg, for_prediction(cfg, self.model))
        sizes = [max(module.image_sizes) for module in self.model.modules() if isinstance(module, PIIP)]
        self.side = max(sizes, default=None)

    @torch.inference_mode()
    def __call__(self, image: Image, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """What the model says of one image, on the CPU.

        Args:
            image: the image.
            size: height and width that the answer is for; None for the image's own.

        Raises:
            ValueError: the config does not resize, and the image is far larger than the model is made for.
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
        height, width = size or (height, width)
        with self.autocast:
            (output,) = self.model([{"image": tensor, "height": height, "width": width}])
        return {key: value.to("cpu") for key, value in output.items()}


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


def expand_inputs(inputs: Iterable[str]) -> list[Path]:
    """Files meant by names of files, folders (their images and videos, not deeper) and globs, in order.

    A name that matches nothing is kept, so that it is reported when it cannot be read.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            files += [Path(match) for match in sorted(glob.glob(name, recursive=True))] or [path]
    return files


class UnreadableFileError(Exception):
    """An input that is missing or cannot be decoded."""


def _read(path: Path) -> Image:
    try:
        return np.ascontiguousarray(read_image(str(path), format="BGR"))
    except (
        OSError,
        ValueError,
        SyntaxError,
        DecompressionBombError,
    ) as error:  # what Pillow raises on broken files
        raise UnreadableFileError(str(error)) from error


class _VideoWriter:
    """Writes frames of one size to an .mp4 file, which exists once a first frame was written."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path, self.frames_per_second = path, frames_per_second
        self.writer: cv2.VideoWriter | None = None

    def write(self, frame: Image) -> None:
        if self.writer is None:
            height, width = frame.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self.writer = cv2.VideoWriter(str(self.path), codec, self.frames_per_second, (width, height))
            if not self.writer.isOpened():
                raise OSError(
                    f"cannot write the video {self.path}: check the folder, and OpenCV's mp4 support"
                )
        self.writer.write(frame)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()


def _frames(video: cv2.VideoCapture) -> Iterator[Image]:
    while True:
        more, frame = video.read()
        if not more:
            return
        yield frame


@dataclass
class Report:
    """What became of the inputs: how many images and frames were drawn, and which files skipped and why."""

    drawn: int
    skipped: dict[Path, str]


class Job:
    """One run over inputs: draws pictures and videos into a folder, and collects the predictions."""

    def __init__(self, predictor: Predictor, renderer: Renderer, output: Path) -> None:
        self.predictor, self.renderer, self.output = predictor, renderer, output
        self.predictions: list[dict[str, Any]] = []
        self.images = 0
        self.names: set[str] = set()
        output.mkdir(parents=True, exist_ok=True)

    def _target(self, source: Path, suffix: str) -> Path:
        """A file in the output folder named after the source, numbered where the name is taken."""
        name, number = f"{source.stem}{suffix}", 1
        while name in self.names:
            number += 1
            name = f"{source.stem}-{number}{suffix}"
        self.names.add(name)
        return self.output / name

    def _predict(self, image: Image, **origin: Any) -> tuple[dict[str, Any], Image]:
        """The model's output for an image, and the picture of it."""
        output = self.predictor(image, self.renderer.output_size(*image.shape[:2]))
        self.images += 1
        self.predictions += [{**r, **origin} for r in self.renderer.records(output, self.images)]
        return output, self.renderer.draw(image, output)

    def image(self, path: Path) -> None:
        """Draw one image.

        Raises:
            UnreadableFileError: it cannot be read.
        """
        image = _read(path)
        output, drawn = self._predict(image, file_name=str(path))
        suffix = path.suffix.lower()
        target = self._target(path, suffix if suffix in _DRAWN_SUFFIXES else ".png")
        if not cv2.imwrite(str(target), drawn):
            raise OSError(f"cannot write {target}")
        self.renderer.save(output, target, image.shape[:2])

    def video(self, path: Path, bar: tqdm) -> None:
        """Draw one video, frame by frame.

        Raises:
            UnreadableFileError: it has no frame that can be read.
        """
        capture = cv2.VideoCapture(str(path))
        bar.total += max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - 1, 0)
        writer = _VideoWriter(self._target(path, ".mp4"), capture.get(cv2.CAP_PROP_FPS) or 25.0)
        count = 0
        for count, frame in enumerate(_frames(capture), start=1):
            _, drawn = self._predict(frame, file_name=str(path), frame=count - 1)
            writer.write(drawn)
            bar.update(count > 1)  # the caller counts the file itself
        capture.release()
        writer.close()
        if count == 0:
            raise UnreadableFileError("no frame can be read: missing, or not a video")


def predict(predictor: Predictor, renderer: Renderer, inputs: Iterable[str], output: Path) -> Report:
    """Draw what a model finds in images, folders, globs and videos, and write `predictions.json`.

    A file that is missing or cannot be decoded is reported and skipped. The predictions are a list of the
    renderer's records; `image_id` counts images and frames from 1, "file_name" (and "frame", from 0, in
    videos) say which they are.

    Args:
        predictor: the model.
        renderer: what to make of its output, such as `piip.detection.predict.InstanceRenderer`.
        inputs: names of files, folders and globs.
        output: folder for the pictures and `predictions.json`, made if missing.
    """
    job = Job(predictor, renderer, output)
    skipped: dict[Path, str] = {}
    files = expand_inputs(inputs)
    with tqdm(files, total=len(files), unit="image") as bar:
        for path in bar:
            try:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    job.video(path, bar)
                else:
                    job.image(path)
            except UnreadableFileError as error:
                skipped[path] = str(error)
                tqdm.write(f"skipped {path}: {error}")
    (output / "predictions.json").write_text(json.dumps(job.predictions))
    return Report(job.images, skipped)
