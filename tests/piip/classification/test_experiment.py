"""The command lines of classifiers: train, evaluate, predict, convert, custom datasets, bad input."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ... import require

require.detectron2()

from piip.classification.data import evaluation_batches
from piip.classification.experiment import Run, classifier_to_show
from piip.engine.config import config_of, load_config
from piip.engine.saved_config import dump
from piip.images import read_image
from piip.quick.drawing import CLASSES
from piip.quick.patterns import write_split

from ..tiny_config import REPOSITORY
from . import tiny

CONFIG = str(REPOSITORY / "configs/quick/classifier_piip_96_48_24_patterns.py")
SMALL = ("train.total_batch_size=6", "dataloader.train.num_workers=0", "train.plan.log_period=1")


def tool(name: str) -> Any:
    return runpy.run_path(str(REPOSITORY / f"tools/{name}.py"))["main"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the config's own output folder may be."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "patterns", and the "output" of an epoch of three iterations on them."""
    root = tmp_path_factory.mktemp("classifier")
    for split in ("train", "val"):
        write_split(root / "patterns", split, 18, image_size=96, seed=0)
    tool("train_classifier")(
        ["--config-file", CONFIG, f"dataloader.train.dataset.root={root / 'patterns'}",
         f"train.plan.output_dir={root / 'output'}", "train.plan.epochs=1", *SMALL,
         "+train.ema._target_=timm.utils.ModelEmaV3", "train.ema.decay=0.5"]
    )  # fmt: skip
    return root


