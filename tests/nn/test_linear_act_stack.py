"""LinearActStack and BatchNorm1dActStack: the members' own layers, side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.errors import UserError
from fastgan.nn import BatchNorm1dActStack, LinearAct, LinearActStack


def test_begins_as_its_members_would() -> None:
    torch.manual_seed(3)
    stack = LinearActStack(3, 4, 5, activation="tanh")
    torch.manual_seed(3)
    layers = [LinearAct(4, 5, activation="tanh") for _ in range(3)]
    for at, layer in enumerate(layers):
        assert torch.equal(stack.weight[at], layer.weight)
        assert stack.bias is not None and torch.equal(stack.bias[at], layer.bias)
    assert "3 x (in_features=4, out_features=5" in repr(stack)


def test_is_its_members() -> None:
    layers = [LinearAct(4, 5, bias=False, negative_slope=0.1) for _ in range(3)]
    stack, x = LinearActStack.of(layers), torch.randn(3, 7, 4)
    assert set(stack.state_dict()) == {"weight"}
    torch.testing.assert_close(stack(x), torch.stack([layer(own) for layer, own in zip(layers, x, strict=True)]))


@pytest.mark.parametrize("activation, after", [("none", nn.Identity()), ("leaky_relu", nn.LeakyReLU(0.2))])
def test_norms_by_each_members_batch(activation: str, after: nn.Module) -> None:
    """Values, running statistics and gradients, in training and in evaluation."""
    norms = [nn.BatchNorm1d(6, 0.8) for _ in range(3)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    stack = BatchNorm1dActStack(norms, activation)
    for scale in (1.0, 5.0):
        x = (scale * torch.randn(3, 9, 6) + torch.arange(3.0).view(3, 1, 1)).requires_grad_()
        single = torch.stack([after(norm(own)) for norm, own in zip(norms, x, strict=True)])
        weight = torch.randn_like(single)
        (expected,) = torch.autograd.grad((single * weight).sum(), x)
        output = stack(x)
        torch.testing.assert_close(output, single)
        torch.testing.assert_close(torch.autograd.grad((output * weight).sum(), x)[0], expected, rtol=1e-4, atol=1e-5)
    for at, norm in enumerate(norms):
        torch.testing.assert_close(stack.running_mean[at], norm.running_mean)
        torch.testing.assert_close(stack.running_var[at], norm.running_var)
        assert stack.num_batches_tracked[at] == 2
    stack.eval()
    single = torch.stack([after(norm.eval()(own)) for norm, own in zip(norms, x, strict=True)])
    torch.testing.assert_close(stack(x), single)


def test_what_cannot_be_stacked() -> None:
    with pytest.raises(UserError, match="one size and activation"):
        LinearActStack.of([LinearAct(4, 5), LinearAct(4, 6)])
    with pytest.raises(UserError, match="none that drops"):
        LinearActStack.of([LinearAct(4, 5, dropout=0.5)])
    with pytest.raises(UserError, match="one size, eps"):
        BatchNorm1dActStack([nn.BatchNorm1d(4), nn.BatchNorm1d(5)])
    with pytest.raises(UserError, match="running statistics"):
        BatchNorm1dActStack([nn.BatchNorm1d(4, track_running_stats=False)])
    with pytest.raises(UserError, match="1 or more"):
        LinearActStack(0, 4, 5)
