"""Norms with each sample's own scale and shift: rows, backward and its sums, against fp64, and against autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import conditional_batch_norm_act as kernels
from fastgan.kernels.batch_norm_act import batch_norm_correct, batch_norm_stats
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.tile import Config

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "columns", "steps", "expanded")
SMOOTH = ("tanh", "sigmoid")  # by exp in the kernels: good to 4 ulp, where torch errs by one
SMALL = Config(8, 16, 1, 4, 128)  # a tile of which a sample has several, and fewer lanes than there are samples
on_devices = pytest.mark.parametrize("device", DEVICES)
Numbers = Callable[..., Tensor]


class Case(NamedTuple):
    """Operands of both kernels. The vectors need not be the statistics of y."""

    y: Tensor
    gu: Tensor
    norm: Norm
    samples: int


def made(
    device: str, dtype: torch.dtype, samples: int, rows: int, C: int, activation: str = "relu", slope: float = 0.0,
    layout: str = "rows", adaptive: bool = False, vectors: str = "halves",
) -> Case:  # fmt: skip
    """Operands whose sums do not cancel, and whose every phi' is the same in any precision."""
    M, generator = samples * rows, torch.Generator().manual_seed(rows + 71 * C)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    size = {"rows": (M, C), "columns": (C, M), "steps": (2 * M, 3 * C), "expanded": (1, 1)}[layout]
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "expanded": lambda v: v.expand(M, C)}
    both = normal(1 if vectors == "one" else samples, 2 * C).to(device)
    gamma, beta = (half.expand(samples, C) for half in (both / 4 + 1).chunk(2, 1))
    if vectors == "none":
        gamma = beta = None
    groups = samples if adaptive else 1
    mean, var = normal(groups, C).to(device), normal(groups, C).square().to(device) + 0.1
    norm = Norm(mean, var, gamma, beta, 1e-5, activation, slope)
    y = (2 * normal(M, C) + 3).to(device, dtype)
    y += (arguments(y, norm, samples)[0].abs() < 1e-2) / 2
    return Case(y, views.get(layout, lambda v: v)((normal(*size) + 1).to(device, dtype)), norm, samples)


