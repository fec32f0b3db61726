"""The rules of mmdetection, one by one, beyond what the golden data show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from .... import require

require.detectron2()

import cv2
import numpy as np
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as coco_mask
from torch import Tensor

from piip.detection.data import dataset_dicts, register_coco
from piip.detection.mmdetection.mapper import ReleasedMapper
from piip.detection.mmdetection.masks import SharedBitMasks
from piip.detection.mmdetection.matching import MaxIoUMatcher
from piip.detection.mmdetection.rules import use_rules
from piip.engine.data.custom_data import use_custom_dataset
from piip.engine.resize import ResizeToFit

from ...tiny_config import QUICK_CONFIG, REPOSITORY, tiny_config


def assigned(overlaps: Tensor, negative: float, positive: float, least: float) -> list[tuple[int, int]]:
    """Label and object of each box, one object after the other, as mmdetection assigns."""
    found = []
    for column in overlaps.unbind(1):
        best = float(column.max())
        label = 1 if best >= positive else 0 if best < negative else -1
        found.append((label, int(column.argmax())))
    for number, row in enumerate(overlaps):
        if row.max() >= least:
            for place in (row == row.max()).nonzero().flatten().tolist():
                found[place] = (1, number)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("thresholds", "labels"), [([0.3, 0.7], [0, -1, 1]), ([0.5], [0, 1])])
def test_matching(thresholds: list[float], labels: list[int], seed: int) -> None:
    """Overlaps in tenths tie often, within a row and within a column, and lie on the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    overlaps = torch.randint(0, 11, (12, 40), generator=generator).double() / 10
    overlaps[:4] *= 0.3  # objects that no box overlaps much
    matches, found = MaxIoUMatcher(thresholds, labels, thresholds[0])(overlaps)
    expected = assigned(overlaps, thresholds[0], thresholds[-1], thresholds[0])
    assert list(zip(found.tolist(), matches.tolist(), strict=True)) == expected


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    matches, labels = MaxIoUMatcher([0.3, 0.7], [0, -1, 1], 0.3)(torch.zeros(shape))
    assert matches.tolist() == labels.tolist() == [0] * shape[1]


def test_shared_masks_are_bitmasks() -> None:
    """Selected twice and cropped, they are what copies are."""
    generator = torch.Generator().manual_seed(0)
    bitmaps = torch.rand(3, 20, 30, generator=generator) < 0.5
    boxes = torch.rand(5, 4, generator=generator) * 10 + torch.tensor([0, 0, 10, 10])
    for select in (torch.tensor([2, 0, 0, 1, 2]), slice(0, 2), torch.tensor([True, False, True])):
        plain, shared = BitMasks(bitmaps)[select], SharedBitMasks(bitmaps)[select]
        assert len(shared) == len(plain) and shared.tensor.equal(plain.tensor)
        assert shared.nonempty().equal(plain.nonempty())
        crops = plain.crop_and_resize(boxes[: len(plain)], 7)
        assert shared.crop_and_resize(boxes[: len(plain)], 7).equal(crops)
        assert shared[1].tensor.equal(plain[1].tensor)


POLYGON = [2.0, 3.0, 40.5, 3.0, 40.5, 30.25, 2.0, 30.25]
OBJECT = {"bbox": [2, 3, 38.5, 27.25], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "area": 1049.1}


def mapped(tmp_path: Path, *annotations: dict[str, Any]) -> Instances:
    """What the mapper makes of the annotations of an image of 100x80 px, resized to 50x40 px and flipped."""
    file = str(tmp_path / "image.png")
    cv2.imwrite(file, np.zeros((80, 100, 3), np.uint8))
    mapper = ReleasedMapper(
        is_train=True,
        augmentations=[ResizeToFit(50, 50), T.RandomFlip(1.0)],
        image_format="RGB",
        use_instance_mask=True,
    )
    record = {"file_name": file, "height": 80, "width": 100, "annotations": list(annotations)}
    instances: Instances = mapper(record)["instances"]
    return instances


def test_masks_are_drawn_before_they_are_resized(tmp_path: Path) -> None:
    """A polygon is its bitmap at the original size: every second pixel of it, mirrored."""
    drawn = coco_mask.merge(coco_mask.frPyObjects([POLYGON], 80, 100))
    expected = torch.from_numpy(coco_mask.decode(drawn)[::2, ::2][:, ::-1].copy()).bool()
    for mask in ([POLYGON], drawn):
        instances = mapped(tmp_path, {**OBJECT, "segmentation": mask})
        assert instances.gt_masks.tensor.equal(expected[None])
        torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[29.75, 1.5, 49, 15.125]]))


