"""Adam, AdamW, RMSprop and SGD step as torch.optim's do, option by option, by the kernels and without them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import optim

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"lr": 2e-4, "betas": (0.5, 0.999)}),
    ("Adam", {"betas": (0.0, 0.9), "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.01, "decoupled_weight_decay": True, "eps": 1e-3}),
    ("Adam", {"amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"maximize": True, "amsgrad": True}),
    ("RMSprop", {"lr": 5e-5}),
    ("RMSprop", {"momentum": 0.9, "weight_decay": 0.1, "alpha": 0.9}),
    ("RMSprop", {"centered": True, "maximize": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in OPTIONS]
options = pytest.mark.parametrize("name, options", OPTIONS, ids=IDS)
Weights = Callable[..., list[nn.Parameter]]
Pull = Callable[..., None]
Alike = Callable[..., None]


def compare(own: torch.optim.Optimizer, its: torch.optim.Optimizer, alike: Callable[[Tensor, Tensor], None]) -> None:
    for p, q in zip(*(chain.from_iterable(g["params"] for g in o.param_groups) for o in (own, its)), strict=True):
        alike(p, q)
        for key, value in its.state[q].items():
            if isinstance(value, Tensor):
                alike(own.state[p][key].to(value.device), value)


def run(
    device: str, name: str, options: dict[str, Any], steps: int, weights: Weights, pull: Pull, alike: Alike
) -> None:
    own, its = weights(device), weights(device)
    ours = getattr(optim, name)([{"params": own[:3], **options}, {"params": own[3:]}], **options | {"lr": 0.01})
    other = getattr(torch.optim, name)(
        [{"params": its[:3], **options}, {"params": its[3:]}], **options | {"lr": 0.01}, foreach=False
    )
    for step in range(steps):
        pull(step, own, its)
        ours.step()
        other.step()
    compare(ours, other, alike)


@options
def test_kernels_step_as_torch_does(
    device: str, name: str, options: dict[str, Any], weights: Weights, pull: Pull, alike: Alike
) -> None:
    run(device, name, options, 6, weights, pull, alike)


@pytest.mark.full
@options
def test_kernels_step_as_torch_does_500_times(
    device: str, name: str, options: dict[str, Any], weights: Weights, pull: Pull, alike: Alike
) -> None:
    run(device, name, options, 500, weights, pull, alike)


@options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_has_the_same_bits(
    name: str, options: dict[str, Any], dtype: torch.dtype, weights: Weights, pull: Pull
) -> None:
    """With what else a step may do switched on, where it has no say in the weights."""
    own, its = weights("cpu", dtype), weights("cpu", dtype)
    extras = {"ema": optim.EMA(0.9), "skip_non_finite": True, "shadow": torch.bfloat16}
    ours, other = getattr(optim, name)(own, **options, **extras), getattr(torch.optim, name)(its, **options)
    for step in range(30):
        pull(step, own, its)
        ours.step()
        other.step()

    def same(got: Tensor, expected: Tensor) -> None:
        assert torch.equal(got, expected)

    compare(ours, other, same)


def test_sixteen_bits_round_once(device: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """States and weights are fp16, each rounded at the end of the step; torch rounds within it too."""
    own, its = weights(device, torch.float16), weights(device, torch.float16)
    ours, wide = optim.Adam(own, lr=0.01, eps=1e-3), [nn.Parameter(q.detach().float()) for q in its]
    other = torch.optim.Adam(wide, lr=0.01, eps=1e-3)
    for step in range(3):
        pull(step, own, its, wide)
        for q, grad in zip(wide, (p.grad for p in own), strict=True):
            q.grad = None if grad is None else grad.float()
        ours.step()
        other.step()
        for q in wide:
            q.data = q.data.half().float()
            for key, value in other.state.get(q, {}).items():
                if key != "step":
                    other.state[q][key] = value.half().float()
    for p, q in zip(own[:6], wide, strict=False):  # of the two that overlap, fp32 copies no longer do
        assert p.dtype == ours.state[p].get("exp_avg", p).dtype == torch.float16
        alike(p.float(), q, rtol=2e-3)


def test_what_kernels_do_not_take_goes_by_torch(device: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """Gaps, fp64 and complex numbers beside a plain parameter, in one optimiser; gradients in another memory order."""
    kinds = [
        torch.randn(6, 8)[:, ::2],
        torch.randn(3).double(),
        torch.randn(4, dtype=torch.complex64),
        torch.randn(4, 6),
    ]
    own, its = ([nn.Parameter(value.clone().to(device)) for value in kinds] for _ in range(2))
    for mine in (own, its):
        mine[0].data = torch.empty(6, 8, device=device)[:, ::2].copy_(mine[0].data)
    ours = optim.Adam(own, lr=0.1, max_norm=3.0, ema=optim.EMA(0.5), weight_clip=2.0, shadow=torch.float32)
    other = torch.optim.Adam(its, lr=0.1)
    averages = [q.detach().clone() for q in its]
    for step in range(4):
        for at, (p, q) in enumerate(zip(own, its, strict=True)):
            values = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + at)).to(p)
            p.grad, q.grad = values.t().contiguous().t() if at == 3 else values.clone(), values.clone()
        torch.nn.utils.clip_grad_norm_(its, 3.0)
        ours.step()
        other.step()
        for q, average in zip(its, averages, strict=True):
            if not q.is_complex():
                q.data.clamp_(-2, 2)
                average.lerp_(q.detach(), 0.5)
    for p, q, average in zip(own, its, averages, strict=True):
        alike(p, q, rtol=1e-5)
        if not q.is_complex():
            alike(ours.ema[p], average, rtol=1e-5)
            alike(ours.shadow(p), p.float())


def test_one_launch_a_step(device: str, weights: Weights, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of parameters and groups; one more for the norm and the guard together."""
    from fastgan.kernels import optimizer_norm, optimizer_step

    counts: list[str] = []
    for module, name in ((optimizer_step, "step_launch"), (optimizer_norm, "norm_launch")):
        launch = getattr(module, name)

        def counting(*arguments: Any, name: str = name, launch: Any = launch) -> Any:
            counts.append(name)
            return launch(*arguments)

        monkeypatch.setattr(module, name, counting)
    own = weights(device)[:6]
    extras = {"ema": optim.EMA(0.9), "weight_clip": 1.0, "shadow": torch.float16}
    for guards, expected in (({}, ["step_launch"]), ({"max_norm": 1.0, "skip_non_finite": True}, ["norm_launch"])):
        optimizer = optim.Adam([{"params": own[:2]}, {"params": own[2:], "lr": 0.1}], **extras, **guards)
        for step in (0, 2):  # every parameter has a gradient
            pull(step, own)
            counts.clear()
            optimizer.step()
        if device == "cpu":  # elsewhere the second is a replay
            assert counts == [*expected, *["step_launch"] * bool(guards)]


