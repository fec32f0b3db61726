"""Weights of single models for the branches: published files become what a branch loads."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..branches import Branch, Pretrained, TimmBranch
from ..branches.base import Family
from ..branches.timm_vit import build_timm
from ..resizing import resize_bicubic
from .converters.backbone import BACKBONE
from .differences import check_values
from .files.download import local_path
from .files.state_dict import state_dict_of
from .files.tensors import read_file

__all__ = [
    "FAMILIES",
    "Pretrained",
    "convert_branch",
    "convert_head",
    "fit_branch",
    "load_pretrained",
    "read_source",
    "resize_relative_positions",
    "timm_state",
]

_logger = logging.getLogger(__name__)
State = dict[str, Tensor]


def _side(rows: int, extra: int, what: str) -> int:
    """Side of the square grid that ``rows`` rows are, ``extra`` of them aside."""
    side = math.isqrt(max(rows - extra, 0))
    if side == 0 or side**2 + extra != rows:
        raise ValueError(f"{what} has {rows} rows, expected a square number and {extra} more")
    return side


def _resize_positions(table: Tensor, side: int, keep_cls: bool, what: str) -> Tensor:
    """Resize a position embedding ``(1, rows, C)`` to a grid of ``side`` rows, bicubically.

    A row for the class token, which comes first, is left out, or kept (zero where there is none: nothing
    reads it).
    """
    rows = table.shape[1]
    has_cls = math.isqrt(rows) ** 2 != rows
    old = _side(rows, int(has_cls), what)
    grid = table[:, int(has_cls) :].float()
    if old != side:
        grid = resize_bicubic(grid.reshape(1, old, old, -1), side, side).flatten(1, 2)
    if not keep_cls:
        return grid
    cls = table[:, :1].float() if has_cls else torch.zeros_like(grid[:, :1])
    return torch.cat([cls, grid], 1)


def resize_relative_positions(table: Tensor, window_size: int) -> Tensor:
    """Enlarge a table of relative position biases to another window, as BEiT's code does.

    The offsets of the old table are taken to lie closer near 0 and further apart away from it, at 0, 1, 1 +
    q, 1 + q + q^2, ..., the last at the largest offset of the new table; a cubic spline through them is read
    at the new table's offsets.

    Args:
        table: ``((2 * w - 1)**2, heads)``, w the old window size; three more rows, which belong to the class
            token, are dropped.
        window_size: the new one, in tokens.

    Returns:
        ``((2 * window_size - 1)**2, heads)`` float32.
    """
    from scipy.interpolate import RectBivariateSpline

    rows = table.shape[0]
    old = _side(rows, 0 if math.isqrt(rows) ** 2 == rows else 3, "relative_position_bias_table")
    new = 2 * window_size - 1
    grid = table[: old**2].float()
    if old == new:
        return grid
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q ** (old // 2)) / (1 - q) > new // 2 else (q, high)
    offsets = [sum(q**i for i in range(steps)) for steps in range(1, old // 2 + 1)]
    source = [*(-offset for offset in reversed(offsets)), 0.0, *offsets]
    target = range(-(new // 2), new // 2 + 1)
    heads = []
    for head in grid.reshape(old, old, -1).permute(2, 0, 1).cpu().numpy():
        spline = RectBivariateSpline(source, source, head, kx=3, ky=3, s=0)
        heads.append(torch.from_numpy(spline(target, target)).flatten())
    return torch.stack(heads, 1).float()


def _as_they_are(state: State) -> State:
    return state


def _from_flax(state: State) -> State:
    """AugReg's ``.npz`` names and layouts: kernels are (in, out), heads lie in axes of their own."""
    if "embedding/kernel" not in state:
        return state
    layers = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}
    dense = {"MlpBlock_3/Dense_0": "mlp.fc1", "MlpBlock_3/Dense_1": "mlp.fc2"}
    attention = "MultiHeadDotProductAttention_1"
    result = {
        "patch_embed.proj.weight": state.pop("embedding/kernel").permute(3, 2, 0, 1),
        "patch_embed.proj.bias": state.pop("embedding/bias"),
        "pos_embed": state.pop("Transformer/posembed_input/pos_embedding"),
    }
    around = {
        "cls": "cls_token",
        "Transformer/encoder_norm/scale": "norm.weight",
        "Transformer/encoder_norm/bias": "norm.bias",
        "head/kernel": "head.weight",
        "head/bias": "head.bias",
    }
    for name in around.keys() & state.keys():
        tensor = state.pop(name)
        result[around[name]] = tensor.T if name == "head/kernel" else tensor
    for depth in sorted({int(m[1]) for m in map(re.compile(r".*/encoderblock_(\d+)/.*").match, state) if m}):
        theirs, ours = f"Transformer/encoderblock_{depth}", f"blocks.{depth}"
        for name, norm in layers.items():
            result[f"{ours}.{norm}.weight"] = state.pop(f"{theirs}/{name}/scale")
            result[f"{ours}.{norm}.bias"] = state.pop(f"{theirs}/{name}/bias")
        for name, linear in dense.items():
            result[f"{ours}.{linear}.weight"] = state.pop(f"{theirs}/{name}/kernel").T
            result[f"{ours}.{linear}.bias"] = state.pop(f"{theirs}/{name}/bias")
        kernels = [state.pop(f"{theirs}/{attention}/{part}/kernel") for part in ("query", "key", "value")]
        biases = [state.pop(f"{theirs}/{attention}/{part}/bias") for part in ("query", "key", "value")]
        result[f"{ours}.attn.qkv.weight"] = torch.cat([kernel.flatten(1).T for kernel in kernels])
        result[f"{ours}.attn.qkv.bias"] = torch.cat([bias.flatten() for bias in biases])
        result[f"{ours}.attn.proj.weight"] = state.pop(f"{theirs}/{attention}/out/kernel").flatten(0, 1).T
        result[f"{ours}.attn.proj.bias"] = state.pop(f"{theirs}/{attention}/out/bias")
    return result | state


