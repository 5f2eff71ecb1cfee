"""Suite ``host-overhead``: what an eager call of our layers costs the host, beside the plain pair of torch functions.

The tensors are tiny, so that the host's work is all there is to see.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.benchmarks.race import Workload, race
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task

BATCH, FEATURES = 4, 16
SLOPE = 0.2

Forward = Callable[..., object]  # of x, weight and bias


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The pair of torch functions that ``linear_act`` stands for: (batch, in) -> (batch, out)."""
    return F.leaky_relu(F.linear(x, weight, bias), SLOPE)


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each way of calling."""
    from fastgan.ops import linear_act

    ours = functools.partial(linear_act, activation="leaky_relu", negative_slope=SLOPE)
    ways: dict[str, tuple[Forward, Forward]] = {
        "forward": (plain, ours),
        "forward + backward": (with_backward(plain), with_backward(ours)),
        "no_grad": (without_gradient(plain), without_gradient(ours)),
        "module": (plain_module(), our_module()),
    }
    return [
        Task(name, functools.partial(measure, setting, name, theirs, own), at)
        for at, (name, (theirs, own)) in enumerate(ways.items())
    ]


def measure(setting: Setting, name: str, theirs: Forward, own: Forward) -> Iterator[Row]:
    """Race the pair against ours, on the backend that ``auto`` or the user chooses."""
    from fastgan.ops.backend import choose

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        shapes = ((BATCH, FEATURES), (FEATURES, FEATURES), (FEATURES,))
        return tuple(
            torch.randn(shape, device=setting.device, generator=generator).requires_grad_() for shape in shapes
        )

    contenders = {"torch": theirs, "fastgan": own}
    reference = with_backward(plain) if "backward" in name else plain
    shape = f"{BATCH}x{FEATURES}x{FEATURES}"
    workload = Workload(name, shape, "float32", inputs, contenders, reference, resident=True, host_only=True)
    for row in race(workload, setting):
        if row.variant == "fastgan":
            row.note = f"backend {choose('linear_act', setting.device, torch.float32).backend}"
        yield row


def with_backward(forward: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that runs ``forward`` and forms the gradients of x, weight and bias."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = forward(x, weight, bias)
        return (y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y)))

    return call


def without_gradient(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``forward`` under ``torch.no_grad()``."""
    return torch.no_grad()(forward)


def plain_module() -> Callable[..., Tensor]:
    """Return the pair of torch modules, on whatever weights it is given."""
    linear = torch.nn.Linear(FEATURES, FEATURES)
    return on_given_weights(linear, torch.nn.Sequential(linear, torch.nn.LeakyReLU(SLOPE)))


def our_module() -> Callable[..., Tensor]:
    """Return ``LinearAct``, on whatever weights it is given."""
    from fastgan.nn import LinearAct

    layer = LinearAct(FEATURES, FEATURES, activation="leaky_relu", negative_slope=SLOPE)
    return on_given_weights(layer, layer)


def on_given_weights(owner: torch.nn.Linear, module: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a call of ``module`` that first hangs the weights into ``owner`` where they are not there yet."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if seen[0] is not weight:
            owner.weight, owner.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
            seen[0] = weight
        return module(x)

    seen: list[Tensor | None] = [None]
    return call


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say what a call of ours costs above the pair's."""
    timed = [row for row in rows if isinstance(row, Timed) and row.wall_us is not None]
    pairs = {row.workload: row.wall_us.median for row in timed if row.variant == "torch" and row.wall_us}
    for row in timed:
        if row.variant != "torch" and row.wall_us and row.workload in pairs:
            yield f"{row.workload}: {row.wall_us.median - pairs[row.workload]:+.1f} us a call over torch"


SUITE = Suite(
    "host-overhead", "what an eager call of linear_act costs the host, beside torch's pair", tasks, closing=closing
)
