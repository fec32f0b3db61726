"""Data of classifiers: what a batch depends on, each kind of set timm reads, and what is refused."""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from timm.data import create_dataset, create_loader
from torch import Tensor

from piip.classification.data import (
    Processes,
    TrainBatches,
    class_names,
    evaluation_batches,
    leave_out_strays,
    warn_of_shared_images,
)

from .tiny import CLASSES, SIDE, loader, write_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, "train", 12)
    write_images(folder, "val", 7)
    return folder


def collected(batches: Any) -> list[tuple[Tensor, Tensor]]:
    return [(images, targets) for images, targets in batches]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in zip(a, b, strict=True)
    )


def test_what_a_batch_depends_on(root: Path) -> None:
    """Seed, epoch and its number; not workers, nor where the epoch was begun."""
    batches = TrainBatches(loader(root, "train", 4), seed=1)
    epoch = collected(batches.epoch(0))
    assert len(epoch) == len(batches) == 3
    assert same(collected(batches.epoch(0)), epoch)
    assert same(collected(batches.epoch(0, start=2)), epoch[2:])
    assert same(collected(TrainBatches(loader(root, "train", 4, num_workers=2), seed=1).epoch(0)), epoch)
    assert not same(collected(batches.epoch(1)), epoch)
    assert not same(collected(TrainBatches(loader(root, "train", 4), seed=2).epoch(0)), epoch)
    assert torch.cat([targets for _, targets in epoch]).bincount().tolist() == [4, 4, 4]


def test_processes_share_the_batches_of_one(root: Path) -> None:
    one = collected(TrainBatches(loader(root, "train", 6), seed=1).epoch(0))
    two = [
        collected(TrainBatches(loader(root, "train", 3), seed=1, processes=Processes(rank, 2)).epoch(0))
        for rank in range(2)
    ]
    for number, (images, targets) in enumerate(one):
        assert torch.equal(images[0::2], two[0][number][0])
        assert torch.equal(images[1::2], two[1][number][0])
        assert torch.equal(targets[1::2], two[1][number][1])


def test_each_test_image_once(root: Path) -> None:
    """Over processes that do not divide their number, too."""
    targets = [
        target
        for rank in range(2)
        for _, batch in evaluation_batches(loader(root, "val", 2), Processes(rank, 2))
        for target in batch.tolist()
    ]
    assert sorted(targets) == [0, 0, 0, 1, 1, 2, 2]


def test_classes_of_folders(root: Path) -> None:
    assert class_names(create_dataset("", root=str(root), split="train")) == list(CLASSES)


def shards(root: Path, folder: Path) -> str:
    """The training images as two tar shards, named as timm takes them."""
    folder.mkdir()
    files = sorted((root / "train").rglob("*.png"))
    for number in range(2):
        with tarfile.open(folder / f"train-{number}.tar", "w") as tar:
            for file in files[number::2]:
                label = str(CLASSES.index(file.parent.name)).encode()
                for suffix, content in ((".png", file.read_bytes()), (".cls", label)):
                    info = tarfile.TarInfo(file.stem + suffix)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"train-{{0..1}}.tar|{len(files)}"


def stream(root: Path, split: str, *, num_workers: int, is_training: bool = True, **options: Any) -> Any:
    dataset = create_dataset(
        "wds/trees", root=str(root), split=split, is_training=is_training, batch_size=2, seed=1
    )
    return create_loader(
        dataset, SIDE, 2, is_training=is_training, use_prefetcher=False, num_workers=num_workers, **options
    )


def test_hidden_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is the folder around them; two folders of one name are one class, which is said."""
    for name in (
        "train/cat/1.png",
        "train/cat/._1.png",
        "train/cat/.ipynb_checkpoints/1.png",
        "train/dog/1.png",
        "train/.cache/fox/1.png",
        "train/__MACOSX/owl/1.png",
        "train/more/cat/2.png",
        "train/stray.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8)).save(tmp_path / name)
    dataset = create_dataset("", root=str(tmp_path), split="train")
    with caplog.at_level(logging.WARNING):
        leave_out_strays(dataset)
    assert class_names(dataset) == ["cat", "dog"]
    found = [(Path(path).relative_to(tmp_path / "train").as_posix(), t) for path, t in dataset.reader.samples]
    assert found == [("cat/1.png", 0), ("dog/1.png", 1), ("more/cat/2.png", 0)]
    assert "left out 5 images that are hidden or in no class's folder" in caplog.text
    assert "class 'cat' is that of several folders: " in caplog.text
    (tmp_path / "only/.hidden").mkdir(parents=True)
    Pillow.new("RGB", (8, 8)).save(tmp_path / "only/.hidden/1.png")
    with pytest.raises(ValueError, match="has no images in folders of classes"):
        leave_out_strays(create_dataset("", root=str(tmp_path / "only")))


def test_test_images_that_are_trained_on(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a folder without val/ timm takes all images for the test set; nothing is said of proper splits."""
    write_images(tmp_path, "train", 4)
    for folder, expected in (
        (root, ""),
        (tmp_path, "4 of the 4 test images"),
        (tmp_path / "train", "4 of the 4"),
    ):
        caplog.clear()
        sets = [create_dataset("", root=str(folder), split=split) for split in ("train", "val")]
        with caplog.at_level(logging.WARNING):
            warn_of_shared_images(*sets)
        assert expected in caplog.text and bool(caplog.text) == bool(expected)


def test_class_maps(root: Path, tmp_path: Path) -> None:
    """A stray file does not change their numbers; a byte order mark would cost the first class."""
    names = ["unused", *CLASSES]
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "classes.txt").write_text("\n".join(names), encoding=encoding)
        dataset = create_dataset("", root=str(root), split="train", class_map=str(tmp_path / "classes.txt"))
        if encoding == "utf-8":
            leave_out_strays(dataset)
            assert class_names(dataset) == names
        else:
            with pytest.raises(ValueError, match="byte order mark"):
                leave_out_strays(dataset)


