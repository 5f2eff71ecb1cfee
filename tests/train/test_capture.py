"""A captured step is the step: the same bits, call by call, with whatever it trains."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan import optim
from fastgan.errors import UserError
from fastgan.train.capture import capture, strict
from fastgan.train.capture_graph import EagerRunner, Graph
from fastgan.train.capture_snapshot import Snapshot

Made = tuple[Callable[..., Any], list[Any]]


@pytest.fixture
def rules() -> Iterator[None]:
    with strict():
        yield


def rate(value: float = 0.01) -> Tensor:
    return torch.tensor(value)


def classifier() -> Made:
    """BatchNorm, dropout, accumulated gradients and clipping."""
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate())

    def step(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        for part in (0, 1):
            F.cross_entropy(net(x[part::2]), y[part::2]).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return {"norm": norm, "w": net[0].weight}

    return step, [net, optimizer]


def critic() -> Made:
    """A gradient penalty, which differentiates twice; noise from the device and from a generator of its own."""
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.RMSprop(net.parameters(), lr=rate(), momentum=0.5)
    noise = torch.Generator().manual_seed(3)

    def step(real: Tensor, y: Tensor) -> Tensor:
        fake = torch.randn(real.shape, generator=noise)
        mix = torch.lerp(real, fake, torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(net(mix).sum(), mix, create_graph=True)
        loss = net(fake).mean() - net(real).mean() + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, [net, optimizer, noise]


def players() -> Made:
    """Two networks, two optimisers, one of ours with an average; autocast and a frozen discriminator."""
    g, d = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)), nn.Linear(6, 1)
    g_step = optim.Adam(g.parameters(), lr=rate(), ema=optim.EMA(0.9, warmup=10), skip_non_finite=True, max_norm=1.0)
    d_step = optim.SGD(d.parameters(), lr=rate(), momentum=0.9, dampening=0.5)
    seen = torch.zeros(())

    def step(real: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):
            fake = g(torch.randn(len(real), 4))
            d_step.zero_grad()
            d_loss = F.softplus(d(fake.detach())).mean() + F.softplus(-d(real)).mean()
            d_loss.backward()
            d_step.step()
            g_step.zero_grad()
            d.requires_grad_(False)
            g_loss = F.softplus(-d(fake)).mean()
            g_loss.backward()
            d.requires_grad_(True)
            g_step.step()
        seen.add_(1)
        return d_loss, [g_loss, seen, g_step.ema[g[0].weight]]

    return step, [g, d, [g_step, {"d": d_step}], seen]


def begun(make: Callable[[], Made]) -> Made:
    torch.manual_seed(5)
    return make()


def held(state: list[Any]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in Snapshot(state, values=False).tensors()]


def batch(at: int) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(at)
    return torch.randn(8, 6, generator=own), torch.randint(3, (8,), generator=own)


def same(one: Any, other: Any) -> bool:
    a, b = torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other)
    return len(a) == len(b) and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", [classifier, critic, players])
@pytest.mark.parametrize("warmup", [1, 3])
def test_captured_steps_are_plain_steps(make: Callable[[], Made], warmup: int, rules: None) -> None:
    plain, theirs = begun(make)
    step, ours = begun(make)
    stream = torch.get_rng_state()
    expected = []
    for at in range(5):
        outputs = torch.utils._pytree.tree_map(lambda t: t.detach().clone(), plain(*batch(at)))
        expected.append((outputs, held(theirs)))
    torch.set_rng_state(stream)
    captured = capture(step, state=ours, warmup=warmup)
    for at in range(5):
        outputs = captured(*batch(at))
        assert same(outputs, expected[at][0])
        assert same(held(ours), expected[at][1])


def test_learning_rates_move_and_outputs_are_overwritten(rules: None) -> None:
    net, lr = nn.Linear(6, 1), rate(0.0)
    optimizer = optim.SGD(net.parameters(), lr=lr)

    def step(x: Tensor, scale: float = 1.0) -> Tensor:
        optimizer.zero_grad()
        loss = scale * net(x).mean()
        loss.backward()
        optimizer.step()
        return loss

    once, copies = (capture(step, state=[net, optimizer], clone_outputs=clones) for clones in (False, True))
    x = batch(0)[0]
    first, weight = once(x), net.weight.detach().clone()
    before = first.clone()
    assert torch.equal(net.weight, once(x) * 0 + weight)
    lr.fill_(0.5)
    once(x)
    assert not torch.equal(net.weight, weight)
    assert once(x + 1) is first and not first.requires_grad and not torch.equal(first, before)
    kept, value = copies(x), first.clone()
    value = kept.clone()
    assert copies(x + 1) is not kept and torch.equal(kept, value)


def test_inputs_of_another_kind_are_named(rules: None) -> None:
    total = torch.zeros(3)

    def step(x: Tensor, batch: dict[str, Any], *rest: Tensor, mode: str = "a") -> Tensor:
        total.add_(x)
        return total * 2

    captured = capture(step, state=[total])
    y = {"image": torch.ones(2), "scale": 2}
    captured(torch.ones(3), y, torch.ones(1), mode="a")
    for said, args, mode in (
        (
            r"input 'x' has changed, from \(3,\) float32 on cpu to \(4,\) float32",
            (torch.ones(4), y, torch.ones(1)),
            "a",
        ),
        ("'x' has changed.* to .3,. int64", (torch.ones(3, dtype=torch.int64), y, torch.ones(1)), "a"),
        (r"'batch'\['image'\] has changed", (torch.ones(3), {**y, "image": 1.0}, torch.ones(1)), "a"),
        (
            r"'batch'\['scale'\] has changed, from 2 to 2.0: what",
            (torch.ones(3), {**y, "scale": 2.0}, torch.ones(1)),
            "a",
        ),
        (r"number 2 has changed.* requiring a gradient", (torch.ones(3), y, torch.ones(1, requires_grad=True)), "a"),
        ("'mode' has changed, from 'a' to 'b'", (torch.ones(3), y, torch.ones(1)), "b"),
        (r"structure has changed, from \(x, .*, x\) and .* to \(x, .*\) and", (torch.ones(3), y), "a"),
    ):
        with pytest.raises(UserError, match=said):
            captured(*args, mode=mode)
    assert total.tolist() == [1, 1, 1]  # nothing was copied, nothing ran
    assert captured(torch.ones(3), y, torch.zeros(1), mode="a").tolist() == [4, 4, 4]
    with pytest.raises(UserError, match="input 'x' is a numpy array"):
        capture(step, state=[total])(np.ones(3), y)


class Counts(nn.Module):
    """State of every kind, and a step that fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("extra", torch.tensor([-0.0, float("nan")]), persistent=False)
        self.calls, self.seen = 0, [torch.ones(1)]
        self.fails_at = -1
        self.optimizer = torch.optim.SGD(self.parameters(), lr=rate(), momentum=0.9)

    def step(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.late = x * 2
        self.extra.add_(1)
        random.random()
        np.random.rand()
        loss = self.norm(x + torch.rand(1)).sum()
        loss.backward()
        self.optimizer.step()
        self.norm.weight.requires_grad_(False)
        self.eval()
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.norm.weight.requires_grad_(True)
        self.train()
        return loss


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_failing_step_leaves_everything_as_it_was(fails_at: int, rules: None) -> None:
    random.seed(1)
    np.random.seed(1)
    net = Counts()
    net.fails_at = fails_at
    attributes = {**vars(net), "seen": list(net.seen)}
    before = copy.deepcopy(net.state_dict()), net.extra.clone(), copy.deepcopy(net.optimizer.state_dict())
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()
    for _ in range(2):
        # the third run is the watched one: it meets the host's random numbers only after it has failed
        with pytest.raises(KeyboardInterrupt):
            capture(net.step, state=[net, net.optimizer])(torch.randn(4, 2, generator=torch.Generator().manual_seed(2)))
        assert vars(net) == attributes and net.training and not net.optimizer.state
        assert same(net.state_dict(), before[0]) and net.extra.view(torch.int32).equal(before[1].view(torch.int32))
        assert net.optimizer.state_dict() == before[2] or fails_at == 0
        assert net.norm.weight.grad is None and net.norm.weight.requires_grad
        assert torch.equal(torch.get_rng_state(), streams[0]) and random.getstate() == streams[1]
        assert np.array_equal(np.random.get_state()[1], streams[2][1])  # type: ignore[index]


def test_on_the_cpu_it_runs_eagerly_and_says_so_once() -> None:
    net = nn.Linear(2, 1)
    captured = capture(lambda x: net(x).item(), state=[net])
    with pytest.warns(RuntimeWarning, match="this step is on 'cpu': it runs eagerly") as said:
        captured(torch.ones(1, 2))
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured(torch.ones(3, 2)[:1])


def test_variants_share_a_runner(rules: None) -> None:
    """What the engine does with lazily regularised steps: each variant is captured when it is due."""
    net, runner = nn.Linear(3, 1), EagerRunner()
    optimizer = optim.Adam(net.parameters(), lr=rate())
    x, counts = torch.randn(4, 3), torch.zeros(2, dtype=torch.int64)
    twin = copy.deepcopy(net)
    other = optim.Adam(twin.parameters(), lr=rate())

    def iteration(net: nn.Module, optimizer: torch.optim.Optimizer, lazy: bool) -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean() + (net.weight.square().sum() if lazy else 0)
        loss.backward()
        optimizer.step()
        return loss

    def variant(lazy: bool) -> Graph:
        def step() -> Tensor:
            counts[int(lazy)].add_(1)
            return iteration(net, optimizer, lazy)

        return Graph(step, [net, optimizer, counts], runner)

    graphs = {lazy: variant(lazy) for lazy in (False, True)}
    for at in range(8):
        assert torch.equal(graphs[at % 4 == 0](), iteration(twin, other, at % 4 == 0))
    assert same(net.state_dict(), twin.state_dict()) and counts.tolist() == [6, 2]


def test_casts_of_an_autocast_around_are_made_anew(rules: None) -> None:
    """Autocast keeps casts of weights as long as it lasts; a graph has to form them from the weights of today."""
    net, x = nn.Linear(4, 4), torch.randn(2, 4)
    captured = capture(lambda x: net(x), state=[net])
    with torch.autocast("cpu", torch.bfloat16):
        captured(x)
        captured(x)
        with torch.no_grad():
            net.weight.add_(1)
        expected = F.linear(x.bfloat16(), net.weight.bfloat16(), net.bias.bfloat16())
        assert torch.equal(captured(x), expected)


def test_gradients_of_inputs_are_those_of_the_call(rules: None) -> None:
    def step(x: Tensor, *, scale: Tensor) -> Tensor | None:
        (x * scale).square().sum().backward()
        return x.grad

    captured, scale = capture(step, state=[], warmup=2), torch.tensor([1.0, 2.0])
    for value in (1.0, 3.0, 5.0):
        x = torch.full((2,), value, requires_grad=True)
        assert captured(x, scale=scale).tolist() == [2 * value, 8 * value] and x.grad is None


def test_state_is_checked() -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"state=\[net, optimizer\]"):
        capture(net, state=net)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes a function, not 'int'"):
        capture(1, state=[])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="warmup 0"):
        capture(net, state=[net], warmup=0)
    for wrong, said in ((["net"], r"state\[0\] is 'str'"), ([net, [F.relu]], r"state\[1\]\[0\] is 'relu'|'function'")):
        with pytest.raises(UserError, match=said):
            capture(net, state=wrong)(torch.ones(1, 1))
