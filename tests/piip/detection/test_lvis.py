"""LVIS: reading, sampling of rare classes, federated loss, evaluation, custom datasets in its format."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ... import require

require.detectron2()

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from piip.detection.data import dataset_dicts
from piip.detection.lvis import FederatedWeights, LVISEvaluator, read_lvis, register_lvis
from piip.engine.config import load_config
from piip.engine.data.custom_data import use_custom_dataset
from piip.engine.data.loader import BatchSampler, TrainLoader
from piip.engine.train import train

from ..tiny_config import REPOSITORY, tiny_config

LVIS = REPOSITORY / "configs/LVIS/mask_rcnn_piip_tsb_1120_896_448_100ep.py"
CASCADE = REPOSITORY / "configs/LVIS/cascade_mask_rcnn_piip_sbl_1120_672_448_100ep.py"


def lvis_file(coco: Path) -> Path:
    """The drawn shapes as LVIS v1 writes them: an address for a file name, no crowds."""
    content = json.loads(coco.read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://images.example/{coco.stem.split('_')[1]}/{image.pop('file_name')}"
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        absent = sorted({c["id"] for c in content["categories"]} - present)
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = absent, []
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    path = coco.with_name(f"lvis_{coco.stem}.json")
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quick Mask R-CNN, with what the LVIS config changes."""
    cfg = tiny_config(tmp_path, monkeypatch, "train.max_iter=2")
    lvis = load_config(str(LVIS))
    theirs, ours = lvis.model.roi_heads.box_predictor, cfg.model.roi_heads.box_predictor
    for key in ("use_sigmoid_ce", "use_fed_loss", "get_fed_loss_cls_weights", "test_topk_per_image"):
        ours[key] = theirs[key]
    cfg.dataloader.train.repeat_threshold = lvis.dataloader.train.repeat_threshold
    cfg.dataloader.evaluator, cfg.dataloader.own_data = lvis.dataloader.evaluator, lvis.dataloader.own_data
    return cfg


def data(folder: Path) -> list[str]:
    shapes = folder / "datasets/shapes"
    return [f"{s}={lvis_file(shapes / f'instances_{s}.json')}:{shapes}" for s in ("train", "val")]


@pytest.mark.parametrize("path", [LVIS, CASCADE], ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    """ViTDet's settings for LVIS v1; federated loss draws a class as the root of its number of images."""
    cfg = load_config(str(path))
    with torch.device("meta"):
        detector = instantiate(cfg.model)
    predictors = detector.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        assert predictor.num_classes == 1203 and predictor.use_sigmoid_ce and predictor.use_fed_loss
        assert (predictor.fed_loss_num_classes, predictor.test_topk_per_image) == (50, 300)
        assert predictor.test_score_thresh == 0.02
    assert cfg.dataloader.train.repeat_threshold == 0.001
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size, cfg.optimizer.lr) == (156250, 64, 2e-4)
    weights = FederatedWeights("lvis_v1_train", 1203)()
    counts = {c["id"]: c["image_count"] for c in MetadataCatalog.get("lvis_v1_train").class_image_count}
    assert weights.tolist() == pytest.approx([math.sqrt(counts[i + 1]) for i in range(1203)])


def test_reading(tmp_path: Path, cfg: Any) -> None:
    """As from COCO's format: same boxes, masks and classes; files as LVIS v1 names them."""
    shapes = tmp_path / "datasets/shapes"
    register_lvis("lvis_shapes", lvis_file(shapes / "instances_val.json"), shapes)
    found, expected = dataset_dicts("lvis_shapes"), dataset_dicts("shapes_val")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert Path(one["file_name"]).samefile(other["file_name"])
        for a, b in zip(one["annotations"], other["annotations"], strict=True):
            assert all(a[key] == b[key] for key in ("bbox", "category_id", "segmentation", "iscrowd"))
    counts = MetadataCatalog.get("lvis_shapes").class_image_count
    images = [{a["category_id"] for a in record["annotations"]} for record in expected]
    assert [c["image_count"] for c in counts] == [sum(i in image for image in images) for i in range(6)]


