"""Annotation files as people have them: odd values are fixed, or skipped, counted and named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask

from lab.compare import compare
from piip.detection.annotations import read_annotations, sanitize_annotations
from piip.detection.data import dataset_dicts, register_coco
from piip.detection.evaluation import COCOEvaluator
from piip.detection.lvis import read_lvis, register_lvis

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
IMAGE = {"id": 1, "file_name": "a.png", "height": 4, "width": 6}
OTHER = {"id": 2, "file_name": "b.png", "height": 4, "width": 6}
SQUARE = [0, 0, 0, 2, 2, 2, 2, 0]
GOOD = {
    "id": 1,
    "image_id": 1,
    "category_id": 2,
    "bbox": [0, 0, 2, 2],
    "iscrowd": 0,
    "area": 4,
    "segmentation": [SQUARE],
}
SOUND = {
    "images": [IMAGE, OTHER],
    "annotations": [GOOD, {**GOOD, "id": 3, "image_id": 2}],
    "categories": [{"id": 2, "name": "thing"}, {"id": 5, "name": "stuff"}],
}
RUNS = [0, 2, 2, 2, 18]  # of the square of 2 x 2 in an image of 4 x 6


def run_lengths(counts: Any, size: Any = (4, 6)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


COMPRESSED = coco_mask.frPyObjects(run_lengths(RUNS), 4, 6)["counts"].decode()
ANY: Any = object()


def write(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


SKIPPED = {  # what is odd about one of two annotations -> what is said of it
    "no area": ({"bbox": [1, 1, 0, 2]}, "whose box has no area"),
    "negative": ({"bbox": [1, 1, -2, 2]}, "whose box has no area"),
    "outside": ({"bbox": [9, 9, 2, 2]}, "whose box is outside the image"),
    **{
        f"box {box}": ({"bbox": box}, "without a box of four numbers of pixels")
        for box in (
            [0, 0, NAN, 2],
            [0, 0, INF, 2],
            [0, 0, 1e15, 2],
            [0, 0, 2],
            [0, 0, 2, 2, 2],
            [[0, 0, 2, 2]],
            [0, 0, None, 2],
            [0, 0, True, 2],
            ["a", 0, 2, 2],
            [0, 0, {}, 2],
            "0 0 2 2",
            {"x": 0},
            [],
            None,
        )
    },
    **{
        f"category {id_}": ({"category_id": id_}, "of an unknown category")
        for id_ in (9, "9", "x", None, 2.5, True, [2])
    },
    **{
        f"image {id_}": ({"image_id": id_}, "of an unknown image")
        for id_ in (9, "x", None, 1.5, True, {}, HUGE)
    },
    **{
        f"crowd {value}": ({"iscrowd": value}, "whose 'iscrowd' is neither 0 nor 1")
        for value in (2, -1, "maybe", 0.5, NAN, [0], {})
    },
    "again": ({"id": 3, "image_id": 2}, "that repeat another"),
    **{
        f"keypoints {value}": ({"keypoints": value}, "whose keypoints are no triples of numbers")
        for value in ([1, 2], [1, 2, None], [1, "a", 2], {"x": 1}, 7)
    },
    "no mask": ({"segmentation": []}, "without a mask"),
    "null mask": ({"segmentation": None}, "without a mask"),
    "two corners": ({"segmentation": [[0, 0, 2, 2]]}, "without a mask"),
    "empty polygon": ({"segmentation": [[]]}, "without a mask"),
    "mask as text": ({"segmentation": "mask.png"}, "whose mask is neither polygons nor run lengths"),
    "outside mask": ({"segmentation": [[7, 0, 9, 2, 9, 0]]}, "whose mask is outside the image"),
    "odd polygon": ({"segmentation": [[*SQUARE, 1]]}, "whose mask has a polygon of an odd number"),
    "zigzag": ({"segmentation": [[0, 0, 1e6, 1e6] * 9]}, "whose mask has a polygon of an impossible length"),
    **{
        f"corner {value}": (
            {"segmentation": [[*SQUARE[:-1], value]]},
            "whose mask has a corner that is infinite",
        )
        for value in (NAN, INF, -INF, 1e15, None, HUGE)
    },
    **{
        f"polygon {polygon}": (
            {"segmentation": [polygon]},
            "whose mask has a polygon that is no list of numbers",
        )
        for polygon in (
            [{"x": 0, "y": 0}, {"x": 0, "y": 2}, {"x": 2, "y": 2}],
            [*SQUARE[:-1], "a"],
            [[0, 0, 1], [0, 2, 1], [2, 2, 1]],
            [[0, 0], [0, 2], [2]],
            {"all_points_x": [0, 1, 2]},
        )
    },
    "size": ({"segmentation": run_lengths(COMPRESSED, (5, 6))}, "whose mask is not of the image's size"),
    "turned": ({"segmentation": run_lengths(COMPRESSED, (6, 4))}, "whose mask is not of the image's size"),
    "no size": ({"segmentation": {"counts": RUNS}}, "whose mask is not of the image's size"),
    "odd size": ({"segmentation": run_lengths(RUNS, 24)}, "whose mask is not of the image's size"),
    "empty": ({"segmentation": run_lengths([24])}, "whose mask is empty"),
    **{
        f"runs {counts}": ({"segmentation": run_lengths(counts)}, "run lengths do not add up to the image")
        for counts in (
            [3, 5],
            [30, -6],
            [2**32, 24],
            [],
            None,
            7,
            [None, 24],
            [True, 23],
            [0.5, 23.5],
            [24, NAN],
            "",
            "??",
            COMPRESSED[:-1],
            COMPRESSED + "o",
            "o" * 50,
            COMPRESSED + "\ud800",
            "ü" + COMPRESSED,
            "P" * 6 + "0",
            {},
        )
    },
    "no object": (7, "that are not JSON objects"),
    "list": ([], "that are not JSON objects"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_skipped(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counted, and named with file and place, once; the other annotation is used."""
    odd, reason = SKIPPED[case]
    odd = {**GOOD, **odd} if isinstance(odd, dict) else odd
    path = write(tmp_path, {**SOUND, "annotations": [SOUND["annotations"][1], odd]})
    register_coco("odd", path, tmp_path)
    with caplog.at_level("WARNING", logger="detectron2.piip"):
        for _ in range(2):
            (record,) = dataset_dicts("odd")
    assert Path(record["file_name"]).name == "b.png" and len(record["annotations"]) == 1
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert said.startswith(f"{path}: skipped 1 annotations ") and reason in said
    assert "(first: annotations[1]" in said and "\n" not in said
    assert len(COCOEvaluator("odd", distributed=False)._coco_api.anns) == 1


