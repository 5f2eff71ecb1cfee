"""The batch norm's own kernels: statistics, the normalised rows, backward and its sums, against fp64 and torch.nn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import batch_norm_act as kernels
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.tile import Config

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "columns", "steps", "expanded")
SMOOTH = ("tanh", "sigmoid")  # by exp in the kernels: good to 4 ulp, where torch errs by one
SMALL = Config(8, 16, 1, 4, 128)  # a tile of which a group has several, and a column more than are merged at once
on_devices = pytest.mark.parametrize("device", DEVICES)
Numbers = Callable[..., Tensor]


class Case(NamedTuple):
    """Operands of all four kernels. The vectors need not be the statistics of y."""

    y: Tensor
    gu: Tensor
    norm: Norm
    groups: int


def made(
    device: str, dtype: torch.dtype, M: int, C: int, groups: int, activation: str, slope: float,
    layout: str = "rows", eps: float = 1e-5, affine: bool = True, frozen: bool = False,
) -> Case:  # fmt: skip
    """Operands whose sums do not cancel, and whose every phi' is the same in any precision."""
    generator = torch.Generator().manual_seed(M + 71 * C)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    size = {"rows": (M, C), "columns": (C, M), "steps": (2 * M, 3 * C), "expanded": (1, 1)}[layout]
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "expanded": lambda v: v.expand(M, C)}
    rows = 1 if frozen else groups
    vectors = normal(rows, C), normal(rows, C).square() + 0.1, normal(C) / 4 + 1, normal(C)
    mean, var, gamma, beta = (vector.to(device) for vector in vectors)
    norm = Norm(mean, var, gamma if affine else None, beta if affine else None, eps, activation, slope)
    y = (2 * normal(M, C) + 3).to(device, dtype)
    y += (arguments(y, norm)[0].abs() < 1e-2) / 2
    return Case(y, views.get(layout, lambda v: v)((normal(*size) + 1).to(device, dtype)), norm, groups)


