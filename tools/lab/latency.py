"""Times detectors side by side: backbone, neck and the whole, in inference and in training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from piip.backbone import PIIP
from piip.engine.compilation import compile_blocks
from piip.flops import build_on_meta
from piip.inference import optimize_for_inference
from piip.inference.packed import PackedLinear, is_packable
from piip.measure.cost import detector_cost, find_trunk, load_detector, own_input_size

from .onednn import use_onednn_linear

__all__ = ["MODES", "PRECISIONS", "Contender", "Protocol", "compare", "matmul_peak"]

Mode = Literal["inference", "training"]
MODES: tuple[Mode, ...] = ("inference", "training")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_OBJECTS = 20  # annotated in an image to train on; COCO has 7 on average
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        runs: timed runs of each model, interleaved with those of the others; their median counts.
        onednn_linear: on a CPU, let linear layers run in oneDNN: those of "piip" models, of "all", or "none".
    """

    device: str = "cpu"
    runs: int = 5
    onednn_linear: Literal["none", "piip", "all"] = "none"


@dataclass
class Contender:
    """A detector that is measured.

    Attributes:
        name: what it is called in results.
        detector: in float32, on the device.
        input_size: height and width of the images it is given.
        gflops_backbone: multiply-adds up to the map that the neck starts from, in 1e9, for one image.
        gflops_detector: of everything, likewise.
        optimized: what :func:`piip.optimize_for_inference` made it for; None for a model as it was built.
    """

    name: str
    detector: Any
    input_size: tuple[int, int]
    gflops_backbone: float
    gflops_detector: float
    optimized: torch.dtype | None = None

    @property
    def is_piip(self) -> bool:
        """Whether its trunk is a PIIP."""
        return isinstance(find_trunk(self.detector.backbone)[1], PIIP)

    @classmethod
    def from_config(
        cls,
        config_file: str,
        protocol: Protocol,
        optimized: torch.dtype | None = None,
        *,
        compiled: bool = False,
        overrides: Sequence[str] = (),
    ) -> Contender:
        """Build the model of a LazyConfig with random weights, count it, and change, optimise or compile it.

        Args:
            config_file: path of the config.
            protocol: how it will be measured.
            optimized: what :func:`piip.optimize_for_inference` is to make it for.
            compiled: compile its blocks.
            overrides: "key=value" that change the config; the last part of each is added to the name.
        """
        with build_on_meta():
            cost = detector_cost(load_detector(config_file, overrides=overrides)).total
        heads = ("neck", "proposal_head", "box_head", "mask_head")
        above = sum(part.gflops for name, part in cost.parts.items() if name in heads)
        torch.manual_seed(0)
        detector: Any = load_detector(config_file, overrides=overrides).to(protocol.device)
        is_piip = isinstance(find_trunk(detector.backbone)[1], PIIP)
        _find_objects(detector)
        size = own_input_size(detector)
        name = ", ".join([Path(config_file).stem, *(override.rpartition(".")[2] for override in overrides)])
        if optimized is not None:
            name = f"{name}, optimised"
            optimize_for_inference(detector, optimized)
        elif protocol.onednn_linear == "all" or (protocol.onednn_linear == "piip" and is_piip):
            use_onednn_linear(detector)
        if compiled:
            name = f"{name}, compiled"
            compile_blocks(detector)
        return cls(name, detector, size, cost.gflops - above, cost.gflops, optimized)


def _find_objects(detector: Any) -> None:
    """Make random weights believe in the first class, so that in inference the mask head has work to do."""
    predictors = detector.roi_heads.box_predictor
    with torch.no_grad():
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else nn.ModuleList([predictors]):
            predictor.get_parameter("cls_score.bias")[0] += 5.0


@dataclass
class _Clock:
    """Time stamps of one run, in seconds."""

    device: str
    stamps: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.stamps[name] = time.perf_counter()

    def between(self, start: str, end: str) -> float:
        """Milliseconds."""
        return 1e3 * (self.stamps[end] - self.stamps[start])


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    return value.to(dtype)


