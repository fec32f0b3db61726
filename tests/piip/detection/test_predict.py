"""Prediction on photographs, folders, globs, videos and files that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ... import require

require.detectron2()

import cv2
import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lab.compare import compare
from piip.detection.predict import InstanceRenderer, draw, shrink, skip_below
from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.prediction.predict import Predictor, Report, expand_inputs
from piip.engine.prediction.predict import predict as predict_with
from piip.engine.train import build_model
from piip.quick.drawing import CLASSES

from ..live_camera import running_camera
from ..tiny_config import QUICK_CONFIG, REPOSITORY, tiny_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of an untrained model, which finds something everywhere."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    model = build_model(LazyConfig.load(str(QUICK_CONFIG)))
    Checkpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture
def predictor(weights: str) -> Iterator[Predictor]:
    yield Predictor(LazyConfig.load(str(QUICK_CONFIG)), weights)


def predict(predictor: Predictor, inputs: list[str], output: Path, score_threshold: float = 0.5) -> Report:
    return predict_with(predictor, InstanceRenderer(predictor.metadata, score_threshold), inputs, output)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Real photographs in several forms: colour, grey, with transparency, upright and lying."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image for its photographs")
    folder = tmp_path / "photographs"
    folder.mkdir()
    cv2.imwrite(str(folder / "cat.jpg"), data.chelsea()[:, :, ::-1])  # 300x451
    cv2.imwrite(str(folder / "grey.png"), data.camera()[::2, ::2])  # 256x256
    transparent = np.dstack([data.astronaut()[::2, ::4, ::-1], np.full((256, 128), 128, np.uint8)])
    cv2.imwrite(str(folder / "upright.png"), transparent)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_photographs(predictor: Predictor, photographs: Path, tmp_path: Path) -> None:
    """A folder: each picture drawn at its own size, and the predictions loadable as COCO results."""
    report = predict(predictor, [str(photographs)], tmp_path / "out", score_threshold=0.05)
    assert (report.drawn, report.skipped) == (3, {})
    sizes = {"cat.jpg": (300, 451), "grey.png": (256, 256), "upright.png": (256, 128)}
    for name, size in sizes.items():
        assert cv2.imread(str(tmp_path / "out" / name)).shape == (*size, 3)
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(predictions) > 0
    for prediction in predictions:
        size = sizes[Path(prediction["file_name"]).name]
        x, y, width, height = prediction["bbox"]
        assert 0 <= x <= x + width <= size[1] + 1e-3  # float32 boxes
        assert 0 <= y <= y + height <= size[0] + 1e-3
        assert 0.05 <= prediction["score"] <= 1
        assert 1 <= prediction["category_id"] <= 6  # the dataset's ids, not Detectron2's from 0
        assert prediction["category"] == CLASSES[prediction["category_id"] - 1]
        assert coco_mask.decode(prediction["segmentation"]).shape == size
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in (1, 2, 3)],
        "categories": [{"id": i + 1} for i in range(6)],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes(predictions).anns) == len(predictions)


def test_threshold(predictor: Predictor, photographs: Path, tmp_path: Path) -> None:
    predict(predictor, [str(photographs / "cat.jpg")], tmp_path / "out", score_threshold=1.1)
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []
    assert (tmp_path / "out/cat.jpg").exists()


def test_broken_files_are_skipped(
    predictor: Predictor, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, truncated, empty and mislabelled files, among them a video: reported, and the others go on."""
    (photographs / "cut.jpg").write_bytes((photographs / "cat.jpg").read_bytes()[:3000])
    (photographs / "cut.png").write_bytes((photographs / "grey.png").read_bytes()[:3000])
    (photographs / "empty.png").touch()
    (photographs / "text.jpg").write_text("not a picture")
    (photographs / "text.mp4").write_text("not a video")
    inputs = [str(photographs / "missing.jpg"), str(photographs), str(photographs / "nothing*.jpg")]
    report = predict(predictor, inputs, tmp_path / "out")
    assert report.drawn == 3
    broken = {"missing.jpg", "cut.jpg", "cut.png", "empty.png", "text.jpg", "text.mp4", "nothing*.jpg"}
    assert {path.name for path in report.skipped} == broken
    printed = capsys.readouterr()
    assert all(f"{name}: " in printed.out + printed.err for name in broken)
    assert not (tmp_path / "out/text.mp4").exists()


