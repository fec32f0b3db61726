"""Features as colours, the parts' time, uploads within limits, and what is drawn of what was found."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from ... import require

require.detectron2()

import cv2
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image as PillowImage
from torch import nn

from piip.serve.drawing import chosen, draw_classes, draw_instances, fit
from piip.serve.responses import find_piip, observed, principal_colours, responses
from piip.serve.timing import timed
from piip.serve.upload import Limits, UploadError, read_upload

from ..models import randomise, tiny_piip


def test_colours_are_the_directions_of_largest_variance() -> None:
    """Three independent channels of falling variance, turned in space: red is the first, and so on."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([9.0, 3.0, 1.0, 0.01])
    channels = torch.randn(24, 24, 4, generator=generator) * spread
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    picture, shown = principal_colours(channels @ rotation.T)
    assert picture.shape == (24, 24, 3) and picture.dtype == np.uint8
    for colour in range(3):
        seen = picture[:, :, colour].astype(float).ravel()
        correlation = np.corrcoef(seen, channels[:, :, colour].numpy().ravel())[0, 1]
        assert abs(correlation) > 0.97, colour  # the tails are cut, and 576 samples are not quite independent
    assert shown == pytest.approx(1, abs=1e-3)


def test_colours_do_not_depend_on_scale_shift_or_device_noise() -> None:
    features = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(1))
    picture, shown = principal_colours(features)
    other, same = principal_colours(5 * features + 3)
    assert np.abs(picture.astype(int) - other).max() <= 1  # float32 features, rounded to 8 bits
    assert same == pytest.approx(shown, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_map_in_which_nothing_varies_is_grey(channels: int) -> None:
    picture, shown = principal_colours(torch.full((4, 5, channels), 7.0))
    assert (picture == 128).all()
    assert shown == 0


def test_maps_are_those_of_the_network_without_padding() -> None:
    piip = randomise(tiny_piip()).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), observed(piip) as seen:
        merged = piip(image)
        maps = piip.forward_branches(image)
    assert (seen.size, seen.images) == ((64, 64), 1)
    assert seen.merged is not None and torch.equal(seen.merged, merged)
    assert all(torch.equal(a, b) for a, b in zip(seen.maps, maps, strict=True))
    shown = responses(piip, seen, (64, 32))  # the right half was padding
    assert [response.name for response in shown] == ["branch 1", "branch 2", "branch 3", "merged"]
    assert [response.picture.shape[:2] for response in shown] == [(4, 2), (6, 3), (8, 4), (8, 4)]
    assert [response.seen for response in shown] == [(32, 16), (48, 24), (64, 32), None]
    whole, _ = principal_colours(merged[0].permute(1, 2, 0)[:, :4])
    assert np.array_equal(shown[-1].picture, whole)


def test_several_images_are_counted_and_not_kept() -> None:
    piip = tiny_piip().eval()
    with torch.inference_mode(), observed(piip) as seen:
        piip(torch.randn(1, 3, 64, 64))
        piip(torch.randn(2, 3, 64, 64))
    assert seen.images == 3 and seen.merged is None and not seen.maps
    with pytest.raises(ValueError, match="3 images went through the network: expected one"):
        responses(piip, seen, (64, 64))


def test_a_model_without_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no PIIP"):
        find_piip(nn.Linear(1, 1))


