"""Files that people have keep working: names in saved configs, and the tensors of saved checkpoints.

``tests/data/saved`` was written by version 0.2.0: ``names.txt`` lists what its configs name as ``_target_``
or import, ``config.yaml`` is what `make demo` left, ``checkpoint.txt`` the tensors of its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from . import require

require.detectron2()

from detectron2.config import instantiate

from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.config import load_config, locate

SAVED = Path(__file__).parent / "data/saved"
GROUPS = (358, 120)  # tensors of each group of the optimizer
TRAINER = {
    "iteration": 799,
    "seed": 0,
    "hooks": {"LRScheduler": {"base_lrs": [0.0008, 0.0008], "last_epoch": 800}},
}


@pytest.mark.parametrize("name", (SAVED / "names.txt").read_text().split())
def test_names_in_saved_configs(name: str) -> None:
    assert callable(locate(name))


def saved_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lines = (line.split() for line in (SAVED / "checkpoint.txt").read_text().splitlines())
    return {
        name: torch.rand([int(n) for n in shape.split("x") if n != "scalar"], generator=generator)
        for name, shape in lines
    }


def test_a_saved_run(tmp_path: Path) -> None:
    """Its config builds a model and an optimizer that take the whole checkpoint."""
    config = load_config(str(SAVED / "config.yaml"))
    model = instantiate(config.model)
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    state = saved_tensors()
    by_index = dict(enumerate(name for name, _ in model.named_parameters()))
    moments = {
        i: {"step": torch.tensor(800.0), "exp_avg": state[name], "exp_avg_sq": state[name]}
        for i, name in by_index.items()
    }
    groups, start = [], 0
    for group, count in zip(optimizer.state_dict()["param_groups"], GROUPS, strict=True):
        groups.append({**group, "params": list(range(start, start + count))})
        start += count
    trainer = {**TRAINER, "optimizer": {"state": moments, "param_groups": groups}}
    classes = {"thing_classes": ["disc", "square", "triangle", "star", "ring", "cross"]}
    path = tmp_path / "model_final.pth"
    torch.save({"model": state, "trainer": trainer, "metadata": classes, "iteration": 799}, path)

    loaded = Checkpointer(model, str(tmp_path)).load(str(path))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert loaded["metadata"] == classes
    optimizer.load_state_dict(loaded["trainer"]["optimizer"])
    assert len(optimizer.state_dict()["state"]) == sum(GROUPS)
