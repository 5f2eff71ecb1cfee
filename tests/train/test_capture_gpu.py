"""On a GPU: replays of a CUDA graph are the eager steps, bit for bit, and what CUDA refuses is said in our words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgan.nn
from fastgan import optim
from fastgan.errors import UserError
from fastgan.train.capture import capture
from fastgan.train.capture_graph import CudaRunner, Graph
from fastgan.train.capture_snapshot import Snapshot

pytestmark = pytest.mark.gpu
Made = tuple[Callable[..., Any], list[Any]]


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    former = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(former)


def rate(value: float = 0.001) -> Tensor:
    return torch.tensor(value, device="cuda")


def classifier() -> Made:
    layers = nn.Linear(6, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(64, 3)
    net = nn.Sequential(*layers).cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate(), capturable=True)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step, [net, optimizer]


def momentum() -> Made:
    """State that begins with the first gradient, and gradients that stay from step to step."""
    net = nn.Linear(6, 3).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate(), momentum=0.9, dampening=0.5, fused=True)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss

    return step, [net, optimizer]


def critic() -> Made:
    net = nn.Sequential(nn.Linear(6, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=rate(), capturable=True)
    noise = torch.Generator("cuda").manual_seed(3)

    def step(real: Tensor, y: Tensor) -> Tensor:
        fake = torch.randn(real.shape, device="cuda", generator=noise)
        mix = torch.lerp(real, fake, torch.rand(len(real), 1, device="cuda")).requires_grad_()
        (slope,) = torch.autograd.grad(net(mix).sum(), mix, create_graph=True)
        loss = net(fake).mean() - net(real).mean() + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, [net, optimizer, noise]


def players() -> Made:
    """Our layers and optimisers: two of them, with average, clipping and guard."""
    g = nn.Sequential(fastgan.nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), fastgan.nn.Linear(32, 6)).cuda()
    d = nn.Sequential(fastgan.nn.Linear(6, 32), nn.LeakyReLU(0.2), fastgan.nn.Linear(32, 1)).cuda()
    extras: dict[str, Any] = {"skip_non_finite": True, "max_norm": 1.0}
    g_step = optim.Adam(g.parameters(), lr=rate(), betas=(0.5, 0.999), ema=optim.EMA(0.9, warmup=10), **extras)
    d_step = optim.SGD(d.parameters(), lr=rate(), momentum=0.5, dampening=0.5)

    def step(real: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        fake = g(torch.randn(len(real), 16, device="cuda"))
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
        return d_loss, g_loss

    return step, [g, d, g_step, d_step]


def batch(at: int) -> tuple[Tensor, Tensor]:
    own = torch.Generator().manual_seed(at)
    return torch.randn(32, 6, generator=own).cuda(), torch.randint(3, (32,), generator=own).cuda()


def held(state: list[Any]) -> list[Tensor]:
    found = Snapshot([entry for entry in state if not isinstance(entry, torch.Generator)], values=False)
    return [tensor.detach().clone() for tensor in found.tensors()]


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in torch.utils._pytree.tree_leaves(outputs)]


@pytest.mark.parametrize("make", [classifier, momentum, critic, players])
def test_replays_are_eager_steps_bit_for_bit(make: Callable[[], Made]) -> None:
    runs = []
    for captures in (False, True):
        torch.manual_seed(5)
        step, state = make()
        run = capture(step, state=state) if captures else step
        outputs = [leaves(run(*batch(at))) for at in range(50)]
        runs.append((outputs, held(state), torch.cuda.get_rng_state()))
    (plain, theirs, stream), (ours, own, other) = runs
    for at, (one, two) in enumerate(zip(plain, ours, strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), f"step {at}"
    assert len(theirs) == len(own) and all(torch.equal(a, b) for a, b in zip(theirs, own, strict=True))
    assert torch.equal(stream, other)


def test_learning_rates_move_and_gradients_stay_in_sight() -> None:
    step, (net, optimizer) = classifier()
    captured = capture(step, state=[net, optimizer])
    first = captured(*batch(0))
    gradient = net[0].weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0
    optimizer.param_groups[0]["lr"].zero_()
    weight = net[0].weight.detach().clone()
    assert captured(*batch(1)) is first and net[0].weight.grad is gradient
    assert torch.equal(net[0].weight, weight)
    with pytest.raises(UserError, match=r"input 'x' has changed, from \(32, 6\) float32 on cuda:0 to \(31, 6\)"):
        captured(batch(0)[0][1:], batch(0)[1])
    with pytest.raises(UserError, match="input 'x' lies on cpu"):
        capture(step, state=[net, optimizer])(batch(0)[0].cpu(), batch(0)[1])


def test_our_optimisers_begin_under_the_eyes_of_a_watch() -> None:
    """Tried out once, the first step is the one that is watched: what it begins with comes from no host's memory."""
    net = nn.Linear(6, 3).cuda()
    optimizer = optim.Adam(net.parameters(), lr=rate(), ema=optim.EMA(0.9, warmup=10))

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    captured = capture(step, state=[net, optimizer], warmup=1)
    for at in range(3):
        captured(*batch(at))
    assert all(float(state["step"]) == 3 for state in optimizer.state.values())


