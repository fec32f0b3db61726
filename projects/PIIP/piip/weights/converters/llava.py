"""Released PIIP-LLaVA towers and projectors: the published names of tensors and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .renaming import Pair, invert, rename_all

__all__ = [
    "convert_llava",
    "convert_projector",
    "convert_tower",
    "to_official_llava",
    "to_official_projector",
    "to_official_tower",
]


def _branch(number: int) -> tuple[Pair, ...]:
    theirs, ours = f"branch{number}.clip_model.", f"piip.branches.{number - 1}."
    convnext = f"branch{number}.convnext_model."
    return (
        (f"{theirs}embeddings.", f"{ours}embeddings."),
        (f"{theirs}pre_layrnorm.", f"{ours}pre_layrnorm."),
        (f"{theirs}post_layernorm.", f"{ours}post_layernorm."),
        (f"{theirs}encoder.layers.#.", f"{ours}blocks.#."),
        (f"{convnext}stem.", f"{ours}stem."),
        (f"{convnext}stages.#.blocks.#.weight", f"{ours}stages.#.blocks.#.gamma"),
        (f"{convnext}stages.", f"{ours}stages."),
        (f"{convnext}head.norm.", f"{ours}norm."),
    )


def _direction(theirs: str, ours: str) -> tuple[Pair, ...]:
    unit = "interactions.#.interaction_units_12."
    own = f"piip.interactions.#.units.1_2.{ours}."
    return (
        (f"{unit}{theirs}_proj.", f"{own}proj."),
        (f"{unit}{theirs}_injector.ca_weight", f"{own}ca_gamma"),
        (f"{unit}{theirs}_injector.cffn_weight", f"{own}cffn_gamma"),
        (f"{unit}{theirs}_injector.ffn.dwconv.dwconv.", f"{own}ffn.dwconv."),
        (f"{unit}{theirs}_injector.", own),
    )


_TOWER = (
    *_direction("branch2to1", "large_to_small"),
    *_direction("branch1to2", "small_to_large"),
    *_branch(1),
    *_branch(2),
    ("branch2.convnext_model.head.pre_logits.fc.", "pre_logits."),
)


def _specific_first(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Longer beginnings before shorter ones that they begin with."""
    return tuple(sorted(pairs, key=lambda pair: -len(pair[0])))


_BACK = _specific_first(invert(_TOWER))
_PROJECTOR = (("branch#.", "branch#."),)


def convert_tower(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename a published tower's tensors to those of :func:`piip.official.build_tower`.

    Args:
        state: published key, without ``model.vision_tower.vision_tower.`` -> tensor, passed on, not copied.
        origin: what to call the source in errors.

    Raises:
        ValueError: naming every key that is not known, or the first tensor that is not finite.
    """
    return rename_all(state, _specific_first(_TOWER), f"{origin} is no PIIP-LLaVA tower", origin)


def to_official_tower(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Undo :func:`convert_tower`.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    return rename_all(state, _BACK, f"{origin} has no published form", origin)


def convert_projector(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Check that tensors are those of a published projector, whose names are ours.

    Args:
        state: published key, without ``model.mm_projector.`` -> tensor.
        origin: what to call the source in errors.

    Raises:
        ValueError: naming every key that is not known, or the first tensor that is not finite.
    """
    return rename_all(state, _PROJECTOR, f"{origin} is no PIIP-LLaVA projector", origin)


to_official_projector = convert_projector


_TOWER_PREFIX = ("model.vision_tower.vision_tower.", "model.vision_tower.tower.")
_PROJECTOR_PREFIX = ("model.mm_projector.", "model.multi_modal_projector.")
_LANGUAGE = (("lm_head.", "lm_head."), ("model.", "model.language_model."))
_CONSTANTS = re.compile(r".*\.rotary_emb\.inv_freq")  # which old versions of transformers wrote down


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convert_llava(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Rename tensors of a whole published PIIP-LLaVA, or of a part of one, to those of transformers' LLaVA.

    Args:
        state: published key -> tensor, passed on, not copied. Constants of rotary embeddings are left out.
        origin: what to call the source in errors.

    Returns:
        name in :class:`piip.multimodal.PIIPLlavaForConditionalGeneration` -> tensor.

    Raises:
        ValueError: naming every key that is not known, or the first tensor that is not finite.
    """
    parts = (_TOWER_PREFIX, _PROJECTOR_PREFIX)
    tower = convert_tower(_below(state, _TOWER_PREFIX[0]), origin)
    projector = convert_projector(_below(state, _PROJECTOR_PREFIX[0]), origin)
    rest = {
        key: value
        for key, value in state.items()
        if not key.startswith(tuple(theirs for theirs, _ in parts)) and not _CONSTANTS.fullmatch(key)
    }
    return {
        **{_TOWER_PREFIX[1] + key: value for key, value in tower.items()},
        **{_PROJECTOR_PREFIX[1] + key: value for key, value in projector.items()},
        **rename_all(rest, _LANGUAGE, f"{origin} is no PIIP-LLaVA", origin),
    }


def to_official_llava(state: Mapping[str, Tensor], origin: object = "the checkpoint") -> dict[str, Tensor]:
    """Undo :func:`convert_llava`.

    Raises:
        ValueError: naming every tensor for which there is no published name.
    """
    tower = to_official_tower(_below(state, _TOWER_PREFIX[1]), origin)
    projector = to_official_projector(_below(state, _PROJECTOR_PREFIX[1]), origin)
    parts = (_TOWER_PREFIX[1], _PROJECTOR_PREFIX[1])
    rest = {key: value for key, value in state.items() if not key.startswith(parts)}
    return {
        **{_TOWER_PREFIX[0] + key: value for key, value in tower.items()},
        **{_PROJECTOR_PREFIX[0] + key: value for key, value in projector.items()},
        **rename_all(rest, invert(_LANGUAGE), f"{origin} has no published form", origin),
    }