def test_tar_shards(root: Path, tmp_path: Path) -> None:
    """Epochs repeat, from their middle too; evaluation sees each image once."""
    pytest.importorskip("webdataset")
    split = shards(root, tmp_path / "shards")
    batches = TrainBatches(stream(tmp_path / "shards", split, num_workers=2), seed=1)
    epoch = collected(batches.epoch(0))
    assert len(epoch) == len(batches) == 6
    assert torch.cat([targets for _, targets in epoch]).bincount().tolist() == [4, 4, 4]
    assert same(collected(batches.epoch(0, start=4)), epoch[4:])
    assert not same(collected(batches.epoch(1)), epoch)
    tests = evaluation_batches(stream(tmp_path / "shards", split, num_workers=1, is_training=False))
    assert sum(len(targets) for _, targets in tests) == 12
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        TrainBatches(stream(tmp_path / "shards", split, num_workers=0))


def test_hugging_face_sets(root: Path, tmp_path: Path) -> None:
    """A data set on disk in parquet, with the names of its classes."""
    datasets = pytest.importorskip("datasets")
    files = sorted((root / "train").rglob("*.png"))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    rows = {
        "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
        "label": [CLASSES.index(f.parent.name) for f in files],
    }
    (tmp_path / "trees").mkdir()
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "trees/train-00000-of-00001.parquet"))
    dataset = create_dataset(f"hfds/{tmp_path / 'trees'}", root=str(tmp_path / "cache"), split="train")
    assert class_names(dataset) == list(CLASSES)
    batches = TrainBatches(
        create_loader(dataset, SIDE, 4, is_training=True, use_prefetcher=False, num_workers=0), seed=1
    )
    epoch = collected(batches.epoch(0))
    assert torch.cat([targets for _, targets in epoch]).bincount().tolist() == [4, 4, 4]
    assert same(collected(batches.epoch(0)), epoch)


def test_broken_images(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another takes its place in training, as timm does; evaluation names it."""
    write_images(tmp_path, "train", 6)
    broken = tmp_path / "train/birch/001.png"
    broken.write_bytes(b"no image")
    os.mkfifo(tmp_path / "train/cedar/009.png")
    with caplog.at_level(logging.WARNING):
        batches = TrainBatches(loader(tmp_path, "train", 1))
        assert [len(collected(batches.epoch(epoch))) for epoch in range(2)] == [7, 7]
    named = [re.findall(r"\d+\.png: it is [^,:]*", record.message)[0] for record in caplog.records]
    assert sorted(named) == ["001.png: it is not an image", "009.png: it is a named pipe"]  # once
    with pytest.raises(ValueError, match=r"birch.001\.png cannot be evaluated \(it is not an image"):
        collected(evaluation_batches(loader(tmp_path, "train", 2)))
    failing = loader(root, "val", 2)
    failing.dataset.transform = lambda image: image.no_such_method()
    with pytest.raises(ValueError, match=r"ash.000\.png cannot be evaluated \(AttributeError: "):
        collected(evaluation_batches(failing))


def test_images_are_upright_and_of_8_bits(root: Path, tmp_path: Path) -> None:
    """In training and evaluation, from folders and streams, as `piip.images` says and prediction has it."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
        turned = Pillow.fromarray(np.ascontiguousarray(np.rot90(pixels)))
        exif = Pillow.Exif()
        exif[274] = 6
        if number == 0:
            turned.save(folder / "a.png", exif=exif)
        elif number == 1:
            Pillow.fromarray(np.rot90(pixels * np.uint16(257)).copy()).save(folder / "a.png", exif=exif)
        else:
            turned.save(folder / "a.tif.png", "TIFF", exif=exif)
        (tmp_path / f"{name}.npy").write_bytes(pixels.tobytes())
    plain = {"crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    upright = [np.frombuffer((tmp_path / f"{name}.npy").read_bytes(), np.uint8) for name in CLASSES]
    ((images, _),) = evaluation_batches(loader(tmp_path, "train", 3, is_training=False, **plain))
    np.testing.assert_array_equal((images[:, 0] * 255).round().flatten(1), np.stack(upright))
    flips = {"no_aug": True, "auto_augment": None}
    ((images, targets),) = TrainBatches(loader(tmp_path, "train", 3, **plain, **flips)).epoch(0)
    expected = np.stack([upright[target] for target in targets.tolist()])
    np.testing.assert_array_equal((images[:, 0] * 255).round().flatten(1), expected)


def test_images_of_streams_are_upright_and_of_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    exif = Pillow.Exif()
    exif[274] = 6
    pixels = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)  # 10 bits
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number, kind in enumerate(("PNG", "TIFF")):
            content = io.BytesIO()
            Pillow.fromarray(np.rot90(pixels).copy()).save(content, kind, exif=exif)
            for suffix, data in ((".png", content.getvalue()), (".cls", b"0")):
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    plain = {"crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    made = stream(tmp_path, "train-0.tar|2", num_workers=0, is_training=False, **plain)
    ((images, _),) = evaluation_batches(made)
    for image in images:
        np.testing.assert_array_equal((image[0] * 255).round(), np.rint(pixels * (255 / 1023)))


def test_what_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="12 images, fewer than a batch of 16"):
        TrainBatches(loader(root, "train", 8), processes=Processes(0, 2))
    prefetching = create_loader(
        create_dataset("", root=str(root), split="train"), SIDE, 4, device=torch.device("cpu"), num_workers=0
    )
    with pytest.raises(ValueError, match="use_prefetcher=False"):
        TrainBatches(prefetching)