def _with_own_tables(state: State) -> State:
    """Give each block of a BEiT a table of its own where the file has one for all."""
    shared = state.pop("rel_pos_bias.relative_position_bias_table", None)
    if shared is not None:
        for key in [key for key in state if key.endswith("attn.qkv.weight")]:
            state[key.replace("qkv.weight", "relative_position_bias_table")] = shared
    return state


def _convnext_names(state: State) -> State:
    """Names of timm or of Hugging Face; the latter are those of the published detectors."""
    if "stem.0.weight" in state:
        return {key.replace("head.norm.", "norm.", 1): value for key, value in state.items()}
    return {f"convnext_model.{key.removeprefix('convnext.')}": value for key, value in state.items()}


def _clip_names(state: State) -> State:
    """The image half of a CLIP by Hugging Face's names, or what they are without it."""
    prefix = "vision_model."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key.replace("encoder.layers.", "blocks.", 1): value for key, value in state.items()}


@dataclass(frozen=True)
class _Family:
    """How files of a family of models differ from what a branch loads.

    Attributes:
        unused: pattern of the names that a branch has no use for.
        optional: pattern of our names that may be missing; the branch keeps what it starts with.
        rename: brings the names of a file to those of the published detectors, or to ours.
        ours: whether it is to ours.
    """

    unused: str
    optional: str = ""
    rename: Callable[[State], State] = _as_they_are
    ours: bool = False


_HEAD = r"cls_token|norm\..*|fc_norm\..*|head\..*"
_LAYER_SCALE = r"blocks\.\d+\.ls[12]\.gamma"
FAMILIES: dict[Family, _Family] = {
    "deit": _Family(_HEAD, _LAYER_SCALE),
    "deit3": _Family(_HEAD),
    "augreg": _Family(rf"{_HEAD}|pre_logits\..*|pre_logits/.*", _LAYER_SCALE, _from_flax),
    "mae": _Family(rf"{_HEAD}|mask_token|decoder_.*", _LAYER_SCALE),
    "dinov2": _Family(rf"{_HEAD}|mask_token"),
    "internvit": _Family(rf"{_HEAD}|clip_projector\..*"),
    "beitv2": _Family(rf"{_HEAD}|mask_token|lm_head\..*|.*relative_position_index", rename=_with_own_tables),
    "uni_perceiver": _Family(r"(?!layers\.|visual_embed\.).*"),  # the rest is for other modalities
    "convnext": _Family(r"(convnext_model\.classifier|head)\..*", rename=_convnext_names),
    "clip": _Family(r"embeddings\.position_ids", rename=_clip_names, ours=True),
}
"""Families of published weights: DeiT, DeiT III, AugReg (timm, .pth or .npz), MAE, DINOv2, InternViT-6B,
BEiTv2, Uni-Perceiver (image half), ConvNeXt (timm or Hugging Face) and CLIP (Hugging Face, image half)."""