@contextmanager
def _instrumented(
    detector: Any, clock: _Clock, dtype: torch.dtype, *, as_it_is: bool = False
) -> Iterator[None]:
    """Stamp the clock around the trunk and the backbone.

    The trunk runs in ``dtype``, weights included, unless the detector is to be left ``as_it_is``.
    """
    _, trunk = find_trunk(detector.backbone)
    # a PIIP is entered by its forward_pyramid where several maps of it may be wanted
    entry = "forward_pyramid" if isinstance(trunk, PIIP) else "forward"
    replaced = vars(trunk).get(entry)  # what replays graphs
    run_trunk, run_backbone = getattr(trunk, entry), detector.backbone.forward

    def timed_trunk(x: Tensor) -> Any:
        clock.mark("trunk starts")
        if as_it_is:
            output = run_trunk(x)
            clock.mark("trunk ends")
            return output
        with torch.autocast(x.device.type, enabled=False):
            output = run_trunk(x.to(dtype))
        clock.mark("trunk ends")
        return _cast(output, torch.float32)

    def timed_backbone(x: Tensor) -> Any:
        output = run_backbone(x)
        clock.mark("backbone ends")
        return output

    if not as_it_is:
        trunk.to(dtype)
    setattr(trunk, entry, timed_trunk)
    detector.backbone.forward = timed_backbone
    try:
        yield
    finally:
        delattr(trunk, entry)
        if replaced is not None:
            setattr(trunk, entry, replaced)
        del detector.backbone.forward
        if not as_it_is:
            trunk.to(torch.float32)


def _images(contender: Contender, batch: int, device: str, *, annotated: bool) -> list[dict[str, Any]]:
    height, width = contender.input_size
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(batch):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        inputs.append({"image": image.to(device), "height": height, "width": width})
        if annotated:
            corners = torch.rand(_OBJECTS, 2, 2, generator=generator).sort(1).values
            boxes = (0.9 * corners + torch.tensor([[0.0], [0.1]])) * torch.tensor([width, height])
            x0, y0, x1, y1 = boxes.flatten(1).unbind(1)
            polygons = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], 1).double().numpy()
            inputs[-1]["instances"] = Instances(
                (height, width),
                gt_boxes=Boxes(boxes.flatten(1).to(device)),
                gt_classes=torch.zeros(_OBJECTS, dtype=torch.int64, device=device),
                gt_masks=PolygonMasks([[polygon] for polygon in polygons]),
            )
    return inputs


def _resident(key: str) -> int:
    """A figure of this process's memory, in bytes, as Linux reports it."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _peak_memory(run: Callable[[], Any], device: str) -> int | None:
    """What running adds to memory at the worst moment, in bytes.

    On a CPU that is resident memory, of which only Linux tells the peak: None elsewhere.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR_REFS.exists():
        run()
        return None
    _CLEAR_REFS.write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


_PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 768, 3072), (1024, 3072, 768))
"""Rows, inner and columns of the matrix products that the best is looked for among, on a CPU."""


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds a second, in 1e9: the best of matrix products of several shapes.

    On a CPU each also as a 1x1 convolution and with packed weights, and the best 3x3 convolution of a map, so
    that no model is made of anything faster.
    """
    with torch.inference_mode():
        if device == "cuda":
            a, b = (torch.randn(8192, 8192, device=device).to(dtype) for _ in range(2))
            return 8192**3 / _shortest(lambda: a @ b, device) / 1e9
        rates = []
        for rows, inner, columns in _PRODUCTS:
            x = torch.randn(rows, inner).to(dtype)
            linear = nn.Linear(inner, columns, bias=False).to(dtype)
            image = x.reshape(1, rows // 32, 32, inner).permute(0, 3, 1, 2)  # a channels-last image
            kernel = linear.weight[:, :, None, None]
            forms: list[Callable[[], Any]] = [partial(linear, x), partial(F.conv2d, image, kernel)]
            if is_packable(linear):
                forms.append(partial(PackedLinear(linear), x))
            best = min(_shortest(form, device) for form in forms)
            rates.append(rows * inner * columns / best / 1e9)
        side, channels = 64, 256
        image = torch.randn(1, side, side, channels).to(dtype).permute(0, 3, 1, 2)
        kernel = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        seconds = _shortest(lambda: F.conv2d(image, kernel, padding=1), device)
        rates.append(9 * side**2 * channels**2 / seconds / 1e9)
    return max(rates)


def _shortest(call: Callable[[], Any], device: str, runs: int = 5) -> float:
    """Seconds of the shortest of some runs; the first, slower for setting up, is never it."""
    clock, best = _Clock(device), float("inf")
    for _ in range(runs):
        clock.mark("start")
        call()
        clock.mark("end")
        best = min(best, clock.between("start", "end") * 1e-3)
    return best


def _inference(
    contender: Contender, precision: str, batch: int, protocol: Protocol
) -> Callable[[], dict[str, float]]:
    detector, dtype = contender.detector.eval(), PRECISIONS[precision]
    inputs = _images(contender, batch, protocol.device, annotated=False)
    half = torch.autocast(protocol.device, dtype) if dtype != torch.float32 else nullcontext()

    def run() -> dict[str, float]:
        clock = _Clock(protocol.device)
        instrumented = _instrumented(detector, clock, dtype, as_it_is=contender.optimized is not None)
        with instrumented, torch.inference_mode(), half:
            clock.mark("start")
            detector(inputs)
            clock.mark("end")
        return {
            "backbone_ms": clock.between("trunk starts", "trunk ends"),
            "neck_ms": clock.between("trunk ends", "backbone ends"),
            "detector_ms": clock.between("start", "end"),
        }

    return run


def _training(
    contender: Contender, precision: str, batch: int, protocol: Protocol
) -> Callable[[], dict[str, float]]:
    detector, dtype = contender.detector, PRECISIONS[precision]
    inputs = _images(contender, batch, protocol.device, annotated=True)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-6)
    half = torch.autocast(protocol.device, dtype) if dtype != torch.float32 else nullcontext()

    def run() -> dict[str, float]:
        detector.train()
        clock = _Clock(protocol.device)
        clock.mark("start")
        with EventStorage(), half:
            losses = detector(inputs)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("end")
        return {"detector_ms": clock.between("start", "end")}

    return run


def compare(
    contenders: Sequence[Contender], precision: str, batch: int, mode: Mode, protocol: Protocol
) -> list[dict[str, Any]]:
    """Measure models side by side, the runs of one between those of the others.

    Each is run once before the clock counts; that run tells its memory. "backbone" reaches up to the map
    from which the neck starts. In inference in half precision the backbone's weights are kept in it and the
    rest runs under autocast; in training all runs under autocast with weights in float32. A training step is
    forward, backward and AdamW.

    Args:
        contenders: what to measure; ratios are to the first.
        precision: "fp32", "bf16" or "fp16".
        batch: images in a run.
        mode: "inference" or "training".
        protocol: how to measure.

    Returns:
        A dict for each: "model", "mode", "precision", "batch", "backbone_ms", "neck_ms", "detector_ms"
            (medians),
        each with its "..._spread_ms" (largest less smallest), "images_per_s", "weights_mb" (in float32),
        "peak_mb" (what a run adds to memory at the worst moment), "gflops_backbone", "gflops_detector",
        "peak_fraction" (multiply-adds a second in the backbone, in training those of the whole detector with
        the backward pass counted twice, as a fraction of the best the machine does in a matrix product),
        "ratio_backbone", "ratio_detector". What was not measured is None.
    """
    prepare = {"inference": _inference, "training": _training}[mode]
    runs = [prepare(contender, precision, batch, protocol) for contender in contenders]
    memory = [_peak_memory(run, protocol.device) for run in runs]
    times, peak = [], 0.0
    for _ in range(protocol.runs):  # the peak in turn with the models: the speed of a shared machine varies
        times.append([run() for run in runs])
        peak = max(peak, matmul_peak(protocol.device, PRECISIONS[precision]))
    rows = []
    for index, contender in enumerate(contenders):
        row: dict[str, Any] = {"model": contender.name, "mode": mode, "precision": precision, "batch": batch}
        for key in ("backbone_ms", "neck_ms", "detector_ms"):
            values = [time[index][key] for time in times if key in time[index]]
            row[key] = statistics.median(values) if values else None
            row[key.replace("_ms", "_spread_ms")] = max(values) - min(values) if values else None
        row["images_per_s"] = batch / row["detector_ms"] * 1e3
        added = memory[index]
        row["weights_mb"] = sum(p.numel() * p.element_size() for p in contender.detector.parameters()) / 2**20
        row["peak_mb"] = None if added is None else added / 2**20
        row["gflops_backbone"], row["gflops_detector"] = contender.gflops_backbone, contender.gflops_detector
        seconds = row["backbone_ms"] and row["backbone_ms"] / 1e3
        row["peak_fraction"] = seconds and contender.gflops_backbone * batch / seconds / peak
        if mode == "training":  # a gradient for the inputs and one for the weights
            row["peak_fraction"] = 3 * contender.gflops_detector * batch / (row["detector_ms"] / 1e3) / peak
        rows.append(row)
    for key in ("backbone", "detector"):
        first = rows[0][f"{key}_ms"]
        for row in rows:
            row[f"ratio_{key}"] = first and row[f"{key}_ms"] / first
    return rows
