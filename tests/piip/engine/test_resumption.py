"""A run that is resumed with other settings: each is applied or refused, and said."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from ... import require

require.detectron2()

from piip.engine.checkpoints.output_folder import follow_move, set_aside
from piip.engine.config import load_config
from piip.engine.train import train
from piip.engine.trainer import Trainer
from piip.weights.files.tensors import read_file, same_content

from ..tiny_config import tiny_config

SETTINGS = ("train.max_iter=2", "dataloader.test.dataset.names=shapes_val", "train.pictures=0")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations of a run, without an average of the weights."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("piip.engine.hooks.evaluate_both", lambda *args: {})
        train(tiny_config(folder, patch, *SETTINGS))
    return folder


class Resume:
    """Resumes a copy of the run; `trainer` is the one of the last resumption."""

    trainer: Trainer

    def __init__(self, begun: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        shutil.copytree(begun, folder, dirs_exist_ok=True)
        self.folder, self.patch = folder, patch
        patch.setattr("piip.engine.hooks.evaluate_both", lambda *args: {})
        kept = Trainer.load_state_dict

        def note(trainer: Trainer, state: dict) -> None:
            self.trainer = trainer
            kept(trainer, state)

        patch.setattr(Trainer, "load_state_dict", note)

    def __call__(self, *overrides: str) -> dict:
        train(tiny_config(self.folder, self.patch, *SETTINGS, "train.max_iter=4", *overrides), resume=True)
        content: dict = read_file(self.folder / "output/model_final.pth")
        return content


@pytest.fixture
def resume(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Resume:
    caplog.set_level(logging.WARNING, "detectron2.piip")
    return Resume(begun, tmp_path, monkeypatch)


def test_an_average_that_begins_then(resume: Resume, caplog: pytest.LogCaptureFixture) -> None:
    """From the weights that the run had, not from those that the model was built with."""
    first = read_file(resume.folder / "output/model_final.pth")["model"]
    content = resume("train.ema_decay=0.9999")  # the average hardly moves
    assert "has no average of the weights: it starts from the weights of iteration 2" in caplog.text
    assert "train.ema_decay was 0.0, and is 0.9999 from iteration 2 on" in caplog.text
    for name, tensor in content["ema"].items():
        if tensor.is_floating_point():  # AdamW moves a weight by the learning rate in a step
            assert torch.allclose(tensor, first[name], atol=1e-5), name


def test_settings_of_the_optimizer(resume: Resume, caplog: pytest.LogCaptureFixture) -> None:
    content = resume("optimizer.lr=0.5e-4", "optimizer.weight_decay=0.25")
    groups = content["trainer"]["optimizer"]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {0.5e-4}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}
    assert content["trainer"]["hooks"]["LRScheduler"]["base_lrs"] == [0.5e-4, 0.5e-4]
    assert "optimizer.lr was 0.0008, and is 5e-05 from iteration 2 on" in caplog.text
    assert "optimizer.weight_decay was 0.05, and is 0.25 from iteration 2 on" in caplog.text
    assert load_config(str(resume.folder / "output/config.yaml")).optimizer.lr == 0.5e-4


def test_seed(resume: Resume, caplog: pytest.LogCaptureFixture) -> None:
    assert resume("train.seed=7")["trainer"]["seed"] == 7
    assert "train.seed was 0, and is 7 from iteration 2 on" in caplog.text


def test_a_drawn_seed_stays(resume: Resume) -> None:
    assert resume("train.seed=-1")["trainer"]["seed"] == 0
    assert load_config(str(resume.folder / "output/config.yaml")).train.seed == 0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.accumulate=2", "train.accumulate was 1, and is 2"),
        ("dataloader.train.total_batch_size=4", "dataloader.train.total_batch_size was 2, and is 4"),
        ("lr_multiplier.warmup_factor=0.5", "lr_multiplier.warmup_factor was 0.01, and is 0.5"),
        ("dataloader.train.dataset.names=shapes_val", "dataset.names was shapes_train, and is shapes_val"),
        ("train.precision=bfloat16", "train.precision was float32, and is bfloat16"),
    ],
)
def test_other_settings_are_applied(
    resume: Resume, caplog: pytest.LogCaptureFixture, override: str, line: str
) -> None:
    resume(override)
    lines = [record.getMessage() for record in caplog.records if "from iteration 2 on" in record.getMessage()]
    assert sum(line in text for text in lines) == 1
    assert len(lines) == 2  # and train.max_iter


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.max_iter=1"], r"train\.max_iter is 1, and .*model_final\.pth has 2 iterations already"),
        (["optimizer._target_=torch.optim.SGD"], r"the optimizer is .*SGD.*, in .* it was .*AdamW"),
        (["optimizer.params.weight_decay_norm=null"], "the checkpoint's optimizer does not fit"),
        (["optimizer.lr=-1"], "`optimizer` of the config cannot be built, ValueError: Invalid learning rate"),
        (["model.backbone.out_channels=16"], "checkpoint does not fit the model"),
    ],
)
def test_what_is_refused(resume: Resume, overrides: list[str], message: str) -> None:
    """The run stays as it was."""
    before = (resume.folder / "output/config.yaml").read_bytes()
    with pytest.raises(ValueError, match=message):
        resume(*overrides)
    assert (resume.folder / "output/config.yaml").read_bytes() == before


def test_nothing_is_left_to_do(resume: Resume) -> None:
    """A run that is complete and resumed again ends as it is."""
    before = read_file(resume.folder / "output/model_final.pth")
    assert same_content(resume("train.max_iter=2"), before)


def test_a_new_run_where_one_was(tmp_path: Path) -> None:
    """The older run is kept, other files stay, and weights named by their old place are found."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "log.txt").write_text("of a start that failed")
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        for name in ("last_checkpoint", "model_final.pth", "metrics.json", "predictions"):
            (tmp_path / name).write_text(str(number))
        assert set_aside(tmp_path) == tmp_path / f"previous-{number}"
        assert (tmp_path / f"previous-{number}/model_final.pth").read_text() == str(number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "previous-1", "previous-2"]
    weights = follow_move(str(tmp_path / "model_final.pth"), tmp_path)
    assert weights == str(tmp_path / "previous-2/model_final.pth")
    assert follow_move("elsewhere/model_final.pth", tmp_path) == "elsewhere/model_final.pth"
