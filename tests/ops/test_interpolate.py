"""interpolate as people call it: layouts, dtypes, gradients, where the points lie, tracing, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.interpolate import interpolate, uniform

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
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
    "a slice of channels_last": lambda t: t.repeat(1, 1, 2, 1).contiguous(memory_format=torch.channels_last)[:, :, :4],
    "every other of channels_last": lambda t: t.repeat_interleave(2, 0).contiguous(memory_format=torch.channels_last)[
        ::2
    ],
    "one sample": lambda t: t[:1].expand(t.shape),
    "one number": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}


@pytest.fixture(params=ROUTES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, under the backend whose turn it is."""
    device, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield device


def numbers(*size: int, device: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def rng(device: str) -> Tensor:
    return torch.tensor([5, 2**40 + 1], device=device)


def expected(real: Tensor, fake: Tensor) -> Tensor:
    alpha = uniform(rng(real.device.type), len(real)).view(-1, *[1] * (real.dim() - 1))
    return alpha * real + (1 - alpha) * fake


@pytest.mark.parametrize("of_fake", LAYOUTS)
@pytest.mark.parametrize("of_real", LAYOUTS)
def test_any_layouts(device: str, of_real: str, of_fake: str) -> None:
    real = LAYOUTS[of_real](numbers(6, 3, 4, 5, device=device))
    fake = LAYOUTS[of_fake](numbers(6, 3, 4, 5, device=device, seed=1))
    got = interpolate(real, fake, rng(device))
    torch.testing.assert_close(got, expected(real, fake))
    if of_real == of_fake and of_real in ("contiguous", "channels_last"):
        assert got.stride() == real.stride()


@pytest.mark.parametrize("shape", [(5,), (5, 2), (1, 3), (3, 2, 4), (2, 2, 3, 2, 3), (4, 1, 1, 1), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_any_shapes_and_the_wider_dtype(
    device: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    real, fake = (numbers(*shape, device=device, seed=at, dtype=dtype) for at, dtype in enumerate(dtypes))
    got = interpolate(real, fake, rng(device))
    assert got.dtype == torch.float32 and got.shape == shape
    torch.testing.assert_close(got, expected(real, fake))


def test_between_the_two_and_drawn_anew(device: str) -> None:
    real, fake = torch.ones(64, 3, device=device), torch.zeros(64, 3, device=device)
    torch.manual_seed(0)
    first, second = interpolate(real, fake), interpolate(real, fake)
    torch.manual_seed(0)
    assert torch.equal(interpolate(real, fake), first) and not torch.equal(second, first)
    assert torch.equal(first, first[:, :1].expand(-1, 3))  # one point for a whole sample
    assert first.min() >= 0 and first.max() < 1 and len(set(first[:, 0].tolist())) > 60


def test_gradients(device: str) -> None:
    real, fake = (numbers(4, 3, device=device, seed=at).requires_grad_() for at in range(2))
    cotangent = numbers(4, 3, device=device, seed=3).requires_grad_()
    alpha = uniform(rng(device), 4)[:, None]
    for asked, wanted in (((real, fake), (alpha, 1 - alpha)), ((fake,), (1 - alpha,))):
        got = torch.autograd.grad(interpolate(real, fake, rng(device)), asked, cotangent, create_graph=True)
        torch.testing.assert_close(got, tuple(part * cotangent for part in wanted))
        again = torch.autograd.grad(sum((part * part).sum() for part in got), cotangent)[0]
        torch.testing.assert_close(again, sum(2 * part * part * cotangent for part in wanted))
    half = interpolate(real.half(), fake, rng(device))
    assert all(part.dtype == torch.float32 for part in torch.autograd.grad(half.sum(), (real, fake)))


def test_gradients_of_the_reference() -> None:
    real, fake = (numbers(3, 2, device="cpu", seed=at, dtype=torch.float64).requires_grad_() for at in range(2))
    assert interpolate(real, fake, rng("cpu")).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x, y: interpolate(x, y, rng("cpu")), (real, fake))
    assert torch.autograd.gradgradcheck(lambda x, y: interpolate(x, y, rng("cpu")), (real, fake))


def test_under_pytorchs_machinery(device: str) -> None:
    """It is plain PyTorch there, with the same points."""
    real, fake, where = numbers(4, 3, device=device), numbers(4, 3, device=device, seed=1), rng(device)
    got = interpolate(real, fake, where)
    torch.testing.assert_close(torch.compile(interpolate, fullgraph=True, backend="eager")(real, fake, where), got)
    torch.testing.assert_close(torch.func.vmap(lambda x: interpolate(x, fake, where))(real[None])[0], got)
    with torch._subclasses.FakeTensorMode():
        assert interpolate(torch.empty(4, 3, device=device), torch.empty(4, 3, device=device)).shape == (4, 3)


def test_mistakes_are_named_in_a_line() -> None:
    samples = torch.randn(4, 3)
    for pair, said in (
        ((samples, samples[:3]), r"one shape .*\(4, 3\) and \(3, 3\)"),
        ((samples[0, 0], samples[0, 0]), "one shape"),
        ((samples, samples.byte()), "floating point, not torch.float32 and torch.uint8"),
    ):
        with pytest.raises(UserError, match=said):
            interpolate(*pair)
    with pytest.raises(UserError, match="rng has to be int64"):
        interpolate(samples, samples, torch.zeros(2))


@pytest.mark.parametrize(
    "where", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_the_kernel_computes_it(where: str) -> None:
    pytest.importorskip("triton")
    from fastgan.kernels import interpolate as kernels

    samples = torch.ones(4, 3, device=where)
    with fastgan.backend("triton"), mock.patch.object(kernels, "interpolate", wraps=kernels.interpolate) as kernel:
        for real in (samples, samples.clone().requires_grad_()):
            interpolate(real, samples)
        assert kernel.call_count == 2
        interpolate(samples.double(), samples)
        assert kernel.call_count == 2
