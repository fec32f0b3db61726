"""Denoising queries: noisy copies of true boxes, which the decoder learns to correct (DINO, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import inverse_sigmoid, to_centre, to_corners
from .criterion import Pairs

__all__ = ["DRAWS", "DenoisingQueries", "make_queries"]

DRAWS = ("label_uniform", "label_new", "box_sign", "box_uniform")
"""What is drawn at random, in this order."""


@dataclass(frozen=True)
class DenoisingQueries:
    """Slots before the matching queries.

    Attributes:
        labels: noisy label of each slot, ``(B, P)``; -1 where a slot is empty.
        logits: of its noisy box, ``(B, P, 4)``.
        groups: how many groups of positives and negatives there are.
        slots: P.
        positives: the slots of positives, group after group, and the object of each.
    """

    labels: Tensor
    logits: Tensor
    groups: int
    slots: int
    positives: Pairs

    def mask(self, num_queries: int) -> Tensor:
        """Which of slots and queries must not see which, ``(P + Q, P + Q)``, True for must not.

        Queries see no slot, a group no other group; all see the queries.
        """
        total = self.slots + num_queries
        size = self.slots // self.groups
        group = torch.arange(total, device=self.labels.device).div(max(size, 1), rounding_mode="floor")
        is_slot = torch.arange(total, device=self.labels.device) < self.slots
        same = (group[:, None] == group) & is_slot[:, None]
        return is_slot & ~same


def make_queries(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    num_queries: int,
    draws: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    *,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DenoisingQueries:
    """Noisy copies of the objects of a batch.

    Args:
        boxes: of each image, ``(n, 4)`` as (cx, cy, w, h) fractions.
        labels: of each image, ``(n,)``.
        num_classes: labels are drawn from these.
        num_queries: about how many positives an image gets: the number of groups is this over the largest
            number of objects, at least 1.
        draws: the random numbers, by the names of `DRAWS` or in their order; None draws them.
        label_noise: a label is drawn anew with half this probability.
        box_noise: corners of positives move by up to this share of half the box, of negatives by one more.
    """
    device, dtype = boxes[0].device, boxes[0].dtype
    counts = [len(b) for b in boxes]
    largest, total = max(counts), sum(counts)
    groups = max(1, num_queries // largest) if largest else 1
    slots = 2 * groups * largest
    copies = 2 * groups
    known_labels = torch.cat(list(labels)).repeat(copies)
    known_boxes = torch.cat(list(boxes)).repeat(copies, 1)
    drawn = _draw(draws, len(known_labels), num_classes, label_noise, known_boxes)

    changed = drawn["label_uniform"] < label_noise * 0.5
    noisy_labels = torch.where(changed, drawn["label_new"], known_labels)
    negative = torch.arange(copies, device=device).remainder(2).repeat_interleave(total)  # by turns
    part = (drawn["box_uniform"].to(dtype) + negative[:, None]) * (drawn["box_sign"].to(dtype) * 2 - 1)
    half = known_boxes[:, 2:] / 2
    corners = to_corners(known_boxes) + part * torch.cat([half, half], dim=1) * box_noise
    noisy_logits = inverse_sigmoid(to_centre(corners.clamp(0, 1)))

    # of each object its image, and which of that image's it is
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    within = torch.cat([torch.arange(count) for count in counts])
    image, within = torch.stack([image, within]).to(device)
    slot = torch.arange(copies, device=device)[:, None] * largest + within  # (copies, total)
    slot_labels = torch.full((len(boxes), slots), -1, dtype=torch.int64, device=device)
    slot_labels[image, slot] = noisy_labels.view(copies, total)
    slot_logits = torch.zeros(len(boxes), slots, 4, dtype=dtype, device=device)
    slot_logits[image, slot] = noisy_logits.view(copies, total, 4)
    positives = slot[::2]  # (groups, total)
    objects = torch.arange(total, device=device)
    pairs = Pairs(*(index.expand_as(positives).reshape(1, -1) for index in (image, positives, objects)))
    return DenoisingQueries(slot_labels, slot_logits, groups, slots, pairs)


def _draw(
    draws: Mapping[str, Tensor] | Sequence[Tensor] | None,
    number: int,
    num_classes: int,
    label_noise: float,
    like: Tensor,
) -> Mapping[str, Tensor]:
    """The random numbers, with a new label for every label: those that change are chosen on the device.

    Of those given there are as many new labels as change.
    """
    if draws is None:
        return {
            "label_uniform": torch.rand(number, device=like.device),
            "label_new": torch.randint(num_classes, (number,), device=like.device),
            "box_sign": torch.randint(2, (number, 4), device=like.device),
            "box_uniform": torch.rand(number, 4, device=like.device),
        }
    named = draws if isinstance(draws, Mapping) else dict(zip(DRAWS, draws, strict=True))
    drawn = {name: named[name].to(like.device) for name in DRAWS}
    new = torch.zeros(number, dtype=torch.int64, device=like.device)
    new[drawn["label_uniform"] < label_noise * 0.5] = drawn["label_new"].to(new)
    return {**drawn, "label_new": new}
