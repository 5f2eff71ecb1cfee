"""Bias, activation and dropout by themselves: every order, layout and size against fp64, and the sums over rows."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops import dropout
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import bias_act as kernels
from fastgan.kernels import launch

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "columns", "steps", "expanded", "one row")
ORDERS = [(activation, first) for activation in ACTIVATIONS for first in (False, True)]
on_devices = pytest.mark.parametrize("device", DEVICES)


def operand(rows: int, cols: int, layout: str, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random numbers in one of the layouts that people pass."""
    size = {"columns": (cols, rows), "steps": (2 * rows, 3 * cols), "expanded": (1, 1), "one row": (1, cols)}
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size.get(layout, (rows, cols)), generator=generator).to(dtype).to(device)
    if layout in ("expanded", "one row"):  # of few bits: a sum of equal numbers is then exact in whatever order
        return values.mul(16).round().div(16).expand(rows, cols)
    return {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3]}.get(layout, lambda v: v)(values)


@dataclass(frozen=True)
class Case:
    v: Tensor
    gy: Tensor
    bias: Tensor | None
    activation: str = "leaky_relu"
    slope: float = 0.2
    p: float | None = None  # None: no dropout at all
    first: bool = False

    @property
    def rng(self) -> Tensor:
        return torch.tensor([2**33 + 1, 7], device=self.v.device)

    @property
    def dropping(self) -> dict[str, Any]:
        if self.p is None:
            return {}
        sizes = {"threshold": dropout.threshold(self.p), "scale": dropout.scale(self.p)}
        return {"rng": self.rng, **sizes, "dropout_first": self.first}


def make(device: str, dtype: torch.dtype, M: int, N: int, *layouts: str, **how: Any) -> Case:
    v, gy = (operand(M, N, layout, dtype, device, seed) for seed, layout in enumerate(layouts or ("rows", "rows")))
    return Case(v, gy, operand(1, N, "rows", dtype, device, 2)[0], **how)


def formula(case: Case) -> tuple[Tensor, Tensor]:
    """The result and the pre-activation, by torch."""
    pre = case.v if case.bias is None else case.v + case.bias
    drop = (lambda t: t) if case.p is None else lambda t: dropout.dropped(t, case.rng, case.p)
    if case.first:
        return activate(drop(pre), case.activation, case.slope), pre
    return drop(activate(pre, case.activation, case.slope)), pre


def gradients(case: Case, saved: Tensor | None) -> list[Tensor]:
    """The gradients of v and of the bias from what was saved, by torch."""
    g = case.gy
    keep = None if case.p is None else dropout.keep_mask(case.rng, g.shape, case.p)
    scale = 1.0 if case.p is None else dropout.scale(case.p)
    if saved is not None and not case.first and case.activation in ("tanh", "sigmoid") and scale:
        saved = saved / scale
    g = times_derivative(g, saved, case.activation, case.slope)
    g = g if keep is None else torch.where(keep, g * scale, 0)
    return [g, g.sum(0)]


def double(case: Case) -> Case:
    return replace(case, v=case.v.double(), gy=case.gy.double(), bias=None if case.bias is None else case.bias.double())


def by_kernels(case: Case, in_place: bool = False) -> tuple[list[Tensor], Tensor | None]:
    """Result, pre-activation where it is saved, and the two gradients; then what was saved."""
    keeps = case.slope < 0
    v = case.v.clone(memory_format=torch.contiguous_format) if in_place else case.v
    how = (case.activation, case.slope)
    y, pre = kernels.bias_act_fwd(v, case.bias, *how, **case.dropping, store_pre=keeps, in_place=in_place)
    assert (y is v) == in_place and (pre is not None) == keeps
    saved = None if case.activation == "none" else y if pre is None else pre
    g, gb = kernels.bias_act_bwd(case.gy, saved, *how, **case.dropping, with_bias=True)
    assert gb is not None
    alone, none = kernels.bias_act_bwd(case.gy, saved, *how, **case.dropping)
    assert torch.equal(alone, g) and none is None
    return [y, *([] if pre is None else [pre]), g, gb], saved


