"""Segmentors: Detectron2's contract, the published metric, data good and bad, training and prediction."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ... import require

require.detectron2()

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.data.custom_data import follow_weights, use_custom_dataset
from piip.engine.resize import RandomScaleToFit, ResizeToCover
from piip.engine.train import build_model, train
from piip.quick.shapes import write_split
from piip.segmentation.data import SemanticMapper, read_labels, register_folders, semantic_dicts
from piip.segmentation.evaluation import SemanticEvaluator, confusion, metrics
from piip.segmentation.segmentor import Segmentor
from piip.segmentation.tta import SegmentorWithTTA

from ...shared_data import golden
from ..models import randomise
from ..tiny_config import QUICK_SEGMENTOR, REPOSITORY, tiny_config


def segmentor(**changes: Any) -> Segmentor:
    """The quick one, every parameter random."""
    cfg = load_config(str(QUICK_SEGMENTOR), [f"model.{key}={value}" for key, value in changes.items()])
    torch.manual_seed(0)
    model: Any = randomise(instantiate(cfg.model)).eval()
    return model


def image(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_golden_metric() -> None:
    case = golden("fixtures/segmentation", "upernet_tiny")
    meta, arrays = case.meta["metric"], case.arrays
    pixels = confusion(arrays["metric/prediction"].long(), arrays["metric/truth"].long(), meta["num_classes"])
    names = [str(label) for label in range(meta["num_classes"])]
    found = metrics(pixels, names)
    assert found["mIoU"] == pytest.approx(100 * meta["mIoU"], rel=1e-9)
    assert found["mACC"] == pytest.approx(100 * meta["mAcc"], rel=1e-9)
    assert found["pACC"] == pytest.approx(100 * meta["aAcc"], rel=1e-9)
    for kind, key in (("IoU", "metric/iou"), ("ACC", "metric/accuracy")):
        values = [found[f"{kind}-{name}"] for name in names]
        np.testing.assert_allclose(values, 100 * arrays[key].double().numpy(), rtol=1e-6)  # kept as float32


@given(st.integers(2, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_confusion_adds_up(classes: int, first: int, second: int, seed: int) -> None:
    """Over images, and so over processes; ignored pixels are nowhere."""
    rng = np.random.default_rng(seed)
    prediction = torch.from_numpy(rng.integers(0, classes, first + second))
    truth = torch.from_numpy(rng.choice([*range(classes), 255], first + second))
    whole = confusion(prediction, truth, classes)
    parts = confusion(prediction[:first], truth[:first], classes) + confusion(
        prediction[first:], truth[first:], classes
    )
    assert torch.equal(whole, parts)
    assert whole.sum() == (truth != 255).sum()


def test_contract() -> None:
    """Logits at the size asked for; what is in the batch beside an image changes nothing."""
    model = segmentor()
    inputs = [{"image": image(128, 128)}, {"image": image(130, 201, 1), "height": 65, "width": 100}]
    with torch.no_grad():
        together, alone = model(inputs), [model([entry])[0] for entry in inputs]
    assert [output["sem_seg"].shape for output in together] == [(7, 128, 128), (7, 65, 100)]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["sem_seg"], b["sem_seg"])


def test_windows_a_pass_change_nothing() -> None:
    """In float64; in float32 sums of another order move sampling points, and so some logits visibly."""
    entry = [{"image": image(150, 260)}]
    with torch.no_grad():
        results = [segmentor(max_windows=number).double()(entry)[0]["sem_seg"] for number in (1, 5)]
    torch.testing.assert_close(*results)


def test_whole_images_need_no_window() -> None:
    """One window is the image where it is as large as the crop."""
    entry = [{"image": image(128, 128)}]
    with torch.no_grad():
        torch.testing.assert_close(
            segmentor(stride="null")(entry)[0]["sem_seg"], segmentor()(entry)[0]["sem_seg"]
        )
        assert segmentor(stride="null")([{"image": image(1, 1)}])[0]["sem_seg"].shape == (7, 1, 1)


def test_losses_ignore_padding() -> None:
    """Labels of 255 and what pads an image have no gradient; both losses are the heads' own."""
    model = segmentor().train()
    labels = torch.randint(0, 7, (100, 90), generator=torch.Generator().manual_seed(0))
    batch = [{"image": image(100, 90), "sem_seg": labels}] * 2
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_auxiliary"}
    padded = torch.full((128, 128), 255)
    padded[:100, :90] = labels
    normalised = torch.zeros(2, 3, 128, 128)  # pooled to one pixel, batch norm needs two of them
    normalised[:, :, :100, :90] = (image(100, 90) - model.pixel_mean) / model.pixel_std
    torch.manual_seed(1)
    expected = model.heads.losses(model.maps(normalised), padded.expand(2, 128, 128))
    torch.manual_seed(1)
    again = model(batch)
    torch.testing.assert_close(again["loss_sem_seg"], expected.main)
    torch.testing.assert_close(again["loss_sem_seg_auxiliary"], expected.auxiliary)