FIXED = {  # what is odd about one of two annotations -> what it becomes, and what is said
    **{
        f"crowd {value!r}": ({"iscrowd": value}, {"iscrowd": crowd}, "whose 'iscrowd' is not written 0 or 1")
        for value, crowd in (
            ("0", 0),
            ("1", 1),
            ("True", 1),
            ("false", 0),
            ("", 0),
            (None, 0),
            (0.0, 0),
            (1.0, 1),
            (True, 1),
            (False, 0),
        )
    },
    "ignored": ({"ignore": 1}, {"iscrowd": 1}, "to be ignored"),
    "ids as text": (
        {"id": "1", "image_id": "1", "category_id": "2", "area": "4"},
        {"id": 1, "image_id": 1, "category_id": 2, "area": 4},
        "with numbers written as text",
    ),
    "keypoints as text": ({"keypoints": ["1", 2, "2"]}, {"keypoints": [1, 2, 2]}, "with numbers"),
    "ids as floats": (
        {"image_id": 1.0, "category_id": 2.0},
        {"image_id": 1, "category_id": 2},
        "with numbers",
    ),
    "box as text": ({"bbox": ["0", "0", "2", "2.0"]}, {"bbox": [0, 0, 2, 2]}, "with numbers written as text"),
    **{
        f"area {area}": ({"area": area}, {"area": 4}, "without an area")
        for area in (None, NAN, -1, "x", [4], 1e15, HUGE, True)
    },
    **{
        f"id {id_}": ({"id": id_}, {"id": 1}, "whose id is no positive number of their own")
        for id_ in (0, -3, None, "x", [1], 2.5, True, HUGE, 3)
    },
    "points": (
        {"segmentation": [[[0, 0], [0, 2], [2, 2], [2, 0]]]},
        {"segmentation": [SQUARE]},
        "with polygons in another form",
    ),
    "points without list": (
        {"segmentation": [[0, 0], [0, 2], [2, 2], [2, 0]]},
        {"segmentation": [SQUARE]},
        "with polygons in another form",
    ),
    "contours": (
        {"segmentation": [[[[0, 0]], [[0, 2]], [[2, 2]], [[2, 0]]]]},
        {"segmentation": [SQUARE]},
        "with polygons in another form",
    ),
    "flat": ({"segmentation": SQUARE}, {"segmentation": [SQUARE]}, "with polygons in another form"),
    "corners as text": (
        {"segmentation": [[str(value) for value in SQUARE]]},
        {"segmentation": [SQUARE]},
        "with polygons in another form",
    ),
    "small polygons": (
        {"segmentation": [[0, 0, 1], SQUARE, []]},
        {"segmentation": [SQUARE]},
        "with polygons of fewer than three corners, which were removed",
    ),
}


