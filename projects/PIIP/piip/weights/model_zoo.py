"""The released detectors: where they are, which config they belong to, what they reach and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .files.download import local_path
from .files.tensors import read_state

__all__ = ["RELEASED", "Released", "config_for", "fetch", "get", "markdown_table"]

_URL = "https://huggingface.co/OpenGVLab/PIIP/resolve/main/detection/{}.pth"
_BYTES_PER_PARAMETER = 2  # bfloat16, the smallest type in which anything was released


@dataclass(frozen=True)
class Released:
    """A released detector, trained on COCO.

    Attributes:
        name: of its file, without ``.pth``.
        config: name of its config in ``configs/COCO``, without ``.py``.
        model: the paper's name.
        image_sizes: of the branches, smallest model first.
        pretraining: what its branches started from.
        box_ap, mask_ap: published, COCO val2017; no mask AP where there are no masks.
        params_m: parameters of the backbone with its deconvolution stack, in millions.
        gflops: multiply-adds of the backbone to the merged map for one square image, in 1e9, as they are.
        gflops_published: the published figure, which counts a cheaper merge (see `piip.flops`); None where
            none was published.
        second_s: name of the config that fits if the fourth branch of the weights is an S, not a T.
    """

    name: str
    config: str
    model: str
    image_sizes: str
    pretraining: str
    box_ap: float
    mask_ap: float | None
    params_m: float
    gflops: float
    gflops_published: float | None = None
    second_s: str | None = None

    @property
    def url(self) -> str:
        return _URL.format(self.name)


def _deit(
    model: str, sizes: str, box_ap: float, mask_ap: float, params_m: float, gflops: float, published: float
) -> Released:
    letters, file_sizes = model.removeprefix("PIIP-").lower(), sizes.replace("/", "_")
    config = f"mask_rcnn_piip_{letters}_{file_sizes}_1x"
    return Released(
        f"mask_rcnn_deit_{letters}_{file_sizes}_fpn_1x_coco_bs16",
        config,
        model,
        sizes,
        "DeiT (T), DeiT III" if "t" in letters else "DeiT III",
        box_ap,
        mask_ap,
        params_m,
        gflops,
        published,
        second_s=config.replace("tsbl", "ssbl") if letters == "tsbl" else None,
    )


def _sbl(
    file: str,
    config: str,
    pretraining: str,
    box_ap: float,
    mask_ap: float,
    params_m: float,
    gflops: float,
    published: float | None = None,
) -> Released:
    suffix = "_speedup" if config.endswith("_speedup") else ""
    return Released(
        f"mask_rcnn_{file}_sbl_1568_1120_672_fpn_1x_coco_bs16{suffix}",
        f"mask_rcnn_piip_sbl_1568_1120_672_{config}_1x",
        "PIIP-SBL",
        "1568/1120/672",
        pretraining,
        box_ap,
        mask_ap,
        params_m,
        gflops,
        published,
    )


RELEASED: tuple[Released, ...] = (
    _deit("PIIP-TSB", "1120/896/448", 43.6, 38.7, 175.04, 306.9, 243),
    _deit("PIIP-TSB", "1568/896/448", 45.0, 40.3, 175.04, 380.8, 287),
    _deit("PIIP-TSB", "1568/1120/672", 46.5, 41.3, 175.04, 571.2, 453),
    _deit("PIIP-SBL", "1120/672/448", 46.5, 40.8, 547.81, 906.3, 727),
    _deit("PIIP-SBL", "1344/896/448", 48.3, 42.7, 547.81, 1153.8, 1002),
    _deit("PIIP-SBL", "1568/896/672", 49.3, 43.7, 547.81, 1859.2, 1464),
    _deit("PIIP-TSBL", "1344/896/672/448", 47.1, 41.9, 571.07, 962.6, 755),
    _deit("PIIP-TSBL", "1568/1120/672/448", 48.2, 42.9, 571.07, 1160.5, 861),
    _deit("PIIP-TSBL", "1792/1568/1120/448", 49.4, 44.1, 571.07, 1997.4, 1535),
    _sbl("augreg", "augreg", "AugReg", 48.3, 42.6, 548.64, 2209.1, 1874),
    _sbl("augreg", "augreg_speedup", "AugReg; no norms, no projections", 48.1, 42.4, 521.16, 2075.6, 1741),
    _sbl("uniperceiver", "uni_perceiver", "DeiT III (S), Uni-Perceiver", 48.8, 42.9, 547.83, 2209.1),
    _sbl("mae", "mae", "DeiT III (S), MAE", 49.1, 43.0, 547.81, 2209.1),
    _deit("PIIP-SBL", "1568/1120/672", 50.0, 44.4, 547.81, 2209.1, 1709),
    _sbl("dinov2", "dinov2", "DINOv2", 51.0, 44.7, 549.61, 2209.1),
    _sbl("beit", "beitv2", "DeiT III (S), BEiTv2", 51.8, 45.4, 549.02, 2209.0),
    Released(
        "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms",
        "mask_rcnn_piip_h6b_1024_512_1x",
        "PIIP-H6B",
        "1024/512",
        "MAE (H), InternViT-6B",
        55.8,
        49.0,
        7293.64,
        11779.4,
        11080,
    ),
    Released(
        "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup",
        "mask_rcnn_piip_h6b_1024_512_speedup_1x",
        "PIIP-H6B",
        "1024/512",
        "MAE (H), InternViT-6B; no norms, no projections",
        55.6,
        49.0,
        7172.85,
        11391.1,
        10692,
    ),
    Released(
        "mask_rcnn_convnext-tsb_1024_672_448_regular-fpn",
        "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x",
        "PIIP-CT-CS-CB",
        "1024/672/448",
        "ConvNeXt",
        46.4,
        41.7,
        210.92,
        326.4,
    ),
    Released(
        "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms",
        "dino_piip_sbl_1792_1120_672_3x",
        "PIIP-SBL",
        "1792/1120/672",
        "DeiT III, 384 px",
        57.8,
        None,
        548.64,
        2711.9,
    ),
    Released(
        "dino_4scale_internvit_h6b_1024_768_fpn_1x_coco_bs32_ms",
        "dino_piip_h6b_1024_768_1x",
        "PIIP-H6B",
        "1024/768",
        "MAE (H), InternViT-6B",
        60.0,
        None,
        7211.71,
        21120.0,
    ),
)


def get(name: str) -> Released:
    """The released detector of that name.

    Raises:
        KeyError: there is none; the message lists those that there are.
    """
    for released in RELEASED:
        if released.name == name:
            return released
    raise KeyError(f"no released detector '{name}': expected one of {', '.join(r.name for r in RELEASED)}")


def fetch(released: Released) -> Path:
    """The local copy of a released detector's weights, downloaded into iopath's cache where it is not there
    yet.

    Besides what :func:`piip.weights.files.download.local_path` checks, the file must be large enough for its
    parameters.

    Raises:
        ConnectionError: the download failed; nothing is kept of it.
        ValueError: the file is not the one it should be.
    """
    return local_path(released.url, min_size=int(_BYTES_PER_PARAMETER * released.params_m * 1e6))


def config_for(released: Released, weights: Path) -> str:
    """Name of the config that weights fit: with four branches, the width of the fourth decides."""
    if released.second_s is None:
        return released.config
    embedding = read_state(weights)["backbone.branch4.patch_embed.proj.weight"]
    return released.second_s if len(embedding) == 384 else released.config


def markdown_table(released: Iterable[Released] = RELEASED) -> str:
    """The table of the project page."""
    columns = (
        "model, image sizes, pretraining, params (M), GFLOPs published / actual, box AP, mask AP, weights"
    )
    header = f"| {' | '.join(columns.split(', '))} |"
    rows = [header, "|---|---|---|--:|--:|--:|--:|---|"]
    for r in released:
        published = "-" if r.gflops_published is None else f"{r.gflops_published:.0f}"
        model = r.model if r.mask_ap else f"{r.model}, DINO"
        config = f"[{model}](../../configs/COCO/{r.config}.py)"
        rows.append(
            f"| {config} | {r.image_sizes} | {r.pretraining} | {r.params_m:.1f} | {published} / "
            f"{r.gflops:.0f} | "
            f"{r.box_ap} | {r.mask_ap or '-'} | [released]({r.url}) |"
        )
    return "\n".join(rows)
