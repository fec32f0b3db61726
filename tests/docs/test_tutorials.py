"""Every command and every piece of Python in a tutorial runs, at small size."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from .. import require

require.detectron2()

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((REPOSITORY / "docs/tutorials").glob("*.md"))

COCO_CONFIG = "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py"
SMALL_CONFIG = "configs/small/detector.py"
QUICK_CONFIG = "configs/quick/mask_rcnn_piip_128_96_64_shapes.py"
QUICK_SEGMENTOR = "configs/quick/upernet_piip_128_96_64_shapes.py"
SMALL = {  # what a command runs with instead
    "configs/ADE20K/upernet_piip_tsb_896_448_336_160k.py": QUICK_SEGMENTOR,
    "--num-gpus 8": "",
    "--input 0": "--input moving.mp4",  # no camera here: tests/piip/engine/prediction/test_sources.py has one
}
COUNTED = "tools/flop_count.py"  # which takes any config as it is
TRAINED = ["train.device=cpu", "train.max_iter=2", "dataloader.train.total_batch_size=2"]
OTHERS = {"make", "pip"}  # commands that tests/test_repository.py knows


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(
        r"^```(sh|python)(?: title=\"([^\"]+)\")?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [Block(language, title or None, text) for language, title, text in found]


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block, continued lines joined, made small."""
    lines = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for large, small in SMALL.items():
            line = line.replace(large, small)
        words = shlex.split(line, comments=True)
        if words and words[1:2] != [COUNTED]:
            words = [SMALL_CONFIG if word == COCO_CONFIG else word for word in words]
        if words[1:2] == ["tools/lazyconfig_train_net.py"]:
            words += TRAINED
        if words and words[0] not in OTHERS:
            lines.append(words)
    return lines


def in_child(work: Callable[[], None], folder: Path) -> str:
    """Run something in a fork of this process, which need not import PyTorch again; returns what it printed.

    Nothing that it leaves in the process, such as registered data sets, is seen by the next.
    """
    log = folder / "log.txt"

    def run() -> None:
        os.chdir(folder)
        os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
        with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(timeout=600)
    printed = log.read_text()
    assert process.exitcode == 0, printed[-3000:]
    return printed


def run_tool(words: list[str]) -> None:
    assert words[0] == "python", words
    spec = importlib.util.spec_from_file_location("tool", REPOSITORY / words[1])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if words[1] == "tools/web_demo.py":  # built, but not served: tests/piip/serve does
        import piip.serve.page

        piip.serve.page.serve = lambda *arguments, **options: ""
    module.main(words[2:])


def prepare(folder: Path) -> None:
    """What the tutorials suppose to be there: data, weights, pictures, a video."""
    import torch

    from piip.engine.checkpoints.checkpoint import Checkpointer
    from piip.engine.checkpoints.convert import convert_checkpoint
    from piip.engine.config import load_config
    from piip.engine.model import build_model
    from piip.quick.shapes import write_split

    for split, number in (("train", 4), ("val", 2)):
        write_split(folder / "datasets/shapes", split, number, image_size=64, seed=0)
        shutil.copytree(folder / "datasets/shapes" / split, folder / "bolts/images", dirs_exist_ok=True)
        shutil.copy(folder / f"datasets/shapes/instances_{split}.json", folder / f"bolts/{split}.json")
    shutil.copytree(folder / "datasets/shapes/val", folder / "photographs")
    shutil.copytree(folder / "datasets/shapes/val", folder / "fields/images")
    shutil.copytree(folder / "datasets/shapes/labels_val", folder / "fields/labels")
    (folder / "fields/labels/classes.txt").write_text("\n".join("abcdefg"))
    for split in ("training", "validation"):
        for kind, image in (("images", "x.jpg"), ("annotations", "x.png")):
            target = folder / "datasets/ADEChallengeData2016" / kind / split
            target.mkdir(parents=True)
            cv2.imwrite(str(target / image), np.ones((64, 64), np.uint8))
    writer = cv2.VideoWriter(str(folder / "moving.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, (64, 64))
    for level in (60, 120):
        writer.write(np.full((64, 64, 3), level, np.uint8))
    writer.release()
    torch.manual_seed(0)
    for config, name in ((QUICK_CONFIG, "outputs/demo/model_final.pth"), (SMALL_CONFIG, "tsb.pth")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        model = build_model(load_config(str(folder / config), ["train.device=cpu"]))
        Checkpointer(model, str(target.parent)).save(target.stem)
    released = folder / "mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16.pth"
    cfg = load_config(str(folder / SMALL_CONFIG))
    convert_checkpoint(
        str(folder / "tsb.pth"), str(released), cfg, to_official=True, config_name=SMALL_CONFIG
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with what the tutorials suppose."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(REPOSITORY / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "configs/small").mkdir()
    shutil.copy(Path(__file__).with_name("small_detector.py"), folder / SMALL_CONFIG)
    (folder / "tools").symlink_to(REPOSITORY / "tools")
    in_child(lambda: prepare(folder), folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_everything_in_a_tutorial_runs(page: Path, place: Path) -> None:
    found = blocks(page)
    python = [block for block in found if block.language == "python"]
    for block in python:
        if block.title:
            target = place / block.title
            target.parent.mkdir(exist_ok=True)
            target.write_text(block.text)
    script = "\n".join(block.text for block in python if not block.title)
    if script:
        in_child(lambda: exec(compile(script, str(page), "exec"), {"__name__": "tutorial"}), place)
    for block in found:
        if block.language == "sh":
            for words in commands(block):
                in_child(lambda words=words: run_tool(words), place)


def test_commands_are_found() -> None:
    """The tests above would pass if nothing was read."""
    page = REPOSITORY / "docs/tutorials/own-data.md"
    read = [words for block in blocks(page) for words in commands(block)]
    assert [words[1] for words in read] == ["tools/lazyconfig_train_net.py"] * 3 + ["tools/demo.py"]
    assert all(SMALL_CONFIG in words and "8" not in words for words in read)