def test_training_evaluates_and_saves(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "output/metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["images"] == lines[-1]["ema_images"] == 18
    assert torch.load(trained / "output/model_final.pth", weights_only=True)["metadata"]["classes"] == sorted(
        CLASSES
    )


def test_the_config_travels_with_the_weights(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A given config whose sizes differ gives way to the one that the weights were trained with."""
    saved = config_of(str(trained / "output/model_final.pth"))
    assert saved is not None and (saved.train.plan.epochs, "model_or_params" in saved.optimizer) == (1, False)
    assert saved == load_config(str(trained / "output/config.yaml"))
    saved.model.piip.image_sizes, saved.dataloader.test.crop_pct = [24, 48, 72], 0.5
    torch.save({"model": {}, "config": dump(saved)}, "other.pth")
    cfg = load_config(CONFIG, weights="other.pth")
    assert (list(cfg.model.piip.image_sizes), cfg.dataloader.test.crop_pct) == ([24, 48, 72], 0.5)
    assert "model.piip.image_sizes is [24, 48, 96] in" in caplog.text
    assert "dataloader.test.crop_pct is 1.0 in" in caplog.text


def test_resumed_with_other_settings(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each is applied and said; a new run there keeps the older one."""
    caplog.set_level("WARNING")
    output = tmp_path / "output"
    shutil.copytree(trained / "output", output)
    arguments = [
        *("--config-file", CONFIG, f"dataloader.train.dataset.root={trained / 'patterns'}", *SMALL),
        *(
            f"train.plan.output_dir={output}",
            "+train.ema._target_=timm.utils.ModelEmaV3",
            "train.ema.decay=0.5",
        ),
        "train.plan.eval_period=0",
    ]
    changes = ["optimizer.weight_decay=0.25", "train.seed=5", "train.plan.epochs=2"]
    tool("train_classifier")([*arguments, *changes, "--resume"])
    assert "optimizer.weight_decay was 0.05, and is 0.25 from iteration 3 on" in caplog.text
    assert "train.seed was 0, and is 5 from iteration 3 on" in caplog.text
    content = torch.load(output / "model_final.pth", weights_only=True)["trainer"]
    assert content["seed"] == 5
    assert {group["weight_decay"] for group in content["optimizer"]["param_groups"]} == {0.0, 0.25}

    tool("train_classifier")([*arguments, "train.plan.epochs=1", "dataloader.train.num_workers=0"])
    assert f"{output} held another run, which is in {output / 'previous-1'} now" in caplog.text
    assert (output / "previous-1/model_final.pth").exists() and (output / "model_final.pth").exists()


@pytest.mark.parametrize("averaged", [False, True])
def test_evaluation_repeats_what_training_measured(
    trained: Path, averaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    measured = json.loads((trained / "output/metrics.json").read_text().splitlines()[-1])
    with caplog.at_level("INFO"):
        tool("train_classifier")(
            ["--config-file", CONFIG, "--eval-only", *(["--ema"] if averaged else []),
             f"dataloader.train.dataset.root={trained / 'patterns'}", *SMALL,
             f"train.init_checkpoint={trained / 'output/model_final.pth'}"]
        )  # fmt: skip
    loss = measured["ema_loss" if averaged else "loss"]
    assert f"loss {loss:.3f}" in caplog.text


def test_custom_dataset_of_other_classes(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`--data` makes the head one for the folder's classes; all else is the checkpoint's."""
    for split in ("train", "val"):
        tiny.write_images(tmp_path / "trees", split, 6)
    tool("train_classifier")(
        ["--config-file", CONFIG, "--data", str(tmp_path / "trees"), *SMALL, "train.plan.epochs=1",
         "optimizer.lr=0.0", "lr_scheduler.warmup_lr=0.0",
         f"train.init_checkpoint={trained / 'output/model_final.pth'}",
         f"train.plan.output_dir={tmp_path / 'output'}"]
    )  # fmt: skip
    assert "2 tensors follow the classes and start anew: head.head.bias, head.head.weight" in caplog.text
    ours = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    theirs = torch.load(trained / "output/model_final.pth", weights_only=True)
    assert ours["metadata"]["classes"] == list(tiny.CLASSES)
    assert ours["model"]["head.head.weight"].shape == (3, 128)
    assert all(
        torch.equal(ours["model"][key], theirs["model"][key])
        for key in theirs["model"]
        if not key.startswith("head.head.")
    )


def test_demo_names_the_likeliest_classes(trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 120, 3)).astype(np.uint8)).save(tmp_path / "noise.png")
    tool("demo")(
        ["--config-file", CONFIG, "--weights", str(trained / "output/model_final.pth"),
         "--input", str(tmp_path / "noise.png"), "--output", str(tmp_path / "drawn")]
    )  # fmt: skip
    records = json.loads((tmp_path / "drawn/predictions.json").read_text())
    assert len(records) == 3
    assert all(sorted(CLASSES)[r["category_id"]] == r["category"] for r in records)
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    with Image.open(tmp_path / "drawn/noise.png") as drawn:
        assert drawn.size == (120, 80)


def test_evaluation_and_prediction_see_the_same_pixels(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of turned images in formats that timm's list of suffixes has not; files of other kinds are named."""
    exif = Image.Exif()
    exif[274] = 6
    for name in CLASSES:
        folder = tmp_path / "data/val" / name
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(len(name)).integers(0, 255, (90, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "0.tif", exif=exif)
        Image.fromarray(pixels).save(folder / "1.webp", exif=exif, lossless=True)
    (tmp_path / "data/val/star/notes.txt").touch()
    weights = str(trained / "output/model_final.pth")
    cfg = load_config(CONFIG, [f"dataloader.test.dataset.root={tmp_path / 'data'}"])
    with caplog.at_level("WARNING"):
        loader = Run(cfg)._loader("test", 0)
    assert "left out 1 of another kind, by their names: star/notes.txt" in caplog.text
    evaluated = torch.cat([images for images, _ in evaluation_batches(loader)])
    predictor, _ = classifier_to_show(load_config(CONFIG), weights)
    files = [loader.dataset.filename(index, absolute=True) for index in range(len(loader.dataset))]
    seen = [predictor.transform(Image.fromarray(read_image(file)[:, :, ::-1].copy())) for file in files]
    assert len(files) == 2 * len(CLASSES)
    assert torch.equal(evaluated, torch.stack(seen))


def test_conversion_goes_both_ways(trained: Path, tmp_path: Path) -> None:
    """Bit for bit, and the tool takes the released names as they are."""
    ours, theirs, back = trained / "output/model_final.pth", tmp_path / "released.pth", tmp_path / "back.pth"
    convert = tool("convert_checkpoint")
    convert([str(ours), str(theirs), "--config-file", CONFIG, "--to-official"])
    assert "cls_head.weight" in torch.load(theirs, weights_only=True)["state_dict"]
    convert([str(theirs), str(back), "--config-file", CONFIG])
    before, after = (torch.load(p, weights_only=True)["model"] for p in (ours, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    tool("train_classifier")(
        ["--config-file", CONFIG, "--eval-only", f"train.init_checkpoint={theirs}", *SMALL,
         f"dataloader.train.dataset.root={trained / 'patterns'}"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.piip.brunches=[]"], "no key 'model.piip.brunches': did you mean model.piip.branches"),
        (["dataloader.train.dataset.root=nowhere"], "the train set at nowhere cannot be read"),
        (["--eval-only"], "no weights to evaluate: add train.init_checkpoint=MODEL.pth"),
        (["--eval-only", "train.init_checkpoint=no.pth"], "no.pth does not exist"),
        (["train.device=tpu"], "train.device is 'tpu': use cpu, cuda or cuda:N"),
        (["train.total_batch_size=5"], "5 images a process cannot be mixed in pairs"),
        (["train.total_batch_size=600"], "18 images, fewer than a batch of 600"),
        (["model.num_classes=4"], "the data have 6 classes, the model 4: add model.num_classes=6"),
        (["train.plan.precision=float8"], "precision 'float8' is not supported"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"dataloader.train.dataset.root={trained / 'patterns'}", *SMALL, *arguments]
    with pytest.raises(SystemExit) as end:
        tool("train_classifier")(["--config-file", CONFIG, *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_detectors_are_sent_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs/quick/mask_rcnn_piip_128_96_64_shapes.py")
    with pytest.raises(SystemExit):
        tool("train_classifier")(["--config-file", config])
    assert "tools/lazyconfig_train_net.py" in capsys.readouterr().err


def test_two_processes_by_torchrun(trained: Path, tmp_path: Path) -> None:
    """The command line in two processes: the losses of one process with the same batch, to 1e-5."""

    def run(*launcher: str) -> list[float]:
        output = tmp_path / str(len(launcher))
        subprocess.run(
            [*launcher, str(REPOSITORY / "tools/train_classifier.py"), "--config-file", CONFIG, *SMALL,
             f"dataloader.train.dataset.root={trained / 'patterns'}", f"train.plan.output_dir={output}",
             "train.plan.epochs=1", "train.total_batch_size=4"],
            check=True, cwd=REPOSITORY,
        )  # fmt: skip
        lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        assert lines[-1]["images"] == 18
        return [line["total_loss"] for line in lines if "total_loss" in line] + [lines[-1]["loss"]]

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    assert run(*torchrun) == pytest.approx(run(sys.executable), rel=1e-5)
