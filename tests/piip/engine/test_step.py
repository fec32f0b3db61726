"""Options of the step: parts of a batch, clipping, scaled learning rates, averages, checked settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ... import require

require.detectron2()

from omegaconf import OmegaConf

from piip.engine.ema import AverageWeights, EMAUpdate
from piip.engine.optim import param_groups, scaled_lr
from piip.engine.settings import TrainSettings, complete
from piip.engine.train import Trainer

IMAGES = [torch.linspace(-1, 1, 4) * (n + 1) for n in range(6)]


class Regression(nn.Module):
    """Mean over a batch's images of a loss; it notes the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)
        self.seen: list[int] = []

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        self.seen.append(len(batch))
        return {"loss": self.linear(torch.stack(batch)).sub(1).square().mean()}


def trained(steps: int = 1, **options: Any) -> tuple[Regression, Trainer]:
    model = Regression()
    trainer = Trainer(model, [IMAGES] * steps, torch.optim.SGD(model.parameters(), lr=0.1), seed=0, **options)
    trainer.train(0, steps)
    return model, trainer


@pytest.mark.parametrize(("parts", "sizes"), [(2, [3, 3]), (4, [1, 2, 1, 2]), (6, [1] * 6)])
def test_parts_add_up_to_the_batch(parts: int, sizes: list[int]) -> None:
    """Equal and unequal parts, the same gradient and loss.

    Not bit for bit: a sum over parts of sums over images rounds otherwise than one sum, in float32.
    """
    model, trainer = trained(accumulate=parts)
    expected, at_once = trained()
    assert (model.seen, expected.seen) == (sizes, [6])
    torch.testing.assert_close(model.linear.weight.grad, expected.linear.weight.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.linear.weight, expected.linear.weight, rtol=1e-6, atol=1e-6)
    logged, whole = (t.storage.history("total_loss").latest() for t in (trainer, at_once))
    assert logged == pytest.approx(whole, rel=1e-6)


def test_more_parts_than_images() -> None:
    with pytest.raises(ValueError, match=r"train\.accumulate=7 splits batches of 6 images per process"):
        trained(accumulate=7)


def test_clipping_by_norm() -> None:
    """The step is shortened to the norm given, and the log has the norm from before."""
    free, _ = trained()
    norm = torch.stack([p.grad.norm() for p in free.parameters()]).norm().item()
    clipped, trainer = trained(clip_grad_norm=norm / 4)
    assert trainer.storage.history("grad_norm").latest() == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(clipped.linear.bias, free.linear.bias / 4, rtol=1e-4, atol=0)
    generous, _ = trained(clip_grad_norm=norm * 4)
    assert torch.equal(generous.linear.weight, free.linear.weight)


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({}, 1e-4),
        ({"reference_batch_size": 16}, 4e-4),
        ({"reference_batch_size": 16, "lr_scaling": "sqrt"}, 2e-4),
    ],
)
def test_learning_rate_follows_the_batch(settings: dict[str, Any], lr: float) -> None:
    cfg = OmegaConf.create(
        {"optimizer": {"lr": 1e-4}, "dataloader": {"train": {"total_batch_size": 64}}, "train": settings}
    )
    assert scaled_lr(cfg, TrainSettings.of(cfg)) == pytest.approx(lr)


def test_a_scalar_that_sharding_made_a_vector_keeps_its_weight_decay() -> None:
    model = nn.ParameterDict({"scalar": torch.ones(1), "vector": torch.ones(2)})
    groups = param_groups(model, base_lr=1, weight_decay=0.5)
    assert {p.numel(): group["weight_decay"] for group in groups for p in group["params"]} == {1: 0.5, 2: 0}


def test_average_of_the_weights() -> None:
    """The recursion itself, from the weights after the first step; swapping gives the model the average."""
    model = Regression()
    average = AverageWeights(model, decay=0.75, warmup=False)
    trainer = Trainer(model, [IMAGES] * 3, torch.optim.SGD(model.parameters(), lr=0.1), seed=0)
    seen: list[Tensor] = []

    class Note(EMAUpdate):
        def after_step(self) -> None:
            super().after_step()
            seen.append(model.linear.weight.detach().clone())

    trainer.register_hooks([Note(average)])
    trainer.train(0, 3)
    expected = seen[0]
    for weights in seen[1:]:
        expected = 0.75 * expected + 0.25 * weights
    raw = model.linear.weight.detach().clone()
    with average.swapped():
        torch.testing.assert_close(model.linear.weight.detach(), expected)
    assert torch.equal(model.linear.weight, raw)
    other = AverageWeights(Regression(), decay=0.75, warmup=False)
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": "horovod"}, "train.parallel is 'horovod': use one of ddp, fsdp"),
        ({"accumulate": 0}, "train.accumulate is 0: expected a number of micro-batches, at least 1"),
        ({"accumulate": "two"}, "train.accumulate: .*two"),
        ({"ema_decay": 1.0}, "train.ema_decay is 1.0: use 0 for none, or a share below 1"),
        ({"clip_grad_norm": -1}, "train.clip_grad_norm is -1.0: use 0 for none, or more"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings.of(OmegaConf.create({"train": settings}))


def test_defaults_are_written_out() -> None:
    """So that command lines can change them; what a config sets stays."""
    config = complete(OmegaConf.create({"train": {"precision": "bfloat16", "max_iter": 3}}))
    assert config.train.precision == "bfloat16"
    assert config.train.accumulate == 1
    assert TrainSettings.of(config) == TrainSettings(precision="bfloat16")


class Detector(nn.Module):
    """A backbone with a neck, and a head; it notes in which types they compute."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = Map("f1", nn.Linear(4, 4))
        self.neck, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        self.types: list[torch.dtype] = []

    def forward(self, batch: list[Tensor]) -> dict[str, Tensor]:
        maps = self.backbone.bottom_up(torch.stack(batch))
        self.types = [self.backbone.bottom_up.dtype, maps["f1"].dtype, self.head(self.neck(maps["f1"])).dtype]
        return {"loss": self.head(self.neck(maps["f1"])).square().mean()}


class Map(nn.Module):
    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name, self.layer, self.broken = name, layer, False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.broken:
            raise RuntimeError("out of memory")
        out = self.layer(x)
        self.dtype = out.dtype
        return {self.name: out}


@pytest.mark.parametrize("heads", [False, True])
def test_heads_in_float32(heads: bool) -> None:
    """The backbone in bfloat16 either way, what follows it in float32 where asked for."""
    model = Detector()
    trainer = Trainer(
        model,
        [IMAGES],
        torch.optim.SGD(model.parameters(), lr=0.1),
        seed=0,
        precision="bfloat16",
        float32_heads=heads,
    )
    trainer.train(0, 1)
    half, full = torch.bfloat16, torch.float32
    assert model.types == ([half, full, full] if heads else [half] * 3)
    model.backbone.bottom_up.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer._forward(IMAGES)
    assert not torch.is_autocast_enabled("cpu")
    assert not model.backbone.bottom_up._forward_hooks
