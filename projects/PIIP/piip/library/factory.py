"""`create_model`: the published models by name, with timm's conventions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from ..weights import zoo
from ..weights.converters.backbone import convert_backbone
from ..weights.converters.classifier import convert_classifier
from ..weights.differences import check_values, differences
from ..weights.files.download import local_path
from ..weights.files.tensors import read_state
from . import registry
from .models import BranchFeatures, PublishedBackbone, PublishedClassifier, PyramidFeatures
from .registry import list_models

__all__ = ["create_model", "list_models"]

HUB = "hf-hub:"
_SHOWN = 5  # keys named in an error, per kind of mismatch
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def create_model(
    name: str,
    pretrained: bool | str | PathLike[str] = False,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """Build a published model.

    Args:
        name: one of :func:`list_models`: a backbone of a released detector ("piip_tsb_1120_896_448") or a
            classifier ("piip_sbl_384_192_128.in1k"). Or "hf-hub:ORGANISATION/NAME", what `push_to_hub` stored
            on Hugging Face's hub, which ``pretrained=True`` loads, too.
        pretrained: True for the released weights, downloaded into a cache; the path of a released file, of
            this model's state dict, or of a folder of `save_pretrained`; or "hf-hub:ORGANISATION/NAME".
        num_classes: of a classifier; another number than the weights' starts its heads anew. None for that of
            the weights, or 1000; 0 for features instead of logits.
        features_only: return a list of maps, finest first: of a backbone the pyramid's, of a classifier those
            of its branches.
        out_indices: which of these maps; None for all.

    Returns:
        In float32, in training mode. A backbone maps images ``(B, 3, H, W)`` to a dict "merged", "f1" to
        "f4" of maps at strides 16 and 4 to 32; a classifier to logits ``(B, num_classes)``. All have
        `pretrained_cfg`, which :func:`piip.data.resolve_data_config` reads, `feature_info`, and
        `save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub; a classifier
        `forward_features`, `forward_head`, `get_classifier`, `reset_classifier`.

    Raises:
        ValueError: the name is unknown, an option does not apply to the model, or the weights do not fit.
        ConnectionError: the weights cannot be downloaded.
        FileNotFoundError: there is no file of weights at the path.
    """
    if name.startswith(HUB):
        pretrained = name if pretrained is True else pretrained
        name = _model_name(_from_hub(name, _CONFIG))
    entry = registry.find(name)
    if out_indices is not None and not features_only:
        raise ValueError("out_indices chooses among the maps of features_only=True: give both, or neither")
    if num_classes and not entry.classifier:
        raise ValueError(f"{name} is a backbone without classifier: take one of {list_models('*.in1k')}")
    if num_classes and features_only:
        raise ValueError("features_only leaves the classifier out: give no num_classes")
    state = _read(name, entry, pretrained) if pretrained else None
    indices = {} if out_indices is None else {"out_indices": list(out_indices)}
    model: nn.Module
    if features_only:
        model = (BranchFeatures if entry.classifier else PyramidFeatures)(name, **indices)
    elif entry.classifier:
        model = PublishedClassifier(name, _classes(state, num_classes))
    else:
        model = PublishedBackbone(name)
    if state is not None:
        if isinstance(model, BranchFeatures):
            classifiers = ("head.heads.", "head.head.")
            state = {key: value for key, value in state.items() if not key.startswith(classifiers)}
        if problems := differences(state, model.state_dict(), shown=_SHOWN):
            raise ValueError(f"{pretrained} holds another model: {'; '.join(problems)}")
        check_values(state, pretrained, model.state_dict())
        model.load_state_dict(state)
    if (
        isinstance(model, PublishedClassifier)
        and num_classes is not None
        and num_classes != model.num_classes
    ):
        model.reset_classifier(num_classes)
    return model


def _classes(state: Mapping[str, Tensor] | None, asked: int | None) -> int:
    """Number of classes of the weights if there are weights, otherwise of the requested model."""
    if state is None:
        return 1000 if asked is None else asked
    heads = [state[key] for key in ("head.heads.0.weight", "head.head.weight") if key in state]
    return heads[0].shape[0] if heads else 0


def _from_hub(source: str, file: str) -> Path:
    """A file of a repository on Hugging Face's hub, from huggingface_hub's cache where it is there."""
    repository = source.removeprefix(HUB)
    try:
        return Path(hf_hub_download(repo_id=repository, filename=file))
    except OSError as error:  # all that huggingface_hub and the network raise
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ConnectionError(
            f"cannot get {file} of {source} ({reason}): check the name and the connection, or give the path "
            "of the repository's folder"
        ) from error


def _model_name(config: Path) -> str:
    """The name in a config.json.

    Raises:
        ValueError: there is none.
    """
    try:
        return str(json.loads(config.read_text())["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} names no model of this package: it was saved by another one") from error


def _read(
    name: str, entry: registry.Entry, pretrained: Literal[True] | str | PathLike[str]
) -> dict[str, Tensor]:
    """Weights under this package's names, from wherever :func:`create_model` finds them."""
    if pretrained is True:
        path = zoo.fetch(entry.model)
    else:
        source = fspath(pretrained)
        files = None
        if source.startswith(HUB):
            files = _from_hub(source, _CONFIG), _from_hub(source, _WEIGHTS)
        elif Path(source).is_dir():
            files = Path(source) / _CONFIG, Path(source) / _WEIGHTS
        if files is not None and (saved := _model_name(local_path(str(files[0])))) != name:
            raise ValueError(f"{source} holds {saved}, not {name}: give that name")
        path = local_path(source if files is None else str(files[1]))
    state = read_state(path)
    if any(key.startswith("piip.") for key in state):
        return state
    if entry.classifier:
        return convert_classifier(state, path)
    own = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    return convert_backbone(own, path)
