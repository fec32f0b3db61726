"""The released PIIP-LLaVA: what their towers are made of, what they reach, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..backbone import Stage, split_stages

__all__ = [
    "BENCHMARKS",
    "BRANCH_MODELS",
    "RELEASED",
    "ReleasedLlava",
    "find",
    "has_pre_logits",
    "markdown_table",
    "published_model",
]

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_L_224, _CLIP_L_336 = (f"OpenGVLab/clip-vit-large-patch14to16-{size}" for size in (224, 336))
_CLIP_B = "openai/clip-vit-base-patch16"
_CONVNEXT_B, _CONVNEXT_L = "convnext_base.clip_laiona_augreg_320", "convnext_large_mlp.clip_laion2b_ft_320"
BRANCH_MODELS: dict[str, Mapping[str, Any]] = {
    _CLIP_L_224: {**_LARGE, "image_size": 224, "patch_size": 16},
    _CLIP_L_336: {**_LARGE, "image_size": 336, "patch_size": 16},
    _CLIP_B: {**_BASE, "image_size": 224, "patch_size": 16},
    _CONVNEXT_B: {"dims": (128, 256, 512, 1024), "depths": (3, 3, 27, 3)},
    _CONVNEXT_L: {"dims": (192, 384, 768, 1536), "depths": (3, 3, 27, 3)},
}
"""Sizes of the models that released towers start from, by their names on the Hugging Face hub, and timm's."""

_CONVNEXT_STRIDES = (*[4] * 3, *[8] * 4, *[16] * 28, *[32] * 4)  # after each block, downsampling included
# The blocks of ConvNeXt between interactions, in thirty-nine blocks of which 3, 7 and 35 halve the map
_CONVNEXT_STAGES: dict[int, list[Stage]] = {
    2: [(0, 19), (20, 38)],
    12: [(0, 2), (3, 6), (7, 10), *((first, first + 2) for first in range(11, 33, 3)), (35, 38)],
    24: [
        *[(0, 1), (2, 2), (3, 4), (5, 6), (7, 9), (10, 10)],
        *(pair for first in range(11, 33, 3) for pair in ((first, first + 1), (first + 2, first + 2))),
        *[(35, 36), (37, 38)],
    ],
}


@dataclass(frozen=True)
class ReleasedLlava:
    """A released PIIP-LLaVA.

    Attributes:
        name: of its published configuration.
        model: what a table calls it.
        branches: the models of branch 1 and 2, keys of :data:`BRANCH_MODELS`.
        image_sizes: of branch 1 and 2, in pixels; the second is that of the input.
        num_interactions: between the two.
        language_model: the size of its Vicuna 1.5, "7B" or "13B".
        tokens: of an image, for the language model.
        gflops_published: multiply-adds of the tower in 1e9, as published.
        gflops: the same, as they are.
        params_m: parameters of the tower in millions.
        scores: published, in the order of :data:`BENCHMARKS`, their mean last.
    """

    name: str
    model: str
    branches: tuple[str, str]
    image_sizes: tuple[int, int]
    num_interactions: int
    language_model: str
    tokens: int
    gflops_published: int
    gflops: float
    params_m: float
    scores: tuple[float, ...]

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return {"7B": 4096, "13B": 5120}[self.language_model]

    @property
    def dims(self) -> tuple[int, int]:
        """Channels of the two maps."""
        first, second = (BRANCH_MODELS[name] for name in self.branches)
        return first["hidden_size"], second["dims"][-1] if "dims" in second else second["hidden_size"]

    def stages(self) -> tuple[Sequence[Stage], Sequence[Stage]]:
        """First and last block of each stage, of both branches."""
        large = split_stages(24, self.num_interactions)
        if self.branches[1] == _CLIP_B:
            return large, split_stages(12, self.num_interactions)
        return large, _CONVNEXT_STAGES[self.num_interactions]


BENCHMARKS = ("MMB-EN", "MM-Vet", "TextVQA", "SQA-I", "GQA", "VQAv2", "SEED-I", "POPE")
"""What the published scores were measured on."""


