"""The one reader and writer of images: training, evaluation, prediction, export and the web page all use it.

The rules, for every format:

- **Upright**: the orientation of the EXIF data is applied exactly once. Label maps too are upright.
- **8 bits**: deeper images are scaled linearly, 0 stays black. White is the smallest of 255, 1023, 4095,
  16383 and 65535 (8, 10, 12, 14 and 16 bits) that is not below the brightest pixel of the image; for
  floating-point numbers it is 1. Negative, larger and not finite numbers are refused.
- **Three channels**: grey and palettes become RGB. Alpha is ignored: the colours are taken as stored.
- **One image**: of several pages or frames the first is read, and the log says so once.
- **Size**: at most `MAX_PIXELS` pixels and `MAX_SIDE` per side, one side at most `MAX_RATIO` times the other.
  This is checked before pixels are decoded.
- **Content decides** the format, and only `FORMATS` are tried; `IMAGE_SUFFIXES` are their usual endings.
- **Regular files only**: a named pipe, socket or device is never opened, because opening may block.

Whatever goes wrong with one file is an :class:`UnreadableFileError` that names it.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL.ExifTags import Base
from torch.utils.data import get_worker_info

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "Image",
    "Source",
    "UnreadableFileError",
    "as_rgb",
    "check_regular",
    "list_files",
    "open_image",
    "open_labels",
    "printable",
    "read_image",
    "utf8_path",
    "write_image",
]

_logger = logging.getLogger("detectron2.piip")

Image = npt.NDArray[np.uint8]
"""(H, W, 3), BGR."""

Source = str | os.PathLike[str] | IO[bytes]
"""The path of a file, or a file that was opened for reading bytes."""

MAX_PIXELS = 178_956_970  # where Pillow, too, calls an image a decompression bomb
MAX_SIDE = 65_535  # that of JPEG; drawing does not go far beyond
MAX_RATIO = 1000  # a line of pixels becomes gigabytes once its shorter side is resized

warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)  # the size is checked below
Pillow.init()
FORMATS = tuple(  # of photographs and drawings; no EPS or PDF, which start other programs
    name
    for name in ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "DIB", "PPM", "TIFF", "TGA")
    if name in Pillow.OPEN
)
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Pillow.registered_extensions().items() if name in FORMATS
)
"""Endings of image files in lower case, as the installed Pillow reads them."""

_WHITE = (255, 1023, 4095, 16383, 65535)
_TURNS = {  # values of EXIF's orientation
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)
_NAMED = 3  # files named in a line about many
_said: set[str] = set()


class UnreadableFileError(ValueError):
    """A file that is missing, is of another kind or cannot be decoded.

    Args:
        file: its name.
        reason: what is wrong.

    Attributes:
        reason: what is wrong, without the name.
    """

    def __init__(self, file: object, reason: str = "") -> None:
        super().__init__(f"{printable(file)}: {reason}" if reason else str(file))
        self.reason = reason or str(file)


def printable(file: object) -> str:
    """The name of a file for people; bytes that are not UTF-8 are shown as ``\\xff``."""
    name = getattr(file, "name", file) if hasattr(file, "read") else file
    if isinstance(name, (str, os.PathLike)):
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return str(name)


def list_files(
    folder: str | os.PathLike[str], suffixes: Set[str] = IMAGE_SUFFIXES, *, recursive: bool = False
) -> list[Path]:
    """The images in a folder by the endings of their names, sorted; the log names what is left out.

    Hidden files and folders are left out, such as ``._photo.jpg`` and ``.ipynb_checkpoints``.

    Args:
        folder: an existing folder.
        suffixes: endings in lower case.
        recursive: look into the folders inside as well.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        for name in names:
            wanted = Path(name).suffix.lower() in suffixes and not name.startswith(".")
            (files if wanted else left_out).append(Path(root, name))
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        if not recursive:
            left_out += [Path(root, inner) for inner in folders]
            break
    if left_out:
        shown = ", ".join(printable(path.relative_to(folder)) for path in sorted(left_out)[:_NAMED])
        more = ", ..." if len(left_out) > _NAMED else ""
        said = f"left out {len(left_out)} of another kind, by their names: {shown}{more}"
        _say_once(f"{folder} {said}", f"{printable(folder)}: {said}")
    return sorted(files)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, without opening it.

    Raises:
        UnreadableFileError: the file is missing, or it is a folder, named pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise UnreadableFileError(path, reason) from error
    for is_kind, kind in _SPECIAL:
        if is_kind(mode):
            raise UnreadableFileError(path, f"it is {kind}: expected a regular file")


def _say_once(kind: str, message: str) -> None:
    """Log a message once per kind. Of the workers of a data loader, only the first one does."""
    worker = get_worker_info()
    if kind not in _said and (worker is None or worker.id == 0):
        _said.add(kind)
        _logger.warning(message)


def _scaled(values: npt.NDArray[Any], file: Source) -> Image:
    """Pixels of any depth as 8 bits, by the rule above."""
    low, high = values.min(), values.max()
    whites = (1,) if values.dtype.kind == "f" else _WHITE
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        expected = "0 to 1 for floating-point numbers" if values.dtype.kind == "f" else "0 to 65535"
        raise UnreadableFileError(
            file, f"its pixels are {low} to {high}, expected {expected}: save the image with 8 bits"
        )
    _say_once(
        "depth",
        f"{printable(file)} has more than 8 bits per channel: it is scaled to 8 bits, with {white} as white. "
        "Other images like it are scaled by the same rule (piip.images) without a message",
    )
    return np.rint(values * (255 / white)).astype(np.uint8)


