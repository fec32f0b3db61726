"""Released PIIP-LLaVA: their names, and those of transformers' LLaVA with our tower."""

from __future__ import annotations

from .backbone import interaction_rules
from .released import ReleasedFormat
from .rules import Rule, below

__all__ = [
    "LLAVA",
    "convert_llava",
    "convert_projector",
    "convert_tower",
    "to_official_llava",
    "to_official_projector",
    "to_official_tower",
]

_CONVNEXT = "branch{j+1}.convnext_model"
_TOWER: list[Rule] = [
    *interaction_rules("weight"),
    ("branch{j+1}.clip_model.encoder.layers.{i}.", "piip.branches.{j}.blocks.{i}."),
    *(
        (f"branch{{j+1}}.clip_model.{name}.", f"piip.branches.{{j}}.{name}.")
        for name in ("embeddings", "pre_layrnorm", "post_layernorm")
    ),
    ("branch2.convnext_model.head.pre_logits.fc.", "pre_logits."),
    (f"{_CONVNEXT}.stem.", "piip.branches.{j}.stem."),
    (f"{_CONVNEXT}.stages.{{i}}.blocks.{{n}}.weight", "piip.branches.{j}.stages.{i}.blocks.{n}.gamma"),
    (f"{_CONVNEXT}.stages.", "piip.branches.{j}.stages."),
    (f"{_CONVNEXT}.head.norm.", "piip.branches.{j}.norm."),
]
_PROJECTOR: list[Rule] = [("branch{j}.", "branch{j}.")]
_MODEL: list[Rule] = [
    *below("model.vision_tower.vision_tower.", "model.vision_tower.tower.", _TOWER),
    *below("model.mm_projector.", "model.multi_modal_projector.", _PROJECTOR),
    *below("model.", "model.language_model.", [(n, n) for n in ("layers.", "embed_tokens.", "norm.")]),
    ("lm_head.", "lm_head."),
]

_TOWER_ALONE = ReleasedFormat("PIIP-LLaVA tower", lambda _: _TOWER)
convert_tower, to_official_tower = _TOWER_ALONE.convert, _TOWER_ALONE.to_official
_PROJECTOR_ALONE = ReleasedFormat("PIIP-LLaVA projector", lambda _: _PROJECTOR)
convert_projector, to_official_projector = _PROJECTOR_ALONE.convert, _PROJECTOR_ALONE.to_official
LLAVA = ReleasedFormat(
    "PIIP-LLaVA",
    lambda _: _MODEL,
    ("model.mm_projector.", "model.vision_tower.vision_tower."),
    ("model.multi_modal_projector.", "model.vision_tower.tower."),
)
convert_llava, to_official_llava = LLAVA.convert, LLAVA.to_official
