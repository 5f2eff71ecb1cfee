"""linear_act_stack as people call it: values and gradients of any order, on the kernels and by plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import linear_act, linear_act_stack

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
PHI = [("none", 0.0), ("relu", 0.0), ("leaky_relu", 0.2), ("leaky_relu", -0.3), ("tanh", 0.0), ("sigmoid", 0.0)]


def operands(device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = (3, 5, 4), (3, 6, 4), (3, 6)
    return [torch.randn(size, generator=random).to(device, dtype).requires_grad_() for size in sizes]


def one_by_one(x: Tensor, w: Tensor, b: Tensor, **how: object) -> Tensor:
    return torch.stack([linear_act(*member, **how) for member in zip(x, w, b, strict=True)])  # type: ignore[arg-type]


def orders(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The output, its gradients, and the gradients of a mix of those gradients."""
    y = function(*given)
    random = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=random).to(y).requires_grad_()
    first = torch.autograd.grad(y, given, cotangent, create_graph=True)
    mix = sum((part * torch.randn(part.shape, generator=random).to(part)).sum() for part in first)
    return [y, *first, *torch.autograd.grad(mix, [cotangent, *given], allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("activation, negative_slope", PHI)
def test_is_each_members_layer(activation: str, negative_slope: float) -> None:
    how = {"activation": activation, "negative_slope": negative_slope}
    found = orders(lambda *given: linear_act_stack(*given, **how), operands())
    for own, single in zip(found, orders(lambda *given: one_by_one(*given, **how), operands()), strict=True):
        torch.testing.assert_close(own, single)


def test_formulas_are_derivatives_of_each_other() -> None:
    for activation in ("leaky_relu", "tanh"):
        assert torch.autograd.gradgradcheck(lambda *given: linear_act_stack(*given, activation=activation), operands())  # noqa: B023


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation, negative_slope", PHI)
def test_kernels_have_the_references_gradients(device: str, activation: str, negative_slope: float) -> None:
    """To second order; the second by plain PyTorch behind the kernels' first."""
    how = {"activation": activation, "negative_slope": negative_slope}
    given = operands(device, torch.float32)
    with fastgan.backend("triton"):
        found = orders(lambda *tensors: linear_act_stack(*tensors, **how), given)
    with fastgan.backend("reference"):
        exact = orders(
            lambda *tensors: linear_act_stack(*tensors, **how), [t.detach().double().requires_grad_() for t in given]
        )
    for own, reference in zip(found, exact, strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_first_gradients_come_from_the_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch for the input's, one for weight and bias; only what is asked for."""
    from fastgan.kernels import linear_act_stack as kernels

    counts: list[str] = []
    for name in ("linear_act_stack_fwd", "linear_act_stack_bwd_input", "linear_act_stack_bwd_weight"):
        own = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, own=own, name=name: counts.append(name) or own(*given))
    with fastgan.backend("triton"):
        x, w, b = operands(device, torch.float32)
        linear_act_stack(x, w, b).sum().backward()
        assert [name.rpartition("_")[2] for name in counts] == ["fwd", "input", "weight"]
        counts.clear()
        torch.autograd.grad(linear_act_stack(x, w, b).sum(), x)  # the weights are frozen, as D's in G's update
        assert [name.rpartition("_")[2] for name in counts] == ["fwd", "input"]
        linear_act_stack(x.detach(), w.detach(), b).sum().backward()
        assert [name.rpartition("_")[2] for name in counts[2:]] == ["fwd"]


def test_compiles_whole_and_under_transforms() -> None:
    x, w, b = operands()
    whole = torch.compile(linear_act_stack, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(x, w, b), linear_act_stack(x, w, b))
    batched = torch.vmap(linear_act_stack)(*(t.detach().expand(2, *t.shape) for t in (x, w, b)))
    torch.testing.assert_close(batched[1], linear_act_stack(x, w, b))


def test_mistakes() -> None:
    x, w, b = operands()
    with pytest.raises(UserError, match="leaky_relu"):
        linear_act_stack(x, w, b, activation="leaky")
    with pytest.raises(RuntimeError):
        linear_act_stack(x, w[:2], b)
