"""What of a COCO annotation file makes sense: nonsense is left out and counted, small gaps are filled."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask

__all__ = ["Sensible", "sensible_annotations", "what_is_not_coco"]

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_CORNERS = 3  # that a polygon has at least

Annotation = dict[str, Any]


class Sensible(NamedTuple):
    """An annotation file that makes sense, and how many entries it took to make it so, by reason."""

    content: dict[str, Any]
    left_out: Counter[str]
    mended: Counter[str]

    def __str__(self) -> str:
        """One line; empty where nothing was changed."""
        parts = (("left out", self.left_out), ("mended", self.mended))
        return "; ".join(
            f"{verb} " + ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            for verb, counts in parts
            if counts
        )


def sensible_annotations(content: dict[str, Any]) -> Sensible:
    """A COCO annotation file without what nothing can be learned or measured from.

    Left out are

    - images listed twice, and all images that share an id, which their annotations cannot be told apart by;
    - annotations that repeat another one, of no known image or category, whose box is no four finite numbers,
      has no area or lies outside its image;
    - where any annotation has a mask: those without one, and those with one of another size than the image.

    Mended are annotations that share an id, or have 0 (COCO's evaluation takes 0 for "no match"): all are
    numbered anew; polygons of fewer than three corners are removed from masks that have others; a missing
    "area" is that of the mask or else of the box, a missing "iscrowd" is 0. Crowds stay: training ignores
    them, evaluation counts detections there as neither right nor wrong.

    Args:
        content: of the file. It is not changed.

    Raises:
        KeyError, TypeError, AttributeError: it has not the form of one, see :func:`what_is_not_coco`.
    """
    left_out: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    images = _images(content["images"], left_out)
    categories = {category["id"] for category in content["categories"]}
    with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])
    kept: list[Annotation] = []
    seen: dict[Any, list[list[Any]]] = {}
    for annotation in content["annotations"]:
        namesakes = seen.setdefault(annotation["id"], [])
        described = [annotation["image_id"], annotation["category_id"], annotation.get("bbox")]
        if described in namesakes:
            left_out["annotations that repeat another"] += 1
            continue
        namesakes.append(described)
        if reason := _nonsense(annotation, images, categories, with_masks):
            left_out[f"annotations {reason}"] += 1
        else:
            kept.append(_complete(annotation, images[annotation["image_id"]], mended))
    ids = Counter(annotation["id"] for annotation in kept)
    if unusable := sum(count for id_, count in ids.items() if count > 1 or id_ == 0):
        mended["annotations whose id is 0 or that of another"] += unusable
        kept = [{**annotation, "id": number} for number, annotation in enumerate(kept, start=1)]
    return Sensible({**content, "images": list(images.values()), "annotations": kept}, left_out, mended)


def _images(entries: list[dict[str, Any]], left_out: Counter[str]) -> dict[Any, dict[str, Any]]:
    """The images by their id, without those listed twice or of ambiguous id."""
    images: dict[Any, dict[str, Any]] = {}
    ambiguous = set()
    for image in entries:
        first = images.get(image["id"])
        if first is None:
            images[image["id"]] = image
        elif first["file_name"] == image["file_name"]:
            left_out["images listed twice"] += 1
        else:
            left_out["images with the id of another"] += 1 if image["id"] in ambiguous else 2
            ambiguous.add(image["id"])
    return {id_: image for id_, image in images.items() if id_ not in ambiguous}


def _nonsense(
    annotation: Annotation, images: dict[Any, dict[str, Any]], categories: set[Any], with_masks: bool
) -> str:
    """Why an annotation cannot be used; empty where it can."""
    image = images.get(annotation["image_id"])
    if image is None:
        return "of an unknown image"
    if annotation["category_id"] not in categories:
        return "of an unknown category"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return "without a box of four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "whose box has no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "whose box is outside the image"
    mask = annotation.get("segmentation")
    if with_masks and not _has_mask(mask):
        return "without a mask"
    if isinstance(mask, dict) and not _covers(mask, image):
        return "whose mask is not of the image's size"
    return ""


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _is_polygon(corners: Any) -> bool:
    return isinstance(corners, list) and len(corners) >= 2 * _CORNERS and len(corners) % 2 == 0


def _has_mask(mask: Any) -> bool:
    """Whether it is run lengths, or has a polygon."""
    return bool(mask) and ("counts" in mask if isinstance(mask, dict) else any(map(_is_polygon, mask)))


def _covers(mask: dict[str, Any], image: dict[str, Any]) -> bool:
    """Whether run lengths are of the image's size; compressed ones are not unpacked."""
    size, counts = [image["height"], image["width"]], mask.get("counts")
    return list(mask.get("size", ())) == size and (
        not isinstance(counts, list) or sum(counts) == math.prod(size)
    )


def _complete(annotation: Annotation, image: dict[str, Any], mended: Counter[str]) -> Annotation:
    """An annotation with what evaluation needs of it."""
    mask = annotation.get("segmentation")
    if isinstance(mask, list) and mask and not all(map(_is_polygon, mask)):
        mended["masks with polygons of fewer than three corners"] += 1
        annotation = {**annotation, "segmentation": [corners for corners in mask if _is_polygon(corners)]}
    if not _is_finite(annotation.get("area")):
        mended["annotations without an area"] += 1
        annotation = {**annotation, "area": _area(annotation, image)}
    if "iscrowd" not in annotation:
        mended["annotations that do not say whether they are a crowd"] += 1
        annotation = {**annotation, "iscrowd": 0}
    return annotation


def _area(annotation: Annotation, image: dict[str, Any]) -> float:
    """Square pixels of the mask, or else of the box."""
    mask = annotation.get("segmentation")
    if not mask:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(mask, list) or isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, image["height"], image["width"])
    return float(coco_mask.area(coco_mask.merge(mask) if isinstance(mask, list) else mask))


def what_is_not_coco(content: Any) -> str:
    """What keeps the content of a JSON file from being COCO instance annotations; empty: nothing."""
    if not isinstance(content, dict):
        return f"its top level is a {type(content).__name__}, expected an object"
    for section, keys in _REQUIRED.items():
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
