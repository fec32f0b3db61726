"""Pictures of predictions beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask

from piip.detection.annotations import read_json
from piip.detection.data import dataset_dicts
from piip.detection.predict import draw, visualizer
from piip.engine.renderer import unused_name
from piip.images import Image, read_image, write_image

_KEYS = {"image_id", "category_id", "bbox", "score"}
_MIN_SIDE = 384  # pixels: smaller images are enlarged, or their labels would cover them
_TITLE_HEIGHT = 28


def _instances(records: list[dict[str, Any]], size: tuple[int, int], metadata: Metadata) -> Instances:
    """Entries of a COCO results file as Detectron2's instances of an image of `size` (height, width)."""
    boxes = np.asarray([record["bbox"] for record in records], np.float32).reshape(-1, 4)
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.from_numpy(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)))
    instances.scores = torch.tensor([record["score"] for record in records])
    categories = metadata.thing_dataset_id_to_contiguous_id
    instances.pred_classes = torch.tensor([categories[r["category_id"]] for r in records], dtype=torch.int64)
    if records and all("segmentation" in record for record in records):
        masks = np.stack([coco_mask.decode(record["segmentation"]) for record in records])
        instances.pred_masks = torch.from_numpy(masks.astype(bool))
    return instances


def _titled(image: Image, title: str) -> Image:
    band = np.full((_TITLE_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(
        band, title, (8, _TITLE_HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA
    )
    return np.vstack([band, image])


def compare(
    dataset: str, results: Path, output: Path, *, number: int = 16, score_threshold: float = 0.5
) -> list[Path]:
    """Draw ground truth (left) and predictions (right) of images evenly spread over a dataset.

    Args:
        dataset: registered COCO-format dataset.
        results: COCO results file of a detector on it, such as the `coco_instances_results.json` of an
            evaluation.
        output: folder for the pictures, made if missing.
        number: how many images.
        score_threshold: leave out detections that score less.

    Returns:
        The pictures written.

    Raises:
        OSError: an image cannot be read or a picture not written.
        ValueError: the results are not in COCO's format.
    """
    records = dataset_dicts(dataset, filter_empty=False)
    metadata = MetadataCatalog.get(dataset)
    by_image: dict[int, list[dict[str, Any]]] = {}
    entries = read_json(results)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() >= _KEYS for e in entries):
        raise ValueError(f"{results} is no list of COCO results: each needs {', '.join(sorted(_KEYS))}")
    for record in entries:
        if record["score"] >= score_threshold:
            by_image.setdefault(record["image_id"], []).append(record)
    output.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    used: set[str] = set()
    for position in np.linspace(0, len(records) - 1, min(number, len(records))).astype(int):
        record = records[position]
        image = read_image(record["file_name"])
        scale = max(1.0, _MIN_SIDE / min(image.shape[:2]))
        truth = visualizer(image, metadata, scale).draw_dataset_dict(record).get_image()[:, :, ::-1]
        found = _instances(by_image.get(record["image_id"], []), image.shape[:2], metadata)
        right = draw(image, found, metadata, scale)
        picture = np.hstack(
            [_titled(truth, "ground truth"), _titled(right, f"predictions (score >= {score_threshold})")]
        )
        path = output / unused_name(Path(record["file_name"]).stem, ".png", used)
        write_image(path, picture)
        pictures.append(path)
    return pictures
