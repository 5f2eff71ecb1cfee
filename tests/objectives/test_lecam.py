"""LeCam: the formula, its moving anchors, and that nothing in it waits for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.objectives.penalties import Anchors, lecam


def logits(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_formula_and_its_gradient() -> None:
    anchors = Anchors(decay=0.9)
    averages = torch.zeros(2, dtype=torch.float64)
    for step in range(5):
        real = logits(6, 3, seed=step).add(2).requires_grad_()
        fake = logits(4, seed=step + 100).sub(1).requires_grad_()  # the two batches may differ in size
        got = lecam(real, fake, anchors)
        averages = 0.9 * averages + 0.1 * torch.stack([real.detach().double().mean(), fake.detach().double().mean()])
        a_real, a_fake = averages / (1 - 0.9 ** (step + 1))  # so they are averages from the first batch on
        want = (real.double() - a_fake).square().mean() + (fake.double() - a_real).square().mean()
        torch.testing.assert_close(got.double(), want)
        slopes = torch.autograd.grad(got, (real, fake))
        torch.testing.assert_close(slopes[0], (2 * (real - a_fake) / 18).detach().float())
        torch.testing.assert_close(slopes[1], (2 * (fake - a_real) / 4).detach().float())
    torch.testing.assert_close(torch.stack(anchors.means()).double(), torch.stack([a_real, a_fake]))


def test_anchors_stand_still_in_evaluation_and_go_into_a_checkpoint() -> None:
    anchors = Anchors()
    lecam(logits(4), logits(4, seed=1), anchors)
    stored = {key: value.clone() for key, value in anchors.state_dict().items()}
    assert list(stored) == ["real", "fake", "weight"]
    before = lecam(logits(4, seed=2), logits(4, seed=3), anchors.eval())
    assert all(torch.equal(stored[key], value) for key, value in anchors.state_dict().items())
    again = Anchors().eval()
    again.load_state_dict(stored)
    assert torch.equal(lecam(logits(4, seed=2), logits(4, seed=3), again), before)


def test_anchors_follow_a_network_into_float64() -> None:
    anchors = Anchors().double()
    for dtype in (torch.float64, torch.float32):
        lecam(logits(4, dtype=dtype), logits(4, seed=1, dtype=dtype), anchors)
    torch.testing.assert_close(anchors.means()[0], logits(4, dtype=torch.float64).mean(), rtol=1e-6, atol=0)


def test_a_later_batch_leaves_the_gradient_of_an_earlier_one() -> None:
    anchors, real = Anchors(), logits(4).requires_grad_()
    first = lecam(real, logits(4, seed=1), anchors)
    a_fake = anchors.means()[1].clone()
    lecam(real, logits(4, seed=2), anchors)
    torch.testing.assert_close(torch.autograd.grad(first, real)[0], (2 * (real - a_fake) / 4).detach())


def test_differentiable_twice() -> None:
    anchors = Anchors()
    anchors.update(logits(4), logits(4, seed=1))
    operands = [logits(3, seed=seed, dtype=torch.float64).requires_grad_() for seed in (2, 3)]
    assert torch.autograd.gradcheck(lambda r, f: lecam(r, f, anchors.eval()), operands)
    assert torch.autograd.gradgradcheck(lambda r, f: lecam(r, f, anchors.eval()), operands)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_in_fp32_out(dtype: torch.dtype) -> None:
    real, fake = (torch.full((4,), value, dtype=dtype) for value in (300.0, -300.0))
    got = lecam(real, fake, Anchors())
    assert got.dtype == torch.float32 and got.item() == 2 * 600**2


def test_nothing_is_read_back() -> None:
    anchors, real = Anchors(device="meta"), torch.empty(4, device="meta", requires_grad=True)
    lecam(real, torch.empty(4, device="meta"), anchors).backward()
    assert real.grad is not None and real.grad.is_meta


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(UserError, match="at least 0 and below 1"):
        Anchors(decay)
