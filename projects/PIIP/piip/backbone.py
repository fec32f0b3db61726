"""The parameter-inverted image pyramid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .branches import Branch
from .interaction import Interaction, InteractionConfig, Link, resolve_links
from .merge import Merge, MergeKind
from .numerics import at_least_float32

__all__ = ["PIIP", "split_stages"]

Stage = tuple[int, int]
"""First and last block of a stage, inclusive, counted from 0."""


def split_stages(depth: int, num_stages: int) -> list[Stage]:
    """Cut ``depth`` blocks into consecutive stages, as evenly as can be, the longer ones last.

    This is the published cut of every model, MAE-H's 32 blocks in 12 stages (4 of 2 blocks, then 8 of 3)
    included.

    Raises:
        ValueError: when there are fewer blocks than stages.
    """
    if not 1 <= num_stages <= depth:
        raise ValueError(f"cannot cut {depth} blocks into {num_stages} stages: expected 1 to {depth}")
    short, longer = divmod(depth, num_stages)
    stages = []
    first = 0
    for index in range(num_stages):
        last = first + short - (index < num_stages - longer)
        stages.append((first, last))
        first = last + 1
    return stages


def _check_stages(stages: Sequence[Sequence[Stage]], branches: Sequence[Branch]) -> list[list[Stage]]:
    if len(stages) != len(branches):
        raise ValueError(
            f"stages are given for {len(stages)} branches, there are {len(branches)}: give one list each"
        )
    counts = [len(ranges) for ranges in stages]
    if len(set(counts)) != 1:
        raise ValueError(
            f"branches have unequal numbers of stages, {counts}: they interact after each, so give as many"
        )
    checked = []
    for number, (ranges, branch) in enumerate(zip(stages, branches, strict=True), start=1):
        for first, last in ranges:
            if not 0 <= first <= last < branch.depth:
                raise ValueError(
                    f"stage [{first}, {last}] of branch {number} is not a range of its "
                    f"{branch.depth} blocks: expected 0 <= first <= last <= {branch.depth - 1}"
                )
        checked.append([(int(first), int(last)) for first, last in ranges])
    return checked


class PIIP(nn.Module):
    """Several models look at one image at several sizes and exchange features after every stage (Fig. 3).

    Branches are listed from the largest model (smallest image) to the smallest model (largest image): the
    paper's Branch 1, 2, 3. Nothing enforces that order of sizes: equal sizes (no pyramid) and larger models
    on larger images (parameter-direct) work too.

    Args:
        branches: the models.
        image_sizes: nominal image side of each branch in pixels. Only the ratios to the input's matter.
        input_size: nominal side of the input in pixels, None for the largest of the image sizes; branches
            whose image is larger see it enlarged.
        num_interactions: number of stages, each followed by an interaction; 0 for none. Branches are cut into
            as many stages by :func:`split_stages`. Not used where ``stages`` is given.
        stages: first and last block of each stage of each branch, for another cut. Blocks in no stage are not
            run.
        links: which branches look at which, see :func:`piip.interaction.resolve_links`.
        interaction: what an interaction is made of; None for what the released detectors have.
        merge: how the branches' last maps become one, see :class:`piip.merge.Merge`; None leaves them apart
            (:meth:`forward_branches`).
        merge_branches: numbers, from 1, of the branches that are merged; None for all.
        tap_stages: stages (from 0) whose maps are merged too, each by a merge of its own, for a pyramid of
            features of different depth (:meth:`forward_pyramid`).
        grad_checkpointing: recompute the branches' blocks in the backward pass instead of keeping their
            activations.

    Raises:
        ValueError: naming the branch and what is wrong with it.
    """

    branches: Sequence[Branch]
    interactions: Sequence[Interaction]
    taps: Mapping[str, Merge]

    def __init__(
        self,
        branches: Sequence[Branch],
        image_sizes: Sequence[int],
        *,
        input_size: int | None = None,
        num_interactions: int = 12,
        stages: Sequence[Sequence[Stage]] | None = None,
        links: Literal["adjacent", "all"] | Sequence[Link] = "adjacent",
        interaction: InteractionConfig | None = None,
        merge: MergeKind | None = "conv",
        merge_branches: Sequence[int] | None = None,
        tap_stages: Sequence[int] = (),
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not branches or len(image_sizes) != len(branches):
            raise ValueError(
                f"{len(image_sizes)} image sizes for {len(branches)} branches: give one size per branch"
            )
        for number, (branch, size) in enumerate(zip(branches, image_sizes, strict=True), start=1):
            if size < branch.patch_size:
                raise ValueError(
                    f"image size {size} of branch {number} is below its patch of {branch.patch_size} px"
                )
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]
        self.image_sizes = [int(size) for size in image_sizes]
        self.input_size = input_size or max(self.image_sizes)

        if stages is None:
            stages = [split_stages(branch.depth, max(num_interactions, 1)) for branch in branches]
        self.stages = _check_stages(stages, branches)
        resolved_links = resolve_links(links, len(branches)) if num_interactions else []
        self.interactions = nn.ModuleList(  # type: ignore[assignment]
            Interaction(self.stage_channels(stage), resolved_links, interaction or InteractionConfig())
            for stage in range(self.num_stages)
            if resolved_links
        )

        final = self.num_stages - 1
        if merge is None and tap_stages:
            raise ValueError("tapped stages are merged: give a merge, or no tap_stages")
        if not all(0 <= tap < final for tap in tap_stages):
            raise ValueError(f"tap stages {list(tap_stages)} must lie before the last stage, {final}")
        self.taps = nn.ModuleDict(  # type: ignore[assignment]
            {
                str(tap): Merge(self.stage_channels(tap), merge, merge_branches)
                for tap in sorted(set(tap_stages))
                if merge is not None
            }
        )
        self.merge = None if merge is None else Merge(self.stage_channels(final), merge, merge_branches)
        self.set_grad_checkpointing(grad_checkpointing)

    @property
    def num_stages(self) -> int:
        """Number of stages; an interaction, where there are any, follows each."""
        return len(self.stages[0])

    @property
    def reference(self) -> int:
        """Index of the branch with the largest image (the last of several), on whose grid maps are merged."""
        largest = max(self.image_sizes)
        return max(index for index, size in enumerate(self.image_sizes) if size == largest)

    @property
    def out_channels(self) -> int:
        """Channels of the merged map."""
        if self.merge is None:
            raise ValueError("this PIIP merges nothing (merge=None): see stage_channels")
        return self.merge.out_dim

    def pyramid_channels(self) -> list[int]:
        """Channels of the maps that the four levels of a published pyramid start from.

        With three tapped stages they are theirs and the last's, otherwise four times the last's.

        Raises:
            ValueError: for another number of tapped stages.
        """
        if not self.taps:
            return [self.out_channels] * 4
        if len(self.taps) != 3:
            raise ValueError(
                f"the pyramid needs the maps of 3 tapped stages, or of none, got {len(self.taps)}"
            )
        return [*(tap.out_dim for tap in self.taps.values()), self.out_channels]

    def pyramid_strides(self) -> list[int]:
        """Pixels of the largest image per token, along one side, of the maps of :meth:`pyramid_channels`."""
        if not self.taps:
            return [self.stride] * 4
        return [*(self.stage_strides(int(tap))[self.reference] for tap in self.taps), self.stride]

    @property
    def stride(self) -> int:
        """Pixels of the largest image per token of the merged map, along one side."""
        return self.stage_strides(self.num_stages - 1)[self.reference]

    @property
    def size_divisibility(self) -> int:
        """Smallest side of which every multiple gives every branch whole patches, without remainder."""
        exact = 1
        for branch, size in zip(self.branches, self.image_sizes, strict=True):
            patch = branch.stride(branch.depth - 1) * self.input_size
            exact = math.lcm(exact, patch // math.gcd(patch, size))
        return exact

    def stage_channels(self, stage: int) -> list[int]:
        """Channels of each branch's map after ``stage``."""
        return [branch.channels(self.stages[j][stage][1]) for j, branch in enumerate(self.branches)]

    def stage_strides(self, stage: int) -> list[int]:
        """Pixels of its own image per token of each branch's map after ``stage``."""
        return [branch.stride(self.stages[j][stage][1]) for j, branch in enumerate(self.branches)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the branches' blocks in the backward pass instead of keeping their activations."""
        for branch in self.branches:
            branch.set_grad_checkpointing(enable)

    def image_pyramid(self, x: Tensor) -> list[Tensor]:
        """Resize the input ``(B, 3, H, W)`` to each branch's share of it.

        ``scale_factor`` rather than ``size``, as published: the image has ``floor(H * scale)`` rows but is
        sampled at steps of exactly ``1 / scale``. No antialiasing.
        """
        images = []
        for size in self.image_sizes:
            if size == self.input_size:
                images.append(x)
                continue
            resized = F.interpolate(
                at_least_float32(x), scale_factor=size / self.input_size, mode="bilinear", align_corners=False
            )
            images.append(resized.to(x.dtype))
        return images

    def embed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The token map ``(B, h, w, C)`` each branch makes of its image."""
        return self.embed_tokens(images)[0]

    def embed_tokens(self, images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """The maps of :meth:`embed`, and each branch's class and register tokens ``(B, P, C)``, if any."""
        for number, (branch, image) in enumerate(zip(self.branches, images, strict=True), start=1):
            height, width = image.shape[2:]
            if height < branch.patch_size or width < branch.patch_size:
                raise ValueError(
                    f"branch {number} would see an image of {height}x{width} px, smaller than its patch of "
                    f"{branch.patch_size} px: give a larger image or a larger share to that branch"
                )
        starts = [branch.embed_tokens(image) for branch, image in zip(self.branches, images, strict=True)]
        return [x for x, _ in starts], [prefix for _, prefix in starts]

    def run_stage(
        self, stage: int, maps: Sequence[Tensor], tokens: Sequence[Tensor | None] | None = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Run the blocks of a stage in every branch, then its interaction.

        Args:
            stage: its number, from 0.
            maps: of the branches, each ``(B, h, w, C)``.
            tokens: their class and register tokens, each ``(B, P, C)``, that take no part in the interaction;
                None for no branch with any.

        Returns:
            The maps after the interaction, and the class and register tokens.
        """
        left = [
            branch.run_stage(x, token, *self.stages[j][stage])
            for j, (branch, x, token) in enumerate(
                zip(self.branches, maps, tokens or [None] * len(maps), strict=True)
            )
        ]
        after = [x for x, _ in left]
        return self.interactions[stage](after) if self.interactions else after, [token for _, token in left]

    def forward_stages(self, x: Tensor) -> Iterator[list[Tensor]]:
        """The branches' maps after each stage, each ``(B, h, w, C)``, from ``(B, 3, H, W)``."""
        maps, tokens = self.embed_tokens(self.image_pyramid(x))
        for stage in range(self.num_stages):
            maps, tokens = self.run_stage(stage, maps, tokens)
            yield maps

    def forward_branches(self, x: Tensor) -> list[Tensor]:
        """The branches' maps after the last stage, each ``(B, h, w, C)``, not merged."""
        *_, maps = self.forward_stages(x)
        return maps

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """The merged map of each tapped stage, then that of the last, each ``(B, C, h, w)``."""
        if self.merge is None:
            raise ValueError("this PIIP merges nothing (merge=None): use forward_branches")
        merged = []
        for stage, maps in enumerate(self.forward_stages(x)):
            if str(stage) in self.taps:
                merged.append(self.taps[str(stage)](maps, self.reference))
        return [*merged, self.merge(maps, self.reference)]

    def forward(self, x: Tensor) -> Tensor:
        """From normalised images to the merged map.

        Args:
            x: ``(B, 3, H, W)``. Padding, if any, is ordinary input: nothing is masked.

        Returns:
            ``(B, out_channels, h, w)``; where H is a multiple of ``size_divisibility``, h is the number of
            rows of the largest image, ``H * max(image_sizes) / input_size``, over ``stride``.

        Raises:
            ValueError: when a branch's image would be smaller than one patch.
        """
        return self.forward_pyramid(x)[-1]
