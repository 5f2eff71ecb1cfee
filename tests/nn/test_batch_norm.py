"""BatchNorm1dAct and BatchNorm2dAct as modules: torch.nn's batch norms in everything but their forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn.batch_norm import BatchNorm1dAct, BatchNorm2dAct
from fastgan.ops.activation import ACTIVATIONS

MODULES = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.05), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}
PAIRS = [(BatchNorm1dAct, nn.BatchNorm1d, (6, 4)), (BatchNorm2dAct, nn.BatchNorm2d, (3, 4, 5, 2))]
KINDS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": None, "eps": 0.8, "affine": False},
    {"track_running_stats": False},
    {"momentum": 0.0},
]
each_pair = pytest.mark.parametrize("ours, torchs, size", PAIRS)


@pytest.fixture(
    params=[
        pytest.param(("cpu", "auto"), id="reference"),
        pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
        pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with plain PyTorch or the kernels running there."""
    torch.manual_seed(0)
    with fastgan.backend(request.param[1]):
        yield request.param[0]


@each_pair
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_is_torchs_module_to_everyone_else(ours: Any, torchs: Any, size: tuple[int, ...], kind: dict[str, Any]) -> None:
    """Same names, initial values and version of the state, and each loads the other's."""
    mine, theirs = ours(4, **kind), torchs(4, **kind)
    assert isinstance(mine, torchs)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata
    mine(torch.randn(size))
    theirs.load_state_dict(mine.state_dict())
    ours(4, **kind).load_state_dict(theirs.state_dict())


@each_pair
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_training_and_eval_are_those_of_two_modules(
    device: str, ours: Any, torchs: Any, size: tuple[int, ...], kind: dict[str, Any], activation: str
) -> None:
    mine = ours(4, activation=activation, negative_slope=0.05, **kind).to(device)
    norm = torchs(4, **kind).to(device, torch.float64)
    theirs = nn.Sequential(norm, MODULES[activation])
    for parameter in mine.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    norm.load_state_dict(mine.state_dict())
    for training in (True, True, False, True):
        x = (2 * torch.randn(size, dtype=torch.float64) + 3).to(device)
        results = []
        for module, input in ((mine.train(training), x.float()), (theirs.train(training), x)):
            y = module(input.requires_grad_())
            asked = [input, *module.parameters()]
            results.append([y, *torch.autograd.grad((y * y.sin()).sum(), asked), *module.buffers()])
        for got, wanted in zip(*results, strict=True):
            scale = max(1e-3, float(wanted.detach().abs().max()))
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=1e-4 * scale)
    if mine.num_batches_tracked is not None:
        assert mine.num_batches_tracked.dtype == torch.long and int(mine.num_batches_tracked) == 3


@pytest.mark.parametrize(
    "momentum, name, value", [(None, "num_batches_tracked", None), (0.1, "track_running_stats", False)]
)
def test_statistics_that_stand_still(device: str, momentum: float | None, name: str, value: object) -> None:
    """As in torch's module, once somebody has taken away the count of its averages, or told it to track no more."""
    mine, theirs = (cls(4, momentum=momentum).to(device) for cls in (BatchNorm1dAct, nn.BatchNorm1d))
    x = torch.randn(6, 4, device=device)
    for module in (mine, theirs):
        module(x)
        setattr(module, name, value)
        module(x + 1)
    torch.testing.assert_close(list(mine.buffers()), list(theirs.buffers()))
    torch.testing.assert_close(mine.eval()(x), nn.functional.leaky_relu(theirs.eval()(x), 0.2))


@each_pair
def test_copies_and_pickles(ours: Any, torchs: Any, size: tuple[int, ...]) -> None:
    module, x = ours(4, activation="tanh", momentum=None), torch.randn(size)
    module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert type(copied) is ours
        torch.testing.assert_close(copied.state_dict(), module.state_dict(), rtol=0, atol=0)
        assert torch.equal(copied.eval()(x), copy.deepcopy(module).eval()(x))


@each_pair
def test_shows_its_activation(ours: Any, torchs: Any, size: tuple[int, ...]) -> None:
    inside = repr(torchs(4, 0.5)).partition("(")[2][:-1]
    assert repr(ours(4, 0.5)) == f"{ours.__name__}({inside}, activation=leaky_relu, negative_slope=0.2)"
    assert repr(ours(4, 0.5, activation="tanh")) == f"{ours.__name__}({inside}, activation=tanh)"


def test_what_is_refused(device: str) -> None:
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        BatchNorm2dAct(3, activation="sigmoidal")
    wrong: list[tuple[Any, Any, tuple[int, ...]]] = [
        (BatchNorm1dAct(4), nn.BatchNorm1d(4), (1, 4)),
        (BatchNorm1dAct(4), nn.BatchNorm1d(4), (2, 4, 2, 2)),
        (BatchNorm2dAct(4), nn.BatchNorm2d(4), (2, 4)),
        (BatchNorm2dAct(4), nn.BatchNorm2d(4), (1, 4, 1, 1)),
        (BatchNorm2dAct(4), nn.BatchNorm2d(4), (2, 5, 2, 2)),
    ]
    for mine, theirs, size in wrong:
        with pytest.raises((ValueError, RuntimeError)) as expected:
            theirs.to(device)(torch.randn(size, device=device))
        with pytest.raises(expected.type) as refused:
            mine.to(device)(torch.randn(size, device=device))
        assert str(refused.value) == str(expected.value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_meta_device(activation: str) -> None:
    module = BatchNorm2dAct(4, device="meta", momentum=None, activation=activation)
    assert module(torch.empty(3, 4, 5, 5, device="meta")).shape == (3, 4, 5, 5)


def test_half_of_a_network(device: str) -> None:
    """In 16 bits with norms in fp32, and wholly in 16 bits."""
    for kind in (torch.float32, torch.float16):
        mine, theirs = (cls(4).to(device, kind) for cls in (BatchNorm2dAct, nn.BatchNorm2d))
        x = torch.randn(3, 4, 5, 2, device=device).half().to(memory_format=torch.channels_last)
        y, wanted = mine(x), nn.functional.leaky_relu(theirs(x), 0.2)
        assert y.dtype == wanted.dtype == torch.float16 and y.stride() == wanted.stride()
        torch.testing.assert_close(y, wanted, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(list(mine.buffers()), list(theirs.buffers()), rtol=2e-3, atol=1e-3)


def test_training_by_the_kernels_is_training_by_torch(device: str) -> None:
    """A small critic with a gradient penalty takes the same steps as with torch's modules, to fp32 rounding."""
    mine = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, stride=2), BatchNorm2dAct(5), nn.Flatten()),
        *(nn.Linear(45, 7), BatchNorm1dAct(7, activation="tanh"), nn.Linear(7, 1)),
    )
    theirs = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, stride=2), nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.Flatten()),
        *(nn.Linear(45, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 1)),
    )
    for twin, value in zip(
        [*theirs.parameters(), *theirs.buffers()], [*mine.parameters(), *mine.buffers()], strict=True
    ):
        twin.data.copy_(value)
    x = torch.randn(8, 2, 8, 8).to(device, memory_format=torch.channels_last)
    losses = []
    for model in (mine.to(device), theirs.to(device)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            losses.append(penalised(model, x))
            losses[-1].backward()
            optimizer.step()
    torch.testing.assert_close(losses[:4], losses[4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(list(mine.buffers()), list(theirs.buffers()), rtol=1e-4, atol=1e-5)


def penalised(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    score = model(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return nn.functional.softplus(-score).mean() + slope.square().sum() / len(x)
