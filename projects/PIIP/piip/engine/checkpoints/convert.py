"""Released checkpoints to Detectron2's and back, checked against the config that they are for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor

from ...weights.converters import own_format, released_format
from ...weights.differences import check_values, differences
from ...weights.files.download import local_path
from ...weights.files.tensors import read_state, write_file

__all__ = ["convert_checkpoint"]

_PARTS = (
    "backbone.piip.branches",
    "backbone.piip.interactions",
    "backbone.bottom_up.piip.branches",
    "backbone.bottom_up.piip.interactions",
    "backbone",
    "proposal_generator",
)


def _model_state(cfg: DictConfig) -> dict[str, Tensor]:
    """Names and shapes of the config's model, on the meta device."""
    with torch.device("meta"):
        state: dict[str, Tensor] = instantiate(cfg.model).state_dict()
    return state


def _hint(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> str:
    key = "backbone.bottom_up.piip.branches.3.patch_embed.proj.weight"
    if key in state and key in model and len(state[key]) != len(model[key]):
        return (
            f" Its branch 4 is {len(state[key])} wide, the config's {len(model[key])}: released four-branch "
            f"detectors "
            "have a second S there if it is 384 wide, a T if 192 (configs ..._ssbl_... and ..._tsbl_...)."
        )
    return ""


def _summary(state: Mapping[str, Tensor]) -> list[str]:
    """Lines that say what is in a checkpoint under our names."""
    parts: Counter[str] = Counter()
    for key, tensor in state.items():
        parts[next((part for part in _PARTS if key.startswith(part)), key.partition(".")[0])] += (
            tensor.numel()
        )
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())
    total = f"{len(state)} tensors, {sum(parts.values()) / 1e6:.2f} M numbers"
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in types.most_common())
    return [
        f"{total} ({kinds})",
        *(f"  {count / 1e6:10.2f} M  {part}" for part, count in sorted(parts.items())),
    ]


def convert_checkpoint(
    source: str, target: str, cfg: DictConfig, *, to_official: bool = False, config_name: str = "the config"
) -> list[str]:
    """Convert a checkpoint from the released names to Detectron2's, or back, without touching a number.

    Args:
        source: path or URL of a ``.pth`` or ``.safetensors`` file in any of the usual containers.
        target: ``.pth`` or ``.safetensors`` file to write; written whole or not at all.
        cfg: LazyConfig with the ``model`` that the checkpoint is for.
        to_official: from Detectron2's names to the released ones.
        config_name: what to call the config in errors.

    Returns:
        Lines that say what was converted.

    Raises:
        FileNotFoundError: there is no such file, or no folder for the target.
        ValueError: the file is damaged, is not what it should be, or does not fit the config; every missing,
            unknown and misshapen key is named.
    """
    path = Path(target)
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{target} must end in .pth or .safetensors")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {target} does not exist: make it")
    state = read_state(local_path(source))
    released = released_format(state)
    if (released is not None) == to_official:
        kind, way = ("already a released", "without") if to_official else ("not a released", "with")
        name = released.name if released else own_format(state).name
        raise ValueError(f"{source} is {kind} {name}: convert it {way} --to-official")
    ours = released.convert(state, source) if released else state
    model = _model_state(cfg)
    if problems := differences(ours, model):
        raise ValueError(
            f"{source} does not fit the model of {config_name}: {'; '.join(problems)}.{_hint(ours, model)}"
        )
    check_values(ours, source, model)
    converted = own_format(ours).to_official(ours, source) if to_official else ours
    container = "state_dict" if to_official else "model"
    write_file(converted if path.suffix == ".safetensors" else {container: converted}, path)
    return [f"{source} fits {config_name}", *_summary(ours), f"written to {target}"]
