"""The actual cost of a model: fvcore on the model itself, sorted by component."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..backbone import PIIP
from ..branches import ViTBranch
from ..branches.vit import MapBlock
from ..cross_attention import DeformableCrossAttention
from ..neck import DeconvPyramid, PyramidBackbone
from .report import Part, Report
from .tracing import ELEMENTWISE_NOTE, OperatorCounts, count_operators

__all__ = ["actual_cost", "collect", "transformer_part"]

Path = tuple[str, ...]
Locate = Callable[[Sequence[str], str | None], Path]
"""Where a module's cost belongs: (its name, split at the dots; the operator, None for parameters) -> path."""

_RESIZES = {"upsample_bilinear2d", "upsample_bicubic2d"}
_PRODUCTS = {"scaled_dot_product_attention", "matmul", "bmm", "einsum"}
_ORDER = (
    "resizing",
    "branches",
    "interactions",
    "merge",
    "backbone",
    "neck",
    "proposal_head",
    "box_head",
    "mask_head",
    "encoder",
    "decoder",
    "heads",
    "decode_head",
    "auxiliary_head",
)
_BLOCK_PARTS = {
    "norm1": "attention_projections",
    "attn": "attention_projections",
    "ls1": "attention_projections",
    "gamma_1": "attention_projections",
    "norm2": "mlp",
    "mlp": "mlp",
    "ls2": "mlp",
    "gamma_2": "mlp",
    "layer_norm1": "attention_projections",  # from here on by CLIP's names
    "self_attn": "attention_projections",
    "layer_norm2": "mlp",
}
_INJECTOR_PARTS = {"proj": "projection", "ffn": "ffn", "ffn_norm": "ffn", "cffn_gamma": "ffn"}


def transformer_part(name: Sequence[str], operator: str | None) -> str:
    """The part of a vision transformer that a module of it belongs to.

    Norms and layer scales go with the attention or MLP they serve. Blocks of another make are "blocks".
    """
    if name[:1] == ["model"]:  # a branch that is a model of timm
        name = name[1:]
    if name[:1] != ["blocks"]:
        return "patch_embed" if name and "embed" in name[0] else "other"
    if name[2:3] in (["attn"], ["self_attn"]) and operator in _PRODUCTS:
        return "attention_products"
    return _BLOCK_PARTS.get(name[2], "blocks") if len(name) > 2 else "blocks"


def piip_locator(piip: PIIP) -> Locate:
    """Sorts the modules of a PIIP: branches, interaction units (all stages together) and merge."""
    attention = {
        name: "deformable_attention"
        if isinstance(unit_part, DeformableCrossAttention)
        else "regular_attention"
        for name, unit_part in piip.named_modules()
        if name.endswith(".attn") and name.startswith("interactions.")
    }

    def locate(name: Sequence[str], operator: str | None) -> Path:
        if name[:1] == ["branches"] and len(name) > 1:
            return f"branch{int(name[1]) + 1}", transformer_part(list(name[2:]), operator)
        if name[:1] == ["interactions"] and len(name) > 4:
            # interactions.STAGE.units.SMALL_LARGE.DIRECTION[.CHILD ...]
            child = name[5] if len(name) > 5 else ""
            default = attention[".".join([*name[:5], "attn"])]
            return "interactions", f"unit_{name[3]}", _INJECTOR_PARTS.get(child, default)
        if name[:1] in (["merge"], ["taps"]):
            return ("merge",)
        return neck_part(operator)

    return locate


def neck_part(operator: str | None) -> Path:
    """The part of what lies outside branches, interactions and merge.

    Images and position embeddings are resized by functions, not by modules of their own; no neck resizes so.
    """
    return ("resizing",) if operator in _RESIZES else ("neck",)


def collect(
    model: nn.Module,
    counts: OperatorCounts,
    locate: Locate,
    input_size: tuple[int, int],
    not_counted: Sequence[str],
) -> Report:
    """A report of counted operators and parameters, each put where ``locate`` says."""
    report = Report(
        "actual",
        input_size,
        Part(),
        [
            ELEMENTWISE_NOTE,
            *not_counted,
            *(
                f"operator {name}, run {times} times: it has no handler"
                for name, times in counts.unknown.items()
            ),
        ],
    )
    for name, operators in counts.macs.items():
        for operator, macs in operators.items():
            report.total.add(locate(_split(name), operator), macs=macs)
    for name, parameter in model.named_parameters():
        report.total.add(locate(_split(name), None), params=parameter.numel())
    parts = report.total.parts
    report.total.parts = {part: parts[part] for part in sorted(parts, key=_place)}
    return report


def _place(part: str) -> tuple[int, str]:
    """Sorts parts in the order in which an image meets them."""
    return (_ORDER.index(part), part) if part in _ORDER else (1, part)  # branch1, branch2, ...


def _split(name: str) -> list[str]:
    return name.split(".") if name else []


def check_input_size(input_size: tuple[int, int], patch: int) -> None:
    """Raise ValueError where an image size is not a whole number of patches."""
    if min(input_size) < patch or any(side % patch for side in input_size):
        raise ValueError(
            f"input size {input_size[0]} x {input_size[1]} is not a multiple of the patch of {patch} px: "
            f"give multiples of {patch}"
        )


def token_shapes(piip: PIIP, input_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width, in tokens, of the first map of each branch."""
    return [
        tuple(math.floor(edge * (side / piip.input_size)) // branch.patch_size for edge in input_size)  # type: ignore[misc]
        for branch, side in zip(piip.branches, piip.image_sizes, strict=True)
    ]


def padded_tokens(shape: tuple[int, int], window: int) -> int:
    """Tokens of a map after padding to whole windows."""
    return -(-shape[0] // window) * -(-shape[1] // window) * window**2


def run_blocks(branch: ViTBranch, stages: Sequence[tuple[int, int]]) -> list[MapBlock]:
    """The blocks that are in a stage: others are not run."""
    return [cast(MapBlock, branch.blocks[i]) for first, last in stages for i in range(first, last + 1)]


class _EveryMap(nn.Module):
    """Returns every map, those of tapped stages included, so that a trace keeps all of them."""

    def __init__(self, piip: PIIP, pyramid: DeconvPyramid | None) -> None:
        super().__init__()
        self.body = piip if pyramid is None else PyramidBackbone(piip, pyramid)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.body, PIIP):
            maps = self.body.forward_branches if self.body.merge is None else self.body.forward_pyramid
            return tuple(maps(x))
        return tuple(self.body(x).values())


def actual_cost(
    piip: PIIP, input_size: tuple[int, int] | None = None, *, pyramid: DeconvPyramid | None = None
) -> Report:
    """Count what a PIIP runs, from the image to the merged map, and to those of tapped stages.

    Where it merges nothing, to the last maps of its branches.

    Args:
        piip: on the meta device.
        input_size: height and width in pixels; None for the square that it is made for.
        pyramid: a deconvolution stack on top, on the meta device, counted as the part "neck".

    Raises:
        ValueError: the input size is not a multiple of the patch.
    """
    size = input_size or (piip.input_size,) * 2
    check_input_size(size, piip.stride)
    image = torch.empty(1, 3, *size, device="meta")
    locate = piip_locator(piip)
    model = _EveryMap(piip, pyramid).eval()
    below = ["body"] if pyramid is None else ["body", "piip"]

    def locate_below(name: Sequence[str], operator: str | None) -> Path:
        inside = list(name[: len(below)]) == below
        return locate(name[len(below) :], operator) if inside else neck_part(operator)

    return collect(model, count_operators(model, (image,)), locate_below, size, [])
