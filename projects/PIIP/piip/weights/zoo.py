"""The published models of all tasks: their configs, weights, results and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .files.download import local_path
from .files.tensors import read_state

__all__ = [
    "BENCHMARKS",
    "MODELS",
    "TASKS",
    "PublishedModel",
    "config_for",
    "fetch",
    "find",
    "models_of",
]

Task = Literal["detection", "segmentation", "classification", "multimodal"]
TASKS: tuple[Task, ...] = ("detection", "segmentation", "classification", "multimodal")
_URL = "https://huggingface.co/OpenGVLab/PIIP/resolve/main/{}/{}.pth"
_BYTES_PER_PARAMETER = 2  # bfloat16, the smallest type in which anything was released

BENCHMARKS = ("MMB-EN", "MM-Vet", "TextVQA", "SQA-I", "GQA", "VQAv2", "SEED-I", "POPE")
"""What the scores of multimodal models were measured on; "mean" is their mean."""


@dataclass(frozen=True)
class PublishedModel:
    """A model of the papers.

    Attributes:
        task: what it was trained for: COCO, ADE20K, ImageNet-1k, or questions about images.
        name: of its released weights, or of its config where none were released.
        config: of a file in ``configs/``, without folder and ``.py``; empty for multimodal models.
        model: the paper's name.
        image_sizes: of the branches in pixels, smallest model first.
        params_m: parameters in millions: of a backbone with its deconvolution stack, of a classifier with its
            heads, of a multimodal model's tower.
        gflops: multiply-adds for one square image in 1e9, as they are: up to the merged map, of a classifier
            with its heads.
        gflops_published: the published figure, which for backbones counts a cheaper merge (see `piip.flops`).
        scores: published results in percent, by metric.
        pretraining: what its branches started from.
        released: whether weights were released.
        branches: the paper's letters of its branches, smallest model first, where these are plain DeiTs or
            AugRegs; of a multimodal model the released models of branch 1 and 2, see
            `piip.multimodal.towers`.
        window: side of all windows in tokens, where `branches` are letters.
        second_s: name of the config that fits if the fourth branch of the weights is an S, not a T.
        head_gflops: of a segmentor's deconvolution stack and main head.
        params_m_published: the published figure, of a classifier.
        num_interactions: of a multimodal model's tower.
        language_model: size of its Vicuna 1.5, "7B" or "13B".
    """

    task: Task
    name: str
    config: str
    model: str
    image_sizes: tuple[int, ...]
    params_m: float
    gflops: float
    gflops_published: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    pretraining: str = ""
    released: bool = True
    branches: tuple[str, ...] = ()
    window: int | None = None
    second_s: str | None = None
    head_gflops: float = 0
    params_m_published: float = 0
    num_interactions: int = 12
    language_model: str = ""

    @property
    def sizes(self) -> str:
        """The image sizes as the paper writes them: 1120/896/448."""
        return "/".join(map(str, self.image_sizes))

    @property
    def url(self) -> str | None:
        """Where its weights are; None where there are none, or no address of a single file."""
        single = self.task in ("detection", "classification")
        return _URL.format(self.task, self.name) if self.released and single else None


def _detector(
    name: str,
    config: str,
    model: str,
    sizes: str,
    pretraining: str,
    box: float,
    mask: float | None,
    params_m: float,
    gflops: float,
    published: float | None = None,
) -> PublishedModel:
    scores = {"box AP": box} if mask is None else {"box AP": box, "mask AP": mask}
    image_sizes = tuple(map(int, sizes.split("/")))
    costs = (params_m, gflops, published)
    return PublishedModel(
        "detection", name, config, model, image_sizes, *costs, scores=scores, pretraining=pretraining
    )


def _deit(letters: str, sizes: str, *figures: float) -> PublishedModel:
    stem = f"{letters.lower()}_{sizes.replace('/', '_')}"
    name, config = f"mask_rcnn_deit_{stem}_fpn_1x_coco_bs16", f"mask_rcnn_piip_{stem}_1x"
    pretraining = "DeiT (T), DeiT III" if "T" in letters else "DeiT III"
    return replace(
        _detector(name, config, f"PIIP-{letters}", sizes, pretraining, *figures),
        branches=tuple(letters),
        window=14 if letters == "TSB" else 28,
        second_s=config.replace("tsbl", "ssbl") if letters == "TSBL" else None,
    )


def _sbl(file: str, config: str, pretraining: str, *figures: float) -> PublishedModel:
    suffix = "_speedup" if config.endswith("_speedup") else ""
    name = f"mask_rcnn_{file}_sbl_1568_1120_672_fpn_1x_coco_bs16{suffix}"
    config = f"mask_rcnn_piip_sbl_1568_1120_672_{config}_1x"
    return _detector(name, config, "PIIP-SBL", "1568/1120/672", pretraining, *figures)


def _segmentor(
    config: str,
    model: str,
    sizes: str,
    miou: float | None,
    params_m: float,
    gflops: float,
    head: float,
    published: float | None,
    released: bool,
) -> PublishedModel:
    return PublishedModel(
        "segmentation",
        config,
        config,
        model,
        tuple(map(int, sizes.split("/"))),
        params_m,
        gflops,
        published,
        scores={} if miou is None else {"mIoU": miou},
        released=released,
        head_gflops=head,
    )


def _classifier(
    config: str, name: str, letters: str, sizes: str, pretraining: str, top1: float, *figures: float
) -> PublishedModel:
    params_m, gflops, gflops_published, params_m_published = figures
    return PublishedModel(
        "classification",
        name or config,
        config,
        f"PIIP-{letters}",
        tuple(map(int, sizes.split("/"))),
        params_m,
        gflops,
        gflops_published,
        scores={"top-1": top1},
        pretraining=pretraining,
        released=bool(name),
        branches=tuple(letters) if pretraining else (),
        params_m_published=params_m_published,
    )


def _llava(
    name: str, branches: tuple[str, str], sizes: tuple[int, int], num_interactions: int, *figures: float
) -> PublishedModel:
    published, gflops, params_m, *scores = figures
    return PublishedModel(
        "multimodal",
        name,
        "",
        _TOWERS[branches[1]],
        sizes,
        params_m,
        gflops,
        published,
        scores=dict(zip((*BENCHMARKS, "mean"), scores, strict=True)),
        branches=branches,
        num_interactions=num_interactions,
        language_model=name.rpartition("_")[2],
    )


_CLIP_L_224, _CLIP_L_336 = (f"OpenGVLab/clip-vit-large-patch14to16-{size}" for size in (224, 336))
_CLIP_B = "openai/clip-vit-base-patch16"
_CONVNEXT_B, _CONVNEXT_L = "convnext_base.clip_laiona_augreg_320", "convnext_large_mlp.clip_laion2b_ft_320"
_TOWERS = {
    _CLIP_B: "CLIP-B, CLIP-L",
    _CONVNEXT_B: "ConvNeXt-B, CLIP-L",
    _CONVNEXT_L: "ConvNeXt-L, CLIP-L",
}
_BL_224, _BL_336 = (_CLIP_L_224, _CLIP_B), (_CLIP_L_336, _CLIP_B)
_CB_224, _CB_336 = (_CLIP_L_224, _CONVNEXT_B), (_CLIP_L_336, _CONVNEXT_B)
_CL_336 = (_CLIP_L_336, _CONVNEXT_L)
_H6B = "MAE (H), InternViT-6B"

# fmt: off
MODELS: tuple[PublishedModel, ...] = (
    # box AP, mask AP, params (M), GFLOPs, GFLOPs published
    _deit("TSB", "1120/896/448", 43.6, 38.7, 175.04, 306.9, 243),
    _deit("TSB", "1568/896/448", 45.0, 40.3, 175.04, 380.8, 287),
    _deit("TSB", "1568/1120/672", 46.5, 41.3, 175.04, 571.2, 453),
    _deit("SBL", "1120/672/448", 46.5, 40.8, 547.81, 906.3, 727),
    _deit("SBL", "1344/896/448", 48.3, 42.7, 547.81, 1153.8, 1002),
    _deit("SBL", "1568/896/672", 49.3, 43.7, 547.81, 1859.2, 1464),
    _deit("TSBL", "1344/896/672/448", 47.1, 41.9, 571.07, 962.6, 755),
    _deit("TSBL", "1568/1120/672/448", 48.2, 42.9, 571.07, 1160.5, 861),
    _deit("TSBL", "1792/1568/1120/448", 49.4, 44.1, 571.07, 1997.4, 1535),
    _sbl("augreg", "augreg", "AugReg", 48.3, 42.6, 548.64, 2209.1, 1874),
    _sbl("augreg", "augreg_speedup", "AugReg; no norms, no projections", 48.1, 42.4, 521.16, 2075.6, 1741),
    _sbl("uniperceiver", "uni_perceiver", "DeiT III (S), Uni-Perceiver", 48.8, 42.9, 547.83, 2209.1),
    _sbl("mae", "mae", "DeiT III (S), MAE", 49.1, 43.0, 547.81, 2209.1),
    _deit("SBL", "1568/1120/672", 50.0, 44.4, 547.81, 2209.1, 1709),
    _sbl("dinov2", "dinov2", "DINOv2", 51.0, 44.7, 549.61, 2209.1),
    _sbl("beit", "beitv2", "DeiT III (S), BEiTv2", 51.8, 45.4, 549.02, 2209.0),
    _detector("mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms", "mask_rcnn_piip_h6b_1024_512_1x",
              "PIIP-H6B", "1024/512", _H6B, 55.8, 49.0, 7293.64, 11779.4, 11080),
    _detector("mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup",
              "mask_rcnn_piip_h6b_1024_512_speedup_1x",
              "PIIP-H6B", "1024/512", f"{_H6B}; no norms, no projections",
              55.6, 49.0, 7172.85, 11391.1, 10692),
    _detector("mask_rcnn_convnext-tsb_1024_672_448_regular-fpn", "mask_rcnn_piip_ct_cs_cb_1024_672_448_1x",
              "PIIP-CT-CS-CB", "1024/672/448", "ConvNeXt", 46.4, 41.7, 210.92, 326.4),
    _detector("dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms", "dino_piip_sbl_1792_1120_672_3x",
              "PIIP-SBL", "1792/1120/672", "DeiT III, 384 px", 57.8, None, 548.64, 2711.9),
    _detector("dino_4scale_internvit_h6b_1024_768_fpn_1x_coco_bs32_ms", "dino_piip_h6b_1024_768_1x",
              "PIIP-H6B", "1024/768", _H6B, 60.0, None, 7211.71, 21120.0),
    # mIoU, params (M), GFLOPs, those of the heads, GFLOPs published
    _segmentor("upernet_internvit_6b_512_80k", "InternViT-6B", "512",
               58.42, 6028.72, 6364.5, 2243.3, 6364, True),
    _segmentor("upernet_piip_h6b_512_192_80k", "PIIP-H6B", "512/192",
               57.81, 7173.74, 1817.0, 2243.3, 1663, True),
    _segmentor("upernet_piip_h6b_512_256_80k", "PIIP-H6B", "512/256",
               58.35, 7174.10, 2529.7, 2243.3, 2354, True),
    _segmentor("upernet_piip_h6b_512_384_80k", "PIIP-H6B", "512/384",
               59.32, 7175.12, 4608.4, 2243.3, 4374, True),
    _segmentor("upernet_piip_h6b_512_512_80k", "PIIP-H6B", "512/512",
               59.85, 7176.56, 7624.3, 2243.3, 7308, True),
    _segmentor("upernet_piip_lh6b_640_512_192_160k", "PIIP-LH6B", "640/512/192",
               None, 7653.67, 2690.3, 3505.0, None, False),
    _segmentor("upernet_piip_lh6b_640_512_256_160k", "PIIP-LH6B", "640/512/256",
               None, 7654.03, 3402.9, 3505.0, None, False),
    _segmentor("upernet_piip_lh6b_640_512_384_160k", "PIIP-LH6B", "640/512/384",
               None, 7655.06, 5481.7, 3505.0, None, False),
    _segmentor("upernet_vit_b_640_160k", "ViT-B", "640", 51.0, 92.90, 159.2, 364.2, 159, False),
    _segmentor("upernet_piip_tsb_896_448_336_160k", "PIIP-TSB", "896/448/336",
               51.6, 175.04, 143.0, 713.9, 118, False),
    _segmentor("upernet_vit_l_640_160k", "ViT-L", "640", 53.6, 315.93, 546.2, 1382.5, 545, False),
    _segmentor("upernet_piip_sbl_1120_448_336_160k", "PIIP-SBL", "1120/448/336",
               54.3, 547.81, 611.6, 4233.7, 456, False),
    # top-1, params (M), GFLOPs, GFLOPs published, params (M) published
    _classifier("piip_tsb_368_192_128_20ep", "piip_3branch_tsb_368-192-128_cls_token_deit1",
                "TSB", "368/192/128", "DeiT", 82.1, 144.03, 17.4, 17.4, 144),
    _classifier("piip_sbl_320_160_96_20ep", "piip_3branch_sbl_320-160-96_cls_token_augreg",
                "SBL", "320/160/96", "AugReg", 85.2, 488.80, 39.0, 39.0, 489),
    _classifier("piip_sbl_384_192_128_20ep", "piip_3branch_sbl_384-192-128_cls_token_augreg",
                "SBL", "384/192/128", "AugReg", 85.9, 488.93, 61.2, 61.2, 489),
    _classifier("piip_b_512_256_128_300ep", "", "B", "512/256/128", "", 82.7, 100.96, 18.4, 18.4, 100.3),
    # GFLOPs published, GFLOPs, params (M), the benchmarks and their mean
    _llava("piip-llava_clip-bl_512-256_7B", _BL_224, (512, 256), 2, 193, 193.6, 397.90,
           63.8, 32.0, 57.9, 68.8, 62.8, 79.1, 67.3, 86.5, 64.8),
    _llava("piip-llava_convnext-b_clip-l_640-224_7B", _CB_224, (640, 224), 2, 191, 191.3, 399.87,
           64.5, 31.9, 59.0, 68.3, 62.1, 79.9, 67.5, 86.5, 65.0),
    _llava("piip-llava_clip-bl_512-448_7B", _BL_336, (512, 448), 12, 422, 422.5, 442.16,
           66.2, 30.5, 59.5, 68.0, 63.7, 80.3, 69.0, 87.3, 65.6),
    _llava("piip-llava_clip-bl_512-448_13B", _BL_336, (512, 448), 12, 422, 422.5, 442.16,
           67.6, 36.1, 61.6, 71.0, 64.5, 81.2, 69.5, 87.2, 67.3),
    _llava("piip-llava_convnext-b_clip-l_1024-336_7B", _CB_336, (1024, 336), 12, 598, 590.8, 431.33,
           67.5, 31.5, 63.1, 68.1, 62.7, 81.1, 69.0, 87.9, 66.4),
    _llava("piip-llava_convnext-b_clip-l_1024-336_13B", _CB_336, (1024, 336), 24, 598, 716.9, 471.54,
           68.5, 37.7, 64.2, 71.1, 64.2, 81.8, 69.3, 87.9, 68.0),
    _llava("piip-llava_convnext-l_clip-l_1024-336_7B", _CL_336, (1024, 336), 12, 1037, 1026.5, 555.68,
           67.0, 31.4, 67.1, 68.3, 63.9, 81.5, 69.4, 88.2, 67.1),
    _llava("piip-llava_convnext-l_clip-l_1024-336_13B", _CL_336, (1024, 336), 24, 1037, 1191.1, 609.21,
           66.5, 36.8, 69.2, 69.8, 65.2, 82.5, 70.5, 87.6, 68.5),
    _llava("piip-llava-plus_convnext-l_clip-l_1024-336_7B", _CL_336, (1024, 336), 12, 1037, 1026.5, 555.68,
           74.5, 44.7, 73.0, 95.0, 62.9, 82.3, 72.1, 87.5, 74.0),
)
# fmt: on


def models_of(task: Task) -> tuple[PublishedModel, ...]:
    """The published models of a task, in the order of the project page."""
    return tuple(model for model in MODELS if model.task == task)


def find(name: str, task: Task = "detection") -> PublishedModel:
    """The published model of a name.

    Raises:
        ValueError: there is none; the error lists those of the task.
    """
    by_name = {model.name: model for model in models_of(task)}
    if name in by_name:
        return by_name[name]
    raise ValueError(f"no published model is called '{name}': expected one of {', '.join(by_name)}")


def fetch(model: PublishedModel) -> Path:
    """The local copy of a model's released weights, downloaded into iopath's cache if it is not there.

    Besides what :func:`piip.weights.files.download.local_path` checks, the file must be large enough for its
    parameters.

    Raises:
        ConnectionError: the download failed; nothing is kept of it.
        ValueError: no weights were released as one file, or the file is not the one it should be.
    """
    if model.url is None:
        raise ValueError(f"no weights were released for {model.name}: train it, or give their path")
    return local_path(model.url, min_size=int(_BYTES_PER_PARAMETER * model.params_m * 1e6))


def config_for(model: PublishedModel, weights: Path) -> str:
    """Name of the config that weights fit: with four branches, the width of the fourth decides."""
    if model.second_s is None:
        return model.config
    embedding = read_state(weights)["backbone.branch4.patch_embed.proj.weight"]
    return model.second_s if len(embedding) == 384 else model.config
