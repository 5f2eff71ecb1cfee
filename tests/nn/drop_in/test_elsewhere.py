"""What a forward goes by that stands elsewhere: in its parts, in helpers and closures, in buffers, in chance."""

from __future__ import annotations

import copy
import functools
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn.drop_in import converted
from fastgan.nn.drop_in.members import NOTE

pytestmark = pytest.mark.usefixtures("programs")
Pair = namedtuple("Pair", "h y")


class Part(nn.Module):
    """A part with methods besides forward, and values of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.slope, self.count = nn.Linear(4, 4), 0.2, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 2 if self.training else self.fc(x)

    def counted(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.fc(x) * self.count

    by_mode = forward


class Base(nn.Module):
    """Layers for forwards to call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.part, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), Part(), nn.BatchNorm1d(6)
        self.spare = nn.ModuleList([nn.Linear(2, 2)])
        self.shift = nn.Parameter(torch.ones(6))
        self.register_buffer("alpha", torch.zeros(()))
        self.flip, self.chance = Flip(), functools.partial(chancy, by=2)

    def encode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.a(x)

    @property
    def frozen(self) -> Tensor:
        with torch.no_grad():
            return self.a.weight * 2

    @classmethod
    def chancy(cls, x: Tensor) -> Tensor:
        return x * random.random()


class Flip:
    """A callable that is no module."""

    def __call__(self, x: Tensor) -> Tensor:
        return -x if random.random() < 0.5 else x

    apart = staticmethod(lambda x: x * random.random())


def chancy(x: Tensor, by: float) -> Tensor:
    return x * random.random() * by


