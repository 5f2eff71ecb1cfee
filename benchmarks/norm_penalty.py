"""Suite ``norm-penalty``: WGAN-GP's penalty on the norms of a critic's gradients, with its slope.

Forward and backward from gradients (batch, ...), as they leave the critic; the critic's own passes are those of suites
``linear`` and ``conv``. The others are handed gradients in their dtype and form the penalty in fp32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.contenders import field, nothing_more, raced, warned, whole
from fastgan.benchmarks.interpolate import SAMPLES, arguments, named
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

DTYPES = ("bfloat16", "float32")
BATCHES = (64, 256)
Penalty = Callable[[Tensor], Tensor]  # of gradients (n, ...)


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each batch, sample and dtype; what people train comes first."""
    chosen = vars(setting.options)
    batches = chosen.get("batch") or ((5,) if setting.smoke else BATCHES)
    if min(batches) < 1:
        raise UserError("--batch must be at least 1")
    shapes = [(batch, *sample) for batch in batches for sample in (SAMPLES[2:4] if setting.smoke else SAMPLES)]
    plan = [(shape, dtype) for shape in shapes for dtype in chosen.get("dtype") or DTYPES]
    return [
        Task(f"norm-penalty {named(shape)} {dtype}", functools.partial(measure, setting, shape, dtype), priority=at)
        for at, (shape, dtype) in enumerate(plan)
    ]


def measure(setting: Setting, shape: tuple[int, ...], dtype: str) -> Iterator[Row]:
    """Race one shape; contenders that this machine cannot run say why not."""
    inputs = functools.partial(gradients, shape, dtype)
    plain = {"eager": formula}
    contenders, absent = field(setting, "norm_penalty", dtype, inputs, plain, whole(formula), ours, with_slope)
    moved = 3.0 * math.prod(shape) * MATRIX[dtype].itemsize
    workload = Workload("norm-penalty", named(shape), dtype, inputs, contenders, with_slope(formula), moved=moved)
    yield from raced(workload, setting, absent, nothing_more)


def gradients(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random gradients, of norms about 1.5."""
    g = torch.randn(shape, device=generator.device, generator=generator) * (1.5 / math.sqrt(math.prod(shape[1:])))
    return (g.to(MATRIX[dtype]).requires_grad_(),)


def formula(gradient: Tensor) -> Tensor:
    """Return the penalty as people write it, in fp32."""
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    return (wide.flatten(1).norm(2, dim=1) - 1).square().mean()


def ours(gradient: Tensor) -> Tensor:
    """Return the penalty as this library offers it."""
    from fastgan.ops import norm_penalty

    return norm_penalty(gradient, center=1.0)[0]


def with_slope(penalty: Penalty) -> Contender:
    """Return a contender: the penalty, and ten times its slope."""

    def call(gradient: Tensor) -> tuple[Tensor, Tensor]:
        value = penalty(gradient)
        return value, torch.autograd.grad(value, gradient, torch.full_like(value, 10.0))[0]

    return call


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        yield from summary(name, list(speedups(rows, name)))


SUITE = Suite(
    "norm-penalty",
    "the penalty on a critic's gradients with its slope, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
