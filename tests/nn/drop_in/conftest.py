"""Converted modules that run what they were converted to, where the kernels do not run as well."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgan.nn.drop_in import converted


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs run on the CPU, layer by layer: what they do, not how fast."""
    monkeypatch.setattr(converted, "always", True)


def gradients(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Return a module's outputs, their gradients by its parameters and inputs, and its buffers."""
    leaves = [value.detach().clone().requires_grad_(value.is_floating_point()) for value in inputs]
    module.zero_grad()
    torch.manual_seed(5)
    output = module(*leaves)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    slopes = [value.grad for value in (*leaves, *module.parameters()) if value.grad is not None]
    return [output.detach(), *slopes, *(buffer.clone() for buffer in module.buffers())]


@pytest.fixture
def alike() -> Callable[..., None]:
    """Hold two modules to the same outputs, gradients and buffers."""

    def check(one: nn.Module, other: nn.Module, *inputs: Tensor) -> None:
        found, wanted = gradients(one, *inputs), gradients(other, *inputs)
        assert len(found) == len(wanted)
        for value, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)

    return check


@pytest.fixture
def twins() -> Callable[[nn.Module], tuple[nn.Module, nn.Module]]:
    """Return a module in double precision, and a copy of it."""

    def pair(module: nn.Module) -> tuple[nn.Module, nn.Module]:
        module = module.double()
        return module, copy.deepcopy(module)

    return pair


@pytest.fixture
def signal() -> Tensor:
    """Return a batch of signals of three channels."""
    return torch.randn(5, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