def judge(case: Case, in_place: bool = False) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got, saved = by_kernels(case, in_place)
    parts = 2 if case.slope < 0 else 1
    exact = double(case)
    base = [*formula(case)[:parts], *gradients(case, saved)]
    wanted = [*formula(exact)[:parts], *gradients(exact, None if saved is None else saved.double())]
    smooth = 2 if case.activation in ("tanh", "sigmoid") else 1  # by exp: good to 4 ulp, where torch errs by one
    return check(got, base, wanted, smooth * torch.finfo(case.v.dtype).eps).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    M = data.draw(st.integers(1, 300) | st.sampled_from((16, 32, 64, 128)))
    N = data.draw(st.integers(8, 80) | st.sampled_from((10, 16, 36, 64, 100, 256, 272)))  # a lone sum has no scale
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    case = make(
        device,
        data.draw(st.sampled_from(DTYPES[device])),
        M,
        N,
        data.draw(st.sampled_from(LAYOUTS)),
        data.draw(st.sampled_from(LAYOUTS)),
        activation=activation,
        slope=data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0,
        p=data.draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.7, 1.0])),
        first=data.draw(st.booleans()),
    )
    case = case if data.draw(st.booleans()) else replace(case, bias=None)
    assert judge(case, data.draw(st.booleans())) is None


@on_devices
@pytest.mark.parametrize("activation, first", ORDERS)
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_gradients_are_autograds(device: str, activation: str, first: bool, p: float) -> None:
    """From v on, with the same mask: so the derivative from the saved output is that of the formula."""
    case = make(device, torch.float32, 48, 20, activation=activation, p=p, first=first)
    got, _ = by_kernels(case)
    results = []
    for twin in (case, double(case)):
        twin = replace(twin, v=twin.v.requires_grad_(), bias=twin.bias.requires_grad_())  # type: ignore[union-attr]
        y, _ = formula(twin)
        results.append([y, *torch.autograd.grad(y, (twin.v, twin.bias), twin.gy)])  # type: ignore[arg-type]
    assert check([t.detach() for t in got], *results).why is None
    if p == 1:
        at_0 = 0.5 if activation == "sigmoid" and first else 0.0
        assert got[0].eq(at_0).all() and got[1].eq(0).all() and got[2].eq(0).all()


@on_devices
@pytest.mark.parametrize("M, N", [(0, 0), (0, 5), (5, 0)])
def test_sizes_of_zero(device: str, M: int, N: int) -> None:
    assert judge(make(device, torch.float32, M, N, p=0.5, slope=-0.1)) is None