def _upright(image: Pillow.Image, file: Source) -> Pillow.Image:
    """A decoded image turned as its EXIF data say. Pillow has turned a TIFF already and says so there."""
    try:
        turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
    except Exception as error:  # noqa: BLE001  (damaged EXIF data fail in any way; the pixels are good)
        _say_once("exif", f"{printable(file)}: EXIF data are damaged ({error}), the image is taken as stored")
        turn = None
    return image if turn is None else image.transpose(turn)


def as_rgb(image: Pillow.Image, file: Source) -> Pillow.Image:
    """An image that Pillow has decoded, by the rules of this module.

    Raises:
        UnreadableFileError: its pixels have no rule; the error names `file`.
    """
    image = _upright(image, file)
    if image.mode[0] in "IF":  # also I;16 and I;16B
        image = Pillow.fromarray(_scaled(np.asarray(image), file))
    elif image.mode == "La":
        image = image.convert("LA")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _open(stream: IO[bytes], file: Source, max_pixels: int, *, labels: bool) -> Pillow.Image:
    image = Pillow.open(stream, formats=FORMATS)
    width, height = image.size
    long, short = max(width, height), min(width, height)
    if width * height > max_pixels or long > MAX_SIDE or long > MAX_RATIO * short:
        raise UnreadableFileError(
            file,
            f"it has {width}x{height} px: expected at most {max_pixels / 1e6:.4g} megapixels, {MAX_SIDE} px "
            f"per side and sides of 1:{MAX_RATIO}",
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):
        _say_once(
            "pages", f"{printable(file)} has several pages or frames: the first is read, as in all such files"
        )
    deep_colours = len(image.getbands()) > 1 and ";16" in str(image.tile)
    image.load()
    if labels:
        return _upright(image, file)
    if deep_colours:  # Pillow keeps the upper 8 bits only: all black where 12 of 16 are used
        stream.seek(0)
        data = np.frombuffer(stream.read(), np.uint8)
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # turns the image upright
        if bgr is None:
            raise UnreadableFileError(
                file, "it has more than 8 bits per channel, in a way OpenCV cannot decode"
            )
        return Pillow.fromarray(_scaled(bgr[:, :, ::-1], file))
    return as_rgb(image, file)


def _decoded(file: Source, max_pixels: int, *, labels: bool) -> Pillow.Image:
    if isinstance(file, (str, os.PathLike)):
        check_regular(file)
    try:
        with open(file, "rb") if isinstance(file, (str, os.PathLike)) else nullcontext(file) as stream:
            return _open(stream, file, max_pixels, labels=labels)
    except UnreadableFileError:
        raise
    except Pillow.UnidentifiedImageError as error:
        raise UnreadableFileError(
            file, f"it is not an image, or damaged, or of another format than {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, RuntimeError, zlib.error, ...
        failed = "read" if getattr(error, "errno", None) else "decoded"
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = f"it cannot be {failed} ({detail})"
        raise UnreadableFileError(file, reason) from error


def open_image(file: Source, *, max_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """An image in Pillow's mode RGB, decoded by the rules of this module.

    Args:
        file: a path or a file.
        max_pixels: refuse an image of more pixels before it is decoded.

    Raises:
        UnreadableFileError: the file is missing, too large or no image that can be decoded.
    """
    return _decoded(file, max_pixels, labels=False)


def read_image(file: Source, *, max_pixels: int = MAX_PIXELS) -> Image:
    """An image as an array ``(H, W, 3)`` of uint8, BGR; see :func:`open_image`."""
    return np.ascontiguousarray(np.asarray(open_image(file, max_pixels=max_pixels))[:, :, ::-1])


def open_labels(file: Source) -> Pillow.Image:
    """A label map: upright, with its values and mode as stored; see :func:`open_image`."""
    return _decoded(file, MAX_PIXELS, labels=True)


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name for OpenCV, which crashes on names that are not UTF-8, to open or make a file.

    It is the absolute path, in which FFmpeg sees no protocol such as ``concat:``, or a symbolic link to it.
    """
    target = os.path.abspath(path)
    try:
        target.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, f"file{Path(target).suffix}")
            link.symlink_to(target)
            yield str(link)
    else:
        yield target


def write_image(path: str | os.PathLike[str], image: npt.NDArray[np.uint8]) -> None:
    """Write an image ``(H, W, 3)``, BGR, or ``(H, W)`` in the format of the name's ending.

    The bytes are written by Python: OpenCV crashes on names that are not UTF-8.

    Raises:
        ValueError: the format cannot hold an image of this size.
        OSError: the file cannot be written.
    """
    path = Path(path)
    height, width = image.shape[:2]
    try:
        encoded, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise ValueError(f"an image of {width}x{height} px cannot be written as {path.suffix}") from error
    if not encoded:
        raise ValueError(f"an image of {width}x{height} px cannot be written as {path.suffix}")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise OSError(
            f"cannot write {printable(path)} ({error.strerror}): check that the folder is writable, and the "
            "disk not full"
        ) from error
