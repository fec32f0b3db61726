"""Each classifier of the paper has a config; what was released has its names, what was published its cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from .. import require
from ..shared_data import key_list

require.detectron2()

from detectron2.config import instantiate

from lab.recipes import build_classifier_row
from lab.tables import published_rows, reproduce
from lab.zoo_check import check_classifier
from lab.zoo_table import markdown_table
from piip.engine.config import load_config
from piip.flops import build_on_meta, published_cost
from piip.weights.converters.classifier import convert_classifier
from piip.weights.zoo import PublishedModel, models_of

REPOSITORY = Path(__file__).parents[2]
CLASSIFIERS = models_of("classification")
FOLDER = REPOSITORY / "configs/ImageNet"
IDS = [row.config for row in CLASSIFIERS]


def test_rows_are_the_configs() -> None:
    assert {row.config for row in CLASSIFIERS} == {path.stem for path in FOLDER.glob("*.py")}
    assert markdown_table("classification") in (REPOSITORY / "projects/PIIP/README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("row", CLASSIFIERS, ids=IDS)
def test_rows(row: PublishedModel) -> None:
    assert check_classifier(row, FOLDER) == []


def test_wrong_rows_are_found() -> None:
    wrong = replace(
        CLASSIFIERS[0],
        params_m=1,
        gflops=1,
        gflops_published=1,
        params_m_published=1,
        image_sizes=(),
        scores={"top-1": 1},
    )
    problems = [problem.split(":")[0] for problem in check_classifier(wrong, FOLDER)]
    assert problems == [
        "image_sizes",
        "accuracy",
        "params_m",
        "gflops",
        "gflops_published",
        "params_m_published",
    ]


@pytest.mark.parametrize("row", [row for row in CLASSIFIERS if row.released], ids=lambda row: row.config)
def test_released_weights_fit(row: PublishedModel) -> None:
    """Every name and shape of a released classifier is one of its config's model, and none is left over."""
    listed = key_list("keys_tasks", f"classification__{row.name}")["keys"]
    released = convert_classifier({key: torch.empty(shape, device="meta") for key, shape in listed.items()})
    with build_on_meta():
        model = instantiate(load_config(str(FOLDER / f"{row.config}.py")).model)
    assert {k: v.shape for k, v in released.items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("sizes", "gflops"), [("368/192/128", 17.43), ("320/160/96", 39.02), ("384/192/128", 61.19)]
)
def test_published_costs(sizes: str, gflops: float) -> None:
    """To the digit that the published counter gives beyond the printed one."""
    (row,) = (r for r in published_rows() if r["table"] == "classification" and r["resolution"] == sizes)
    with build_on_meta():
        total = published_cost(build_classifier_row(row)).total
    assert total.gflops == pytest.approx(gflops, abs=0.005)
    assert total.params_m == pytest.approx(row["params_m_published"], abs=0.5)


def test_parts_of_piip_b() -> None:
    """Appendix C, in GFLOPs and millions of parameters; its total leaves out the 1000-way head."""
    (row,) = (r for r in published_rows() if "scratch" in r["model"])
    with build_on_meta():
        total = published_cost(build_classifier_row(row)).total
    published = {
        "branch1": (3.8, 59.6),
        "branch2": (4.3, 15.1),
        "branch3": (4.9, 4.0),
        "interactions": (5.1, 21.2),
        "merge": (None, 0.3),
    }
    for part, (gflops, params_m) in published.items():
        assert total.parts[part].params_m == pytest.approx(params_m, abs=0.05), part
        if gflops is not None:  # one is cut off rather than rounded: 3.87
            assert total.parts[part].gflops == pytest.approx(gflops, abs=0.1), part
    assert total.gflops == pytest.approx(18.4, abs=0.05)
    assert total.params_m - total.parts["classification_head"].params_m == pytest.approx(100.3, abs=0.05)


def test_the_table_is_reproduced() -> None:
    assert [row["status"] for row in reproduce("classification")] == ["reproduced"] * 4


def test_published_recipe() -> None:
    """Rates, batch and length of the released classifiers, as timm builds them."""
    cfg = load_config(str(FOLDER / "piip_tsb_368_192_128_20ep.py"))
    model = torch.nn.Linear(1, 1)
    cfg.optimizer.model_or_params = model
    optimizer = instantiate(cfg.optimizer)
    assert cfg.optimizer._target_ is create_optimizer_v2
    assert cfg.lr_scheduler._target_ is create_scheduler_v2
    cfg.lr_scheduler.optimizer = optimizer
    scheduler, epochs = instantiate(cfg.lr_scheduler)
    assert epochs == cfg.train.plan.epochs == 20
    assert cfg.train.total_batch_size == 1024
    rates = []
    for epoch in range(21):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])  # beside the branches: ten times theirs
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[5]
    assert rates[-1] == pytest.approx(1e-5)
    assert instantiate(cfg.mixup).num_classes == 1000