@on_devices
@pytest.mark.parametrize("M, N", [(1024, 1), (1023, 1), (512, 10), (300, 24), (77, 64), (13, 602), (4112, 3)])
@pytest.mark.parametrize("programs, parts", [(512, 256), (4, 3), (1, 1)])
def test_sums_in_any_number_of_parts(
    device: str, M: int, N: int, programs: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few programs walk down many blocks of rows; joined rows come apart again in the sum."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    monkeypatch.setattr(kernels, "PARTS", parts)
    monkeypatch.setattr(launch, "_replays", {})
    case = make(device, torch.float32, M, N, activation="tanh", p=0.3)
    assert judge(case) is None


def test_few_enough_parts_for_the_last_to_add() -> None:
    """And enough programs, of 256 threads, to keep a card busy."""
    for M, N in ((2**20, 64), (65536, 1), (65536, 4096), (4096, 1024), (2**20, 1034), (16, 2**20), (2**20, 3)):
        v, gb = torch.empty(M, N, device="meta"), torch.empty(N, device="meta")
        bwd = kernels.bwd_launch(v, v, None, v, gb, "relu", 0.0)
        across = -(-bwd.arguments["N"] // bwd.config.cols)  # type: ignore[operator]
        parts = bwd.programs // across
        assert parts == bwd.arguments["parts"] <= kernels.PARTS
        assert bwd.programs <= max(kernels.PROGRAMS, across)
        assert bwd.programs > kernels.PROGRAMS / 5 or parts * bwd.config.rows >= bwd.arguments["M"]


JOINED = [
    (64, 1, "rows", 16),
    (64, 3, "rows", 16),
    (24, 10, "rows", 8),
    (64, 3, "expanded", 16),
    (64, 1, "columns", 16),
]
APART = [(12, 10, "rows", 1), (8, 32, "rows", 1), (64, 3, "columns", 1), (64, 3, "steps", 1), (64, 3, "one row", 1)]


@pytest.mark.parametrize("M, N, layout, joined", JOINED + APART)
def test_rows_are_joined_where_vectors_come_of_it(M: int, N: int, layout: str, joined: int) -> None:
    v = operand(M, N, layout, torch.float32, "cpu", 0)
    fwd = kernels.fwd_launch(v, None, None, None, None, "relu", 0.0)
    assert fwd.arguments["M"] == M // joined and fwd.arguments["N"] == N * joined
    assert fwd.constexprs["JOINED"] == (joined > 1)
    rows, cols, *strides = kernels.joined_rows(v, N * joined)
    assert torch.equal(v.as_strided((rows, cols), strides), v.reshape(M // joined, N * joined))
    assert kernels.joined_rows(v, N)[:2] == (M, N)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("M, N", [(4096, 512), (65536, 1), (65536, 1034), (65537, 3), (16, 100_000)])
@pytest.mark.parametrize("p", [None, 0.3])
def test_larger_sizes(dtype: torch.dtype, M: int, N: int, p: float | None) -> None:
    for activation, first in (("leaky_relu", False), ("sigmoid", False), ("tanh", True)):
        assert judge(make("cuda", dtype, M, N, activation=activation, p=p, first=first)) is None


@on_devices
def test_same_bits_twice(device: str) -> None:
    case = make(device, torch.float32, 700, 40, activation="tanh", p=0.3)
    for first, second in zip(by_kernels(case)[0], by_kernels(case)[0], strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
def test_a_graph_replays_with_the_seed_of_the_hour() -> None:
    case = make("cuda", torch.bfloat16, 4096, 256, activation="tanh", p=0.3)
    rng = case.rng
    dropping = {**case.dropping, "rng": rng}

    def step() -> list[Tensor | None]:
        y, _ = kernels.bias_act_fwd(case.v, case.bias, "tanh", 0.0, **dropping)
        return [y, *kernels.bias_act_bwd(case.gy, y, "tanh", 0.0, **dropping, with_bias=True)]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (3, 4):
        rng.fill_(seed)
        graph.replay()
        for replayed, direct in zip(captured, step(), strict=True):
            assert replayed is not None and direct is not None and torch.equal(replayed, direct)


@on_devices
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("bug", ["another mask", "another row", "not scaled", "the other order"])
def test_a_wrong_gradient_is_caught(device: str, activation: str, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: whatever backward takes for what forward did not do."""
    case = make(device, torch.float32, 33, 20, activation=activation, p=0.4)
    assert judge(case) is None
    right = kernels.bias_act_bwd

    def wrong(gy: Tensor, saved: Tensor, *how: Any, rng: Tensor, scale: float, dropout_first: bool, **rest: Any) -> Any:
        rng = rng + 1 if bug == "another mask" else rng
        saved = saved.roll(1, 0) if bug == "another row" else saved
        scale = 1.0 if bug == "not scaled" else scale
        first = dropout_first != (bug == "the other order")
        return right(gy, saved, *how, rng=rng, scale=scale, dropout_first=first, **rest)

    monkeypatch.setattr(kernels, "bias_act_bwd", wrong)
    one_function = bug == "the other order" and activation.endswith("relu")
    assert (judge(case) is None) == one_function


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
@pytest.mark.parametrize("activation, first", ORDERS)
def test_nan_goes_through_where_it_is_kept(device: str, activation: str, first: bool) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        v = torch.full((16, 20), bad, device=device)
        case = Case(v, torch.ones_like(v), None, activation, 0.2, 0.5, first)
        y, _ = kernels.bias_act_fwd(v, None, activation, 0.2, **case.dropping)
        torch.testing.assert_close(y, formula(case)[0], equal_nan=True)
        g, _ = kernels.bias_act_bwd(v, torch.ones_like(v), activation, 0.2, **case.dropping)
        keep = dropout.keep_mask(case.rng, v.shape, 0.5)
        assert g[~keep].eq(0).all() and not g[keep].isfinite().any() and 0 < keep.sum() < keep.numel()


FAR = 2**26  # elements from one row to the next: row 32 begins 2^31 elements on


@pytest.fixture
def sparse(tmp_path: Path) -> Tensor:
    """4.3 * 10^9 elements in a file with holes: only the pages that are written take room."""
    size = 2**32 + 3 * FAR
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2 * size)
    return torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.float16)


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Tensor) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    near = make("cpu", torch.float16, 70, 3, activation="tanh", p=0.3)
    far = [t.as_strided((34, 3), (3, 1)) for t in (near.v, near.gy)]
    near = replace(near, v=far[0], gy=far[1])
    v, gy = (sparse.as_strided((34, 3), (FAR, 1), 2**31 + 64 * at).copy_(t) for at, t in enumerate(far))
    for result, wanted in zip(by_kernels(replace(near, v=v, gy=gy))[0], by_kernels(near)[0], strict=True):
        assert torch.equal(result, wanted)
