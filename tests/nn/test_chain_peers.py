"""A batch in equal parts: two processes with the same samples are one process with each sample twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.nn import BatchNorm1dAct, Chain
from fastgan.nn.synced_batch_norm import sync
from fastgan.ops.peers import Peers, merge_, together

DEVICES = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.interpret),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@dataclass(frozen=True)
class Twins(Peers):
    """Two processes, the other of which has what this one has."""

    def add_(self, values: Tensor) -> Tensor:
        assert values.is_contiguous()
        return values.mul_(2)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastgan.backend("reference" if request.param == "reference" else "triton"):
        yield "cpu" if request.param == "reference" else request.param


def linear() -> Chain:
    return Chain(
        *(nn.Linear(5, 12), nn.BatchNorm1d(12, 0.1), nn.LeakyReLU(0.2)),
        *(nn.Linear(12, 9), nn.BatchNorm1d(9, momentum=None), nn.Tanh()),
        *(nn.Linear(9, 8), BatchNorm1dAct(8, activation="relu"), nn.Linear(8, 6), nn.BatchNorm1d(6)),
    )


def convolutions() -> Chain:
    return Chain(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4, affine=False), nn.Tanh()),
    )


def derived(network: Chain, x: Tensor, groups: int, weight: float) -> list[Tensor]:
    """Output, gradient at the samples, and gradients of the weights of a loss and of a penalty."""
    x = x.clone().requires_grad_()
    out = network(x, groups)
    (slope,) = torch.autograd.grad(out.cos().sum(), x, create_graph=True)
    first = torch.autograd.grad(network(x.detach(), groups).cos().sum() * weight, list(network.parameters()))
    second = torch.autograd.grad(slope.square().sum() * weight, list(network.parameters()), allow_unused=True)
    return [out.detach(), slope.detach(), *first, *(torch.zeros(()) if t is None else t for t in second)]


@pytest.mark.parametrize(
    "make, shape, groups", [(linear, (16, 5), 1), (linear, (32, 5), 2), (convolutions, (4, 2, 3, 3), 2)]
)
def test_twins_are_one_with_each_sample_twice(device, make, shape, groups) -> None:
    torch.manual_seed(0)
    network = make().to(device)
    other = copy.deepcopy(network)
    sync(network)
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 5).to(device)
    parts = [half for part in x.chunk(groups) for half in (part, part)]
    whole = derived(other, torch.cat(parts), groups, 0.5)
    with together(Twins(0, 2)):
        mine = derived(network, x, groups, 1.0)
    for at in range(2):
        whole[at] = torch.cat(whole[at].chunk(2 * groups)[::2])
    scale = max(float(t.abs().max()) for t in whole)
    for got, wanted in zip(mine, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-5 * scale)
    for (name, buffer), wanted in zip(network.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_parts_that_differ_are_merged_by_chan() -> None:
    values = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    values[1] += 5
    var, mean = torch.var_mean(values, 1, correction=0)
    middle = mean.mean(0)

    @dataclass(frozen=True)
    class Other(Peers):
        def add_(self, own: Tensor) -> Tensor:
            return own.add_(next(given))

    given = iter((mean[1], var[1] + (mean[1] - middle).square()))
    centre, spread = mean[0].clone(), var[0].clone()
    merge_(centre, spread, Other(0, 2))
    whole_var, whole_mean = torch.var_mean(values.flatten(0, 1), 0, correction=0)
    torch.testing.assert_close(centre, whole_mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(spread, whole_var, rtol=1e-8, atol=0)
