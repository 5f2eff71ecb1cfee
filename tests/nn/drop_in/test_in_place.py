"""Effects in place, in a forward and by who calls it: others see them, and backward does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.nn.drop_in import converted

Twins = Callable[[nn.Module], tuple[nn.Module, nn.Module]]
Alike = Callable[..., None]
pytestmark = pytest.mark.usefixtures("programs")


class Layers(nn.Module):
    """Layers for forwards to call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 3, 3, padding=1), nn.BatchNorm1d(4)
        self.act, self.same = nn.LeakyReLU(0.2, inplace=True), nn.Identity()


def made(forward: Callable[..., Any]) -> nn.Module:
    return type("Made", (Layers,), {"forward": forward})()


def read_again(self: Any, x: Tensor) -> Tensor:
    h = self.norm(self.a(x))
    g = self.act(h)
    return self.b(g) + h[:, :3]


def added_to(self: Any, x: Tensor) -> Tensor:
    h = F.leaky_relu(self.a(x), 0.2)
    h += 1
    return self.b(h)


def viewed(self: Any, x: Tensor) -> Tensor:
    h = F.leaky_relu(self.a(x), 0.2)
    h.view(5, -1).mul_(3)
    return self.b(h)


def overwritten_by_a_callee(self: Any, x: Tensor) -> Tensor:
    h = F.leaky_relu(self.a(x), 0.2)
    return self.b(self.act(h)) + h.mean()


def passed_on(self: Any, x: Tensor) -> Tensor:
    h = self.same(F.leaky_relu(self.a(x), 0.2))
    h *= 2
    return self.b(h)


def untouched(self: Any, x: Tensor) -> Tensor:
    return self.b(F.leaky_relu(self.norm(self.a(x)), 0.3))


def own_input(self: Any, x: Tensor) -> Tensor:
    h = x * 1
    return self.a(self.act(h)).mean() + h


IN_PLACE = [read_again, added_to, viewed, overwritten_by_a_callee, passed_on, own_input]


@pytest.mark.parametrize("forward", IN_PLACE, ids=lambda f: f.__name__)
def test_effects_in_place_stay(forward: Any, signal: Tensor, twins: Twins, alike: Alike) -> None:
    ours, theirs = twins(made(forward))
    assert fastgan.convert(ours).replaced
    alike(ours, theirs, signal)


@pytest.mark.interpret
@pytest.mark.parametrize("forward", [*IN_PLACE, untouched], ids=lambda f: f.__name__)
def test_effects_in_place_stay_on_the_kernels(forward: Any, signal: Tensor, monkeypatch: Any) -> None:
    monkeypatch.setattr(converted, "always", False)
    ours = made(forward)
    ours.a, ours.b, ours.norm = nn.Linear(9, 9), nn.Linear(9, 3), nn.BatchNorm1d(9)  # whose results are not copied
    theirs, rows = copy.deepcopy(ours), signal[:, 0].float()
    fastgan.convert(ours)
    with fastgan.backend("triton"):
        found = ours(rows)
        found.square().mean().backward()
    wanted = theirs(rows)
    wanted.square().mean().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


class Caller(nn.Module):
    """Adds to what its parts return."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.skip = part, nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = None
        for part in (self.part, self.skip):
            if total is None:
                total = part(x)
            else:
                total += part(x)
        return total


class Keeper(Caller):
    """The same, but it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = 1
        return super().forward(x)


class Row(nn.Sequential):
    """Members of which the last works in place within."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part, nn.Sequential(nn.ReLU(inplace=True), nn.GELU()))


class Mixed(nn.Module):
    """A part that is not its layers alone, and what it returns is overwritten."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.part[0](x * 2), 0.2)


class RowOfMixed(Row):
    """The same, of a part that has a forward of its own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(Mixed(part))


@pytest.mark.interpret
@pytest.mark.parametrize("caller", [Caller, Keeper, Row, RowOfMixed], ids=lambda c: c.__name__)
def test_what_a_caller_overwrites_is_not_wanted_for_backward(caller: Any, signal: Tensor, monkeypatch: Any) -> None:
    monkeypatch.setattr(converted, "always", False)
    ours = caller(nn.Sequential(nn.Linear(9, 4), nn.LeakyReLU(0.2)))
    theirs, rows = copy.deepcopy(ours), signal[:, 0].float()
    fastgan.convert(ours)
    for net in (ours, copy.deepcopy(ours)):
        with fastgan.backend("triton"):
            net(rows).square().sum().backward()
    theirs(rows).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_what_may_be_overwritten_ends_before_its_activation() -> None:
    told = {f: [entry.what for entry in fastgan.convert(made(f)).replaced] for f in (added_to, read_again, untouched)}
    assert told[added_to] == ["Conv1d", "Conv1d"]
    assert told[read_again] == ["Conv1d + BatchNorm1d", "Conv1d"]
    assert told[untouched] == ["Conv1d + BatchNorm1d + LeakyReLU(0.3), Conv1d"]
