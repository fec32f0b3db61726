"""Any plain vision transformer of timm: DINOv2 and v3, EVA-02, SigLIP, CLIP, SAM, DeiT and their like."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

import timm
import torch
from timm.layers import resample_abs_pos_embed_nhwc
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import window_merge, window_partition
from .base import Branch, Pretrained
from .vit import per_block

__all__ = ["TimmBranch", "build_timm"]

_MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_sam")  # of timm.models
_FITS = (
    "expected a plain vision transformer of timm's vision_transformer, deit, eva or vision_transformer_sam, "
    "such as vit_base_patch16_dinov3, vit_base_patch14_reg4_dinov2, eva02_base_patch14_448, "
    "vit_base_patch16_siglip_512, vit_base_patch16_clip_224, deit3_base_patch16_224 or samvit_base_patch16"
)
_MAX_ROTARY_TABLES = 8


def build_timm(name: str, options: Mapping[str, Any], **loading: Any) -> nn.Module:
    """timm's model without what follows its blocks.

    Args:
        name: timm's, with or without a tag.
        options: of its constructor.
        loading: of `timm.create_model`, such as ``pretrained``.

    Raises:
        ValueError: there is no such model or tag, or it is none that can be stepped block by block on maps of
            any size.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        raise ValueError(f"timm has no model '{architecture}': {f'did you mean {near}?' if near else _FITS}")
    if not is_model_in_modules(architecture, _MODULES):
        raise ValueError(f"timm's '{architecture}' cannot be a branch: {_FITS}")
    if "patch_drop_rate" in options:
        raise ValueError("patch_drop_rate leaves holes in the token map: leave it out")
    if not is_model_in_modules(architecture, ["vision_transformer_sam"]):
        options = {**options, "dynamic_img_size": True}
    try:
        model = timm.create_model(name, **options, **loading)
    except RuntimeError as error:
        if "tag" not in str(error):
            raise
        tags = [known for known in timm.list_models(pretrained=True) if known.startswith(f"{architecture}.")]
        raise ValueError(f"timm has no weights '{name}': expected one of {tags}") from error
    if not isinstance(model, VisionTransformer | Eva | VisionTransformerSAM):
        raise ValueError(f"timm's '{architecture}' cannot be a branch as a {type(model).__name__}: {_FITS}")
    model.prune_intermediate_layers(1, prune_norm=True, prune_head=True)  # all blocks are kept
    return cast(nn.Module, model)


