"""What the towers of the released PIIP-LLaVA are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backbone import Stage, split_stages
from ..branches.published import CONVNEXT_SIZES
from ..weights.zoo import PublishedModel

__all__ = ["BRANCH_MODELS", "has_pre_logits", "hidden_size", "published_model", "stages_of", "tokens_of"]

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def _convnext(letter: str) -> Mapping[str, Any]:
    return dict(zip(("dims", "depths"), CONVNEXT_SIZES[letter], strict=True))


BRANCH_MODELS: dict[str, Mapping[str, Any]] = {
    "OpenGVLab/clip-vit-large-patch14to16-224": {**_LARGE, "image_size": 224, "patch_size": 16},
    "OpenGVLab/clip-vit-large-patch14to16-336": {**_LARGE, "image_size": 336, "patch_size": 16},
    "openai/clip-vit-base-patch16": {**_BASE, "image_size": 224, "patch_size": 16},
    "convnext_base.clip_laiona_augreg_320": _convnext("B"),
    "convnext_large_mlp.clip_laion2b_ft_320": _convnext("L"),
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


def hidden_size(model: PublishedModel) -> int:
    """Width of its language model."""
    return {"7B": 4096, "13B": 5120}[model.language_model]


def _channels(branch: str) -> int:
    """Channels of a branch's map."""
    sizes = BRANCH_MODELS[branch]
    return int(sizes["dims"][-1] if "dims" in sizes else sizes["hidden_size"])


def tokens_of(model: PublishedModel) -> int:
    """Tokens of an image, for the language model."""
    stride = 32 if "dims" in BRANCH_MODELS[model.branches[1]] else 16
    return (max(model.image_sizes) // stride) ** 2


def stages_of(model: PublishedModel) -> tuple[Sequence[Stage], Sequence[Stage]]:
    """First and last block of each stage, of both branches."""
    number = model.num_interactions
    is_convnext = "dims" in BRANCH_MODELS[model.branches[1]]
    return split_stages(24, number), _CONVNEXT_STAGES[number] if is_convnext else split_stages(12, number)


def has_pre_logits(branch_model: str) -> bool:
    """Whether checkpoints of a timm model carry a layer before its head, which a tower does not use."""
    return branch_model.startswith("convnext_large_mlp")


def published_model(model: PublishedModel) -> dict[str, Any]:
    """The published ``model`` dict, as :func:`piip.official.build_tower` takes it."""
    branches: list[dict[str, Any]] = []
    sizes = reversed(model.image_sizes)  # branch 1 is the largest model
    for name, size, stages in zip(model.branches, sizes, stages_of(model), strict=True):
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
    mixed = "dims" in BRANCH_MODELS[model.branches[1]]
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
            "dim1": _channels(model.branches[0]),
            "dim2": _channels(model.branches[1]),
        },
    }
