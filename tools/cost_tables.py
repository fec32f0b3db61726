#!/usr/bin/env python
"""Write docs/cost.md and its pictures: the published cost tables reproduced, actual costs, measured latency.

tools/cost_tables.py [--latency docs/latency.json]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from piip.engine.command_line import argument_parser, tool
from piip.flops import Part, build_on_meta, format_rows
from piip.measure.cost import detector_cost, load_detector

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "COCO"
DETECTORS = {  # rows of the main table whose detectors are taken apart: label -> config
    "ViT-B 1024": "mask_rcnn_vitdet_b_1024_1x",
    "ViT-L 1024": "mask_rcnn_vitdet_l_1024_1x",
    "PIIP-TSB 1120/896/448": "mask_rcnn_piip_tsb_1120_896_448_1x",
    "PIIP-TSB 1568/896/448": "mask_rcnn_piip_tsb_1568_896_448_1x",
    "PIIP-TSB 1568/1120/672": "mask_rcnn_piip_tsb_1568_1120_672_1x",
    "PIIP-SBL 1120/672/448": "mask_rcnn_piip_sbl_1120_672_448_1x",
    "PIIP-SBL 1344/896/448": "mask_rcnn_piip_sbl_1344_896_448_1x",
    "PIIP-SBL 1568/896/672": "mask_rcnn_piip_sbl_1568_896_672_1x",
    "PIIP-TSBL 1344/896/672/448": "mask_rcnn_piip_tsbl_1344_896_672_448_1x",
    "PIIP-TSBL 1568/1120/672/448": "mask_rcnn_piip_tsbl_1568_1120_672_448_1x",
    "PIIP-TSBL 1792/1568/1120/448": "mask_rcnn_piip_tsbl_1792_1568_1120_448_1x",
}
OTHERS = {  # detectors that are in no published table: title -> their configs
    "Cascade Mask R-CNN (no weights were released)": "COCO/cascade_*.py",
    "DINO": "COCO/dino_*.py",
    "ViTDet's recipe (not in the paper: no weights, no AP)": "COCO/vitdet_recipe/*.py",
    "LVIS v1 (not in the paper: no weights, no AP)": "LVIS/*.py",
}
NECKS = ("released", "simple")
WITH_BOTH_NECKS = {  # detectors whose necks are compared -> ViTDet's recipe on the same branches
    "PIIP-TSB 1120/896/448": "mask_rcnn_piip_tsb_1120_896_448_100ep",
    "PIIP-SBL 1120/672/448": "mask_rcnn_piip_sbl_1120_672_448_100ep",
    "PIIP-TSBL 1344/896/672/448": "mask_rcnn_piip_tsbl_1344_896_672_448_100ep",
}
STYLES = {  # family -> colour, marker; the colours differ in lightness too, and read without colour
    "ViT": ("#1a1a1a", "s"),
    "PIIP-TSB": ("#0072b2", "o"),
    "PIIP-SBL": ("#d55e00", "^"),
    "PIIP-TSBL": ("#8fbf3f", "D"),
}
GROUPS = {  # parts of a detector, as the stacked bars show them: name -> shade, hatch
    "branches": ("#222222", ""),
    "interactions": ("#777777", ""),
    "merge": ("#bbbbbb", "//"),
    "neck": ("#0072b2", ""),
    "heads": ("#9ecae1", "\\\\"),
}
COLUMNS = {
    "model": "model",
    "resolution": "resolution",
    "gflops_published": "GFLOPs published",
    "gflops": "ours",
    "difference_percent": "difference %",
    "params_m_published": "params published (M)",
    "params_m": "ours (M)",
    "gflops_actual": "actual GFLOPs",
    "params_m_actual": "actual params (M)",
    "status": "status",
}
LATENCY_COLUMNS = {
    "model": "config",
    "mode": "mode",
    "precision": "precision",
    "batch": "batch",
    "backbone_ms": "backbone ms",
    "backbone_spread_ms": "spread",
    "neck_ms": "neck ms",
    "detector_ms": "detector ms",
    "detector_spread_ms": "spread of it",
    "peak_mb": "peak MB",
    "gflops_backbone": "backbone GFLOPs",
    "peak_fraction": "of matmul peak",
    "ratio_backbone": "ratio, backbone",
    "ratio_detector": "ratio, detector",
}
LATENCY_NOTE = """\
Medians; spread is largest less smallest. Backbone is up to the map from which the neck starts, peak MB what
a run adds to memory. Ratios are to the first model of a table. [latency.md](latency.md) says where the time
goes.
"""
NECKS_NOTE = """\
The released neck enlarges the merged map at its full width and then runs an FPN; ViTDet's simple feature
pyramid (`model.backbone.neck="simple"`) halves the width as it enlarges, and has no top-down path. Branches
and heads are the same in both rows of a detector. Milliseconds are those of the latency tables below.
"""
PUBLISHED_AP = "box AP as published (Mask R-CNN, 1x)"
INTRODUCTION = """\
# What PIIP costs

