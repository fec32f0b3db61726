"""Cost accounting against the published figures, closed forms and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.recipes import CannotBuild, build_row
from lab.tables import TABLES, published_rows, reproduce
from piip import PIIP, InteractionConfig
from piip.branches import ConvNeXtBranch, ViTBranch
from piip.flops import (
    Part,
    Report,
    actual_cost,
    build_on_meta,
    count_operators,
    format_report,
    format_rows,
    published_cost,
)
from piip.neck import DeconvPyramid
from piip_ops import deform_cross_attn, ms_deform_attn

from ..models import tiny_piip

COUNTED = ("main", "appendix_b", "designs", "interactions")
ROWS = [row for row in published_rows() if row["table"] in COUNTED]


def row_id(row: dict[str, Any]) -> str:
    parts = (row["table"], row["model"], row["resolution"], row.get("attention"), row.get("num_interactions"))
    return " ".join(str(part) for part in parts if part is not None)


def build(row: dict[str, Any], **options: Any) -> PIIP:
    with build_on_meta():
        return build_row(row, **options)


def main_row(model: str, resolution: str) -> dict[str, Any]:
    (row,) = (
        row
        for row in published_rows()
        if (row["table"], row["model"], row["resolution"]) == ("main", model, resolution)
    )
    return dict(row)


TSB = main_row("PIIP-TSB", "1120/896/448")


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_published_accounting_reproduces_the_published_figures(row: dict[str, Any]) -> None:
    """Within 0.2%, or half of the last digit after rounding to two decimals; parameters within 1M."""
    total = published_cost(build(row)).total
    published = row["gflops_published"]
    assert abs(total.gflops - published) <= max(0.002 * published, 0.505)
    if "params_m_published" in row:
        assert abs(total.params_m - row["params_m_published"]) <= 1


def test_published_breakdown() -> None:
    """PIIP-TSB 1120/896/448 in parts: products and the rest of each branch, interactions, merge."""
    parts = published_cost(build(TSB)).total.parts
    for branch, rest, products in (("1", 67.08, 2.83), ("2", 67.57, 5.66), ("3", 26.78, 4.43)):
        part = parts[f"branch{branch}"]
        assert part.parts["attention_products"].gflops == pytest.approx(products, abs=0.005)
        assert part.gflops - part.parts["attention_products"].gflops == pytest.approx(rest, abs=0.005)
    assert parts["interactions"].gflops == pytest.approx(66.15 + 0.95, abs=0.01)
    assert parts["merge"].gflops + parts["classification_head"].gflops == pytest.approx(1.67, abs=0.015)


@pytest.mark.parametrize(
    ("link", "gflops"),
    [((2, 1), 29.38), ((1, 2), 12.18), ((3, 2), 17.42), ((2, 3), 8.12), ((3, 1), 33.23), ((1, 3), 6.20)],
)
def test_cost_of_a_link(link: tuple[int, int], gflops: float) -> None:
    """As published, printed to two decimals."""
    interactions = published_cost(build(TSB, links=[link])).total.parts["interactions"]
    assert interactions.gflops == pytest.approx(gflops, abs=0.005)


RELEASED = [
    row
    for row in published_rows()
    if row["table"] == "main" and "gflops_released_backbone" in row and row["model"] not in ("InternViT-6B",)
]


@pytest.mark.slow
@pytest.mark.parametrize("row", RELEASED, ids=row_id)
def test_actual_cost_against_the_released_backbones(row: dict[str, Any]) -> None:
    """GFLOPs within 0.5% of the counts on the released backbones, parameters to the printed digit.

    Those counts leave out attention among the padding of windows, which runs: hence "gflops_released_rules".
    """
    (ours,) = (
        ours
        for ours in reproduce("main")
        if (ours["model"], ours["resolution"]) == (row["model"], row["resolution"])
    )
    assert ours["gflops_released_rules"] == pytest.approx(row["gflops_released_backbone"], rel=0.005)
    assert ours["gflops_actual"] >= ours["gflops_released_rules"]
    assert ours["params_m_actual"] == pytest.approx(row["params_m_released_backbone"], abs=0.006)
    assert ours["status"] == "reproduced"


def test_actual_cost_without_padded_windows() -> None:
    """PIIP-TSB 1120/896/448 has maps of 70, 56 and 28 tokens, multiples of its windows of 14."""
    with build_on_meta():
        pyramid = DeconvPyramid((768, 768))
    report = actual_cost(build(TSB), pyramid=pyramid)
    gflops = report.total.gflops - report.total.parts["neck"].gflops
    assert gflops == pytest.approx(307.3, rel=0.005)
    assert report.total.params_m == pytest.approx(175.04, abs=0.005)
    assert report.not_counted == [report.not_counted[0]], "an operator has no handler"


def small_piip(**options: Any) -> PIIP:
    with build_on_meta():
        return tiny_piip(**{"branch": {"window_sizes": 3}, **options}).eval()


@pytest.mark.parametrize("attention", ["deformable", "regular"])
def test_agrees_with_torch(attention: str) -> None:
    """fvcore and torch's counter on one forward pass, over the operators that both know (within 0.1%)."""
    piip = small_piip(interaction=InteractionConfig(num_heads=4, attention=attention))  # type: ignore[arg-type]
    image = torch.empty(2, 3, 64, 96, device="meta")
    ours = count_operators(piip, (image,)).by_operator()
    common = sum(ours[name] for name in ("linear", "conv", "matmul", "bmm", "scaled_dot_product_attention"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        piip(image)
    assert common == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


class _Attend(torch.nn.Module):
    def forward(self, value: torch.Tensor, offsets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return deform_cross_attn(value, offsets, logits, (3, 5), (4, 6))


class _MultiScale(torch.nn.Module):
    def forward(self, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ms_deform_attn(value, [(4, 6), (2, 3)], locations, weights)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_operators_count_five_multiply_adds_a_sampled_channel() -> None:
    if not hasattr(torch.ops.piip_ops, "deform_cross_attn"):
        pytest.skip("the extension is not built, and its reference is counted operator by operator")
    counts = count_operators(_Attend(), (meta(2, 24, 8, 16), meta(2, 15, 8, 4, 2), meta(2, 15, 8, 4)))
    assert counts.by_operator() == {"deform_cross_attn": 5 * 2 * 15 * 8 * 4 * 16}
    inputs = (meta(2, 30, 8, 16), meta(2, 7, 8, 2, 4, 2), meta(2, 7, 8, 2, 4))
    assert count_operators(_MultiScale(), inputs).by_operator() == {"ms_deform_attn": 5 * 2 * 7 * 8 * 8 * 16}


def test_convolutions_on_meta_tensors() -> None:
    """Plain, strided, grouped and transposed: k * k * C_in / groups * C_out * area."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
        torch.nn.Conv2d(6, 6, 3, padding=1, groups=6),
        torch.nn.ConvTranspose2d(6, 5, 2, stride=2),
    ).to("meta")
    counts = count_operators(model, (meta(1, 4, 9, 12),)).by_operator()
    area = 5 * 6  # ceil(9 / 2) * ceil(12 / 2)
    assert counts == {"conv": (9 * 4 * 6 + 9 * 6 + 4 * 6 * 5) * area}


class _Sine(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_operator_without_handler_is_reported() -> None:
    counts = count_operators(_Sine(), (meta(3),))
    assert not counts.macs and counts.unknown == {"aten::special_bessel_j0": 1}


def test_parts_add_up() -> None:
    for report in (actual_cost(small_piip()), published_cost(small_piip())):
        for _, part in [((), report.total), *report.total.walk()]:
            if part.parts:
                assert part.macs == pytest.approx(sum(child.macs for child in part.parts.values()))
                assert part.params == sum(child.params for child in part.parts.values())
    piip = small_piip()
    assert actual_cost(piip).total.params == sum(parameter.numel() for parameter in piip.parameters())
    names = [name for name in actual_cost(piip).total.parts if name != "resizing"]
    assert names == ["branch1", "branch2", "branch3", "interactions", "merge"]


def test_tapped_stages_are_merged_too() -> None:
    """The maps of a plain transformer's stages have the size of the last, and so the cost of its merge."""
    last, both = (actual_cost(small_piip(tap_stages=taps)).total.parts["merge"] for taps in ((), (0,)))
    assert both.macs == 2 * last.macs
    assert both.params == 2 * last.params


def test_cost_grows_with_the_input() -> None:
    piip = small_piip(branch={"window_sizes": 4}, image_sizes=(32, 32, 64))
    one, two = (actual_cost(piip, size).total.parts["merge"].macs for size in ((64, 64), (64, 128)))
    assert two == pytest.approx(2 * one)


@pytest.mark.parametrize("count", [published_cost, actual_cost])
@pytest.mark.parametrize("size", [(100, 64), (64, 4)])
def test_input_size_that_is_no_multiple_of_the_patch(count: Any, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"not a multiple of the patch of 8 px: give multiples of 8"):
        count(small_piip(), size)


def test_published_accounting_is_for_plain_transformers() -> None:
    with build_on_meta():
        convnext = ConvNeXtBranch(dims=(32, 64, 96, 128), depths=(1, 1, 1, 1))
        piip = PIIP([convnext], [64], num_interactions=0, merge="identity")
    with pytest.raises(ValueError, match="branch 1 is a ConvNeXtBranch: published accounting has no rule"):
        published_cost(piip)
    assert actual_cost(piip).total.parts["branch1"].gflops > 0


def test_unknown_table() -> None:
    with pytest.raises(ValueError, match="unknown table 'mian': expected one of main, appendix_b"):
        next(reproduce("mian"))


def test_row_that_cannot_be_built() -> None:
    with pytest.raises(CannotBuild, match="not made of plain vision transformers"):
        build_row({"model": "PIIP-CT-VS-VB", "resolution": "1024/672/448"})
    with pytest.raises(CannotBuild, match="no branch family for CLIP"):
        build_row({**TSB, "pretraining": "CLIP"})


@pytest.mark.slow
def test_directions() -> None:
    """Types 4 and 5 are defined; of the others, the figure tells which readings are possible."""
    rows = {row["direction_type"]: row for row in reproduce("directions")}
    assert [rows[kind]["status"] for kind in (4, 5)] == ["reproduced"] * 2
    fitting = {
        kind: [reading["reading"] for reading in rows[kind]["readings"] if reading["reproduces"]]
        for kind in (1, 2, 3)
    }
    assert fitting[1] == ["adjacent branches, one direction a stage, alternating"]
    assert fitting[2] == fitting[3] == ["cycle 1->2->3->1"]
    keys = ["model", "resolution", "gflops_published", "gflops", "difference_percent", "params_m_published"]
    assert list(rows[4])[:6] == keys


@pytest.mark.slow
@pytest.mark.parametrize("table", ["out_branches", "pretraining"])
def test_every_row_is_counted(table: str) -> None:
    for row in reproduce(table):
        assert row["gflops_actual"] > 0 and row["params_m_actual"] > 0
        if "params_m_released_backbone" in row:
            assert row["params_m_actual"] == pytest.approx(row["params_m_released_backbone"], abs=0.006)


def test_formats() -> None:
    total = Part()
    total.add(("branch1", "mlp"), macs=3e9, params=2_000_000)
    total.add(("merge",), macs=1e9)
    report = Report("actual", (64, 96), total, ["pooling"])
    assert format_report(report, "csv").splitlines() == [
        "part,gflops,params_m,share_percent,accounting,input_size",
        "total,4.00,2.00,100.00,actual,64x96",
        "branch1,3.00,2.00,75.00,actual,64x96",
        "branch1/mlp,3.00,2.00,75.00,actual,64x96",
        "merge,1.00,0.00,25.00,actual,64x96",
    ]
    table = format_report(report, "table")
    assert "accounting: actual" in table and "not counted: pooling" in table and "\n  mlp" in table
    assert "| merge | 1.00 | 0.00 | 25.00 |" in format_report(report, "markdown")
    data = report.as_dict()
    assert (data["accounting"], data["input_size"], data["total_gflops"]) == ("actual", [64, 96], 4.0)
    assert data["parts"]["branch1"]["parts"]["mlp"] == {"gflops": 3.0, "params_m": 2.0}
    assert format_rows([{"a": None, "b": 1.0}], "csv") == "a,b\n,1.00"


def test_tables_are_known() -> None:
    known = {row["table"] for row in published_rows()}
    assert set(TABLES) <= known


def test_blocks_outside_stages_cost_nothing() -> None:
    with build_on_meta():
        branch = ViTBranch(embed_dim=64, depth=4, num_heads=4, patch_size=8, pretrain_image_size=32)
        full = PIIP([branch], [64], stages=[[(0, 3)]], merge="identity")
        half = PIIP([branch], [64], stages=[[(0, 1)]], merge="identity")
    for count in (actual_cost, published_cost):
        mlp = [count(piip).total.parts["branch1"].parts["mlp"].macs for piip in (full, half)]
        assert mlp[0] == 2 * mlp[1]
