"""Images with questions that draw themselves, in LLaVA's format, to try training without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from .drawing import CLASSES, Image, background, coverage_of, texture

__all__ = ["IMAGE_SIZE", "draw_scene", "questions", "texts", "write_questions"]

IMAGE_SIZE = 48
SHAPES = ("disc", "square", "triangle")
NUMBERS = ("none", "one", "two", "three")
_EXTENTS = (9.0, 16.0)  # pixels: the larger sides of objects
_MOST = 5  # objects in an image


def draw_scene(rng: np.random.Generator) -> tuple[Image, list[str]]:
    """One image and the names of its objects, which do not overlap, the largest first.

    Args:
        rng: source of everything random; its state alone decides the result.

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
            paint = texture(rng, label, image[cover >= 0.5].mean(axis=0), IMAGE_SIZE)
            image += cover[..., None] * (paint - image)
            taken |= near
            names.append(name)
            break
    image += rng.normal(0, 4, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), names


def questions(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is asked about a scene of these objects, and the answers."""
    counts = [(f"how many {shape}s?", NUMBERS[names.count(shape)]) for shape in SHAPES]
    return [*counts, ("is there a disc?", "yes" if "disc" in names else "no")]


def texts() -> list[str]:
    """Texts with all words of questions and answers."""
    asked = [*questions(SHAPES), *questions([])]
    return [*NUMBERS, *(" ".join(each) for each in asked)]


def write_questions(root: Path, split: str, num_images: int, seed: int) -> Path:
    """Write ``root/split/*.png`` and ``root/split.json``, the same bytes for the same arguments.

    Args:
        root: folder of the data, made if missing.
        split: name of the split, such as "train".
        num_images: how many; each has four questions, in an order of its own.
        seed: image number i depends on (seed, split, i) only.

    Returns:
        The path of the conversations.
    """
    (root / split).mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(num_images):
        rng = np.random.default_rng([seed, *split.encode(), index])
        image, names = draw_scene(rng)
        asked = questions(names)
        turns = []
        for number, place in enumerate(rng.permutation(len(asked))):
            question, answer = asked[place]
            question = f"<image>\n{question}" if number == 0 else question
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        name = f"{split}/{index:06d}.png"
        if not cv2.imwrite(str(root / name), image):
            raise OSError(f"cannot write {root / name}: check that the folder is writable")
        entries.append({"id": f"{split}-{index}", "image": name, "conversations": turns})
    path = root / f"{split}.json"
    path.write_text(json.dumps(entries, indent=1))
    return path