@pytest.mark.parametrize("case", FIXED)
def test_fixed(case: str) -> None:
    odd, expected, reason = FIXED[case]
    checked = sanitize_annotations({**SOUND, "annotations": [{**GOOD, **odd}, SOUND["annotations"][1]]})
    annotation = checked.content["annotations"][0]
    assert {key: annotation[key] for key in expected} == expected
    assert all(type(annotation[key]) is not bool for key in ("id", "iscrowd", "area"))
    assert not checked.skipped
    ((kind, (count, first)),) = checked.fixed.items()
    assert reason in kind and count == (2 if case == "id 3" else 1)
    assert first.startswith("annotations[0], id ") and first.endswith(" of 'a.png'")


def test_crowds_alone_are_said() -> None:
    crowds = [{**annotation, "iscrowd": "true"} for annotation in SOUND["annotations"]]
    checked = sanitize_annotations({**SOUND, "annotations": crowds})
    assert checked.remarks == ["all annotations are crowds, which are neither learned nor measured"]
    assert not sanitize_annotations({**SOUND, "annotations": [crowds[0], SOUND["annotations"][1]]}).remarks


def test_fields_that_may_be_absent() -> None:
    bare = [{k: a[k] for k in ("image_id", "category_id", "bbox")} for a in SOUND["annotations"]]
    checked = sanitize_annotations({**SOUND, "annotations": bare})
    assert [(a["id"], a["iscrowd"], a["area"]) for a in checked.content["annotations"]] == [
        (1, 0, 4),
        (2, 0, 4),
    ]


@pytest.mark.parametrize(
    "counts", [RUNS, COMPRESSED, [float(run) for run in RUNS], [str(run) for run in RUNS]]
)
@pytest.mark.parametrize("size", [(4, 6), ["4", 6.0]])
def test_run_lengths_in_any_form(counts: Any, size: Any) -> None:
    odd = {**GOOD, "segmentation": run_lengths(counts, size), "area": None}
    checked = sanitize_annotations({**SOUND, "annotations": [odd]})
    (annotation,) = checked.content["annotations"]
    assert annotation["area"] == 4 and not checked.remarks
    expected = np.zeros((4, 6), np.uint8)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), expected)


def test_damaged_run_lengths_never_reach_pycocotools() -> None:
    """Of 1500 damaged texts those that pass are masks of the image's size; sound ones always pass."""
    rng = np.random.default_rng(0)
    passed = 0
    for number in range(1500):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        mask[0, 0] = 1
        text = coco_mask.encode(mask)["counts"].decode()
        damaged = list(text)
        if number % 2:
            position = int(rng.integers(len(text)))
            damaged[position : position + int(rng.integers(3))] = [chr(rng.integers(32, 127))]
        image = {**IMAGE, "height": height, "width": width}
        entry = {**GOOD, "bbox": [0, 0, width, height], "area": None}
        entry["segmentation"] = run_lengths("".join(damaged), (height, width))
        checked = sanitize_annotations({**SOUND, "images": [image], "annotations": [entry]})
        for annotation in checked.content["annotations"]:
            passed += 1
            assert coco_mask.decode(annotation["segmentation"]).sum() == annotation["area"]
        assert number % 2 or checked.content["annotations"]
    assert passed >= 750


