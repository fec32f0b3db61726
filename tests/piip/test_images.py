"""The one reader: what each kind of image becomes, and what is refused by name."""

from __future__ import annotations

import io
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

import piip.images
from piip.images import (
    IMAGE_SUFFIXES,
    UnreadableFileError,
    list_files,
    open_image,
    open_labels,
    printable,
    read_image,
    write_image,
)

UPRIGHT = np.zeros((24, 40, 3), np.uint8)
UPRIGHT[:8, :10] = (250, 40, 40)
UPRIGHT[16:, 20:] = (40, 40, 250)
STORED = {  # how a camera stores it, by EXIF's orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}
GREY = np.linspace(0, 1, 24 * 40).reshape(24, 40)


@pytest.fixture(autouse=True)
def nothing_said() -> Iterator[None]:
    piip.images._said.clear()
    yield
    piip.images._said.clear()


def with_orientation(orientation: int) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_upright_once(suffix: str, orientation: int, tmp_path: Path) -> None:
    """In every format that has an orientation. A wrong turn differs by 40 on average."""
    stored = Pillow.fromarray(np.ascontiguousarray(STORED[orientation]))
    lossless = (
        {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix in (".jpg", ".avif") else {}
    )
    stored.save(tmp_path / f"a{suffix}", exif=with_orientation(orientation), **lossless)
    found = np.asarray(open_image(tmp_path / f"a{suffix}"), np.int16)
    assert found.shape == UPRIGHT.shape
    assert np.abs(found - UPRIGHT).mean() < 10


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_colours_are_upright_once(suffix: str, tmp_path: Path) -> None:
    """12 bits per channel in 16: OpenCV decodes them, and turns them, too."""
    deep = np.rot90(np.dstack([GREY * 4095] * 3).round().astype(np.uint16), 1)
    content = bytearray(cv2.imencode(suffix, np.ascontiguousarray(deep))[1])
    if suffix == ".tif":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    else:
        eight = io.BytesIO()
        Pillow.new("RGB", (1, 1)).save(eight, "PNG", exif=with_orientation(6))
        start = eight.getvalue().index(b"eXIf") - 4
        length = int.from_bytes(eight.getvalue()[start : start + 4], "big") + 12
        content[33:33] = eight.getvalue()[start : start + length]  # behind the header
        (tmp_path / "a.png").write_bytes(content)
    expected = np.rint(np.rint(GREY * 4095) * (255 / 4095))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}")[:, :, 0], expected)


def test_a_label_map_is_upright_with_its_values(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Pillow.fromarray(np.ascontiguousarray(np.rot90(labels))).save(
        tmp_path / "a.png", exif=with_orientation(6)
    )
    np.testing.assert_array_equal(np.asarray(open_labels(tmp_path / "a.png")), labels)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_is_scaled_by_the_rule(suffix: str, bits: int, channels: int, tmp_path: Path) -> None:
    """White is the least of 8, 10, 12, 14 and 16 bits that the brightest pixel fits into."""
    values = np.rint(GREY * (2**bits - 1)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.dstack([values] * channels).squeeze())
    expected = np.rint(values * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.dstack([expected] * 3))


def test_floating_point_and_32_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Pillow.fromarray(GREY.astype(np.float32)).save(tmp_path / "f.tif")
    Pillow.fromarray(np.rint(GREY * 65535).astype(np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        expected = np.rint(GREY * 255)
        assert np.abs(read_image(tmp_path / name)[:, :, 1] - expected).max() <= 1  # rounded twice
    assert ["more than 8 bits" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("values", [GREY * 2, GREY - 0.1, GREY * np.nan])
def test_numbers_without_a_rule_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    Pillow.fromarray(values.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableFileError, match=r"f\.tif: its pixels are .* expected 0 to 1"):
        read_image(tmp_path / "f.tif")
    Pillow.fromarray(np.rint(GREY * 70000).astype(np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UnreadableFileError, match=r"i\.tif: its pixels are 0 to 70000, expected 0 to 65535"):
        read_image(tmp_path / "i.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_alpha_is_ignored(mode: str, tmp_path: Path) -> None:
    colours = Pillow.fromarray(UPRIGHT).convert({"RGBA": "RGB", "LA": "L"}.get(mode, "P"))
    image = colours.convert(mode)
    if mode == "P":
        image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    elif mode == "PA":
        image.save(tmp_path / "a.tif")
    else:
        image.putalpha(Pillow.new("L", image.size, 7))
        image.save(tmp_path / "a.png")
    file = next(tmp_path.iterdir())
    np.testing.assert_array_equal(np.asarray(open_image(file)), np.asarray(colours.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "LAB", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    Pillow.new(mode, (5, 4)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").shape == (4, 5, 3)


def test_the_first_page_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Pillow.fromarray(UPRIGHT), Pillow.new("RGB", (40, 24), "white")
    for name in ("a.tif", "b.gif", "c.webp", "d.png"):
        options = {"lossless": True} if name == "c.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert np.abs(np.asarray(open_image(tmp_path / name), np.int16) - UPRIGHT).max() < 60
    assert ["a.tif has several pages" in record.message for record in caplog.records] == [True]


def junk(folder: Path) -> Iterator[Path]:
    """Files of which decoders complain by errors of every type."""
    jpeg = io.BytesIO()
    Pillow.fromarray(UPRIGHT).save(jpeg, "JPEG")
    avif = io.BytesIO()
    Pillow.fromarray(UPRIGHT).save(avif, "AVIF")
    png = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(png, "PNG")
    torn = bytearray(png.getvalue())
    torn[60:90] = bytes(30)  # zlib's stream
    contents = {
        "empty": b"",
        "text": b"no image",
        "cut jpeg": jpeg.getvalue()[:300],
        "avif header": avif.getvalue()[:40] + bytes(200),
        "png header": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "torn png": bytes(torn),
        "dds": b"DDS " + (124).to_bytes(4, "little") + bytes(200),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "ppm": b"P6 4 4 255\n" + bytes(3),
        "bmp": b"BM" + bytes(60),
        "tiff": b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(30),
    }
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)
        yield folder / f"{name}.png"
    for name, size in (("wide", (70_000, 100)), ("line", (1001, 1)), ("bomb", (14_000, 14_000))):
        Pillow.new("1", size).save(folder / f"{name}.png")
        yield folder / f"{name}.png"
    os.mkfifo(folder / "pipe.png")
    yield folder / "pipe.png"
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(folder)  # a socket's whole path has little room
    listener.bind("socket.png")
    listener.close()
    yield from (folder / "socket.png", folder / "missing.png", folder, Path("/dev/zero"))


def test_what_cannot_be_read_is_one_error_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back
    for file in junk(tmp_path):
        with pytest.raises(UnreadableFileError) as caught:
            read_image(file)
        assert str(caught.value) == f"{file}: {caught.value.reason}"
        assert len(caught.value.reason) > 10


def test_a_limit_of_pixels_is_told_from_the_header(tmp_path: Path) -> None:
    Pillow.new("1", (3000, 3000)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableFileError, match="3000x3000 px: expected at most 1 megapixels,"):
        read_image(tmp_path / "a.png", max_pixels=1_000_000)


def test_damaged_exif_data_leave_the_image(tmp_path: Path) -> None:
    Pillow.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), UPRIGHT)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """OpenCV ends the process on them."""
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write_image(file, UPRIGHT)
    np.testing.assert_array_equal(read_image(file), UPRIGHT)
    assert printable(file).endswith(r"caf\xe9.png")
    file.write_bytes(b"no image")
    with pytest.raises(UnreadableFileError, match=r"caf\\xe9\.png: it is not an image") as caught:
        read_image(file)
    str(caught.value).encode()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*none/a\.png \(No such file or directory\)"):
        write_image(tmp_path / "none/a.png", UPRIGHT)
    with pytest.raises(ValueError, match=r"an image of 20000x1 px cannot be written as \.webp"):
        write_image(tmp_path / "a.webp", np.zeros((1, 20_000, 3), np.uint8))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "inside").mkdir()
    for name in ("b.JPG", "a.jfif", "notes.txt", "c.heic", "inside/d.tif", "inside/e.csv"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # said once
            assert [file.name for file in list_files(tmp_path)] == ["a.jfif", "b.JPG"]
        assert [file.name for file in list_files(tmp_path, recursive=True)] == ["a.jfif", "b.JPG", "d.tif"]
    flat, deep = (record.message for record in caplog.records)
    assert flat.endswith("left out 3 of another kind, by their names: c.heic, inside, notes.txt")
    assert deep.endswith("left out 3 of another kind, by their names: c.heic, inside/e.csv, notes.txt")


def test_suffixes() -> None:
    common = {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tga",
    }
    assert common | {".tif", ".tiff", ".webp"} <= IMAGE_SUFFIXES
    assert not {".eps", ".pdf", ".mpg", ".h5"} & IMAGE_SUFFIXES
