"""The image file of a visitor, read within limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..images import Image, UnreadableFileError, read_image

__all__ = ["Limits", "UploadError", "read_upload"]


class UploadError(ValueError):
    """A file that is refused; the message is for the visitor."""


@dataclass(frozen=True)
class Limits:
    """Bounds of an upload.

    Attributes:
        megabytes: size of the file, in 1e6 bytes.
        megapixels: size of the image, in 1e6 pixels. It is read from the header, before anything is decoded.
    """

    megabytes: float = 20.0
    megapixels: float = 40.0


def read_upload(path: Path, limits: Limits) -> Image:
    """Decode an uploaded image by the rules of :mod:`piip.images`.

    Returns:
        ``(H, W, 3)``, BGR, uint8.

    Raises:
        UploadError: the file is gone, too large, damaged, or no image.
    """
    if not path.is_file():
        raise UploadError("The uploaded file was deleted, because it is old. Please upload it again.")
    size = path.stat().st_size / 1e6
    if size > limits.megabytes:
        raise UploadError(
            f"The file has {size:.1f} MB. The limit is {limits.megabytes:g} MB: please make it smaller."
        )
    try:
        return read_image(path, max_pixels=int(limits.megapixels * 1e6))
    except UnreadableFileError as error:
        raise UploadError(f"This file is refused: {error.reason}.") from error
