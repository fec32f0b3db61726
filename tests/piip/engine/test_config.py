"""Changes to a config from the command line: what is there, and nothing misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from ... import require

require.detectron2()

from piip.engine.config import load_config

from ..tiny_config import QUICK_CONFIG

QUICK = str(QUICK_CONFIG)


def test_values_of_all_kinds() -> None:
    cfg = load_config(
        QUICK,
        [
            "train.max_iter=5",
            "model.backbone.piip.image_sizes=[32,48,64]",
            "model.backbone.piip.branches.0.depth=2",
            "train.init_checkpoint=a.pth",
            "dataloader.evaluator.output_dir=elsewhere",  # an interpolation so far
        ],
    )
    assert cfg.train.max_iter == 5
    assert list(cfg.model.backbone.piip.image_sizes) == [32, 48, 64]
    assert cfg.model.backbone.piip.branches[0].depth == 2
    assert (cfg.train.init_checkpoint, cfg.dataloader.evaluator.output_dir) == ("a.pth", "elsewhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=5", r"no key 'train.max_itr': did you mean train.max_iter\b"),
        ("dataloader.train.totl_batch_size=2", r"did you mean dataloader.train.total_batch_size\b"),
        ("model.backbone.piip.branches.0.dept=2", r"did you mean model.backbone.piip.branches.0.depth\b"),
        ("model.backbone.piip.branches.7.depth=2", "'7' is not a place in a list of 3"),
        ("train.seed.deep=1", "train.seed is a value, 0, not a section"),
        ("nothing_like_it=1", r"no key 'nothing_like_it'; \+nothing_like_it=\.\.\. adds one"),
        ("train.max_iter", "cannot be applied"),
        ("~train.seed", "deletes a key"),
    ],
)
def test_keys_that_are_not_there(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config(QUICK, [override])
    assert "\n" not in str(caught.value)


def test_a_key_added_on_purpose() -> None:
    assert load_config(QUICK, ["+train.new=1"]).train.new == 1


def test_an_argument_that_the_config_leaves_at_its_default() -> None:
    """The function that a section calls takes it, so it is no slip."""
    assert "neck" not in load_config(QUICK).model.backbone
    assert load_config(QUICK, ["model.backbone.neck=released"]).model.backbone.neck == "released"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.py", None, FileNotFoundError, "none.py does not exist"),
        ("broken.py", "model = (", ValueError, "broken.py cannot be used, SyntaxError"),
        ("fails.py", "model = undefined", ValueError, "NameError: name 'undefined' is not defined"),
        ("text.txt", "hello", ValueError, "has to be a python or yaml file"),
        ("list.yaml", "[1, 2]", ValueError, "holds a list, expected sections"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str | None, error: type[Exception], message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        load_config(str(tmp_path / name))
