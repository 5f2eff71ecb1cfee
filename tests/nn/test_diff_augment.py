"""DiffAugment as a module: it acts in training, draws anew at each call, and has nothing to save."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn.diff_augment import DiffAugment
from fastgan.ops.diff_augment import diff_augment


def test_acts_in_training_only() -> None:
    module, x = DiffAugment(), torch.randn(4, 3, 8, 8)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(x), first)
    assert module.eval()(x) is x


def test_is_the_op() -> None:
    x, rng = torch.randn(4, 3, 8, 8), torch.tensor([1, 2])
    for policy in ("color,translation,cutout", "cutout,color", "translation", ""):
        assert torch.equal(DiffAugment(policy)(x, rng), diff_augment(x, policy, rng=rng))


def test_has_nothing_to_save_and_shows_its_policy() -> None:
    module = DiffAugment("color, cutout")
    assert not module.state_dict() and not list(module.parameters())
    assert repr(module) == "DiffAugment(policy='color,cutout')"
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert copied.policy == module.policy


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'cutout'"):
        DiffAugment("color,cut-out")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_training_by_the_kernel_is_training_by_torch(device: str) -> None:
    """A small critic in front of which it stands takes the same steps, to fp32 rounding, as by the reference."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 1)).to(device)
    x, augment, losses = torch.randn(4, 3, 8, 8, device=device), DiffAugment(), []
    for backend in ("triton", "reference"):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            optimizer.zero_grad()
            with fastgan.backend(backend):
                loss = (model(augment(x, torch.tensor([step, 1], device=device))) - 1).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(losses[:4], losses[4:], rtol=1e-4, atol=1e-5)
