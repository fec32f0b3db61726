"""The operators within PyTorch: opcheck, compile, export, autocast, errors, and life without a build."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import piip_ops
from piip_ops import deform_cross_attn, deform_cross_attn_reference, ms_deform_attn, ms_deform_attn_reference

from .cases import DEVICE, cross_inputs, error, ms_inputs

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(
    piip_ops.build_info()["extension"] == "missing", reason="the piip_ops extension is not built"
)
SHAPES = [[6, 4], [3, 2], [1, 1]]
FLAT = [6, 4, 3, 2, 1, 1]


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_opcheck(dtype):
    cross = [t.requires_grad_() for t in cross_inputs(dtype=dtype)]
    ms = [t.requires_grad_() for t in ms_inputs(dtype=dtype)]
    torch.library.opcheck(torch.ops.piip_ops.deform_cross_attn, (*cross, [5, 7], [6, 4]))
    torch.library.opcheck(torch.ops.piip_ops.ms_deform_attn, (ms[0], FLAT, ms[1], ms[2]))
    cross, ms = [t.detach() for t in cross], [t.detach() for t in ms]
    grad = torch.randn(2, 35, 24).to(DEVICE, dtype)
    torch.library.opcheck(torch.ops.piip_ops.deform_cross_attn_backward, (grad, *cross, [5, 7], [6, 4]))
    grad = torch.randn(2, 11, 15).to(DEVICE, dtype)
    torch.library.opcheck(torch.ops.piip_ops.ms_deform_attn_backward, (grad, ms[0], FLAT, ms[1], ms[2]))


@compiled
def test_double_backward_says_what_to_do():
    inputs = [t.requires_grad_() for t in cross_inputs()]
    grads = torch.autograd.grad(
        deform_cross_attn(*inputs, (5, 7), (6, 4)).square().sum(), inputs, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"once only.*deform_cross_attn_reference"):
        torch.autograd.grad(sum(g.sum() for g in grads), inputs)


@compiled
@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad,
        torch.func.jacrev,
        torch.func.hessian,
        lambda f: lambda x: torch.vmap(f)(x[None]),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
        lambda f: lambda x: torch.func.vjp(f, x),
    ],
    ids=["grad", "jacrev", "hessian", "vmap", "jvp", "vjp"],
)
def test_transforms_say_what_to_do(transform):
    value, offsets, logits = cross_inputs()
    functions = [
        lambda x: deform_cross_attn(x, offsets, logits, (5, 7), (6, 4)).sum(),
        lambda x: ms_deform_attn(
            x,
            SHAPES[:1],
            LOCATIONS[:, :, :1, :1].expand(-1, -1, 4, -1, -1, -1),
            WEIGHTS[:, :, :1, :1].expand(-1, -1, 4, -1, -1),
        ).sum(),
    ]
    for function in functions:
        with pytest.raises(RuntimeError, match=r"^piip_ops: .*torch\.func.*_reference") as caught:
            transform(function)(value)
        assert "\n" not in str(caught.value)


@compiled
def test_forward_mode_says_so():
    value, offsets, logits = cross_inputs()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(offsets, offsets)
        with pytest.raises(RuntimeError, match=r"^piip_ops: .*no forward-mode derivatives") as caught:
            deform_cross_attn(value, dual, logits, (5, 7), (6, 4))
    assert "\n" not in str(caught.value)


class Attention(nn.Module):
    """Two maps that look at each other, sizes taken from the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Linear(24, 4 * 4 * 2)
        self.logits = nn.Linear(24, 4 * 4)

    def forward(self, query: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = query.shape
        return deform_cross_attn(
            feat.reshape(batch, -1, 4, 6),
            self.offsets(query).reshape(batch, -1, 4, 4, 2),
            self.logits(query).reshape(batch, -1, 4, 4),
            (height, width),
            (feat.shape[1], feat.shape[2]),
        )


def test_traces_and_flop_counters_hand_sizes_on_as_tensors():
    torch.manual_seed(0)
    model = Attention().to(DEVICE)
    inputs = torch.randn(2, 5, 6, 24, device=DEVICE), torch.randn(2, 4, 7, 24, device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a size becomes a constant of the trace
        traced = torch.jit.trace(model, inputs)
    torch.testing.assert_close(traced(*inputs), model(*inputs))
    fvcore = pytest.importorskip("fvcore.nn")
    analysis = fvcore.FlopCountAnalysis(model, inputs).set_op_handle(**piip_ops.flop_handles())
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    if piip_ops.build_info()["extension"] == "built":
        # batch, queries, heads, points, channels; 5 per channel
        assert analysis.by_operator()["deform_cross_attn"] == 2 * 30 * 4 * 4 * 6 * 5
    assert analysis.by_operator()["linear"] == 2 * 30 * 24 * (32 + 16)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
def test_levels_as_a_tensor_and_under_trace(function):
    value, locations, weights = ms_inputs(shapes=SHAPES)
    expected = function(value, SHAPES, locations, weights)
    assert torch.equal(function(value, torch.tensor(SHAPES), locations, weights), expected)
    assert torch.equal(function(value, np.array(SHAPES), locations, weights), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            lambda v, maps, *x: function(v, [m.shape[:2] for m in maps], *x),
            (value, [torch.zeros(shape) for shape in SHAPES], locations, weights),
        )
    assert torch.equal(traced(value, [torch.zeros(shape) for shape in SHAPES], locations, weights), expected)


def test_compile_with_dynamic_sizes():
    torch.manual_seed(0)
    model = Attention().to(DEVICE)
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, size in ((2, 5), (3, 6), (1, 9)):
        query = torch.randn(batch, size, size + 1, 24, device=DEVICE)
        feat = torch.randn(batch, size - 2, size, 24, device=DEVICE)
        out = fast(query, feat)
        torch.testing.assert_close(out, model(query, feat))
        out.sum().backward()
    assert model.offsets.weight.grad.isfinite().all()


def test_export_with_dynamic_sizes():
    torch.manual_seed(0)
    model = Attention().to(DEVICE)
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    exported = torch.export.export(
        model,
        (torch.randn(2, 5, 6, 24, device=DEVICE), torch.randn(2, 4, 7, 24, device=DEVICE)),
        dynamic_shapes=({0: batch, 1: height, 2: width}, {0: batch}),
    ).module()
    query, feat = torch.randn(3, 8, 9, 24, device=DEVICE), torch.randn(3, 4, 7, 24, device=DEVICE)
    torch.testing.assert_close(exported(query, feat), model(query, feat))


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_positions_in_float32(dtype):
    value, offsets, logits = cross_inputs(dtype=torch.float32)
    with torch.autocast(DEVICE.type, dtype=dtype):
        mixed = deform_cross_attn(value, offsets, logits, (5, 7), (6, 4))
        halved = deform_cross_attn(value.to(dtype), offsets.to(dtype), logits, (5, 7), (6, 4))
    assert mixed.dtype == halved.dtype == dtype
    assert torch.equal(mixed, deform_cross_attn(value.to(dtype), offsets, logits, (5, 7), (6, 4)))
    assert torch.equal(
        halved, deform_cross_attn(value.to(dtype), offsets.to(dtype).float(), logits, (5, 7), (6, 4))
    )


def test_half_value_takes_float32_positions():
    value, offsets, logits = cross_inputs(dtype=torch.float32)
    half = value.to(torch.bfloat16)
    actual = deform_cross_attn(half, offsets, logits, (5, 7), (6, 4))
    expected = deform_cross_attn_reference(half.double(), offsets.double(), logits.double(), (5, 7), (6, 4))
    assert actual.dtype == torch.bfloat16
    assert error(actual, expected) < 2**-8  # one rounding


VALUE, OFFSETS, LOGITS = cross_inputs()
MS_VALUE, LOCATIONS, WEIGHTS = ms_inputs()
HUGE = 2**31 - 3  # the longest side of a float64 map


def _wrapping():
    """Locations and weights for 29 levels, whose 2^64 + 31 positions are the 31 of value in 64 bits."""
    return LOCATIONS[:, :, :, :1].expand(-1, -1, -1, 29, -1, -1), WEIGHTS[:, :, :, :1].expand(
        -1, -1, -1, 29, -1
    )


def _one_level():
    return LOCATIONS[:, :, :, :1].float(), WEIGHTS[:, :, :, :1].float()


CROSS_MISTAKES = {
    "value": [(VALUE[0], OFFSETS, LOGITS, (5, 7), (6, 4)), (VALUE.long(), OFFSETS, LOGITS, (5, 7), (6, 4))],
    "offsets": [
        (VALUE, OFFSETS[..., :1], LOGITS, (5, 7), (6, 4)),
        (VALUE, OFFSETS[:1], LOGITS, (5, 7), (6, 4)),
        (VALUE, OFFSETS.float(), LOGITS.float(), (5, 7), (6, 4)),
        (VALUE, OFFSETS.to("meta"), LOGITS, (5, 7), (6, 4)),
    ],
    "logits": [
        (VALUE, OFFSETS, LOGITS[..., :3], (5, 7), (6, 4)),
        (VALUE, OFFSETS, LOGITS.float(), (5, 7), (6, 4)),
    ],
    "query_shape": [(VALUE, OFFSETS, LOGITS, (5, 8), (6, 4)), (VALUE, OFFSETS, LOGITS, (35,), (6, 4))],
    "value_shape": [
        (VALUE, OFFSETS, LOGITS, (5, 7), (6, 5)),
        (VALUE, OFFSETS, LOGITS, (5, 7), (-6, -4)),
        (VALUE, OFFSETS, LOGITS, (5, 7), (24,)),
        (VALUE.float()[:, :1].expand(-1, 2**24, -1, -1), OFFSETS.float(), LOGITS.float(), (5, 7), (1, 2**24)),
        (VALUE, OFFSETS, LOGITS, (5, 7), (HUGE, HUGE)),
        (VALUE, OFFSETS, LOGITS, (5, 7), (6.0, 4)),
        (VALUE, OFFSETS, LOGITS, (5, 7), (2**70, 4)),
    ],
}
MS_MISTAKES = {
    "spatial_shapes": [
        (MS_VALUE, SHAPES[:2], LOCATIONS, WEIGHTS),
        (MS_VALUE, [], LOCATIONS, WEIGHTS),
        (MS_VALUE, [[6, 4, 1], [3, 2], [1, 1]], LOCATIONS, WEIGHTS),
        (MS_VALUE, [["6", 4], [3, 2], [1, 1]], LOCATIONS, WEIGHTS),
        (MS_VALUE, [[6, 4], [7, 1], [0, 3]], LOCATIONS, WEIGHTS),
        (MS_VALUE, [[HUGE, HUGE]] * 4 + [[HUGE, 1]] * 24 + [[67, 1]], *_wrapping()),
        (MS_VALUE.float()[:, :1].expand(-1, 2**24, -1, -1), [[1, 2**24]], *_one_level()),
    ],
    "sampling_locations": [(MS_VALUE, SHAPES, LOCATIONS[:, :, :2], WEIGHTS)],
    "attention_weights": [
        (MS_VALUE, SHAPES, LOCATIONS, WEIGHTS[:, :5]),
        (MS_VALUE, SHAPES, LOCATIONS, WEIGHTS.half()),
    ],
}


@pytest.mark.parametrize("function", [deform_cross_attn, deform_cross_attn_reference])
@pytest.mark.parametrize(("name", "args"), [(n, a) for n, many in CROSS_MISTAKES.items() for a in many])
def test_cross_mistakes_name_the_argument(function, name, args):
    with pytest.raises((ValueError, RuntimeError), match=f"{name}: "):
        function(*args)


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(("name", "args"), [(n, a) for n, many in MS_MISTAKES.items() for a in many])
def test_ms_mistakes_name_the_argument(function, name, args):
    with pytest.raises((ValueError, RuntimeError), match=f"{name}: "):
        function(*args)


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPARE = """
import torch, piip_ops
from tests.piip_ops.cases import *
from tests.piip_ops.test_values import TOLERANCE
for dtype, bound in TOLERANCE.items():
    for heads, points in ((16, 4), (5, 3)):
        for channels in CHANNELS:
            inputs = cross_inputs(heads=heads, channels=channels, points=points, dtype=dtype)
            actual = out_and_grads(lambda *x: piip_ops.deform_cross_attn(*x, (5, 7), (6, 4)), inputs)
            wide = [t.double() for t in inputs]
            reference = piip_ops.deform_cross_attn_reference
            expected = out_and_grads(lambda *x: reference(*x, (5, 7), (6, 4)), wide, dtype)
            assert max(map(error, actual, expected)) < bound, (dtype, heads, channels)
print(piip_ops.build_info()["cpu"])
"""


@compiled
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set(capability):
    """A build for all instruction sets runs on any CPU: PyTorch's own switch chooses the kernels."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    if here not in order or order.index(capability.upper()) > order.index(here):
        pytest.skip(f"this CPU has {here} only")
    expected = {"default": "baseline", "avx2": "AVX2", "avx512": "AVX512"}[capability]
    assert (
        _python(COMPARE, ATEN_CPU_CAPABILITY=capability, PIIP_OPS_DEVICE="cpu").strip()
        == f"{expected} kernels"
    )


def test_without_the_extension_one_warning_and_the_reference():
    out = _python(
        "import sys, warnings\n"
        "sys.modules['piip_ops._C'] = None\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import piip_ops\n"
        "    ours = [w for w in caught if 'piip_ops' in str(w.message)]\n"
        "import torch\n"
        "value, offsets = torch.ones(1, 4, 1, 3), torch.zeros(1, 4, 1, 2, 2)\n"
        "out = piip_ops.deform_cross_attn(value, offsets, torch.zeros(1, 4, 1, 2), (2, 2), (2, 2))\n"
        "print(len(ours), piip_ops.build_info()['extension'], float(out.sum()))\n"
    )
    assert out.split() == ["1", "missing", "12.0"]
