"""The linear kernels between two norms: operands normalised in passing, statistics, and the way back through both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels.linear import linear_fwd
from fastgan.kernels.linear_bwd_input import linear_bwd_input
from fastgan.kernels.linear_bwd_weight import linear_bwd_weight
from fastgan.kernels.norm import LANES, Correction, Norm, NormGradients, Statistics

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
SIDES = {"cpu": (16, 32), "cuda": (32, 64)}  # of the tiles here
on_devices = pytest.mark.parametrize("device", DEVICES)
SMOOTH = ("tanh", "sigmoid")  # by exp in the kernels: good to 4 ulp, where torch errs by one
drawn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def wide(parts: Any) -> Any:
    """The same operands in fp64."""
    return type(parts)(*(p.double() if isinstance(p, Tensor) and p.is_floating_point() else p for p in parts))


def spread(vectors: Tensor, rows: int) -> Tensor:
    """The vectors [groups, C] of each row's own group, [rows, C]."""
    return vectors.repeat_interleave(rows // vectors.shape[0], 0)


def arguments_of(raw: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """v = s (raw - mean) + beta, raw - mean and s, in the precision of the norm."""
    s = (spread(norm.var, len(raw)) + norm.eps).rsqrt() * (1 if norm.gamma is None else norm.gamma.to(norm.var.dtype))
    centred = raw.to(norm.var.dtype) - spread(norm.mean, len(raw))
    return centred * s + (0 if norm.beta is None else norm.beta), centred, s


def operand(raw: Tensor, norm: Norm | None) -> Tensor:
    """What a raw output becomes, in its own dtype."""
    return raw if norm is None else activate(arguments_of(raw, norm)[0], norm.activation, norm.slope).to(raw.dtype)


def incoming(gy: Tensor, y: Tensor, correction: Correction | None) -> Tensor:
    """gy + lift + tilt (y - mean), in gy's dtype."""
    if correction is None:
        return gy
    mean, lift, tilt = (spread(vectors, len(y)) for vectors in correction)
    return (gy + lift + tilt * (y - mean)).to(gy.dtype)


def backward(gy: Tensor, y: Tensor, w: Tensor, raw: Tensor, correction: Any, norm: Norm) -> list[Tensor]:
    """The gradient of ``raw`` but for its lift and tilt, these two, and those of gamma and beta."""
    v, centred, s = arguments_of(raw, norm)
    outputs = {"none": None, "leaky_relu": v}
    saved = outputs.get(norm.activation, activate(v, norm.activation, norm.slope))
    dv = times_derivative((incoming(gy, y, correction) @ w).to(v.dtype), saved, norm.activation, norm.slope)
    groups = len(norm.mean)
    rows = len(raw) // groups
    by_group = dv.view(groups, rows, -1)
    shift, scale = by_group.sum(1), (by_group * centred.view_as(by_group)).sum(1)
    inverse, s_of = (norm.var + norm.eps).rsqrt(), s.view(groups, rows, -1)[:, 0]
    lift, tilt = -s_of * shift / rows, -s_of * inverse.square() * scale / rows
    return [(s * dv).to(gy.dtype), lift, tilt, (scale * inverse).sum(0), shift.sum(0)]


@dataclasses.dataclass
class Form:
    """Everything that a launch may be asked to do around its product."""

    device: str
    numbers: Any
    dtype: torch.dtype
    groups: int
    rows: int  # of a group
    N: int
    K: int
    activation: str
    slope: float
    frozen: bool  # the same statistics for all groups
    gamma: bool
    beta: bool
    eps: float
    vectors: torch.dtype

    def draw(self, seed: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.numbers(seed, *size, dtype=dtype, device=self.device)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, w, bias, and a raw output with its gradient."""
        M, dtype = self.groups * self.rows, self.dtype
        sizes = ((M, self.K), (self.N, self.K), (self.N,), (M, self.N), (M, self.N))
        x, w, bias, y, gy = (self.draw(seed, *size, dtype=dtype) for seed, size in enumerate(sizes))
        return 2 * x + 1, w, bias, y, gy

    def norm(self) -> Norm:
        groups = 1 if self.frozen else self.groups
        mean, var = self.draw(5, groups, self.K), self.draw(6, groups, self.K).square() + 0.1
        gamma = self.draw(7, self.K, dtype=self.vectors) if self.gamma else None
        beta = self.draw(8, self.K, dtype=self.vectors) if self.beta else None
        return Norm(mean, var, gamma, beta, self.eps, self.activation, self.slope)

    def correction(self) -> Correction:
        return Correction(*(self.draw(9 + i, self.groups, self.N) for i in range(3)))


@st.composite
def forms(draw: Any, device: str, numbers: Any, set_tile: Any) -> Form:
    """Draw a form, and the tiles that it is computed by."""
    side, split = draw(st.sampled_from(SIDES[device])), draw(st.sampled_from([1, 1, 2, 3]))
    set_tile(side, draw(st.sampled_from(SIDES[device])), draw(st.sampled_from(SIDES[device])), split)
    activation, sizes = (
        draw(st.sampled_from(ACTIVATIONS)),
        st.integers(8, 35),
    )  # a few numbers may all be small: no scale
    return Form(
        device, numbers, draw(st.sampled_from(DTYPES[device])), draw(st.integers(1, 4)),
        draw(st.sampled_from([15, 16, 17, 32, 37])), draw(sizes), draw(sizes), activation,
        draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0, draw(st.booleans()),
        draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([1e-5, 0.8])),
        draw(st.sampled_from([torch.float32, torch.float16])),
    )  # fmt: skip


def empty_statistics(form: Form) -> Statistics:
    mean, var = (torch.full((form.groups, form.N), float("nan"), device=form.device) for _ in range(2))
    return Statistics(mean, var, None, None, None, 0.0)


def measured(y: Tensor, groups: int) -> list[Tensor]:
    """Mean and biased variance of each group of rows."""
    by_group = y.view(groups, -1, y.shape[1])
    return [by_group.mean(1), by_group.var(1, unbiased=False)]


def judge_forward(form: Form, norm: Norm | None, to: Statistics | None, activation: str) -> None:
    x, w, bias, *_ = form.tensors()
    with Poisoned():
        y, _ = linear_fwd(x, w, bias, activation, 0.0, norm=norm, statistics=to)
    plain = activate(F.linear(operand(x, norm), w, bias), activation, 0.0)
    u = operand(x.double(), norm and wide(norm))
    assert check(y, plain, activate(F.linear(u, w.double(), bias.double()), activation, 0.0)).why is None
    if to is not None:
        assert check([to.mean, to.var], measured(y.float(), form.groups), measured(y.double(), form.groups)).why is None


def judge_backward(form: Form, norm: Norm, correction: Correction | None) -> None:
    x, w, _, y, gy = form.tensors()
    saved, to = None if correction is None else y, empty_gradients(norm, form.frozen)
    with Poisoned():
        gx = linear_bwd_input(gy, saved, w, "none", 0.0, correction=correction, norm=norm, raw=x, to=to)
        gw, gb = linear_bwd_weight(gy, saved, x, "none", 0.0, True, correction=correction, norm=norm)
    doubles = (gy.double(), y.double(), w.double(), x.double(), correction and wide(correction), wide(norm))
    plain, exact = backward(gy, y, w, x, correction, norm), backward(*doubles)
    smooth = 2 if form.activation in SMOOTH else 1
    unit = torch.finfo(form.dtype).eps  # g is rounded to the operands' dtype before anything is summed
    for got, base, wanted in zip((gx, *to), plain, exact, strict=True):
        if got is not None:
            assert check(got, base.to(got.dtype), wanted, smooth * max(unit, torch.finfo(got.dtype).eps)).why is None
    g, g_exact = incoming(gy, y, correction), incoming(doubles[0], doubles[1], doubles[4])
    u, u_exact = operand(x, norm), operand(x.double(), wide(norm))
    sums, exact_sums = [g.t() @ u, g.sum(0)], [g_exact.t() @ u_exact, g_exact.sum(0)]
    assert check([gw, gb], sums, exact_sums, smooth * unit).why is None


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid's, to infinity
@drawn
@given(data=st.data())
def test_forward(device: str, data: st.DataObject, numbers: Any, set_tile: Any) -> None:
    """Normalised on the way in, measured on the way out, or both."""
    form = data.draw(forms(device, numbers, set_tile))
    has_norm, has_statistics = data.draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    norm, to = form.norm() if has_norm else None, empty_statistics(form) if has_statistics else None
    judge_forward(form, norm, to, data.draw(st.sampled_from(["none", "tanh"])))


@on_devices
@drawn
@given(data=st.data())
def test_backward(device: str, data: st.DataObject, numbers: Any, set_tile: Any) -> None:
    """Through the statistics of the output, the product, and the norm of the operand."""
    form = data.draw(forms(device, numbers, set_tile))
    judge_backward(form, form.norm(), form.correction() if data.draw(st.booleans()) else None)


@on_devices
@pytest.mark.parametrize("rows, N, K", [(37, 1, 1), (37, 1, 7), (37, 3, 1), (37, 2, 34), (2, 33, 5), (3, 4, 17)])
def test_a_few_rows_or_features(device: str, numbers: Any, set_tile: Any, rows: int, N: int, K: int) -> None:
    set_tile(SIDES[device][0], 16, 16)
    form = Form(device, numbers, torch.float32, 2, rows, N, K, "tanh", 0.0, False, True, True, 0.8, torch.float32)
    judge_forward(form, form.norm(), empty_statistics(form), "none")
    judge_backward(form, form.norm(), form.correction())


@on_devices
def test_more_tiles_than_are_merged_at_once(device: str, numbers: Any, set_tile: Any) -> None:
    set_tile(SIDES[device][0], 16, 16)
    rows = (LANES + 2) * SIDES[device][0] + 7
    form = Form(device, numbers, torch.float32, 2, rows, 3, 5, "relu", 0.0, False, True, True, 0.8, torch.float32)
    judge_forward(form, form.norm(), empty_statistics(form), "none")
    judge_backward(form, form.norm(), form.correction())


def empty_gradients(norm: Norm, frozen: bool) -> NormGradients:
    """Lift and tilt only where statistics are of this batch."""
    both = (None if frozen else torch.full_like(norm.mean, float("nan")) for _ in range(2))
    gamma = torch.full_like(norm.mean[0] if norm.gamma is None else norm.gamma, float("nan"))
    beta = torch.full_like(norm.mean[0] if norm.beta is None else norm.beta, float("nan"))
    return NormGradients(*both, gamma, beta)


@on_devices
def test_gradients_that_nobody_asks_for(device: str, numbers: Any, set_tile: Any) -> None:
    """The others keep their bits, whichever are missing."""
    set_tile(*SIDES[device], 32)
    form = Form(device, numbers, torch.float32, 2, 37, 20, 33, "relu", 0.0, False, True, True, 0.8, torch.float32)
    (x, w, _, _, gy), norm = form.tensors(), form.norm()

    def gradients(*missing: str) -> dict[str, Tensor]:
        to = empty_gradients(norm, False)._replace(**dict.fromkeys(missing))
        gx = linear_bwd_input(
            gy, None, w, "none", 0.0, norm=norm, raw=x, to=to if any(t is not None for t in to) else None
        )
        return {"gx": gx} | {name: part for name, part in to._asdict().items() if part is not None}

    every = gradients()
    for missing in (*((name,) for name in NormGradients._fields), ("lift", "tilt"), NormGradients._fields):
        for name, part in gradients(*missing).items():
            assert torch.equal(part, every[name]), (missing, name)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seen", [None, 0, 5])
def test_running_statistics(device: str, seen: int | None, dtype: torch.dtype, numbers: Any, set_tile: Any) -> None:
    """As if the groups came one after another; of ``seen`` batches before they are plain averages."""
    set_tile(*SIDES[device], 32, 2)
    x, w = numbers(1, 111, 20, device=device), numbers(2, 37, 20, device=device)
    slow = [numbers(3, 37, device=device).to(dtype), numbers(4, 37, device=device).square().to(dtype)]
    torchs = torch.nn.BatchNorm1d(37, momentum=0.3 if seen is None else None, device=device).double()
    for mine, its in zip(slow, (torchs.running_mean, torchs.running_var), strict=True):
        its.copy_(mine)  # type: ignore[union-attr]
    torchs.num_batches_tracked.fill_(seen or 0)  # type: ignore[union-attr]
    tracked = None if seen is None else torch.tensor(seen, device=device)
    to = Statistics(*(torch.empty(3, 37, device=device) for _ in range(2)), *slow, tracked, 0.3)
    y, _ = linear_fwd(x, w, None, "none", 0.0, statistics=to)
    for group in y.double().view(3, 37, 37):
        torchs(group)
    exact = [torchs.running_mean, torchs.running_var]
    assert check(slow, [part.to(dtype) for part in exact], exact).why is None  # type: ignore[union-attr]
    assert tracked is None or tracked.item() == seen


@on_devices
def test_frozen_statistics_beside_measured_ones(device: str, numbers: Any, set_tile: Any) -> None:
    """One set of frozen statistics for the operand, one for each of three groups of the output."""
    set_tile(*SIDES[device], 32)
    form = Form(device, numbers, torch.float32, 3, 21, 18, 35, "relu", 0.0, True, True, True, 0.8, torch.float32)
    judge_forward(form, form.norm(), empty_statistics(form), "none")
    judge_backward(form, form.norm(), form.correction())


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
def test_rows_beyond_the_last_count_nowhere(device: str, numbers: Any, set_tile: Any) -> None:
    """A raw 0 there would overflow fp16 on its way through this norm; the rows that exist do not."""
    set_tile(*SIDES[device], 32)
    form = Form(device, numbers, torch.float16, 1, 37, 20, 18, "none", 0.0, False, False, False, 0.0, torch.float32)
    (x, w, bias, y, gy), correction, size = form.tensors(), form.correction(), (1, 18)
    norm = form.norm()._replace(mean=torch.full(size, 64.0, device=device), var=torch.full(size, 2.5e-7, device=device))
    x = 64 + 0.0625 * x.round()
    out, _ = linear_fwd(x, w, bias, "none", 0.0, norm=norm, statistics=empty_statistics(form))
    gw, gb = linear_bwd_weight(gy, y, x, "none", 0.0, True, correction=correction, norm=norm)
    u, g = operand(x, norm), incoming(gy, y, correction)
    exact = incoming(gy.double(), y.double(), wide(correction))
    assert check(out, F.linear(u, w, bias), F.linear(u.double(), w.double(), bias.double())).why is None
    assert check([gw, gb], [g.t() @ u, g.sum(0)], [exact.t() @ u.double(), exact.sum(0)]).why is None


@on_devices
def test_a_large_mean_leaves_the_variance(device: str, numbers: Any, set_tile: Any) -> None:
    """Mean 1000, deviation 1: sums of squares would lose the variance in fp32."""
    set_tile(*SIDES[device], 32)
    x, one = numbers(1, 300, 1, device=device), torch.ones(4, 1, device=device)
    to = Statistics(*(torch.empty(2, 4, device=device) for _ in range(2)), None, None, None, 0.0)
    y, _ = linear_fwd(x, one, torch.full((4,), 1e3, device=device), "none", 0.0, statistics=to)
    torch.testing.assert_close(to.var.double(), measured(y.double(), 2)[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(to.mean.double(), measured(y.double(), 2)[0], rtol=1e-6, atol=0)


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
def test_nan_and_overflow_stay_where_they_are(device: str, numbers: Any, set_tile: Any) -> None:
    """A NaN in a row of one group, and an output of fp16 that overflows in a column of the other."""
    set_tile(*SIDES[device], 32)
    form = Form(device, numbers, torch.float16, 2, 37, 20, 33, "relu", 0.0, False, True, True, 0.8, torch.float32)
    (x, w, bias, _, gy), norm, to = form.tensors(), form.norm(), empty_statistics(form)
    x[5, 3], norm.gamma[7], x[60, 7], w[11, 7] = float("nan"), 3e4, 3e4, 3e4  # type: ignore[index]
    y, _ = linear_fwd(x, w, bias, "none", 0.0, norm=norm, statistics=to)
    plain = F.linear(operand(x, norm), w, bias)
    assert torch.equal(y.isnan(), plain.isnan()) and torch.equal(y.isinf(), plain.isinf())
    assert y[5].isnan().all() and not y[:5].isnan().any() and not y[6:37].isnan().any() and y[37:].isinf().any()
    for got, wanted in zip(to[:2], measured(y.float(), 2), strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    gradients = empty_gradients(norm, False)
    gx = linear_bwd_input(gy, None, w, "none", 0.0, norm=norm, raw=x, to=gradients)
    assert gx[5, 3].isnan() and gx.isnan().sum() == 1
    assert gradients.lift[0, 3].isnan() and gradients.lift.isnan().sum() == 1  # type: ignore[union-attr, index]