def test_a_sound_file_is_left_as_it_is() -> None:
    checked = sanitize_annotations(SOUND)
    assert checked.content == SOUND and str(checked) == ""
    assert all(a is b for a, b in zip(checked.content["annotations"], SOUND["annotations"], strict=True))


IMAGES: dict[str, tuple[Any, str]] = {
    **{
        f"size {size}": ({"height": size}, "whose height and width are no whole numbers of pixels")
        for size in (None, 0, -4, "x", 4.5, NAN, True, [4], HUGE)
    },
    "huge": ({"height": 10**9}, "of an impossible size"),
    **{f"id {id_}": ({"id": id_}, "without an id") for id_ in (None, 1.5, [], {}, True, "", HUGE)},
    "a number and a name": ({"id": "x"}, "whose id is no number as the others' are"),
    **{
        f"name {name}": ({"file_name": name}, "without a file name")
        for name in (None, "", 7, ["a"], "a\0", "\ud800.png")
    },
    "number": (7, "that are not JSON objects"),
    "twice": ({**OTHER}, "listed twice"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_cannot_be_used(case: str) -> None:
    odd, reason = IMAGES[case]
    images = [OTHER, {**IMAGE, **odd} if isinstance(odd, dict) else odd]
    checked = sanitize_annotations({**SOUND, "images": images})
    assert checked.content["images"] == [OTHER]
    assert [a["image_id"] for a in checked.content["annotations"]] == [2]
    count, first = checked.skipped[f"images {reason}"]
    assert count == 1 and ("images[1]" in first or "a.png" in first)
    assert "annotations of an unknown image" in checked.skipped


@pytest.mark.parametrize("value", [128.0, "128", " 128 ", "128.0"])
def test_sizes_and_ids_in_any_form(value: Any) -> None:
    images = [{**IMAGE, "height": value, "width": value, "id": "0"}, {**OTHER, "id": 2.0}]
    annotations = [{**GOOD, "image_id": 0}, {**GOOD, "id": 3, "image_id": "2"}]
    checked = sanitize_annotations({**SOUND, "images": images, "annotations": annotations})
    first, second = checked.content["images"]
    assert (first["id"], first["height"], first["width"], second["id"]) == (0, 128, 128, 2)
    assert len(checked.content["annotations"]) == 2 and not checked.skipped


def test_images_named_by_text() -> None:
    """Ids of images may be text that is no number, where all are."""
    images = [{**IMAGE, "id": "x"}, {**OTHER, "id": "y"}]
    annotations = [{**GOOD, "image_id": "x"}, {**GOOD, "id": 3, "image_id": "y"}]
    content = {**SOUND, "images": images, "annotations": annotations}
    assert sanitize_annotations(content).content == content


def test_one_file_under_two_ids_is_said() -> None:
    """Each of the two entries may have the other's objects as background."""
    checked = sanitize_annotations({**SOUND, "images": [IMAGE, {**OTHER, "file_name": "a.png"}]})
    assert checked.remarks == ["1 files are listed under several image ids (first: 'a.png')"]


def test_file_names_of_any_kind(tmp_path: Path) -> None:
    """Line breaks and bytes that are no UTF-8 are escaped where they are said."""
    images = [{**IMAGE, "file_name": "a\nb\udcff.png", "width": "6"}, OTHER]
    checked = sanitize_annotations({**SOUND, "images": images})
    assert checked.content["images"][0]["file_name"] == "a\nb\udcff.png"
    assert str(checked).endswith(r"(first: images[0], id 1 of 'a\nb\udcff.png')")


def test_images_with_one_id(tmp_path: Path) -> None:
    """Their annotations cannot be told apart: none of them is used."""
    clash = {**OTHER, "id": 1}
    checked = sanitize_annotations({**SOUND, "images": [IMAGE, clash, OTHER]})
    assert checked.content["images"] == [OTHER]
    assert {kind: count for kind, (count, _) in checked.skipped.items()} == {
        "images with the id of another": 2,
        "annotations of an unknown image": 1,
    }


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([{"id": "2", "name": "a"}, {"id": 5.0, "name": "b"}], {2: "a", 5: "b"}),
        ([{"id": 0, "name": "a"}, {"id": 2, "name": 7}], {0: "a", 2: "7"}),
        ([{"id": 2, "name": "\ufeffa"}, {"id": 2**53, "name": " b\n"}], {2: "a", 2**53: "b"}),
        ([{"id": 2, "name": "a"}, {"id": 5, "name": "a"}], {2: "a (id 2)", 5: "a (id 5)"}),
        (
            [{"id": 2, "name": "a"}, {"id": 5, "name": "a "}, {"id": 6, "name": "b"}],
            {2: "a (id 2)", 5: "a (id 5)", 6: "b"},
        ),
        ([{"id": 2, "name": "a"}, {"id": 5, "name": "a"}, {"id": 6, "name": "a (id 5)"}], ANY),
    ],
)
def test_categories_are_told_apart(categories: Any, expected: Any) -> None:
    checked = sanitize_annotations({**SOUND, "categories": categories})
    found = {category["id"]: category["name"] for category in checked.content["categories"]}
    assert len(set(found.values())) == len(categories) and (expected is ANY or found == expected)
    assert any("categories" in kind for kind in checked.fixed)


