"""ConcatLinearAct as a module: an nn.Linear of the concatenation in everything but its forward."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn.concat_linear import ConcatLinearAct
from fastgan.ops.concat_linear import Embedded


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_nn_linear(bias: bool) -> None:
    """Same names, same initial values, and the generator of random numbers is left in the same state."""
    torch.manual_seed(3)
    theirs, after = nn.Linear(9, 4, bias), torch.rand(1)
    torch.manual_seed(3)
    mine = ConcatLinearAct((5, 3, 1), 4, bias)
    assert torch.equal(torch.rand(1), after)
    assert isinstance(mine, nn.Linear) and mine.in_features == 9
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    theirs.load_state_dict(mine.state_dict())


def test_forward_and_backward_are_those_of_the_modules_it_stands_for() -> None:
    mine = ConcatLinearAct([5, 2], 4, activation="tanh", dtype=torch.float64)
    theirs = nn.Linear(7, 4, dtype=torch.float64)
    theirs.load_state_dict(mine.state_dict())
    labels = nn.Embedding(3, 2, dtype=torch.float64)
    x, index = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (2, 6))
    outputs = [
        mine(x, Embedded(index, labels.weight)),
        torch.tanh(theirs(torch.cat([x, labels(index)], -1))),
    ]
    torch.testing.assert_close(*outputs)
    results = [
        torch.autograd.grad(y.square().sum(), (x, labels.weight, *m.parameters()))
        for y, m in zip(outputs, (mine, theirs), strict=True)
    ]
    torch.testing.assert_close(*results)


def test_copies_and_pickles() -> None:
    module, inputs = ConcatLinearAct((5, 2), 4, activation="tanh"), (torch.randn(3, 5), torch.randn(3, 2))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(*inputs), module(*inputs))


def test_shows_its_sizes_and_its_activation() -> None:
    assert repr(ConcatLinearAct((2, 10), 3)) == (
        "ConcatLinearAct(in_features=(2, 10), out_features=3, bias=True, activation=leaky_relu, negative_slope=0.2)"
    )
    assert repr(ConcatLinearAct((2,), 3, False, activation="tanh")).endswith("bias=False, activation=tanh)")


def test_mistakes_are_told_in_a_line() -> None:
    layer, x, c = ConcatLinearAct((5, 2), 3), torch.randn(4, 5), torch.randn(4, 2)
    index, table = torch.zeros(4, dtype=torch.int64), torch.randn(7, 2)
    for inputs, told in (
        ((x,), r"shapes \(4, 5\) do not end in \(5, 2\)"),
        ((c, x), r"shapes \(4, 2\), \(4, 5\) do not end in \(5, 2\)"),
        ((x, c, c), "do not end in"),
        ((), r"shapes \(\) do not end in"),
        ((x, c[:1]), r"shapes \(4, 5\), \(1, 2\) differ before the last dimension: expand"),
        ((x, Embedded(index[:3], table)), r"\(4, 5\), \(3, 2\) differ before"),
        ((x, Embedded(index, torch.randn(7, 3))), r"\(4, 5\), \(4, 3\) do not end"),
    ):
        with pytest.raises(UserError, match=told) as error:
            layer(*inputs)
        assert "\n" not in str(error.value)
    for sizes in ((), 7):
        with pytest.raises(UserError, match="give the size of each input"):
            ConcatLinearAct(sizes, 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        ConcatLinearAct((2, 1), 3, activation="sigmoidal")


def test_meta_device() -> None:
    module = ConcatLinearAct((5, 2), 4, device="meta")
    assert module(torch.empty(3, 5, device="meta"), torch.empty(3, 2, device="meta")).shape == (3, 4)


class Conditional(nn.Module):
    """A discriminator whose label is embedded and concatenated at two layers, by our layer or by torch's modules."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self.ours, self.labels = ours, nn.Embedding(3, 4)
        self.first = ConcatLinearAct((6, 4), 9) if ours else nn.Linear(10, 9)
        self.last = ConcatLinearAct((9, 4, 2), 1, activation="none") if ours else nn.Linear(15, 1)

    def forward(self, x: Tensor, index: Tensor, c: Tensor) -> Tensor:
        c = c.expand(len(x), 2)  # one condition for the whole batch
        if self.ours:
            label = Embedded(index, self.labels.weight)
            return self.last(self.first(x, label), label, c)
        label = self.labels(index)
        return self.last(torch.cat([F.leaky_relu(self.first(torch.cat([x, label], 1)), 0.2), label, c], 1))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_training_by_the_kernels_is_training_by_torch(device: str) -> None:
    """A conditional network takes the same steps with the kernels as with torch's modules, to fp32 rounding."""
    torch.manual_seed(0)
    mine, theirs = Conditional(True), Conditional(False)
    theirs.load_state_dict(mine.state_dict())
    x, c, index = torch.randn(8, 6, device=device), torch.randn(2, device=device), torch.arange(8, device=device) % 3
    target, losses = torch.rand(8, 1, device=device), []
    for model in (mine.to(device), theirs.to(device)):
        optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            with fastgan.backend("triton"):
                loss = F.binary_cross_entropy_with_logits(model(x, index, c), target)
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:5], losses[5:], rtol=1e-5, atol=1e-6)
