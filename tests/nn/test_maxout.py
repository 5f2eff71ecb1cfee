"""Maxout as a module: the parameters of an nn.Linear of all pieces, the output of its units."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn.maxout import Maxout


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_nn_linear_of_all_pieces(bias: bool) -> None:
    """Same names, same initial values, and the generator of random numbers is left in the same state."""
    torch.manual_seed(3)
    theirs, after = nn.Linear(5, 4 * 3, bias), torch.rand(1)
    torch.manual_seed(3)
    mine = Maxout(5, 4, 3, bias)
    assert torch.equal(torch.rand(1), after)
    assert isinstance(mine, nn.Linear)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    theirs.load_state_dict(mine.state_dict())
    torch.manual_seed(3)
    mine.reset_parameters()
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_row_by_row_the_pieces_of_a_unit() -> None:
    """Row u * pieces + j is piece j of unit u; out_features is the size of the output."""
    module = Maxout(5, 4, 3, dtype=torch.float64)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    rows = nn.functional.linear(x, module.weight, module.bias)
    expected = torch.stack([rows[..., 3 * unit : 3 * unit + 3].amax(-1) for unit in range(4)], -1)
    torch.testing.assert_close(module(x), expected)
    assert module(x).shape[-1] == module.out_features == 4


def test_copies_and_pickles() -> None:
    module, x = Maxout(5, 4, 2), torch.randn(3, 5)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x), module(x))


def test_shows_its_pieces() -> None:
    assert repr(Maxout(784, 240, 5)) == "Maxout(in_features=784, out_features=240, bias=True, pieces=5)"


def test_no_pieces_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 piece"):
        Maxout(2, 3, 0)


def test_meta_device() -> None:
    assert Maxout(5, 4, 3, device="meta")(torch.empty(3, 5, device="meta")).shape == (3, 4)


class Twin(nn.Linear):
    """Maxout as people write it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).unflatten(-1, (-1, 3)).amax(-1)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_training_by_the_kernels_is_training_by_torch(device: str) -> None:
    """A small discriminator takes the same steps with the kernels as with torch's modules, to fp32 rounding."""
    torch.manual_seed(0)
    mine = nn.Sequential(Maxout(6, 9, 3), Maxout(9, 5, 3), nn.Linear(5, 1))
    theirs = nn.Sequential(Twin(6, 27), Twin(9, 15), nn.Linear(5, 1))
    theirs.load_state_dict(mine.state_dict())
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
