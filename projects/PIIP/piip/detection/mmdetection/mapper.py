"""What of an image's annotations is trained on, by mmdetection's rules."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from .masks import SharedBitMasks

__all__ = ["ReleasedMapper"]


class ReleasedMapper(DatasetMapper):
    """Detectron2's `DatasetMapper`, but in training

    - polygons are drawn at the image's original size; the bitmap is then resized and flipped with the image;
    - an object whose bitmap is lost in resizing stays, with an empty mask;
    - boxes less than 1 px wide or tall or outside the image, and annotations whose "area" is 0 or which are
      to be ignored, are left out.

    `instance_mask_format` has no say; keypoints are not read.
    """

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        size = dataset_dict["height"], dataset_dict["width"]
        annotations = []
        for annotation in dataset_dict.pop("annotations"):
            if not _counts(annotation, *size):
                continue
            annotation.pop("keypoints", None)
            mask = annotation.pop("segmentation", None)
            if self.use_instance_mask and mask:
                drawn = (
                    coco_mask.merge(coco_mask.frPyObjects(mask, *size)) if isinstance(mask, list) else mask
                )
                annotation["segmentation"] = drawn
            annotations.append(transform_instance_annotations(annotation, transforms, image_shape))
        instances = annotations_to_instances(annotations, image_shape, mask_format="bitmask")
        if instances.has("gt_masks"):
            instances.gt_masks = SharedBitMasks(instances.gt_masks.tensor)
            if self.recompute_boxes:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = filter_empty_instances(instances, by_mask=False)


def _counts(annotation: dict[str, Any], height: int, width: int) -> bool:
    """Whether an annotation is an object to learn."""
    x, y, w, h = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    return (
        inside
        and min(w, h) >= 1
        and annotation.get("area", 1) > 0
        and not annotation.get("ignore", False)
        and not annotation.get("iscrowd", 0)
    )
