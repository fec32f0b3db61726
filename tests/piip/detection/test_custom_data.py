"""Training on a custom dataset: from annotations on the command line to the right names in the picture."""

from __future__ import annotations

import itertools
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ... import require

require.detectron2()

import cv2
import numpy as np
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from piip.detection.data import dataset_dicts
from piip.detection.own_data import CocoFiles
from piip.engine.checkpoints.checkpoint import Checkpointer, check_same_classes
from piip.engine.config import load_config
from piip.engine.data import TrainLoader, evaluation_loader
from piip.engine.data.custom_data import (
    follow_weights,
    set_num_classes,
    use_custom_dataset,
    without_overrides,
)
from piip.engine.evaluation import class_names
from piip.engine.prediction.predict import Predictor
from piip.engine.train import build_model, evaluate, train
from piip.quick.shapes import write_split

from ..tiny_config import QUICK_CONFIG, REPOSITORY, tiny_config

NAMES = {3: "bolt", 7: "nut", 20: "washer"}  # ids with gaps, as people have them


def write_custom(folder: Path) -> list[str]:
    """Scenes of shapes whose classes are three others; returns what `--data` takes."""
    data = []
    for split, number in (("train", 8), ("val", 3)):
        path = write_split(folder, split, number, image_size=64, seed=1)
        content = json.loads(path.read_text())
        ids = list(NAMES)
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"] % 3]
        content["categories"] = [{"id": id_, "name": name} for id_, name in NAMES.items()]
        path.write_text(json.dumps(content))
        data.append(f"{split}={path}:{folder / split}")
    return data


def test_three_classes_from_a_checkpoint_of_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what follows the classes starts anew; the names travel with the weights to the prediction."""
    cfg = tiny_config(tmp_path, monkeypatch)
    torch.manual_seed(1)
    six = build_model(cfg)
    Checkpointer(six, str(tmp_path)).save("six")
    cfg.train.init_checkpoint = str(tmp_path / "six.pth")
    cfg.train.max_iter = 1
    cfg.optimizer.lr = 0.0

    restartable = use_custom_dataset(cfg, write_custom(tmp_path / "own"), train=True)
    assert restartable == {
        "roi_heads.box_predictor.cls_score.weight": (None, 128),
        "roi_heads.box_predictor.cls_score.bias": (None,),
    }
    with caplog.at_level(logging.WARNING):
        train(cfg, restartable=restartable)
    assert "2 tensors follow the classes and start anew" in caplog.text
    final = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert final["model"]["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3 + 1
    for key, tensor in six.state_dict().items():
        assert key in restartable or torch.equal(final["model"][key], tensor), key

    # Prediction from the config as it is on disk and the weights: names and ids are those of the data.
    plain = load_config(str(QUICK_CONFIG))
    follow_weights(plain, str(tmp_path / "output/model_final.pth"))
    predictor = Predictor(plain, str(tmp_path / "output/model_final.pth"))
    assert predictor.metadata.thing_classes == list(NAMES.values())
    assert predictor.metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2}
    found = predictor(np.full((64, 64, 3), 128, np.uint8))["instances"]
    assert len(found) == 0 or int(found.pred_classes.max()) < 3


def test_evaluation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation split is enough, and the evaluator knows its classes."""
    cfg = tiny_config(tmp_path, monkeypatch)
    use_custom_dataset(cfg, write_custom(tmp_path / "own")[1:], train=False)
    results = evaluate(cfg, build_model(cfg))
    assert {key for key in results["bbox"] if key.startswith("AP-")} == {f"AP-{n}" for n in NAMES.values()}
    assert MetadataCatalog.get("own_val").thing_classes == list(NAMES.values())