NOT_COCO: dict[str, tuple[Any, str]] = {
    "no JSON": ("{not json", "is not JSON, or cut short"),
    "cut": (json.dumps(SOUND)[:-40], "is not JSON, or cut short"),
    "nothing": ("", "is not JSON, or cut short"),
    "deep": ("[" * 100_000, "is not JSON, or cut short"),
    "digits": ("[" + "9" * 5000 + "]", "is not JSON, or cut short"),
    "list": ([1, 2], "its top level is a list, expected an object"),
    "null": ("null", "its top level is a NoneType, expected an object"),
    "other": ({"shapes": []}, "it has no list 'images'"),
    "images by id": ({**SOUND, "images": {"1": IMAGE}}, "it has no list 'images'"),
    "annotations by id": ({**SOUND, "annotations": {"1": GOOD}}, "it has no list 'annotations'"),
    "no annotations": ({**SOUND, "annotations": None}, "it has no list 'annotations'"),
    "no categories": ({k: v for k, v in SOUND.items() if k != "categories"}, "it has no list 'categories'"),
    "empty categories": ({**SOUND, "categories": []}, "it has no categories"),
    "twice": (
        {**SOUND, "categories": [*SOUND["categories"], {"id": "2", "name": "c"}]},
        "have the same id 2",
    ),
    **{
        f"category {entry}": (
            {**SOUND, "categories": [entry]},
            "every category needs a whole number 'id' and a",
        )
        for entry in (
            7,
            "thing",
            {"id": 2},
            {"id": 2, "name": None},
            {"id": 2, "name": " "},
            {"id": 2, "name": ["a"]},
            {"id": None, "name": "a"},
            {"id": 2.5, "name": "a"},
            {"id": True, "name": "a"},
            {"id": 1e300, "name": "a"},
            {"id": "x", "name": "a"},
        )
    },
}


