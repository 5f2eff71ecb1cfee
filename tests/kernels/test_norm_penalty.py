"""Penalties on norms: every size, dtype and split against fp64, sums in a fixed order, slopes beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.norm_penalty import plain

pytest.importorskip("triton")
from fastgan.kernels import norm_penalty as kernels

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)
How = tuple[float, bool, float]


def by_torch(g: Tensor, grad: Tensor, how: How, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Value, mean norm, norms and slope by PyTorch's operators in ``dtype``."""
    wide = g.detach().to(dtype).requires_grad_()
    value, norm = plain(wide, *how)
    (slope,) = torch.autograd.grad(value, wide, grad.to(value.dtype))
    return (
        value.detach(),
        norm,
        torch.linalg.vector_norm(wide.detach(), dim=1),
        slope.to(torch.promote_types(g.dtype, slope.dtype)),
    )


def by_kernels(g: Tensor, grad: Tensor, how: How) -> tuple[Tensor, ...]:
    named = dict(zip(("center", "one_sided", "scale"), how, strict=True))
    with Poisoned():
        value, norm, norms = kernels.norm_penalty_fwd(g, **named)
        slope = kernels.norm_penalty_bwd(g, norms, grad, **named)
    return value, norm, norms, slope


def judge(g: Tensor, grad: Tensor, how: How) -> list[str]:
    """What is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs."""
    got, base, exact = (
        by_kernels(g, grad, how),
        by_torch(g, grad, how, torch.float32),
        by_torch(g, grad, how, torch.float64),
    )
    base = *base[:3], base[3].to(g.dtype)
    return [why for parts in zip(got, base, exact, strict=True) if (why := check(*parts).why) is not None]


def rows(numbers: Callable[..., Tensor], M: int, N: int, step: str, dtype: torch.dtype, device: str) -> Tensor:
    """[M, N] whose rows follow each other, stand apart, or are all one."""
    if step == "apart":
        return numbers(1, 2 * M, N + 3, dtype=dtype, device=device)[::2, 1 : N + 1]
    if step == "one":
        return numbers(1, 1, N, dtype=dtype, device=device).expand(M, N)
    return numbers(1, M, N, dtype=dtype, device=device)


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, numbers: Callable[..., Tensor], data: st.DataObject) -> None:
    M = data.draw(st.integers(1, 20))
    N = data.draw(st.integers(1, 40) | st.sampled_from((784, 2049)))
    step, dtype = data.draw(st.sampled_from(("dense", "apart", "one"))), data.draw(st.sampled_from(DTYPES[device]))
    how = (
        data.draw(st.sampled_from((0.0, 1.0, N**0.5))),
        data.draw(st.booleans()),
        data.draw(st.sampled_from((1.0, 0.5))),
    )
    g = rows(numbers, M, N, step, dtype, device)
    assert judge(g, torch.tensor(data.draw(st.sampled_from((1.0, -3.0))), device=device), how) == []


@on_devices
def test_the_last_to_arrive_finishes_whoever_it_is(
    device: str, numbers: Callable[..., Tensor], shared_tickets: Callable[[str], Tensor]
) -> None:
    """Rows that are split and sums of many groups: the same bits again and again, and all tickets back."""
    buffer, grad = shared_tickets(device), torch.ones((), device=device)
    for M, N in ((3, 9000), (2600, 3), (200, 40)):
        g = numbers(3, M, N, device=device)
        first = by_kernels(g, grad, (1.0, False, 1.0))
        for _ in range(2):
            assert all(map(torch.equal, by_kernels(g, grad, (1.0, False, 1.0)), first))
        assert not buffer.any()
    assert kernels.splits_of(3, 9000, kernels.choose(9000)) > 1


@pytest.mark.interpret
def test_in_any_order(numbers: Callable[..., Tensor], renumber: Callable[[Callable[[int, int], int]], None]) -> None:
    g, grad, how = numbers(4, 5, 9000), torch.ones(()), (1.0, False, 1.0)
    first = by_kernels(g, grad, how)
    renumber(lambda i, n: n - 1 - i)
    assert all(map(torch.equal, by_kernels(g, grad, how), first))


@on_devices
def test_edges(device: str) -> None:
    grad, how = torch.ones((), device=device), (1.0, False, 1.0)
    still = torch.zeros(4, 6, device=device)
    value, norm, _, slope = by_kernels(still, grad, how)
    assert (value, norm) == (1.0, 0.0) and not slope.any()  # a norm of 0 has no slope: 0, not NaN
    for M, N in ((0, 5), (0, 0)):
        value, norm, _, slope = by_kernels(torch.empty(M, N, device=device), grad, how)
        assert value.isnan() and norm.isnan() and slope.shape == (M, N)
    assert by_kernels(torch.empty(5, 0, device=device), grad, how)[:2] == (1.0, 0.0)
    still[2, 3] = float("nan")
    for one_sided in (False, True):
        value, norm, norms, slope = by_kernels(still, grad, (1.0, one_sided, 1.0))
        assert value.isnan() and norm.isnan() and norms.isnan().tolist() == [False, False, True, False]
        assert slope.isnan().any(1).tolist() == [False, False, True, False]


@on_devices
@pytest.mark.parametrize("bug", ["another center", "both sides", "another scale", "a sample less"])
def test_a_wrong_penalty_is_caught(device: str, numbers: Callable[..., Tensor], bug: str) -> None:
    """The rule has teeth."""
    g, grad, how = numbers(0, 9, 20, device=device), torch.ones((), device=device), (4.5, True, 1.0)
    wrong = {
        "another center": lambda: by_kernels(g, grad, (4.4, True, 1.0)),
        "both sides": lambda: by_kernels(g, grad, (4.5, False, 1.0)),
        "another scale": lambda: by_kernels(g, grad, (4.5, True, 0.99)),
        "a sample less": lambda: (*by_kernels(g[:-1], grad, how)[:2],),
    }[bug]
    base, exact = (by_torch(g, grad, how, dtype) for dtype in (torch.float32, torch.float64))
    assert any(check(*parts).why is not None for parts in zip(wrong(), base, exact, strict=False))
    assert judge(g, grad, how) == []


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(numbers: Callable[..., Tensor], sparse: Callable[..., Tensor]) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    memory, near = sparse(torch.float16), numbers(0, 40, 6, dtype=torch.float16)
    far = memory.as_strided((40, 6), (2**26, 1), 2**31 + 64).copy_(near)  # row 32 begins 2^31 elements on
    both = [by_kernels(g, torch.ones(()), (1.0, False, 1.0)) for g in (far, near)]
    assert all(map(torch.equal, *both))


@pytest.mark.gpu
def test_larger_sizes(numbers: Callable[..., Tensor]) -> None:
    for M, N in ((64, 12288), (65537, 3), (3, 100_001), (16, 3 * 256 * 256)):
        for dtype in DTYPES["cuda"]:
            g = numbers(0, M, N, dtype=dtype, device="cuda")
            assert judge(g, torch.ones((), device="cuda"), (1.0, False, 1.0)) == []