@pytest.mark.parametrize(
    "name", ["mask_rcnn_piip_tsb_1120_896_448_1x", "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x"]
)
def test_what_follows_the_classes_in_a_released_detector(name: str, tmp_path: Path) -> None:
    cfg: DictConfig = load_config(str(REPOSITORY / f"configs/COCO/{name}.py"))
    names = use_custom_dataset(cfg, write_custom(tmp_path), train=True).keys()
    parts = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    assert names == {f"roi_heads.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert cfg.model.roi_heads.num_classes == 3
    with torch.device("meta"):
        state = instantiate(cfg.model).state_dict()
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape[0] == 3 * 4


def test_other_mismatches_stay_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    restartable = use_custom_dataset(cfg, write_custom(tmp_path / "own"), train=True)
    state = build_model(cfg).state_dict()
    state["roi_heads.box_head.fc1.weight"] = torch.zeros(3, 3)
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(4, 99)  # follows, but not in this place
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"2 shapes differ: .*box_head\.fc1\.weight .*cls_score\.weight"):
        Checkpointer(build_model(cfg), restartable=restartable).load(str(tmp_path / "odd.pth"))


def test_what_data_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    annotations = tmp_path / "a:b/x.json"
    annotations.write_text("{}")
    files = CocoFiles.parse(f"{annotations}:{tmp_path}")
    assert (files.annotations, files.images) == (annotations, tmp_path)
    assert CocoFiles.parse(f"{annotations}:{tmp_path / 'a:b'}").images == tmp_path / "a:b"
    assert CocoFiles.parse(str(annotations)).images == tmp_path / "a:b"
    monkeypatch.chdir(tmp_path)
    assert CocoFiles.parse("a:b/x.json:.") == CocoFiles(Path("a:b/x.json"), Path("."))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CocoFiles.parse("~/a:b/x.json:~").images == tmp_path


def category(id_: int, name: str) -> dict[str, Any]:
    return {"id": id_, "name": name}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["train=a.png:b"], "annotations a.png do not exist: --data expects"),
        (["test={one}:{folder}"], r"annotations test=.*one\.json do not exist: --data expects"),
        (["train=none.json:{folder}"], "annotations none.json do not exist"),
        (["train={one}:none"], "image folder none does not exist"),
        (["train={one}:{folder}"], "has no val set: give val=ANNOTATIONS.json:IMAGES, too"),
        (["val={one}:{folder}", "val={one}:{folder}"], "gives the val set twice"),
        (["train={one}:{folder}", "val={two}:{folder}"], "have different classes"),
        (["train={one}:{folder}", "val={none}:{folder}"], "has no categories"),
        (["train={one}:{folder}", "val={text}:{folder}"], "is not JSON"),
        (["{wild}:{folder}"], "every category needs a whole number 'id' and a 'name'"),
        (["{twice}:{folder}"], "two categories have the same id"),
        (["{one}", "val={one}"], "gives the val set twice"),
        (["{astray}:{folder}"], r"are not where they should be, such as .*astray\.png"),
    ],
)
def test_data_that_cannot_be(data: list[str], message: str, tmp_path: Path) -> None:
    contents = {
        "one": [category(1, "a")],
        "two": [category(1, "b")],
        "none": [],
        "wild": [{"id": "x"}],
        "twice": [category(1, "a"), category(1, "b")],
        "astray": [category(1, "a")],
    }
    paths = {"folder": str(tmp_path), "text": str(tmp_path / "text.json")}
    (tmp_path / "text.json").write_text("not json")
    for name, categories in contents.items():
        paths[name] = str(tmp_path / f"{name}.json")
        images = [{"id": 1, "file_name": f"{name}.png", "height": 4, "width": 4}]
        Path(paths[name]).write_text(
            json.dumps({"images": images, "annotations": [], "categories": categories})
        )
    cfg = load_config(str(QUICK_CONFIG))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        use_custom_dataset(cfg, [entry.format(**paths) for entry in data], train=True)