def test_augmentation_of_one_view_is_none() -> None:
    """At scale 1 without mirror images: the softmax of the model. With them: a mirrored image, mirrored."""
    model, picture = segmentor(), image(128, 128)
    with torch.no_grad():
        (plain,) = model([{"image": picture}])
        (once,) = SegmentorWithTTA(model, scales=[1.0], flip=False)([{"image": picture}])
        torch.testing.assert_close(once["sem_seg"], plain["sem_seg"].softmax(0))
        flipping = SegmentorWithTTA(model, scales=[0.5, 1.0], flip=True)
        (one,) = flipping([{"image": picture}])
        (other,) = flipping([{"image": picture.flip(2)}])
    torch.testing.assert_close(one["sem_seg"], other["sem_seg"].flip(2), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(one["sem_seg"].sum(0), torch.ones(128, 128))
    with pytest.raises(ValueError, match="must be positive"):
        SegmentorWithTTA(model, scales=[], flip=False)


def save(path: Path, pixels: Any, mode: str = "L") -> Path:
    """A PNG; of mode "P" with a palette that is the values backwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode=mode)
    if mode == "P":
        picture.putpalette([255 - value for value in range(256) for _ in range(3)])
    picture.save(path)
    return path


def test_label_maps(tmp_path: Path) -> None:
    """A palette's indices are classes, not its colours; what is no class is an error that says so."""
    values = [[0, 1, 2], [2, 1, 255]]
    assert read_labels(save(tmp_path / "grey.png", values), 3).tolist() == values
    assert read_labels(save(tmp_path / "palette.png", values, "P"), 3).tolist() == values
    assert read_labels(save(tmp_path / "other.png", [[0, 9]]), 3, ignore_label=9).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"grey.png holds 2: expected 0 to 1, or 255"):
        read_labels(tmp_path / "grey.png", 2)
    with pytest.raises(ValueError, match=r"has the mode RGB: expected 8 bits"):
        read_labels(save(tmp_path / "colour.png", np.zeros((2, 2, 3)), "RGB"), 2)
    with pytest.raises(ValueError, match=r"none\.png: it does not exist"):
        read_labels(tmp_path / "none.png", 2)


def test_mapper_refuses_labels_of_another_size(tmp_path: Path) -> None:
    picture = save(tmp_path / "x.png", np.zeros((4, 6, 3)), "RGB")
    labels = save(tmp_path / "labels/x.png", np.zeros((4, 5)))
    mapper = SemanticMapper(is_train=True, augmentations=[], image_format="RGB", num_classes=2)
    with pytest.raises(ValueError, match=r"x.png has 6x4 px, its label map .* 5x4: expected the same"):
        mapper({"file_name": str(picture), "sem_seg_file_name": str(labels)})


