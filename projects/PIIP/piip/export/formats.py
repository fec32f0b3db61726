"""Write models to files that run without this package's model code, and read them back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from .errors import ExportError, blame, blame_operator
from .model import Exportable
from .operators import standard_operators

__all__ = ["FORMATS", "Run", "load", "require", "trace", "write"]

FORMATS = {"torch-export": ".pt2", "onnx": ".onnx", "aotinductor": ".pt2"}
"""Names of the formats, and how their files end."""

OPSET = 20

Run = Callable[[Tensor], dict[str, Tensor]]
"""A model read from a file: from images ``(B, 3, H, W)``, float32, 0 to 255, to what it returns."""

_AXES = {0: "batch", 2: "height", 3: "width"}


def trace(model: Exportable) -> ExportedProgram:
    """The model as one graph of operators, for any batch (where it takes batches), height and width.

    Raises:
        ExportError: naming the part that cannot be traced, or the size that the graph insists on.
    """
    free = [axis for axis in _AXES if axis or model.batches]
    try:
        with torch.no_grad():
            program = torch.export.export(
                model.module, (model.example(),), dynamic_shapes=(dict.fromkeys(free, Dim.AUTO),)
            )
    except Exception as error:  # whatever a tracer meets inside a model
        raise blame(model.module, error) from error
    name = program.graph_signature.user_inputs[0]
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    symbols = {str(symbol) for symbol in program.range_constraints}
    for axis in free:
        # a size that an operator needed as a number stays a symbol, but is no longer free
        if str(shape[axis]) not in symbols:
            size = model.example().shape[axis]
            raise ExportError(f"the exported graph would only accept a {_AXES[axis]} of {size}")
        if axis and model.smallest > 1:
            _widen(program, shape[axis].node.expr, model.smallest)
    return program


def _widen(program: ExportedProgram, side: Any, smallest: int) -> None:
    """Allow a side to be as small as one window of the model.

    A graph traced with several windows requires several, because contiguity differs for a single window. The
    graph is correct for one window as well.
    """
    bounds = program.range_constraints[side]
    if smallest < bounds.lower:
        program.range_constraints[side] = ValueRanges(smallest, bounds.upper)


def write(model: Exportable, program: ExportedProgram, kind: str, path: Path) -> None:
    """Write a traced model.

    Args:
        model: what was traced.
        program: what :func:`trace` made of it.
        kind: one of :data:`FORMATS`: "torch-export" and "aotinductor" call this package's operator as it is,
            "onnx" has standard operators only, of opset 20.
        path: the file, overwritten where it exists.

    Raises:
        ExportError: naming the part whose operators the format does not have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "torch-export":
        torch.export.save(program, path)
    elif kind == "onnx":
        _write_onnx(model, program, path)
    else:
        _write_aotinductor(program, path)


def require(kind: str) -> None:
    """Raise ModuleNotFoundError where a library that a format needs is not installed."""
    for library in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        importlib.import_module(library)


def _write_onnx(model: Exportable, program: ExportedProgram, path: Path) -> None:
    require("onnx")
    standard = program.run_decompositions(standard_operators())
    try:
        result = torch.onnx.export(
            standard,
            input_names=["images"],
            output_names=list(model.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # whatever the translation of an operator raises
        raise blame_operator(standard, error) from error
    assert result is not None  # without a file name the program is returned
    result.save(str(path))


def _write_aotinductor(program: ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    # With its own choice of layouts, the compiler writes the input of a convolution over a dynamic number of
    # boxes in one order and reads it in another: an R-CNN's heads are then wrong, without an error.
    settings = {"layout_optimization": False}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # of the compiler's passes, or of the C++ compiler
        raise blame_operator(program, error) from error


def load(model: Exportable, kind: str, path: Path) -> Run:
    """Read a file that :func:`write` wrote."""
    if kind == "torch-export":
        # Guards on contiguity would refuse a batch of one image, or a single window, for which the graph is
        # correct; `compare` checks the results instead.
        return torch.export.load(path).module(check_guards=False)
    if kind == "onnx":
        return _load_onnx(path, model.outputs)
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))


def _load_onnx(path: Path, outputs: tuple[str, ...]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(list(outputs), {"images": images.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run