@pytest.mark.parametrize("bug", ["no bias correction", "beta2 for beta1", "decay unscaled"])
def test_a_wrong_step_is_seen(bug: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    """The comparison itself, on steps that are off by what people get wrong."""
    own, its = weights(), weights()
    usual: dict[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 0.1}
    wrong = {"beta2 for beta1": {"betas": (0.999, 0.999)}, "decay unscaled": {"weight_decay": 1e-4}}.get(bug, {})
    ours, other = optim.AdamW(own, **usual | wrong), torch.optim.AdamW(its, **usual)
    for step in range(5):
        pull(step, own, its)
        ours.step()
        other.step()
        if bug == "no bias correction":
            for p in own:
                if p in ours.state:
                    ours.state[p]["step"].fill_(1e6)
    with pytest.raises(AssertionError):
        compare(ours, other, alike)


def test_backends_can_take_turns(device: str, weights: Weights, pull: Pull, alike: Alike) -> None:
    for name, options in (("Adam", {}), ("SGD", {"momentum": 0.9, "dampening": 0.5})):
        own, its = weights(device), weights(device)
        extras = {"ema": optim.EMA(0.9, warmup=10)}
        ours, other = (getattr(optim, name)(both, **options, **extras) for both in (own, its))
        for step in range(6):
            pull(step, own, its)
            with fastgan.backend("triton" if step in (1, 2, 4) else "reference"):
                ours.step()
            with fastgan.backend("reference"):
                other.step()
        for p, q in zip(own, its, strict=True):
            alike(p, q)
            alike(ours.ema[p], other.ema[q])
