"""The published models with the interfaces of timm and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from timm.models import FeatureInfo
from torch import Tensor

from ..backbone import PIIP
from ..classification.classifier import PIIPClassifier
from ..neck import PyramidBackbone, published_pyramid
from ..weights.differences import check_values
from ..weights.files.tensors import read_state
from . import registry

__all__ = ["BranchFeatures", "PublishedBackbone", "PublishedClassifier", "PyramidFeatures"]


class _OnHub(  # type: ignore[call-arg]  # huggingface_hub is followed by no type checker here
    PyTorchModelHubMixin,
    library_name="piip",
    paper_url="https://arxiv.org/abs/2406.04330",
    license="apache-2.0",
    tags=["parameter-inverted-image-pyramid"],
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub`.

    ``config.json`` holds the constructor's arguments, ``model.safetensors`` the weights; `from_pretrained`
    takes a folder or a repository of Hugging Face's hub and returns the model in evaluation mode.
    """

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> Any:
        # the mixin itself would ignore missing tensors
        return super()._from_pretrained(strict=strict, **options)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        # the mixin itself takes values that are not finite
        check_values(read_state(model_file), model_file, model.state_dict())
        return super()._load_as_safetensor(model, model_file, map_location, strict)


def _entry(name: str, *, classifier: bool) -> registry.Entry:
    entry = registry.find(name)
    if bool(entry.classifier) is not classifier:
        kind = "a classifier" if entry.classifier else "a backbone without classifier"
        raise ValueError(f"{name} is {kind}: create_model builds it")
    return entry


class PublishedBackbone(_OnHub, PyramidBackbone):
    """The backbone of a released detector: images ``(B, 3, H, W)`` -> "merged", "f1", "f2", "f3", "f4".

    Args:
        name: one of :func:`piip.list_models`.

    Raises:
        ValueError: the name is unknown, or a classifier's.
    """

    def __init__(self, name: str) -> None:
        entry = _entry(name, classifier=False)
        piip = entry.build()
        super().__init__(piip, published_pyramid(piip))
        self.pretrained_cfg = entry.pretrained_cfg(name)
        self.num_classes, self.num_features = 0, piip.out_channels
        channels, strides = self.level_channels(), self.level_strides()
        self.feature_info: Any = [
            {"num_chs": channels[level], "reduction": strides[level], "module": f"pyramid.{level}"}
            for level in self.pyramid.outputs
        ]


class PyramidFeatures(PublishedBackbone):
    """A released backbone that lists its maps, finest first, as timm's `features_only` models do.

    Args:
        name: as in :class:`PublishedBackbone`.
        out_indices: which of the four maps.
    """

    def __init__(self, name: str, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__(name)
        self.feature_info = FeatureInfo(self.feature_info, tuple(out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """From ``(B, 3, H, W)`` to maps ``(B, C, H / s, W / s)``, s out of 4, 8, 16 and 32."""
        maps = super().forward(x)
        return [maps[module.removeprefix("pyramid.")] for module in self.feature_info.module_name()]


def _branch_maps(piip: PIIP) -> list[dict[str, Any]]:
    """`feature_info` of the maps that a classifier's heads read, finest first."""
    last = piip.num_stages - 1
    if piip.merge is not None:
        return [{"num_chs": piip.out_channels, "reduction": piip.stride, "module": "piip.merge"}]
    maps = zip(piip.stage_channels(last), piip.stage_strides(last), piip.image_sizes, strict=True)
    return [
        {"num_chs": dim, "reduction": stride * piip.input_size // size, "module": f"piip.branches.{j}"}
        for j, (dim, stride, size) in reversed(list(enumerate(maps)))
    ]


class PublishedClassifier(_OnHub, PIIPClassifier):
    """A published classifier: images ``(B, 3, H, W)`` -> logits ``(B, num_classes)``.

    Args:
        name: one of :func:`piip.list_models`.
        num_classes: number of logits; 0 for features, see :class:`PIIPClassifier`.

    Raises:
        ValueError: the name is unknown, or a backbone's.
    """

    _hub_mixin_config: dict[str, Any]

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        entry = _entry(name, classifier=True)
        super().__init__(entry.build(), num_classes)
        self.pretrained_cfg = entry.pretrained_cfg(name)
        self.feature_info = _branch_maps(self.piip)

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        self._hub_mixin_config["num_classes"] = num_classes


class BranchFeatures(_OnHub, PIIPClassifier):
    """A published classifier without its head that lists the branches' maps, finest first.

    Args:
        name: as in :class:`PublishedClassifier`.
        out_indices: which of the maps; None for all.
    """

    def __init__(self, name: str, out_indices: Sequence[int] | None = None) -> None:
        entry = _entry(name, classifier=True)
        super().__init__(entry.build(), 0)
        self.pretrained_cfg = entry.pretrained_cfg(name)
        maps = _branch_maps(self.piip)
        self.feature_info = FeatureInfo(maps, tuple(range(len(maps)) if out_indices is None else out_indices))

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """From ``(B, 3, H, W)`` to maps ``(B, C, H / s, W / s)``, s as in `feature_info`."""
        features = self.forward_features(x)
        maps = [features] if isinstance(features, Tensor) else [m.permute(0, 3, 1, 2) for m in features[::-1]]
        return [maps[index] for index in self.feature_info.out_indices]