def test_clones_are_left_alone() -> None:
    step, state = classifier()
    captured = capture(step, state=state, clone_outputs=True)
    first = captured(*batch(0))
    before = first.clone()
    assert captured(*batch(1)) is not first and torch.equal(first, before)


def host(x: Tensor) -> Tensor:
    return x + torch.randn(3).cuda()


def waits(x: Tensor) -> Tensor:
    torch.cuda.synchronize()
    return x + 1


def there(x: Tensor) -> Tensor:
    return x.to("cpu")


def here(x: Tensor) -> Tensor:
    return x + torch.tensor([1.0, 2.0, 3.0], device="cuda")


@pytest.mark.parametrize(
    "step, line, said",
    [
        (lambda x: x * x.sum().item(), 0, "asks the device"),
        (lambda x: x[x > 0], 0, "shape depends on values"),
        (host, 1, "draws random numbers on the host"),
        (waits, 1, "waits for the device"),
        (there, 1, "asks the device"),
        (here, 1, "brings data from the host"),
    ],
)
def test_forbidden_lines_are_named(step: Callable[..., Any], line: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        capture(step, state=[])(torch.ones(3, device="cuda"))
    assert f"{__file__}:" in str(error.value) and "\n" not in str(error.value)
    assert line == 0 or f":{step.__code__.co_firstlineno + line} (`" in str(error.value)


def test_after_a_broken_capture_all_is_as_before() -> None:
    net = nn.BatchNorm1d(3).cuda()
    runs = 0

    def step(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        y = net(x + torch.rand_like(x))
        if runs == 5:  # three to try out, a true one, and this: the capture
            y.sum().item()
        return y

    before, stream = copy.deepcopy(net.state_dict()), torch.cuda.get_rng_state()
    captured = capture(step, state=[net])
    with pytest.raises(UserError, match="CUDA cannot capture this line") as error:
        captured(torch.ones(4, 3, device="cuda"))
    assert "y.sum().item()" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), stream)
    torch.rand(3, device="cuda")
    captured(torch.ones(4, 3, device="cuda"))
    captured(torch.ones(4, 3, device="cuda"))
    assert int(net.num_batches_tracked) == 2


def test_variants_share_a_pool() -> None:
    """Captured when they are due, replayed in any order, between eager work."""

    def run(make: Callable[[Callable[[], Any], list[Any]], Callable[[], Any]]) -> list[Tensor]:
        torch.manual_seed(7)
        net = nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 1)).cuda()
        optimizer, x = optim.Adam(net.parameters(), lr=rate()), torch.randn(64, 8, device="cuda")

        def iteration(lazy: bool) -> Tensor:
            optimizer.zero_grad()
            inputs = (x + torch.randn_like(x)).requires_grad_()
            out = net(inputs).square().mean()
            if lazy:
                (slope,) = torch.autograd.grad(out, inputs, create_graph=True)
                out = out + slope.square().sum()
            out.backward()
            optimizer.step()
            return out

        variants = {lazy: make(lambda lazy=lazy: iteration(lazy), [net, optimizer]) for lazy in (False, True)}
        results = []
        for at in range(24):
            results.append(variants[at % 4 == 0 or at == 13]().detach().clone())
            torch.full((1000, 1000), float("nan"), device="cuda")
        return [*results, *(p.detach() for p in net.parameters())]

    runner = CudaRunner(torch.device("cuda", torch.cuda.current_device()))
    eager = run(lambda step, state: step)
    assert all(map(torch.equal, eager, run(lambda step, state: Graph(step, state, runner))))
