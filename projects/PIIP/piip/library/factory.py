"""`create_model` and `list_models`: the published models by name, as timm has its own."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from torch import Tensor, nn

from ..backbone import PIIP
from ..branches import ViTBranch
from ..classification.classifier import PIIPClassifier
from ..flops.recipes import VIT_SIZES
from ..interaction import InteractionConfig
from ..neck import PyramidBackbone, published_pyramid
from ..weights import model_zoo
from ..weights.download import local_path
from ..weights.official_classifier import convert_classifier
from ..weights.official_keys import convert_backbone
from ..weights.tensor_file import read_state

__all__ = ["PyramidFeatures", "create_model", "list_models"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # (x - 127.5) / 127.5 on 8-bit pixels
_CLASSIFIER_URL = "https://huggingface.co/OpenGVLab/PIIP/resolve/main/classification/{}.pth"
_DROP_PATH = {"T": 0.05, "S": 0.05, "B": 0.15, "L": 0.40}


@dataclass(frozen=True)
class _Entry:
    """A published model: its branches, smallest model first, and where its weights are."""

    letters: str
    sizes: tuple[int, ...]
    released: str | None  # a row of the model zoo, or the name of a classifier's file
    window: int | None = None
    classifier: str | None = None  # "deit", "augreg" or "scratch"


def _registry() -> dict[str, _Entry]:
    entries = {}
    for released in model_zoo.RELEASED:
        match = re.fullmatch(r"mask_rcnn_(piip_(tsbl|tsb|sbl)_([\d_]+))_1x", released.config)
        if match:
            sizes = tuple(int(size) for size in match[3].split("_"))
            window = 14 if match[2] == "tsb" else 28
            entries[match[1]] = _Entry(match[2].upper(), sizes, released.name, window)
    for name, entry in {
        "piip_tsb_368_192_128.in1k": _Entry(
            "TSB", (368, 192, 128), "piip_3branch_tsb_368-192-128_cls_token_deit1", classifier="deit"
        ),
        "piip_sbl_320_160_96.in1k": _Entry(
            "SBL", (320, 160, 96), "piip_3branch_sbl_320-160-96_cls_token_augreg", classifier="augreg"
        ),
        "piip_sbl_384_192_128.in1k": _Entry(
            "SBL", (384, 192, 128), "piip_3branch_sbl_384-192-128_cls_token_augreg", classifier="augreg"
        ),
        "piip_b_512_256_128": _Entry("", (512, 256, 128), None, classifier="scratch"),
    }.items():
        entries[name] = entry
    return entries


_MODELS = _registry()


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` takes, in alphabetical order, those matching a shell pattern."""
    return sorted(fnmatch.filter(_MODELS, pattern))


class PyramidFeatures(PyramidBackbone):
    """A released backbone that lists its maps, finest first, as timm's `features_only` models do."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """From ``(B, 3, H, W)`` to maps ``(B, C, H / s, W / s)``, s = 4, 8, 16 and 32."""
        maps = super().forward(x)
        return [maps[level] for level in self.pyramid.outputs]


def create_model(
    name: str,
    pretrained: bool | str | PathLike[str] = False,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
) -> nn.Module:
    """Build a published model.

    Args:
        name: one of :func:`list_models`: a backbone of a released detector ("piip_tsb_1120_896_448") or a
            classifier ("piip_sbl_384_192_128.in1k").
        pretrained: True for the released weights, downloaded into a cache, or a path to them.
        num_classes: of a classifier; another number than the weights' starts its heads anew. None for 1000.
        features_only: of a backbone: return a list of maps instead of a dict.

    Returns:
        In float32, in training mode. A backbone maps images ``(B, 3, H, W)`` to a dict "merged", "f1" to
        "f4" of maps at strides 16 and 4 to 32; a classifier to logits ``(B, num_classes)``. Both have
        `pretrained_cfg` (input size, mean and standard deviation of pixels in [0, 1]); a backbone
        `feature_info`, a classifier `forward_features`, `forward_head`, `get_classifier`, `reset_classifier`.

    Raises:
        ValueError: the name is unknown, an option does not apply to the model, or the weights do not fit.
        ConnectionError: the weights cannot be downloaded.
        FileNotFoundError: there is no file of weights at the path.
    """
    if name not in _MODELS:
        near = list_models(f"*{name.removeprefix('piip_').split('_')[0]}*") or list_models()
        raise ValueError(f"unknown model '{name}': expected one of {', '.join(near)}")
    entry = _MODELS[name]
    if entry.classifier:
        if features_only:
            raise ValueError(f"{name} is a classifier: features_only is for backbones such as {_backbone()}")
        return _classifier(name, entry, pretrained, num_classes)
    if num_classes is not None:
        raise ValueError(f"{name} is a backbone without classifier: take one of {list_models('*.in1k')}")
    backbone = _pyramid(entry, PyramidFeatures if features_only else PyramidBackbone)
    if pretrained:
        assert entry.released is not None
        path = (
            model_zoo.fetch(model_zoo.get(entry.released))
            if pretrained is True
            else local_path(fspath(pretrained))
        )
        state = read_state(path)
        own = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
        _load(backbone, convert_backbone(own), path)
    return backbone


def _backbone() -> str:
    return next(name for name, entry in _MODELS.items() if not entry.classifier)


def _load(model: nn.Module, state: dict[str, Tensor], origin: object) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{origin} holds another model: {' '.join(str(error).split())}") from error


def _pretrained_cfg(entry: _Entry, url: str | None) -> dict[str, Any]:
    """What timm's `resolve_data_config` reads."""
    side = max(entry.sizes)
    mean, std = _IMAGENET if entry.classifier else _HALF
    return {
        "url": url,
        "input_size": (3, side, side),
        "interpolation": "bicubic" if entry.classifier else "bilinear",
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
    }