def arguments(y: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v = s (y - mean) + beta, y - mean, s and 1 / sqrt(var + eps), in the precision of the norm."""
    times = len(y) // len(norm.mean)
    inverse = (norm.var + norm.eps).rsqrt().repeat_interleave(times, 0)
    s = inverse if norm.gamma is None else inverse * norm.gamma
    centred = y.to(norm.mean.dtype) - norm.mean.repeat_interleave(times, 0)
    return centred * s + (0 if norm.beta is None else norm.beta), centred, s, inverse


def plain(case: Case) -> list[Tensor]:
    """Mean, var, u, s dv, lift, tilt, ggamma, gbeta and s dv + lift + tilt (y - mean), by their formulas."""
    y, gu, norm, groups = case
    v, off, s, inverse = arguments(y, norm)
    parts = y.to(v.dtype).view(groups, -1, y.shape[1])
    n = parts.shape[1]

    def total(values: Tensor) -> Tensor:
        return values.view(parts.shape).sum(1)

    phi = activate(v, norm.activation, norm.slope)
    saved = v if norm.activation == "leaky_relu" else phi
    dv = gu.to(v.dtype)
    dv = dv if norm.activation == "none" else times_derivative(dv, saved, norm.activation, norm.slope)
    results = [parts.mean(1), parts.var(1, unbiased=False), phi.to(y.dtype), (s * dv).to(y.dtype)]
    results += [-total(s * dv) / n, -total(s * inverse.square() * dv * off) / n, (inverse * dv * off).sum(0), dv.sum(0)]
    lift, tilt = (vectors.repeat_interleave(n, 0) for vectors in results[4:6])
    return [*results, (gu.to(v.dtype) + lift + tilt * off).to(y.dtype)]


def double(case: Case) -> Case:
    def wide(parts: Any) -> Any:
        return type(parts)(*(p.double() if isinstance(p, Tensor) else p for p in parts))

    return wide(case._replace(norm=wide(case.norm)))


def room(case: Case) -> tuple[Statistics, NormGradients]:
    """Where vectors go; a frozen norm has no lift and tilt."""
    C, groups = case.y.shape[1], case.groups
    mean, var, lift, tilt = (torch.empty(groups, C, device=case.y.device) for _ in range(4))
    gamma, beta = (torch.empty(C, device=case.y.device) for _ in range(2))
    frozen = len(case.norm.mean) < groups
    places = NormGradients(None if frozen else lift, None if frozen else tilt, gamma, beta)
    return Statistics(mean, var, None, None, None, 0.1), places


def by_kernels(case: Case, tile: Config | None = None) -> list[Tensor | None]:
    """The same by the kernels, in a tile of the test's choice or by the host functions."""
    y, gu, norm, _ = case
    to, places = room(case)
    if tile is None:
        kernels.batch_norm_stats(y, to)
        u = kernels.batch_norm_act_fwd(y, norm)
        gy = kernels.batch_norm_act_bwd(gu, y, norm, places)
    else:
        u, gy = torch.empty_like(y), torch.empty_like(y)
        kernels.stats_launch(y, to, tile).run()
        kernels.fwd_launch(y, u, norm, tile).run()
        kernels.bwd_launch(gu, y, gy, norm, places, tile).run()
    results = [to.mean, to.var, u, gy, *places]
    if places.lift is None or places.tilt is None:
        return [*results, None]
    correction = Correction(norm.mean, places.lift, places.tilt)
    if tile is None:
        return [*results, kernels.batch_norm_correct(gu, y, correction)]
    g = torch.empty_like(y)
    kernels.correct_launch(gu, y, g, correction, tile).run()
    return [*results, g]


def judge(case: Case, tile: Config | None = None) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got = by_kernels(case, tile)
    smooth = 2 if case.norm.activation in SMOOTH else 1
    for result, base, exact in zip(got, plain(case), plain(double(case)), strict=True):
        if result is not None:
            verdict = check(result, base, exact, smooth * torch.finfo(result.dtype).eps)
            if not verdict.passed:
                return verdict.why
    return None


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    groups, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(16, 70))
    C = data.draw(st.integers(8, 70) | st.sampled_from((16, 32, 64)))  # a few numbers may all be small: no scale
    activation, layout = data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.sampled_from(LAYOUTS))
    slope = data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    dtype, eps = data.draw(st.sampled_from(DTYPES[device])), data.draw(st.sampled_from([1e-5, 0.8]))
    affine, frozen = data.draw(st.booleans()), data.draw(st.booleans())
    case = made(device, dtype, groups * rows, C, groups, activation, slope, layout, eps, affine, frozen)
    assert judge(case, data.draw(st.sampled_from([None, SMALL]))) is None


