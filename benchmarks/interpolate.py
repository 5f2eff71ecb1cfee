"""Suite ``interpolate``: the random points between real and fake samples at which WGAN-GP looks, drawn and formed.

Forward alone: nobody asks for a gradient of the samples. The others are handed alpha in the samples' dtype; ours draws
it from a seed and an offset.
"""

from __future__ import annotations

import functools
import math
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.linear import compilations, obstacle, under
from fastgan.benchmarks.race import Contender, Workload, race
from fastgan.benchmarks.record import Row, Timed, said
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

DTYPES = ("bfloat16", "float32")
SAMPLES = ((3, 64, 64), (3, 32, 32), (784,), (2,), (3, 128, 128), (3, 256, 256))  # of WGAN-GP's networks first
BATCHES = (64, 256)
Points = Callable[..., Tensor]  # of real and fake samples (n, ...), rng and alpha (n, 1, ...)


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
    contenders, absent = field(setting, dtype, inputs)
    moved = 3 * math.prod(shape) * MATRIX[dtype].itemsize
    workload = Workload("interpolate", named(shape), dtype, inputs, contenders, formula, moved=moved)
    rows = race(workload, setting)
    for name, why in absent.items():
        rows.append(Timed(workload.name, name, workload.shape, dtype, baseline="eager", note=why))
    for row in rows:
        row.note = "; ".join(filter(None, (row.note, None if setting.on_gpu else "CPU"))) or None
    yield from rows


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


def field(
    setting: Setting, dtype: str, inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders, the baseline first, and why others are absent."""
    found: dict[str, Points] = {"eager": formula, "lerp": by_lerp}
    absent: dict[str, str] = {}
    for name, mode in compilations(setting).items():
        if setting.smoke:
            absent[name] = "not measured: the smoke form compiles nothing"
            continue
        try:
            torch._dynamo.reset()
            whole: Points = torch.compile(formula, mode=mode, dynamic=False, fullgraph=True)
            whole(*inputs(setting.generator()))
            found[name] = whole
        except Exception as error:  # no compiler on this machine, or one that fails
            absent[name] = f"not measured: {said(error)}"
    found["fastgan auto"] = under("auto", ours)
    if (why := obstacle(setting, dtype)) is None:
        found["fastgan triton"] = under("triton", ours)
    else:
        absent["fastgan triton"] = f"not measured: {why}"
    return {name: torch.no_grad()(points) for name, points in found.items()}, absent


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    if any(isinstance(row, Timed) and "CPU" in (row.note or "").split("; ") for row in rows):
        yield "these are rows of a CPU, where auto is plain PyTorch: they say nothing about a GPU"
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
