"""The binary cross entropies beside PyTorch's: values, gradients to second order, options, odd operands, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.ops import bce, bce_with_logits, unit_gradient

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
PAIRS = {True: (bce_with_logits, F.binary_cross_entropy_with_logits), False: (bce, F.binary_cross_entropy)}
REDUCTIONS = ("none", "mean", "sum")
both_kinds = pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*shape: int, device: str, seed: int = 0, logits: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 4 if logits else torch.rand(shape, generator=generator)
    return values.to(device)


def outcome(function: Callable[..., Tensor], x: Tensor, target: Tensor, *weights: Any, **options: Any) -> list[Tensor]:
    """The loss, its gradient for a random cotangent, and the gradient of that one's square."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = function(x, target, *weights, **options)
    cotangent = numbers(*loss.shape, device=x.device.type, seed=9).to(loss.dtype)
    (first,) = torch.autograd.grad(loss, x, cotangent, retain_graph=True)
    (graph,) = torch.autograd.grad(loss, x, cotangent, create_graph=True)
    return [loss, first, *torch.autograd.grad(graph.square().sum(), x)]


@both_kinds
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_pytorchs_function_within_2e6(device: str, logits: bool, data: st.DataObject) -> None:
    """Shapes, strides, weights that expand, reductions: the loss and its gradients to second order."""
    mine, theirs = PAIRS[logits]
    shape = data.draw(st.sampled_from([(7,), (6, 1), (5, 4), (2, 1, 3, 5), ()]))
    x, target = (numbers(*shape, device=device, seed=seed, logits=logits and not seed) for seed in (0, 1))
    lay = data.draw(st.sampled_from(["as it is", "turned", "expanded"]))
    if lay == "turned" and x.dim() > 1:
        x, target = x.transpose(0, -1), target.transpose(0, -1)
    elif lay == "expanded":
        target = target.reshape(-1)[:1].reshape((1,) * x.dim()).expand(x.shape)
    options: dict[str, Any] = {"reduction": data.draw(st.sampled_from(REDUCTIONS))}
    for name in ("weight", "pos_weight")[: 2 if logits else 1]:
        size = data.draw(st.sampled_from([None, (), x.shape, x.shape[-1:]]))
        options |= {} if size is None else {name: 2 * numbers(*size, device=device, seed=3)}
    results, expected = outcome(mine, x, target, **options), outcome(theirs, x, target, **options)
    scale = float(expected[0].detach().abs().max())
    torch.testing.assert_close(results[0], expected[0], rtol=2e-6, atol=2e-7 * scale)
    torch.testing.assert_close(results[1:], expected[1:], rtol=1e-5, atol=1e-6)


def test_a_batch_of_logits_is_within_2e6(device: str) -> None:
    """At the sizes people use, and at logits as large as people get, without an absolute allowance."""
    for size in (64, 5000):
        for scale in (0.1, 4.0, 1e4):
            x, target = numbers(size, device=device, logits=True) * scale / 4, numbers(size, device=device, seed=1)
            wanted = F.binary_cross_entropy_with_logits(x, target)
            torch.testing.assert_close(bce_with_logits(x, target), wanted, rtol=2e-6, atol=0)


@both_kinds
def test_the_dtype_is_pytorchs(device: str, logits: bool) -> None:
    mine, theirs = PAIRS[logits]
    x, target = (numbers(40, device=device, seed=seed) for seed in (0, 1))
    for kinds in ((torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float64, torch.float64)):
        a, b = x.clamp(0.05, 0.95).to(kinds[0]).requires_grad_(), target.to(kinds[1])
        got, wanted = mine(a, b), theirs(a, b)
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(*(torch.autograd.grad(t, a)[0] for t in (got, wanted)), rtol=2e-2, atol=1e-3)
    if logits:
        mixed = x.half().requires_grad_()
        assert mine(mixed, target).dtype == theirs(mixed, target).dtype == torch.float32


def test_small_fp16_slopes_survive_until_they_are_scaled(device: str) -> None:
    x, target = (numbers(20_000, device=device, seed=seed).half() for seed in (0, 1))
    x.requires_grad_()
    (found,) = torch.autograd.grad(bce_with_logits(x, target).float() * 2**15, x)
    wanted = 2**15 * (torch.sigmoid(x.detach().float()) - target.float()) / 20_000
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=1e-6)


@both_kinds
def test_gradients_of_targets_and_none_at_all(device: str, logits: bool) -> None:
    mine, theirs = PAIRS[logits]
    x, target, weight = (numbers(6, device=device, seed=seed).requires_grad_(seed < 2) for seed in range(3))
    found, wanted = (torch.autograd.grad(function(x, target, weight), (x, target)) for function in (mine, theirs))
    torch.testing.assert_close(found, wanted)
    assert mine(x.detach(), target.detach()).grad_fn is None
    loss = mine(x, target.detach())
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, x, g, retain_graph=True) for g in (None, unit_gradient(loss)))
    )
    twice = torch.autograd.grad(mine(x, x.detach()), x)[0]  # one storage in two places
    torch.testing.assert_close(twice, torch.autograd.grad(theirs(x, x.detach()), x)[0])


@both_kinds
def test_what_torch_refuses_is_refused_in_its_words(device: str, logits: bool) -> None:
    mine, theirs = PAIRS[logits]
    x = numbers(4, 3, device=device)
    for operands, options in (((x, x[:2]), {}), ((x, x), {"reduction": "most"}), ((x, x, x[:3, :2]), {})):
        with pytest.raises((ValueError, RuntimeError)) as wanted:
            theirs(*operands, **options)
        with pytest.raises(type(wanted.value)) as got:
            mine(*operands, **options)
        assert str(got.value) == str(wanted.value)


def test_autocast_as_torch(device: str) -> None:
    x, target = (numbers(6, device=device, seed=seed) for seed in (0, 1))
    low = x.to(torch.float16)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(
            bce_with_logits(low, target), F.binary_cross_entropy_with_logits(low.float(), target)
        )
        if device == "cuda":
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                bce(x, target)
