"""What is kept: state_dict to and from torch.optim, copies, hooks, schedulers, groups that come later."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastgan
from fastgan import optim

Weights = Callable[..., list[nn.Parameter]]
Pull = Callable[..., None]
Alike = Callable[..., None]
NAMES = [
    ("Adam", {"betas": (0.5, 0.9)}),
    ("AdamW", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}),
]
named = pytest.mark.parametrize("name, options", NAMES, ids=[name for name, _ in NAMES])


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state after a way through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@named
@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpret)])
@pytest.mark.parametrize("back", [False, True], ids=["from torch", "into torch"])
def test_states_travel_to_and_from_torch(
    name: str, options: dict[str, Any], backend: str, back: bool, weights: Weights, pull: Pull, alike: Alike
) -> None:
    """Three steps on one side, three on the other, against six of torch's."""
    own, its = weights(), weights()
    kinds = (optim, torch.optim) if back else (torch.optim, optim)
    first, plain = (getattr(kind, name)(own, **options) for kind in kinds), getattr(torch.optim, name)(its, **options)
    begun, then = first
    with fastgan.backend(backend):
        for step in range(6):
            pull(step, own, its)
            if step == 3:
                then.load_state_dict(saved(begun))
            (begun if step < 3 else then).step()
            plain.step()
    for p, q in zip(own, its, strict=True):
        alike(p, q)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpret)])