class TimmBranch(Branch):
    """A vision transformer of timm, run by timm's own code, without its last norm and head.

    With global attention the map after block i is that of timm's ``forward_intermediates(norm=False)``, at
    any size of image. Absolute positions are resized to the map as timm does (bicubic, antialiased), rotary
    ones are computed for its grid. Class and register tokens take part in attention, not in
    interactions.

    In a window (no model here but SAM was trained with any) a token sees its window's tokens and the class
    and register tokens, of which each window has a copy; after the block the copies are averaged. Rotary
    positions are those of a map of the window's size, as in EVA-02's own detectors; what lies in a window
    beyond the map's edge is not attended to, so that one window over the whole map is global attention. SAM's
    blocks have their own windows and relative positions, and pad with zeros after the norm.

    Parameters are timm's, under ``model.``.

    Args:
        name: of a model in timm, with or without a tag: "vit_base_patch16_dinov3.lvd1689m".
        window_size: side of the attention windows in tokens: one for all blocks, or a list with one entry a
            block. None stands for global attention.
        pretrained: what training starts from: True for timm's weights of that tag, or a path or URL of
            weights in any layout timm reads. :func:`piip.weights.pretrained.load_pretrained` loads it;
            building a branch loads nothing.
        options: of timm's constructor, such as ``drop_path_rate`` (linear over depth) or ``patch_size=16``
            for a model trained with 14: patches and positions are then resized, by timm, when weights are
            loaded.

    Raises:
        ValueError: timm has no such model or tag, or it cannot be a branch; a window size where blocks have
            their own.
    """

    model: Any  # VisionTransformer | Eva | VisionTransformerSAM

    def __init__(
        self,
        name: str,
        *,
        window_size: int | Sequence[int | None] | None = None,
        pretrained: bool | str = True,
        **options: Any,
    ) -> None:
        source = f"timm:{name}" if pretrained is True else pretrained
        super().__init__(Pretrained(source=source, family="timm") if source else None)
        self.name, self.options = name, options
        self.model = build_timm(name, options)
        self.window_sizes = per_block(window_size, self.depth)
        if isinstance(self.model, VisionTransformerSAM) and window_size is not None:
            raise ValueError(f"the blocks of {name} have windows of their own: leave window_size out")
        if any(size is not None and size < 1 for size in self.window_sizes):
            raise ValueError(f"window size {window_size} is not a number of tokens: expected >= 1, or None")
        self.num_prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        self._rotary: OrderedDict[tuple[int, int, torch.device], Tensor] = OrderedDict()

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """timm's blocks."""
        return self.model.blocks

    @property
    def patch_size(self) -> int:
        return int(self.model.patch_embed.patch_size[0])

    def channels(self, block: int) -> int:
        return int(self.model.embed_dim)

    def stride(self, block: int) -> int:
        return self.patch_size

    def decay_depth(self, parameter: str) -> int | None:
        return super().decay_depth(parameter.removeprefix("model."))

    def embed(self, image: Tensor) -> Tensor:
        return self.embed_tokens(image)[0]

    def embed_tokens(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        patch = self.patch_size
        height, width = image.shape[2] // patch, image.shape[3] // patch
        # timm's embedding refuses a remainder smaller than a patch, which its convolution would drop
        x = self.model.patch_embed(image[:, :, : height * patch, : width * patch])  # (B, h, w, C)
        if isinstance(self.model, VisionTransformerSAM):
            if self.model.pos_embed is not None:
                x = x + resample_abs_pos_embed_nhwc(self.model.pos_embed, [height, width])
            return self.model.norm_pre(self.model.pos_drop(x)), None
        tokens = self.model._pos_embed(x)
        if isinstance(self.model, Eva):
            tokens, _ = tokens  # rotary positions follow block by block
        return self._split(self.model.norm_pre(tokens), height, width)

    def rotary_positions(self, height: int, width: int) -> Tensor | None:
        """What Eva's blocks rotate queries and keys of a grid by, or None.

        ``(height * width, 2 * C / heads)``, with a block and a head before where they are learned for each.
        """
        rope = getattr(self.model, "rope", None)
        if rope is None:
            return None
        learned = any(True for _ in rope.parameters())
        random = self.training and getattr(rope, "aug_active", False)
        if learned or random or torch.compiler.is_compiling():
            return rope.get_embed(shape=[height, width])
        key = height, width, next(self.model.parameters()).device
        table = self._rotary.pop(key, None)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():  # training may use the table, too
                table = rope.get_embed(shape=[height, width])
        self._rotary[key] = table
        if len(self._rotary) > _MAX_ROTARY_TABLES:
            self._rotary.popitem(last=False)  # the least recently used
        return table

    def _split(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor | None]:
        """The map ``(B, h, w, C)`` and the prefix tokens ``(B, P, C)`` of a row of both."""
        prefix = self.num_prefix_tokens
        return tokens[:, prefix:].unflatten(1, (height, width)), tokens[:, :prefix] if prefix else None

    def _attend(
        self, index: int, x: Tensor, prefix: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Block ``index`` on maps ``(B, h, w, C)`` whose tokens all attend to one another."""
        block = self.blocks[index]
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2) if prefix is None else torch.cat([prefix, x.flatten(1, 2)], dim=1)
        options: dict[str, Tensor] = {} if mask is None else {"attn_mask": mask}
        rotary = self.rotary_positions(height, width)
        if rotary is not None:
            options["rope"] = rotary[index] if self.model.rope_mixed else rotary
        return self._split(block(tokens, **options), height, width)

    def _run_block(self, index: int, x: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.model, VisionTransformerSAM):
            return self.blocks[index](x), None
        size = self.window_sizes[index]
        if size is None:
            return self._attend(index, x, prefix, None)
        batch, height, width, _ = x.shape
        windows = window_partition(x, size)
        count = windows.shape[0] // batch
        mask = None
        if torch.compiler.is_compiling() or height % size or width % size:
            inside = window_partition(x.new_ones(1, height, width, 1), size).flatten(1) > 0  # (windows, N)
            if prefix is not None:
                inside = torch.cat([inside.new_ones(count, prefix.shape[1]), inside], dim=1)
            mask = inside.repeat(batch, 1)[:, None, None]
        copies = None if prefix is None else prefix.repeat_interleave(count, dim=0)
        windows, copies = self._attend(index, windows, copies, mask)
        if copies is not None:
            prefix = copies.unflatten(0, (batch, count)).mean(dim=1)
        return window_merge(windows, batch, height, width), prefix

    def run_stage(
        self, x: Tensor, prefix: Tensor | None, first: int, last: int
    ) -> tuple[Tensor, Tensor | None]:
        for index in range(first, last + 1):
            if self.grad_checkpointing and self.training:
                x, prefix = checkpoint(self._run_block, index, x, prefix, use_reentrant=False)
            else:
                x, prefix = self._run_block(index, x, prefix)
        return x, prefix

    def run_blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        """:meth:`run_stage` of a model without class and register tokens.

        Raises:
            ValueError: the model has some.
        """
        if self.num_prefix_tokens:
            raise ValueError(f"{self.name} has tokens beside its map: use embed_tokens and run_stage")
        return self.run_stage(x, None, first, last)[0]
