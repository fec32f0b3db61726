"""What to do when a loss is infinite or NaN: pass over the step, or stop and say what there is to know."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ..weights.files.atomic import atomic
from .distributed.collectives import any_rank
from .parameter_groups import part_namer, plain_name

__all__ = ["NonfiniteGuard", "report"]

_logger = logging.getLogger("detectron2.piip")


class NonfiniteGuard:
    """Decides over steps whose loss is not finite; all processes decide alike.

    Args:
        tolerated: how many in a row are passed over; the one after them stops the run.
        folder: where the report of the stop goes.
    """

    def __init__(self, tolerated: int = 0, folder: str | os.PathLike[str] = "") -> None:
        if tolerated < 0:
            raise ValueError(
                f"train.skip_nonfinite is {tolerated}: expected the number of steps to tolerate, or 0"
            )
        self.tolerated, self.folder = tolerated, Path(folder)
        self.in_a_row = 0

    def should_skip_step(
        self,
        iteration: int,
        problem: str,
        *,
        model: nn.Module,
        losses: Mapping[str, Tensor],
        batch: Iterable[Mapping[str, Any]],
        forward: Callable[[], Any],
    ) -> bool:
        """Whether to leave this step out, without gradients and without an update.

        Args:
            iteration: of the step.
            problem: what is not finite in this process; empty where all is well.
            model: that was run.
            losses: of this process, by name, 0-dim.
            batch: records in Detectron2's format.
            forward: runs the step's forward pass once more, for the report.

        Raises:
            FloatingPointError: more steps in a row than are tolerated; the weights are as the last good step
                left them, and a report is in the folder.
        """
        here = bool(problem)
        if not any_rank(here):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        problem = problem or "in another process"
        if self.in_a_row <= self.tolerated:
            _logger.warning(
                f"iteration {iteration} is passed over ({problem}), {self.in_a_row} of {self.tolerated} in a "
                f"row that train.skip_nonfinite tolerates; its images: {', '.join(_files(batch))}"
            )
            return True
        # every process: the forward pass of a sharded model needs all of them
        content = {"iteration": iteration, "problem": problem}
        content |= report(model, losses, batch, forward)
        path = self.folder / f"nonfinite-{iteration:07d}-rank{comm.get_rank()}.json"
        if here:
            with atomic(path) as file:
                file.write(json.dumps(content, indent=1).encode())
            _logger.error("\n".join(_lines(content)))
        raise FloatingPointError(
            f"training diverged at iteration {iteration} ({problem}): it stops, checkpoints stay as they "
            f"are; lower optimizer.lr or look at the data, see {path}"
        )


def report(
    model: nn.Module,
    losses: Mapping[str, Tensor],
    batch: Iterable[Mapping[str, Any]],
    forward: Callable[[], Any],
) -> dict[str, Any]:
    """What there is to know about a step that went wrong, in plain containers.

    Args:
        model: that was run, before it is changed.
        losses: by name, 0-dim.
        batch: records in Detectron2's format.
        forward: runs the same forward pass once more.

    Returns:
        "losses" by name; "images": file, id, size and range of values of each; "first_nonfinite": the module
        whose output was the first not to be finite, None where each was; by part of the model "weight_norms",
        and "gradient_norms" as last logged; "nonfinite_weights": names of parameters. Numbers that are
        not finite are strings.
    """
    part = part_namer(model)
    weights: dict[str, list[Tensor]] = defaultdict(list)
    broken = []
    for name, parameter in model.named_parameters():
        weights[part(name)].append(parameter.detach())
        if not torch.isfinite(parameter.detach()).all():
            broken.append(plain_name(name))
    return {
        "losses": {name: _number(loss.item()) for name, loss in losses.items()},
        "images": [_image(record) for record in batch],
        "first_nonfinite": _first_nonfinite(model, forward),
        "weight_norms": {name: _norm(tensors) for name, tensors in weights.items()},
        "gradient_norms": _logged("grad_norm/"),
        "nonfinite_weights": broken,
    }


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    """A report for the log."""
    yield f"iteration {content['iteration']}: {content['problem']}"
    for key in ("losses", "weight_norms", "gradient_norms"):
        yield f"  {key.replace('_', ' ')}: " + ", ".join(f"{k} {v}" for k, v in content[key].items())
    for image in content["images"]:
        yield "  image: " + ", ".join(f"{k} {v}" for k, v in image.items())
    yield f"  first output that is not finite: {content['first_nonfinite'] or 'none'}"
    yield f"  weights that are not finite: {', '.join(content['nonfinite_weights']) or 'none'}"


def _logged(beginning: str) -> dict[str, float | str]:
    """The last values of metrics, by what follows the beginning of their names."""
    if not has_event_storage():
        return {}
    metrics = get_event_storage().latest().items()
    return {
        name.removeprefix(beginning): _number(value)
        for name, (value, _) in metrics
        if name.startswith(beginning)
    }


def _number(value: float) -> float | str:
    """JSON knows no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _norm(tensors: list[Tensor]) -> float | str:
    norm = torch.nn.utils.get_total_norm(tensors)
    return _number(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))


def _files(batch: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(record.get("file_name", record.get("image_id", "unnamed"))) for record in batch]


def _image(record: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: record[key] for key in ("file_name", "image_id") if key in record}
    if isinstance(image := record.get("image"), Tensor):
        known |= {"size": list(image.shape), "lowest": _number(image.min().item())}
        known |= {"highest": _number(image.max().item())}
    if "instances" in record:
        known["objects"] = len(record["instances"])
    return known


def _first_nonfinite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Name of the module whose output is the first that is not finite, when the forward pass runs again."""
    found: list[str] = []
    # Detectron2's own check raises over what is being looked for
    with _watched(model, found), torch.no_grad(), suppress(FloatingPointError):
        forward()
    return plain_name(found[0]) if found else None


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            if not found and not all(torch.isfinite(tensor).all() for tensor in _outputs(output)):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(output: Any) -> Iterator[Tensor]:
    """Floating-point tensors in what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _outputs(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _outputs(item)
