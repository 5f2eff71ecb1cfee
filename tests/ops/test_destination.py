"""Gradients' destinations: products write into the views, sums are right, unused parameters get zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import nn as fnn
from fastgan.errors import UserError
from fastgan.ops import destination, shadow
from fastgan.ops.destination import flat, gather, into, landed

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
HALF = {"cpu": torch.float16, "cuda": torch.bfloat16}  # the interpreter's bfloat16 is broken


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size))).to(device)


def critic() -> nn.Module:
    return fnn.Chain(nn.Linear(12, 17), nn.LeakyReLU(0.2), nn.Linear(17, 9), nn.Tanh(), nn.Linear(9, 1))


def generator() -> nn.Module:
    return fnn.Chain(nn.Linear(12, 17, bias=False), nn.BatchNorm1d(17), nn.ReLU(), nn.Linear(17, 5), nn.Sigmoid())


def last(layer: nn.Module) -> nn.Module:
    return layer.to(memory_format=torch.channels_last)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "critic": (critic, (6, 12)),
    "generator": (generator, (6, 12)),
    "dropout": (lambda: fnn.LinearAct(12, 5, dropout=0.3), (6, 12)),
    "Maxout": (lambda: fnn.Maxout(12, 4, 3), (6, 12)),
    "Conv2dAct": (lambda: fnn.Conv2dAct(3, 5, 3, 2), (2, 3, 5, 4)),
    "Conv2dAct, channels last": (lambda: last(fnn.Conv2dAct(3, 5, 3, 2)), (2, 3, 5, 4)),
    "Conv1dAct": (lambda: fnn.Conv1dAct(3, 5, 3), (2, 3, 7)),
    "ConvTranspose1dAct": (lambda: fnn.ConvTranspose1dAct(3, 5, 2, 2), (2, 3, 3)),
    "images": (lambda: fnn.Chain(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 3, 3)),
    "signals": (lambda: fnn.Chain(nn.Conv1d(3, 4, 2), nn.ReLU()), (2, 3, 4)),
}


def made(kind: str, device: str) -> tuple[nn.Module, Tensor, list[Tensor], list[Tensor]]:
    """A layer, an input, its parameters and their views, full of NaN."""
    torch.manual_seed(0)
    make, size = KINDS[kind]
    layer = make().to(device)
    parameters = list(layer.parameters())
    buffer, views = flat(parameters)
    buffer.fill_(float("nan"))
    return layer, numbers(*size, device=device), parameters, views


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_is_written_where_it_belongs(device: str, kind: str, half: bool) -> None:
    layer, x, parameters, views = made(kind, device)
    with torch.autocast(device, dtype=HALF[device], enabled=half):
        torch.manual_seed(1)
        y = layer(x)
    cotangent = numbers(*y.shape, device=device, seed=1).to(y)
    wanted = torch.autograd.grad(y, parameters, cotangent, retain_graph=True)
    with into(dict(zip(parameters, views, strict=True))):
        gradients = torch.autograd.grad(y, parameters, cotangent)
    for gradient, view, expected in zip(gradients, views, wanted, strict=True):
        assert landed(gradient, view) and not landed(expected, view)
        torch.testing.assert_close(view, expected, rtol=0, atol=0)
    assert not destination._places


def test_concatenated_inputs(device: str) -> None:
    layer = fnn.ConcatLinearAct((12, 2), 5).to(device)
    parameters = list(layer.parameters())
    _, views = flat(parameters)
    y = layer(numbers(6, 12, device=device), numbers(6, 2, device=device))
    with into(dict(zip(parameters, views, strict=True))):
        gradients = torch.autograd.grad(y.sum(), parameters)
    assert all(map(landed, gradients, views))


@pytest.mark.parametrize("kind", ["critic", "Conv2dAct", "Maxout"])
def test_a_weight_that_is_used_twice(device: str, kind: str) -> None:
    """By two calls of ours, and by PyTorch beside them: the view has the sum, in whatever order the parts arrive."""
    layer, x, parameters, views = made(kind, device)

    def loss() -> Tensor:
        first, second = layer(x).square().sum(), layer(x.flip(0) * 0.5).sum()
        return first + second + sum(parameter.square().sum() for parameter in parameters)

    wanted = torch.autograd.grad(loss(), parameters)
    gather(loss(), parameters, views)
    for view, expected in zip(views, wanted, strict=True):
        torch.testing.assert_close(view, expected)


@pytest.mark.parametrize("half", [False, True])
def test_a_penalty(device: str, half: bool) -> None:
    layer, x, parameters, views = made("critic", device)
    dtype = HALF[device]
    attached = [(parameter, parameter.detach().to(dtype)) for parameter in parameters] if half else []

    def loss() -> Tensor:
        leaf = x.clone().requires_grad_()
        with shadow.shadows(attached), torch.autocast(device, dtype=dtype, enabled=half):
            y = layer(leaf).float()
        (slope,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        return y.mean() + (slope.norm(dim=1) - 1).square().mean()

    wanted = torch.autograd.grad(loss(), parameters)
    gather(loss(), parameters, views)
    for view, expected in zip(views, wanted, strict=True):
        torch.testing.assert_close(view, expected)


def test_a_gradient_with_a_graph_stays_out_of_the_views(device: str) -> None:
    """It may be kept for a pass to come, which will write there."""
    for kind in ("critic", "generator", "Conv2dAct", "Maxout"):
        layer, x, parameters, views = made(kind, device)
        with into(dict(zip(parameters, views, strict=True))):
            gradients = torch.autograd.grad(layer(x).square().sum(), parameters, create_graph=True)
        assert not any(map(landed, gradients, views))


def test_what_nobody_uses_becomes_zero(device: str) -> None:
    layer, x, parameters, views = made("critic", device)
    bare = nn.Parameter(numbers(3, device=device))
    _, more = flat([bare])
    more[0].fill_(float("nan"))
    gather(layer(x).sum(), [*parameters, bare], [*views, *more])
    assert not more[0].any() and views[0].any()
    gather(layer(x).sum() * 0, parameters, views)  # and nothing is added to what was there
    assert not any(view.any() for view in views)


def test_hooks_and_other_views(device: str) -> None:
    """A hook's own tensor is copied; a transposed weight's gradient lands only if it can be written so."""
    weight = nn.Parameter(numbers(12, 5, device=device))
    _, (view,) = flat([weight])
    x = numbers(6, 12, device=device)
    for use in (
        lambda: weight.t(),
        lambda: weight.t().contiguous(),
        lambda: weight.reshape(5, 12),
        lambda: weight[:5].T,
    ):

        def loss() -> Tensor:
            filters = use()  # noqa: B023
            return fastgan.ops.linear_act(x[:, : filters.shape[1]], filters).square().sum()

        (wanted,) = torch.autograd.grad(loss(), weight)
        gather(loss(), [weight], [view])
        torch.testing.assert_close(view, wanted)
    filters, image = nn.Parameter(numbers(24, device=device)), numbers(2, 3, 4, 4, device=device)
    _, (view,) = flat([filters])
    for strides in ((1, 1, 1, 1), (12, 4, 2, 1)):  # the first one's elements overlap: the view has no room for them

        def convolved() -> Tensor:
            strided = filters.as_strided((2, 3, 2, 2), strides)  # noqa: B023
            return fastgan.ops.conv2d_act(image, strided).square().sum()

        (wanted,) = torch.autograd.grad(convolved(), filters)
        gather(convolved(), [filters], [view])
        torch.testing.assert_close(view, wanted)
    plain = nn.Parameter(numbers(5, 12, device=device))
    _, (place,) = flat([plain])
    handle = plain.register_hook(lambda gradient: gradient * 3)
    (wanted,) = torch.autograd.grad(fastgan.ops.linear_act(x, plain).sum(), plain)
    gather(fastgan.ops.linear_act(x, plain).sum(), [plain], [place])
    torch.testing.assert_close(place, wanted)
    handle.remove()


def test_flat_keeps_each_parameters_own_order() -> None:
    parameters = [numbers(3, 5), numbers(7), numbers(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]
    parameters += [numbers(4, 6).t(), torch.tensor(1.0), numbers(0, 3)]
    buffer, views = flat(parameters)
    for at, (parameter, view) in enumerate(zip(parameters, views, strict=True)):
        assert view.stride() == parameter.stride() and view.shape == parameter.shape
        assert (view.data_ptr() - buffer.data_ptr()) % 16 == 0
        view.fill_(at + 1)
    assert all(bool((view == at + 1).all()) for at, view in enumerate(views))  # none overlaps another
    assert buffer.numel() < sum(parameter.numel() for parameter in parameters) + 4 * len(parameters)
    halves, _ = flat([parameter.bfloat16() for parameter in parameters[:2]])
    assert halves.numel() == 24


def test_plain_pytorch_is_gathered_too() -> None:
    layer = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    parameters = list(layer.parameters())
    _, views = flat(parameters)
    x = numbers(5, 4)
    wanted = torch.autograd.grad(layer(x), parameters, torch.ones(5, 1))
    gather(layer(x), parameters, views, torch.ones(5, 1))
    for view, expected in zip(views, wanted, strict=True):
        torch.testing.assert_close(view, expected)


def test_mistakes_are_named() -> None:
    weight = nn.Parameter(numbers(3, 4))
    for wrong in (numbers(4, 3).t(), numbers(3, 5), numbers(3, 4).double()):
        with pytest.raises(UserError, match="flat"), into({weight: wrong}):
            pass
    for parameters in ([], [weight, weight.double()]):
        with pytest.raises(UserError, match="one dtype on one device"):
            flat(parameters)
    with pytest.raises(UserError, match="without gaps"):
        flat([weight[:, ::2]])


@pytest.mark.gpu
def test_a_captured_pass_writes_into_the_views() -> None:
    """Forward with shadows and backward into a flat buffer, captured and replayed: what a pass that runs now gives."""
    torch.manual_seed(0)
    layer = fnn.Chain(nn.Linear(96, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()).cuda()
    parameters = list(layer.parameters())
    buffer, views = flat(parameters)
    pairs: list[Any] = [(parameter, parameter.detach().bfloat16()) for parameter in parameters]
    x = numbers(64, 96, device="cuda")

    def run() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            y = layer(x)
        gather(y.float().square().sum(), parameters, views)

    with shadow.shadows(pairs):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        x.copy_(numbers(64, 96, device="cuda", seed=1))
        buffer.fill_(float("nan"))
        graph.replay()
        replayed = [view.clone() for view in views]
        run()
    for mine, view in zip(replayed, views, strict=True):
        assert torch.equal(mine, view) and view.any()
