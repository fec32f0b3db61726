"""The classifiers of the paper: their configs, what they reach on ImageNet-1k, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLASSIFIERS", "PublishedClassifier", "markdown_table"]

_URL = "https://huggingface.co/OpenGVLab/PIIP/resolve/main/classification/{}.pth"


@dataclass(frozen=True)
class PublishedClassifier:
    """A classifier trained on ImageNet-1k.

    Attributes:
        config: name of its config in ``configs/ImageNet``, without ``.py``.
        model: the paper's name.
        image_sizes: of the branches, smallest model first.
        pretraining: what its branches and heads started from; empty where from nothing.
        top1: published, in percent.
        params_m: parameters, heads included, in millions.
        gflops: multiply-adds for one image, in 1e9, as they are.
        gflops_published: the published figure.
        params_m_published: the published figure, in millions.
        released: name of the file of its weights, without ``.pth``; empty where there are none.
    """

    config: str
    model: str
    image_sizes: str
    pretraining: str
    top1: float
    params_m: float
    gflops: float
    gflops_published: float
    params_m_published: float
    released: str

    @property
    def url(self) -> str | None:
        """Where its weights are."""
        return _URL.format(self.released) if self.released else None


CLASSIFIERS: tuple[PublishedClassifier, ...] = (
    PublishedClassifier(
        "piip_tsb_368_192_128_20ep",
        "PIIP-TSB",
        "368/192/128",
        "DeiT",
        82.1,
        144.03,
        17.4,
        17.4,
        144,
        "piip_3branch_tsb_368-192-128_cls_token_deit1",
    ),
    PublishedClassifier(
        "piip_sbl_320_160_96_20ep",
        "PIIP-SBL",
        "320/160/96",
        "AugReg",
        85.2,
        488.80,
        39.0,
        39.0,
        489,
        "piip_3branch_sbl_320-160-96_cls_token_augreg",
    ),
    PublishedClassifier(
        "piip_sbl_384_192_128_20ep",
        "PIIP-SBL",
        "384/192/128",
        "AugReg",
        85.9,
        488.93,
        61.2,
        61.2,
        489,
        "piip_3branch_sbl_384-192-128_cls_token_augreg",
    ),
    PublishedClassifier(
        "piip_b_512_256_128_300ep", "PIIP-B", "512/256/128", "", 82.7, 100.96, 18.4, 18.4, 100.3, ""
    ),
)


def markdown_table() -> str:
    """The table of the project page."""
    columns = (
        "model, image sizes, pretraining, params (M) published / actual, GFLOPs published / actual, "
        "top-1 published, weights"
    )
    rows = [f"| {' | '.join(columns.split(', '))} |", "|---|---|---|--:|--:|--:|---|"]
    for c in CLASSIFIERS:
        weights = f"[released]({c.url})" if c.url else "none released"
        rows.append(
            f"| [{c.model}](../../configs/ImageNet/{c.config}.py) | {c.image_sizes} | "
            f"{c.pretraining or 'none'} | {c.params_m_published:g} / {c.params_m:.1f} | "
            f"{c.gflops_published} / {c.gflops} | {c.top1} | {weights} |"
        )
    return "\n".join(rows)