def _row(
    name: str,
    branches: tuple[str, str],
    image_sizes: tuple[int, int],
    num_interactions: int,
    gflops_published: int,
    gflops: float,
    params_m: float,
    *scores: float,
) -> ReleasedLlava:
    stride = _STRIDES[branches[1]]
    return ReleasedLlava(
        name=name,
        model=_MODELS[branches[1]],
        branches=branches,
        image_sizes=image_sizes,
        num_interactions=num_interactions,
        language_model=name.rpartition("_")[2],
        tokens=(image_sizes[1] // stride) ** 2,
        gflops_published=gflops_published,
        gflops=gflops,
        params_m=params_m,
        scores=scores,
    )


_STRIDES = {_CLIP_B: 16, _CONVNEXT_B: 32, _CONVNEXT_L: 32}
_MODELS = {
    _CLIP_B: "CLIP-B, CLIP-L",
    _CONVNEXT_B: "ConvNeXt-B, CLIP-L",
    _CONVNEXT_L: "ConvNeXt-L, CLIP-L",
}
_BL_224, _BL_336 = (_CLIP_L_224, _CLIP_B), (_CLIP_L_336, _CLIP_B)
_CB_224, _CB_336 = (_CLIP_L_224, _CONVNEXT_B), (_CLIP_L_336, _CONVNEXT_B)
_CL_336 = (_CLIP_L_336, _CONVNEXT_L)
# fmt: off
RELEASED: tuple[ReleasedLlava, ...] = (
    _row("piip-llava_clip-bl_512-256_7B", _BL_224, (256, 512), 2, 193, 193.6, 397.90,
         63.8, 32.0, 57.9, 68.8, 62.8, 79.1, 67.3, 86.5, 64.8),
    _row("piip-llava_convnext-b_clip-l_640-224_7B", _CB_224, (224, 640), 2, 191, 191.3, 399.87,
         64.5, 31.9, 59.0, 68.3, 62.1, 79.9, 67.5, 86.5, 65.0),
    _row("piip-llava_clip-bl_512-448_7B", _BL_336, (448, 512), 12, 422, 422.5, 442.16,
         66.2, 30.5, 59.5, 68.0, 63.7, 80.3, 69.0, 87.3, 65.6),
    _row("piip-llava_clip-bl_512-448_13B", _BL_336, (448, 512), 12, 422, 422.5, 442.16,
         67.6, 36.1, 61.6, 71.0, 64.5, 81.2, 69.5, 87.2, 67.3),
    _row("piip-llava_convnext-b_clip-l_1024-336_7B", _CB_336, (336, 1024), 12, 598, 590.8, 431.33,
         67.5, 31.5, 63.1, 68.1, 62.7, 81.1, 69.0, 87.9, 66.4),
    _row("piip-llava_convnext-b_clip-l_1024-336_13B", _CB_336, (336, 1024), 24, 598, 716.9, 471.54,
         68.5, 37.7, 64.2, 71.1, 64.2, 81.8, 69.3, 87.9, 68.0),
    _row("piip-llava_convnext-l_clip-l_1024-336_7B", _CL_336, (336, 1024), 12, 1037, 1026.5, 555.68,
         67.0, 31.4, 67.1, 68.3, 63.9, 81.5, 69.4, 88.2, 67.1),
    _row("piip-llava_convnext-l_clip-l_1024-336_13B", _CL_336, (336, 1024), 24, 1037, 1191.1, 609.21,
         66.5, 36.8, 69.2, 69.8, 65.2, 82.5, 70.5, 87.6, 68.5),
    _row("piip-llava-plus_convnext-l_clip-l_1024-336_7B", _CL_336, (336, 1024), 12, 1037, 1026.5, 555.68,
         74.5, 44.7, 73.0, 95.0, 62.9, 82.3, 72.1, 87.5, 74.0),
)
# fmt: on


def find(name: str) -> ReleasedLlava:
    """The released model of a name.

    Raises:
        ValueError: there is none.
    """
    by_name = {released.name: released for released in RELEASED}
    if name in by_name:
        return by_name[name]
    raise ValueError(f"no released PIIP-LLaVA is called {name}: expected one of {', '.join(by_name)}")


def has_pre_logits(branch_model: str) -> bool:
    """Whether checkpoints of a timm model carry a layer before its head, which a tower does not use."""
    return branch_model.startswith("convnext_large_mlp")


def published_model(released: ReleasedLlava) -> dict[str, Any]:
    """The published ``model`` dict, as :func:`piip.official.build_tower` takes it."""
    branches: list[dict[str, Any]] = []
    for name, size, stages in zip(released.branches, released.image_sizes, released.stages(), strict=True):
        branch: dict[str, Any] = {"pretrained": name, "img_size": size}
        if "dims" in BRANCH_MODELS[name]:
            branch |= {"model_type": "convnext_timm", "downsample_ratios": list(_CONVNEXT_STRIDES)}
        else:
            branch |= {
                "model_type": "clip_hf",
                "patch_size": 16,
                "pretrain_patch_size": 16,
                "use_cls_token": True,
            }
        branches.append({**branch, "interaction_indexes": [list(stage) for stage in stages]})
    mixed = "dims" in BRANCH_MODELS[released.branches[1]]
    return {
        "backbone": {
            "model_cls": "2branch_mix" if mixed else "2branch_v1",
            "interact_attn_type": "deform",
            "n_points": 4,
            "deform_num_heads": 16,
            "deform_ratio": 0.5,
            "with_cffn": True,
            "cffn_ratio": 0.25,
            "interaction_drop_path_rate": 0.4,
            "branch1": branches[0],
            "branch2": branches[1],
        },
        "projector": {
            "type": "separate_2branch_v1",
            "norm": "gn",
            "dim1": released.dims[0],
            "dim2": released.dims[1],
        },
    }


def markdown_table() -> str:
    """The table of the project page."""
    columns = [
        "towers",
        "image sizes",
        "language model",
        "tower params (M)",
        "tower GFLOPs published / actual",
    ]
    columns += [*BENCHMARKS, "mean", "weights"]
    rows = [f"| {' | '.join(columns)} |", f"|---|---|---|{'--:|' * (len(columns) - 4)}---|"]
    for r in RELEASED:
        model = f"{r.model} (Plus)" if "plus" in r.name else r.model
        cells = [
            model,
            "/".join(str(size) for size in reversed(r.image_sizes)),
            f"Vicuna 1.5 {r.language_model}",
            f"{r.params_m:.1f}",
            f"{r.gflops_published} / {r.gflops:.0f}",
            *(f"{score:.1f}" for score in r.scores),
            f"`{r.name}`",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