def test_what_is_no_lvis_file(tmp_path: Path, cfg: Any) -> None:
    coco = tmp_path / "datasets/shapes/instances_val.json"
    with pytest.raises(ValueError, match=r"not an LVIS annotation file: images\[0\] lacks a list 'neg_"):
        read_lvis(coco)
    with pytest.raises(ValueError, match="not an LVIS annotation file"):
        use_custom_dataset(cfg, [f"{coco}:{coco.parent}/val"], train=True)
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_lvis(tmp_path / "no.json")
    with pytest.raises(ValueError, match="has 1203 classes, the model 6"):
        FederatedWeights("lvis_v1_train", 6)()


def test_trains_and_evaluates(tmp_path: Path, cfg: Any) -> None:
    """Own classes follow, checkpoints hold the weights of federated loss, LVIS's metric comes out."""
    follows = use_custom_dataset(cfg, data(tmp_path), train=True)
    assert {key.split(".")[-1] for key in follows} == {"weight", "bias", "fed_loss_cls_weights"}
    train(cfg, restartable=follows)
    entries = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert "bbox/AP" in entries[-1] and "segm/APf" in entries[-1]
    state = torch.load(tmp_path / "output/model_final.pth", weights_only=False)
    counts = MetadataCatalog.get("own_train").class_image_count
    saved = state["model"]["roi_heads.box_predictor.fed_loss_cls_weights"]
    assert saved.tolist() == pytest.approx([max(c["image_count"], 1) ** 0.5 for c in counts])


def test_perfect_detections_score_perfectly(tmp_path: Path, cfg: Any) -> None:
    """The truth, given back as detections, is worth 100; the table has n/a where there is nothing."""
    pytest.importorskip("lvis")
    use_custom_dataset(cfg, data(tmp_path), train=False)
    from detectron2.structures import Boxes, BoxMode, Instances

    evaluator = LVISEvaluator("own_val", tasks=("bbox",), distributed=False)
    evaluator.reset()
    for record in dataset_dicts("own_val"):
        boxes = [
            BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in record["annotations"]
        ]
        instances = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.ones(len(boxes)),
            pred_classes=torch.tensor([a["category_id"] for a in record["annotations"]]),
        )
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    table = evaluator.summary(results).splitlines()
    assert table[1].split() == [
        "AP",
        "AP50",
        "AP75",
        "small",
        "medium",
        "large",
        "rare",
        "common",
        "frequent",
    ]
    assert table[2].split()[:2] == ["box", "100.0"] and "n/a" in table[2]


def test_without_its_package(tmp_path: Path, cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_custom_dataset(cfg, data(tmp_path), train=False)
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "lvis":
            raise ModuleNotFoundError("No module named 'lvis'", name="lvis")
        return plain(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps lvis"):
        instantiate(cfg.dataloader.evaluator)
    assert len(dataset_dicts("own_val")) == 4


def test_rare_images_come_more_often() -> None:
    """Each image its factor times an epoch on average, and the same from any batch onwards."""
    factors = [1.0, 1.0, 2.5, 4.0]
    batches = iter(BatchSampler(4, 1, seed=0, repeats=factors))
    drawn = [next(batches)[0][0] for _ in range(850)]  # about 100 epochs of 8.5
    for image, factor in enumerate(factors):
        # three deviations of what the fraction of 2.5 and the cut of the last epoch leave open
        assert drawn.count(image) / 100 == pytest.approx(factor, abs=0.17)
    later = BatchSampler(4, 1, seed=0, repeats=factors, start=800)
    assert [next(iter(later))[0][0]] == drawn[800:801]


def test_threshold_of_repeats() -> None:
    """By hand: class 1 is in a quarter of the images, sqrt(1 / (1/4)) = 2."""
    records = [
        {"width": 2, "height": 1, "annotations": [{"category_id": int(i == 0)}, {"category_id": 0}]}
        for i in range(4)
    ]
    loader = TrainLoader(records, mapper=dict, total_batch_size=1, repeat_threshold=1.0)
    assert loader.repeats is not None and loader.repeats.tolist() == [2, 1, 1, 1]
