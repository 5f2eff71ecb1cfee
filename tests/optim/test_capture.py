"""Steps that a CUDA graph can hold: no value asked of the device, nothing sent to it, nothing that moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan import optim
from fastgan.errors import UserError
from fastgan.ops import optimizer_table

Weights = Callable[..., list[nn.Parameter]]
Pull = Callable[..., None]
Alike = Callable[..., None]
ASKING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}
NUMBERS: dict[str, dict[str, Any]] = {
    "Adam": {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.125},
    "AdamW": {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.125},
    "RMSprop": {"lr": 0.1, "alpha": 0.75, "momentum": 0.5, "weight_decay": 0.125},
    "SGD": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.125},
}


class Deaf(TorchDispatchMode):
    """Forbids what asks the device for a value: a host that waits for it cannot be captured."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.overloadpacket.__name__ in ASKING:
            raise AssertionError(f"{function} asks the device")
        return function(*arguments, **named or {})


def scalars(numbers: dict[str, Any], device: str) -> dict[str, Any]:
    """The same numbers as scalars on the device."""

    def scalar(value: Any) -> Any:
        return tuple(map(scalar, value)) if isinstance(value, tuple) else torch.tensor(value, device=device)

    return {name: scalar(value) for name, value in numbers.items()}


def in_one_buffer(own: list[nn.Parameter]) -> Tensor:
    """Give gradients that are views of one buffer, each on 16 bytes, in its weight's memory order; return it."""
    sizes = [-(-p.numel() // 4) * 4 for p in own]
    flat = torch.zeros(sum(sizes), device=own[0].device)
    for p, piece in zip(own, flat.split(sizes), strict=True):
        p.grad = piece.as_strided(p.shape, p.stride(), piece.storage_offset())
    return flat


def test_the_forbidding_forbids() -> None:
    with Deaf(), pytest.raises(AssertionError, match="asks the device"):
        float(torch.ones(()))
    with Deaf(), pytest.raises(AssertionError, match="asks the device"):
        bool(torch.ones(2).sum() > 0)


@pytest.mark.parametrize("name", NUMBERS)
def test_no_step_asks_the_device(device: str, name: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """All numbers on the device, everything else on: from the first step to one that is skipped."""
    own, its = weights(device)[:6], weights(device)[:6]
    told = scalars({"unscale": 2.0, "decay": 0.5}, device)
    ours = getattr(optim, name)(
        own, **scalars(NUMBERS[name], device), unscale=told["unscale"], ema=optim.EMA(told["decay"], warmup=10),
        max_norm=1e4, skip_non_finite=True, weight_clip=1e4, shadow=torch.float16,
    )  # fmt: skip
    other = getattr(torch.optim, name)(its, **NUMBERS[name])
    for step in (0, 2, 3, 4):
        pull(step, own, its)
        for p, q in zip(own, its, strict=True):
            if p.grad is not None and q.grad is not None:
                p.grad = p.grad * 8
                if step == 4:
                    p.grad.fill_(float("inf"))
        ours.grad_scale, ours.found_inf = torch.full((1,), 4.0, device=device), torch.zeros(1, device=device)
        with Deaf():
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                ours.step()
            finally:
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        if step < 4:
            other.step()
    assert int(ours.skipped) == 1
    for p, q in zip(own, its, strict=True):
        alike(p, q)


def test_nothing_is_sent_while_nothing_moves(device: str, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients in one buffer, one of them in another memory order; a rate on the device that changes."""
    sent: list[int] = []
    upload = optimizer_table.upload
    monkeypatch.setattr(optimizer_table, "upload", lambda host, at: sent.append(host.nbytes) or upload(host, at))
    own, rate = weights(device)[:6], torch.tensor(0.1, device=device)
    flat = in_one_buffer(own)
    assert own[1].grad is not None
    own[1].grad = own[1].grad.contiguous()
    extras: dict[str, Any] = {"ema": optim.EMA(0.5), "max_norm": 1.0, "skip_non_finite": True, "weight_clip": 1e4}
    optimizer = optim.Adam(own, lr=rate, shadow=torch.float16, **extras)
    optimizer.step()
    assert len(sent) == 3  # table, blocks, what moves
    for step in range(3):
        before = [p.detach().clone() for p in own]
        flat.normal_(generator=torch.Generator(device).manual_seed(step))
        assert own[1].grad is not None
        own[1].grad.fill_(step - 1.5)
        rate.mul_(0.5)
        optimizer.step()
        assert not any(torch.equal(p, former) for p, former in zip(own, before, strict=True) if p.numel())
    assert len(sent) == 3
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert len(sent) == 4


def test_a_capture_takes_what_the_step_before_it_made_ready(
    device: str, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one line says what to do: where weights and states lie is fixed in a graph."""

    def capture(on: bool) -> None:
        for module in (optimizer_table, optim.one_launch):
            monkeypatch.setattr(module, "capturing", lambda _: on)

    own = weights(device)[:6]
    in_one_buffer(own)
    optimizer = optim.Adam(own, lr=0.1, ema=optim.EMA(0.5), shadow=torch.float16, skip_non_finite=True)
    capture(True)
    with pytest.raises(UserError, match="make one step in front of the capture"):
        optimizer.step()
    capture(False)
    optimizer.step()
    capture(True)
    optimizer.step()
    held = len(optimizer._held)
    assert held >= len(own) and any(p.grad is kept for p in own for kept in optimizer._held)
    for spoil in ("weight", "state"):
        if spoil == "weight":
            own[0].data = own[0].data.clone()
        else:
            optimizer.state[own[0]]["exp_avg"] = optimizer.state[own[0]]["exp_avg"].clone()
        with pytest.raises(UserError, match="make one step in front of the capture"):
            optimizer.step()
        capture(False)
        optimizer.step()
        capture(True)
        optimizer.step()

    theirs = optim.Adam(own, amsgrad=True, skip_non_finite=True)
    with pytest.raises(UserError, match="asks the host"):
        theirs.step()


def test_a_capture_sends_gradients_that_it_has_made_itself(
    device: str, weights: Weights, alike: Alike, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such step reads a page of its own, which is written once; an eager step afterwards sends its own again."""
    own, its = weights(device)[:6], weights(device)[:6]
    ours, other = optim.Adam(own, lr=0.1), torch.optim.Adam(its, lr=0.1)
    pages = len(optimizer_table.WRITTEN)
    for turn, captures in enumerate((False, True, True, False)):
        for module in (optimizer_table, optim.one_launch):
            monkeypatch.setattr(module, "capturing", lambda _, captures=captures: captures)
        for p, q in zip(own, its, strict=True):  # where zero_grad(set_to_none=True) and backward leave them
            p.grad = torch.full_like(p, turn - 1.25)
            q.grad = p.grad.clone()
        ours.step()
        other.step()
        for p, q in zip(own, its, strict=True):
            alike(p, q)
    written = optimizer_table.WRITTEN[pages:]
    assert len(written) == 2 and len({page.data_ptr() for page in written}) == 2
    assert written[0].tolist() != written[1].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_graph_of_a_whole_step(set_to_none: bool) -> None:
    """As PyTorch's documentation writes it: zero_grad, backward and step in one graph."""
    nets = []
    for captured in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()
        optimizer = optim.Adam(net.parameters(), lr=torch.tensor(0.01, device="cuda"))
        x = torch.randn(32, 8, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

        def step(net: nn.Module = net, optimizer: optim.Adam = optimizer, x: Tensor = x) -> None:
            optimizer.zero_grad(set_to_none=set_to_none)
            net(x).square().mean().backward()
            optimizer.step()

        step()
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        for turn in range(5):
            x.copy_(torch.randn(32, 8, device="cuda", generator=torch.Generator("cuda").manual_seed(turn)))
            graph.replay() if captured else step()
        nets.append(net)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_a_graph_of_both_players_goes_on_where_gradients_stay(weights: Weights, alike: Alike) -> None:
    """Two captures of one optimiser, an eager step between replays, and no wait of the host in any."""
    own, its = weights("cuda")[:6], weights("cuda")[:6]
    flat, rate = in_one_buffer(own), torch.tensor(0.1, device="cuda")
    betas = (torch.tensor(0.5, device="cuda"), torch.tensor(0.9, device="cuda"))
    ours = optim.Adam(own, lr=rate, betas=betas, ema=optim.EMA(0.5), skip_non_finite=True)
    other = torch.optim.Adam(its, lr=0.1, betas=(0.5, 0.9))
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]

    def draw(step: int) -> None:
        flat.normal_(generator=torch.Generator("cuda").manual_seed(step))
        for p, q in zip(own, its, strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()

    draw(0)
    ours.step()
    other.step()
    for graph in graphs:
        with torch.cuda.graph(graph):
            ours.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, make in enumerate((graphs[0].replay, graphs[1].replay, ours.step, graphs[0].replay), 1):
            draw(step)
            rate.fill_(0.1 / step)
            other.param_groups[0]["lr"] = 0.1 / step
            make()
            other.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for p, q in zip(own, its, strict=True):
        alike(p, q, rtol=1e-5)


def test_averages_are_counted_though_the_last_launch_has_none(device: str, alike: Alike) -> None:
    """A parameter of another dtype that never has a gradient is clipped by a launch of its own."""
    p, idle = nn.Parameter(torch.ones(5, device=device)), nn.Parameter(torch.ones(3, device=device).half())
    optimizer = optim.SGD([p, idle], lr=0.1, weight_clip=2.0, ema=optim.EMA(0.9, warmup=10))
    average = p.detach().clone()
    for step in range(3):
        p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average.mul_(decay).add_(p.detach(), alpha=1 - decay)
    assert optimizer.state_dict()["fastgan"]["averaged"] == 3
    alike(optimizer.ema[p], average)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_is_there_twice_steps_twice(device: str, alike: Alike) -> None:
    own, its = (nn.Parameter(torch.arange(5.0, device=device)) for _ in range(2))
    ours = optim.Adam([own, own], lr=0.1, ema=optim.EMA(0.5))
    other, average = torch.optim.Adam([its, its], lr=0.1, foreach=False), its.detach().clone()
    for step in range(3):
        own.grad, its.grad = (torch.full_like(p, step - 0.5) for p in (own, its))
        ours.step()
        other.step()
        average.lerp_(its.detach(), 0.5)
        alike(own, its)
        alike(ours.state[own]["step"].cpu(), other.state[its]["step"].cpu())
    alike(ours.ema[own], average)
    with fastgan.backend("reference"):
        assert ours.step() is None
