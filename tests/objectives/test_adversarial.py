"""Each objective against fp64 autograd of its paper's formula, written here as the paper has it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, sigmoid
from torch.autograd import gradcheck, gradgradcheck

from fastgan.errors import UserError
from fastgan.objectives import OBJECTIVES, discriminator_loss, generator_loss, objective
from fastgan.ops import gan_loss_formulas as formulas


def one_minus(probability: Tensor) -> Tensor:
    return 1 - probability


def average(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """D~(x_r) and D~(x_f) of Jolicoeur-Martineau 2018, section 4.3."""
    return sigmoid(x - y.mean()), sigmoid(y - x.mean())


def averaged(x: Tensor, y: Tensor) -> Tensor:
    of_real, of_fake = average(x, y)
    return -of_real.log().mean() - one_minus(of_fake).log().mean()


Paper = Callable[[Tensor, Tensor], Tensor]
PAPERS: dict[str, tuple[Paper, Paper]] = {  # of x = D's output for real, y for generated samples: D's loss and G's
    "minimax": (
        lambda x, y: -(sigmoid(x).log().mean() + one_minus(sigmoid(y)).log().mean()),
        lambda x, y: one_minus(sigmoid(y)).log().mean(),
    ),
    "non_saturating": (
        lambda x, y: -(sigmoid(x).log().mean() + one_minus(sigmoid(y)).log().mean()),
        lambda x, y: -sigmoid(y).log().mean(),
    ),
    "least_squares": (
        lambda x, y: 0.5 * ((x - 1) ** 2).mean() + 0.5 * ((y - 0) ** 2).mean(),
        lambda x, y: 0.5 * ((y - 1) ** 2).mean(),
    ),
    "hinge": (
        lambda x, y: -torch.clamp(-1 + x, max=0).mean() - torch.clamp(-1 - y, max=0).mean(),
        lambda x, y: -y.mean(),
    ),
    "wasserstein": (lambda x, y: -(x.mean() - y.mean()), lambda x, y: -y.mean()),
    "relativistic": (lambda x, y: -sigmoid(x - y).log().mean(), lambda x, y: -sigmoid(y - x).log().mean()),
    "relativistic_average": (averaged, lambda x, y: averaged(y, x)),
}
FAR = {  # what the loss comes to where both batches are at 1e4: nothing is lost that far out
    "minimax": (1e4, -1e4),
    "non_saturating": (1e4, 0.0),
    "least_squares": (0.5 * (9999.0**2 + 1e4**2), 0.5 * 9999.0**2),
    "hinge": (10001.0, -1e4),
    "wasserstein": (0.0, -1e4),
    "relativistic": (math.log(2), math.log(2)),
    "relativistic_average": (2 * math.log(2), 2 * math.log(2)),
}
names = pytest.mark.parametrize("name", PAPERS)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def sides(name: str) -> tuple[Paper, Paper]:
    its = OBJECTIVES[name]
    return its.discriminator, lambda x, y: its.generator(y, x) if its.needs_real else its.generator(y)


def test_every_objective_has_its_paper() -> None:
    assert set(PAPERS) == set(OBJECTIVES)
    assert {name for name, its in OBJECTIVES.items() if its.needs_real} == {"relativistic", "relativistic_average"}


@names
def test_losses_and_gradients_are_the_papers(name: str) -> None:
    """Both sides, batches of two sizes and shapes, from ordinary logits to where fp64 can still say log(1 - D)."""
    for scale in (1e-300, 1.0, 4.0):
        real = logits(7, 1, seed=1, scale=scale).requires_grad_()
        fake = logits(*((7,) if name == "relativistic" else (5, 1, 2)), seed=2, scale=scale).requires_grad_()
        for ours, paper in zip(sides(name), PAPERS[name], strict=True):
            flat = real.reshape(-1), fake.reshape(-1)
            mine, theirs = ours(real, fake), paper(*flat)
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
            found, wanted = (torch.autograd.grad(loss, (real, fake), allow_unused=True) for loss in (mine, theirs))
            for own, its in zip(found, wanted, strict=True):
                if own is None:
                    assert its is None or not its.any()
                else:
                    torch.testing.assert_close(own, its, rtol=1e-11, atol=1e-13)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    """At 1e4 the loss is what the formula comes to; at 1e4, -1e4 and 0 it and its gradient are finite."""
    far = torch.full((3,), 1e4, dtype=torch.float64)
    for ours, expected in zip(sides(name), FAR[name], strict=True):
        assert ours(far, far).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        for values in ((1e4, 1e4), (-1e4, 1e4), (1e4, -1e4), (0.0, 0.0), (1e-40, -1e-40)):
            real, fake = (torch.full((3,), value, dtype=dtype).requires_grad_() for value in values)
            loss = ours(real, fake)
            found = torch.autograd.grad(loss, (real, fake), allow_unused=True)
            assert loss.dtype == torch.float32 and loss.isfinite()
            assert all(part is None or (part.isfinite().all() and part.dtype == dtype) for part in found)


@names
def test_differentiable_twice(name: str) -> None:
    real, fake = logits(3, seed=6).requires_grad_(), logits(3, seed=7).requires_grad_()
    for ours in sides(name):
        assert gradcheck(lambda r, f, ours=ours: ours(r, f) + 0 * r.sum(), (real, fake))
        assert gradgradcheck(lambda r, f, ours=ours: ours(r, f) + 0 * (r.square().sum() + f.sum()), (real, fake))


@names
def test_nan_in_gives_nan_out(name: str) -> None:
    good, bad = torch.zeros(2), torch.tensor([math.nan, 0.0])
    assert discriminator_loss(name, bad, good).isnan() and discriminator_loss(name, good, bad).isnan()
    assert generator_loss(name, bad, good).isnan()


def test_equal_binary_cross_entropy_with_logits() -> None:
    real, fake = logits(64, seed=4).float(), logits(64, seed=5).float()
    plain = F.binary_cross_entropy_with_logits(real, torch.ones(64))
    plain = plain + F.binary_cross_entropy_with_logits(fake, torch.zeros(64))
    torch.testing.assert_close(discriminator_loss("non_saturating", real, fake), plain, rtol=2e-6, atol=0)
    plain = F.binary_cross_entropy_with_logits(fake, torch.ones(64))
    torch.testing.assert_close(generator_loss("non_saturating", fake), plain, rtol=2e-6, atol=0)


def test_saturating_gradient_vanishes_where_the_discriminator_wins() -> None:
    fake = torch.full((1,), -20.0, requires_grad=True)
    (saturating,) = torch.autograd.grad(generator_loss("minimax", fake), fake)
    (other,) = torch.autograd.grad(generator_loss("non_saturating", fake), fake)
    assert abs(saturating.item()) < 1e-8
    assert other.item() == pytest.approx(-1.0)


def test_equilibrium_values() -> None:
    zero = torch.zeros(3)
    assert discriminator_loss("minimax", zero, zero).item() == pytest.approx(2 * math.log(2))
    assert generator_loss("non_saturating", zero).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, label: F.softplus(-x) if label == 0 else F.softplus(x),
        lambda x, label: F.binary_cross_entropy(sigmoid(x), torch.full_like(x, label), reduction="none") * 1.001,
        lambda x, label: -torch.log(sigmoid(x) + 1e-8) if label else -torch.log(1 - sigmoid(x) + 1e-8),
    ],
    ids=["labels exchanged", "a part in a thousand", "an epsilon in the logarithm"],
)
def test_a_wrong_formula_is_caught(wrong: Callable[[Tensor, float], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formulas.TERMS, "cross_entropy", wrong)
    with pytest.raises(AssertionError):
        test_losses_and_gradients_are_the_papers("non_saturating")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'non_saturating'"):
        generator_loss("non-saturating", torch.zeros(1))
    with pytest.raises(UserError, match="did you mean 'hinge'"):
        objective("hing")
