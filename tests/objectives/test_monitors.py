"""Norms of gradients and weights: all elements together, in fp32, without waiting for the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastgan.objectives.monitors import gradient_norm, norm, weight_norm


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 1))
    layers(torch.randn(4, 2, 4, 4)).square().mean().backward()
    return layers


def test_of_a_network(network: nn.Module) -> None:
    gradients = torch.cat([p.grad.flatten().double() for p in network.parameters()])
    weights = torch.cat([p.detach().flatten().double() for p in network.parameters()])
    torch.testing.assert_close(gradient_norm(network.parameters()).double(), gradients.norm())
    torch.testing.assert_close(weight_norm(network.parameters()).double(), weights.norm())
    assert not weight_norm(network.parameters()).requires_grad
    before = nn.utils.clip_grad_norm_(network.parameters(), 1e9)
    torch.testing.assert_close(gradient_norm(network.parameters()), before)


def test_parameters_without_a_gradient_count_nothing(network: nn.Module) -> None:
    want = norm([network[0].weight.grad, network[0].bias.grad])
    network[2].requires_grad_(False)
    for parameter in [*network[2].parameters(), *network[3].parameters()]:
        parameter.grad = None
    assert torch.equal(gradient_norm(network.parameters()), want)
    network.zero_grad()
    assert gradient_norm(network.parameters()) == 0 and gradient_norm([]) == 0
    assert gradient_norm(nn.Linear(2, 2, device="meta").parameters()).is_meta


def test_dtypes_shapes_and_what_is_not_finite() -> None:
    large = torch.full((100_000,), 300.0, dtype=torch.float16)  # whose norm fp16 does not hold
    for parts, square in (([large], 9e9), ([torch.zeros(0), torch.tensor(4.0), torch.ones(2, 3).t()], 16 + 6)):
        got = norm(parts)
        assert got.dtype == torch.float32 and got.item() == pytest.approx(math.sqrt(square), rel=1e-3)
    assert norm([torch.ones(4), torch.ones(5, dtype=torch.float64)]).dtype == torch.float64
    assert norm([torch.ones(2), torch.tensor([math.nan])]).isnan()
    assert norm([torch.ones(2), torch.tensor([-math.inf])]).isinf()


def test_nothing_is_read_back_and_the_operations_are_few() -> None:
    from torch.profiler import profile

    network = nn.Sequential(*[nn.Linear(8, 8, device="meta") for _ in range(20)])
    assert weight_norm(network.parameters()).is_meta
    real = nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)])
    with profile() as trace:
        weight_norm(real.parameters())
    names = [event.name for event in trace.events() if event.cpu_parent is None or event.cpu_parent.name == ""]
    assert [name for name in names if "detach" not in name and name.startswith("aten")] == [
        "aten::_foreach_norm",
        "aten::stack",
        "aten::linalg_vector_norm",
    ]