@pytest.mark.parametrize("case", NOT_COCO)
def test_not_a_coco_file(case: str, tmp_path: Path) -> None:
    """One line that names the file and what is wrong with it."""
    content, reason = NOT_COCO[case]
    path = write(tmp_path, content)
    register_coco("not_coco", path, tmp_path)
    register_lvis("not_lvis", path, tmp_path)
    for read in (dataset_dicts, lambda name: COCOEvaluator(name, distributed=False)):
        with pytest.raises(ValueError, match=r"is not JSON|is not a COCO annotation file") as caught:
            read("not_coco")
        assert reason in str(caught.value) and str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is not JSON|is not an LVIS annotation file"):
        dataset_dicts("not_lvis")


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: gzip.compress(text.encode()),
    ],
    ids=["byte order mark", "UTF-16", "gzip"],
)
def test_encodings(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(encode(json.dumps(SOUND)))
    assert read_annotations(path).content == SOUND
    path.write_bytes(encode(json.dumps(SOUND))[:-30])
    with pytest.raises(ValueError, match="is not JSON, or cut short"):
        read_annotations(path)


def boxes_file(boxes: list[list[float]], masks: bool) -> dict[str, Any]:
    """100 x 200 px; the objects are the inner boxes of a grid."""
    images = [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}]
    annotations = []
    for number, (x, y, w, h) in enumerate(GRID):
        entry = {**GOOD, "id": number + 1, "bbox": boxes[number], "area": w * h}
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]] if masks else []
        annotations.append(entry)
    return {**SOUND, "images": images, "annotations": annotations}


GRID = [[x, y, 20.0, 12.0] for x in (10.0, 80.0, 170.0) for y in (10.0, 50.0, 80.0)]
READINGS = {
    "[x1, y1, x2, y2]": [[x, y, x + w, y + h] for x, y, w, h in GRID],
    "shares of the image's size": [[x / 200, y / 100, w / 200, h / 100] for x, y, w, h in GRID],
    "[x centre, y centre, width, height]": [[x + w / 2, y + h / 2, w, h] for x, y, w, h in GRID],
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("masks", [True, False])
def test_boxes_of_another_format_are_said(reading: str, masks: bool) -> None:
    checked = sanitize_annotations(boxes_file(READINGS[reading], masks))
    assert not checked.skipped and not checked.fixed
    if not masks and "centre" in reading:  # nothing tells them
        return
    (remark,) = checked.remarks
    assert (
        reading in remark
        and "(first: annotations[" in remark
        and "COCO's are [x, y, width, height]" in remark
    )
    assert ("of 9 boxes do not agree with their masks" in remark) == masks


@pytest.mark.parametrize("masks", [True, False])
def test_nothing_is_said_of_right_boxes(masks: bool) -> None:
    assert not str(sanitize_annotations(boxes_file(GRID, masks)))
    beyond = [[x, y, w + 30.5, h] for x, y, w, h in GRID]  # as in Objects365
    assert not str(sanitize_annotations(boxes_file(beyond, False)))


def test_no_image_to_use(tmp_path: Path) -> None:
    """Said before training, with what was skipped."""
    path = write(tmp_path, {**SOUND, "images": [{**IMAGE, "width": None}]})
    register_coco("none", path, tmp_path)
    with pytest.raises(
        ValueError, match=r"annotations\.json cannot be used: .*; skipped 1 images whose height"
    ):
        dataset_dicts("none", filter_empty=False)
    path = write(tmp_path, {**SOUND, "annotations": []})
    register_coco("empty", path, tmp_path)
    assert len(dataset_dicts("empty", filter_empty=False)) == 2
    with pytest.raises(ValueError, match=r"annotations\.json cannot be used: No valid data found in empty"):
        dataset_dicts("empty")


def test_what_detectron2_registered_is_checked_too(tmp_path: Path) -> None:
    path = write(tmp_path, {**SOUND, "images": [IMAGE, {**OTHER, "height": "4"}], "annotations": [GOOD, 7]})
    register_coco_instances("theirs", {"thing_colors": [(0, 0, 0)] * 2}, str(path), str(tmp_path))
    records = dataset_dicts("theirs", filter_empty=False)
    assert [(record["height"], len(record["annotations"])) for record in records] == [(4, 1), (4, 0)]
    assert MetadataCatalog.get("theirs").thing_classes == ["thing", "stuff"]


def test_keypoints_are_read_as_detectron2_does(tmp_path: Path) -> None:
    """Half a pixel is added to the coordinates, not to the visibility."""
    register_coco(
        "keypoints", write(tmp_path, {**SOUND, "annotations": [{**GOOD, "keypoints": [1, 2, 2]}]}), tmp_path
    )
    (record,) = dataset_dicts("keypoints")
    assert record["annotations"][0]["keypoints"] == [1.5, 2.5, 2]


def test_other_classes_than_registered(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    classes = {"thing_classes": ["a"], "thing_dataset_id_to_contiguous_id": {1: 0}}
    register_coco("other", path, tmp_path, classes)
    with pytest.raises(
        ValueError,
        match=r"has 2 classes \(thing, stuff\), dataset 'other' 1 classes \(a\): give the file as --data",
    ):
        dataset_dicts("other")


def detections(record: dict[str, Any]) -> Instances:
    import torch

    masks = BitMasks(torch.zeros(1, record["height"], record["width"], dtype=torch.bool))
    masks.tensor[:, :2, :2] = True
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 2.0, 2.0]])),
        scores=torch.ones(1),
        pred_classes=torch.zeros(1, dtype=torch.int64),
        pred_masks=masks.tensor,
    )


