"""What the documentation site is made of besides its pages: the zoo's table, and links that leave docs/."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ZOO = "<!-- zoo -->"
_INCLUDED = re.compile(r"<!-- all of (\S+) -->")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put files and the table where their marks are; of links that leave docs/, keep the files' names."""
    folder = Path(page.file.abs_src_path).parent
    if included := _INCLUDED.fullmatch(markdown.strip()):
        source = REPOSITORY / included[1]
        text = source.read_text(encoding="utf-8")
        return _LINK.sub(lambda match: _kept(match, source.parent, folder), text)
    markdown = _LINK.sub(lambda match: _kept(match, folder, folder), markdown)
    return markdown.replace(ZOO, zoo_table()) if ZOO in markdown else markdown


def _kept(link: re.Match[str], origin: Path, folder: Path) -> str:
    """A link of a file in `origin`, for a page in `folder`; where it leads out of docs/, a name."""
    text, target = link[1], (origin / link[2]).resolve()
    if target.is_relative_to(REPOSITORY / "docs"):  # what is missing there, the strict build refuses
        return f"[{text}]({Path(os.path.relpath(target, folder)).as_posix()}{link[3] or ''})"
    if not target.exists():
        return link[0]
    name = f"`{target.relative_to(REPOSITORY).as_posix()}`"
    return name if text.strip("`") == Path(link[2]).name else f"{text} ({name})"


def zoo_rows() -> list[dict[str, Any]]:
    """One dict a published model: task, model, sizes, pretraining, parameters, GFLOPs, accuracy, latency."""
    from piip.weights.zoo import models_of

    measured = _latencies()
    rows = [
        {
            "task": "instance segmentation" if "mask AP" in released.scores else "detection",
            "model": released.model if "mask AP" in released.scores else f"{released.model}, DINO",
            "sizes": released.sizes,
            "pretraining": released.pretraining,
            "params": released.params_m,
            "gflops": released.gflops,
            "metric": " / ".join(map(str, released.scores.values())),
            "score": released.scores["box AP"],
            "latency": measured.get(released.config),
            "config": f"configs/COCO/{released.config}.py",
            "weights": released.url,
        }
        for released in models_of("detection")
    ]
    rows += [
        {
            "task": "semantic segmentation",
            "model": published.model,
            "sizes": published.sizes,
            "pretraining": "",
            "params": published.params_m,
            "gflops": published.gflops,
            "metric": str(published.scores.get("mIoU", "")),
            "score": published.scores.get("mIoU"),
            "latency": measured.get(published.config),
            "config": f"configs/ADE20K/{published.config}.py",
            "weights": None,
        }
        for published in models_of("segmentation")
    ]
    return rows


def _latencies() -> dict[str, float]:
    """Config -> seconds to the merged map of one image in float32, as docs/latency.json has them."""
    sessions = json.loads((REPOSITORY / "docs/latency.json").read_text(encoding="utf-8"))
    rows = [
        row for session in (sessions if isinstance(sessions, list) else [sessions]) for row in session["rows"]
    ]
    return {
        row["model"]: row["backbone_ms"] / 1e3
        for row in rows
        if (row["mode"], row["precision"], row["batch"]) == ("inference", "fp32", 1)
    }


_COLUMNS = {
    "task": "task",
    "model": "model",
    "sizes": "image sizes",
    "params": "params (M)",
    "gflops": "GFLOPs",
    "metric": "box / mask AP, mIoU",
    "latency": "latency (s)",
    "pretraining": "branches start from",
    "weights": "weights",
    "config": "config",
}
_NUMBERS = {"params": "params", "gflops": "gflops", "metric": "score", "latency": "latency"}


def zoo_table() -> str:
    """The zoo as a table whose rows assets/zoo.js filters and sorts; it reads without that, too."""
    rows = zoo_rows()
    tasks = sorted({row["task"] for row in rows})
    options = "".join(f"<option>{html.escape(task)}</option>" for task in tasks)
    lines = [
        '<form class="zoo-filter" hidden>',
        f'<label>task <select name="task"><option value="">all</option>{options}</select></label>',
        '<label>name or size <input name="text" type="search" placeholder="TSB 1120"></label>',
        '<label>GFLOPs at most <input name="gflops" type="number" min="0" step="any"></label>',
        '<label>params (M) at most <input name="params" type="number" min="0" step="any"></label>',
        '<label>AP or mIoU at least <input name="score" type="number" min="0" step="any"></label>',
        '<label>latency (s) at most <input name="latency" type="number" min="0" step="any"></label>',
        '<output name="count" aria-live="polite"></output>',
        "</form>",
        '<div class="zoo-scroll"><table id="zoo"><thead><tr>',
        *(
            f'<th scope="col" data-key="{_NUMBERS.get(key, key)}">{html.escape(title)}</th>'
            for key, title in _COLUMNS.items()
        ),
        "</tr></thead><tbody>",
    ]
    for row in rows:
        data = "".join(
            f' data-{key}="{html.escape(str(row[key]))}"'
            for key in ("task", "params", "gflops", "score", "latency")
            if row[key] is not None
        )
        cells = "".join(f"<td>{_cell(key, row[key])}</td>" for key in _COLUMNS)
        lines.append(f"<tr{data}>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "weights":
        return f'<a href="{html.escape(value)}">released</a>'
    if key == "config":
        return f"<code>{html.escape(Path(value).stem)}</code>"
    if isinstance(value, float):
        return f"{value:.2f}" if key == "latency" else f"{value:.0f}"
    return html.escape(str(value))
