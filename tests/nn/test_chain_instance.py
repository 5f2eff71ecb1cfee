"""Instance norms in a Chain against the nn.Sequential that it replaces: each sample by statistics of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.nn import Chain
from fastgan.nn.chain_members import plan
from fastgan.ops import conv_choice, peers

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    exact = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.conv.fp32_precision = exact


def pix2pix() -> list[nn.Module]:
    """Down and up again, as image translation has it."""
    return [
        *(nn.Conv2d(2, 5, 4, 2, 1), nn.InstanceNorm2d(5), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(5, 4, 4, 2, 1, bias=False), nn.InstanceNorm2d(4, 0.1, affine=True), nn.ReLU()),
        *(nn.Conv2d(4, 3, 3, 1, 1), nn.Tanh()),
    ]


def signals() -> list[nn.Module]:
    return [nn.Conv1d(2, 5, 3, padding=1), nn.InstanceNorm1d(5, affine=True), nn.Sigmoid(), nn.Conv1d(5, 3, 3)]


def mixed() -> list[nn.Module]:
    """Norms of batches and of instances, and one that keeps running statistics."""
    return [
        *(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.InstanceNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 3, 1), nn.InstanceNorm2d(3, track_running_stats=True), nn.Conv2d(3, 2, 1)),
    ]


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "pix2pix": (pix2pix, (2, 4, 4)),
    "signals": (signals, (2, 7)),
    "mixed": (mixed, (2, 5, 4)),
}


def twins(members: Sequence[nn.Module], device: str) -> tuple[nn.Sequential, Chain]:
    """The members as torch runs them in fp64, and as a Chain in fp32."""
    torch.manual_seed(0)
    for parameter in (p for member in members for p in member.parameters()):
        nn.init.uniform_(parameter, 0.2, 1.0) if parameter.dim() == 1 else nn.init.normal_(parameter, 0, 0.3)
    theirs = nn.Sequential(*(copy.deepcopy(m) for m in members)).to(device).double()
    return theirs, Chain(*(copy.deepcopy(m) for m in members)).to(device)


def numbers(*size: int, device: str, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def close(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = 1e-4) -> None:
    """As near as fp32 can be, relative to the largest of all: a bias in front of a norm has a true gradient of 0."""
    scale = max(float(t.detach().abs().max()) for t in theirs if t is not None)
    for got, wanted in zip(mine, theirs, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * scale)


def everything(network: nn.Module, x: Tensor, groups: int, second: bool) -> list[list[Tensor | None]]:
    """Output, first gradients, those of a penalty, and buffers."""
    x = x.clone().requires_grad_()
    is_chain = isinstance(network, Chain)
    y = network(x, groups) if is_chain else torch.cat([network(part) for part in x.chunk(groups)])
    mix = numbers(*y.shape, device=x.device.type, seed=2).to(y)
    asked = [x, *network.parameters()]
    first = list(torch.autograd.grad(y, asked, mix, retain_graph=second))
    results = [[y], first, list(network.buffers())]
    if second:
        (slope,) = torch.autograd.grad((y.tanh() * mix).sum(), x, create_graph=True)
        results.append(list(torch.autograd.grad(slope.square().sum(), asked, allow_unused=True)))
    return results


@pytest.mark.parametrize(
    ("name", "training", "groups", "second"),
    [
        ("pix2pix", True, 1, True),
        ("pix2pix", False, 2, False),
        ("signals", True, 1, True),
        ("signals", False, 1, False),
        ("mixed", True, 2, False),
        ("mixed", False, 1, False),
    ],
)
def test_is_the_sequential(device: str, name: str, training: bool, groups: int, second: bool) -> None:
    members, size = NETWORKS[name]
    theirs, mine = (network.train(training) for network in twins(members(), device))
    x = numbers(2 * groups, *size, device=device)
    wanted, got = everything(theirs, x, groups, second), everything(mine, x.float(), groups, second)
    for ours, expected in zip(got, wanted, strict=True):
        close(ours, expected) if expected else None
    assert got[0][0].stride() == wanted[0][0].stride()


def test_one_launch_for_product_and_statistics(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where samples are large enough for tiles of their own: here any size is."""
    monkeypatch.setattr(conv_choice, "THIN", 0)
    theirs, mine = twins(pix2pix(), device)
    x = numbers(2, 2, 4, 4, device=device)
    for ours, expected in zip(everything(mine, x.float(), 1, False), everything(theirs, x, 1, False), strict=True):
        close(ours, expected) if expected else None


def test_what_goes_together() -> None:
    """Statistics of batches and of instances do not share a run; norms that track are left alone."""
    runs = [len(step) if isinstance(step, list) else type(step) for step in plan(mixed())]
    assert runs == [1, 2, nn.InstanceNorm2d, 1]
    assert [len(step) for step in plan(pix2pix())] == [3]
    assert [type(step) for step in plan([nn.Linear(3, 4), nn.InstanceNorm1d(3)])] == [list, nn.InstanceNorm1d]


def test_no_more_products_than_layers(device: str, products: Any) -> None:
    _, mine = twins(pix2pix(), device)
    x = numbers(2, 2, 4, 4, device=device).float()
    torch.autograd.grad(mine(x).sum(), list(mine.parameters()))
    assert products == {"conv_fwd": 3, "conv_bwd_input": 2, "conv_bwd_weight": 3}
    with torch.no_grad():
        mine(x)
    assert products["conv_fwd"] == 6 and products.total() == 11


def test_a_sample_is_its_own_whatever_stands_beside_it(device: str) -> None:
    """Also where batches are shared with other processes, and with huge means."""
    _, mine = twins(pix2pix(), device)
    x = numbers(2, 2, 4, 4, device=device).float()
    x[1] += 1e3
    with peers.together(peers.Peers(0, 2)):  # of which nobody answers
        together = mine(x)
        together.sum().backward()
    for sample, expected in zip(x, together, strict=True):
        torch.testing.assert_close(mine(sample[None])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("members", "size", "kind"),
    [
        ([nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(5)], (2, 2, 3, 3), ValueError),
        ([nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(4, affine=True)], (2, 2, 4, 4), ValueError),
        ([nn.Conv1d(2, 5, 3), nn.InstanceNorm1d(5)], (2, 2, 3), ValueError),
    ],
)
def test_what_torch_refuses_is_refused(device: str, members: list[nn.Module], size: tuple[int, ...], kind: Any) -> None:
    theirs, mine = twins(members, device)
    for training in (True, False):
        with pytest.raises(kind) as words:
            theirs.train(training)(numbers(*size, device=device))
        with pytest.raises(kind) as ours:
            mine.train(training)(numbers(*size, device=device).float())
        assert str(ours.value) == str(words.value)


def test_a_norm_of_other_channels_without_weights_warns_as_torch(device: str) -> None:
    theirs, mine = twins([nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(7)], device)
    x = numbers(2, 2, 5, 5, device=device)
    with pytest.warns(UserWarning, match="does not match num_features"):
        close([mine(x.float())], [theirs(x)])
