"""Released DINO detectors: mmdetection's names, and those of `DINODetector` and of its head alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .backbone import backbone_rules
from .released import ReleasedFormat
from .rules import Rule, below

__all__ = [
    "DINO",
    "convert_dino",
    "convert_dino_detector",
    "to_official_dino",
    "to_official_dino_detector",
]

_TRANSFORMER = "bbox_head.transformer."
_HEAD: list[Rule] = [
    ("neck.convs.{i}.conv.", "neck.convs.{i}.conv."),
    ("neck.convs.{i}.gn.", "neck.convs.{i}.norm."),
    ("neck.extra_convs.{i}.conv.", "neck.extra_convs.{i}.conv."),
    ("neck.extra_convs.{i}.gn.", "neck.extra_convs.{i}.norm."),
    *below(
        _TRANSFORMER,
        "",
        [
            ("level_embeds", "level_embeds"),
            ("enc_output.", "enc_output."),
            ("enc_output_norm.", "enc_output_norm."),
            ("query_embed.", "query_embed."),
            ("encoder.layers.{i}.attentions.0.", "encoder.layers.{i}.attention."),
            ("decoder.layers.{i}.attentions.0.attn.", "decoder.layers.{i}.self_attention."),
            ("decoder.layers.{i}.attentions.1.", "decoder.layers.{i}.cross_attention."),
            *(
                (f"{coder}.layers.{{i}}.{released}", f"{coder}.layers.{{i}}.{ours}")
                for coder in ("encoder", "decoder")
                for released, ours in (
                    ("ffns.0.layers.0.0.", "ffn.0."),
                    ("ffns.0.layers.1.", "ffn.2."),
                    ("norms.{n}.", "norms.{n}."),
                )
            ),
            ("decoder.ref_point_head.{i}.", "decoder.position.{i}."),
            ("decoder.norm.", "decoder.norm."),
        ],
    ),
    ("bbox_head.cls_branches.{i}.", "class_branches.{i}."),
    ("bbox_head.reg_branches.{i}.{n}.", "box_branches.{i}.{n}."),
    ("bbox_head.label_embedding.", "label_embedding."),
]


def _rules(state: Mapping[str, Tensor]) -> list[Rule]:
    return [*below("", "head.", _HEAD), *backbone_rules(state, "backbone.", "backbone.")]


_HEAD_ALONE = ReleasedFormat("DINO head", lambda _: _HEAD)
convert_dino, to_official_dino = _HEAD_ALONE.convert, _HEAD_ALONE.to_official
DINO = ReleasedFormat("DINO detector", _rules, (_TRANSFORMER,), ("head.encoder.",))
convert_dino_detector, to_official_dino_detector = DINO.convert, DINO.to_official
