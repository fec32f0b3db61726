"""DINO: from a backbone's maps to boxes, or to losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .boxes import inverse_sigmoid, to_centre, to_corners
from .criterion import mean_over_processes, set_losses
from .decoder import Decoder
from .denoising import DenoisingQueries, make_queries
from .encoder import Encoder, cell_centres
from .layers import LayerSizes
from .matching import match
from .positions import level_masks, place_code, valid_ratios

__all__ = ["DINO", "Predictions"]

_PROPOSAL_SIZE = (
    0.05  # side of a proposal of the finest level, as a share of the image; doubled from level to level
)
_PRIOR = 0.01  # probability of a class at the start


@dataclass(frozen=True)
class Predictions:
    """DINO's predictions for a batch.

    Attributes:
        logits: ``(layers, B, P + Q, classes)``, denoising slots first.
        boxes: ``(layers, B, P + Q, 4)``, (cx, cy, w, h) as fractions of each image.
        encoder_logits, encoder_boxes: of the chosen cells, ``(B, Q, ...)``.
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor
    encoder_boxes: Tensor


def _box_branch(dim: int) -> nn.Sequential:
    """Three linear layers, the last zero: every box starts as its reference."""
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)


class DINO(nn.Module):
    """DETR with improved denoising anchor boxes (arXiv 2203.03605), as the released PIIP detectors have it.

    Args:
        neck: from the backbone's maps to levels of `dim` channels; None where they are given as such.
        num_classes, num_queries, num_denoising: number of classes, of queries (at most one a cell), and about
            how many denoising positives an image gets.
        dim, hidden_dim, num_heads, num_levels, num_points: of the transformer.
        encoder_layers, decoder_layers: how many.
        max_detections: kept of an image, best first.
    """

    stays_float32 = True  # the detector calls it outside of autocast, see piip.optimize_for_inference

    def __init__(
        self,
        neck: nn.Module | None,
        *,
        num_classes: int = 80,
        num_queries: int = 900,
        num_denoising: int = 100,
        dim: int = 256,
        hidden_dim: int = 2048,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        max_detections: int = 300,
        position_temperature: float = 20.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.num_denoising = num_classes, num_queries, num_denoising
        self.dim, self.max_detections, self.position_temperature = dim, max_detections, position_temperature
        sizes = LayerSizes(dim, hidden_dim, num_heads, num_levels, num_points)
        self.neck = neck
        self.level_embeds = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = Encoder(encoder_layers, sizes)
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.label_embedding = nn.Embedding(num_classes, dim)
        self.decoder = Decoder(decoder_layers, sizes)
        # one pair per decoder layer; the encoder's own is last
        self.class_branches = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(decoder_layers + 1))
        self.box_branches = nn.ModuleList(_box_branch(dim) for _ in range(decoder_layers + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for matrices of the transformer; the copies of a branch start equal."""
        for linear in (self.enc_output, *self.decoder.position):
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
        for module in self.decoder.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)
                nn.init.xavier_uniform_(module.out_proj.weight)
        for branch in self.class_branches:
            nn.init.constant_(cast(nn.Linear, branch).bias, -math.log((1 - _PRIOR) / _PRIOR))
        for branches in (self.class_branches, self.box_branches):
            for branch in branches[1:]:
                branch.load_state_dict(branches[0].state_dict())

    def _proposals(self, masks: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logits of the box a cell proposes ``(B, S, 4)``, infinite where it proposes none ``(B, S)``.

        A cell proposes a box around its centre, unless it is padding or a number of the box is not in
        (0.01, 0.99).
        """
        shapes = [(mask.shape[1], mask.shape[2]) for mask in masks]
        centres = cell_centres(shapes, valid_ratios(masks, dtype))
        sides = torch.cat(
            [centres.new_full((h * w,), _PROPOSAL_SIZE * 2.0**level) for level, (h, w) in enumerate(shapes)]
        )
        boxes = torch.cat([centres, sides[:, None].expand(centres.shape[0], -1, 2)], dim=-1)
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        none = padding | ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
        return (boxes / (1 - boxes)).log().masked_fill(none[..., None], math.inf), none

    def predict(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        padded_size: tuple[int, int],
        denoising: DenoisingQueries | None = None,
    ) -> Predictions:
        """Run the network.

        Args:
            features: the backbone's maps, finest first, each ``(B, C, h, w)``.
            image_sizes: (height, width) of each image without padding.
            padded_size: (height, width) of the batch.
            denoising: queries to put before the matching ones.
        """
        levels = self.levels(features)
        return self.predict_levels(levels, level_masks(image_sizes, padded_size, levels), denoising)

    def levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The levels ``(B, dim, h, w)`` that the transformer looks at, from the backbone's maps."""
        levels = list(self.neck(features)) if self.neck is not None else list(features)
        if len(levels) != len(self.level_embeds):
            raise ValueError(f"{len(levels)} levels for a DINO of {len(self.level_embeds)}")
        return levels

    def predict_levels(
        self, levels: Sequence[Tensor], masks: Sequence[Tensor], denoising: DenoisingQueries | None = None
    ) -> Predictions:
        """:meth:`predict` on levels ``(B, dim, h, w)``, ``masks`` ``(B, h, w)`` saying what is padding."""
        dtype = levels[0].dtype
        ratios = valid_ratios(masks, dtype)
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        position = torch.cat(
            [
                place_code(mask, self.dim, dtype, self.position_temperature).flatten(1, 2) + embed
                for mask, embed in zip(masks, self.level_embeds, strict=True)
            ],
            dim=1,
        )
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)  # (B, S, dim)
        memory = self.encoder(cells, position, shapes, ratios, padding)

        proposals, none = self._proposals(masks, dtype)
        candidates = self.enc_output_norm(self.enc_output(memory.masked_fill(none[..., None], 0)))
        scores = self.class_branches[-1](candidates)
        queries = min(self.num_queries, scores.shape[1])  # a tiny image has fewer cells
        best = scores.max(-1).values.topk(queries, dim=1).indices  # (B, Q)
        chosen = candidates.gather(1, best[..., None].expand(-1, -1, self.dim))
        encoder_logits = scores.gather(1, best[..., None].expand(-1, -1, self.num_classes))
        box_logits = self.box_branches[-1](chosen) + proposals.gather(1, best[..., None].expand(-1, -1, 4))

        content = self.query_embed.weight[:queries].expand(cells.shape[0], -1, -1)
        start, mask = box_logits.detach(), None
        if denoising is not None:
            labels = self.label_embedding(denoising.labels.clamp(min=0))
            labels = labels * (denoising.labels >= 0)[..., None]  # nothing in empty slots
            content = torch.cat([labels.to(content.dtype), content], dim=1)
            start = torch.cat([denoising.logits.to(start.dtype), start], dim=1)
            mask = denoising.mask(queries) if denoising.slots else None
        outputs, references = self.decoder(
            content, start, list(self.box_branches), memory, shapes, ratios, padding, mask
        )
        layers = range(len(outputs))
        logits = torch.stack([self.class_branches[i](outputs[i]) for i in layers])
        moved = torch.stack([self.box_branches[i](outputs[i]) for i in layers])
        boxes = (moved + inverse_sigmoid(references)).sigmoid()
        return Predictions(logits, boxes, encoder_logits, box_logits.sigmoid())

    def forward(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        padded_size: tuple[int, int],
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first.

        Args:
            features, image_sizes, padded_size: see :meth:`predict`.

        Returns:
            A dict an image: "boxes" ``(n, 4)``, (x1, y1, x2, y2) in pixels of the input, clipped to the
            image; "scores" ``(n,)``; "labels" ``(n,)``. No boxes are suppressed: a query may appear with
            several classes.
        """
        predictions = self.predict(features, image_sizes, padded_size)
        detections = []
        for logits, boxes, size in zip(
            predictions.logits[-1], predictions.boxes[-1], image_sizes, strict=True
        ):
            flat = logits.sigmoid().flatten()
            scores, index = flat.topk(min(self.max_detections, len(flat)))
            query = index.div(self.num_classes, rounding_mode="floor")
            corners = to_corners(boxes[query]) * _scale(size, boxes)
            limit = _scale(size, boxes)
            detections.append(
                {
                    "boxes": torch.minimum(corners.clamp(min=0), limit),
                    "scores": scores,
                    "labels": index % self.num_classes,
                }
            )
        return detections

    def losses(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        padded_size: tuple[int, int],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        draws: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch under their published names; their sum is what is minimised.

        Args:
            features, image_sizes, padded_size: see :meth:`predict`.
            boxes: true ones of each image, ``(n, 4)``, (x1, y1, x2, y2) in pixels of the input.
            labels: their classes, ``(n,)``.
            draws: the random numbers of the denoising queries, see
                :func:`piip.detection.dino.denoising.make_queries`; None draws them.

        Raises:
            FloatingPointError: a prediction is not finite.
        """
        scales = torch.stack([_scale(size, features[0]) for size in image_sizes])
        true = [to_centre(b.to(s) / s) for b, s in zip(boxes, scales, strict=True)]
        denoising = make_queries(true, labels, self.num_classes, self.num_denoising, draws)
        found = self.predict(features, image_sizes, padded_size, denoising)

        slots = denoising.slots
        logits = torch.cat([found.encoder_logits[None], found.logits[:, :, slots:]])
        box = torch.cat([found.encoder_boxes[None], found.boxes[:, :, slots:]])
        pairs = match(logits, box, true, labels, scales)
        matched = mean_over_processes(pairs.objects.shape[1], logits)
        known = mean_over_processes(denoising.groups * sum(map(len, labels)), logits)
        truth = torch.cat(true), torch.cat(list(labels)), scales
        names = [*(f"d{layer}." for layer in range(len(found.logits) - 1)), ""]
        losses = _named(["interm_", *names], set_losses(logits, box, pairs, *truth, matched))
        losses |= _named(
            [f"{name}dn_" for name in names],
            set_losses(
                found.logits[:, :, :slots], found.boxes[:, :, :slots], denoising.positives, *truth, known
            ),
        )
        for name in losses:  # the published loss of denoising classes has an axis
            if name.endswith("dn_loss_cls"):
                losses[name] = losses[name].view(1)
        # a batch without objects leaves the label embedding unused, which DDP does not allow
        losses["dn_loss_cls"] = losses["dn_loss_cls"] + 0 * self.label_embedding.weight[0, 0]
        return losses


def _named(prefixes: Sequence[str], losses: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Losses of several layers ``(layers,)``, of classes and twice of boxes, by their published names."""
    return {
        f"{prefix}loss_{kind}": value
        for kind, values in zip(("cls", "bbox", "iou"), losses, strict=True)
        for prefix, value in zip(prefixes, values.unbind(), strict=True)
    }


def _scale(size: tuple[int, int], like: Tensor) -> Tensor:
    """(w, h, w, h) of an image of (height, width)."""
    height, width = size
    return torch.tensor([width, height, width, height], dtype=like.dtype, device=like.device)
