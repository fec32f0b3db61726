"""COCO and LVIS annotation files, checked before anything else reads them.

Values with an obvious meaning are fixed, unusable entries are skipped. Both are counted by kind, with the
first case of each.
"""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .box_format import doubt_box_format
from .masks import FARTHEST, LARGEST_IMAGE, check_mask, mask_area
from .numbers import UnusableError, finite_number, whole_number

__all__ = [
    "Findings",
    "SanitizedAnnotations",
    "has_masks",
    "read_annotations",
    "read_json",
    "sanitize_annotations",
]

_GZIP = b"\x1f\x8b"
_CROWD = {0: 0, 1: 1, None: 0, "": 0, "0": 0, "1": 1, "false": 0, "true": 1}
_RETYPED = "with numbers written as text or with a decimal point"

Annotation = dict[str, Any]
shown = reprlib.repr  # a value for a message, shortened


class Findings(dict[str, tuple[int, str]]):
    """Kinds of flaws: how many there are, and where the first is."""

    def add(self, kind: str, where: Callable[[], str]) -> None:
        """Count one more; `where` is asked for the place of the first one only."""
        self[kind] = (self[kind][0] + 1, self[kind][1]) if kind in self else (1, where())

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind} (first: {where})" for kind, (count, where) in self.items())


