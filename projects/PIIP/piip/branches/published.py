"""The branches of the published models: sizes, drop path, and the weights that they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import Branch, Family, Pretrained
from .beit import BEiTBranch
from .convnext import ConvNeXtBranch
from .timm_vit import TimmBranch
from .uni_perceiver import UniPerceiverBranch
from .vit import ViTBranch

VIT_SIZES = {
    "T": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
    "6B": (3200, 48, 25),
}
"""Channels, blocks and heads of the vision transformers, by the paper's letters."""

CONVNEXT_SIZES = {
    "T": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "S": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "B": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "L": ((192, 384, 768, 1536), (3, 3, 27, 3)),
}
"""Channels and blocks of the four stages of ConvNeXts."""

_META = "https://dl.fbaipublicfiles.com"
_NAMES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
_DROP_PATH = {"S": 0.2, "B": 0.3, "L": 0.4}
_CLASSIFIER_DROP_PATH = {"T": 0.05, "S": 0.05, "B": 0.2, "L": 0.4}  # constant over depth
Windows = int | Sequence[int | None] | None


@dataclass(frozen=True)
class PublishedBranch:
    """A branch of a published model.

    Attributes:
        family: its class.
        options: the arguments of that, but `pretrained`.
        pretrained: the weights that it starts from; None for those that timm finds by the name.
    """

    family: type[Branch]
    options: dict[str, Any]
    pretrained: Pretrained | None = None

    def build(self) -> Branch:
        """The branch, starting at random."""
        return self.family(**self.options)


def _branch(
    branch: type[Branch], letter: str, window_sizes: Windows, source: str, family: Family, **options: Any
) -> PublishedBranch:
    embed_dim, depth, num_heads = VIT_SIZES[letter]
    sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "window_sizes": window_sizes}
    return PublishedBranch(branch, {**sizes, **options}, Pretrained(source=source, family=family))


def vit(letter: str, window_sizes: Windows, pretrain_image_size: int = 224) -> PublishedBranch:
    """A DeiT (T) or DeiT III (S, B, L) branch; windows as in `piip.branches.ViTBranch`."""
    family: Family
    if letter == "T":
        source, family = f"{_META}/deit/deit_tiny_patch16_224-a1311bcf.pth", "deit"
    else:
        source, family = f"{_META}/deit/deit_3_{_NAMES[letter]}_{pretrain_image_size}_21k.pth", "deit3"
    return _branch(
        ViTBranch,
        letter,
        window_sizes,
        source,
        family,
        drop_path_rate={"T": 0.05, "S": 0.05, "B": 0.15, "L": 0.40}[letter],  # constant over depth
        pretrain_image_size=pretrain_image_size,
    )


def _intern_class(
    letter: str, window_sizes: Windows, source: str, family: Family, drop_path_rate: float, **options: Any
) -> PublishedBranch:
    """What the published code builds as an InternViT: linear drop path, a class-token row of positions."""
    return _branch(
        ViTBranch,
        letter,
        window_sizes,
        source,
        family,
        drop_path_rate=drop_path_rate,
        drop_path_schedule="linear",
        pos_embed_has_cls=True,
        **options,
    )


def augreg(letter: str, window_sizes: Windows, activation: str = "gelu") -> PublishedBranch:
    """An AugReg branch, trained at 384 px."""
    return _intern_class(
        letter,
        window_sizes,
        f"timm:vit_{_NAMES[letter]}_patch16_384.augreg_in21k_ft_in1k",
        "augreg",
        _DROP_PATH[letter],
        pretrain_image_size=384,
        activation=activation,
    )


def dinov2(letter: str, window_sizes: Windows) -> PublishedBranch:
    """A DINOv2 branch, trained at 518 px in patches of 14; patches are 16 here."""
    name = f"dinov2_vit{letter.lower()}14"
    return _intern_class(
        letter,
        window_sizes,
        f"{_META}/dinov2/{name}/{name}_pretrain.pth",
        "dinov2",
        _DROP_PATH[letter],
        pretrain_image_size=518,
    )


def mae(letter: str, window_sizes: Windows, activation: str = "gelu") -> PublishedBranch:
    """An MAE branch."""
    return _intern_class(
        letter,
        window_sizes,
        f"{_META}/mae/pretrain/mae_pretrain_vit_{_NAMES[letter]}.pth",
        "mae",
        {"B": 0.15, "L": 0.4, "H": 0.4}[letter],
        activation=activation,
    )


