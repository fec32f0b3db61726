"""The vision tower as a transformers model, and LLaVA with this tower."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import AutoModel
from transformers.utils.generic import can_return_tuple

from ..branches import CLIPBranch, ConvNeXtBranch
from ..interaction import Injector
from .configuration import PIIPLlavaConfig, PIIPVisionConfig
from .tower import TwoBranchProjector, resize_map, tower_from_settings

__all__ = ["PIIPLlavaForConditionalGeneration", "PIIPLlavaModel", "PIIPVisionModel"]


class PIIPVisionModel(PreTrainedModel):
    """A vision tower of two branches; attention within it is PyTorch's own, whatever backend is asked for."""

    config: PIIPVisionConfig
    config_class = PIIPVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PIIPTower"]  # noqa: RUF012  (transformers' attribute)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PIIPVisionConfig) -> None:
        super().__init__(config)
        self.tower = tower_from_settings(**config.tower())
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # What is built starts as it should; this is for tensors that a checkpoint did not have. Layers of
        # interactions and branches start in ways of their own, which their owners know.
        if isinstance(module, Injector | CLIPBranch | ConvNeXtBranch):
            module.reset_parameters()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass, where transformers looks for it."""
        return any(branch.grad_checkpointing for branch in self.tower.piip.branches)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.tower.piip.set_grad_checkpointing(enable)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Both maps of an image as tokens.

        Args:
            pixel_values: ``(B, 3, S, S)``, S the ``image_size`` of the configuration.
            kwargs: what LLaVA passes to any tower; nothing of it matters here.

        Returns:
            ``last_hidden_state`` ``(B, h * w, hidden_size)``: the channels of the first map, resized to the
            grid of the second, then those of the second; the same as the one entry of ``hidden_states``.

        Raises:
            ValueError: images of another shape.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected (batch, 3, {size}, {size}): "
                "use the image processor that belongs to the model"
            )
        first, second = self.tower(pixel_values)
        maps = torch.cat([resize_map(first, second.shape[2:]), second], dim=1)
        tokens = maps.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


class _Projector(TwoBranchProjector):
    """The projector on what :class:`PIIPVisionModel` gives."""

    def __init__(self, config: PIIPLlavaConfig) -> None:
        first, second = config.vision_config.map_channels
        super().__init__((first, second), config.text_config.hidden_size, norm=config.projector_norm)
        self.map_channels = (first, second)

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """From tokens ``(B, h * w, C_1 + C_2)`` of a square grid to ``(B, h * w, hidden_size)``."""
        side = isqrt(tokens.shape[1])
        first, second = tokens.transpose(1, 2).unflatten(2, (side, side)).split(self.map_channels, dim=1)
        return super().forward((first, second))


class PIIPLlavaModel(LlavaModel):
    """LLaVA whose tower is a :class:`PIIPVisionModel`, without the head."""

    config: PIIPLlavaConfig
    config_class = PIIPLlavaConfig

    def __init__(self, config: PIIPLlavaConfig) -> None:
        super(LlavaModel, self).__init__(config)  # LLaVA's own would build a projector in vain
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = _Projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """LLaVA's; in training a text without images runs the tower, too, on a blank one that no token shows.

        Processes that train together wait for one another's gradients, so each has to have some.
        """
        if self.training and pixel_values is None and input_ids is not None:
            size = self.config.vision_config.image_size
            blank = torch.zeros(1, 3, size, size, device=input_ids.device)
            (unseen,) = self.get_image_features(blank).pooler_output
            inputs_embeds = self.get_input_embeddings()(input_ids)
            inputs_embeds = inputs_embeds + 0 * unseen.sum().to(inputs_embeds.dtype)
            input_ids = None
        return super().forward(
            input_ids=input_ids, pixel_values=pixel_values, inputs_embeds=inputs_embeds, **kwargs
        )


class PIIPLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA whose tower is a :class:`PIIPVisionModel`; all of LLaVA's methods."""

    config: PIIPLlavaConfig
    config_class = PIIPLlavaConfig

    def __init__(self, config: PIIPLlavaConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = PIIPLlavaModel(config)
        width, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.post_init()
        # it stands for tokens of an image: it is never an answer
        self.generation_config.suppress_tokens = [config.image_token_id]