class Reversed(torch.autograd.Function):
    """A gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return -3 * g


def made(forward: Callable[..., Any]) -> nn.Module:
    class Made(Base):
        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x) * 2

    Made.forward = forward
    torch.manual_seed(0)
    return Made().double()


def seeded(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    h = self.a(x)
    return self.b(h + torch.rand_like(h))


def without_gradients(self: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    h = self.a(x)
    torch.set_grad_enabled(True)
    return self.b(h)


FORWARDS: dict[str, Callable[..., Any]] = {
    "reversed": lambda self, x: self.b(F.relu(self.a(Reversed.apply(self.part.fc(x))))),
    "a part's method": lambda self, x: self.b(F.relu(self.a(self.part.by_mode(x)))),
    "a part's forward by name": lambda self, x: self.b(F.relu(self.a(self.part.forward(x)))),
    "a norm's forward by name": lambda self, x: self.b(self.norm.forward(self.a(x))),
    "a part that counts": lambda self, x: self.b(F.relu(self.a(self.part.counted(x)))),
    "chance": lambda self, x: self.b(-self.a(x) if torch.rand(()) < 0.5 else self.a(x)),
    "a number drawn": lambda self, x: self.b(self.a(x) * torch.rand(1).item()),
    "a callable object": lambda self, x: self.b(self.flip(self.a(x))),
    "a partial": lambda self, x: self.b(self.chance(self.a(x))),
    "a class's function": lambda self, x: self.b(Flip.apart(self.a(x))),
    "a class method": lambda self, x: self.b(self.chancy(self.a(x))),
    "an inherited method": lambda self, x: self.b(F.relu(self.encode(x))),
    "a property": lambda self, x: self.b(F.relu(F.linear(x, self.frozen))),
    "seeded": seeded,
    "without gradients": without_gradients,
}


def passed(net: nn.Module, x: Tensor) -> list[Any]:
    x = x.clone().requires_grad_()
    torch.manual_seed(3), random.seed(3)
    net.zero_grad()
    output = net(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers()]


def alike(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    for one, other in zip(passed(ours, x), passed(theirs, x), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FORWARDS)
def test_what_is_not_the_same_at_every_call_is_not_traced(name: str) -> None:
    ours, x = made(FORWARDS[name]), torch.randn(5, 4, dtype=torch.float64)
    theirs = copy.deepcopy(ours)
    state = torch.get_rng_state()
    report = fastgan.convert(ours)
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert any(entry.path == "" and entry.what == "Made" for entry in report.kept) and ours.part.count == 0
    assert type(ours.norm) is nn.BatchNorm1d and "Part" in str(report)
    for _ in range(2):
        alike(ours, theirs, x)
    alike(ours.eval(), theirs.eval(), x)


def closed() -> tuple[Callable[..., Any], Callable[[Any], None]]:
    slope = 0.2

    def change(net: Any) -> None:
        nonlocal slope
        slope = 0.9

    return lambda self, x: self.b(F.leaky_relu(self.a(x), slope)), change


CHANGED: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "a part's value": (
        lambda self, x: self.b(F.leaky_relu(self.a(x), self.part.slope)),
        lambda net: setattr(net.part, "slope", 0.7),
    ),
    "no norm": (
        lambda self, x: self.b(F.relu(self.a(x) if self.norm is None else self.norm(self.a(x)))),
        lambda net: setattr(net, "norm", None),
    ),
    "no shift": (
        lambda self, x: self.b(F.relu(self.a(x) if self.shift is None else self.a(x) + self.shift)),
        lambda net: setattr(net, "shift", None),
    ),
    "spare part deleted": (lambda self, x: self.b(F.relu(self.a(x))), lambda net: delattr(net, "spare")),
    "spare part None": (lambda self, x: self.b(F.relu(self.a(x))), lambda net: setattr(net, "spare", None)),
    "a buffer's value": (
        lambda self, x: self.b(-self.a(x) if self.alpha > 0.5 else self.a(x)),
        lambda net: net.alpha.fill_(0.9),
    ),
    "a closure": closed(),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_later_counts(name: str) -> None:
    forward, change = CHANGED[name]
    ours, x = made(forward), torch.randn(5, 4, dtype=torch.float64)
    theirs = copy.deepcopy(ours)
    fastgan.convert(ours)
    alike(ours, theirs, x)
    change(ours), change(theirs)
    alike(ours, theirs, x)


@pytest.mark.parametrize("read", [lambda self: self.alpha, lambda self: list(self.parameters())[1]])
def test_dtypes_that_it_looks_up_are_those_of_now(read: Callable[..., Tensor]) -> None:
    ours = made(lambda self, x: self.b(F.relu(self.a(x.to(read(self).dtype))))).float()
    fastgan.convert(ours)
    assert ours(torch.randn(5, 4)).dtype == torch.float32
    assert ours.double()(torch.randn(5, 4)).dtype == torch.float64


RESULTS = {
    OrderedDict: lambda self, x: OrderedDict(h=self.a(x)),
    Pair: lambda self, x: Pair(self.a(x), self.b(F.relu(self.a(x)))),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_keep_their_kind(kind: type) -> None:
    ours = made(RESULTS[kind])
    fastgan.convert(ours)
    assert type(ours(torch.randn(5, 4, dtype=torch.float64))) is kind


def test_checkpoints_within_a_model_stay() -> None:
    ours = made(lambda self, x: self.b(checkpoint(self.part, self.a(x)[:, :4], use_reentrant=False) @ self.a.weight.T))
    fastgan.convert(ours)
    calls: list[int] = []
    ours.part.fc.register_forward_pre_hook(lambda *_: calls.append(1))
    ours(torch.randn(5, 4, dtype=torch.float64)).sum().backward()
    assert len(calls) == 2, "backward runs it again"


def test_values_that_change_at_every_call_are_not_traced_for_ever() -> None:
    ours = made(lambda self, x: self.b(self.a(x) * self.part.slope))
    theirs, x = copy.deepcopy(ours), torch.randn(5, 4, dtype=torch.float64)
    fastgan.convert(ours)
    for at in range(converted.MOST_CALLS + 3):
        ours.part.slope = theirs.part.slope = at / 10
        torch.testing.assert_close(ours(x), theirs(x))
    assert not any(vars(ours)[NOTE].programs.values())


def shaken(h: Tensor) -> Tensor:
    h += 1
    return h


class Shaken(nn.Module):
    """A helper changes in place what a part returned, in a forward that is not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.2)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(shaken(h) if self.training else h)


def test_helpers_that_work_in_place_are_seen() -> None:
    ours = Shaken()
    fastgan.convert(ours)
    assert vars(ours.body)[NOTE].escapes
