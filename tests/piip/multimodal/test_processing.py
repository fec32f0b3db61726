"""Images and texts as the release prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piip.multimodal import PIIPImageProcessor
from piip.multimodal.processing import encode

from ...shared_data import golden
from .tiny import processor, tokenizer


def case() -> Any:
    return golden("fixtures/multimodal", "a3_preprocess")


def big(height: int, width: int) -> Image.Image:
    """The photo-sized images of the golden case, by the formula that it gives."""
    y, x = np.mgrid[:height, :width]
    pixels = [(7 * x + 3 * y) % 256, (x * y // 5) % 256, (x // 4 * 16 + y // 3 * 9) % 256]
    return Image.fromarray(np.stack(pixels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("how", ["crop", "pad"])
def test_small_images_bit_for_bit(number: int, how: str) -> None:
    picture = Image.fromarray(case().arrays[f"small{number}/image"].numpy())
    prepare = PIIPImageProcessor(case().meta["small"][number]["S"], do_pad=how == "pad")
    found = prepare(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(found, case().arrays[f"small{number}/{how}"])


@pytest.mark.parametrize("number", range(6))
def test_photographs(number: int) -> None:
    """Points of the result to the last bit, means of all of it."""
    about = case().meta["big"][number]
    prepare = PIIPImageProcessor(about["S"], do_pad=about["key"].endswith("pad"))
    found = prepare(big(*about["image_hw"]), return_tensors="pt")["pixel_values"][0]
    points = case().arrays[f"{about['key']}/points"].long()
    assert torch.equal(found[points.unbind(1)], case().arrays[f"{about['key']}/values"])
    means = case().arrays[f"{about['key']}/channel_mean"]
    torch.testing.assert_close(
        found.double().mean((1, 2)), means.double(), rtol=0, atol=1e-5
    )  # sums in another order


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (20, 30)), ("RGBA", (31, 7)), ("P", (1, 90)), ("1", (64, 64)), ("I;16", (9, 9))]
)
def test_any_image_will_do(mode: str, size: tuple[int, int]) -> None:
    found = PIIPImageProcessor(32)(Image.new(mode, size), return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, 32, 32)
    assert found.isfinite().all()


def test_an_image_that_makes_no_square() -> None:
    with pytest.raises(ValueError, match="an image of 900 x 2 pixels makes no square: pad it"):
        PIIPImageProcessor(32, do_pad=False)(Image.new("RGB", (900, 2)))
    with pytest.raises(ValueError, match="20000 x 30 pixels is too large to pad: expected at most 13377 per"):
        PIIPImageProcessor(32)(Image.new("RGB", (20_000, 30)))  # 1.2 GB before it is resized


def test_files_are_read_by_our_rules(tmp_path: Path) -> None:
    """A 16-bit file, which transformers makes white, gives what its 8 bits give."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(values * np.uint16(257)).save(tmp_path / "deep.png")
    batches = [
        processor()(images=image, text="<image>", return_tensors="pt")["pixel_values"]
        for image in (
            str(tmp_path / "deep.png"),
            [tmp_path / "deep.png"],
            Image.fromarray(values).convert("RGB"),
        )
    ]
    assert torch.equal(batches[0], batches[2]) and torch.equal(batches[1], batches[2])


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ("how many discs?", 1, "the text has 0 <image> and there are 1 images: write one for each"),
        ("<image> <image> how many", 1, "the text has 2 <image> and there are 1 images"),
        ("<image> how many", 0, "the text has 1 <image> and there are 0 images"),
        (None, 1, "there is no text: give one, with <image> at the place of each image"),
    ],
)
def test_texts_and_images_that_do_not_belong_together(text: str, number: int, message: str) -> None:
    pictures = [Image.new("RGB", (8, 8))] * number or None
    with pytest.raises(ValueError, match=message):
        processor()(images=pictures, text=text)


def test_a_batch_is_padded_before_its_texts() -> None:
    """Answers continue a text, so nothing may stand behind it."""
    pictures = [Image.new("RGB", (8, 8))] * 2
    inputs = processor()(
        images=pictures, text=["<image> how", "<image> how many discs?"], padding=True, return_tensors="pt"
    )
    assert inputs["attention_mask"].tolist() == [[0, 0, 0] + [1] * 5, [1] * 8]
    assert (inputs["input_ids"] == tokenizer().vocab_size).sum() == 2 * 4  # 64 px in cells of 32


def test_pieces_around_an_image_are_tokenised_by_themselves() -> None:
    """A tokenizer that begins a text with a mark of its own, as Llama's does, puts one before each piece."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "▁a": 1, "▁b": 2, "b": 3, "<image>": 4}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    llama = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    llama.add_tokens(["<image>"], special_tokens=True)
    assert llama("a<image>b")["input_ids"] == [1, 4, 3]
    tokens = encode(llama, "a<image>b", 2)
    assert tokens["input_ids"] == [1, 4, 4, 2]
    assert tokens["offset_mapping"] == [(0, 1), (1, 8), (1, 8), (8, 9)]
