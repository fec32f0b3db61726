"""The segmentors of the paper: their configs, what they reach on ADE20K, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SEGMENTORS", "PublishedSegmentor", "markdown_table"]


@dataclass(frozen=True)
class PublishedSegmentor:
    """An UPerNet on ADE20K.

    Attributes:
        config: name of its config in ``configs/ADE20K``, without ``.py``.
        model: the paper's name.
        image_sizes: of the branches, smallest model first.
        miou: published, single scale; None where none is known here.
        params_m: parameters of the backbone with its deconvolution stack, in millions.
        gflops: multiply-adds of the backbone to the merged map for one crop, in 1e9, as they are.
        head_gflops: of the deconvolution stack and the main head.
        gflops_published: the published figure, of the backbone; None where none is known here.
        released: whether there are weights.
    """

    config: str
    model: str
    image_sizes: str
    miou: float | None
    params_m: float
    gflops: float
    head_gflops: float
    gflops_published: float | None
    released: bool


SEGMENTORS: tuple[PublishedSegmentor, ...] = (
    PublishedSegmentor(
        "upernet_internvit_6b_512_80k", "InternViT-6B", "512", 58.42, 6028.72, 6364.5, 2243.3, 6364, True
    ),
    PublishedSegmentor(
        "upernet_piip_h6b_512_192_80k", "PIIP-H6B", "512/192", 57.81, 7173.74, 1817.0, 2243.3, 1663, True
    ),
    PublishedSegmentor(
        "upernet_piip_h6b_512_256_80k", "PIIP-H6B", "512/256", 58.35, 7174.10, 2529.7, 2243.3, 2354, True
    ),
    PublishedSegmentor(
        "upernet_piip_h6b_512_384_80k", "PIIP-H6B", "512/384", 59.32, 7175.12, 4608.4, 2243.3, 4374, True
    ),
    PublishedSegmentor(
        "upernet_piip_h6b_512_512_80k", "PIIP-H6B", "512/512", 59.85, 7176.56, 7624.3, 2243.3, 7308, True
    ),
    PublishedSegmentor(
        "upernet_piip_lh6b_640_512_192_160k",
        "PIIP-LH6B",
        "640/512/192",
        None,
        7653.67,
        2690.3,
        3505.0,
        None,
        False,
    ),
    PublishedSegmentor(
        "upernet_piip_lh6b_640_512_256_160k",
        "PIIP-LH6B",
        "640/512/256",
        None,
        7654.03,
        3402.9,
        3505.0,
        None,
        False,
    ),
    PublishedSegmentor(
        "upernet_piip_lh6b_640_512_384_160k",
        "PIIP-LH6B",
        "640/512/384",
        None,
        7655.06,
        5481.7,
        3505.0,
        None,
        False,
    ),
    PublishedSegmentor("upernet_vit_b_640_160k", "ViT-B", "640", 51.0, 92.90, 159.2, 364.2, 159, False),
    PublishedSegmentor(
        "upernet_piip_tsb_896_448_336_160k", "PIIP-TSB", "896/448/336", 51.6, 175.04, 143.0, 713.9, 118, False
    ),
    PublishedSegmentor("upernet_vit_l_640_160k", "ViT-L", "640", 53.6, 315.93, 546.2, 1382.5, 545, False),
    PublishedSegmentor(
        "upernet_piip_sbl_1120_448_336_160k",
        "PIIP-SBL",
        "1120/448/336",
        54.3,
        547.81,
        611.6,
        4233.7,
        456,
        False,
    ),
)


def markdown_table() -> str:
    """The table of the project page."""
    columns = (
        "model, image sizes, backbone params (M), backbone GFLOPs published / actual, neck and head GFLOPs, "
        "mIoU published, weights"
    )
    rows = [f"| {' | '.join(columns.split(', '))} |", "|---|---|--:|--:|--:|--:|---|"]
    for s in SEGMENTORS:
        published = "-" if s.gflops_published is None else f"{s.gflops_published:.0f}"
        rows.append(
            f"| [{s.model}](../../configs/ADE20K/{s.config}.py) | {s.image_sizes} | {s.params_m:.1f} | "
            f"{published} / {s.gflops:.0f} | {s.head_gflops:.0f} | {s.miou or '-'} | "
            f"{'released' if s.released else 'none released'} |"
        )
    return "\n".join(rows)
