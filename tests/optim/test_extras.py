"""What a step does beyond torch.optim's: guard, norm, clip, average, shadow, scale; and numbers on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import optim
from fastgan.errors import UserError

Weights = Callable[..., list[nn.Parameter]]
Pull = Callable[..., None]
Alike = Callable[..., None]
WAYS = [
    pytest.param("reference cpu"),
    pytest.param("triton cpu", marks=pytest.mark.interpret),
    pytest.param("triton cuda", marks=pytest.mark.gpu),
    pytest.param("reference cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, on the kernels and on the reference."""
    backend, device = request.param.split()
    with fastgan.backend(backend):
        yield device


def snapshot(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Everything that a step may change, but for the count of those skipped."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    states = [value for p in tensors for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in (*tensors, *states)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["Adam", "RMSprop", "SGD"])
def test_a_gradient_that_is_not_finite_skips_everything(
    place: str, name: str, bad: float, weights: Weights, pull: Pull
) -> None:
    own = weights(place)
    extras: dict[str, Any] = {"ema": optim.EMA(0.5, warmup=10), "shadow": torch.float16, "weight_clip": 1.0}
    momentum = {} if name == "Adam" else {"momentum": 0.9}
    optimizer = getattr(optim, name)(own, lr=0.1, skip_non_finite=True, **extras, **momentum)
    pull(0, own)
    optimizer.step()
    before, averaged = snapshot(optimizer), int(optimizer.state_dict()["fastgan"]["averaged"])
    shadows = [optimizer.shadow(p).clone() for p in own]
    assert averaged == 1 and int(optimizer.skipped) == 0
    for skips, at in ((1, 0), (2, 7)):
        pull(2, own)
        own[at].grad.view(-1)[-1] = bad  # type: ignore[union-attr]
        optimizer.step()
        assert int(optimizer.skipped) == skips
    assert all(torch.equal(*pair) for pair in zip(snapshot(optimizer), before, strict=True))
    assert all(torch.equal(optimizer.shadow(p), shadow) for p, shadow in zip(own, shadows, strict=True))
    assert int(optimizer.state_dict()["fastgan"]["averaged"]) == averaged
    pull(2, own)
    optimizer.step()
    assert not torch.equal(own[0], before[0]) and int(optimizer.skipped) == 2


@pytest.mark.parametrize("most", [0.7, 1e4])
def test_the_norm_is_clipped_as_torch_does(place: str, most: float, weights: Weights, pull: Pull, alike: Alike) -> None:
    own, its = weights(place)[:6], weights(place)[:6]
    ours, other = optim.SGD(own, lr=1.0, max_norm=most), torch.optim.SGD(its, lr=1.0)
    for step in range(2):
        pull(step, own, its)
        given = [None if p.grad is None else p.grad.clone() for p in own]
        norm = torch.nn.utils.clip_grad_norm_(its, most)
        ours.step()
        other.step()
        assert ours.norm is not None
        alike(ours.norm, norm)
        assert all(g is None or torch.equal(p.grad, g) for p, g in zip(own, given, strict=True))  # type: ignore[arg-type]
    for p, q in zip(own, its, strict=True):
        alike(p, q)


def test_norms_of_several_launches_are_one_norm(place: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """Parameters that overlap, two rules, two dtypes."""
    own, its = weights(place), weights(place)
    for mine in (own, its):
        mine[0].data = mine[0].data.half()
    ours = optim.SGD([{"params": own[:4], "momentum": 0.9}, {"params": own[4:]}], lr=1.0, max_norm=0.5)
    other = torch.optim.SGD([{"params": its[:4], "momentum": 0.9}, {"params": its[4:]}], lr=1.0)
    pull(0, own, its)
    torch.nn.utils.clip_grad_norm_(its, 0.5)
    ours.step()
    other.step()
    for p, q in zip(own, its, strict=True):
        alike(p, q, rtol=1e-5 if p.dtype == torch.float32 else 1e-3)


def test_weights_are_clamped(place: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    own, its = weights(place), weights(place)
    ours, other = optim.RMSprop(own, lr=0.05, weight_clip=0.3), torch.optim.RMSprop(its, lr=0.05)
    for step in range(2):
        pull(step, own, its)
        ours.step()
        other.step()
        with torch.no_grad():
            for q in its:
                q.clamp_(-0.3, 0.3)
        for p, q in zip(own, its, strict=True):
            alike(p, q)


@pytest.mark.parametrize("warmup", [0, 10])
def test_averages_are_those_of_a_plain_loop(
    place: str, warmup: int, weights: Weights, pull: Pull, alike: Alike
) -> None:
    own = weights(place)
    optimizer = optim.Adam(own, lr=0.1, ema=optim.EMA(0.8, warmup=warmup), shadow=torch.float16)
    averages = [p.detach().clone() for p in own]
    for step in range(4):
        pull(step, own)
        optimizer.step()
        decay = min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        for average, p in zip(averages, own, strict=True):
            average.mul_(decay).add_(p.detach(), alpha=1 - decay)
    assert len(optimizer.ema) == len(own)
    for average, (p, got) in zip(averages, optimizer.ema.items(), strict=True):
        alike(got, average)
        assert got.stride() == p.stride()

    weight = own[0].detach().clone()
    shadow = optimizer.shadow(own[0])
    with optimizer.ema.swap():
        alike(own[0], averages[0])
        assert torch.equal(shadow, own[0].to(shadow.dtype))
    assert torch.equal(own[0], weight) and torch.equal(shadow, weight.to(shadow.dtype))
    target = nn.ParameterList([torch.zeros_like(p) for p in own])
    optimizer.ema.copy_to(target)
    for average, p in zip(averages, target, strict=True):
        alike(p, average)


def test_shadows_are_copies_in_the_kernels_order(place: str, pull: Pull) -> None:
    """Rows and channels_last, whatever the weight's own order."""
    torch.manual_seed(0)
    kinds = [torch.randn(5, 3, 2, 2), torch.randn(4, 3, 7), torch.randn(6, 7).t(), torch.randn(4, 3, 2).transpose(0, 2)]
    kinds += [torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last), torch.randn(6)]
    own = [nn.Parameter(value.to(place)) for value in kinds]
    optimizer = optim.SGD(own, lr=0.1, shadow=torch.float16)
    for step in (0, 2):
        pull(step, own)
        optimizer.step()
        for p in own:
            shadow = optimizer.shadow(p)
            assert torch.equal(shadow, p.half())
            assert (shadow.movedim(1, -1) if p.dim() > 2 else shadow).is_contiguous()
    with torch.no_grad():
        own[0].zero_()
    optimizer.refresh()
    assert not optimizer.shadow(own[0]).any()


def test_gradients_are_divided_by_a_scale(place: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """A scale of the optimiser's own, and a GradScaler's with its flag."""
    own, its = weights(place), weights(place)
    ours = optim.Adam(own, unscale=torch.tensor(8.0, device=place), max_norm=1.0)
    other = optim.Adam(its, max_norm=1.0)
    for step in range(2):
        pull(step, own, scale=32.0)
        pull(step, its)
        ours.grad_scale, ours.found_inf = torch.tensor([4.0], device=place), torch.zeros(1, device=place)  # type: ignore[attr-defined]
        ours.step()
        other.step()
    before = snapshot(ours)
    ours.found_inf.fill_(1.0)  # type: ignore[attr-defined]
    ours.step()
    assert int(ours.skipped) == 1 and all(torch.equal(*pair) for pair in zip(snapshot(ours), before, strict=True))
    for p, q in zip(own, its, strict=True):
        alike(p, q)


@pytest.mark.gpu
def test_grad_scaler_drives_it(weights: Weights, pull: Pull) -> None:
    own = weights("cuda")
    optimizer, scaler = optim.Adam(own), torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale(torch.zeros((), device="cuda"))
    pull(0, own)
    scaler.step(optimizer)
    scaler.update()
    pull(2, own)
    own[0].grad[0, 0] = float("inf")  # type: ignore[index]
    before = snapshot(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert int(optimizer.skipped) == 1 and scaler.get_scale() == 2.0
    assert all(torch.equal(*pair) for pair in zip(snapshot(optimizer), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_may_be_scalars_that_move(
    device: str, dtype: torch.dtype, weights: Weights, pull: Pull, alike: Alike
) -> None:
    """Changed in place between steps, they are what a new float would be."""
    own, its = weights(device), weights(device)

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    moving = {"lr": scalar(0.1), "decay": scalar(0.5), "beta1": scalar(0.5), "beta2": scalar(0.75), "wd": scalar(0.125)}
    ours = optim.AdamW(
        own,
        lr=moving["lr"],
        betas=(moving["beta1"], moving["beta2"]),
        weight_decay=moving["wd"],  # type: ignore[arg-type]
        ema=optim.EMA(moving["decay"]),
    )
    other = optim.AdamW(its, lr=0.1, betas=(0.5, 0.75), weight_decay=0.125, ema=optim.EMA(0.5))
    for step, (lr, decay, betas) in enumerate(((0.1, 0.5, (0.5, 0.75)), (0.02, 0.25, (0.25, 0.5)))):
        moving["lr"].fill_(lr)
        moving["decay"].fill_(decay)
        moving["beta1"].fill_(betas[0])
        moving["beta2"].fill_(betas[1])
        other.param_groups[0].update(lr=lr, betas=betas)
        other._ema = optim.EMA(decay)
        pull(step, own, its)
        ours.step()
        other.step()
    for p, q in zip(own, its, strict=True):
        alike(p, q)
        alike(ours.ema[p], other.ema[q])


@pytest.mark.gpu
def test_a_graph_steps_and_reads_scalars_anew(weights: Weights, pull: Pull, alike: Alike) -> None:
    """Captured with everything on: replays are steps, by gradients that are written in place."""
    own, its = weights("cuda"), weights("cuda")
    lr = torch.tensor(0.1, device="cuda")
    extras: dict[str, Any] = {"max_norm": 1.0, "skip_non_finite": True, "weight_clip": 2.0, "shadow": torch.bfloat16}
    ours = optim.Adam(own, lr=lr, ema=optim.EMA(0.9, warmup=10), **extras)
    other = optim.Adam(its, lr=0.1, ema=optim.EMA(0.9, warmup=10), **extras)
    pull(0, own, its)
    ours.step()
    other.step()
    torch.cuda.synchronize()
    before = copy.deepcopy(ours.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    assert int(ours.state_dict()["state"][0]["step"]) == int(before["state"][0]["step"]) == 1
    for step, rate in ((2, 0.1), (4, 0.01), (6, 0.2)):
        lr.fill_(rate)
        other.param_groups[0]["lr"] = rate
        pull(step, its)
        for p, q in zip(own, its, strict=True):
            p.grad.copy_(q.grad)  # type: ignore[union-attr, arg-type]
        graph.replay()
        other.step()
    for p, q in zip(own, its, strict=True):
        alike(p, q, rtol=1e-5)
        alike(ours.ema[p], other.ema[q], rtol=1e-5)
        assert torch.equal(ours.shadow(p), p.bfloat16())


@pytest.mark.parametrize(
    "extras, said",
    [
        ({"weight_clip": 0.0}, "weight_clip 0.0"),
        ({"max_norm": -1.0}, "max_norm -1.0"),
        ({"shadow": torch.int8}, "shadow torch.int8"),
    ],
)
def test_mistakes_are_named(extras: dict[str, Any], said: str) -> None:
    own = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(UserError, match=said):
        optim.Adam(own, **extras)
    with pytest.raises(UserError, match="between 0 and 1"):
        optim.EMA(1.5)
    with pytest.raises(UserError, match="warmup"):
        optim.EMA(0.9, warmup=0.5)
    plain = optim.Adam(own, ema=optim.EMA(0.9))
    with pytest.raises(UserError, match="keeps no shadow"):
        plain.shadow(own[0])
    with pytest.raises(UserError, match="averages nothing"):
        _ = optim.Adam(own).ema
    with pytest.raises(UserError, match="number and shapes"):
        plain.ema.copy_to(nn.Linear(2, 2))
    with pytest.raises(KeyError):
        plain.ema[torch.zeros(2)]