@pytest.mark.parametrize("tasks", [None, ("bbox", "segm")])
@pytest.mark.parametrize("masks", [True, False])
def test_evaluation_measures_what_the_annotations_have(
    tasks: Any, masks: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model with a mask head on boxes alone: box AP, and a line; ids that were text are the records'."""
    annotations = [{**a, "category_id": "2", "image_id": str(a["image_id"])} for a in SOUND["annotations"]]
    if not masks:
        annotations = [{**a, "segmentation": []} for a in annotations]
    register_coco("measured", write(tmp_path, {**SOUND, "annotations": annotations}), tmp_path)
    records = dataset_dicts("measured", filter_empty=False)
    with caplog.at_level("WARNING", logger="detectron2.piip"):
        evaluator = COCOEvaluator("measured", tasks, distributed=False)
        evaluator.reset()
        for record in records:
            evaluator.process([record], [{"instances": detections(record)}])
        results = evaluator.evaluate()
    assert {task: figures["AP"] for task, figures in results.items()} == dict.fromkeys(
        ("bbox", "segm") if masks else ("bbox",), pytest.approx(100)
    )
    assert ("have no masks: only boxes are evaluated" in caplog.text) != masks


def test_a_test_set_without_annotations(tmp_path: Path) -> None:
    """As COCO's test sets: there are records to predict on, and nothing to measure."""
    register_coco("test", write(tmp_path, {k: v for k, v in SOUND.items() if k != "annotations"}), tmp_path)
    records = dataset_dicts("test", filter_empty=False)
    assert len(records) == 2
    evaluator = COCOEvaluator("test", distributed=False)
    evaluator.reset()
    evaluator.process(records[:1], [{"instances": detections(records[0])}])
    assert evaluator.evaluate() == {}


@pytest.mark.parametrize(
    "odd",
    [
        {"image_count": "many", "frequency": "x"},
        {"image_count": None, "frequency": None},
        {"image_count": -1, "frequency": 3},
        {},
    ],
)
def test_lvis_values(odd: dict[str, Any], tmp_path: Path) -> None:
    """What LVIS's own fields hold is checked as well."""
    searched = {"neg_category_ids": ["5", None, 2.0], "not_exhaustive_category_ids": []}
    content = {**SOUND, "images": [IMAGE | searched, OTHER | searched]}
    content["categories"] = [{"id": 2, "name": "thing", **odd}, {"id": 5, "name": "stuff"}]
    checked = read_lvis(write(tmp_path, content))
    assert [image["neg_category_ids"] for image in checked.content["images"]] == [[5, 2], [5, 2]]
    assert [(c["image_count"], c["frequency"]) for c in checked.content["categories"]] == [(2, "r"), (0, "r")]
    content["images"] = [IMAGE]
    with pytest.raises(ValueError, match=r"images\[0\] lacks a list 'neg_category_ids'; a COCO file needs"):
        read_lvis(write(tmp_path, content))


@pytest.mark.parametrize("content", ["[", {"a": 1}, [7], [{"image_id": 1, "score": 0.5}]])
def test_results_to_draw_that_are_none(content: Any, tmp_path: Path) -> None:
    register_coco("sound", write(tmp_path, SOUND), tmp_path)
    results = tmp_path / "results.json"
    results.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"results\.json is (not JSON|no list of COCO results)"):
        compare("sound", results, tmp_path / "pictures")
