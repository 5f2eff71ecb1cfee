"""Chain where its members, tensors or inputs are not simply one after another: shared, odd, watched, changed later."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, ConcatLinearAct, LinearAct, Maxout

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.manual_seed(0)
    with fastgan.backend("triton"):
        yield request.param


def twins(device: str, *members: nn.Module) -> tuple[nn.Sequential, Chain]:
    """The same modules in both, in fp32."""
    return nn.Sequential(*members).to(device), Chain(*members).to(device)


def gradients(run: Callable[[Tensor], Tensor], x: Tensor, asked: list[Tensor]) -> list[Tensor]:
    """First gradients with a graph of their own, and those of their squares."""
    first = torch.autograd.grad(run(x).square().sum(), asked, create_graph=True)
    return [*first, *torch.autograd.grad(sum(part.square().sum() for part in first), asked)]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_second_gradients_of_tensors_in_two_places(device: str, activation: type[nn.Module], passes: int) -> None:
    """Tied layers, and a Chain whose input hangs on its own weights: each place counts once."""
    layer = nn.Linear(6, 6)
    theirs, mine = twins(device, layer, activation(), layer)

    def unrolled(network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: network(x) if passes == 1 else network(network(x))

    x = torch.randn(5, 6, device=device, requires_grad=True)
    asked = [x, layer.weight]
    results = [gradients(unrolled(network), x, asked) for network in (mine, theirs)]
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_norm_twice(device: str, momentum: float | None) -> None:
    norm = nn.BatchNorm1d(6, momentum=momentum)
    theirs, mine = twins(device, nn.Linear(6, 6), norm, nn.ReLU(), nn.Linear(6, 6), norm)
    states = []
    for network in (theirs, mine):
        norm.reset_running_stats()
        network(torch.linspace(-1, 1, 60, device=device).view(10, 6).square())
        states.append(copy.deepcopy(norm.state_dict()))
    torch.testing.assert_close(*states)


def test_vectors_that_are_not_contiguous(device: str) -> None:
    theirs, mine = twins(device, nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    theirs[1].weight = nn.Parameter(torch.randn(8, device=device)[::2])
    theirs[1].running_var = torch.rand(8, device=device)[::2] + 0.5
    x = torch.randn(7, 6, device=device)
    for training in (False, True):
        torch.testing.assert_close(mine.train(training)(x), theirs.train(training)(x), rtol=1e-4, atol=1e-5)


class ToDouble(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.double()


def test_what_comes_out_of_members_in_between(device: str, products: Counter[str]) -> None:
    """Each stretch of layers is fused, or not, by what reaches it."""
    images = torch.randn(6, 3, 4, device=device)
    theirs, mine = twins(device, nn.Flatten(), nn.Linear(12, 16), nn.Unflatten(1, (4, 4)), nn.Linear(4, 5))
    torch.testing.assert_close(mine(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert products == {"linear_fwd": 1}  # the three-dimensional one is torch's
    products.clear()
    theirs, mine = twins(device, nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 5), ToDouble(), nn.Linear(5, 2))
    theirs[4].double()
    words = torch.randint(9, (6, 2), device=device)
    torch.testing.assert_close(mine(words), theirs(words), rtol=1e-4, atol=1e-5)
    assert products == {"linear_fwd": 1}  # fp64 goes by the reference


def test_autocast_to_bfloat16(device: str) -> None:
    theirs, mine = twins(device, nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3))
    x = torch.randn(5, 6, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(mine(x), theirs(x), rtol=2e-2, atol=2e-2)


def test_global_hooks_see_every_member(device: str) -> None:
    theirs, mine = twins(device, nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    calls: list[nn.Module] = []
    hook = register_module_forward_hook(lambda module, arguments, output: calls.append(module))
    try:
        mine(torch.randn(5, 6, device=device))
    finally:
        hook.remove()
    assert calls == [*theirs, mine]


def test_an_activation_that_was_set_later(device: str) -> None:
    _, mine = twins(device, LinearAct(6, 8, activation="relu"), nn.Linear(8, 3))
    mine[0].activation = "gelu"
    with pytest.raises(UserError, match="unknown activation 'gelu'"):
        mine(torch.randn(5, 6, device=device))


def test_only_biases_ask_for_no_product(device: str, products: Counter[str]) -> None:
    theirs, mine = twins(device, nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3), nn.ReLU())
    x, biases = torch.randn(5, 6, device=device), [theirs[0].bias, theirs[3].bias]
    wanted = torch.autograd.grad(theirs(x).sum(), biases)
    torch.testing.assert_close(torch.autograd.grad(mine(x).sum(), biases), wanted, rtol=1e-4, atol=1e-5)
    assert products == {"linear_fwd": 2, "linear_bwd_input": 1}


LAYERS = {
    "LinearAct": lambda: LinearAct(6, 4, activation="tanh"),
    "Maxout": lambda: Maxout(6, 4, pieces=3),
    "ConcatLinearAct": lambda: ConcatLinearAct((6,), 4),
    "Chain": lambda: Chain(nn.Linear(6, 5), nn.BatchNorm1d(5, 0.8), nn.ReLU(), nn.Linear(5, 4)),
    "straight Chain": lambda: Chain(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_batched_gradients(device: str, name: str) -> None:
    """A Jacobian by one backward pass for all its rows."""
    layer, x = LAYERS[name]().to(device), torch.randn(3, 6, device=device)
    jacobians = [torch.autograd.functional.jacobian(layer, x, vectorize=vectorize) for vectorize in (True, False)]
    torch.testing.assert_close(*jacobians, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the tracer about sizes that it takes for constants, and of its own age
@pytest.mark.parametrize("name", ["LinearAct", "straight Chain"])
def test_jit_trace(device: str, name: str) -> None:
    layer = LAYERS[name]().to(device)
    traced = torch.jit.trace(layer, torch.randn(3, 6, device=device), check_trace=False)
    x = torch.randn(5, 6, device=device)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


def test_each_gradient_alone(device: str) -> None:
    """What is asked for one by one is what comes of all together: nothing that it needs is left out."""
    members = [nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.BatchNorm1d(7, 0.8), nn.Tanh()]
    _, mine = twins(device, *members)
    x = torch.randn(12, 6, device=device, requires_grad=True)
    asked = [x, *mine.parameters()]
    mix = torch.randn(12, 7, device=device)
    together = torch.autograd.grad(mine(x), asked, mix)
    for at, tensor in enumerate(asked):
        (alone,) = torch.autograd.grad(mine(x), tensor, mix)
        torch.testing.assert_close(alone, together[at])


@pytest.mark.gpu
def test_cuda_graph_replays_a_training_step() -> None:
    """Statistics, running statistics and dropout's seed are the device's affair."""
    members = [nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 33), nn.BatchNorm1d(33, momentum=None)]
    _, mine = twins("cuda", *members, nn.Tanh(), nn.Linear(33, 8), nn.LeakyReLU(0.2), nn.Dropout(0.5))
    twin, x = copy.deepcopy(mine), torch.randn(64, 10, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        copy.deepcopy(mine)(x).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = mine(x)
        gradients = torch.autograd.grad(y.square().sum(), list(mine.parameters()))
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        twin(x)
    for got, wanted in zip(mine.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(got, wanted)
    assert all(bool(g.isfinite().all()) for g in gradients) and 0.3 < float((y == 0).float().mean()) < 0.7