def _pyramid(entry: _Entry, kind: type[PyramidBackbone]) -> PyramidBackbone:
    branches = []
    for letter in reversed(entry.letters):
        dim, depth, heads = VIT_SIZES[letter]
        branches.append(
            ViTBranch(
                embed_dim=dim,
                depth=depth,
                num_heads=heads,
                window_sizes=entry.window,
                drop_path_rate=_DROP_PATH[letter],
            )
        )
    piip = PIIP(branches, entry.sizes[::-1])
    model = kind(piip, published_pyramid(piip))
    channels, strides = model.level_channels(), model.level_strides()
    assert entry.released is not None
    vars(model)["feature_info"] = [
        {"num_chs": channels[level], "reduction": strides[level], "module": f"pyramid.{level}"}
        for level in model.pyramid.outputs
    ]
    vars(model)["pretrained_cfg"] = _pretrained_cfg(entry, model_zoo.get(entry.released).url)
    return model


def _classifier(
    name: str, entry: _Entry, pretrained: bool | str | PathLike[str], num_classes: int | None
) -> PIIPClassifier:
    if entry.classifier == "scratch":
        piip = _piip_b(entry.sizes)
    else:
        is_augreg = entry.classifier == "augreg"
        drop_path = {"T": 0.05, "S": 0.05, "B": 0.2, "L": 0.4}
        piip = PIIP(
            [
                ViTBranch(
                    embed_dim=VIT_SIZES[letter][0],
                    depth=VIT_SIZES[letter][1],
                    num_heads=VIT_SIZES[letter][2],
                    pretrain_image_size=size,
                    drop_path_rate=drop_path[letter],
                    layer_scale=None if is_augreg else 1.0,
                    pos_embed_has_cls=is_augreg,
                    class_token=True,
                )
                for letter, size in zip(reversed(entry.letters), reversed(entry.sizes), strict=True)
            ],
            entry.sizes[::-1],
            merge=None,
        )
    model = PIIPClassifier(piip)
    url = _CLASSIFIER_URL.format(entry.released) if entry.released else None
    vars(model)["pretrained_cfg"] = _pretrained_cfg(entry, url)
    if pretrained:
        if pretrained is True and url is None:
            raise ValueError(f"no weights were released for {name}: train it, or give their path")
        path = local_path(url if pretrained is True and url else fspath(pretrained))  # type: ignore[arg-type]
        _load(model, convert_classifier(read_state(path), path), path)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model


def _piip_b(sizes: tuple[int, ...]) -> PIIP:
    """PIIP-B of Appendix C: trained from scratch, one head on the merged map, branch 3 in windows of 16."""
    dims, heads = (640, 320, 160), (8, 4, 2)
    return PIIP(
        [
            ViTBranch(
                embed_dim=dim,
                depth=12,
                num_heads=head,
                pretrain_image_size=size,
                window_sizes=16 if size == max(sizes) else None,
            )
            for dim, head, size in zip(dims, heads, reversed(sizes), strict=True)
        ],
        sizes[::-1],
        interaction=InteractionConfig(),
        merge="linear",
    )