def test_video(predictor: Predictor, tmp_path: Path) -> None:
    """Each frame is drawn, at the video's size and rate, and its predictions say which it is."""
    path = tmp_path / "moving.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (160, 96))
    for i in range(5):
        frame = np.full((96, 160, 3), 60, np.uint8)
        cv2.circle(frame, (30 + 20 * i, 48), 20, (40, 40, 230), -1)
        writer.write(frame)
    writer.release()
    report = predict(predictor, [str(path)], tmp_path / "out", score_threshold=0.05)
    assert (report.drawn, report.skipped) == (5, {})
    drawn = cv2.VideoCapture(str(tmp_path / "out/moving.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    assert (drawn.get(cv2.CAP_PROP_FRAME_WIDTH), drawn.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (160, 96)
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {p["frame"] for p in predictions} == set(range(5))
    assert all(p["image_id"] == p["frame"] + 1 and p["file_name"] == str(path) for p in predictions)


def test_a_camera(predictor: Predictor, tmp_path: Path) -> None:
    """The newest frames are drawn, into a video as long as it ran; lines say what was found when."""
    renderer = InstanceRenderer(predictor.metadata, 0.05)
    with running_camera() as address:
        found = tmp_path / "found.jsonl"
        report = predict_with(predictor, renderer, [address], tmp_path / "out", save_json=found)
    assert report.drawn + report.passed_over == 20
    assert not (tmp_path / "out/predictions.json").exists()
    records = [json.loads(line) for line in found.read_text().splitlines()]
    assert records and all(r["file_name"] == address and 0 <= r["frame"] < 20 for r in records)
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    drawn = cv2.VideoCapture(str(tmp_path / "out/live.mp4"))
    length = drawn.get(cv2.CAP_PROP_FRAME_COUNT) / drawn.get(cv2.CAP_PROP_FPS)
    assert length == pytest.approx(seconds[-1], abs=2 / drawn.get(cv2.CAP_PROP_FPS))
    with pytest.raises(ValueError, match="may have no end: give a camera or stream as the only input"):
        predict_with(predictor, renderer, ["0", "photographs"], tmp_path / "out")


def test_ctrl_c_ends_a_camera_and_interrupts_files(
    predictor: Predictor, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found until then is written, whole, either way."""
    renderer = InstanceRenderer(predictor.metadata, 0.05)
    batch, calls = predictor.batch, []

    def interrupted(*arguments: Any) -> list[dict[str, Any]]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch(*arguments)

    monkeypatch.setattr(predictor, "batch", interrupted)
    with running_camera() as address:
        report = predict_with(predictor, renderer, [address], tmp_path / "live")
    assert report.drawn == 2
    assert {r["image_id"] for r in json.loads((tmp_path / "live/predictions.json").read_text())} == {1, 2}
    assert (tmp_path / "live/live.mp4").exists()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        predict_with(predictor, renderer, [str(photographs)], tmp_path / "files")
    assert {r["image_id"] for r in json.loads((tmp_path / "files/predictions.json").read_text())} == {1, 2}


def test_batches_change_nothing(predictor: Predictor, photographs: Path, tmp_path: Path) -> None:
    """Images of one size go through the model together, others by themselves: padding would change them."""
    seen = []
    predictor.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for name in ("grey.png", "cat.jpg"):
        (photographs / f"a-{name}").write_bytes((photographs / name).read_bytes())
    found = []
    for batch in (1, 3):
        report = predict_with(
            predictor,
            InstanceRenderer(predictor.metadata, 0.05),
            [str(photographs)],
            tmp_path / str(batch),
            batch=batch,
        )
        assert report.drawn == 5
        found.append(json.loads((tmp_path / str(batch) / "predictions.json").read_text()))
    # a-cat, a-grey, cat | grey, upright: nothing of one size is side by side; then two pictures that are
    assert seen == [1] * 10
    pair = [cv2.imread(str(photographs / "cat.jpg")), cv2.imread(str(photographs / "a-cat.jpg"))[:, ::-1]]
    together = predictor.batch(pair)
    assert seen[10:] == [2]
    for image, output in zip(pair, together, strict=True):
        alone = predictor(image)["instances"]
        assert torch.allclose(output["instances"].scores, alone.scores, atol=1e-5)  # float32 sums reordered
    assert [(r["image_id"], r["bbox"]) for r in found[0]] == [(r["image_id"], r["bbox"]) for r in found[1]]
    with pytest.raises(ValueError, match="batch is 0: expected a positive number"):
        predict_with(predictor, InstanceRenderer(predictor.metadata), ["a"], tmp_path, batch=0)


def test_inputs(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "c.mp4", "d.txt", "deep/e.jpg", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs: str) -> list[str]:
        return [str(p.relative_to(tmp_path)) for p in expand_inputs(str(tmp_path / i) for i in inputs)]

    assert names(".") == ["a.PNG", "b.jpg", "c.mp4", "odd[1].jpg"]
    assert names("**/*.jpg") == ["b.jpg", "deep/e.jpg", "odd[1].jpg"]
    assert names("odd[1].jpg", "none.png") == ["odd[1].jpg", "none.png"]


def test_same_names_from_two_folders(predictor: Predictor, photographs: Path, tmp_path: Path) -> None:
    """Also with other suffixes: label maps are named by the stem alone."""
    (tmp_path / "other").mkdir()
    for name in ("cat.jpg", "cat.png"):
        (tmp_path / "other" / name).write_bytes((photographs / "cat.jpg").read_bytes())
    predict(predictor, [str(photographs / "cat.jpg"), str(tmp_path / "other")], tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob("*.[jp]*g")} == {"cat.jpg", "cat-2.jpg", "cat-3.png"}


def test_what_is_drawn_is_where_it_was_found(predictor: Predictor) -> None:
    """A box and a mask change the picture there, and nowhere else (a label is put at the box's top left)."""
    image = np.full((200, 200, 3), 128, np.uint8)
    found = Instances((200, 200))
    found.pred_boxes = Boxes(torch.tensor([[100.0, 100.0, 160.0, 160.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([2])
    found.pred_masks = torch.zeros(1, 200, 200, dtype=torch.bool)
    found.pred_masks[0, 100:160, 100:160] = True
    changed = np.abs(draw(image, found, predictor.metadata).astype(int) - 128).max(axis=2) > 20
    assert changed[110:150, 110:150].mean() > 0.9
    assert not changed[:80].any()
    assert not changed[:, :80].any()


def test_pictures_beside_the_ground_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    annotations = json.loads((tmp_path / "datasets/shapes/instances_val.json").read_text())["annotations"]
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**a, "score": 0.9} for a in annotations if a["image_id"] != 2]))
    pictures = compare(cfg.dataloader.test.dataset.names, results, tmp_path / "out", number=3)
    assert len(pictures) == len(list((tmp_path / "out").iterdir())) == 3
    shapes = {cv2.imread(str(picture)).shape for picture in pictures}
    assert shapes == {(28 + 384, 2 * 384, 3)}  # 64 px images are enlarged to 384 px


def test_command_line(weights: str, photographs: Path, tmp_path: Path) -> None:
    """Without a display; success says what was done, no weights and nothing drawn are failures."""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}

    def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "tools/demo.py"), "--config-file", str(QUICK_CONFIG)]
        return subprocess.run(
            [*command, "--output", str(tmp_path / "out"), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )

    done = demo("--weights", weights, "--input", str(photographs), "missing.png")
    assert done.returncode == 0, done.stderr
    assert "3 images and frames drawn, 1 files skipped" in done.stdout
    assert demo("--weights", weights, "--input", "missing.png").returncode == 1
    refused = demo("--input", str(photographs))
    assert refused.returncode == 2
    assert "no weights: give --weights" in refused.stderr


def test_a_photograph_of_a_telephone(predictor: Predictor) -> None:
    """The config resizes it: attention sees no more tokens than for any other image."""
    seen = []
    predictor.model.backbone.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape)
    )
    predictor(np.full((600, 900, 3), 128, np.uint8))
    assert seen == [(1, 3, 96, 128)]  # 85 rows, padded


