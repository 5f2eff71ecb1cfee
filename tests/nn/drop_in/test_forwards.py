"""Forward methods: which are traced, what the trace goes by, and effects in place that others see."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.nn.drop_in.members import NOTE

Twins = Callable[[nn.Module], tuple[nn.Module, nn.Module]]
Alike = Callable[..., None]
pytestmark = pytest.mark.usefixtures("programs")
SLOPE = 0.3
SEEN: list[Tensor] = []


class Layers(nn.Module):
    """Layers for forwards to call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 3, 3, padding=1), nn.BatchNorm1d(4)
        self.act, self.drop = nn.LeakyReLU(0.2, inplace=True), nn.Dropout(0.5)
        self.flag, self.kept, self.sizes = True, [], [1, 2]


def made(forward: Callable[..., Any]) -> nn.Module:
    return type("Made", (Layers,), {"forward": forward})()


def by_training(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if self.training else self.a(x) * 2


def by_input(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if x.sum() > 0 else self.a(-x)


def by_shape(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if x.shape[0] == 1 else self.a(-x)


def by_kind(self: Any, x: Tensor) -> Tensor:
    return self.a(x if isinstance(x, Tensor) else x[0])


def keeping(self: Any, x: Tensor) -> Tensor:
    self.last = self.a(x)
    return self.last


def collecting(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    self.kept.append(h)
    return h


def collecting_outside(self: Any, x: Tensor) -> Tensor:
    SEEN.append(self.a(x))
    return SEEN[-1]


def keeping_elsewhere(self: Any, x: Tensor) -> Tensor:
    Layers.last = self.a(x)
    return Layers.last


def chancy(self: Any, x: Tensor) -> Tensor:
    return self.a(x) * random.random()


def noisy(self: Any, x: Tensor) -> Tensor:
    return self.a(x) + torch.randn(1, 4, 9, dtype=torch.float64)


def without_gradients(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.a(x)


def guarded(self: Any, x: Tensor) -> Tensor:
    try:
        return self.a(x)
    except RuntimeError:
        return x


def talking(self: Any, x: Tensor) -> Tensor:
    print("forward")  # noqa: T201 -- what is tested
    return self.a(x)


def starred(self: Any, *x: Tensor) -> Tensor:
    return self.a(x[0])


def by_mode(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if torch.is_grad_enabled() else self.a(-x)


REFUSED = {
    by_training: "asks for self.training", by_input: "decides by its input", by_shape: "decides by its input",
    by_kind: "calls isinstance", keeping: "keeps values in attributes",
    keeping_elsewhere: "keeps values in attributes", collecting: "keeps values in lists",
    collecting_outside: "SEEN, a list", chancy: "uses random", noisy: "makes tensors of its own",
    without_gradients: "with block", guarded: "handles exceptions", talking: "calls print",
    starred: "arguments by *", by_mode: "asks for is_grad_enabled",
}  # fmt: skip


@pytest.mark.parametrize("forward", REFUSED, ids=lambda f: f.__name__)
def test_forwards_that_are_not_always_the_same_are_not_traced(forward: Any, signal: Tensor) -> None:
    SEEN.clear()
    ours = made(forward).double()
    report = fastgan.convert(ours)
    entry = next(entry for entry in report.kept if entry.what == "Made")
    assert entry.path == "" and REFUSED[forward] in entry.why
    assert not ours.kept and not SEEN
    assert {entry.path for entry in report.replaced} == {"a", "b"}, "its layers run alone"
    for mode in (True, False):
        torch.manual_seed(3), random.seed(3)
        found = ours.train(mode)(signal)
        theirs = made(forward).double()
        theirs.load_state_dict(ours.state_dict())
        torch.manual_seed(3), random.seed(3)
        torch.testing.assert_close(found, theirs.train(mode)(signal))


def helped(self: Any, x: Tensor) -> Tensor:
    def halved(y: Tensor) -> Tensor:
        return y / 2

    return halved(self.b(leaky(self.norm(self.a(x)))))


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def flagged(self: Any, x: Tensor) -> Tensor:
    h = self.a(x).relu()
    return torch.tanh(self.b(h)) if self.flag else self.b(h)


def sized(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    for size in self.sizes:
        h = F.leaky_relu(h, size / 10)
    return self.b(h)


def defaulted(self: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
    h = self.a(x)
    return self.b(F.relu(h if y is None else h + y))


def dropped(self: Any, x: Tensor) -> Tensor:
    return self.b(self.drop(F.relu(self.a(x))))


@pytest.mark.parametrize("forward", [helped, flagged, sized, defaulted, dropped], ids=lambda f: f.__name__)
def test_other_forwards_run_by_their_trace(forward: Any, signal: Tensor, twins: Twins, alike: Alike) -> None:
    ours, theirs = twins(made(forward))
    report = fastgan.convert(ours)
    assert "found in a forward" in str(report)
    alike(ours, theirs, signal)
    alike(ours.eval(), theirs.eval(), signal)


def doubled(self: Any, x: Tensor, by: float = 1, twice: bool = False) -> Tensor:
    h = F.relu(self.a(x)) * by
    return self.b(h * 2 if twice else h)


def test_plain_values_that_a_call_brings_count(signal: Tensor, twins: Twins) -> None:
    ours, theirs = twins(made(doubled))
    fastgan.convert(ours)
    for args in [(), (2,), (2.5,), (1, True), (1, False), (True, True)]:
        torch.testing.assert_close(ours(signal, *args), theirs(signal, *args))


def test_a_forward_replaced_on_the_instance_stays(signal: Tensor) -> None:
    for net in (nn.Sequential(nn.Conv1d(3, 2, 1), nn.ReLU()), made(flagged)):
        net.forward = lambda x: x * 3
        report = fastgan.convert(net.double())
        assert report.kept[0].path == "" and "replaced on the instance" in report.kept[0].why
        assert torch.equal(net(signal), signal * 3)


def test_values_that_it_goes_by_are_watched(signal: Tensor, twins: Twins, alike: Alike, monkeypatch: Any) -> None:
    ours, theirs = twins(made(flagged))
    fastgan.convert(ours)
    for flag in (False, True):
        ours.flag = theirs.flag = flag
        alike(ours, theirs, signal)
        assert all(vars(ours)[NOTE].programs.values()), "it is traced anew"
    ours, theirs = twins(made(sized))
    fastgan.convert(ours)
    ours.sizes.append(7), theirs.sizes.append(7)
    alike(ours, theirs, signal)
    ours, theirs = twins(made(helped))
    fastgan.convert(ours)
    monkeypatch.setitem(globals(), "SLOPE", 0.9)
    alike(ours, theirs, signal)


def test_arguments_left_out_or_given_by_name(signal: Tensor, twins: Twins) -> None:
    ours, theirs = twins(made(defaulted))
    fastgan.convert(ours)
    more = torch.randn(5, 4, 9, dtype=torch.float64)
    for args, named in [((signal,), {}), ((signal, None), {}), ((signal, more), {}), ((signal,), {"y": more})]:
        torch.testing.assert_close(ours(*args, **named), theirs(*args, **named))
    assert len(vars(ours)[NOTE].programs) == 2 and all(vars(ours)[NOTE].programs.values())
    with pytest.raises(TypeError, match="argument"):
        ours(signal, more, more)