@on_devices
@pytest.mark.parametrize(
    "M, C, groups", [(301, 3, 1), (2 * 150, 17, 2), (2, 40, 1), (60, 2, 30), (37, 1, 1), (2 * 70, 5, 2), (6, 9, 2)]
)
def test_many_tiles_to_merge(device: str, M: int, C: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than parts, more parts than are merged at once, more groups than parts."""
    monkeypatch.setattr(kernels, "PARTS", 20)
    case = made(device, torch.float32, M, C, groups, "tanh", 0.0)
    assert judge(case, SMALL) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("M, C, groups", [(65536, 64, 2), (65536, 1, 1), (8192, 4096, 1), (4098, 100, 3)])
def test_larger_sizes(dtype: torch.dtype, M: int, C: int, groups: int) -> None:
    assert judge(made("cuda", dtype, M, C, groups, "leaky_relu", 0.2)) is None


@on_devices
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_the_whole_gradient_is_autograds(device: str, numbers: Numbers, activation: str, affine: bool) -> None:
    """Of F.batch_norm and the activation, over groups of rows: s dv + lift + tilt (y - mean)."""
    M, C, groups = 2 * 75, 20, 2
    y, gu = (numbers(seed, M, C, device=device) + 1 for seed in (0, 1))
    leaves = [y, numbers(2, C, device=device), numbers(3, C, device=device)][: 3 if affine else 1]

    def by_torch(dtype: torch.dtype) -> list[Tensor]:
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        parts = [F.batch_norm(part, None, None, *own[1:], training=True, eps=0.8) for part in own[0].chunk(groups)]
        u = activate(torch.cat(parts), activation, 0.2)
        return [u.detach(), *torch.autograd.grad(u, own, gu.to(dtype))]

    mean, var, lift, tilt = torch.full((4, groups, C), float("nan"), device=device)
    kernels.batch_norm_stats(y, Statistics(mean, var, None, None, None, 0.1))
    gamma, beta = leaves[1:] if affine else (None, None)
    norm = Norm(mean, var, gamma, beta, 0.8, activation, 0.2)
    places = NormGradients(lift, tilt, *(torch.empty_like(leaf) for leaf in leaves[1:])) if affine else None
    places = places or NormGradients(lift, tilt, None, None)
    gy = kernels.batch_norm_act_bwd(gu, y, norm, places)
    whole = kernels.batch_norm_correct(gy, y, Correction(mean, lift, tilt))
    got = [kernels.batch_norm_act_fwd(y, norm), whole, places.gamma, places.beta]
    assert check(got[: 4 if affine else 2], by_torch(y.dtype), by_torch(torch.float64)).why is None


@on_devices
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_running_statistics(device: str, numbers: Numbers, momentum: float | None, kind: torch.dtype) -> None:
    """They move as if torch.nn's module had seen one group after the other; without a momentum they are averages."""
    rows, C, groups = 37, 19, 3
    y = 3 * numbers(0, groups * rows, C, device=device) + 5
    module = torch.nn.BatchNorm1d(C, momentum=momentum, device=device, dtype=torch.float64)
    module(numbers(1, 8, C, device=device).double())
    running = [buffer.detach().to(kind, copy=True) for buffer in (module.running_mean, module.running_var)]
    tracked = None if momentum else module.num_batches_tracked.clone()
    mean, var = torch.full((2, groups, C), float("nan"), device=device)
    to = Statistics(mean, var, *running, tracked, momentum or 0.0)
    kernels.stats_launch(y, to, SMALL).run()
    for part in y.double().chunk(groups):
        module(part)
    torch.testing.assert_close(running[0].double(), module.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(running[1].double(), module.running_var, rtol=1e-6, atol=1e-6)
    assert tracked is None or tracked == 1  # whoever keeps count does so himself


@on_devices
@pytest.mark.parametrize("M, C, first", [(5000, 5, 0.0), (5000, 5, 500.0), (66000, 1, 500.0)])
def test_a_large_mean_leaves_the_variance(device: str, numbers: Numbers, M: int, C: int, first: float) -> None:
    """Also where the first rows, which a shifted sum would go by, are far from the others."""
    y = numbers(0, M, C, device=device) + 1e3
    y[:7] -= first
    mean, var = torch.full((2, 1, C), float("nan"), device=device)
    kernels.batch_norm_stats(y, Statistics(mean, var, None, None, None, 0.1))
    torch.testing.assert_close(mean[0].double(), y.double().mean(0), rtol=2e-7, atol=0)
    torch.testing.assert_close(var[0].double(), y.double().var(0, unbiased=False), rtol=2e-5, atol=0)


@on_devices
@pytest.mark.parametrize("M, C", [(0, 5), (5, 0), (0, 0)])
def test_sizes_of_zero(device: str, M: int, C: int) -> None:
    case = made(device, torch.float32, M, C, 1, "relu", 0.0)
    with Poisoned():
        _, _, u, gy, *vectors = by_kernels(case)
    assert u.shape == gy.shape == vectors[-1].shape == (M, C)
    assert all((vector == 0).all() for vector in vectors)


@on_devices
def test_nan_stays_in_its_column(device: str) -> None:
    for activation in ("relu", "tanh"):
        case = made(device, torch.float32, 40, 20, 2, activation, 0.2)
        case.y[25, 3] = float("nan")
        mean, var, u, _, _, tilt, *_ = by_kernels(case, SMALL)
        for vectors in (mean, var, tilt):
            assert vectors.isnan().nonzero().tolist() == [[1, 3]]
        assert u.isnan().nonzero().tolist() == [[25, 3]]


@pytest.mark.interpret
def test_same_bits_in_any_order(renumber: Callable[..., None]) -> None:
    case = made("cpu", torch.float32, 2 * 38, 20, 2, "tanh", 0.0)
    expected = by_kernels(case, SMALL)
    for number in (lambda i, n: n - 1 - i, lambda i, n: (7 * i + 3) % n if n % 7 else i):
        renumber(number)
        for first, second in zip(expected, by_kernels(case, SMALL), strict=True):
            assert torch.equal(first, second)


@pytest.mark.gpu
def test_same_bits_twice() -> None:
    case = made("cuda", torch.float32, 2 * 4096, 200, 2, "tanh", 0.0)
    for first, second in zip(by_kernels(case), by_kernels(case), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_planted_errors_are_caught(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: statistics that miss a row, derivatives of another row, a group with another's vectors."""
    case = made(device, torch.float32, 2 * 30, 20, 2, "relu", 0.0)
    assert judge(case, SMALL) is None
    stats, backward, describe = kernels.stats_launch, kernels.bwd_launch, kernels.norm_arguments
    errors: dict[str, Callable[..., Any]] = {
        "stats_launch": lambda y, *rest: stats(y[:-2], *rest),
        "bwd_launch": lambda gu, y, *rest: backward(gu, y.roll(1, 0), *rest),
        "norm_arguments": lambda norm: describe(norm) | {"in_step": 0},
    }
    for name, error in errors.items():
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, error)
            assert judge(case, SMALL) is not None, name


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Any, numbers: Numbers, renumber: Callable[..., None]) -> None:
    """The last program of each launch alone: an offset in int32 would lead into the file's empty beginning."""
    M, C, far = 2**21 + 32, 1024, 2**32
    store = sparse(torch.float16)
    y, u = (store.as_strided((M, C), (C, 1), offset) for offset in (0, far))
    y[-32:, -64:] = numbers(0, 32, 64, dtype=torch.float16) + 3
    mean, var = numbers(1, 1, C), numbers(2, 1, C).square() + 1
    norm = Norm(mean, var, None, None, 1e-5, "leaky_relu", 0.2)
    v, off, s, _ = arguments(y[-32:, -64:], norm._replace(mean=mean[:, -64:], var=var[:, -64:]))
    derivative = torch.where(v > 0, 1, 0.2)
    parts = torch.full((256, 2, C), float("nan"))
    correction = Correction(mean, mean, var)
    launches = (
        (kernels.fwd_launch(y, u, norm), activate(v, "leaky_relu", 0.2)),
        (kernels.bwd_launch(y, y, u, norm, None), y[-32:, -64:] * derivative * s),
        (kernels.correct_launch(y, y, u, correction), y[-32:, -64:] + mean[:, -64:] + var[:, -64:] * off),
    )
    for launch, expected in launches:
        alone(launch, renumber)
        torch.testing.assert_close(u[-32:, -64:].float(), expected, rtol=2e-3, atol=2e-3)
    launch = kernels.stats_launch(y, Statistics(mean, var, None, None, None, 0.1))
    pieces, share = launch.arguments["pieces"], launch.arguments["share"]
    alone(dataclasses.replace(launch, arguments={**launch.arguments, "parts": parts}), renumber)
    expected = y[(pieces - 1) * share :, -64:].float().mean(0)
    torch.testing.assert_close(parts[pieces - 1, 0, -64:], expected)


def alone(launch: Any, renumber: Callable[..., None]) -> None:
    """Run only the last program of a launch."""
    renumber(lambda i, n: launch.programs - 1)
    dataclasses.replace(launch, programs=1).run()
