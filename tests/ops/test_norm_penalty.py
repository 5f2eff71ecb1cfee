"""norm_penalty as people call it: layouts, dtypes, gradients of any order, under PyTorch's machinery, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.norm_penalty import norm_penalty, plain

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "turned": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "steps": lambda t: t.repeat_interleave(2, 0).repeat_interleave(2, 3)[::2, :, :, ::2],
    "one number": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}
CASES = [(0.0, False, 0.5), (1.0, False, 1.0), (7.0, True, 1.0)]


@pytest.fixture(params=ROUTES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, under the backend whose turn it is."""
    device, backend = request.param
    with fastgan.backend(backend):
        yield device


def numbers(*size: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def called(gradient: Tensor, center: float, one_sided: bool, scale: float) -> tuple[Tensor, Tensor]:
    return norm_penalty(gradient, center=center, one_sided=one_sided, scale=scale)


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(device: str, layout: str, how: tuple[float, bool, float]) -> None:
    given = LAYOUTS[layout](numbers(6, 3, 4, 5, device=device)).detach().requires_grad_()
    (value, norm), (expected, length) = called(given, *how), plain(given, *how)
    torch.testing.assert_close((value, norm), (expected, length))
    assert not norm.requires_grad
    weight = torch.tensor(10.0, device=device)
    (got,), (slope,) = (torch.autograd.grad(total, given, weight) for total in (value, expected))
    torch.testing.assert_close(got, slope)
    if layout == "channels_last":
        assert got.stride() == given.stride()


@pytest.mark.parametrize("shape", [(5,), (5, 2), (1, 3), (2, 2, 3, 2, 3), (4, 1, 1, 1), (3, 0)])
def test_any_shape(device: str, shape: tuple[int, ...]) -> None:
    given = numbers(*shape, device=device)
    torch.testing.assert_close(called(given, 1.0, False, 1.0), plain(given, 1.0, False, 1.0))


def test_half_precision_is_summed_in_float32(device: str) -> None:
    given = (300 * numbers(4, 100, device=device)).half().requires_grad_()  # whose squares no fp16 holds
    value, norm = norm_penalty(given, center=1.0)
    assert value.dtype == norm.dtype == torch.float32 and value.isfinite()
    (slope,) = torch.autograd.grad(value, given)
    assert slope.dtype == torch.float16
    torch.testing.assert_close(value, plain(given.float(), 1.0, False, 1.0)[0])


@pytest.mark.parametrize("how", CASES)
def test_a_second_gradient(device: str, how: tuple[float, bool, float]) -> None:
    results = []
    for function in (called, plain):
        given = numbers(4, 30, device=device).requires_grad_()
        (slope,) = torch.autograd.grad(function(given, *how)[0], given, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), given)[0])
    torch.testing.assert_close(*results)


def test_gradients_of_the_reference() -> None:
    given = numbers(3, 4, device="cpu", dtype=torch.float64).requires_grad_()
    for how in CASES:
        assert torch.autograd.gradcheck(lambda g, how=how: called(g, *how)[0], given)
        assert torch.autograd.gradgradcheck(lambda g, how=how: called(g, *how)[0], given)
    still = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    for center in (0.0, 1.0):
        (slope,) = torch.autograd.grad(norm_penalty(still, center=center)[0], still)
        assert not slope.any()


def test_under_pytorchs_machinery(device: str) -> None:
    """It is plain PyTorch there."""
    given = numbers(2, 4, 3, device=device)
    expected = torch.stack([norm_penalty(each, center=1.0)[0] for each in given])
    torch.testing.assert_close(torch.func.vmap(lambda g: norm_penalty(g, center=1.0)[0])(given), expected)
    compiled = torch.compile(lambda g: norm_penalty(g, center=1.0)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(given[0]), expected[0])
    with torch._subclasses.FakeTensorMode():
        assert norm_penalty(torch.empty(4, 3, device=device))[0].shape == ()


def test_mistakes_are_named_in_a_line() -> None:
    for given, how, said in (
        (torch.ones(3, dtype=torch.int64), {}, r"floating point, not int64 \(3,\)"),
        (torch.ones(()), {}, r"not float32 \(\)"),
        (torch.ones(3), {"center": -1.0}, "no norm is -1"),
    ):
        with pytest.raises(UserError, match=said):
            norm_penalty(given, **how)


@pytest.mark.parametrize(
    "where", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_the_kernels_compute_it(where: str) -> None:
    pytest.importorskip("triton")
    from fastgan.kernels import norm_penalty as kernels

    given = torch.ones(4, 3, device=where)
    with fastgan.backend("triton"), mock.patch.object(kernels, "submit", wraps=kernels.submit) as submit:
        norm_penalty(given)
        assert submit.call_count == 1
        leaf = given.clone().requires_grad_()
        torch.autograd.grad(norm_penalty(leaf)[0], leaf)
        assert submit.call_count == 3
        norm_penalty(given.double())
        assert submit.call_count == 3
