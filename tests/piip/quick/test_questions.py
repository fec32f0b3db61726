"""Drawn images with questions: the same for the same seed, and answers that are true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from piip.multimodal.data import read_conversations
from piip.multimodal.small import small_model, word_tokenizer
from piip.quick.questions import IMAGE_SIZE, draw_scene, questions, texts, write_questions


def test_answers_count_what_was_drawn() -> None:
    assert questions(["square", "disc", "disc"]) == [
        ("how many discs?", "two"),
        ("how many squares?", "one"),
        ("how many triangles?", "none"),
        ("is there a disc?", "yes"),
    ]
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(40)]
    assert {len(names) for _, names in scenes} == {1, 2, 3, 4, 5}
    assert all(names.count(name) <= 3 for _, names in scenes for name in names)


def test_written_data_are_llava_s_and_repeat(tmp_path: Path) -> None:
    first, second = (write_questions(tmp_path / name, "val", 2, seed=3) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    entries = read_conversations(first)
    pictures = [Image.open(tmp_path / name / entries[0]["image"]).tobytes() for name in "ab"]
    assert pictures[0] == pictures[1]
    other = write_questions(tmp_path / "c", "val", 2, seed=4)
    assert json.loads(other.read_text()) != json.loads(first.read_text())


def test_the_small_model_knows_every_word(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(texts())
    entries = read_conversations(write_questions(tmp_path, "val", 9, 0))
    said = [turn["value"] for entry in entries for turn in entry["conversations"]]
    model, processor = small_model(IMAGE_SIZE, tokenizer, seed=0)
    assert not any(tokenizer.unk_token_id in tokenizer(text)["input_ids"] for text in said)
    assert processor.tokens_per_image == model.config.vision_config.num_tokens == 36