_PATCH_KERNELS = ("patch_embed.proj.weight", "embeddings.patch_embedding.weight")


def _fit(name: str, tensor: Tensor, wanted: Tensor, has_cls: bool) -> Tensor:
    """Resize what depends on the size of patch, image or window; leave all else alone."""
    if name in _PATCH_KERNELS and tensor.ndim == 4 and tensor.shape[2:] != wanted.shape[2:]:
        return F.interpolate(tensor.float(), wanted.shape[2:], mode="bicubic", align_corners=False)
    if name == "pos_embed" and tensor.shape[-1] == wanted.shape[-1]:
        side = math.isqrt(wanted.shape[-2] - int(has_cls))
        rows = _resize_positions(tensor.reshape(1, *tensor.shape[-2:]), side, has_cls, name)
        return rows.reshape(wanted.shape)
    if name.endswith("relative_position_bias_table") and tensor.shape[1] == wanted.shape[1]:
        return resize_relative_positions(tensor, (math.isqrt(wanted.shape[0]) + 1) // 2)
    return tensor


def fit_branch(state: Mapping[str, Tensor], branch: Branch, family: Family, origin: str) -> State:
    """Bring the weights of a published model to the names and shapes of a branch.

    Args:
        state: the file's tensors by name, without containers.
        branch: the branch they are for; it is not changed.
        family: one of :data:`FAMILIES`.
        origin: where they come from, for errors.

    Returns:
        Weights by the branch's names, of the file's type, values unseen: where nothing had to be resized or
        joined they are still the file's own. Those that a file may leave out are missing where it does.

    Raises:
        ValueError: naming the file and every tensor that is missing, unknown, or of another shape.
    """
    if family not in FAMILIES:
        raise ValueError(f"{origin}: weights of the family '{family}' are for a TimmBranch, which loads them")
    rules = FAMILIES[family]
    wanted = branch.state_dict()
    try:
        named = rules.rename(dict(state))
        kept = {key: value for key, value in named.items() if not re.fullmatch(rules.unused, key)}
        token = {"cls_token": named["cls_token"]} if "cls_token" in wanted else {}
        if not rules.ours and "stem.0.weight" not in kept:
            kept = {k.removeprefix("piip.branches.0."): v for k, v in BACKBONE.rename(kept).items()}
        has_cls = bool(getattr(branch, "num_prefix_tokens", 0))
        kept |= token
        fitted = {k: _fit(k, v, wanted[k], has_cls) if k in wanted else v for k, v in kept.items()}
    except (LookupError, RuntimeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{origin} does not hold weights of the family '{family}': {reason}") from error
    problems = [f"{k} is missing" for k in wanted if k not in fitted and not re.fullmatch(rules.optional, k)]
    problems += [f"{k} is unknown" for k in fitted if k not in wanted]
    problems += [
        f"{k} is of {v.dtype}, expected a floating-point type"
        for k, v in kept.items()
        if not v.is_floating_point()
    ]
    problems += [
        f"{k} has shape {tuple(v.shape)}, expected {tuple(wanted[k].shape)}"
        for k, v in fitted.items()
        if k in wanted and v.shape != wanted[k].shape
    ]
    if problems:
        raise ValueError(
            f"{origin} does not fit the branch, {len(problems)} tensors differ: {'; '.join(problems)}. "
            "Give weights of this model, or describe theirs in the branch"
        )
    return fitted


def _from_hub(name: str) -> State:
    """The weights of a model on the Hugging Face hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    problem: Exception | None = None
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            path = hf_hub_download(name, file)
            return state_dict_of(read_file(path), path)
        except (HfHubHTTPError, OSError, ValueError) as error:
            problem = error
    reason = (str(problem) or type(problem).__name__).splitlines()[0]
    raise ConnectionError(f"cannot get {name} ({reason}): check the name and the connection") from problem


def convert_branch(state: Mapping[str, Tensor], branch: Branch, family: Family, origin: str) -> State:
    """Turn the weights of a published model into those of a branch.

    Args:
        state, branch, family, origin: see :func:`fit_branch`.

    Returns:
        The branch's complete state dict, float32.

    Raises:
        ValueError: as :func:`fit_branch`, and for the first tensor that holds something else than finite
            numbers.
    """
    fitted = fit_branch(state, branch, family, origin)
    own = branch.state_dict()
    check_values(fitted, origin, own)
    return {key: value.float() for key, value in (own | fitted).items()}


def convert_head(state: Mapping[str, Tensor], family: Family, origin: str) -> dict[str, State]:
    """The norm and the classifier of a published model, which no branch has a use for.

    Args:
        state: the file's tensors by name, without containers.
        family: one of :data:`FAMILIES`.
        origin: where they come from, for errors.

    Returns:
        "norm" and "head", each a dict of "weight" and "bias", float32; the head's weight is ``(classes, C)``.

    Raises:
        ValueError: the file has no classifier, or one that is not finite.
    """
    named = FAMILIES[family].rename(dict(state))
    parts = {part: [f"{part}.weight", f"{part}.bias"] for part in ("norm", "head")}
    if missing := [name for names in parts.values() for name in names if name not in named]:
        raise ValueError(
            f"{origin} holds no classifier ({', '.join(missing)} missing): give weights that end in one"
        )
    for names in parts.values():
        check_values({name: named[name] for name in names}, origin)
    return {
        part: {name.partition(".")[2]: named[name].float() for name in names} for part, names in parts.items()
    }


def read_source(source: str, *, mmap: bool = False) -> State:
    """The tensors of what :class:`Pretrained` names, downloaded where it is not here yet.

    Args:
        source: ``timm:`` and a timm name, a URL or a path.
        mmap: leave tensors on disk until they are looked at, where the file's format can.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: it cannot be had.
    """
    if source.startswith("hf:"):
        return _from_hub(source.removeprefix("hf:"))
    if not source.startswith("timm:"):
        path = local_path(source)
        return state_dict_of(read_file(path, mmap=mmap), path)
    try:
        model: nn.Module = timm.create_model(source.removeprefix("timm:"), pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot get {source} ({reason}): check the name and the connection") from error
    return dict(model.state_dict())


def timm_state(branch: TimmBranch, origin: str) -> State:
    """Weights that timm finds, renames and resizes for a model of its own, built with the same options.

    Args:
        branch: the branch they are for, with something to start from; it is not changed.
        origin: where they come from, for errors.

    Returns:
        The branch's complete state dict.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: they are not to be had, or do not fit.
    """
    assert branch.pretrained is not None
    source = branch.pretrained.source
    given = None
    if not source.startswith("timm:"):
        given = {"state_dict": read_source(source)}
        check_values(given["state_dict"], origin)
    try:
        model = build_timm(branch.name, branch.options, pretrained=True, pretrained_cfg_overlay=given)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        advice = "check the connection" if given is None else "give the whole model's weights, head included"
        raise ValueError(f"{origin} cannot be loaded ({reason}): {advice}") from error
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    check_values(state, origin)
    return state


def _branch_state(branch: Branch, name: str) -> State:
    assert branch.pretrained is not None
    source, family = branch.pretrained.source, branch.pretrained.family
    origin = f"{name}: {source}"
    if isinstance(branch, TimmBranch):
        return timm_state(branch, origin)
    return convert_branch(read_source(source), branch, family, origin)


def load_pretrained(model: nn.Module) -> list[str]:
    """Load the weights that the branches of a model name, see :class:`Pretrained`; all of them or none.

    Args:
        model: anything with branches inside.

    Returns:
        Names, within the model, of the branches that got weights.

    Raises:
        ConnectionError, FileNotFoundError, ValueError: for weights that are not to be had, or do not fit; the
            model is as it was.
    """
    converted: dict[str, tuple[Branch, State]] = {}
    for name, branch in model.named_modules():
        if isinstance(branch, Branch) and branch.pretrained is not None:
            converted[name] = branch, _branch_state(branch, name)
    for name, (branch, state) in converted.items():
        branch.load_state_dict(state, strict=True)
        _logger.info(f"{name} starts from {branch.pretrained.source}" if branch.pretrained else name)
    return list(converted)
