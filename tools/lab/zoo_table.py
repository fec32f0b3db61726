"""The tables of published models on the project page."""

from __future__ import annotations

from collections.abc import Callable

from piip.weights.zoo import BENCHMARKS, PublishedModel, Task, models_of

__all__ = ["markdown_table"]

_FOLDERS = {"detection": "COCO", "segmentation": "ADE20K", "classification": "ImageNet"}  # in configs/


def _link(model: PublishedModel) -> str:
    text = f"{model.model}, DINO" if model.config.startswith("dino") else model.model
    return f"[{text}](../../configs/{_FOLDERS[model.task]}/{model.config}.py)"


def _published(model: PublishedModel) -> str:
    return "-" if model.gflops_published is None else f"{model.gflops_published:.0f}"


def _score(name: str) -> Callable[[PublishedModel], str]:
    return lambda model: str(model.scores.get(name, "-"))


def _weights(model: PublishedModel) -> str:
    if not model.released:
        return "none released"
    return f"[released]({model.url})" if model.url else "released"


_MODEL, _SIZES = ("model", _link), ("image sizes", lambda m: m.sizes)
_GFLOPS: Callable[[PublishedModel], str] = lambda m: f"{_published(m)} / {m.gflops:.0f}"  # noqa: E731
_COLUMNS: dict[Task, tuple[tuple[str, Callable[[PublishedModel], str]], ...]] = {
    "detection": (
        _MODEL,
        _SIZES,
        ("pretraining", lambda m: m.pretraining),
        ("params (M)", lambda m: f"{m.params_m:.1f}"),
        ("GFLOPs published / actual", _GFLOPS),
        ("box AP", _score("box AP")),
        ("mask AP", _score("mask AP")),
        ("weights", _weights),
    ),
    "segmentation": (
        _MODEL,
        _SIZES,
        ("backbone params (M)", lambda m: f"{m.params_m:.1f}"),
        ("backbone GFLOPs published / actual", _GFLOPS),
        ("neck and head GFLOPs", lambda m: f"{m.head_gflops:.0f}"),
        ("mIoU published", _score("mIoU")),
        ("weights", _weights),
    ),
    "classification": (
        _MODEL,
        _SIZES,
        ("pretraining", lambda m: m.pretraining or "none"),
        ("params (M) published / actual", lambda m: f"{m.params_m_published:g} / {m.params_m:.1f}"),
        ("GFLOPs published / actual", lambda m: f"{m.gflops_published} / {m.gflops}"),
        ("top-1 published", _score("top-1")),
        ("weights", _weights),
    ),
    "multimodal": (
        ("towers", lambda m: f"{m.model} (Plus)" if "plus" in m.name else m.model),
        _SIZES,
        ("language model", lambda m: f"Vicuna 1.5 {m.language_model}"),
        ("tower params (M)", lambda m: f"{m.params_m:.1f}"),
        ("tower GFLOPs published / actual", _GFLOPS),
        *((name, _score(name)) for name in (*BENCHMARKS, "mean")),
        ("weights", lambda m: f"`{m.name}`"),
    ),
}
_TEXT = {"model", "image sizes", "pretraining", "towers", "language model", "weights"}


def markdown_table(task: Task) -> str:
    """The table of a task on the project page."""
    titles = [title for title, _ in _COLUMNS[task]]
    rule = "|".join("---" if title in _TEXT else "--:" for title in titles)
    rows = [f"| {' | '.join(titles)} |", f"|{rule}|"]
    rows += [f"| {' | '.join(cell(m) for _, cell in _COLUMNS[task])} |" for m in models_of(task)]
    return "\n".join(rows)
