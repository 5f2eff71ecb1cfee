"""The original losses against their formulas in fp64, and against PyTorch's binary cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fastgan.errors import UserError
from fastgan.objectives import OBJECTIVES, discriminator_loss, generator_loss


def logits(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("name", OBJECTIVES)
def test_discriminator_minimises_the_negative_value_function(name):
    real, fake = logits(7, seed=1), logits(5, seed=2)  # the two batches may differ in size
    value = torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()  # V(D, G), eq. 1
    torch.testing.assert_close(discriminator_loss(name, real, fake), -value, rtol=1e-12, atol=0)


def test_generator_losses_follow_the_paper():
    fake = logits(6, seed=3)
    score = torch.sigmoid(fake)
    torch.testing.assert_close(generator_loss("minimax", fake), (1 - score).log().mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(generator_loss("non_saturating", fake), -score.log().mean(), rtol=1e-12, atol=0)


def test_equal_binary_cross_entropy_with_logits():
    real, fake = logits(64, seed=4).float(), logits(64, seed=5).float()
    plain = F.binary_cross_entropy_with_logits(real, torch.ones(64))
    plain = plain + F.binary_cross_entropy_with_logits(fake, torch.zeros(64))
    torch.testing.assert_close(discriminator_loss("non_saturating", real, fake), plain, rtol=2e-6, atol=0)
    plain = F.binary_cross_entropy_with_logits(fake, torch.ones(64))
    torch.testing.assert_close(generator_loss("non_saturating", fake), plain, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_differentiable_twice(name):
    real, fake = logits(4, seed=6).requires_grad_(), logits(3, seed=7).requires_grad_()
    assert gradcheck(lambda r, f: discriminator_loss(name, r, f), (real, fake))
    assert gradgradcheck(lambda r, f: discriminator_loss(name, r, f), (real, fake))
    assert gradcheck(lambda f: generator_loss(name, f), (fake,))
    assert gradgradcheck(lambda f: generator_loss(name, f), (fake,))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_finite_at_extreme_logits(name, size):
    extreme = torch.full((3,), size, requires_grad=True)
    loss = discriminator_loss(name, extreme, extreme) + generator_loss(name, extreme)
    (gradient,) = torch.autograd.grad(loss, extreme)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_saturating_gradient_vanishes_where_the_discriminator_wins():
    fake = torch.full((1,), -20.0, requires_grad=True)
    (saturating,) = torch.autograd.grad(generator_loss("minimax", fake), fake)
    (other,) = torch.autograd.grad(generator_loss("non_saturating", fake), fake)
    assert abs(saturating.item()) < 1e-8
    assert other.item() == pytest.approx(-1.0)


def test_equilibrium_values():
    zero = torch.zeros(3)
    assert discriminator_loss("minimax", zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss("non_saturating", zero).item() == pytest.approx(math.log(2))


def test_nan_in_gives_nan_out():
    assert torch.isnan(discriminator_loss("minimax", torch.tensor([math.nan]), torch.zeros(1)))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'non_saturating'"):
        generator_loss("non-saturating", torch.zeros(1))