def test_an_object_whose_mask_is_lost_stays(tmp_path: Path) -> None:
    """Pixel (3, 3) alone: a resize to half the size takes even pixels only."""
    pixel = np.zeros((80, 100), np.uint8, order="F")
    pixel[3, 3] = 1
    instances = mapped(tmp_path, {**OBJECT, "segmentation": coco_mask.encode(pixel), "bbox": [3, 3, 1, 1]})
    assert len(instances) == 1 and not instances.gt_masks.tensor.any()


LEFT_OUT: dict[str, dict[str, Any]] = {
    "crowd": {"iscrowd": 1},
    "to be ignored": {"ignore": 1},
    "no area": {"area": 0},
    "narrow": {"bbox": [2, 3, 0.99, 20]},
    "flat": {"bbox": [2, 3, 20, 0.99]},
    "outside": {"bbox": [100, 3, 20, 20]},
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_annotations_left_out(case: str, tmp_path: Path) -> None:
    """The other object stays; an image with such annotations only has no objects."""
    good, odd = ({**OBJECT, "segmentation": [POLYGON], **more} for more in ({}, LEFT_OUT[case]))
    assert len(mapped(tmp_path, good, odd)) == 1
    assert len(mapped(tmp_path, odd)) == 0


def test_a_box_of_one_pixel_is_trained_on(tmp_path: Path) -> None:
    assert len(mapped(tmp_path, {**OBJECT, "segmentation": [POLYGON], "bbox": [2, 3, 1, 1]})) == 1


def test_images_trained_on(tmp_path: Path) -> None:
    """Those with an annotation of any kind and no side below 32 px."""
    sizes = {
        "plain": (32, 40),
        "crowd": (40, 40),
        "ignore": (40, 40),
        "narrow": (40, 40),
        "empty": (40, 40),
        "small": (40, 31),
    }
    images = [
        {"id": i, "file_name": f"{name}.png", "height": height, "width": width}
        for i, (name, (height, width)) in enumerate(sizes.items(), start=1)
    ]
    odd: dict[str, dict[str, Any]] = {
        "crowd": {"iscrowd": 1},
        "ignore": {"ignore": 1},
        "narrow": {"bbox": [0, 0, 0.5, 9]},
    }
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [0, 0, 9, 9],
            "iscrowd": 0,
            "area": 81,
            **odd.get(name, {}),
        }
        for i, name in enumerate(sizes, start=1)
        if name != "empty"
    ]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]})
    )
    register_coco("odd_images", path, tmp_path)

    def names(**options: Any) -> list[str]:
        return [Path(record["file_name"]).stem for record in dataset_dicts("odd_images", **options)]

    assert names(rules="mmdetection") == ["plain", "crowd", "ignore", "narrow"]
    assert names() == ["plain", "narrow", "small"]
    assert names(rules="mmdetection", filter_empty=False) == list(sizes)


def rules_of(cfg: Any) -> set[str]:
    """Whose classes the parts are that the two libraries have their own of."""
    heads, train = cfg.model.roi_heads, cfg.dataloader.train
    parts = [
        cfg.model,
        cfg.model.proposal_generator,
        cfg.model.proposal_generator.anchor_matcher,
        train.mapper,
    ]
    parts += [] if "box_heads" in heads else [heads, heads.proposal_matcher]
    ours = {"mmdetection" if part._target_.__module__.startswith("piip") else "detectron2" for part in parts}
    return ours | {train.dataset.get("rules", "detectron2")}


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        ("COCO/mask_rcnn_piip_tsb_1120_896_448_1x", "mmdetection"),
        ("COCO/mask_rcnn_piip_h6b_1024_512_1x", "mmdetection"),
        ("COCO/mask_rcnn_piip_ct_cs_cb_1024_672_448_1x", "mmdetection"),
        ("COCO/cascade_mask_rcnn_piip_sbl_1568_1120_672_3x", "mmdetection"),
        ("COCO/vitdet_recipe/mask_rcnn_piip_sbl_1120_672_448_100ep", "detectron2"),
        ("LVIS/cascade_mask_rcnn_piip_sbl_1120_672_448_100ep", "detectron2"),
        ("quick/mask_rcnn_piip_128_96_64_shapes", "detectron2"),
    ],
)
def test_rules_of_configs(config: str, rules: str) -> None:
    """Released detectors train as released, everything else by Detectron2's rules; one line chooses."""
    cfg = LazyConfig.load(str(REPOSITORY / f"configs/{config}.py"))
    assert rules_of(cfg) == {rules}
    assert cfg.dataloader.own_data.get("rules", "detectron2") == "detectron2"
    for other in ("detectron2", "mmdetection"):
        use_rules(other, cfg.model, cfg.dataloader)
        assert rules_of(cfg) == {other} and cfg.dataloader.own_data.rules == other
    cfg.model.proposal_generator.anchor_matcher._target_ = ResizeToFit  # some class of neither library
    use_rules("detectron2", cfg.model, cfg.dataloader)
    assert cfg.model.proposal_generator.anchor_matcher._target_ is ResizeToFit
    with pytest.raises(ValueError, match="no rules 'mmdet': use one of detectron2, mmdetection"):
        use_rules("mmdet", cfg.model)


