"""The linear kernels by themselves: every tile, layout, activation, dropout and size against fp64, their addresses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative
from fastgan.ops.dropout import dropped, scale, threshold

pytest.importorskip("triton")
from fastgan.kernels import linear as kernels
from fastgan.kernels import linear_bwd_input as to_input
from fastgan.kernels import linear_bwd_weight as to_weight
from fastgan.kernels.tile import Config, Problem, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
PHI = [("none", 0.0), ("relu", 0.0), ("leaky_relu", 0.2), ("leaky_relu", -0.3), ("tanh", 0.0), ("sigmoid", 0.0)]
LAYOUTS = ("rows", "columns", "steps", "expanded")
on_devices = pytest.mark.parametrize("device", DEVICES)


def operand(rows: int, cols: int, layout: str, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random numbers in one of the layouts that people pass."""
    generator = torch.Generator().manual_seed(seed)
    size = {"rows": (rows, cols), "columns": (cols, rows), "steps": (2 * rows, 3 * cols), "expanded": (1, 1)}[layout]
    values = torch.randn(size, generator=generator).to(dtype).to(device)
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "expanded": lambda v: v.expand(rows, cols)}
    return views.get(layout, lambda v: v)(values)


Case = tuple[Tensor, Tensor, Tensor | None, Tensor, str, float]  # x, w, bias, gy, activation, slope


def plain(case: Case, saved: Tensor | None) -> list[Tensor]:
    """Forward and the three gradients in the operands' own dtype, by torch."""
    x, w, bias, gy, activation, slope = case
    y = activate(F.linear(x, w, bias), activation, slope)
    g = times_derivative(gy, saved, activation, slope)
    return [y, g @ w, g.t() @ x, g.sum(0)]


def double(case: Case) -> Any:
    return tuple(part.double() if isinstance(part, Tensor) else part for part in case)


def by_kernels(case: Case) -> tuple[list[Tensor], Tensor | None]:
    x, w, bias, gy, activation, slope = case
    y, pre = kernels.linear_fwd(x, w, bias, activation, slope, slope < 0)
    saved = None if activation == "none" else y if pre is None else pre
    gx = to_input.linear_bwd_input(gy, saved, w, activation, slope)
    gw, gb = to_weight.linear_bwd_weight(gy, saved, x, activation, slope, True)
    assert gb is not None
    return [y, gx, gw, gb], saved


def judge(case: Case, ulp: float | None = None) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got, saved = by_kernels(case)
    exact = plain(double(case), None if saved is None else saved.double())
    return check(got, plain(case, saved), exact, ulp).why


def make(
    device: str, dtype: torch.dtype, sizes: tuple[int, int, int], layouts: tuple[str, str, str], activation: str,
    slope: float, bias: bool, seed: int = 0,
) -> Case:  # fmt: skip
    (M, N, K), (x, w, gy) = sizes, layouts
    return (
        operand(M, K, x, dtype, device, seed),
        operand(N, K, w, dtype, device, seed + 1),
        operand(1, N, "rows", dtype, device, seed + 2)[0] if bias else None,
        operand(M, N, gy, dtype, device, seed + 3),
        activation,
        slope,
    )


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(*[st.integers(1, 70) | st.sampled_from((16, 32, 64))] * 3))
    layouts = data.draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    slope = data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    assert judge(make(device, dtype, sizes, layouts, activation, slope, data.draw(st.booleans()))) is None


@on_devices
@pytest.mark.filterwarnings("error:divide by zero")  # the interpreter gets 0 where a GPU gets anything
@pytest.mark.parametrize("sizes", [(3, 300, 0), *(size for size in itertools.product((0, 5), repeat=3) if 0 in size)])
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_sizes_of_zero(device: str, sizes: tuple[int, int, int], activation: str) -> None:
    assert judge(make(device, torch.float32, sizes, ("rows",) * 3, activation, 0.0, True)) is None


@on_devices
@pytest.mark.parametrize("precision, dtype", [("tf32", torch.float16), ("ieee", torch.float32)])
def test_every_tile(device: str, precision: str, dtype: torch.dtype) -> None:
    """Each tile that a GPU's dispatcher may choose, whatever these sizes would make it choose."""
    case = make(device, dtype, (130, 20, 24), ("rows",) * 3, "leaky_relu", 0.2, True)
    x, w, bias, gy, *how = case
    (y, *_), saved = by_kernels(case)
    base, exact = plain(case, saved), plain(double(case), y.double())
    target = Target(80, precision)
    for tile in tiles("linear_fwd", device, dtype, precision, masked=False):
        out = torch.full_like(y, float("nan"))
        kernels.fwd_launch(x, w, bias, out, None, *how, target, config=tile).run()
        assert check(out, base[0], exact[0]).why is None, tile
    for tile in tiles("linear_bwd_input", device, dtype, precision, masked=True):
        gx, gw, gb = (torch.full(size, float("nan"), dtype=dtype, device=device) for size in (x.shape, w.shape, (20,)))
        to_input.bwd_input_launch(gy, saved, w, gx, *how, target, config=tile).run()
        to_weight.bwd_weight_launch(gy, saved, x, gw, gb, *how, target, config=tile).run()
        assert check([gx, gw, gb], base[1:], exact[1:]).why is None, tile


def tiles(op: str, device: str, dtype: torch.dtype, precision: str, masked: bool) -> list[Config]:
    """This card's tiles for large operands; on the CPU those of cards that have all between them."""
    found = {}
    archs = (86, 90) if device == "cpu" else (Target.of(torch.empty(0, device=device)).arch,)
    for arch, vectors in itertools.product(archs, (True, False)):
        size, target = (4096, 4096, 4096, dtype.itemsize), Target(arch, precision)
        for tile in candidates(Problem(op, *size, target, masked, vectors, splits=True)):
            found[str(tile)] = tile
    return list(found.values())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("sizes", [(4096, 512, 784), (1000, 1, 1034), (65536, 3, 2)])