def test_an_image_far_beyond_what_a_config_without_resize_is_made_for(weights: str) -> None:
    cfg = load_config(str(QUICK_CONFIG), ["dataloader.test.mapper.augmentations=[]"])
    predictor = Predictor(cfg, weights)
    with pytest.raises(ValueError, match=r"900x600 px reaches the model as 900x600, far beyond the 128x128"):
        predictor(np.full((600, 900, 3), 128, np.uint8))


def test_faint_detections_make_no_masks(predictor: Predictor) -> None:
    """What scores less than the threshold is left out before masks as large as the image are made of it."""
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    found = predictor(image)["instances"]
    assert len(found) > 0
    threshold = float(found.scores.median())
    undrawn = skip_below(predictor.model, threshold)
    fewer = predictor(image)["instances"]
    kept = found[found.scores >= threshold]
    assert (undrawn.faint, undrawn.full) == (len(found) - len(kept), 0)
    assert torch.equal(fewer.scores, kept.scores)
    assert torch.equal(fewer.pred_masks, kept.pred_masks)


def test_large_pictures_are_drawn_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piip.detection.predict.LARGEST_PICTURE", 50 * 25)
    found = Instances((100, 200))
    found.pred_boxes = Boxes(torch.tensor([[20.0, 40.0, 60.0, 80.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([2])
    found.pred_masks = torch.zeros(1, 100, 200, dtype=torch.bool)
    found.pred_masks[0, 40:80, 20:60] = True
    image, smaller = shrink(np.zeros((100, 200, 3), np.uint8), found)
    assert image.shape == (25, 50, 3)
    assert smaller.pred_boxes.tensor.tolist() == [[5.0, 10.0, 15.0, 20.0]]
    assert smaller.pred_masks[0, 10:20, 5:15].all() and smaller.pred_masks.sum() == 100