def test_matchers_come_back_as_they_were() -> None:
    """Through both rules and back, Detectron2's matchers are those of its own configuration."""
    cfg = LazyConfig.load(str(QUICK_CONFIG))
    before = cfg.model.proposal_generator.anchor_matcher.copy(), cfg.model.roi_heads.proposal_matcher.copy()
    for rules in ("mmdetection", "detectron2"):
        use_rules(rules, cfg.model, cfg.dataloader)
    assert (cfg.model.proposal_generator.anchor_matcher, cfg.model.roi_heads.proposal_matcher) == before
    assert before[0]._target_ is Matcher and before[0].allow_low_quality_matches


@pytest.mark.parametrize("rules", ["detectron2", "mmdetection"])
def test_own_data(rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Detectron2's rules unless told otherwise; a step of either has finite losses."""
    cfg = tiny_config(
        tmp_path, monkeypatch, *([f"dataloader.own_data.rules={rules}"] * (rules != "detectron2"))
    )
    use_rules("mmdetection", cfg.model)
    folder = tmp_path / "datasets/shapes"
    use_custom_dataset(cfg, [f"{folder}/instances_train.json:{folder}/train"], train=True)
    assert rules_of(cfg) == {rules}
    loader, model = instantiate(cfg.dataloader.train), instantiate(cfg.model)
    with EventStorage():
        losses: dict[str, Tensor] = model(next(iter(loader)))
    assert all(loss.isfinite() for loss in losses.values()) and len(losses) == 5


def test_divisor_of_the_proposals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without objects: each of an image's anchors loses log 2, divided by 1 more than there are."""
    cfg = tiny_config(tmp_path, monkeypatch)
    use_rules("mmdetection", cfg.model)
    model = instantiate(cfg.model)
    for parameter in model.proposal_generator.rpn_head.parameters():
        torch.nn.init.zeros_(parameter)
    empty = Instances(
        (64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64)
    )
    batch = [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": empty}] * 2
    with EventStorage():
        losses = model(batch)
    sampled = model.proposal_generator.batch_size_per_image
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2) * sampled / (sampled + 1), rel=1e-6)
    assert losses["loss_rpn_loc"] == losses["loss_box_reg"] == losses["loss_mask"] == 0


@pytest.mark.parametrize(("divisibility", "columns"), [(64, 16), (32, 8), (24, 6), (20, 5)])
def test_anchors_beyond_an_images_padding(divisibility: int, columns: int) -> None:
    """An image of 17 px in a batch of 64 px, at stride 4: those of cells from ceil(own side / 4) on."""
    cfg = LazyConfig.load(str(QUICK_CONFIG))
    use_rules("mmdetection", cfg.model)
    rpn = instantiate(cfg.model.proposal_generator)
    rpn.size_divisibility, rpn.batch_size_per_image = divisibility, 10**6
    anchors = rpn.anchor_generator([torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8)])
    truth = Instances((17, 17), gt_boxes=Boxes(torch.zeros(0, 4)))
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [truth])
    cells = labels[: 16 * 16 * 3].reshape(16, 16, 3)
    expected = torch.full((16, 16, 3), -1)
    expected[:columns, :columns] = 0
    assert cells.equal(expected.to(cells.dtype))