def test_resizes() -> None:
    """The shorter side is met exactly, whatever the other becomes, within bounds."""
    for size, expected in (((30, 40), (60, 80)), ((333, 100), (200, 60)), ((1, 1), (60, 60))):
        transform = ResizeToCover(60).get_transform(np.zeros((*size, 3), np.uint8))
        assert (transform.new_height, transform.new_width) == expected
    with pytest.raises(ValueError, match=r"1x3000 px would become 60x180000"):
        ResizeToCover(60).get_transform(np.zeros((3000, 1, 3), np.uint8))
    np.random.seed(0)
    sizes = [RandomScaleToFit(80, 60, 0.5, 2.0).get_transform(np.zeros((60, 80, 3))) for _ in range(50)]
    assert all(30 <= s.new_height <= 120 for s in sizes) and len({s.new_height for s in sizes}) > 20


def test_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images and label maps are paired by name; those without one are left out and counted."""
    for name in ("a", "b", "c"):
        save(tmp_path / f"images/{name}.jpg", np.zeros((4, 4, 3)), "RGB")
    for name in ("a", "b"):
        save(tmp_path / f"labels/{name}.png", np.zeros((4, 4)))
    for _ in range(2):  # configs run more than once
        register_folders("pairs", tmp_path / "images", tmp_path / "labels", ["x", "y"])
    with caplog.at_level("WARNING", "detectron2.piip"):
        records = semantic_dicts("pairs")
    assert [Path(record["file_name"]).name for record in records] == ["a.jpg", "b.jpg"]
    assert "left out 1 images without a label map" in caplog.text
    register_folders("none", tmp_path / "images", tmp_path / "nowhere", ["x"])
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        semantic_dicts("none")
    with pytest.raises(FileNotFoundError, match="prepare_ade20k"):
        semantic_dicts("ade20k_sem_seg_val")
    with pytest.raises(KeyError, match="not registered"):
        semantic_dicts("unheard of")


def test_images_of_one_stem_share_no_label_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which of them it belongs to cannot be told: none is used, and hidden files are no images."""
    for name in ("a.jpg", "a.png", "b.png", "._b.png"):
        save(tmp_path / "images" / name, np.zeros((4, 4, 3)), "RGB")
    for name in ("a", "b", "._b"):
        save(tmp_path / f"labels/{name}.png", np.zeros((4, 4)))
    register_folders("stems", tmp_path / "images", tmp_path / "labels", ["x"])
    with caplog.at_level("WARNING", "detectron2.piip"):
        records = [semantic_dicts("stems") for _ in range(2)][1]
    assert [Path(record["file_name"]).name for record in records] == ["b.png"]
    said = [r.getMessage() for r in caplog.records if "share a label map" in r.getMessage()]
    assert said == [
        f"{tmp_path / 'images'}: left out 2 images that share a label map with another, such as "
        f"{tmp_path / 'images/a.jpg'}"
    ]


CLASSES_SEEN: dict[str, tuple[list[int], str]] = {  # value of label map 0, 1, ... -> what is said
    "all": ([0, 1, 2], ""),
    "none of one": ([0, 2, 0], "no pixel of class 1 'b' in all 3 label maps$"),
    "255 for a class": (
        [0, 255, 0],
        "no pixel of class 1 'b', 2 'c' in all 3 label maps; 33% of the pixels are 255, which is ignored",
    ),
    "no class": ([0, 7, 0], "class 1 'b', 2 'c' in all 3 label maps; 1 cannot be used, such as: .* holds 7"),
}


