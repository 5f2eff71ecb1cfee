"""Suite ``optim``: a step of Adam with an average of the weights and a bf16 shadow of them, against PyTorch's fastest.

PyTorch's is ``torch.optim.Adam(fused=True)``, then ``torch._foreach_lerp_`` and ``torch._foreach_copy_``. From 10 k to
100 M parameters in 4 to 400 tensors of fp32. Gradients stand where they stood, as in a graph: what sending their
addresses costs after ``zero_grad(set_to_none=True)`` is not part of it.
"""

from __future__ import annotations

import functools
import weakref
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.benchmarks.race import Contender, Workload, race
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

PARAMETERS = (10**4, 10**5, 10**6, 10**7, 10**8)
TENSORS = (4, 40, 400)
SMOKE = ((1000, 4), (1000, 40))
BYTES = 38  # of a parameter: gradient, weight, moments and average read, all but the gradient written, and the shadow
LARGE = 10**7  # parameters whose step ought to come near to the copy bandwidth
DECAY = 0.999
Step = Callable[[], tuple[Tensor, ...]]


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--parameters", nargs="+", type=int, metavar="N", help="only networks of so many parameters")
    parser.add_argument("--tensors", nargs="+", type=int, metavar="N", help="only networks of so many tensors")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each number of parameters and tensors; usual networks come first."""
    options = vars(setting.options)
    sizes = [(size, count) for count in TENSORS for size in PARAMETERS]
    if setting.smoke:
        sizes = list(SMOKE)
    if options.get("parameters") or options.get("tensors"):
        asked = options.get("parameters") or sorted({size for size, _ in sizes})
        sizes = [(size, count) for count in options.get("tensors") or sorted({c for _, c in sizes}) for size in asked]
    if any(count < 1 or size < count for size, count in sizes):
        raise UserError("--parameters has to be at least --tensors, and both at least 1: each tensor has an element")
    ordered = sorted(sizes, key=lambda size: (size[1] != 40, size[0]))
    return [
        Task(f"adam {size} in {count}", functools.partial(measure, setting, size, count), at)
        for at, (size, count) in enumerate(ordered)
    ]


def measure(setting: Setting, parameters: int, tensors: int) -> Iterator[Row]:
    """Race one network's step."""

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        sizes = [parameters // tensors + (at < parameters % tensors) for at in range(tensors)]
        return tuple(torch.randn(n, device=setting.device, generator=generator) for n in 2 * sizes)

    contenders: dict[str, Contender] = {"fused": Stepping(functools.partial(torchs, setting.on_gpu))}
    contenders["fastgan auto"] = Stepping(functools.partial(ours, "auto"))
    if setting.on_gpu:
        contenders["fastgan triton"] = Stepping(functools.partial(ours, "triton"))
    workload = Workload(
        "adam + average + shadow",
        f"{parameters} in {tensors}",
        "float32",
        inputs,
        contenders,
        Stepping(functools.partial(torchs, False)),
        moved=float(BYTES * parameters),
    )
    for row in race(workload, setting):
        if not setting.on_gpu:
            row.note = "; ".join(filter(None, (row.note, "CPU")))
        yield row


class Stepping:
    """A contender that goes on stepping the same weights, for each copy of the inputs: an optimiser has a state."""

    def __init__(self, build: Callable[[list[Tensor], list[Tensor]], Step]) -> None:
        self.build = build
        self.steps: dict[int, tuple[weakref.ref[Tensor], Step]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Make a step of weights (the first half, copied at the first call) along gradients (the second)."""
        key = id(inputs[0])
        if key not in self.steps:
            half = len(inputs) // 2
            step = self.build([tensor.detach().clone() for tensor in inputs[:half]], [*inputs[half:]])
            forget = weakref.ref(inputs[0], lambda _: self.steps.pop(key, None))  # a copy that is gone frees its state
            self.steps[key] = forget, step
        return self.steps[key][1]()


def torchs(on_gpu: bool, weights: list[Tensor], gradients: list[Tensor]) -> Step:
    """Return PyTorch's fastest: a fused step, a lerp, a cast."""
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer = torch.optim.Adam(weights, fused=True, capturable=on_gpu)
    averages = [weight.clone() for weight in weights]
    shadows = [weight.to(torch.bfloat16) for weight in weights]

    def step() -> tuple[Tensor, ...]:
        optimizer.step()
        torch._foreach_lerp_(averages, weights, 1 - DECAY)
        torch._foreach_copy_(shadows, weights)
        return (*weights, *averages, *shadows)

    return step


def ours(name: str, weights: list[Tensor], gradients: list[Tensor]) -> Step:
    """Return the same in one launch, on the backend of that name."""
    from fastgan.ops.backend import backend
    from fastgan.optim import EMA, Adam

    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer = Adam(weights, ema=EMA(DECAY), shadow=torch.bfloat16)
    written: list[Tensor] = []

    def step() -> tuple[Tensor, ...]:
        with backend(name):
            optimizer.step()
        if not written:
            written.extend((*weights, *optimizer.ema.values(), *map(optimizer.shadow, weights)))
        return tuple(written)

    return step


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster ours is, small and large, and how near large steps come to the copy bandwidth."""
    timed = [row for row in rows if isinstance(row, Timed)]
    if any("CPU" in (row.note or "") for row in timed):
        yield "these are rows of a CPU, where auto is plain PyTorch: they say nothing about a GPU"
    for name in OURS:
        found: list[Any] = list(speedups(rows, name))
        yield from summary(f"{name}, up to 1 M parameters", [one for one in found if parameters_of(one.row) <= 10**6])
        yield from summary(f"{name}, above", [one for one in found if parameters_of(one.row) > 10**6])
        for row in timed:
            if row.variant == name and parameters_of(row) >= LARGE and row.roofline is not None:
                yield f"{row.shape}, {name}: {row.roofline:.0%} of the measured copy bandwidth"


def parameters_of(row: Timed) -> int:
    """Return how many parameters a row's network has; 0 for a row of the ceilings."""
    size = row.shape.partition(" ")[0]
    return int(size) if row.workload.startswith("adam") and size.isdigit() else 0


SUITE = Suite(
    "optim",
    "a step of Adam with an average and a bf16 shadow, 10 k to 100 M parameters, against PyTorch's fused one",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
