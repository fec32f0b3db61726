"""Images are resized as for the released detectors: by OpenCV, bilinear, not antialiased."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ... import require

require.detectron2()

from detectron2.data.transforms import AugInput, ResizeTransform
from detectron2.structures import BoxMode

from piip.engine.resize import OpenCVResize, ResizeToFit


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate between the two nearest pixels a side, pixel centres at half-integers, borders repeated."""

    def taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(position).astype(int)
        return low, np.minimum(low + 1, old - 1), position - low

    top, bottom, v = taps(image.shape[0], height)
    left, right, u = taps(image.shape[1], width)
    v, u = v[:, None, None], u[:, None]
    rows = image[top] * (1 - v) + image[bottom] * v
    return rows[:, left] * (1 - u) + rows[:, right] * u


@pytest.mark.parametrize("size", [(210, 280), (700, 933)], ids=["smaller", "larger"])
def test_photograph(size: tuple[int, int]) -> None:
    photo = pytest.importorskip("skimage.data").coffee()  # 400x600 px
    resized = OpenCVResize(*photo.shape[:2], *size).apply_image(photo)
    expected = bilinear(photo, *size)
    assert resized.dtype == np.uint8
    # 11-bit weights and rounding to 8 bits: at most one grey level
    assert np.abs(resized - expected).max() <= 1
    if size[0] < photo.shape[0]:
        pillow = ResizeTransform(*photo.shape[:2], *size).apply_image(photo)
        assert np.abs(pillow - expected).mean() > 1  # Pillow's is another image altogether


@pytest.mark.parametrize(
    ("shape", "long_edge", "short_edge", "expected"),
    [
        ((480, 640), 1120, 672, (672, 896)),  # the short edge binds: scale 1.4
        ((360, 640), 1120, 672, (630, 1120)),  # the long edge binds: scale 1.75
        ((640, 427), 1120, 672, (1007, 672)),  # 1.5738: 1007.2
        ((427, 640), 1568, 941, (941, 1410)),  # 2.2037: 1410.4
        ((500, 333), 1333, 800, (1201, 800)),  # 2.4024: 1201.2
        ((2, 1000), 1120, 672, (2, 1120)),  # 1.12: 2.24
    ],
)
def test_output_size(
    shape: tuple[int, int], long_edge: int, short_edge: int, expected: tuple[int, int]
) -> None:
    transform = ResizeToFit(long_edge, short_edge).get_transform(np.zeros((*shape, 3), np.uint8))
    assert (transform.new_height, transform.new_width) == expected


@given(height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_fits_and_touches(height: int, width: int) -> None:
    transform = ResizeToFit(1120, 672).get_transform(np.empty((height, width, 3), np.uint8))
    long, short = sorted((transform.new_height, transform.new_width), reverse=True)
    assert 1 <= short <= 672
    assert long <= 1120
    assert long == 1120 or short == 672


def test_annotations_follow() -> None:
    """A rectangle painted on an image, its box and its label map all end up in the same place."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 40:160] = 255
    labels = (image[:, :, 0] > 0).astype(np.uint8)
    box = np.array([40.0, 20, 160, 60])
    data = AugInput(image, boxes=box[None], sem_seg=labels)
    transform = ResizeToFit(300, 300)(data)
    assert data.image.shape == (150, 300, 3)
    np.testing.assert_allclose(data.boxes, [[60, 30, 240, 90]])
    np.testing.assert_array_equal(data.sem_seg, (data.image[:, :, 0] > 127).astype(np.uint8))
    np.testing.assert_allclose(transform.inverse().apply_box(data.boxes), box[None])
    corners = transform.apply_coords(np.array([[40.0, 20.0], [160.0, 60.0]]))
    np.testing.assert_allclose(corners.reshape(-1), BoxMode.convert([60, 30, 240, 90], 0, 0))


def test_grey_image_keeps_its_axis() -> None:
    assert OpenCVResize(4, 4, 8, 6).apply_image(np.zeros((4, 4, 1), np.uint8)).shape == (8, 6, 1)


def test_failures() -> None:
    with pytest.raises(ValueError, match="0 < short_edge <= long_edge"):
        ResizeToFit(600, 1000)
    with pytest.raises(ValueError, match=r"image of 5x4 px for a resize from 4x4 px"):
        OpenCVResize(4, 4, 8, 8).apply_image(np.zeros((5, 4, 3), np.uint8))