def test_what_is_loaded_takes_the_place_of_what_was_there(backend: str, weights: Weights, pull: Pull) -> None:
    """A captured step and a schedule know tensors, not the optimiser."""
    own, its = weights(), weights()
    rate, betas = torch.tensor(0.5), (torch.tensor(0.25), torch.tensor(0.75))
    ours = optim.Adam(own, lr=rate, betas=betas, ema=optim.EMA(0.5))
    other = optim.Adam(its, lr=0.125, betas=(0.5, 0.875), ema=optim.EMA(0.5))
    with fastgan.backend(backend):
        for step in range(3):
            pull(step, own, its)
            ours.step()
            other.step()
            if step == 0:
                other.step()
    states = {p: dict(state) for p, state in ours.state.items()}
    ours.load_state_dict(saved(other))
    assert ours.param_groups[0]["lr"] is rate and float(rate) == 0.125
    assert ours.param_groups[0]["betas"] == betas and [*map(float, betas)] == [0.5, 0.875]
    for p, q in zip(own, its, strict=True):
        for name, value in states[p].items():
            assert ours.state[p][name] is value and torch.equal(value, other.state[q][name])
    torch_own = torch.optim.Adam(its, lr=0.25)
    ours.load_state_dict(torch_own.state_dict())
    assert ours.param_groups[0]["lr"] is rate and float(rate) == 0.25


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpret)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_averages_and_counts_are_saved(backend: str, dtype: torch.dtype, weights: Weights, pull: Pull) -> None:
    own, its = weights("cpu", dtype), weights("cpu", dtype)
    extras: dict[str, Any] = {"ema": optim.EMA(0.9, warmup=10), "skip_non_finite": True, "eps": 1e-3}
    ours, other = optim.Adam(own, **extras), optim.Adam(its, **extras)
    with fastgan.backend(backend):
        for step in range(3):
            pull(step, own, its)
            if step == 1:
                own[0].grad[0, 0] = float("nan")  # type: ignore[index]
            ours.step()
        for p, q in zip(own, its, strict=True):
            q.data.copy_(p)
        other.load_state_dict(saved(ours))
        assert int(other.skipped) == 1
        pull(4, own, its)
        ours.step()
        other.step()
    for p, q in zip(own, its, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(ours.ema[p], other.ema[q]) and other.ema[q].dtype in (torch.float32, q.dtype)
    assert ours.state_dict()["fastgan"] == other.state_dict()["fastgan"] == {"skipped": 1, "averaged": 3}


def test_without_its_own_entry_the_count_is_that_of_the_steps(weights: Weights, pull: Pull) -> None:
    """A state_dict of which only torch's entries were kept."""
    own, its = weights(), weights()
    ours, other = (optim.Adam(both, ema=optim.EMA(0.9, warmup=10)) for both in (own, its))
    for step in (0, 2):
        pull(step, own)
        ours.step()
    state = ours.state_dict()
    other.load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
    assert other.state_dict()["fastgan"] == {"skipped": 0, "averaged": 2}


@named
def test_is_torchs_own_kind(name: str, options: dict[str, Any], weights: Weights) -> None:
    own = weights()
    ours, other = getattr(optim, name)(own, **options), getattr(torch.optim, name)(own, **options)
    assert isinstance(ours, getattr(torch.optim, name))
    assert ours.defaults == other.defaults
    assert {**ours.state_dict(), "fastgan": None} == {**other.state_dict(), "fastgan": None}
    with pytest.raises(ValueError, match="Invalid learning rate"):
        getattr(optim, name)(own, lr=-1.0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301
def test_copies_go_on_alike(duplicate: Callable[[Any], Any], weights: Weights, pull: Pull) -> None:
    own = weights()[:6]
    ours = optim.Adam(own, lr=0.1, ema=optim.EMA(0.9, warmup=10), weight_clip=1.0, max_norm=1.0, shadow=torch.bfloat16)
    pull(0, own)
    ours.step()
    twin = duplicate(ours)
    its = twin.param_groups[0]["params"]
    pull(2, own, its)
    ours.step()
    twin.step()
    for p, q in zip(own, its, strict=True):
        assert p is not q and torch.equal(p, q) and torch.equal(ours.ema[p], twin.ema[q])
        assert torch.equal(ours.shadow(p), twin.shadow(q))


def test_hooks_are_called_once_and_closures_too(weights: Weights, pull: Pull) -> None:
    own = weights()
    torch.optim.Adam(own)  # from now on torch's own step calls hooks
    ours, calls = optim.Adam(own), []
    ours.register_step_pre_hook(lambda *_: calls.append("before"))
    ours.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> torch.Tensor:
        calls.append("closure")
        loss = own[0].square().sum()
        loss.backward()
        return loss

    before = float(own[0].detach().square().sum())
    assert ours.step(closure).item() == pytest.approx(before)
    assert calls == ["before", "closure", "after"]


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.interpret)])
def test_schedulers_and_groups_that_come_later(backend: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    own, its = weights(), weights()
    ours, other = optim.SGD(own[:2], lr=torch.tensor(0.5), momentum=0.9), torch.optim.SGD(its[:2], lr=0.5, momentum=0.9)
    decays = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in (ours, other)]
    with fastgan.backend(backend):
        for step in range(4):
            if step == 2:
                ours.add_param_group({"params": own[2:], "lr": 0.1})
                other.add_param_group({"params": its[2:], "lr": 0.1})
            pull(step, own, its)
            for decay, optimizer in zip(decays, (ours, other), strict=True):
                optimizer.step()
                if step < 2:
                    decay.step()
            ours.zero_grad()
            assert all(p.grad is None for p in own[:2])
    for p, q in zip(own, its, strict=True):
        alike(p, q)


def test_weights_that_move_are_found_again(device: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """New storage of a weight, new tensors in ``state``, a state of another memory order."""
    own, its = weights(device)[:3], weights(device)[:3]
    ours, other = optim.Adam(own, lr=0.1, ema=optim.EMA(0.9)), torch.optim.Adam(its, lr=0.1)
    for step in (0, 2, 4):
        pull(step, own, its)
        ours.step()
        other.step()
        own[0].data = own[0].data.clone()
        state = ours.state[own[1]]
        state["exp_avg"] = state["exp_avg"].contiguous()
        state["ema"] = state["ema"].clone()
    for p, q in zip(own, its, strict=True):
        alike(p, q)


def test_differentiable_steps_are_torchs() -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    p = nn.Parameter(torch.ones(3)).clone()
    p.retain_grad()
    ours = optim.SGD([torch.ones(3)], lr=0.1, differentiable=True)
    ours.param_groups[0].update(params=[p], lr=lr)
    p.grad = torch.full((3,), 2.0)
    ours.step()
    p.sum().backward()
    assert lr.grad is not None and float(lr.grad) == pytest.approx(-6.0)
