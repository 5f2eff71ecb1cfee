"""Convolutions between two norms: operands normalised in passing, statistics, and the way back through both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels.conv import conv_fwd
from fastgan.kernels.conv_bwd_input import conv_bwd_input
from fastgan.kernels.conv_bwd_weight import conv_bwd_weight
from fastgan.kernels.conv_map import GATHER, PHASE, SPREAD, Axis, Geometry
from fastgan.kernels.norm import LANES, Correction, Norm, NormGradients, Statistics

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
SIDES = {"cpu": (16, 64), "cuda": (32, 64)}  # of the tiles here
LAYOUTS = ("rows", "last", "turned", "steps")
SMOOTH = ("tanh", "sigmoid")  # by exp in the kernels: good to 4 ulp, where torch errs by one
DOWN = Geometry(Axis(6, 3, 3, 2, 1), Axis(8, 4, 2, 2))
TAPLESS = Geometry(Axis(13, 5, 1, 3), Axis(11, 3, 2, 4, 0, 2))
on_devices = pytest.mark.parametrize("device", DEVICES)
drawn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = pytest.mark.usefixtures("ieee")


@dataclass(frozen=True)
class Form:
    """Everything that a launch may be asked to do around its sum. ``layouts`` of x and gx, weight and gw, y and gy."""

    groups: int
    samples: int  # of a group
    K: int
    C: int
    geometry: Geometry
    transposed: bool = False
    activation: str = "relu"
    slope: float = 0.0
    frozen: bool = False  # the same statistics for all groups
    gamma: bool = True
    beta: bool = True
    dtype: torch.dtype = torch.float32
    vectors: torch.dtype = torch.float32
    layouts: tuple[str, str, str] = ("last",) * 3

    @property
    def maps(self) -> tuple[str, str]:
        """Forward, and the input gradient's."""
        return (PHASE, GATHER) if self.transposed else (GATHER, PHASE if self.geometry.h.up == 1 else SPREAD)

    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Of x, weight and y."""
        (h, w), n = self.geometry, self.groups * self.samples
        image, grid = (n, self.C, h.image, w.image), (n, self.K, h.grid, w.grid)
        weight = (self.K, self.C, h.kernel, w.kernel)
        return (grid, weight, image) if self.transposed else (image, weight, grid)


def wide(parts: Any) -> Any:
    """The same operands in fp64."""
    return type(parts)(*(p.double() if isinstance(p, Tensor) and p.is_floating_point() else p for p in parts))


def spread(vectors: Tensor, images: Tensor) -> Tensor:
    """The vectors [groups, C] of each image's own group."""
    return vectors.repeat_interleave(len(images) // len(vectors), 0)[:, :, None, None]


def through(raw: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """v = s (raw - mean) + beta, raw - mean and s, in the precision of the norm."""
    gamma, beta = (0 if v is None else v.to(norm.var.dtype).view(-1, 1, 1) for v in (norm.gamma, norm.beta))
    s = (spread(norm.var, raw) + norm.eps).rsqrt() * (1 if norm.gamma is None else gamma)
    centred = raw.to(norm.var.dtype) - spread(norm.mean, raw)
    return centred * s + beta, centred, s


def operand(raw: Tensor, norm: Norm | None) -> Tensor:
    """What a raw output becomes, in its own dtype."""
    return raw if norm is None else activate(through(raw, norm)[0], norm.activation, norm.slope).to(raw.dtype)


def incoming(gy: Tensor, y: Tensor, correction: Correction | None) -> Tensor:
    """gy + lift + tilt (y - mean), in gy's dtype."""
    if correction is None:
        return gy
    mean, lift, tilt = (spread(vectors, y) for vectors in correction)
    return (gy + lift + tilt * (y - mean)).to(gy.dtype)


def measured(y: Tensor, groups: int) -> list[Tensor]:
    """Mean and biased variance of each group of samples."""
    by_group = y.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return [by_group.mean(2), by_group.var(2, unbiased=False)]


@dataclass
class Bench:
    """What makes a form's tensors, and computes it both ways."""

    device: str
    numbers: Any
    laid: Any
    convolved: Any

    def draw(self, seed: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.numbers(seed, *size, dtype=dtype, device=self.device)

    def tensors(self, form: Form) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, weight, bias, and a raw output with its gradient."""
        x, weight, y = form.sizes()
        lays, dtype = form.layouts, form.dtype
        tensors = [
            self.laid(self.draw(seed, *size, dtype=dtype), lay)
            for seed, (size, lay) in enumerate(((x, lays[0]), (weight, lays[1]), (y, lays[2]), (y, lays[2])))
        ]
        raw = self.laid(2 * tensors[0] + 1, lays[0])
        return raw, tensors[1], self.draw(4, y[1], dtype=dtype), tensors[2], tensors[3]

    def empty(self, form: Form, *which: int) -> list[Tensor]:
        """What is shaped like x, weight or y, not yet written."""
        nothing = {"dtype": form.dtype, "device": self.device}
        return [self.laid(torch.full(form.sizes()[at], float("nan"), **nothing), form.layouts[at]) for at in which]

    def norm(self, form: Form) -> Norm:
        groups, channels = 1 if form.frozen else form.groups, form.sizes()[0][1]
        mean, var = self.draw(5, groups, channels), self.draw(6, groups, channels).square() + 0.1
        gamma = self.draw(7, channels, dtype=form.vectors) if form.gamma else None
        beta = self.draw(8, channels, dtype=form.vectors) if form.beta else None
        return Norm(mean, var, gamma, beta, 0.1, form.activation, form.slope)

    def correction(self, form: Form) -> Correction:
        return Correction(*(self.draw(9 + i, form.groups, form.sizes()[2][1]) for i in range(3)))

    def statistics(self, form: Form) -> Statistics:
        mean, var = (torch.full((form.groups, form.sizes()[2][1]), float("nan"), device=self.device) for _ in range(2))
        return Statistics(mean, var, None, None, None, 0.0)

    def forward(self, form: Form, norm: Norm | None, to: Statistics | None, activation: str = "none") -> Tensor:
        x, weight, bias, *_ = self.tensors(form)
        (y,), how = self.empty(form, 2), (form.geometry, form.maps[0], activation, 0.0)
        return conv_fwd(x, weight, bias, y, *how, norm=norm, statistics=to)

    def judge_forward(self, form: Form, norm: Norm | None, to: Statistics | None, activation: str = "none") -> None:
        y = self.forward(form, norm, to, activation)
        x, weight, bias, *_ = self.tensors(form)

        def plainly(u: Tensor) -> Tensor:
            y = self.convolved(u, weight.to(u.dtype), form.geometry, form.transposed)
            return activate(y + bias.to(u.dtype).view(-1, 1, 1), activation, 0.0)

        plain, exact = plainly(operand(x, norm).float()).to(y.dtype), plainly(operand(x.double(), norm and wide(norm)))
        assert check(y, plain, exact).why is None
        if to is not None:
            base, wanted = measured(y.float(), form.groups), measured(y.double(), form.groups)
            lost = (2 * torch.finfo(torch.float32).eps * wanted[0]).square()  # a mean that is an ulp off costs as much
            var = torch.where((to.var - wanted[1]).abs() <= lost, wanted[1].float(), to.var)
            assert check([to.mean, var], base, wanted).why is None

    def backward(
        self, form: Form, norm: Norm, correction: Correction | None, to: NormGradients | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight, _, y, gy = self.tensors(form)
        (gx, gw), saved = self.empty(form, 0, 1), None if correction is None else y
        gb = None if form.transposed else torch.full_like(weight[:, 0, 0, 0], float("nan"))
        how: dict[str, Any] = {"correction": correction, "norm": norm}
        conv_bwd_input(gy, saved, weight, gx, form.geometry, form.maps[1], "none", 0.0, **how, raw=x, to=to)
        conv_bwd_weight(gy, saved, x, gw, gb, form.geometry, form.transposed, "none", 0.0, **how)
        return gx, gw, gb

    def plain_backward(self, form: Form, norm: Norm, correction: Correction | None, dtype: torch.dtype) -> list[Tensor]:
        """gx but for its lift and tilt, these two, the gradients of gamma and beta, of weights and bias."""
        x, weight, _, y, gy = self.tensors(form)
        if dtype == torch.float64:
            x, y, gy, norm, correction = (
                x.double(),
                y.double(),
                gy.double(),
                wide(norm),
                correction and wide(correction),
            )
        g, u = incoming(gy, y, correction).to(dtype), operand(x, norm).to(dtype).requires_grad_()
        out = self.convolved(u, w := weight.to(dtype).requires_grad_(), form.geometry, form.transposed)
        gu, gw = torch.autograd.grad(out, (u, w), g)
        v, centred, s = through(x, norm)
        saved = {"none": None, "leaky_relu": v}.get(norm.activation, activate(v, norm.activation, norm.slope))
        dv = times_derivative(gu, saved, norm.activation, norm.slope)
        count = dv[0, 0].numel() * form.samples
        shift, scale = (t.sum((2, 3)).unflatten(0, (form.groups, -1)).sum(1) for t in (dv, dv * centred))
        inverse, s_of = (norm.var + norm.eps).rsqrt(), s[:: form.samples, :, 0, 0]
        lift, tilt = -s_of * shift / count, -s_of * inverse.square() * scale / count
        return [s * dv, lift, tilt, (scale * inverse).sum(0), shift.sum(0), gw, g.sum((0, 2, 3))]

    def judge_backward(self, form: Form, norm: Norm, correction: Correction | None) -> None:
        to = empty_gradients(norm, form.frozen)
        gx, gw, gb = self.backward(form, norm, correction, to)
        plain, exact = (self.plain_backward(form, norm, correction, t) for t in (torch.float32, torch.float64))
        smooth = 2 if form.activation in SMOOTH else 1
        unit = torch.finfo(form.dtype).eps  # g and u are rounded to the operands' dtype before anything is summed
        for got, base, wanted in zip((gx, *to, gw, gb), plain, exact, strict=True):
            if got is not None:
                ulp = smooth * max(unit, torch.finfo(got.dtype).eps)
                assert check(got, base.to(got.dtype), wanted, ulp).why is None


def empty_gradients(norm: Norm, frozen: bool) -> NormGradients:
    """Lift and tilt only where statistics are of this batch."""
    both = (None if frozen else torch.full_like(norm.mean, float("nan")) for _ in range(2))
    gamma = torch.full_like(norm.mean[0] if norm.gamma is None else norm.gamma, float("nan"))
    beta = torch.full_like(norm.mean[0] if norm.beta is None else norm.beta, float("nan"))
    return NormGradients(*both, gamma, beta)


@pytest.fixture
def bench(numbers: Any, laid: Any, convolved: Any) -> Callable[[str], Bench]:
    return lambda device: Bench(device, numbers, laid, convolved)


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid's, to infinity
@drawn
@given(data=st.data())
def test_as_good_as_torch_against_fp64(
    device: str, data: st.DataObject, bench: Any, geometries: Any, set_tile: Any
) -> None:
    """Forward with a norm, statistics, or both; backward through a norm, and through statistics or not."""
    draw, sides, flag = data.draw, st.sampled_from(SIDES[device]), st.booleans()
    set_tile(draw(sides), draw(sides), draw(sides), draw(st.sampled_from((1, 1, 2, 3))))
    transposed = draw(flag)
    samples, geometry = draw(geometries(transposed, 1 if transposed else draw(st.sampled_from((1, 1, 1, 2)))))
    activation = draw(st.sampled_from(ACTIVATIONS))
    slope = draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    channels = st.integers(8, 17) | st.sampled_from((15, 16, 17, 33))
    form = Form(
        draw(st.sampled_from((1, 2, 2, 3))), samples, draw(channels), draw(channels), geometry, transposed,
        activation, slope, draw(flag), draw(flag), draw(flag), draw(st.sampled_from(DTYPES[device])),
        draw(st.sampled_from([torch.float32, torch.float16])), draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3)),
    )  # fmt: skip
    here = bench(device)
    if draw(flag):
        norm, to = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
        last = draw(st.sampled_from(["none", "tanh"]))
        here.judge_forward(form, here.norm(form) if norm else None, here.statistics(form) if to else None, last)
    else:
        here.judge_backward(form, here.norm(form), here.correction(form) if draw(flag) else None)


@on_devices
@pytest.mark.parametrize("K, C, geometry", [(3, 17, TAPLESS), (18, 2, TAPLESS), (1, 1, DOWN)])
@pytest.mark.parametrize("transposed", [False, True])
def test_few_channels_and_phases_without_taps(
    device: str, transposed: bool, K: int, C: int, geometry: Geometry, bench: Any, set_tile: Any
) -> None:
    set_tile(SIDES[device][0], SIDES[device][0], SIDES[device][0])
    here, form = bench(device), Form(2, 2, K, C, geometry, transposed, "tanh")
    here.judge_forward(form, here.norm(form), here.statistics(form))
    here.judge_backward(form, here.norm(form), here.correction(form))


@on_devices
def test_more_tiles_than_are_merged_at_once(device: str, bench: Any, set_tile: Any) -> None:
    """More than LANES parts in a group, and so more than one block of them."""
    side = SIDES[device][0]
    set_tile(side, 16 if device == "cpu" else 32, side)
    one = Axis(1, 1, 1)
    form = Form(2, 1, 3, 5, Geometry(one, one._replace(image=(LANES + 2) * side + 7, grid=(LANES + 2) * side + 7)))
    here = bench(device)
    here.judge_forward(form, here.norm(form), here.statistics(form))
    here.judge_backward(form, here.norm(form), here.correction(form))


@on_devices
@pytest.mark.parametrize("seen", [None, 0, 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_running_statistics(device: str, transposed: bool, seen: int | None, bench: Any, set_tile: Any) -> None:
    """As if the groups came one after another; of ``seen`` batches before they are plain averages."""
    set_tile(SIDES[device][0], SIDES[device][0], 32, 2)
    here, form = bench(device), Form(3, 2, 7, 9, DOWN, transposed)
    channels = form.sizes()[2][1]
    slow = [here.draw(13, channels), here.draw(14, channels).square()]
    torchs = torch.nn.BatchNorm2d(channels, momentum=0.3 if seen is None else None, device=device).double()
    for mine, its in zip(slow, (torchs.running_mean, torchs.running_var), strict=True):
        its.copy_(mine)
    torchs.num_batches_tracked.fill_(seen or 0)
    tracked = None if seen is None else torch.tensor(seen, device=device)
    to = here.statistics(form)._replace(running_mean=slow[0], running_var=slow[1], tracked=tracked, momentum=0.3)
    for group in here.forward(form, None, to).double().chunk(3):
        torchs(group)
    exact = [torchs.running_mean, torchs.running_var]
    assert check(slow, [part.float() for part in exact], exact).why is None
    assert tracked is None or tracked.item() == seen


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
def test_a_large_mean_leaves_the_variance(device: str, transposed: bool, bench: Any, set_tile: Any) -> None:
    """Mean 1000, deviation 1: sums of squares would lose the variance in fp32."""
    set_tile(SIDES[device][0], SIDES[device][0], 32)
    here, axis = bench(device), Axis(9, 9, 1)
    form = Form(2, 2, 1, 1, Geometry(axis, axis), transposed)
    x, one = here.draw(1, *form.sizes()[0]), torch.ones(form.sizes()[1], device=device)
    to, (y,) = here.statistics(form), here.empty(form, 2)
    bias = torch.full((1,), 1e3, device=device)
    conv_fwd(x, one, bias, y, form.geometry, form.maps[0], "none", 0.0, statistics=to)
    torch.testing.assert_close(to.var.double(), measured(y.double(), 2)[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(to.mean.double(), measured(y.double(), 2)[0], rtol=1e-6, atol=0)


def everything(here: Bench, form: Form) -> list[Tensor]:
    """All that the three launches write."""
    norm, to, slow = here.norm(form), here.statistics(form), [here.draw(i, form.sizes()[2][1]) for i in (13, 14)]
    to = to._replace(running_mean=slow[0], running_var=slow[1], momentum=0.1)
    gradients = empty_gradients(norm, form.frozen)
    y, back = here.forward(form, norm, to), here.backward(form, norm, here.correction(form), gradients)
    return [part for part in (y, *back, *to[:4], *gradients) if part is not None]


@pytest.mark.interpret
@pytest.mark.parametrize("transposed, split", [(False, 1), (True, 3)])
def test_the_same_bits_whoever_comes_last(
    transposed: bool, split: int, bench: Any, set_tile: Any, renumber: Any, shared_tickets: Any
) -> None:
    buffer, here, form = shared_tickets("cpu"), bench("cpu"), Form(2, 1, 17, 18, DOWN, transposed)
    set_tile(16, 16, 16, split)
    expected = everything(here, form)
    renumber((lambda i, count: (i + count // 3) % count) if transposed else (lambda i, count: count - 1 - i))
    assert all(torch.equal(*pair) for pair in zip(everything(here, form), expected, strict=True))
    assert not buffer.any()


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_that_nobody_asks_for(device: str, transposed: bool, bench: Any) -> None:
    """The others keep their bits, whichever are missing."""
    here, form = bench(device), Form(2, 2, 18, 3, DOWN, transposed)
    norm = here.norm(form)
    every = empty_gradients(norm, False)
    gx = here.backward(form, norm, None, every)[0]
    for missing in (*((name,) for name in NormGradients._fields), NormGradients._fields):
        some = empty_gradients(norm, False)._replace(**dict.fromkeys(missing))
        assert torch.equal(here.backward(form, norm, None, some)[0], gx)
        assert all(torch.equal(*pair) for pair in zip(some, every, strict=True) if pair[0] is not None)
