"""Checkpoints load whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from .... import require

require.detectron2()

from piip.engine.checkpoints.checkpoint import Checkpointer, read_metadata


def model(width: int = 3) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    source, target = model(), model()
    nn.init.zeros_(target[0].weight)
    if suffix == ".pth":
        Checkpointer(source, str(tmp_path)).save("weights")
    else:
        save_file(source.state_dict(), tmp_path / "weights.safetensors")
    Checkpointer(target).load(str(tmp_path / f"weights{suffix}"))
    assert equal(source, target)


def test_other_architecture(tmp_path: Path) -> None:
    """Every kind of mismatch is named, shapes included, and nothing has been loaded."""
    target = model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = model().state_dict()
    state["0.weight"] = torch.zeros(5, 2)
    state["extra"] = torch.zeros(1)
    del state["0.bias"]
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="checkpoint does not fit the model") as caught:
        Checkpointer(target).load(str(tmp_path / "other.pth"))
    message = str(caught.value)
    assert "1 keys missing: 0.bias" in message
    assert "1 keys unknown: extra" in message
    assert "1 shapes differ: 0.weight (5, 2) in the checkpoint, (3, 2) here" in message
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite(tmp_path: Path, suffix: str) -> None:
    """A model of them would predict nothing, without a word."""
    state = model().state_dict()
    state["1.weight"][1] = float("nan")
    path = tmp_path / f"nan{suffix}"
    if suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    with pytest.raises(ValueError, match=rf"nan\{suffix}: 1\.weight holds NaN or infinite values"):
        Checkpointer(model()).load(str(path))


def test_names_of_classes_travel_with_the_weights(tmp_path: Path) -> None:
    names = {"thing_classes": ["bolt", "nut"], "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1}}
    Checkpointer(model(), str(tmp_path), metadata=names).save("named")
    assert read_metadata(str(tmp_path / "named.pth")) == names
    assert Checkpointer(model()).load(str(tmp_path / "named.pth"))["metadata"] == names
    Checkpointer(model(), str(tmp_path)).save("nameless")
    assert read_metadata(str(tmp_path / "nameless.pth")) == {}


def test_many_mismatches_make_one_short_line(tmp_path: Path) -> None:
    torch.save({"model": {f"key{i}": torch.zeros(1) for i in range(100)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"100 keys unknown: key0, .*, \.\.\. 95 more") as caught:
        Checkpointer(model()).load(str(tmp_path / "other.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth cannot be read") as caught:
        Checkpointer(model()).load(str(path))
    assert "\n" not in str(caught.value)


def test_half_written(tmp_path: Path) -> None:
    """A file cut short, as a full disk leaves it."""
    torch.save({"model": model(300).state_dict()}, tmp_path / "whole.pth")
    path = tmp_path / "half.pth"
    path.write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"half\.pth cannot be read"):
        Checkpointer(model(300)).load(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth does not exist"):
        Checkpointer(model()).load(str(tmp_path / "nothing.pth"))


def test_code_is_never_run(tmp_path: Path) -> None:
    """Neither pickles nor `.pth` files that hold more than tensors and plain containers are read."""
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        Checkpointer(model()).load(str(path))
    torch.save({"model": model()}, tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth cannot be read"):
        Checkpointer(model()).load(str(tmp_path / "module.pth"))


def test_diverged_weights_are_not_saved(tmp_path: Path) -> None:
    diverged = model()
    checkpointer = Checkpointer(diverged, str(tmp_path))
    checkpointer.save("good")
    with torch.no_grad():
        diverged[0].bias[1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"0\.bias is infinite or NaN; the last good .*good\.pth"):
        checkpointer.save("bad")
    assert not (tmp_path / "bad.pth").exists()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "good.pth")
