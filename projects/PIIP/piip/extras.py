"""Says what to install where a room of the package needs more than its core does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

__all__ = ["explain", "explain_missing"]

_EXPLAINED = " is not installed: "
_DETECTRON2 = (
    "{name} is not installed: `make setup` builds it (README), and pip install 'piip[detection]' brings what "
    "else training, evaluation and prediction need"
)
_EXTRAS = {  # extra of pyproject.toml -> what it brings, by the names that are imported
    "detection": ["cv2", "hydra", "matplotlib", "omegaconf", "pycocotools", "tensorboard", "torchvision"],
    "classification": ["hydra", "omegaconf", "tensorboard", "torchvision"],
    "multimodal": ["accelerate", "tokenizers", "transformers"],
    "export": ["onnx", "onnxruntime", "onnxscript"],
    "demo": ["gradio"],
}


def explain(error: ModuleNotFoundError, preferred: str = "detection") -> ModuleNotFoundError | None:
    """The error with what to install in its place; None where it says so, or no extra brings the package.

    Args:
        error: with the name of what is missing.
        preferred: the extra to name where several bring it.
    """
    package = (error.name or "").partition(".")[0]
    if _EXPLAINED in str(error):
        return None
    if package == "detectron2":
        return ModuleNotFoundError(_DETECTRON2.format(name=error.name), name=error.name)
    for extra in (preferred, *_EXTRAS):
        if package in _EXTRAS[extra]:
            text = f"{error.name} is not installed: pip install 'piip[{extra}]'"
            return ModuleNotFoundError(text, name=error.name)
    return None


class _Loader(SourceFileLoader):
    """Runs a module, and explains what it imports in vain."""

    extra = "detection"

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except ModuleNotFoundError as error:
            explained = explain(error, self.extra)
            if explained is None:
                raise
            raise explained from error


class _Finder(MetaPathFinder):
    """Finds the modules of some rooms as Python does, and lets :class:`_Loader` run them."""

    def __init__(self) -> None:
        self.extra_of: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        extra = self.extra_of.get(".".join(fullname.split(".")[:2]))
        if extra is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            loader = _Loader(spec.loader.name, spec.loader.path)
            loader.extra = extra
            spec.loader = loader
        return spec


_FINDER = _Finder()


def explain_missing(room: str, extra: str = "detection") -> None:
    """Let the modules of a room, such as "piip.engine", say what to install when an import of theirs fails.

    A room calls it in its ``__init__``; it is about the modules that are imported afterwards.

    Args:
        room: full name of the package.
        extra: of pyproject.toml, that it needs.
    """
    _FINDER.extra_of[room] = extra
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
