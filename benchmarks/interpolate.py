"""Suite ``interpolate``: the random points between real and fake samples at which WGAN-GP looks, drawn and formed.

Forward alone: nobody asks for a gradient of the samples. The others are handed alpha in the samples' dtype; ours draws
it from a seed and an offset.
"""

from __future__ import annotations

import functools
import math
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.contenders import field, nothing_more, raced, warned, whole
from fastgan.benchmarks.race import Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

DTYPES = ("bfloat16", "float32")
SAMPLES = ((3, 64, 64), (3, 32, 32), (784,), (2,), (3, 128, 128), (3, 256, 256))  # of WGAN-GP's networks first
BATCHES = (64, 256)


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each batch, sample and dtype; what people train comes first."""
    options = vars(setting.options)
    batches = options.get("batch") or ((5,) if setting.smoke else BATCHES)
    if min(batches) < 1:
        raise UserError("--batch must be at least 1")
    shapes = [(batch, *sample) for batch in batches for sample in (SAMPLES[2:4] if setting.smoke else SAMPLES)]
    plan = [(shape, dtype) for shape in shapes for dtype in options.get("dtype") or DTYPES]
    return [
        Task(f"interpolate {named(shape)} {dtype}", functools.partial(measure, setting, shape, dtype), priority=at)
        for at, (shape, dtype) in enumerate(plan)
    ]


def named(shape: Sequence[int]) -> str:
    """Name a shape."""
    return "x".join(map(str, shape))


def measure(setting: Setting, shape: tuple[int, ...], dtype: str) -> Iterator[Row]:
    """Race one shape; contenders that this machine cannot run say why not."""
    inputs = functools.partial(operands, shape, dtype)
    plain = {"eager": formula, "lerp": by_lerp}
    contenders, absent = field(setting, "interpolate", dtype, inputs, plain, whole(formula), ours, torch.no_grad())
    moved = 3 * math.prod(shape) * MATRIX[dtype].itemsize
    workload = Workload("interpolate", named(shape), dtype, inputs, contenders, formula, moved=moved)
    yield from raced(workload, setting, absent, nothing_more)


def operands(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random real and fake samples, a seed and an offset, and the alpha that these draw."""
    from fastgan.ops.interpolate import uniform

    place = {"device": generator.device, "generator": generator}
    real, fake = (torch.randn(shape, **place).to(MATRIX[dtype]) for _ in range(2))  # type: ignore[call-overload]
    rng = torch.randint(2**62, (2,), device=generator.device, generator=generator)
    return real, fake, rng, uniform(rng, shape[0]).view(-1, *[1] * (len(shape) - 1))


def formula(real: Tensor, fake: Tensor, rng: Tensor, alpha: Tensor) -> Tensor:
    """Return the points as people write them."""
    alpha = alpha.to(real.dtype)
    return alpha * real + (1 - alpha) * fake


def by_lerp(real: Tensor, fake: Tensor, rng: Tensor, alpha: Tensor) -> Tensor:
    """Return the points by PyTorch's own function for it."""
    return torch.lerp(fake, real, alpha.to(real.dtype))


def ours(real: Tensor, fake: Tensor, rng: Tensor, alpha: Tensor) -> Tensor:
    """Return the points as this library offers them."""
    from fastgan.ops.interpolate import interpolate

    return interpolate(real, fake, rng)


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        yield from summary(name, list(speedups(rows, name)))


SUITE = Suite(
    "interpolate",
    "random points between real and fake samples, as WGAN-GP takes them, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