def test_unusable_images_of_a_test_set_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving one out would change the figure."""
    cfg = tiny_config(tmp_path, monkeypatch)
    victim = tmp_path / "datasets/shapes/val/000001.png"
    victim.write_bytes(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()[:60])
    with pytest.raises(ValueError, match=r"000001\.png cannot be evaluated \(.*\): mend it, or take it out"):
        evaluate(cfg, build_model(cfg))


def test_one_set_for_training_and_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    cfg.dataloader.evaluator.dataset_name = "shapes_val"  # as a config of one's own may say it
    both = write_custom(tmp_path / "own")[0].removeprefix("train=")
    use_custom_dataset(cfg, [both], train=True)
    assert cfg.dataloader.train.dataset.names == "own_train"
    assert cfg.dataloader.test.dataset.names == cfg.dataloader.evaluator.dataset_name == "own_val"
    assert len(instantiate(cfg.dataloader.test.dataset)) == 8


def test_a_config_that_takes_no_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path, monkeypatch, "dataloader.own_data=null")
    with pytest.raises(ValueError, match=r"the config has no dataloader\.own_data, which would say how"):
        use_custom_dataset(cfg, ["x.json"], train=True)
    assert use_custom_dataset(cfg, [], train=True) == {}


def test_the_number_of_classes_of_any_detector() -> None:
    """DETR-like models hold it themselves, and their losses do; other counts are left alone."""
    cfg = OmegaConf.create(
        {
            "model": {
                "num_classes": 80,
                "head": {"num_classes": "${..num_classes}"},
                "losses": [{"num_classes": 80}],
                "backbone": {"num_classes": 1000},
            }
        }
    )
    set_num_classes(cfg, 3, "", "roi_heads")
    assert cfg.model.num_classes == cfg.model.head.num_classes == cfg.model.losses[0].num_classes == 3
    assert cfg.model.backbone.num_classes == 1000
    with pytest.raises(ValueError, match="has no num_classes"):
        set_num_classes(OmegaConf.create({"model": {"backbone": {"num_classes": 1000}}}), 3, "", "roi_heads")


def edit(data: list[str], **changes: Any) -> None:
    """Change fields of all annotations; a field whose new value is `None` goes."""
    for entry in data:
        path = Path(entry.partition("=")[2].partition(":")[0])
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation.update(changes)
            for key in [key for key, value in changes.items() if value is None]:
                del annotation[key]
        path.write_text(json.dumps(content))


def test_run_lengths_where_the_config_has_polygons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks by run lengths, as these are, cannot become polygons: every image would be unusable."""
    cfg = tiny_config(tmp_path, monkeypatch, "dataloader.train.mapper.instance_mask_format=polygon")
    use_custom_dataset(cfg, write_custom(tmp_path / "own"), train=True)
    loader = instantiate(cfg.dataloader.train)
    batch = next(iter(loader))
    assert not loader.skipped
    assert all(len(sample["instances"].gt_masks) > 0 for sample in batch)


def test_boxes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No masks: refused before training where the model learns them; with what the error says it trains."""
    data = write_custom(tmp_path / "own")
    edit(data, segmentation=None)
    without_masks = "model.roi_heads.mask_in_features=null"
    with pytest.raises(ValueError, match=rf"has boxes only, .*: add {without_masks}"):
        use_custom_dataset(tiny_config(tmp_path, monkeypatch), data, train=True)
    cfg = tiny_config(tmp_path, monkeypatch, without_masks, "train.max_iter=1")
    restartable = use_custom_dataset(cfg, data, train=True)
    train(cfg, restartable=restartable)
    final = torch.load(tmp_path / "output/model_final.pth", weights_only=True)["model"]
    assert not any("mask" in key for key in final)


def test_evaluation_of_annotations_that_lack_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither area nor whether it is a crowd, and one without mask: evaluated as complete ones are."""
    results = []
    for folder, changes in (("complete", {}), ("gaps", {"area": None, "iscrowd": None})):
        cfg = tiny_config(tmp_path, monkeypatch)
        data = write_custom(tmp_path / folder)
        edit(data, **changes)
        use_custom_dataset(cfg, data[1:], train=False)
        torch.manual_seed(0)
        results.append(evaluate(cfg, build_model(cfg)))
    assert repr(results[0]) == repr(results[1])  # NaN for classes that are not there


