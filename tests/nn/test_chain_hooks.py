"""Chain and hooks: those of torch.nn.utils' weight and spectral norm are called and fused, any other is left alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm

import fastgan
from fastgan.nn import Chain, sample_by_sample
from fastgan.nn.chain_members import plan

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
WRAPS: dict[str, Any] = {"spectral": (spectral_norm, remove_spectral_norm), "weight": (weight_norm, remove_weight_norm)}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    exact = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.conv.fp32_precision = exact


def critic(wrap: Any) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        *(wrap(nn.Conv2d(2, 5, 3, 2, 1)), nn.LeakyReLU(0.1), wrap(nn.ConvTranspose2d(5, 3, 2, bias=False)), nn.Tanh()),
        *(nn.Flatten(), wrap(nn.Linear(27, 4)), nn.ReLU(), nn.Linear(4, 1)),
    ]


def twins(members: list[nn.Module], device: str) -> tuple[nn.Sequential, Chain]:
    """The members as torch runs them in fp64, and as a Chain in fp32, in the same state."""
    theirs = nn.Sequential(*copied(members)).to(device).double()
    mine = Chain(*copied(members)).to(device)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def copied(members: list[nn.Module]) -> list[nn.Module]:
    """Copies of members whose weights are not leaves, which copy.deepcopy refuses: run once without a graph."""
    with torch.no_grad():
        for member in members:
            for hook in member._forward_pre_hooks.values():
                hook(member, ())
    return copy.deepcopy(members)


def numbers(*size: int, device: str, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def same(mine: Chain, theirs: nn.Sequential, x: Tensor, second: bool = False) -> None:
    """One pass: output, first gradients, those of a penalty if it is asked for, and buffers."""
    results = []
    for network, input in ((theirs, x), (mine, x.float())):
        input = input.clone().requires_grad_()
        y = network(input)
        asked = [input, *network.parameters()]
        results.append([y, *torch.autograd.grad(y.sum(), asked, retain_graph=second), *network.buffers()])
        if second:
            (slope,) = torch.autograd.grad(y.tanh().sum(), input, create_graph=True)
            results[-1] += torch.autograd.grad(slope.square().sum(), asked, allow_unused=True)
    for wanted, got in zip(*results, strict=True):
        assert (wanted is None) == (got is None)
        if wanted is not None:
            scale = max(1e-2, float(wanted.detach().abs().max()))
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("kind", WRAPS)
def test_is_the_sequential(device: str, kind: str, products: Counter[str]) -> None:
    """In training, where each pass is a power iteration, in eval, and once the norm is removed."""
    wrap, remove = WRAPS[kind]
    theirs, mine = twins(critic(wrap), device)
    x = numbers(2, 2, 4, 4, device=device)
    same(mine, theirs, x, second=kind == "spectral")
    assert products["conv_fwd"] >= 2 and products["linear_fwd"] >= 2
    with torch.no_grad():
        theirs(x)
        mine(x.float())
    same(mine.eval(), theirs.eval(), x)
    for network in (mine, theirs):
        for member in network:
            if hasattr(member, "weight") and member._forward_pre_hooks:
                remove(member)
        assert not any(member._forward_pre_hooks for member in network)
    same(mine.train(), theirs.train(), x)


def test_a_step_of_training(device: str) -> None:
    """The optimiser moves what the weight is formed from."""
    theirs, mine = twins(critic(weight_norm)[4:], device)
    x = numbers(3, 27, device=device)
    for network in (theirs, mine):
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            network(x.to(network[1].bias.dtype)).square().mean().backward()
            optimizer.step()
    for got, wanted in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


def test_hooks_run_once_in_order_whatever_becomes_of_the_run(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernels do not take the operands after all: each hook is a power iteration."""
    from torch.nn.utils.spectral_norm import SpectralNorm

    seen: list[tuple[str, bool, bool]] = []
    run = SpectralNorm.__call__

    def watched(self: Any, module: nn.Module, inputs: Any) -> None:
        seen.append((type(module).__name__, module.training, isinstance(inputs, tuple) and len(inputs) == 1))
        run(self, module, inputs)

    _, mine = twins(critic(spectral_norm), device)
    monkeypatch.setattr(SpectralNorm, "__call__", watched)
    x = numbers(3, 2, 4, 4, device=device)
    calls = [(name, True, True) for name in ("Conv2d", "ConvTranspose2d", "Linear")]
    mine(x.float())
    assert seen == calls
    seen.clear()
    mine[5].bias = None
    mine[2].bias = nn.Parameter(torch.zeros(3, device=device, dtype=torch.float64))  # of which no kernel is
    with pytest.raises(RuntimeError):
        mine(x.float())
    assert seen == calls[:2]
    seen.clear()
    double = mine.double()
    double(x)
    assert seen == calls


def test_what_the_kernels_do_not_take_takes_one_power_iteration(device: str) -> None:
    """A batch of nothing: the members run, their weights being formed already."""
    layer = spectral_norm(nn.Conv2d(2, 3, 1))
    theirs, mine = twins([layer, nn.ReLU()], device)
    empty = torch.zeros(0, 2, 4, 4, device=device)
    theirs(empty.double())
    mine(empty)
    for got, wanted in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got.double(), wanted)


def test_a_layer_that_stands_twice(device: str) -> None:
    """Each use is a power iteration."""
    layer = spectral_norm(nn.Conv2d(4, 4, 1))
    theirs, mine = twins([layer, nn.ReLU()], device)
    theirs, mine = nn.Sequential(*theirs, *theirs), Chain(*mine, *mine)
    x = numbers(2, 4, 3, 3, device=device)
    for _ in range(2):
        torch.testing.assert_close(mine(x.float()).double(), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "register",
    ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook", "own", "kwargs"],
)
def test_any_other_hook_leaves_its_layer_alone(register: str) -> None:
    layer = spectral_norm(nn.Conv2d(4, 4, 1))
    assert [type(step) for step in plan([layer])] == [list]
    if register == "own":
        from torch.nn.utils.spectral_norm import SpectralNorm

        layer.register_forward_pre_hook(type("Own", (SpectralNorm,), {})())
    elif register == "kwargs":
        layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    else:
        getattr(layer, register)(lambda *_: None)
    assert [type(step) for step in plan([layer])] == [nn.Conv2d]


def test_weights_that_move_mix_samples() -> None:
    """Who asks whether samples are independent is told of hooks as before."""
    assert sample_by_sample(nn.Conv2d(4, 4, 1)) and not sample_by_sample(spectral_norm(nn.Conv2d(4, 4, 1)))
