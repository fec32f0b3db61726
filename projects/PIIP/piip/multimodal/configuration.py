"""Configuration of a PIIP-LLaVA: the contents of ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from transformers import LlavaConfig, PreTrainedConfig

from ..weights.zoo import find
from .official import tower_settings
from .tower import FAMILIES
from .towers import published_model

__all__ = ["PIIPLlavaConfig", "PIIPVisionConfig"]

_DEFAULT = "piip-llava_clip-bl_512-256_7B"


def _last_map(branch: Mapping[str, Any], last_block: int) -> tuple[int, int]:
    """Channels and stride in pixels of a branch's map after a block."""
    family = branch.get("family")
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r} of a branch: expected one of {', '.join(FAMILIES)}")
    if family == "clip":
        return branch["hidden_size"], branch.get("patch_size", 16)
    ends = list(accumulate(depth + (stage > 0) for stage, depth in enumerate(branch["depths"])))
    stage = next(stage for stage, end in enumerate(ends) if last_block < end)
    return branch["dims"][stage], 4 * 2**stage


class PIIPVisionConfig(PreTrainedConfig):
    """Settings of a vision tower of two branches, the larger model on the smaller image first.

    Args:
        branches, image_sizes, stages, interaction, pre_logits_dim: see
            :func:`piip.multimodal.tower.tower_from_settings`; without branches, those of
            "piip-llava_clip-bl_512-256_7B".

    Attributes:
        image_size: side in pixels of the images that it takes.
        patch_size: pixels a token of its second map, along one side.
        map_channels: channels of its two maps.
        hidden_size: channels of both together.
    """

    model_type = "piip_vision"
    base_config_key = "vision_config"

    branches: list[dict[str, Any]] | None = None
    image_sizes: list[int] | None = None
    stages: list[list[list[int]]] | None = None
    interaction: dict[str, Any] | None = None
    pre_logits_dim: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    map_channels: list[int] | None = None
    hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.branches is None:
            for name, value in tower_settings(published_model(find(_DEFAULT, "multimodal"))).items():
                setattr(self, name, value)
        assert self.branches is not None and self.image_sizes is not None and self.stages is not None
        last = [_last_map(b, ranges[-1][1]) for b, ranges in zip(self.branches, self.stages, strict=True)]
        self.image_size = max(self.image_sizes)
        self.map_channels = [channels for channels, _ in last]
        self.hidden_size = sum(self.map_channels)
        self.patch_size = last[-1][1]
        super().__post_init__(**kwargs)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image for the language model."""
        assert self.image_size is not None and self.patch_size is not None
        return (self.image_size // self.patch_size) ** 2

    def tower(self) -> dict[str, Any]:
        """The arguments of :func:`piip.multimodal.tower.tower_from_settings`."""
        names = ("branches", "image_sizes", "stages", "interaction", "pre_logits_dim")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_published(
        cls, model: Mapping[str, Any], branch_models: Mapping[str, Mapping[str, Any]] | None = None
    ) -> PIIPVisionConfig:
        """From a published ``model`` dict; the arguments are those of :func:`piip.official.build_tower`."""
        return cls(**tower_settings(model, branch_models))

    @classmethod
    def from_released(cls, name: str) -> PIIPVisionConfig:
        """Of a released model, such as "piip-llava_clip-bl_512-256_7B".

        Raises:
            ValueError: there is none of that name.
        """
        return cls.from_published(published_model(find(name, "multimodal")))


class PIIPLlavaConfig(LlavaConfig):
    """Settings of a vision tower, its projector and a language model: LLaVA's, and a norm.

    Args:
        vision_config: a :class:`PIIPVisionConfig`, or what is in one.
        text_config: that of any language model that LLaVA takes; by default Llama's.
        projector_norm: "gn" or "ln", see :class:`piip.multimodal.tower.TwoBranchProjector`.
        published: of a converted release, what its configuration says beside the language model's settings.
    """

    model_type = "piip_llava"

    projector_norm: str = "gn"
    published: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if getattr(self, "vision_config", None) is None:
            self.vision_config: Any = PIIPVisionConfig()
        super().__post_init__(**kwargs)
        # of the tower's output there is one layer, and no class token in it
        self.vision_feature_layer = -1
        self.vision_feature_select_strategy = "full"
        self.image_seq_length = self.vision_config.num_tokens