def test_same_number_of_other_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class layers start anew all the same; in evaluation and resumption other classes are an error."""
    cfg = tiny_config(tmp_path, monkeypatch, "train.max_iter=1", "optimizer.lr=0.0")
    restartable = use_custom_dataset(cfg, write_custom(tmp_path / "own"), train=True)
    model = build_model(cfg)
    others = {"thing_classes": ["a", "b", "c"]}
    score = "roi_heads.box_predictor.cls_score.weight"
    state = {key: torch.full_like(t, 0.5) if key == score else t for key, t in model.state_dict().items()}
    path = tmp_path / "others.pth"
    torch.save({"model": state, "metadata": others}, path)
    cfg.train.init_checkpoint = str(path)
    train(cfg, restartable=restartable)
    final = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert not (final["model"][score] == 0.5).any()
    with pytest.raises(
        ValueError, match=r"trained on 3 classes \(a, b, c\), the data have 3 classes \(bolt, "
    ):
        check_same_classes(others, final["metadata"])

    torch.save({**final, "metadata": others}, tmp_path / "output/model_final.pth")
    with pytest.raises(ValueError, match=r"trained on 3 classes \(a, b, c\)"):
        train(cfg, resume=True, restartable=restartable)


def test_overrides_behind_the_data() -> None:
    """The command line of the README: argparse cannot tell them apart."""
    data = ["train=a/b.json:c.d", "val=b.json", "x/y=1.json:z", "../a.b=c/d.json"]
    overrides = ["train.max_iter=2", "+train.new=1", "model.a[0].b=3"]
    assert without_overrides([*data, *overrides]) == (data, overrides)


def test_from_the_command_line(tmp_path: Path) -> None:
    """Train, evaluate and draw with the tools: as the README has it."""
    data = write_custom(tmp_path / "own")
    output = tmp_path / "output"

    def tool(name: str, *arguments: str) -> str:
        command = [sys.executable, str(REPOSITORY / "tools" / name), "--config-file", str(QUICK_CONFIG)]
        done = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    short = [f"train.output_dir={output}", "train.max_iter=2", "dataloader.train.total_batch_size=2"]
    log = tool("lazyconfig_train_net.py", *short, "--data", *data)  # overrides may stand first
    head = "roi_heads.box_predictor.cls_score"
    fitted = f"the head is fitted to 3 classes (bolt, nut, washer): {head}.weight, {head}.bias"
    assert f"data: {', '.join(data)}; {fitted}" in log
    assert "train.max_iter=2 is 0.5 epochs of 8 images" in log
    final = str(output / "model_final.pth")
    weights = f"train.init_checkpoint={final}"
    log = tool("lazyconfig_train_net.py", "--eval-only", "--data", data[1], weights)
    assert "washer" in log
    images = str(tmp_path / "own/val")
    for named in ([], ["--data", data[1]]):
        drawn = str(tmp_path / f"drawn{len(named)}")
        options = ["--input", images, "--output", drawn, "--score-threshold", "0", *named]
        assert "3 images and frames drawn" in tool("demo.py", "--weights", final, *options)
        found = json.loads(Path(drawn, "predictions.json").read_text())
        assert {record["category_id"] for record in found} <= set(NAMES)


def test_objects365_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No masks, files in patches, marks of fakes and reflections, boxes beyond the image, 365 classes."""
    dino = REPOSITORY / "configs/quick/dino_piip_128_96_64_shapes.py"
    cfg = tiny_config(tmp_path, monkeypatch, "train.max_iter=1", config=dino)
    shapes = tmp_path / "datasets/shapes"
    content = json.loads((shapes / "instances_train.json").read_text())
    (tmp_path / "images/v1").mkdir(parents=True)
    (tmp_path / "images/v1/patch0").symlink_to(shapes / "train")
    for image in content["images"]:
        image["file_name"] = f"images/v1/patch0/{image['file_name']}"
        image |= {"license": 5, "url": ""}
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation |= {"isfake": 0, "isreflected": 0}
        annotation["bbox"][2] += 30.5  # annotators drew beyond the border
    content["categories"] = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(365)]
    content["licenses"] = [{"id": 5, "name": "", "url": ""}]
    path = tmp_path / "zhiyuan_objv2_train.json"
    path.write_text(json.dumps(content))
    follows = use_custom_dataset(cfg, [f"{path}:{tmp_path}"], train=True)
    assert cfg.model.head.num_classes == 365
    train(cfg, restartable=follows)
    entries = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert "bbox/AP" in entries[-1] and "segm/AP" not in entries[-1]