class _Slow(nn.Module):
    """A backbone with a PIIP, and heads, that wait for known times."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(tiny_piip(), nn.Identity())
        self.backbone[1].register_forward_hook(lambda *_: time.sleep(0.03))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.backbone(image)
        time.sleep(0.05)
        return found


def test_time_is_put_where_it_is_spent() -> None:
    model = _Slow().eval()
    piip = find_piip(model)
    piip.branches[1].blocks[0].register_forward_hook(lambda *_: time.sleep(0.02))
    piip.interactions[0].register_forward_hook(lambda *_: time.sleep(0.04))
    with torch.inference_mode(), timed(model, piip) as seconds:
        start = time.perf_counter()
        model(torch.randn(1, 3, 64, 64))
        whole = time.perf_counter() - start
    expected = ["branch1", "branch2", "branch3", "interactions", "merge", "resizing", "neck", "heads"]
    assert sorted(seconds) == sorted(expected)
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.05)
    least = {"branch2": 0.02, "interactions": 0.04, "neck": 0.03, "heads": 0.05}
    assert all(seconds[part] >= wait for part, wait in least.items())
    assert not any(module._forward_hooks for module in (model, piip))  # nothing is left behind


def image_file(folder: Path, width: int, height: int) -> Path:
    PillowImage.new("RGB", (width, height), (10, 20, 30)).save(folder / "image.png")
    return folder / "image.png"


def test_uploads(tmp_path: Path) -> None:
    image = read_upload(image_file(tmp_path, 30, 20), Limits())
    assert image.shape == (20, 30, 3)
    assert image[0, 0].tolist() == [30, 20, 10]  # BGR


def test_uploads_that_are_refused(tmp_path: Path) -> None:
    """Each says what is wrong and what is taken; pixels are counted before any is decoded."""
    image = image_file(tmp_path, 300, 200)
    with pytest.raises(UploadError, match=r"300x200 px: expected at most 0.05 megapixels"):
        read_upload(image, Limits(megapixels=0.05))
    with pytest.raises(UploadError, match=r"MB. The limit is 1e-06 MB"):
        read_upload(image, Limits(megabytes=1e-6))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UploadError, match="not an image, or damaged, or of another format than JPEG, PNG"):
        read_upload(tmp_path / "text.png", Limits())
    PillowImage.new("RGB", (30, 20)).save(tmp_path / "figure.eps")  # Pillow would run Ghostscript
    (tmp_path / "figure.eps").rename(tmp_path / "figure.png")
    with pytest.raises(UploadError, match="another format than"):
        read_upload(tmp_path / "figure.png", Limits())
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:-80])
    with pytest.raises(UploadError, match="cannot be decoded"):
        read_upload(tmp_path / "cut.png", Limits())


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    """A file of some kilobytes that claims 400 megapixels."""
    path = tmp_path / "bomb.png"
    cv2.imwrite(str(path), np.zeros((10, 10, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(UploadError, match=r"expected at most 40 megapixels|decompression bomb"):
        read_upload(path, Limits())


def found() -> Instances:
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 25.0, 25.0], [40.0, 30.0, 70.0, 55.0]]))
    instances.scores = torch.tensor([0.4, 0.9])
    instances.pred_classes = torch.tensor([0, 1])
    instances.pred_masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    instances.pred_masks[0, 5:25, 5:25] = instances.pred_masks[1, 30:55, 40:70] = True
    return instances


def test_detections_are_chosen_by_score_and_class() -> None:
    assert chosen(found(), 0.3, ()).scores.tolist() == pytest.approx([0.9, 0.4])
    assert chosen(found(), 0.5, ()).pred_classes.tolist() == [1]
    assert chosen(found(), 0.3, {0}).pred_classes.tolist() == [0]
    assert len(chosen(found(), 0.5, {0})) == 0


def changed(parts: tuple[str, ...], instances: Instances | None = None) -> np.ndarray:
    metadata = Metadata(thing_classes=["disc", "star"])
    image = np.full((60, 80, 3), 128, np.uint8)
    drawn = draw_instances(image, instances or found(), metadata, parts)
    assert drawn.shape == image.shape and (image == 128).all()
    return np.abs(drawn.astype(int) - 128).max(axis=2) > 20


def test_only_what_is_chosen_is_drawn() -> None:
    """Masks fill, boxes are lines, names are drawn with either; without both nothing is."""
    masks, boxes = changed(("masks",)), changed(("boxes",))
    assert masks[35:50, 45:65].all()
    assert not boxes[35:50, 45:65].any()
    assert boxes[29:32, 45:65].any() and boxes[35:50, 39:42].any()
    assert changed(("boxes", "names")).sum() > boxes.sum()
    assert not changed(("names",)).any()
    without_masks = found()
    without_masks.remove("pred_masks")
    assert np.array_equal(changed(("masks", "boxes"), without_masks), boxes)


def test_classes_of_pixels_are_drawn_where_they_are() -> None:
    metadata = Metadata(
        stuff_classes=["ground", "sky", "tree"], stuff_colors=[(9, 9, 9), (9, 9, 250), (9, 250, 9)]
    )
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 2
    image = np.full((40, 40, 3), 128, np.uint8)
    drawn = draw_classes(image, labels, metadata, classes={2}, layers=("masks",)).astype(int)
    assert np.abs(drawn[:, :18] - 128).max() <= 2
    assert (drawn[5:35, 23:37, 1] > 150).all()
    assert np.array_equal(draw_classes(image, labels, metadata, layers=()), image)


def test_pictures_fit_the_screen() -> None:
    def size(height: int, width: int) -> tuple[int, ...]:
        return fit(np.zeros((height, width, 3), np.uint8), least=40, most=1200).shape[:2]

    assert size(30, 40) == (30, 40)
    assert size(300, 400) == (30, 40)
    assert size(12, 15) == (36, 45)
    assert size(1, 4000) == (1, 2190)
