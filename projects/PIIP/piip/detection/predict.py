"""Prediction with a LazyConfig's detector on images, folders, globs and videos."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from omegaconf import DictConfig
from PIL.Image import DecompressionBombError
from tqdm import tqdm

from ..engine.checkpoint import Checkpointer
from ..engine.train import autocast, build_model

_logger = logging.getLogger("detectron2.piip")

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_DRAWN_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
)  # written as they came, the others as .png

Image = npt.NDArray[np.uint8]
"""(H, W, 3), BGR."""


class Predictor:
    """A trained detector that takes images of any size, resized as the config's test set is."""

    def __init__(self, cfg: DictConfig, weights: str) -> None:
        """
        Args:
            cfg: a LazyConfig with `model`, `dataloader.test` and `train`.
            weights: a checkpoint of the model, see :class:`Checkpointer`.
        """
        self.model = build_model(cfg).eval()
        Checkpointer(self.model).load(weights)
        self.augmentations = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentations))
        self.autocast = autocast(cfg.train.device, cfg.train.get("eval_precision", "float32"))
        names = cfg.dataloader.test.dataset.names
        name = names if isinstance(names, str) else names[0]
        self.metadata: Metadata = MetadataCatalog.get(name)
        if (
            self.metadata.get("thing_classes") is None
        ):  # a dataset of the user's own: its annotations name the classes
            DatasetCatalog.get(name)

    @torch.inference_mode()
    def __call__(self, image: Image) -> Instances:
        """Detections in one image, at its own size, best first, on the CPU."""
        height, width = image.shape[:2]
        if self.model.input_format == "RGB":
            image = np.ascontiguousarray(image[:, :, ::-1])
        augmented = T.AugInput(image)
        self.augmentations(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        with self.autocast:
            (output,) = self.model([{"image": tensor, "height": height, "width": width}])
        return output["instances"].to("cpu")

    def records(self, instances: Instances, image_id: int) -> list[dict[str, Any]]:
        """Detections as entries of a COCO results file, with the dataset's own category ids."""
        categories = {i: c for c, i in self.metadata.thing_dataset_id_to_contiguous_id.items()}
        records: list[dict[str, Any]] = instances_to_coco_json(instances, image_id)
        return [{**record, "category_id": categories[record["category_id"]]} for record in records]


def visualizer(image: Image, metadata: Metadata, scale: float = 1.0) -> Visualizer:
    """Detectron2's visualizer for a BGR image, with a colour a class where the dataset has them."""
    mode = ColorMode.IMAGE if metadata.get("thing_colors") is None else ColorMode.SEGMENTATION
    return Visualizer(image[:, :, ::-1], metadata, scale=scale, instance_mode=mode)


def draw(image: Image, instances: Instances, metadata: Metadata, scale: float = 1.0) -> Image:
    """The image with boxes, masks, class names and scores drawn on it, `scale` times as large."""
    drawn: Image = (
        visualizer(image, metadata, scale).draw_instance_predictions(instances, jittering=False).get_image()
    )
    return np.ascontiguousarray(drawn[:, :, ::-1])


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
    """One run over inputs: draws pictures and videos into a folder, and collects the detections."""

    def __init__(self, predictor: Predictor, output: Path, score_threshold: float) -> None:
        self.predictor, self.output, self.score_threshold = predictor, output, score_threshold
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

    def _predict(self, image: Image, **origin: Any) -> Image:
        instances = self.predictor(image)
        instances = instances[instances.scores >= self.score_threshold]
        self.images += 1
        self.predictions += [{**r, **origin} for r in self.predictor.records(instances, self.images)]
        return draw(image, instances, self.predictor.metadata)

    def image(self, path: Path) -> None:
        """Draw one image.

        Raises:
            UnreadableFileError: it cannot be read.
        """
        drawn = self._predict(_read(path), file_name=str(path))
        suffix = path.suffix.lower()
        target = self._target(path, suffix if suffix in _DRAWN_SUFFIXES else ".png")
        if not cv2.imwrite(str(target), drawn):
            raise OSError(f"cannot write {target}")

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
            writer.write(self._predict(frame, file_name=str(path), frame=count - 1))
            bar.update(count > 1)  # the caller counts the file itself
        capture.release()
        writer.close()
        if count == 0:
            raise UnreadableFileError("no frame can be read: missing, or not a video")


def predict(
    predictor: Predictor, inputs: Iterable[str], output: Path, score_threshold: float = 0.5
) -> Report:
    """Draw what a detector finds in images, folders, globs and videos, and write `predictions.json`.

    A file that is missing or cannot be decoded is reported and skipped. The predictions are a COCO results
    list; `image_id` counts images and frames from 1, "file_name" (and "frame", from 0, in videos) say which
    they are.

    Args:
        predictor: the detector.
        inputs: names of files, folders and globs.
        output: folder for the pictures and `predictions.json`, made if missing.
        score_threshold: leave out detections that score less.
    """
    job = Job(predictor, output, score_threshold)
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
