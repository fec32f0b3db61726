"""The cost of whole detectors, and the command line that prints it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from ... import require

require.detectron2()

from piip.flops import build_on_meta, published_cost
from piip.measure.cost import detector_cost, find_trunk, load_detector

ROOT = Path(__file__).parents[3]
QUICK = str(ROOT / "configs/quick/mask_rcnn_piip_128_96_64_shapes.py")
TSB = str(ROOT / "configs/COCO/mask_rcnn_piip_tsb_1120_896_448_1x.py")
VITDET = str(ROOT / "configs/comparison/detectron2_vitdet_b.py")


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flop_count = load_tool("flop_count")


def count(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    flop_count.main(list(arguments))
    return capsys.readouterr().out


def build(config: str, **options: str) -> nn.Module:
    with build_on_meta():
        return load_detector(config, **options)  # type: ignore[arg-type]


def test_heads_in_closed_form() -> None:
    """The quick detector: 48 channels, boxes pooled to 7x7, masks to 14x14, a pyramid of 32 and 16 cells.

    One regressor and one mask serve all classes.
    """
    detector = build(QUICK)
    parts = detector_cost(detector).total.parts
    channels, anchors = 48, 3
    proposal = (32**2 + 16**2) * channels * (9 * channels + 5 * anchors)
    assert parts["proposal_head"].macs == proposal
    classes = detector.roi_heads.num_classes
    box = 49 * 9 * channels**2 + 49 * channels * 128 + 128 * (classes + 1 + 4)
    assert parts["box_head"].macs == detector.proposal_generator.post_nms_topk[False] * box
    mask = 196 * 2 * 9 * channels**2 + 196 * 4 * channels**2 + 784 * channels
    assert parts["mask_head"].macs == 100 * mask
    assert list(parts)[-5:] == ["merge", "neck", "proposal_head", "box_head", "mask_head"]


@pytest.mark.parametrize("config", [QUICK, TSB, VITDET])
def test_every_parameter_is_counted_once(config: str) -> None:
    detector = build(config)
    report = detector_cost(detector)
    assert report.total.params == sum(parameter.numel() for parameter in detector.parameters())
    assert report.total.macs == pytest.approx(sum(part.macs for part in report.total.parts.values()))
    assert not [note for note in report.not_counted if "no handler" in note]


def test_published_accounting_counts_the_backbone_alone() -> None:
    detector = build(TSB)
    report = detector_cost(detector, accounting="published")
    assert report.total.gflops == pytest.approx(243.13, abs=0.005)
    assert report.total.macs == published_cost(find_trunk(detector.backbone)[1]).total.macs  # type: ignore[arg-type]


def test_json_names(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(count("--config-file", QUICK, "--format", "json", capsys=capsys))
    assert report["accounting"] == "actual" and report["input_size"] == [128, 128]
    total = sum(part["gflops"] for part in report["parts"].values())
    assert report["total_gflops"] == pytest.approx(total)
    assert report["total_params_m"] == pytest.approx(sum(p["params_m"] for p in report["parts"].values()))
    assert {"branch1", "branch2", "branch3", "interactions", "merge", "neck"} <= set(report["parts"])
    assert set(report["parts"]["interactions"]["parts"]["unit_1_2"]["parts"]) == {
        "projection",
        "deformable_attention",
        "ffn",
    }
    assert set(report["parts"]["branch1"]["parts"]) == {
        "patch_embed",
        "attention_projections",
        "attention_products",
        "mlp",
    }


def test_what_if(capsys: pytest.CaptureFixture[str]) -> None:
    """TSB 1120/896/448 turned into SBL 1120/672/448, windows apart, and into K = 2 (published: 187)."""
    arguments = ("--config-file", TSB, "--accounting", "published", "--format", "json")
    other = ("--branches", "sbl", "--resolutions", "1120/672/448")
    windows = [f"model.backbone.piip.branches.{j}.window_sizes=28" for j in range(3)]
    report = json.loads(count(*arguments, *other, *windows, capsys=capsys))
    assert report["total_gflops"] == pytest.approx(726.64, abs=0.005)
    report = json.loads(count(*arguments, "model.backbone.piip.num_interactions=2", capsys=capsys))
    assert report["total_gflops"] == pytest.approx(187, abs=0.5)


def test_input_size_and_formats(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--config-file", QUICK, "--input-size", "64", "128")
    table = count(*arguments, capsys=capsys)
    assert "accounting: actual" in table and "input: 64 x 128 px" in table
    rows = list(csv.DictReader(io.StringIO(count(*arguments, "--format", "csv", capsys=capsys))))
    assert rows[0]["part"] == "total" and rows[0]["input_size"] == "64x128"
    assert count(*arguments, "--format", "markdown", capsys=capsys).count("| total |") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resolutions", "128/96"), "2 resolutions for 3 branches: give one each, smallest model first"),
        (("--resolutions", "128/96/60"), "resolution 60 is no multiple of the patch of 8 px"),
        (("--resolutions", "128x96x64"), "resolutions '128x96x64' are not sizes"),
        (("--branches", "tsx"), "branches 'tsx' are not models"),
        (("--input-size", "102", "128"), "input size 102 x 128 is not a multiple of the patch of 4 px"),
        (("--accounting", "exact"), "unknown accounting 'exact': expected 'actual' or 'published'"),
        (("model.backbone.piip.num_interactions=4",), "cannot cut 3 blocks into 4 stages"),
        (("model.=3",), "'model.=3' cannot be applied"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        flop_count.main(["--config-file", QUICK, *arguments])
    assert exit_info.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer = dict(lr=1)\n", "is not the config of a detector: it defines no `model`"),
        (
            "from detectron2.config import LazyCall as L\nfrom torch.nn import Linear\n"
            "model = L(Linear)(in_features=2, out_features=2)\n",
            "expected a GeneralizedRCNN, a DINODetector, a Segmentor or a PIIPClassifier",
        ),
    ],
)
def test_no_detector(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.py"
    config.write_text(text)
    with pytest.raises(SystemExit):
        flop_count.main(["--config-file", str(config)])
    assert message in capsys.readouterr().err


def test_branches_of_a_detector_without_piip() -> None:
    with pytest.raises(
        ValueError, match=r"has no PIIP \(model.backbone.piip, or model.piip of a classifier\)"
    ):
        build(VITDET, branches="tsb")
    with pytest.raises(ValueError, match="published accounting is that of PIIP"):
        detector_cost(build(VITDET), accounting="published")


def test_reproduce(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(flop_count.COLUMNS, 1.0) | {
        "model": "PIIP-TSB",
        "resolution": "1",
        "status": "differs",
    }
    monkeypatch.setattr("lab.tables.reproduce", lambda table: iter([row]))
    data = json.loads(count("--reproduce", "main", "--format", "json", capsys=capsys))
    assert data == {"table": "main", "rows": [row]}
    assert count("--reproduce", "main", "--format", "csv", capsys=capsys).count("\n") == 2
    assert "accounting 'published'" in count("--reproduce", "main", capsys=capsys)


def test_unknown_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        flop_count.main(["--reproduce", "mian"])
    assert exit_info.value.code == 2
    assert "unknown table 'mian': expected one of main, appendix_b" in capsys.readouterr().err


@pytest.mark.slow
def test_latency_of_two_models() -> None:
    from lab.latency import Contender, Protocol, compare

    protocol = Protocol(runs=2, onednn_linear="piip")
    contenders = [Contender.from_config(QUICK, protocol) for _ in range(2)]
    weights = [parameter.detach().clone() for parameter in contenders[0].detector.parameters()]
    rows = compare(contenders, "fp32", 1, "inference", protocol)
    assert rows[0]["ratio_backbone"] == rows[0]["ratio_detector"] == 1
    for row in rows:
        assert 0 < row["backbone_ms"] < row["backbone_ms"] + row["neck_ms"] < row["detector_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 / row["detector_ms"])
        assert 0 < row["gflops_backbone"] < row["gflops_detector"] and 0 < row["peak_fraction"] < 1.5
    assert all(map(torch.equal, weights, contenders[0].detector.parameters()))
    step = compare(contenders, "fp32", 2, "training", protocol)[0]
    assert step["detector_ms"] > 0 and step["backbone_ms"] is None


@pytest.mark.slow
def test_operator_against_reference_end_to_end() -> None:
    """Both forms are timed, and the model has its own operator back afterwards."""
    from lab.operator_share import compare_operators
    from piip import cross_attention
    from piip_ops import deform_cross_attn

    forward, step = compare_operators(QUICK, runs=1)
    for row in (forward, step):
        assert row["saved_percent"] == pytest.approx(100 - 100 * row["operator_ms"] / row["reference_ms"])
    assert 0 < forward["operator_ms"] < step["operator_ms"]
    assert cross_attention.deform_cross_attn is deform_cross_attn
    with pytest.raises(ValueError, match="has no PIIP"):
        compare_operators(VITDET)
