"""Losses as modules: torch.nn's own classes with their buffers, and GANLoss for both players."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import BCELoss, BCEWithLogitsLoss, GANLoss
from fastgan.ops import gan_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
ROUTES = [
    pytest.param(("cpu", "reference"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
routes = pytest.mark.parametrize("route", ROUTES)


@routes
def test_bce_with_logits_is_torchs(route: tuple[str, str]) -> None:
    torch.manual_seed(0)
    x, target, weight, pos_weight = (torch.rand(5, 3, device=route[0]) for _ in range(4))
    for w, p, reduction in itertools.product((None, weight), (None, pos_weight[0]), ("none", "mean", "sum")):
        mine, theirs = BCEWithLogitsLoss(w, None, None, reduction, p), nn.BCEWithLogitsLoss(w, None, None, reduction, p)
        with fastgan.backend(route[1]):
            torch.testing.assert_close(mine(x * 8 - 4, target), theirs(x * 8 - 4, target), rtol=2e-6, atol=2e-7)
        assert isinstance(mine, nn.BCEWithLogitsLoss)
        theirs.load_state_dict(mine.state_dict())
        assert list(mine.state_dict()) == list(theirs.state_dict())


@routes
def test_bce_is_torchs(route: tuple[str, str]) -> None:
    torch.manual_seed(0)
    target, weight = (torch.rand(6, device=route[0]) for _ in range(2))
    x = torch.tensor([0.0, 1.0, 1e-7, 0.5, 0.999999, 0.2], device=route[0], requires_grad=True)
    for w, reduction in itertools.product((None, weight), ("none", "mean", "sum")):
        mine, theirs = BCELoss(w, reduction=reduction), nn.BCELoss(w, reduction=reduction)
        with fastgan.backend(route[1]):
            losses = [module(x, target) for module in (mine, theirs)]
            torch.testing.assert_close(*losses, rtol=2e-6, atol=2e-7)
            gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in losses]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
        assert isinstance(mine, nn.BCELoss)


def sided(loss: GANLoss, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return loss(real, fake), loss.generator(fake, real)


@routes
def test_gan_loss_of_both_players(route: tuple[str, str]) -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 7, 1, device=route[0])
    with fastgan.backend(route[1]):
        for name in ("minimax", "hinge", "relativistic"):
            mine = sided(GANLoss(name), real, fake)
            torch.testing.assert_close(mine[0], gan_loss(name, real, fake))
            torch.testing.assert_close(mine[1], gan_loss(name, real, fake, side="generator"))
        torch.testing.assert_close(
            GANLoss("minimax").generator(fake), gan_loss("minimax", None, fake, side="generator")
        )
        options = {"label_smoothing": (0.1, 0.2), "label_flip": 0.3}
        rng, monitors = torch.tensor([1, 2], device=route[0]), torch.zeros(4, device=route[0])
        mine = GANLoss("least_squares", **options)(real, fake, rng=rng, monitors=monitors)
        torch.testing.assert_close(mine, gan_loss("least_squares", real, fake, rng=rng, **options))
        assert monitors.any()


def test_has_no_state_and_copies_pickles_and_shows_itself() -> None:
    loss = GANLoss("minimax", label_smoothing=0.1)
    assert not loss.state_dict() and not list(loss.parameters())
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):  # noqa: S301 -- our own bytes
        assert (copied.name, copied.label_smoothing) == ("minimax", 0.1)
    assert repr(loss) == "GANLoss('minimax', label_smoothing=0.1)"
    assert repr(GANLoss("hinge", label_flip=0.2)) == "GANLoss('hinge', label_flip=0.2)"


def test_mistakes_are_named_when_it_is_made() -> None:
    with pytest.raises(UserError, match="did you mean 'wasserstein'"):
        GANLoss("wasserstien")
    with pytest.raises(UserError, match="hinge has no labels for label_smoothing"):
        GANLoss("hinge", label_smoothing=0.1)
