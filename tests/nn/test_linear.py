"""LinearAct as a module: it is an nn.Linear in everything but its forward."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import LinearAct
from fastgan.ops.activation import ACTIVATIONS

MODULES = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.05), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_nn_linear(bias: bool) -> None:
    """Same names, same initial values, and the generator of random numbers is left in the same state."""
    torch.manual_seed(3)
    theirs, after = nn.Linear(5, 4, bias), torch.rand(1)
    torch.manual_seed(3)
    mine = LinearAct(5, 4, bias)
    assert torch.equal(torch.rand(1), after)
    assert isinstance(mine, nn.Linear)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward_are_those_of_two_modules(activation: str) -> None:
    mine = LinearAct(5, 4, activation=activation, negative_slope=0.05, dtype=torch.float64)
    theirs = nn.Sequential(nn.Linear(5, 4, dtype=torch.float64), MODULES.get(activation, nn.Identity()))
    theirs[0].load_state_dict(mine.state_dict())
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mine(x), theirs(x))
    results = [torch.autograd.grad(m(x).square().sum(), (x, *m.parameters())) for m in (mine, theirs)]
    torch.testing.assert_close(*results)


def test_copies_and_pickles() -> None:
    module, x = LinearAct(5, 4, activation="tanh"), torch.randn(3, 5)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x), module(x))


def test_shows_its_activation() -> None:
    assert repr(LinearAct(2, 3)) == (
        "LinearAct(in_features=2, out_features=3, bias=True, activation=leaky_relu, negative_slope=0.2)"
    )
    assert repr(LinearAct(2, 3, False, activation="tanh")).endswith("bias=False, activation=tanh)")
    assert repr(LinearAct(2, 3, activation="relu", dropout=0.5)).endswith("activation=relu, dropout=0.5)")


def test_drops_in_training_only() -> None:
    module, x = LinearAct(5, 400, activation="none", dropout=0.5), torch.randn(3, 5)
    assert 0.3 < float((module(x) == 0).float().mean()) < 0.7
    assert torch.equal(module.eval()(x), nn.functional.linear(x, module.weight, module.bias))
    with pytest.raises(UserError, match=r"dropout probability 1\.5"):
        LinearAct(5, 4, dropout=1.5)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        LinearAct(2, 3, activation="sigmoidal")


def test_meta_device() -> None:
    module = LinearAct(5, 4, device="meta")
    assert module(torch.empty(3, 5, device="meta")).shape == (3, 4)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_training_by_the_kernels_is_training_by_torch(device: str) -> None:
    """A small network takes the same steps with the kernels as with torch's modules, to fp32 rounding."""
    torch.manual_seed(0)
    mine = nn.Sequential(
        LinearAct(6, 9, negative_slope=0.05), LinearAct(9, 5, activation="tanh"), LinearAct(5, 1, activation="none")
    )
    theirs = nn.Sequential(nn.Linear(6, 9), MODULES["leaky_relu"], nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 1))
    for layer, twin in zip(mine, (theirs[0], theirs[2], theirs[4]), strict=True):
        twin.load_state_dict(layer.state_dict())
    x, target = torch.randn(8, 6, device=device), torch.rand(8, 1, device=device)
    losses = []
    for model in (mine.to(device), theirs.to(device)):
        optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            with fastgan.backend("triton"):
                loss = nn.functional.binary_cross_entropy_with_logits(model(x), target)
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:5], losses[5:], rtol=1e-5, atol=1e-6)