def test_larger_sizes(dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    assert judge(make("cuda", dtype, sizes, ("rows",) * 3, "leaky_relu", 0.2, True)) is None


@on_devices
def test_same_bits_twice(device: str) -> None:
    case = make(device, torch.float32, (70, 40, 50), ("rows",) * 3, "tanh", 0.0, True)
    for first, second in zip(by_kernels(case)[0], by_kernels(case)[0], strict=True):
        assert torch.equal(first, second)


@on_devices
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
def test_a_wrong_mask_is_caught(device: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: derivatives taken from a saved output that is off by one row fail it."""
    case = make(device, torch.float32, (33, 20, 18), ("rows",) * 3, activation, 0.2, True)
    assert judge(case) is None
    right = to_input.linear_bwd_input
    monkeypatch.setattr(to_input, "linear_bwd_input", lambda gy, saved, *rest: right(gy, saved.roll(1, 0), *rest))
    assert judge(case) is not None


@on_devices
@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("activation, slope", PHI)
def test_dropout(device: str, activation: str, slope: float, first: bool, p: float) -> None:
    """Before or after the activation; a saved pre-activation is that before both."""
    rng = torch.tensor([-5, 2**40 + 1], device=device)
    for dtype in DTYPES[device]:
        x, w, bias, *_ = make(device, dtype, (37, 41, 20), ("rows", "columns", "rows"), activation, slope, True)
        assert bias is not None

        def plainly(x: Tensor, w: Tensor, bias: Tensor) -> list[Tensor]:
            pre = F.linear(x, w, bias)
            return [dropout_of(pre, rng, activation, slope, p, first), pre]

        with Poisoned():
            drop = kernels.Dropout(rng, threshold(p), scale(p), first)
            got = kernels.linear_fwd(x, w, bias, activation, slope, True, dropout=drop)
        assert check(got, plainly(x, w, bias), plainly(x.double(), w.double(), bias.double())).why is None


def dropout_of(pre: Tensor, rng: Tensor, activation: str, slope: float, p: float, first: bool) -> Tensor:
    """drop(phi(pre)), or phi(drop(pre))."""
    if first:
        return activate(dropped(pre, rng, p), activation, slope)
    return dropped(activate(pre, activation, slope), rng, p)


@on_devices
@pytest.mark.parametrize("p, first", [(None, False), (0.3, True), (0.3, False), (1.0, True), (1.0, False)])
@pytest.mark.parametrize("activation, slope", PHI)
def test_through_the_layer_below(device: str, activation: str, slope: float, first: bool, p: float | None) -> None:
    """The input gradient goes on through the activation, and the dropout, that the input came out of."""
    rng = torch.tensor([7, -3], device=device)
    for dtype in DTYPES[device]:
        pre = operand(37, 21, "rows", dtype, device, 1)
        w, gy = operand(18, 21, "columns", dtype, device, 2), operand(37, 18, "steps", dtype, device, 3)

        def output(pre: Tensor) -> Tensor:
            return activate(pre, activation, slope) if p is None else dropout_of(pre, rng, activation, slope, p, first)

        def gradient(pre: Tensor, w: Tensor, gy: Tensor) -> Tensor:
            pre = pre.clone().requires_grad_()
            return torch.autograd.grad(F.linear(output(pre), w), pre, gy)[0]

        drop = None if p is None else kernels.Dropout(rng, threshold(p), scale(p), first)
        below = to_input.Below(pre if slope < 0 else output(pre), activation, slope, drop)
        with Poisoned():
            got = to_input.linear_bwd_input(gy, None, w, "none", 0.0, below=below)
        assert check(got, gradient(pre, w, gy), gradient(pre.double(), w.double(), gy.double())).why is None


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
def test_tanh_and_sigmoid_keep_their_precision(device: str, size: float) -> None:
    """Also where every value is tiny, and where the exponential overflows."""
    x, one = size * operand(64, 1, "rows", torch.float32, device, 0), torch.ones(1, 1, device=device)
    eps = torch.finfo(torch.float32).eps
    for activation, function, least in (("tanh", torch.tanh, 0.0), ("sigmoid", torch.sigmoid, 1.0)):
        y, _ = kernels.linear_fwd(x, one, None, activation, 0.0)
        exact = function(x.double())
        assert (y - exact).abs().le(4 * eps * exact.abs().clamp(min=least)).all()
    many = torch.tensor([[float("nan"), float("inf"), -float("inf"), 200.0, -200.0]], device=device).t()
    for activation in ACTIVATIONS:
        y, _ = kernels.linear_fwd(many, one, None, activation, 0.2)
        torch.testing.assert_close(y, activate(many, activation, 0.2), equal_nan=True)


FAR = 2**26  # elements from one row to the next: row 32, the first of the second tile, begins 2^31 elements on


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Callable[[torch.dtype], Tensor]) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    near = [operand(34, cols, "rows", torch.float16, "cpu", seed) for seed, cols in enumerate((3, 3, 34))]
    room = sparse(torch.float16)
    far = [room.as_strided(t.shape, (FAR, 1), 2**31 + 64 * seed).copy_(t) for seed, t in enumerate(near)]
    (x, w, gy), (x_far, w_far, gy_far) = near, far
    expected, _ = by_kernels((x, w, None, gy, "leaky_relu", 0.2))
    results, _ = by_kernels((x_far, w_far, None, gy_far, "leaky_relu", 0.2))
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)
