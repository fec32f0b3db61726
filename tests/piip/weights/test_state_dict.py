"""State dicts are found in the containers and under the wrappers of the field; averages by one rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from piip.weights.files.state_dict import state_dict_of

STATE = {"backbone.a.weight": torch.arange(6.0).reshape(2, 3), "head.b": torch.ones(2)}
AVERAGE = {key: tensor + 1 for key, tensor in STATE.items()}


def prefixed(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "meta": {"CLASSES": ("person",)}},
        {"model": STATE, "optimizer": {}},
        {"model_state": STATE},
        {"model_state_dict": STATE, "epoch": 3},
        {"module": STATE, "global_steps": 3},
        {"params": STATE},
        {"state_dict": {"model": {"module": STATE}}},
        {"model": {"state_dict": prefixed("module.")}},
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("module.module._orig_mod."),
        {f"{k.split('.')[0]}._orig_mod.{k.split('.', 1)[1]}": v for k, v in STATE.items()},
        {f"{k.split('.')[0]}._fsdp_wrapped_module.{k.split('.', 1)[1]}": v for k, v in STATE.items()},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.4.0", "epoch": 1},
        {"state_dict": prefixed("model._orig_mod.")},
        {"state_dict": prefixed("_orig_mod.model.module.")},
        {"model_ema": prefixed("module."), "epoch": 3},
        {"model_ema": {**prefixed("module."), "n_averaged": torch.tensor(5)}},
        {"ema_state_dict": prefixed("module.")},
    ],
)
def test_found(content: Any) -> None:
    assert same(state_dict_of(content, "x.pth"), STATE)


def test_wrapped_as_pytorch_does() -> None:
    """What `torch.compile`, data parallelism and `AveragedModel` make of names."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    partly = copy.deepcopy(model)
    partly[1] = torch.compile(partly[1])  # type: ignore[assignment]
    for wrapped in (
        torch.compile(model),
        nn.DataParallel(model),
        torch.compile(nn.DataParallel(model)),
        torch.optim.swa_utils.AveragedModel(model),
        partly,
    ):
        assert same(state_dict_of(wrapped.state_dict(), "x.pth"), plain)


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema_model", "params_ema"])
@pytest.mark.parametrize("beside", ["model", "state_dict", "params"])
def test_an_average_is_taken_and_said(name: str, beside: str, caplog: pytest.LogCaptureFixture) -> None:
    found = state_dict_of({beside: STATE, name: AVERAGE}, "x.pth")
    assert same(found, AVERAGE)
    assert [record.getMessage() for record in caplog.records] == [
        f"x.pth: '{name}', the average of the weights, is loaded, '{beside}' is not"
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "ema_state_dict": AVERAGE},  # mmengine has swapped the two
        {"model": STATE, "ema": AVERAGE},  # ours: --ema asks for it
        {"model": STATE, "model_ema": None},
        {"model": STATE, "model_ema": {}},
    ],
)
def test_what_was_trained_is_taken(content: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert same(state_dict_of(content, "x.pth"), STATE)
    assert not caplog.records


def test_names_that_begin_with_model_are_kept_elsewhere() -> None:
    """Those of transformers, which a part of a model may all have."""
    state = prefixed("model.layers.0.")
    assert same(state_dict_of(state, "x.bin"), state)
