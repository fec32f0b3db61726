"""What is taken from a visitor: an image file within limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from ..engine.prediction.sources import Image, UnreadableFileError, read_image_file

__all__ = ["Limits", "UploadError", "read_upload"]


class UploadError(ValueError):
    """A file that is not taken, and why, in words for the visitor."""


@dataclass(frozen=True)
class Limits:
    """How large an upload may be.

    Attributes:
        megabytes: of the file, 1e6 bytes each.
        megapixels: of the image, 1e6 pixels each; it is told before the image is decoded.
    """

    megabytes: float = 20.0
    megapixels: float = 40.0


def read_upload(path: Path, limits: Limits) -> Image:
    """Decode an uploaded image, upright as its EXIF data say.

    Raises:
        UploadError: it is too large, broken, or no image.
    """
    size = path.stat().st_size / 1e6
    if size > limits.megabytes:
        raise UploadError(
            f"the file has {size:.1f} MB: at most {limits.megabytes:g} MB are taken, make it smaller"
        )
    try:
        with PillowImage.open(path) as header:
            width, height = header.size
    except UnidentifiedImageError as error:
        raise UploadError("the file is no image: give a JPEG, PNG, WebP, TIFF or BMP file") from error
    except PillowImage.DecompressionBombError as error:
        raise UploadError(f"the image is too large: {error}") from error
    pixels = width * height / 1e6
    if pixels > limits.megapixels:
        raise UploadError(
            f"the image has {width}x{height} = {pixels:.1f} megapixels: at most {limits.megapixels:g} are "
            "taken, make it smaller"
        )
    try:
        return read_image_file(path)
    except UnreadableFileError as error:
        raise UploadError(f"the image cannot be decoded: {error}") from error
