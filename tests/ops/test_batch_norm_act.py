"""batch_norm_act as people call it: values, gradients, running statistics, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.ops.activation import ACTIVATIONS, activate
from fastgan.ops.batch_norm_act import batch_norm_act

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
EVERY_FORM = [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", 0.0), ("leaky_relu", -0.3)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # all of (N, C, ...)
    "rows": lambda t: t,
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)


def vectors(C: int, device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """running_mean, running_var, weight, bias."""
    mean, var, weight, bias = (numbers(C, seed=seed, device=device, dtype=dtype) for seed in range(4))
    return [mean, var.abs() + 0.5, weight / 4 + 1, bias]


def images(*size: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * numbers(*size, device=device) + 3).to(dtype)


def plain(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    *how: Any, activation: str = "leaky_relu", negative_slope: float = 0.2,
) -> Tensor:  # fmt: skip
    if weight is None and bias is not None:  # of which torch has no second gradient
        weight = torch.ones_like(bias)
    return activate(F.batch_norm(x, mean, var, weight, bias, *how), activation, negative_slope)


def gradients(y: Tensor, asked: Sequence[Tensor], seed: int = 9, **how: Any) -> list[Tensor]:
    """For a random cotangent."""
    mix = numbers(*y.shape, seed=seed).to(y)
    return [g for g in torch.autograd.grad(y, asked, mix, allow_unused=True, **how) if g is not None]


def everything(function: Callable[..., Tensor], x: Tensor, operands: list[Tensor | None], *how: Any) -> list[Tensor]:
    """The output, first gradients by both ways back, second gradients, and the running statistics."""
    running = [None if t is None else t.clone() for t in operands[:2]]
    asked = [t.detach().clone().requires_grad_() for t in operands[2:] if t is not None]
    params = iter(asked)
    x = x.detach().requires_grad_()
    y = function(x, *running, *(None if t is None else next(params) for t in operands[2:]), *how)
    alone = gradients(y, [x, *asked], retain_graph=True)
    first = gradients(y, [x, *asked], create_graph=True)
    mix = sum((part * numbers(*part.shape, seed=3).to(part)).sum() for part in first)
    mix = mix + sum(0 * t.sum() for t in (x, *asked))  # a function of all of them, if only by name
    return [y, *alone, *first, *torch.autograd.grad(mix, [x, *asked]), *(t for t in running if t is not None)]


def close(mine: Sequence[Tensor], exact: Sequence[Tensor], base: Sequence[Tensor] | None = None) -> None:
    """As near to fp64 as fp32 can be, or as PyTorch is: 1 / std magnifies rounding."""
    for got, wanted, other in zip(mine, exact, base or exact, strict=True):
        got, wanted, other = got.detach(), wanted.detach(), other.detach()
        scale, off = float(wanted.abs().max()), float((other - wanted).abs().max())
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2e-5 * scale + 4 * off + 1e-12)


@pytest.mark.parametrize("activation, slope", EVERY_FORM)
@pytest.mark.parametrize("training", [True, False])
def test_formulas_are_derivatives_of_each_other(activation: str, slope: float, training: bool) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its plain arithmetic."""
    running_mean, running_var, w, b = vectors(2, "cpu")
    given = () if training else (running_mean, running_var)
    leaves = [t.requires_grad_() for t in (numbers(3, 2, 2), w, b)]

    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        frozen = given or (None, None)
        return torch.ops.fastgan.batch_norm_act(x, w, b, *frozen, 0.1, activation, slope)[0]

    expected = plain(
        leaves[0], running_mean, running_var, w, b, training, 0.0, 0.1, activation=activation, negative_slope=slope
    )
    torch.testing.assert_close(op(*leaves), expected)
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


def test_third_order() -> None:
    leaves = [t.requires_grad_() for t in (numbers(3, 2), *vectors(2, "cpu")[2:])]

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        y = torch.ops.fastgan.batch_norm_act(*tensors, None, None, 0.1, "tanh", 0.0)[0]
        return torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, leaves)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    form=st.sampled_from(EVERY_FORM),
    space=st.lists(st.integers(1, 4), max_size=3),
    N=st.integers(5, 20),
    C=st.integers(1, 40),
    layout=st.sampled_from(list(LAYOUTS)),
    training=st.booleans(),
    tracks=st.booleans(),
    affine=st.sampled_from([(True, True), (False, False), (True, False), (False, True)]),
    eps=st.sampled_from([1e-5, 0.8]),
)
def test_values_and_gradients_are_torchs(
    device: str, form: tuple[str, float], space: list[int], N: int, C: int, layout: str, training: bool, tracks: bool,
    affine: tuple[bool, bool], eps: float,
) -> None:  # fmt: skip
    activation, slope = form
    x = LAYOUTS[layout](images(N, C, *space, device=device, dtype=torch.float64))
    there = [tracks or not training] * 2 + list(affine)
    operands = [t if keep else None for t, keep in zip(vectors(C, device), there, strict=True)]
    single = [None if t is None else t.float() for t in operands]
    how = training, 0.3, eps

    def run(function: Callable[..., Tensor], x: Tensor, operands: list[Tensor | None]) -> list[Tensor]:
        form = {"activation": activation, "negative_slope": slope}
        return everything(lambda *arguments: function(*arguments, **form), x, operands, *how)

    results = run(batch_norm_act, x.float(), single)
    assert all(result.dtype == torch.float32 for result in results)
    close(results, run(plain, x, operands), run(plain, x.float(), single))


