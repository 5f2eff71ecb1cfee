"""What the proofs of the optimisers share: parameters of every kind, and gradients that are not always there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fastgan

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


@pytest.fixture(scope="session")
def weights() -> Callable[..., list[nn.Parameter]]:
    """``weights(device, dtype)``: the same numbers each time; one parameter of each kind that people have."""

    def weights(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device, dtype)

        generator = torch.Generator().manual_seed(7)
        shared = normal(40)
        kinds = {
            "matrix": normal(17, 36),
            "channels_last": normal(4, 6, 3, 3).contiguous(memory_format=torch.channels_last),
            "transposed": normal(9, 5).t(),
            "empty": normal(0, 3),
            "scalar": normal(1)[0],
            "unaligned": normal(30)[1:],
            "one end of a storage": shared[:24],
            "the other, which overlaps": shared[16:],
        }
        return [nn.Parameter(value) for value in kinds.values()]

    return weights


@pytest.fixture(scope="session")
def pull() -> Callable[..., None]:
    """``pull(step, *lists)``: the same random gradients for lists of parameters; one parameter has none at times."""

    def pull(step: int, *lists: list[nn.Parameter], scale: float = 1.0) -> None:
        for at, alike in enumerate(zip(*lists, strict=True)):
            generator = torch.Generator().manual_seed(1000 * step + at)
            values = scale * torch.randn(alike[0].shape, generator=generator)
            for parameter in alike:
                given = None if at == step % 5 and step % 2 else values.to(parameter)
                # a gradient of its own memory order: PyTorch asks for no other
                parameter.grad = None if given is None else torch.empty_like(given).copy_(given)

    return pull


@pytest.fixture(scope="session")
def alike() -> Callable[..., None]:
    """``alike(got, expected)``: equal to a relative 2e-6 of each element and of the largest."""

    def alike(got: Tensor, expected: Tensor, rtol: float = 2e-6) -> None:
        assert got.dtype == expected.dtype and got.shape == expected.shape
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=rtol, atol=rtol * scale)

    return alike
