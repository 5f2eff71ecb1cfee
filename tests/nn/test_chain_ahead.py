"""A Chain with an activation in front of a convolution: formed where that loads it, and its input left as it is."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.nn import Chain, Conv2dAct
from fastgan.nn.chain_members import plan

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    exact = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.conv.fp32_precision = exact


def hifigan() -> list[nn.Module]:
    """Half of a residual block: signals."""
    return [nn.LeakyReLU(0.1), nn.Conv1d(4, 4, 3, 1, 2, 2), nn.LeakyReLU(0.1), nn.Conv1d(4, 4, 3, 1, 1)]


def sngan() -> list[nn.Module]:
    """A residual branch of a generator, its first norm in front of everything."""
    up = nn.Upsample(scale_factor=2)
    rest = nn.Conv2d(4, 5, 3, 1, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3, 1, 1)
    return [nn.BatchNorm2d(4), nn.ReLU(), up, *rest]


def smooth() -> list[nn.Module]:
    """One behind what has an activation already, one in front of a transposed convolution, one that is no member's."""
    return [
        *(nn.Sigmoid(), nn.ConvTranspose2d(4, 3, 2, 2), nn.LeakyReLU(0.2), nn.Tanh(), nn.Conv2d(3, 4, 2)),
        *(nn.ReLU(), nn.Flatten(), nn.Tanh(), nn.Linear(4 * 25, 2)),
    ]


NETWORKS = {"hifigan": (hifigan, (4, 7)), "sngan": (sngan, (4, 2, 2)), "smooth": (smooth, (4, 3, 3))}


def twins(members: Sequence[nn.Module], device: str) -> tuple[nn.Sequential, Chain]:
    """The members as torch runs them in fp64, and as a Chain in fp32."""
    torch.manual_seed(0)
    theirs = nn.Sequential(*(copy.deepcopy(m) for m in members)).to(device).double()
    mine = Chain(*(copy.deepcopy(m) for m in members)).to(device)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def numbers(*size: int, device: str, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def close(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = 1e-4) -> None:
    scale = max(float(t.detach().abs().max()) for t in theirs if t is not None)
    for got, wanted in zip(mine, theirs, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * scale)


def everything(network: nn.Module, x: Tensor) -> list[list[Tensor | None]]:
    """Output, with a skip, first gradients, those of a penalty, and the input afterwards."""
    x = x.clone().requires_grad_()
    y = network(x)
    y = y + x if y.shape == x.shape else y
    mix = numbers(*y.shape, device=x.device.type, seed=2).to(y)
    asked = [x, *network.parameters()]
    first = list(torch.autograd.grad(y, asked, mix, retain_graph=True))
    (slope,) = torch.autograd.grad((y.tanh() * mix).sum(), x, create_graph=True)
    second = list(torch.autograd.grad(slope.square().sum(), asked, allow_unused=True))
    return [[y], first, second, [x]]


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_sequential(device: str, name: str) -> None:
    members, size = NETWORKS[name]
    theirs, mine = twins(members(), device)
    x = numbers(2, *size, device=device)
    for got, wanted in zip(everything(mine, x.float()), everything(theirs, x), strict=True):
        close(got, wanted)


def test_a_penalty_runs_no_layer_again(device: str, products: Counter[str]) -> None:
    """Piecewise linear all through: 4 products a layer, less one where the incoming gradient is constant."""
    theirs, mine = twins(hifigan(), device)
    x = numbers(2, 4, 7, device=device)
    results = []
    for network, input in ((theirs, x), (mine, x.float())):
        input = input.requires_grad_()
        (slope,) = torch.autograd.grad(network(input).sum(), input, create_graph=True)
        weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        results.append(torch.autograd.grad(slope.square().sum(), weights))
    close(results[1], results[0])
    assert products.total() == 4 * 2 - 1


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    _, mine = twins(hifigan(), device)
    x = numbers(2, 4, 7, device=device).float().requires_grad_()
    torch.autograd.grad(mine(x).sum(), x)
    assert products == {"conv_fwd": 2, "conv_bwd_input": 2}
    products.clear()
    mine(x.detach()).sum().backward()
    assert products == {"conv_fwd": 2, "conv_bwd_input": 1, "conv_bwd_weight": 2}


def test_nothing_activated_is_saved(device: str) -> None:
    """The input itself and the hidden layer's output: what came out of the first activation is nowhere."""
    _, mine = twins(hifigan(), device)
    x = numbers(2, 4, 7, device=device).float().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mine(x)
    maps = [t for t in kept if t.numel() == x.numel()]
    assert len(maps) == 2 and any(torch.equal(t.view(x.shape), x) for t in maps)


@pytest.mark.parametrize("leaky", [False, True])
def test_in_place_it_changes_its_input_as_ever(device: str, leaky: bool) -> None:
    first = nn.LeakyReLU(0.1, inplace=True) if leaky else nn.ReLU(inplace=True)
    theirs, mine = twins([first, nn.Conv2d(4, 3, 1)], device)
    x = numbers(2, 4, 3, 3, device=device)
    xs = x.clone(), x.float()
    close([mine(xs[1]), xs[1]], [theirs(xs[0]), xs[0]])
    assert not torch.equal(xs[0], x)


def test_sixteen_bits_round_behind_it(device: str) -> None:
    """Under autocast PyTorch activates in the input's own dtype: a large negative number is not infinite before."""
    theirs, mine = twins([nn.LeakyReLU(0.1), nn.Conv2d(4, 3, 1), nn.ReLU()], device)
    x = numbers(2, 4, 3, 3, device=device).float()
    x[0, 0] = -1e5
    x[0, 1] = 3e-8
    with torch.autocast(device, dtype=torch.float16):
        y = mine(x.requires_grad_())
    close([y], [theirs(x.double())], 2e-3)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert got.dtype == torch.float32 and got.isfinite().all()


def test_what_stays_a_module_of_its_own() -> None:
    """In place, of a negative slope, in front of something else, with a hook, in front of one that has its own."""
    watched, conv = nn.ReLU(), nn.Conv2d(4, 4, 1)
    watched.register_forward_hook(lambda *_: None)
    for first in (nn.ReLU(inplace=True), nn.LeakyReLU(-0.1), nn.ELU(), watched):
        assert [type(step) for step in plan([first, conv])] == [type(first), list]
    assert [type(step) for step in plan([nn.ReLU(), nn.Linear(3, 4), conv])] == [nn.ReLU, list, list]
    assert [type(step) for step in plan([nn.ReLU(), Conv2dAct(4, 4, 1, pre_activation="tanh")])] == [nn.ReLU, Conv2dAct]
    assert [type(step) for step in plan([nn.ReLU()])] == [nn.ReLU]
    odd = [nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), conv]
    assert [type(step) for step in plan(odd)] == [nn.ReLU, nn.Upsample, list]
    assert [type(step) for step in plan([nn.ReLU(), nn.Upsample(scale_factor=2), conv])] == [list]
