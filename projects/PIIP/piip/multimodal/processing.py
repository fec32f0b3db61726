"""Preprocessing for a PIIP-LLaVA: images as in training, and texts with placeholders for their tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, BatchFeature, LlavaProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..images import MAX_PIXELS, open_image
from .configuration import PIIPVisionConfig

__all__ = ["IMAGE_TOKEN", "PIIPImageProcessor", "PIIPLlavaProcessor", "encode"]

IMAGE_TOKEN = "<image>"
_MAX_RATIO = 50  # of the sides of an image that is not padded: what is cropped away is resized first


class PIIPImageProcessor(LlavaImageProcessorPil):
    """Images of any shape to squares ``(3, size, size)``, float32, by ImageNet's statistics.

    A padded image becomes a square of its longer side, the rest in the mean colour; one that is not has its
    shorter side resized and the longer one cropped. PIL resizes, bicubically, on 8-bit pixels: the release's
    numbers to the last bit.

    Args:
        image_size: side in pixels; 512 where nothing else says.
        do_pad: pad (the released second stage, and evaluation) or crop (the first).
        kwargs: those of transformers' image processors.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = True
    size = {"shortest_edge": 512}  # noqa: RUF012  (transformers' attributes)
    crop_size = {"height": 512, "width": 512}  # noqa: RUF012

    def __init__(self, image_size: int | None = None, **kwargs: Any) -> None:
        if image_size is not None:
            kwargs = {
                "size": {"shortest_edge": image_size},
                "crop_size": {"height": image_size, "width": image_size},
                **kwargs,
            }
        super().__init__(**kwargs)

    def _preprocess(self, images: Sequence[Any], *args: Any, **kwargs: Any) -> BatchFeature:
        for image in images:
            short, long = sorted(image.shape[-2:])
            width, height = image.shape[-1], image.shape[-2]
            if short == 0 or (not kwargs.get("do_pad") and long > _MAX_RATIO * short):
                raise ValueError(
                    f"an image of {width} x {height} pixels makes no square: pad it (do_pad=True), or leave "
                    "it out"
                )
            if kwargs.get("do_pad") and long**2 > MAX_PIXELS:  # it is padded first and resized then
                raise ValueError(
                    f"an image of {width} x {height} pixels is too large to pad: expected at most "
                    f"{math.isqrt(MAX_PIXELS)} per side"
                )
        return super()._preprocess(images, *args, **kwargs)


def encode(tokenizer: Any, text: str, tokens_per_image: int, *, special: bool = True) -> BatchEncoding:
    """Tokens of a text, as the release makes them: what lies around images is tokenised piece by piece.

    Args:
        tokenizer: a fast tokenizer that knows :data:`IMAGE_TOKEN`.
        text: with an :data:`IMAGE_TOKEN` for each image.
        tokens_per_image: how many tokens stand for each.
        special: begin with the tokenizer's special tokens, such as that of the beginning.

    Returns:
        ``input_ids``, and ``offset_mapping``, the first and last character of each in ``text``.
    """
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    start = 0
    for number, piece in enumerate(text.split(IMAGE_TOKEN)):
        if number:
            place = (start, start + len(IMAGE_TOKEN))
            ids += [image_id] * tokens_per_image
            offsets += [place] * tokens_per_image
            start = place[1]
        tokens = tokenizer(piece, add_special_tokens=special and not number, return_offsets_mapping=True)
        ids += tokens["input_ids"]
        offsets += [(start + first, start + last) for first, last in tokens["offset_mapping"]]
        start += len(piece)
    return BatchEncoding({"input_ids": ids, "offset_mapping": offsets})


def _files_opened(images: Any) -> Any:
    """The images with those in files read by us: transformers would make 16 bits white."""
    if isinstance(images, (list, tuple)):
        return [_files_opened(image) for image in images]
    is_file = isinstance(images, os.PathLike) or (isinstance(images, str) and os.path.exists(images))
    return open_image(images) if is_file else images


class PIIPLlavaProcessor(LlavaProcessor):
    """Texts and images to what a :class:`PIIPLlavaForConditionalGeneration` takes."""

    @classmethod
    def of(
        cls, vision: PIIPVisionConfig, tokenizer: Any, *, chat_template: str | None = None
    ) -> PIIPLlavaProcessor:
        """The processor of a tower and a tokenizer, to which the image token is added where it has none."""
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        return cls(
            PIIPImageProcessor(vision.image_size),
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy="full",
            chat_template=chat_template,
        )

    @property
    def tokens_per_image(self) -> int:
        """Number of tokens per image."""
        return int((self.image_processor.crop_size["height"] // self.patch_size) ** 2)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **image_options: Any,
    ) -> BatchFeature:
        """Prepare a batch for ``generate``.

        Args:
            images: an image, or all images of all texts in a list: PIL, arrays, paths or addresses. Files are
                read by the rules of `piip.images`.
            text: one text or several, with ``<image>`` at the place of each image.
            padding: pad texts of unequal length, on ``padding_side``.
            add_special_tokens: begin each text with the tokenizer's special tokens.
            return_tensors: "pt" for tensors.
            image_options: for the image processor, such as ``do_pad=False``.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(texts, L)``, ``pixel_values`` ``(images, 3, S, S)``.

        Raises:
            ValueError: there are more or fewer image tokens than images, or no text.
        """
        if text is None:
            raise ValueError(f"there is no text: give one, with {IMAGE_TOKEN} at the place of each image")
        texts = [text] if isinstance(text, str) else list(text)
        features = {}
        given = 0
        if images is not None:
            features = self.image_processor(
                self.image_processor.fetch_images(_files_opened(images)), return_tensors="pt", **image_options
            )
            given = len(features["pixel_values"])
        wanted = sum(each.count(IMAGE_TOKEN) for each in texts)
        if wanted != given:
            raise ValueError(
                f"the text has {wanted} {IMAGE_TOKEN} and there are {given} images: write one for each"
            )
        ids = [
            encode(self.tokenizer, each, self.tokens_per_image, special=add_special_tokens)["input_ids"]
            for each in texts
        ]
        batch = self.tokenizer.pad(
            {"input_ids": ids}, padding=padding, padding_side=padding_side, return_tensors=return_tensors
        )
        return BatchFeature({**batch, **features})