Written by `make tables`. One multiply-add is one FLOP; everything is for one image.

This page gives the cost of every published model. GFLOPs are counted in two ways:

- **published**: the rules of the published tables, in closed form. Their counter ran on another model than
  the detector: it merges branches by linear layers, ends in a 1000-way head, has no pyramid, and does not
  pad windows.
- **actual**: fvcore on the model itself, on the meta device. Window padding, the 3x3 convolutions of the
  merge and, where it says so, neck and heads are included. Elementwise operators are not counted.
"""
NOTES = """\
*ours* is the published accounting. *actual* reaches up to the merged map, for a single transformer up to
its deconvolution stack, so that it compares with the released backbones; *actual params* include the stack.
The released code's own counter leaves out attention among the padding of windows; the field
`gflops_released_rules` in `tools/flop_count.py --reproduce TABLE --format json` does too.
"""


def family(label: str) -> str:
    """The key of a model in STYLES."""
    name = label.partition(" ")[0]
    return "ViT" if name.startswith("ViT") else name


def grouped(total: Part) -> dict[str, float]:
    """GFLOPs of a detector by the keys of GROUPS."""
    sums = dict.fromkeys(GROUPS, 0.0)
    for name, part in total.parts.items():
        group = "branches" if name.startswith("branch") or name == "resizing" else name
        sums[group if group in GROUPS else "heads"] += part.gflops  # DINO's encoder and decoder, too
    return sums


def points(axes: Axes, values: dict[str, tuple[float, float]], x_label: str) -> None:
    """Draw models as points, those of a family joined, from label -> (cost, AP)."""
    for name, (colour, marker) in STYLES.items():
        chosen = sorted(values[label] for label in values if family(label) == name)
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.4, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(PUBLISHED_AP)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    # above, where no point can lie
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, frameon=False)


def save(figure: Any, folder: Path, name: str) -> str:
    """Save a picture and return the markdown that shows it."""
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=90)
    plt.close(figure)
    return f"![{name.replace('-', ' ')}]({name}.png)"


def draw_flops(costs: dict[str, dict[str, float]], rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """AP against GFLOPs in both accountings."""
    by_label = {f"{row['model']} {row['resolution']}": row for row in rows}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    published = {label: (by_label[label]["gflops_published"], by_label[label]["ap_box"]) for label in costs}
    actual = {
        label: (
            sum(cost[group] for group in ("branches", "interactions", "merge")),
            by_label[label]["ap_box"],
        )
        for label, cost in costs.items()
    }
    points(left, published, "GFLOPs, published accounting")
    points(right, actual, "GFLOPs, actual, up to the merged map")
    limit = 1.05 * max(x for x, _ in [*published.values(), *actual.values()])
    for axes in (left, right):
        axes.set_xlim(0, limit)
    right.set_ylabel("")
    return save(figure, folder, "ap-against-gflops")


def draw_parts(costs: dict[str, dict[str, float]], folder: Path) -> str:
    """Stacked bars of what each detector spends where."""
    figure, axes = plt.subplots(figsize=(9.5, 4.8))
    labels = list(costs)[::-1]
    left = [0.0] * len(labels)
    for group, (colour, hatch) in GROUPS.items():
        widths = [costs[label][group] for label in labels]
        axes.barh(labels, widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=group)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in enumerate(left):
        axes.text(end + 15, place, f"{end:.0f}", va="center")
    axes.set_xlim(0, 1.1 * max(left))
    axes.set_xlabel("actual GFLOPs of the whole detector, one square image")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.1), ncol=len(GROUPS), frameon=False)
    return save(figure, folder, "cost-by-part")


def necks_section(measured: Sequence[dict[str, Any]]) -> list[str]:
    """What the released neck and ViTDet's cost on the same branches and heads.

    Args:
        measured: rows of latency.json. The released neck is timed in the released detector, the simple one in
            that of ViTDet's recipe: the neck's own time depends on no head.
    """
    times = {
        row["model"]: row["neck_ms"]
        for row in measured
        if (row["mode"], row["precision"], row["batch"]) == ("inference", "fp32", 1)
    }
    rows = []
    for label, recipe in WITH_BOTH_NECKS.items():
        for neck, timed in zip(NECKS, (DETECTORS[label], recipe), strict=True):
            print(f"counting {label} with the {neck} neck", file=sys.stderr)
            with build_on_meta():
                detector = load_detector(
                    str(CONFIGS / f"{DETECTORS[label]}.py"), overrides=[f"model.backbone.neck={neck}"]
                )
            total = detector_cost(detector).total
            part = total.parts["neck"]
            rows.append(
                {
                    "detector": label,
                    "neck": neck,
                    "neck GFLOPs": part.gflops,
                    "neck params (M)": part.params_m,
                    "detector GFLOPs": total.gflops,
                    "share of the neck %": 100 * part.macs / total.macs,
                    "neck ms": times.get(timed),
                }
            )
    return ["## Two necks", "", NECKS_NOTE, format_rows(rows, "markdown"), ""]


def others_section() -> list[str]:
    """What the detectors cost that are in no published table."""
    lines = [
        "## Other detectors",
        "",
        "Actual GFLOPs of whole detectors, for one square image of their size.",
        "",
    ]
    for title, pattern in OTHERS.items():
        rows = []
        for path in sorted(CONFIGS.parent.glob(pattern)):
            print(f"counting {path.stem}", file=sys.stderr)
            with build_on_meta():
                detector = load_detector(str(path))
            total = detector_cost(detector).total
            rows.append(
                {
                    "config": path.stem,
                    **grouped(total),
                    "total": total.gflops,
                    "params (M)": total.params_m,
                }
            )
        lines += [f"### {title}", "", format_rows(rows, "markdown"), ""]
    return lines


def latency_sessions(path: Path) -> list[dict[str, Any]]:
    """Measurements, by session; none where there is no file."""
    if not path.exists():
        return []
    sessions = json.loads(path.read_text(encoding="utf-8"))
    return sessions if isinstance(sessions, list) else [sessions]


def latency_section(
    sessions: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], folder: Path
) -> list[str]:
    """Tables of measurements, each with its machine, and AP against latency."""
    ap = {f"{row['model']} {row['resolution']}": row["ap_box"] for row in rows}
    labels = {config: label for label, config in DETECTORS.items()}
    lines = ["## Latency", "", "Weights at random: time does not depend on them.", LATENCY_NOTE.rstrip()]
    measured: dict[str, tuple[float, float]] = {}
    for session in sessions:
        shown = [{title: row[key] for key, title in LATENCY_COLUMNS.items()} for row in session["rows"]]
        about = f"{session['machine']}; {session['protocol']}."
        lines += ["", about, "", format_rows(shown, "markdown")]
        for row in session["rows"]:
            label = labels.get(row["model"])
            if label and (row["mode"], row["precision"], row["batch"]) == ("inference", "fp32", 1):
                measured[label] = (row["backbone_ms"] / 1e3, ap[label])
    figure, axes = plt.subplots(figsize=(6.5, 4.4))
    points(axes, measured, "seconds to the merged map, CPU, float32, one image")
    axes.set_xlim(left=0)
    return [*lines, "", save(figure, folder, "ap-against-latency")]


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Count, draw and write."""
    parser = argument_parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=Path, default=ROOT / "docs" / "latency.json")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs", help="folder of cost.md and the pictures"
    )
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)

    costs = {}
    for label, config in DETECTORS.items():
        print(f"counting {label}", file=sys.stderr)
        with build_on_meta():
            detector = load_detector(str(CONFIGS / f"{config}.py"))
        costs[label] = grouped(detector_cost(detector).total)
    tables = {}
    from lab.tables import TABLES, reproduce

    for table in TABLES:
        print(f"reproducing {table}", file=sys.stderr)
        tables[table] = list(reproduce(table))

    lines = [INTRODUCTION, "## Accuracy for cost", "", draw_flops(costs, tables["main"], args.output), ""]
    lines += [
        "## Cost by component",
        "",
        draw_parts(costs, args.output),
        "",
        "Actual GFLOPs of whole detectors:",
        "",
    ]
    whole = [{"detector": label, **cost, "total": sum(cost.values())} for label, cost in costs.items()]
    lines += [format_rows(whole, "markdown"), ""]
    sessions = latency_sessions(args.latency)
    lines += others_section()
    lines += necks_section([row for session in sessions for row in session["rows"]])
    if sessions:
        lines += [*latency_section(sessions, tables["main"], args.output), ""]
    lines += ["## Published tables", "", NOTES]
    for table, rows in tables.items():
        shown = [{title: row[key] for key, title in COLUMNS.items()} for row in rows]
        lines += [f"### {table}", "", format_rows(shown, "markdown"), ""]
        readings = {
            reading["reading"]: [
                {True: "reproduces", False: "does not"}.get(other.get("reproduces"), f"{other['gflops']:.2f}")
                for row in rows
                for other in row.get("readings", [])
                if other["reading"] == reading["reading"]
            ]
            for row in rows
            for reading in row.get("readings", [])
        }
        if readings:
            lines += ["Ways to read the rows that the paper does not define, row by row:", ""]
            lines += [f"- {text}: {', '.join(verdicts)}" for text, verdicts in readings.items()] + [""]
    (args.output / "cost.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