@dataclass
class SanitizedAnnotations:
    """An annotation file without its flaws.

    Attributes:
        content: sections "images", "categories" and, unless the file is that of a test set, "annotations".
        skipped: entries that cannot be used.
        fixed: entries that could be read all the same.
        remarks: sentences on what is doubtful and was left as it is.
    """

    content: dict[str, Any]
    skipped: Findings = field(default_factory=Findings)
    fixed: Findings = field(default_factory=Findings)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line; empty where nothing was found."""
        counts = {"skipped": self.skipped, "fixed": self.fixed}
        return "; ".join([*(f"{verb} {found}" for verb, found in counts.items() if found), *self.remarks])


def read_annotations(path: str | os.PathLike[str]) -> SanitizedAnnotations:
    """Read and check a file, see :func:`read_json` and :func:`sanitize_annotations`.

    Raises:
        ValueError: it is not JSON, or not COCO instance annotations.
    """
    content = read_json(path)
    try:
        return sanitize_annotations(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not a COCO annotation file: {error}") from error


def has_masks(content: Mapping[str, Any]) -> bool:
    """Whether any object of a checked file has a mask."""
    return any(annotation.get("segmentation") for annotation in content.get("annotations", ()))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, plain or gzip'd, with a byte order mark or without.

    Raises:
        ValueError: it is not JSON.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{os.fspath(path)} is not JSON, or cut short: {error}") from error


def sanitize_annotations(content: Any) -> SanitizedAnnotations:
    """COCO annotations of which every value has the type and range that training and evaluation expect.

    Skipped are

    - images without a file name, an id or a possible size, those listed twice, and all that share an id;
    - annotations that repeat another one, of no known image or category, whose box is no four numbers of
      pixels, has no area or lies outside its image, or whose "iscrowd" cannot be read;
    - where any annotation has a mask: those without one, and those whose mask is malformed, empty or of
      another size than the image.

    Fixed are

    - numbers written as text (``"128"``) or with a decimal point (``128.0``), "iscrowd" as text or null;
    - annotations that share an id, have none, or one that is not positive (COCO's evaluation takes 0 for "no
      match"): all are numbered anew;
    - polygons as pairs of points or without their outer list; polygons of fewer than three corners are
      removed from masks that have others;
    - a missing or impossible "area", which becomes that of the mask or else of the box;
    - categories of one name, which get their ids behind it.

    Crowds stay: training ignores them, evaluation counts detections there as neither right nor wrong.

    Args:
        content: of the file. It is not changed.

    Raises:
        ValueError: a section is missing, or the categories cannot be told apart. The message continues
            "FILE is not a COCO annotation file: ".
    """
    if not isinstance(content, dict):
        raise ValueError(f"its top level is a {type(content).__name__}, expected an object")
    for section in ("images", "annotations", "categories"):
        if section == "annotations" and section not in content:  # of a test set
            continue
        if not isinstance(content.get(section), list):
            raise ValueError(f"it has no list '{section}'")
    result = SanitizedAnnotations({**content})
    result.content["categories"] = categories = _categories(content["categories"], result.fixed)
    images = _images(content["images"], result)
    result.content["images"] = list(images.values())
    if "annotations" in content:
        ids = {category["id"] for category in categories}
        result.content["annotations"] = _annotations(content["annotations"], images, ids, result)
    return result


def _replaced(entry: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The entry itself where the values are its own, or else a copy that has them."""
    if all(
        key in entry and type(entry[key]) is type(value) and entry[key] == value
        for key, value in values.items()
    ):
        return entry
    return {**entry, **values}


def _categories(entries: list[Any], fixed: Findings) -> list[dict[str, Any]]:
    """The categories, each of its own id and name.

    Raises:
        ValueError: there are none, or one has no id or no name, or an id is there twice.
    """
    if not entries:
        raise ValueError("it has no categories: name the classes to learn")
    categories = []
    for position, entry in enumerate(entries):
        id_ = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        name = name.strip("\ufeff \t\r\n") if isinstance(name, str) else whole_number(name)
        if id_ is None or name in (None, ""):
            raise ValueError(
                f"every category needs a whole number 'id' and a 'name', categories[{position}] is "
                f"{shown(entry)}"
            )
        categories.append(_replaced(entry, {"id": id_, "name": str(name)}))
        if categories[-1] is not entry:
            fixed.add("categories whose id or name was written differently", partial(shown, entry))
    ids = Counter(category["id"] for category in categories)
    if twice := [id_ for id_, count in ids.items() if count > 1]:
        raise ValueError(f"two categories have the same id {twice[0]}")
    while True:
        names = Counter(category["name"] for category in categories)
        if len(names) == len(categories):
            return categories
        for position, category in enumerate(categories):
            if names[name := category["name"]] > 1:
                fixed.add("categories with the name of another, told apart by their ids", partial(repr, name))
                categories[position] = {**category, "name": f"{name} (id {category['id']})"}


def _images(entries: list[Any], result: SanitizedAnnotations) -> dict[Any, dict[str, Any]]:
    """The usable images by their id."""
    images: dict[Any, dict[str, Any]] = {}
    ambiguous = set()
    for position, entry in enumerate(entries):
        where = partial(_place, "images", position, entry)
        try:
            image = _image(entry)
        except UnusableError as reason:
            result.skipped.add(f"images {reason}", where)
            continue
        if image is not entry:
            result.fixed.add(f"images {_RETYPED}", where)
        first = images.setdefault(image["id"], image)
        if first is not image and first["file_name"] == image["file_name"]:
            result.skipped.add("images listed twice", where)
        elif first is not image:
            for namesake in [image] if image["id"] in ambiguous else [first, image]:
                result.skipped.add("images with the id of another", partial(shown, namesake))
            ambiguous.add(image["id"])
    files = Counter(image["file_name"] for image in images.values())
    if repeated := [file for file, count in files.items() if count > 1]:
        result.remarks.append(
            f"{len(repeated)} files are listed under several image ids (first: {repeated[0]!r})"
        )
    texts = [id_ for id_ in images if isinstance(id_, str)]
    if len(texts) < len(images):  # NumPy, which evaluation sorts them by, would make all of them text
        for id_ in texts:
            where = partial(shown, images[id_])
            result.skipped.add("images whose id is no number as the others' are", where)
        ambiguous.update(texts)
    return {id_: image for id_, image in images.items() if id_ not in ambiguous}


def _image(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UnusableError("that are not JSON objects")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name or not _is_encodable(name):
        raise UnusableError("without a file name")
    if (id_ := _image_id(entry.get("id"))) is None:
        raise UnusableError("without an id")
    height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
    if height is None or width is None or height < 1 or width < 1:
        raise UnusableError("whose height and width are no whole numbers of pixels")
    if height * width >= LARGEST_IMAGE:
        raise UnusableError("of an impossible size")
    return _replaced(entry, {"id": id_, "height": height, "width": width})


def _is_encodable(name: str) -> bool:
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def _image_id(value: Any) -> int | str | None:
    """A number where it can be read as one, or else text."""
    number = whole_number(value)
    return value if number is None and isinstance(value, str) and value else number


def _annotations(
    entries: list[Any], images: dict[Any, dict[str, Any]], categories: set[int], result: SanitizedAnnotations
) -> list[Annotation]:
    """The usable annotations; adds to the result what is odd about them."""
    with_masks = any(isinstance(entry, dict) and entry.get("segmentation") for entry in entries)
    kept: list[Annotation] = []
    extents: list[tuple[float, ...] | None] = []
    positions: list[int] = []
    seen: set[tuple[Any, ...]] = set()

    def where(position: int) -> str:
        entry = entries[position]
        image = images.get(_image_id(entry.get("image_id"))) if isinstance(entry, dict) else None
        return _place("annotations", position, entry, image)

    for position, entry in enumerate(entries):
        fixed: list[str] = []
        try:
            annotation, extent = _annotation(entry, images, categories, fixed)
            if with_masks and extent is None:
                raise UnusableError("without a mask")
            if annotation["id"] is not None:
                described = (
                    *(annotation[key] for key in ("id", "image_id", "category_id")),
                    *annotation["bbox"],
                )
                if described in seen:
                    raise UnusableError("that repeat another")
                seen.add(described)
        except UnusableError as reason:
            result.skipped.add(f"annotations {reason}", partial(where, position))
            continue
        for kind in dict.fromkeys(fixed):
            result.fixed.add(f"annotations {kind}", partial(where, position))
        kept.append(annotation)
        extents.append(None if annotation["iscrowd"] else extent)
        positions.append(position)
    ids = Counter(annotation["id"] for annotation in kept)
    if renumbered := [
        p for p, a in zip(positions, kept, strict=True) if (a["id"] or 0) < 1 or ids[a["id"]] > 1
    ]:
        for position in renumbered:
            result.fixed.add(
                "annotations whose id is no positive number of their own", partial(where, position)
            )
        kept = [{**annotation, "id": number} for number, annotation in enumerate(kept, start=1)]
    if kept and all(annotation["iscrowd"] for annotation in kept):
        result.remarks.append("all annotations are crowds, which are neither learned nor measured")
    sizes = [[images[a["image_id"]][side] for side in ("width", "height")] for a in kept]
    said, first = doubt_box_format([annotation["bbox"] for annotation in kept], extents, sizes)
    if said:
        result.remarks.append(f"{said} (first: {where(positions[first])})")
    return kept


def _place(section: str, position: int, entry: Any, image: Mapping[str, Any] | None = None) -> str:
    """Where an entry is: its position, its id and the file of its image."""
    if not isinstance(entry, dict):
        return f"{section}[{position}] {shown(entry)}"
    file = (image or entry).get("file_name")
    of = f"image {shown(entry.get('image_id'))}" if file is None else repr(file)  # escapes line breaks
    return f"{section}[{position}], id {shown(entry.get('id'))} of {of}"


def _annotation(
    entry: Any, images: dict[Any, dict[str, Any]], categories: set[int], fixed: list[str]
) -> tuple[Annotation, tuple[float, ...] | None]:
    """An annotation as it should be, and the box around its mask; the entry itself where it is so already."""
    if not isinstance(entry, dict):
        raise UnusableError("that are not JSON objects")
    image_id, category_id = _image_id(entry.get("image_id")), whole_number(entry.get("category_id"))
    if (image := images.get(image_id)) is None:
        raise UnusableError("of an unknown image")
    if category_id not in categories:
        raise UnusableError("of an unknown category")
    id_, area, box = whole_number(entry.get("id")), finite_number(entry.get("area")), entry.get("bbox")
    values: dict[str, Any] = {"image_id": image_id, "category_id": category_id, "bbox": _box(box, image)}
    values |= {key: value for key, value in (("id", id_), ("area", area)) if value is not None}
    if entry.get("keypoints"):
        values["keypoints"] = _keypoints(entry["keypoints"])
    annotation = _replaced(entry, values)
    if annotation is not entry:
        fixed.append(_RETYPED)
    annotation = _replaced(annotation, {"id": id_, "iscrowd": _crowd(entry, fixed)})
    mask, extent = check_mask(entry.get("segmentation"), image, fixed)
    if mask is not None and mask is not entry["segmentation"]:
        annotation = {**annotation, "segmentation": mask}
    if area is None or not 0 <= area <= LARGEST_IMAGE:
        fixed.append("without an area")
        width, height = annotation["bbox"][2:]
        annotation = {**annotation, "area": mask_area(mask, image) if mask else float(width * height)}
    return annotation, extent


def _box(value: Any, image: dict[str, Any]) -> list[float]:
    """``[x, y, width, height]`` in pixels."""
    numbers = [finite_number(number) for number in value] if isinstance(value, list) else []
    box = [number for number in numbers if number is not None and abs(number) <= FARTHEST]
    if not len(box) == len(numbers) == 4:
        raise UnusableError("without a box of four numbers of pixels")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise UnusableError("whose box has no area")
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        raise UnusableError("whose box is outside the image")
    return box


def _keypoints(value: Any) -> list[float]:
    """``[x1, y1, visibility1, ...]``."""
    numbers = list(map(finite_number, value)) if isinstance(value, list) else []
    keypoints = [number for number in numbers if number is not None]
    if len(keypoints) % 3 or not len(keypoints) == len(numbers) > 0:
        raise UnusableError("whose keypoints are no triples of numbers")
    return keypoints


def _crowd(entry: Annotation, fixed: list[str]) -> int:
    value = entry.get("iscrowd", 0)
    if "iscrowd" not in entry:
        fixed.append("that do not say whether they are a crowd")
    elif type(value) is not int:
        fixed.append("whose 'iscrowd' is not written 0 or 1")
    try:
        crowd = _CROWD[value.strip().lower() if isinstance(value, str) else value]
    except (KeyError, TypeError) as error:
        raise UnusableError("whose 'iscrowd' is neither 0 nor 1") from error
    if entry.get("ignore") in (1, "1", "true") and not crowd:
        fixed.append("to be ignored, which became crowds")
        return 1
    return crowd
