"""Conversations, what is trained of a model, and a stage from its config to its answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from piip.multimodal.answer import score
from piip.multimodal.conversation import IGNORED, prompt, tokenize
from piip.multimodal.data import Collator, Conversations, ModalitySampler, read_conversations
from piip.multimodal.train import _Trainer, read_config, train

from .tiny import WORDS, llava, processor, tokenizer

TURNS = [
    {"from": "human", "value": "how many <image> discs?"},
    {"from": "gpt", "value": "two"},
    {"from": "human", "value": "how many?"},
    {"from": "gpt", "value": "one"},
]


def words(ids: list[int]) -> str:
    names = (*WORDS, "<image>")
    return " ".join(names[i] for i in ids)


def tokens(template: str, **changes: Any) -> dict[str, list[int]]:
    own = processor().tokenizer
    return tokenize(own, TURNS, template, **{"tokens_per_image": 2, "max_length": 99, **changes})


def test_the_loss_is_on_answers_and_their_ends() -> None:
    """An image goes to the front of its question, on a line of its own."""
    found = tokens("short")
    assert words(found["input_ids"]) == (
        "USER : <image> <image> \n how many discs ? ASSISTANT : two </s> "
        "USER : how many ? ASSISTANT : one </s>"
    )
    learned = [i for i, label in zip(found["input_ids"], found["labels"], strict=True) if label != IGNORED]
    assert words(learned) == "two </s> one </s>"
    assert all(label in (IGNORED, i) for i, label in zip(found["input_ids"], found["labels"], strict=True))


def test_a_caption_follows_its_image_alone() -> None:
    own = processor().tokenizer
    found = tokenize(own, TURNS[:2], "plain", tokens_per_image=1, max_length=99)
    assert words(found["input_ids"]) == "<image> two \n"
    assert found["labels"] == [IGNORED, *found["input_ids"][1:]]


def test_a_question_is_written_as_in_training() -> None:
    assert prompt("how many?", "short") == "USER: <image>\nhow many? ASSISTANT:"
    vicuna = prompt("how many?")
    assert vicuna.startswith("A chat between a curious user and an artificial intelligence assistant. The ")
    assert vicuna.endswith("the user's questions. USER: <image>\nhow many? ASSISTANT:")


def test_conversations_are_cut_but_never_through_an_image() -> None:
    assert len(tokens("short", max_length=7)["labels"]) == 7
    with pytest.raises(ValueError, match="an image lies behind 3 tokens: raise max_length, each takes 2"):
        tokens("short", max_length=3)
    with pytest.raises(ValueError, match="turn 1 is from 'gpt': expected 'human'"):
        tokenize(tokenizer(), TURNS[1:], "short", tokens_per_image=1, max_length=9)
    with pytest.raises(ValueError, match="unknown template 'v2': expected one of vicuna_v1, short, plain"):
        prompt("?", "v2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six conversations: black images have one disc, white ones two; one has no image, one cannot be read."""
    entries: list[dict[str, Any]] = []
    for number in range(4):
        Image.new("RGB", (70, 50), "white" if number % 2 else "black").save(tmp_path / f"{number}.png")
        turns = [{**TURNS[0]}, {"from": "gpt", "value": ("one", "two")[number % 2]}]
        entries.append({"image": f"{number}.png", "conversations": turns})
    Image.new("1", (14_000, 14_000)).save(tmp_path / "broken.png")  # what Pillow calls a decompression bomb
    entries.append({"image": "broken.png", "conversations": TURNS[:2]})
    entries.append({"conversations": TURNS[2:]})
    (tmp_path / "data.json").write_text(json.dumps(entries))
    return tmp_path