def test_weights_of_other_classes_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which classes the weights know, and what to give: not that the config is another."""
    cfg = tiny_config(tmp_path, monkeypatch)
    classes = {"thing_classes": ["bolt", "nut", "washer"]}
    use_custom_dataset(cfg, write_custom(tmp_path / "own"), train=True)
    Checkpointer(build_model(cfg), str(tmp_path), metadata=classes).save("three")
    six = tiny_config(tmp_path, monkeypatch)
    with pytest.raises(
        ValueError,
        match=r"trained on 3 classes \(bolt, nut, washer\), the data have 6 classes \(disc, .*\(--data\)",
    ):
        Checkpointer(build_model(six), metadata=class_names(six)).load(str(tmp_path / "three.pth"))


def test_the_same_images_for_training_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny_config(tmp_path, monkeypatch)
    (train_set, val) = write_custom(tmp_path / "own")
    with caplog.at_level("WARNING", logger="detectron2.piip"):
        use_custom_dataset(cfg, [train_set, val], train=True)
        use_custom_dataset(cfg, [val.partition("=")[2]], train=False)
        assert not caplog.records
        use_custom_dataset(cfg, [val.partition("=")[2]], train=True)
    (record,) = caplog.records
    assert "instances_val.json is used for training and for validation" in record.getMessage()


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_sets_are_checked_before_training(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images without a size cannot be used: said of the validation set at the start, too."""
    cfg = tiny_config(tmp_path, monkeypatch)
    data = write_custom(tmp_path / "own")
    path = tmp_path / f"own/instances_{split}.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["width"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"_{split}\.json has no image that can be used; skipped \d+ images whose height"
    ):
        use_custom_dataset(cfg, data, train=True)
    # the same without --data
    path = tmp_path / "datasets/shapes/instances_val.json"
    path.write_text(path.read_text().replace('"width": 64', '"width": null'))
    cfg = load_config(str(QUICK_CONFIG), [f"train.output_dir={tmp_path / 'output'}"])
    with pytest.raises(ValueError, match=r"instances_val\.json cannot be used: .*skipped 4 images"):
        train(cfg)
    assert not list(tmp_path.glob("output/*.pth"))


def test_a_mapper_that_fails_on_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Whatever it raises, the file and the id are named; training goes on with another image."""
    cfg = tiny_config(tmp_path, monkeypatch)
    mapper = instantiate(cfg.dataloader.train.mapper)

    def fails(record: dict[str, Any]) -> dict[str, Any]:
        if record["image_id"] == 3:
            raise TypeError("Buffer has\n wrong number of dimensions")
        return dict(mapper(record))

    said = r"000002\.png{}image id 3, TypeError: Buffer has wrong number of dimensions"
    loader = TrainLoader(dataset_dicts("shapes_train"), mapper=fails, total_batch_size=4)
    with caplog.at_level("WARNING", logger="detectron2.piip"):
        assert all(len(batch) == 4 for batch in itertools.islice(loader, 6))
    assert re.search("image 1 that cannot be used, .*" + said.format(": "), caplog.text)
    test_loader = evaluation_loader(dataset_dicts("shapes_train"), mapper=fails)
    with pytest.raises(ValueError, match=said.format(r" cannot be evaluated \(")):
        list(test_loader)
