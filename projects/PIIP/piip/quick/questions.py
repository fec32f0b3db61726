"""A generated data set of images with questions, in LLaVA's format, to try training without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..images import Image, write_image
from .drawing import CLASSES, background, coverage_of, finished, generator_of, texture

__all__ = ["IMAGE_SIZE", "draw_scene", "questions", "texts", "write_questions"]

IMAGE_SIZE = 48
SHAPES = ("disc", "square", "triangle")
NUMBERS = ("none", "one", "two", "three")
_EXTENTS = (9.0, 16.0)  # range of the larger sides of objects, in pixels
_MOST = 5  # objects per image


def draw_scene(rng: np.random.Generator) -> tuple[Image, list[str]]:
    """One image and the names of its objects, which do not overlap, the largest first.

    Args:
        rng: the only source of randomness.

    Returns:
        The image ``(48, 48, 3)`` in BGR, and one to five names, none of them more than three times.
    """
    image = background(rng, IMAGE_SIZE)
    taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    wanted = int(rng.integers(1, _MOST + 1))
    kinds = rng.choice(len(SHAPES), size=int(rng.integers(1, len(SHAPES) + 1)), replace=False)
    names: list[str] = []
    for extent in sorted(rng.uniform(*_EXTENTS, wanted), reverse=True):
        name = SHAPES[int(rng.choice(kinds))]
        if names.count(name) == len(NUMBERS) - 1:
            continue
        for _ in range(20):  # places, until one is free
            x, y = rng.uniform(extent / 2, IMAGE_SIZE - extent / 2, 2)
            label = CLASSES.index(name)
            cover = coverage_of(label, extent, (float(x), float(y)), rng.uniform(-0.35, 0.35), IMAGE_SIZE)
            near = cv2.dilate(cover, np.ones((3, 3), np.uint8)) > 0
            if (near & taken).any():
                continue
            behind = image[cover >= 0.5].mean(axis=0)
            image += cover[..., None] * (texture(rng, label, behind, IMAGE_SIZE) - image)
            taken |= near
            names.append(name)
            break
    return finished(rng, image, 4), names


def questions(names: Sequence[str]) -> list[tuple[str, str]]:
    """Questions about a scene of these objects, and their answers."""
    counts = [(f"how many {shape}s?", NUMBERS[names.count(shape)]) for shape in SHAPES]
    return [*counts, ("is there a disc?", "yes" if "disc" in names else "no")]


def texts() -> list[str]:
    """Texts with all words of questions and answers."""
    asked = [*questions(SHAPES), *questions([])]
    return [*NUMBERS, *(" ".join(each) for each in asked)]


def write_questions(root: Path, split: str, num_images: int, seed: int) -> Path:
    """Write ``root/split/*.png`` and ``root/split.json``. The same arguments give the same bytes.

    Args:
        root: folder of the data, made if missing.
        split: name of the split, such as "train".
        num_images: number of images. Each has the same four questions, in a random order.
        seed: image number i depends on (seed, split, i) only.

    Returns:
        The path of the conversations.
    """
    (root / split).mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(num_images):
        rng = generator_of(seed, split, index)
        image, names = draw_scene(rng)
        asked = questions(names)
        turns = []
        for number, place in enumerate(rng.permutation(len(asked))):
            question, answer = asked[place]
            question = f"<image>\n{question}" if number == 0 else question
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        name = f"{split}/{index:06d}.png"
        write_image(root / name, image)
        entries.append({"id": f"{split}-{index}", "image": name, "conversations": turns})
    path = root / f"{split}.json"
    path.write_text(json.dumps(entries, indent=1))
    return path