def test_an_image_that_cannot_be_read_is_named_once(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = read_conversations(data / "data.json")
    conversations = Conversations(entries, data, processor(), template="short")
    assert conversations.lengths == [5, 5, 5, 5, 5, -3]
    with caplog.at_level(logging.WARNING):
        replaced = [conversations[4], conversations[4]]
    assert [record.message.count("broken.png is skipped") for record in caplog.records] == [1]
    assert all("pixel_values" not in each or each["pixel_values"].shape == (3, 64, 64) for each in replaced)
    batch = Collator(0)([conversations[0], conversations[5]])
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["attention_mask"][1].sum() == len(conversations[5]["input_ids"])
    assert (batch["labels"][1][batch["attention_mask"][1] == 0] == IGNORED).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no json"),
        ("[]", "holds no list of conversations"),
        ('[{"conversations": 3}]', "entry 0 has no conversation"),
        (
            '[{"image": "a.png", "conversations": [{"value": "a"}, {"value": "b"}]}]',
            "entry 0 has 0 <image> and 1",
        ),
    ],
)
def test_files_that_are_no_conversations(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_conversations(tmp_path / "data.json")


def test_batches_are_with_images_or_without() -> None:
    lengths = [5] * 10 + [-5] * 6
    order = list(ModalitySampler(lengths, 4, torch.Generator().manual_seed(0)))
    assert sorted(order) == list(range(16))
    batches = [{lengths[i] > 0 for i in order[first : first + 4]} for first in range(0, 12, 4)]
    assert all(len(kinds) == 1 for kinds in batches)


@pytest.mark.parametrize(("given", "expected"), [(None, 7), (0, 0), (3, 3)])
def test_the_seed_of_the_order(tmp_path: Path, given: int | None, expected: int) -> None:
    """`data_seed`, 0 included; where there is none, `seed`."""
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, seed=7, data_seed=given)
    trainer = _Trainer(torch.nn.Linear(1, 1), arguments)
    trainer.group_by_modality = True
    sampler = trainer._get_train_sampler(SimpleNamespace(lengths=[1, 2]))  # type: ignore[arg-type]
    assert sampler.generator.initial_seed() == expected


def test_a_batch_without_images_still_runs_the_tower() -> None:
    """Processes wait for one another's gradients, so each has some of every part, zero though they are."""
    model = llava().train()
    ids = torch.tensor([[9, 11, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    tower = [p.grad for p in model.model.multi_modal_projector.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in tower)


def test_both_stages(data: Path) -> None:
    """The projector alone, then everything, to the right answers on two colours."""
    start = data / "start"
    llava().save_pretrained(start)
    processor().save_pretrained(start)
    config = data / "stage.yaml"
    common = {"data": data / "data.json", "images": data, "template": "short", "max_steps": 30}
    common |= {"per_device_train_batch_size": 4, "learning_rate": 0.003, "save_strategy": '"no"'}
    common |= {"report_to": "none", "disable_tqdm": True, "gradient_checkpointing": True, "use_cpu": True}
    config.write_text("\n".join(f"{key}: {value}" for key, value in common.items()))

    first = [f"model={start}", f"output_dir={data / 'stage1'}", "trainable=projector", "max_steps=2"]
    train(*read_config(config, first))
    before, after = llava().state_dict(), _state(data / "stage1")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("model.multi_modal_projector.") for key in changed)

    train(*read_config(config, [f"model={data / 'stage1'}", f"output_dir={data / 'stage2'}"]))
    trained = _state(data / "stage2")
    still = [key for key in trained if torch.equal(trained[key], after[key])]
    assert still
    assert all("post_layernorm" in key or ".branches.1.norm." in key for key in still)
    from piip.multimodal import load

    model, its_processor = load(data / "stage2")
    asked = read_conversations(data / "data.json")[:4]
    assert score(model, its_processor, asked, data, template="short")["all"] == (4, 4)


def _state(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model=a", "trainable=heads"], "trainable is 'heads': expected 'all' or 'projector'"),
        ([], "give either model=, a PIIP-LLaVA to go on with, or tower= and language_model="),
        (["model=a", "tower=b", "language_model=c"], "give either model="),
        (["model=a", "learning_rat=3"], "learning_rat"),
        (["model"], "'model' is no change to the config: write key=value"),
    ],
)
def test_configs_that_cannot_be(tmp_path: Path, changes: list[str], message: str) -> None:
    config = tmp_path / "stage.yaml"
    config.write_text(f"data: a.json\nimages: a\noutput_dir: {tmp_path / 'out'}\nuse_cpu: true\n")
    with pytest.raises(ValueError, match=message):
        read_config(config, changes)


def test_released_recipes() -> None:
    """Learning rates, batches and what is trained, as published."""
    folder = Path(__file__).resolve().parents[3] / "configs/multimodal"
    given = ["data=a", "images=b", "use_cpu=true", "bf16=false"]
    first, first_arguments = read_config(folder / "stage1.yaml", [*given, "language_model=c"])
    second, second_arguments = read_config(folder / "stage2.yaml", [*given, "model=d"])
    assert (first.trainable, first.template, first.pad_images) == ("projector", "plain", False)
    assert (second.trainable, second.template, second.pad_images) == ("all", "vicuna_v1", True)
    for arguments, rate, batch in ((first_arguments, 1e-3, 256), (second_arguments, 2e-5, 128)):
        assert arguments.learning_rate == rate
        assert 8 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == batch
        assert (arguments.weight_decay, arguments.num_train_epochs) == (0, 1)