def internvit_6b(activation: str = "gelu") -> PublishedBranch:
    """InternViT-6B, all blocks global."""
    return _intern_class(
        "6B",
        None,
        "https://huggingface.co/OpenGVLab/InternVL/resolve/main/intern_vit_6b_224px.pth",
        "internvit",
        0.4,
        qkv_bias=False,
        qk_norm=True,
        norm="rms_norm",
        layer_scale=0.1,
        activation=activation,
    )


def beitv2(letter: str, window_sizes: int) -> PublishedBranch:
    """A BEiTv2 branch."""
    return _branch(
        BEiTBranch,
        letter,
        window_sizes,
        "https://github.com/addf400/files/releases/download/BEiT-v2/"
        f"beitv2_{_NAMES[letter]}_patch16_224_pt1k_ft21k.pth",
        "beitv2",
        drop_path_rate={"B": 0.15, "L": 0.4}[letter],
    )


def uni_perceiver(letter: str, window_sizes: Windows) -> PublishedBranch:
    """A Uni-Perceiver branch."""
    file = {"B": "base-L12-H768-224size-torch-pretrained", "L": "large-L24-H1024-224size-pretrained"}[letter]
    return _branch(
        UniPerceiverBranch,
        letter,
        window_sizes,
        f"https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/uni-perceiver-{file}_converted.pth",
        "uni_perceiver",
        drop_path_rate={"B": 0.15, "L": 0.4}[letter],
    )


def convnext(letter: str) -> PublishedBranch:
    """A ConvNeXt branch."""
    dims, depths = CONVNEXT_SIZES[letter]
    drop_path_rate = {"T": 0.3, "S": 0.3, "B": 0.4}[letter]
    options = {"dims": list(dims), "depths": list(depths), "drop_path_rate": drop_path_rate}
    source = f"timm:convnext_{_NAMES[letter]}.fb_in1k"
    return PublishedBranch(ConvNeXtBranch, options, Pretrained(source=source, family="convnext"))


def deit_classifier(letter: str, image_size: int) -> PublishedBranch:
    """A DeiT branch of a classifier, with class token; positions are resized to its image when loaded."""
    names = {
        "T": "deit_tiny_patch16_224-a1311bcf",
        "S": "deit_small_patch16_224-cd65a155",
        "B": "deit_base_patch16_224-b5f2ef4d",
    }
    return _branch(
        ViTBranch,
        letter,
        None,
        f"{_META}/deit/{names[letter]}.pth",
        "deit",
        drop_path_rate=_CLASSIFIER_DROP_PATH[letter],
        pretrain_image_size=image_size,
        class_token=True,
    )


def augreg_classifier(letter: str, image_size: int) -> PublishedBranch:
    """An AugReg branch of a classifier, trained at 224 px, with class token."""
    return _branch(
        ViTBranch,
        letter,
        None,
        f"timm:vit_{_NAMES[letter]}_patch16_224.augreg_in21k_ft_in1k",
        "augreg",
        drop_path_rate=_CLASSIFIER_DROP_PATH[letter],
        pretrain_image_size=image_size,
        pos_embed_has_cls=True,
        layer_scale=None,
        class_token=True,
    )


def dinov3(letter: str, window_size: Windows) -> PublishedBranch:
    """A DINOv3 branch of timm, with its class and register tokens."""
    options = {
        "name": f"vit_{_NAMES[letter]}_patch16_dinov3.lvd1689m",
        "window_size": window_size,
        "drop_path_rate": _DROP_PATH[letter],
    }
    return PublishedBranch(TimmBranch, options)


def eva02(letter: str, window_size: Windows) -> PublishedBranch:
    """An EVA-02 branch of timm, with its class token; patches of 14 are 16 here."""
    trained = {
        "S": "small_patch14_336.mim_in22k_ft_in1k",
        "B": "base_patch14_448.mim_in22k_ft_in22k_in1k",
        "L": "large_patch14_448.mim_m38m_ft_in22k_in1k",
    }[letter]
    options = {
        "name": f"eva02_{trained}",
        "window_size": window_size,
        "patch_size": 16,
        "drop_path_rate": _DROP_PATH[letter],
    }
    return PublishedBranch(TimmBranch, options)