def test_running_statistics(device: str) -> None:
    """They move as torch's, by a momentum or as plain averages, and autograd is told."""
    for momentum, tracked, dtype in ((0.1, None, torch.float32), (1.0, None, torch.float32), (0.0, 3, torch.float32)):
        module = torch.nn.BatchNorm2d(5, momentum=None if tracked else momentum, device=device, dtype=torch.float64)
        mean, var, *_ = vectors(5, device, dtype)
        module.running_mean, module.running_var = mean.double(), var.double()
        module.num_batches_tracked.fill_(tracked or 0)
        count = None if tracked is None else torch.tensor(tracked, device=device)
        versions = mean._version, var._version
        for shift in (0, 5):
            x = images(3, 5, 2, 4, device=device) + shift
            batch_norm_act(x, mean, var, None, None, True, momentum, num_batches_tracked=count)
            module(x.double())
            if count is not None:
                count += 1
        torch.testing.assert_close(mean.double(), module.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(var.double(), module.running_var, rtol=1e-5, atol=1e-5)
        assert mean._version > versions[0] and var._version > versions[1]
        before = mean.clone(), var.clone()
        batch_norm_act(x, mean, var, training=False)
        assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


def test_averages_by_the_reference_do_not_wait() -> None:
    """Plain PyTorch keeps plain averages without reading their count on the host."""
    mean, var, *_ = vectors(3, "cpu")
    module = torch.nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    count = torch.zeros((), dtype=torch.long)
    for seed in range(3):
        x = numbers(6, 3, seed=seed)
        batch_norm_act(x, mean, var, training=True, num_batches_tracked=count)
        module(x)
        count += 1
    torch.testing.assert_close(mean, module.running_mean)
    torch.testing.assert_close(var, module.running_var)
    meta = torch.empty(6, 3, device="meta"), *(torch.empty(3, device="meta") for _ in range(2))
    batch_norm_act(*meta, training=True, num_batches_tracked=count.to("meta"))  # which has no value to read


@pytest.mark.parametrize("kind", ["fp32", "own"])
@pytest.mark.parametrize("training", [True, False])
def test_sixteen_bits(device: str, kind: str, training: bool) -> None:
    """Vectors in fp32 or in the input's dtype, and results in the dtypes of torch's."""
    for dtype in [torch.float16, torch.bfloat16][: 1 if device == "cpu" else 2]:
        as_near_as_torch(device, dtype, kind, training)


def as_near_as_torch(device: str, dtype: torch.dtype, kind: str, training: bool) -> None:
    x = images(8, 6, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    operands = vectors(6, device, torch.float32 if kind == "fp32" else dtype)
    results = everything(batch_norm_act, x, list(operands), training, 0.1, 1e-5)
    exact = everything(plain, x.double(), [t.double() for t in operands], training, 0.1, 1e-5)
    base = everything(plain, x, list(operands), training, 0.1, 1e-5)
    assert [t.dtype for t in results] == [t.dtype for t in base]
    ulp = torch.finfo(dtype).eps
    for got, wanted, other in zip(results, exact, base, strict=True):
        scale, off = float(wanted.detach().abs().max()), float((other.double() - wanted).detach().abs().max())
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=4 * ulp * scale + 2 * off)


def test_a_large_mean_keeps_the_variance(device: str) -> None:
    x = (numbers(4096, 4) + 1e3).to(device, torch.float32)
    x[:5] -= 500
    running = [torch.zeros(4, device=device), torch.zeros(4, device=device)]
    y = batch_norm_act(x, *running, training=True, momentum=1.0, activation="none")
    torch.testing.assert_close(running[1].double(), x.double().var(0), rtol=2e-5, atol=0)
    torch.testing.assert_close(y.double(), F.batch_norm(x.double(), None, None, training=True), rtol=0, atol=2e-3)


def test_running_statistics_may_move_before_backward(device: str) -> None:
    """The gradient is that of the statistics that the forward pass went by."""
    x, operands = images(6, 3, device=device).requires_grad_(), vectors(3, device, torch.float32)
    y = batch_norm_act(x, *operands, activation="tanh")
    expected = gradients(y, [x], retain_graph=True)
    batch_norm_act(5 * x.detach(), *operands, training=True)
    assert torch.equal(gradients(y, [x], retain_graph=True)[0], expected[0])
    torch.testing.assert_close(gradients(y, [x], create_graph=True), expected, rtol=1e-4, atol=1e-5)


def test_autocast_as_torch(device: str) -> None:
    """A batch norm keeps its input's dtype."""
    operands = vectors(3, device, torch.float32)
    with torch.autocast(device, dtype=torch.float16):
        for dtype in (torch.float32, torch.float16):
            x = images(6, 3, device=device, dtype=dtype).requires_grad_()
            mine, theirs = batch_norm_act(x, *operands), plain(x, *operands)
            assert mine.dtype == theirs.dtype == dtype
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(gradients(mine, [x]), gradients(theirs, [x]), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph_replays_forward_and_backward(dtype: torch.dtype) -> None:
    x = images(16, 32, 8, 8, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    *running, w, b = (t.requires_grad_() for t in vectors(32, "cuda", torch.float32))
    running = [t.detach() for t in running]

    def run(mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        y = batch_norm_act(x, mean, var, w, b, True)
        return (y, *torch.autograd.grad(y.square().sum(), (x, w, b)))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(*[t.clone() for t in running])
    torch.cuda.synchronize()
    graph, twins = torch.cuda.CUDAGraph(), [t.clone() for t in running]
    with torch.cuda.graph(graph):
        results = run(*running)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for result, wanted in zip((*results, *running), (*run(*twins), *twins), strict=True):
        assert torch.equal(result, wanted)