@pytest.mark.parametrize("case", CLASSES_SEEN)
def test_classes_without_a_pixel_are_said(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, before training: a model of two classes, whose labels are 0 and 255, learns one of them."""
    values, expected = CLASSES_SEEN[case]
    for number, value in enumerate(values):
        save(tmp_path / f"images/{number}.png", np.zeros((4, 4, 3)), "RGB")
        save(tmp_path / f"labels/{number}.png", np.full((4, 4), value))
    register_folders("seen", tmp_path / "images", tmp_path / "labels", ["a", "b", "c"])
    with caplog.at_level("WARNING", "detectron2.piip"):
        for _ in range(2):
            semantic_dicts("seen")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(expected)
    assert not expected or re.search(expected, said[0])


def test_label_maps_none_of_which_can_be_used(tmp_path: Path) -> None:
    """Said before training: pictures for labels, here the images themselves."""
    for number in range(3):
        save(tmp_path / f"{number}.png", np.zeros((4, 4, 3)), "RGB")
    register_folders("pictures", tmp_path, tmp_path, ["a", "b"])
    with pytest.raises(
        ValueError, match=r"none of 3 label maps can be used, such as .*0\.png has the mode RGB"
    ):
        semantic_dicts("pictures")


def test_of_many_label_maps_some_are_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piip.segmentation.data._LOOKED_AT", 3)
    for number in range(9):
        save(tmp_path / f"images/{number}.png", np.zeros((4, 4, 3)), "RGB")
        save(tmp_path / f"labels/{number}.png", np.full((4, 4), number == 1))
    register_folders("many", tmp_path / "images", tmp_path / "labels", ["a", "b"])
    with caplog.at_level("INFO", "detectron2.piip"):
        semantic_dicts("many")
    (record,) = [r for r in caplog.records if "no pixel" in r.getMessage()]
    assert record.getMessage() == "many: no pixel of class 1 'b' in 3 of 9 label maps"
    assert record.levelname == "INFO"


def test_training_goes_on_past_bad_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels out of range, of another size, images that are none; resumed, and evaluated with bfloat16."""
    settings = ["train.precision=bfloat16", "train.eval_precision=bfloat16", "train.max_iter=2"]
    cfg = tiny_config(tmp_path, monkeypatch, *settings, config=QUICK_SEGMENTOR)
    folder = tmp_path / "datasets/shapes"
    save(folder / "labels_train/000000.png", np.full((64, 64), 77))
    save(folder / "labels_train/000001.png", np.zeros((63, 64)))
    (folder / "train/000002.png").write_bytes(b"no image")
    save(folder / "train/000003.png", np.zeros((1, 1, 3)), "RGB")
    save(folder / "labels_train/000003.png", [[1]])
    train(cfg)
    cfg = tiny_config(tmp_path / "again", monkeypatch, *settings, config=QUICK_SEGMENTOR)
    cfg.train.output_dir, cfg.train.max_iter = str(tmp_path / "output"), 4
    train(cfg, resume=True)
    entries = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert [entry["iteration"] for entry in entries if "total_loss" in entry] == [0, 1, 2, 3]
    assert 0 <= entries[-1]["sem_seg/mIoU"] <= 100


def test_evaluation_refuses_labels_of_another_size(tmp_path: Path) -> None:
    labels = save(tmp_path / "labels/x.png", np.zeros((4, 5)))
    register_folders("sized", tmp_path, tmp_path / "labels", ["x", "y"])
    evaluator = SemanticEvaluator("sized")
    with pytest.raises(ValueError, match=r"has 5x4 px, its image 6x4: expected the same"):
        evaluator.process([{"sem_seg_file_name": str(labels)}], [{"sem_seg": torch.zeros(2, 4, 6)}])
    evaluator.process(
        [{"sem_seg_file_name": str(labels)}], [{"sem_seg": torch.eye(2)[:, :1, None].expand(2, 4, 5)}]
    )
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == 100 and np.isnan(results["sem_seg"]["IoU-y"])
    assert "n/a" in evaluator.summary(results)


def test_custom_dataset(tmp_path: Path) -> None:
    """A set of 3 classes: the layers that follow them are named, a checkpoint brings its classes back."""
    for split in ("train", "val"):
        save(tmp_path / f"{split}/images/x.png", np.zeros((8, 8, 3)), "RGB")
        save(tmp_path / f"{split}/labels/x.png", np.zeros((8, 8)))
    data = [
        f"{split}={tmp_path / split / 'images'}:{tmp_path / split / 'labels'}" for split in ("train", "val")
    ]
    cfg = load_config(str(QUICK_SEGMENTOR))
    with pytest.raises(FileNotFoundError, match=r"classes.txt does not exist: write the names"):
        use_custom_dataset(cfg, data, train=True)
    (tmp_path / "train/classes.txt").write_bytes("ciel\nforêt".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt is not UTF-8 text"):
        use_custom_dataset(cfg, [data[0].removeprefix("train=")], train=True)
    (tmp_path / "train/classes.txt").write_text("sky\ngrass\ncow\n", encoding="utf-8-sig")
    (tmp_path / "val/labels/classes.txt").write_text("sky\ngrass\n")
    with pytest.raises(ValueError, match="different classes"):
        use_custom_dataset(cfg, data, train=True)
    (tmp_path / "val/labels/classes.txt").write_text("sky\ngrass\ncow\n")
    shapes = use_custom_dataset(cfg, data, train=True)
    assert set(shapes) == {
        f"heads.{head}.conv_seg.{leaf}"
        for head in ("decode_head", "auxiliary_head")
        for leaf in ("weight", "bias")
    }
    assert cfg.dataloader.train.mapper.num_classes == cfg.dataloader.test.mapper.num_classes == 3
    model = build_model(cfg)
    metadata = {"stuff_classes": MetadataCatalog.get("own_val").stuff_classes}
    Checkpointer(model, str(tmp_path), metadata=metadata).save("model")
    other = load_config(str(QUICK_SEGMENTOR))
    follow_weights(other, str(tmp_path / "model.pth"))
    Checkpointer(build_model(other)).load(str(tmp_path / "model.pth"))
    with pytest.raises(FileNotFoundError, match="does not name two folders"):
        use_custom_dataset(cfg, ["val=nowhere:neither"], train=False)
    with pytest.raises(ValueError, match=r"has no train set: give train=IMAGES:LABELS"):
        use_custom_dataset(cfg, data[1:], train=True)


def run(tool: str, *arguments: str, datasets: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / tool), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "DETECTRON2_DATASETS": str(datasets)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_tools(tmp_path: Path) -> None:
    """Trained by two processes, evaluated by one and by two alike; drawn, with label maps of its size."""
    for split, number in (("train", 8), ("val", 5)):
        write_split(tmp_path / "datasets/shapes", split, number, image_size=64, seed=0)
    config = ["--config-file", str(QUICK_SEGMENTOR)]
    settings = [f"train.output_dir={tmp_path / 'output'}", "train.max_iter=2"]
    weights = tmp_path / "output/model_final.pth"
    log = run(
        "lazyconfig_train_net.py", *config, "--num-gpus", "2", *settings, datasets=tmp_path / "datasets"
    )
    both = [line for line in log.splitlines() if "copypaste: " in line][-1].split("copypaste: ")[1]
    log = run(
        "lazyconfig_train_net.py",
        *config,
        "--eval-only",
        f"train.init_checkpoint={weights}",
        *settings,
        datasets=tmp_path / "datasets",
    )
    assert [line for line in log.splitlines() if "copypaste: " in line][-1].endswith(both)
    photo = save(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (90, 70, 3)), "RGB")
    run(
        "demo.py",
        *config,
        "--weights",
        str(weights),
        "--input",
        str(photo),
        "--output",
        str(tmp_path / "drawn"),
        "--opts",
        "train.tta=True",
        datasets=tmp_path / "datasets",
    )
    with Image.open(tmp_path / "drawn/photo.labels.png") as labels:
        assert labels.size == (70, 90) and np.asarray(labels).max() < 7
    records = json.loads((tmp_path / "drawn/predictions.json").read_text())
    assert sum(record["share"] for record in records) == pytest.approx(1)
    assert {record["class"] for record in records} <= {
        "background",
        "disc",
        "square",
        "triangle",
        "star",
        "ring",
        "cross",
    }


def test_ade20k_label_maps(tmp_path: Path) -> None:
    """0, "other", becomes 255 and 150 becomes 149."""
    for split in ("training", "validation"):
        save(tmp_path / f"annotations/{split}/x.png", [[0, 1, 150]])
    run("prepare_ade20k.py", "--root", str(tmp_path), datasets=tmp_path)
    for split in ("training", "validation"):
        assert np.asarray(Image.open(tmp_path / f"annotations_detectron2/{split}/x.png")).tolist() == [
            [255, 0, 149]
        ]