def arguments(y: Tensor, norm: Norm, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v = s (y - mean) + beta, y - mean, s and 1 / sqrt(var + eps), in the precision of the norm."""
    each = len(y) // samples

    def spread(vector: Tensor) -> Tensor:
        return vector.repeat_interleave(len(y) // len(vector) if len(vector) else 0, 0) if each else vector[:0]

    inverse = spread((norm.var + norm.eps).rsqrt())
    s = inverse if norm.gamma is None else inverse * spread(norm.gamma)
    centred = y.to(norm.mean.dtype) - spread(norm.mean)
    return centred * s + (0 if norm.beta is None else spread(norm.beta)), centred, s, inverse


def plain(case: Case) -> list[Tensor]:
    """u, s dv, lift, tilt, ggamma and gbeta, by their formulas."""
    y, gu, norm, samples = case
    v, off, s, inverse = arguments(y, norm, samples)
    groups = len(norm.mean)

    def total(values: Tensor, parts: int) -> Tensor:
        return values.view(parts, -1, y.shape[1]).sum(1)

    phi = activate(v, norm.activation, norm.slope)
    saved = v if norm.activation == "leaky_relu" else phi
    dv = gu.to(v.dtype)
    dv = dv if norm.activation == "none" else times_derivative(dv, saved, norm.activation, norm.slope)
    number = len(y) // groups
    lift, tilt = -total(s * dv, groups) / number, -total(s * inverse.square() * dv * off, groups) / number
    return [phi.to(y.dtype), (s * dv).to(y.dtype), lift, tilt, total(inverse * dv * off, samples), total(dv, samples)]


def double(case: Case) -> Case:
    norm = Norm(*(part.double() if isinstance(part, Tensor) else part for part in case.norm))
    return case._replace(norm=norm)


def by_kernels(case: Case, tile: Config | None = None) -> list[Tensor]:
    """The same by the kernels, in a tile of the test's choice or by the host functions."""
    y, gu, norm, samples = case
    lift, tilt = (torch.empty_like(norm.mean) for _ in range(2))
    gamma, beta = (torch.empty(samples, y.shape[1], device=y.device) for _ in range(2))
    places = NormGradients(lift, tilt, gamma, beta)
    if tile is None:
        u = kernels.conditional_norm_fwd(y, norm, samples)
        return [u, kernels.conditional_norm_bwd(gu, y, norm, samples, places), *places]
    u, gy = torch.empty_like(y), torch.empty_like(y)
    kernels.fwd_launch(y, u, norm, samples, tile).run()
    kernels.bwd_launch(gu, y, gy, norm, samples, places, tile).run()
    return [u, gy, *places]


def judge(case: Case, tile: Config | None = None) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got = by_kernels(case, tile)
    smooth = 2 if case.norm.activation in SMOOTH else 1
    for result, base, exact in zip(got, plain(case), plain(double(case)), strict=True):
        verdict = check(result, base, exact, smooth * torch.finfo(result.dtype).eps)
        if not verdict.passed:
            return verdict.why
    return None


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    activation, layout = data.draw(st.sampled_from(ACTIVATIONS)), data.draw(st.sampled_from(LAYOUTS))
    slope = data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    size = data.draw(st.integers(1, 5)), data.draw(st.integers(8, 40)), data.draw(st.integers(8, 70) | st.just(32))
    more = data.draw(st.booleans()), data.draw(st.sampled_from(["halves", "one", "none"]))
    case = made(device, data.draw(st.sampled_from(DTYPES[device])), *size, activation, slope, layout, *more)
    assert judge(case, data.draw(st.sampled_from([None, SMALL]))) is None


@on_devices
@pytest.mark.parametrize("samples, rows, C, adaptive", [(2, 201, 3, True), (12, 9, 17, False), (5, 33, 1, False)])
def test_many_parts_to_add(
    device: str, samples: int, rows: int, C: int, adaptive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tiles than parts, more parts and more samples than are added at once."""
    monkeypatch.setattr(kernels, "PARTS", 20)
    assert judge(made(device, torch.float32, samples, rows, C, "tanh", adaptive=adaptive), SMALL) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("samples, rows, C", [(64, 1024, 64), (16, 4096, 1), (64, 16, 1024), (3, 1366, 100)])
def test_larger_sizes(dtype: torch.dtype, samples: int, rows: int, C: int) -> None:
    for adaptive in (False, True):
        assert judge(made("cuda", dtype, samples, rows, C, "leaky_relu", 0.2, adaptive=adaptive)) is None


@on_devices
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("activation", ["leaky_relu", "sigmoid"])
def test_the_whole_gradient_is_autograds(device: str, numbers: Numbers, activation: str, adaptive: bool) -> None:
    """Of a norm, a scale and a shift for each sample and the activation: s dv + lift + tilt (y - mean)."""
    samples, rows, C, eps = 3, 20, 18, 0.8
    y, gu = (numbers(seed, samples * rows, C, device=device) + 1 for seed in (0, 1))
    leaves = [y, *(numbers(seed, samples, C, device=device) for seed in (2, 3))]

    def by_torch(dtype: torch.dtype) -> list[Tensor]:
        x, scale, shift = own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        parts = x.view(samples if adaptive else 1, -1, C)
        var, mean = torch.var_mean(parts, 1, correction=0, keepdim=True)
        normal = ((parts - mean) * (var + eps).rsqrt()).view(samples, rows, C)
        u = activate(normal * scale[:, None] + shift[:, None], activation, 0.2).view(-1, C)
        return [u.detach(), *torch.autograd.grad(u, own, gu.to(dtype))]

    mean, var, lift, tilt = torch.full((4, samples if adaptive else 1, C), float("nan"), device=device)
    batch_norm_stats(y, Statistics(mean, var, None, None, None, 0.1))
    norm = Norm(mean, var, *leaves[1:], eps, activation, 0.2)
    places = NormGradients(lift, tilt, *(torch.empty_like(leaf) for leaf in leaves[1:]))
    gy = kernels.conditional_norm_bwd(gu, y, norm, samples, places)
    whole = batch_norm_correct(gy, y, Correction(mean, lift, tilt))
    got = [kernels.conditional_norm_fwd(y, norm, samples), whole, places.gamma, places.beta]
    assert check(got, by_torch(y.dtype), by_torch(torch.float64)).why is None


@on_devices
@pytest.mark.parametrize("wanted", [(), ("lift", "tilt"), ("gamma",), ("beta",)])
def test_what_is_not_asked_for_is_not_written(device: str, wanted: tuple[str, ...]) -> None:
    case = made(device, torch.float32, 3, 20, 18)
    expected = NormGradients(*by_kernels(case)[2:])
    places = NormGradients(*(torch.empty_like(t) if n in wanted else None for n, t in expected._asdict().items()))
    gy = kernels.conditional_norm_bwd(case.gu, case.y, case.norm, 3, places)
    assert torch.equal(gy, by_kernels(case)[1])
    for name in wanted:
        assert torch.equal(getattr(places, name), getattr(expected, name))


@on_devices
@pytest.mark.parametrize("rows, C", [(0, 5), (5, 0)])
def test_sizes_of_zero(device: str, rows: int, C: int) -> None:
    case = made(device, torch.float32, 2, rows, C)
    with Poisoned():
        u, gy, *vectors = by_kernels(case)
    assert u.shape == gy.shape == (2 * rows, C)
    assert all((vector == 0).all() for vector in vectors)


@on_devices
def test_nan_stays_in_its_sample_and_column(device: str) -> None:
    case = made(device, torch.float32, 4, 10, 20, "tanh")
    case.y[25, 3] = float("nan")
    u, gy, lift, tilt, gamma, beta = by_kernels(case, SMALL)
    for rows in (u, gy):
        assert rows.isnan().nonzero().tolist() == [[25, 3]]
    for vectors in (gamma, beta):
        assert vectors.isnan().nonzero().tolist() == [[2, 3]]
    for vectors in (lift, tilt):
        assert vectors.isnan().nonzero().tolist() == [[0, 3]]


@pytest.mark.interpret
@pytest.mark.parametrize("adaptive", [False, True])
def test_same_bits_in_any_order(adaptive: bool, renumber: Callable[..., None]) -> None:
    case = made("cpu", torch.float32, 3, 9, 17, "relu", adaptive=adaptive)
    expected = by_kernels(case, SMALL)
    for number in (lambda i, n: n - 1 - i, lambda i, n: (7 * i + 3) % n if n % 7 else i):
        renumber(number)
        for first, second in zip(expected, by_kernels(case, SMALL), strict=True):
            assert torch.equal(first, second)


@pytest.mark.gpu
def test_same_bits_twice() -> None:
    case = made("cuda", torch.float32, 64, 256, 200, "tanh")
    for first, second in zip(by_kernels(case), by_kernels(case), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_planted_errors_are_caught(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: derivatives of another row, a sample with another's scale, with another's statistics."""
    case = made(device, torch.float32, 2, 10, 17, adaptive=True)
    assert judge(case, SMALL) is None
    backward, describe = kernels.bwd_launch, kernels._vectors
    errors: dict[str, list[Callable[..., Any]]] = {
        "bwd_launch": [lambda gu, y, *rest: backward(gu, y.roll(1, 0), *rest)],
        "_vectors": [lambda norm, name=name: describe(norm) | {name: 0} for name in ("gamma_step", "beta_step")],
    }
    errors["_vectors"].append(lambda norm: describe(norm) | {"in_step": 0})
    for name, plants in errors.items():
        for plant in plants:
            with monkeypatch.context() as patch:
                patch.setattr(kernels, name, plant)
                assert judge(case, SMALL) is not None, name


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Any, numbers: Numbers, renumber: Callable[..., None]) -> None:
    """The last program of each launch alone: an offset in int32 would lead into the file's empty beginning."""
    samples, C, far = 2**16 + 1, 1024, 2**32
    M = samples * 32
    store = sparse(torch.float16)
    y, u = (store.as_strided((M, C), (C, 1), offset) for offset in (0, far))
    y[-32:, -64:] = numbers(0, 32, 64, dtype=torch.float16) + 3
    gamma = store.as_strided((samples, C), (2 * C, 1), 2 * far)
    gamma[-1, -64:] = numbers(3, 64, dtype=torch.float16)
    mean, var = numbers(1, 1, C), numbers(2, 1, C).square() + 1
    norm = Norm(mean, var, gamma, None, 1e-5, "leaky_relu", 0.2)
    own = Norm(mean[:, -64:], var[:, -64:], gamma[-1:, -64:].float(), None, 1e-5, "leaky_relu", 0.2)
    v, _, s, _ = arguments(y[-32:, -64:], own, 1)
    launches = (
        (kernels.fwd_launch(y, u, norm, samples), activate(v, "leaky_relu", 0.2)),
        (kernels.bwd_launch(y, y, u, norm, samples, None), y[-32:, -64:] * torch.where(v > 0, 1, 0.2) * s),
    )
    for launch, expected in launches:
        renumber(lambda i, n, launch=launch: launch.programs - 1)
        dataclasses.replace(launch, programs=1).run()
        torch.testing.assert_close(u[-32:, -64:].float(), expected, rtol=2e-3, atol=2e-3)
