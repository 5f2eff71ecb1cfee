"""Suite ``sample-norms``: norms with a scale and a shift of each sample, and by statistics of each sample.

Forward and backward from channels_last images (batch, channels, height, width) and rows (batch, 2 channels) of scales
and shifts, of SNGAN's and BigGAN's generators at 32 and 128 and of AdaIN's decoder: ``batch`` normalises by the batch's
statistics, ``instance`` by each sample's. The activation is tanh, whose slope no rounding flips.
"""

from __future__ import annotations

import functools
import math
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.contenders import field, nothing_more, raced, warned, whole
from fastgan.benchmarks.interpolate import named
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

DTYPES = ("bfloat16", "float32")
BATCHES = (64, 16)
IMAGES = ((256, 16, 16), (256, 32, 32), (96, 128, 128), (512, 32, 32), (1536, 4, 4))
KINDS = ("batch", "instance")


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")
    parser.add_argument("--kind", nargs="+", choices=KINDS, help="whose statistics: only these")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each kind, batch, image and dtype; what people train comes first."""
    options = vars(setting.options)
    batches = options.get("batch") or ((3,) if setting.smoke else BATCHES)
    if min(batches) < 1:
        raise UserError("--batch must be at least 1")
    images = ((6, 4, 5),) if setting.smoke else IMAGES
    shapes = [(batch, *image) for batch in batches for image in images]
    plan = [
        (kind, shape, dtype)
        for kind in options.get("kind") or KINDS
        for shape in shapes
        for dtype in options.get("dtype") or DTYPES
    ]
    return [
        Task(f"sample-norms {kind} {named(shape)} {dtype}", functools.partial(measure, setting, *case), priority=at)
        for at, case in enumerate(plan)
        for kind, shape, dtype in [case]
    ]


def measure(setting: Setting, kind: str, shape: tuple[int, ...], dtype: str) -> Iterator[Row]:
    """Race one shape; contenders that this machine cannot run say why not."""
    inputs = functools.partial(operands, shape, dtype)
    plain, mine = FORMULAS[kind], OURS_BY_KIND[kind]
    op = "conditional_batch_norm_act" if kind == "batch" else "instance_norm_act"
    contenders, absent = field(setting, op, dtype, inputs, {"eager": plain}, whole(plain), mine, with_gradients)
    moved = 8.0 * math.prod(shape) * MATRIX[dtype].itemsize  # statistics, forward, two passes back
    name = f"{named(shape)} {kind}"
    workload = Workload("sample-norms", name, dtype, inputs, contenders, with_gradients(plain), moved=moved)
    yield from raced(workload, setting, absent, nothing_more)


def operands(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return images, rows of scales and shifts, and a gradient."""
    n, c = shape[:2]
    made = (torch.randn(size, device=generator.device, generator=generator) for size in (shape, (n, 2 * c), shape))
    x, both, grad = (tensor.to(MATRIX[dtype]) for tensor in made)
    x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    return x.requires_grad_(), both.requires_grad_(), grad


def by_batch(x: Tensor, both: Tensor) -> Tensor:
    """Return a conditional batch norm as people write it."""
    return _joined(F.batch_norm(x, None, None, training=True), both)


def by_instance(x: Tensor, both: Tensor) -> Tensor:
    """Return an adaptive instance norm as people write it."""
    return _joined(F.instance_norm(x), both)


def _joined(normal: Tensor, both: Tensor) -> Tensor:
    scale, shift = both[..., None, None].chunk(2, 1)
    return torch.tanh(scale * normal + shift)


def ours_by_batch(x: Tensor, both: Tensor) -> Tensor:
    """Return a conditional batch norm as this library offers it."""
    from fastgan.ops import conditional_batch_norm_act

    scale, shift = both.chunk(2, 1)
    return conditional_batch_norm_act(x, scale, shift, training=True, activation="tanh")


def ours_by_instance(x: Tensor, both: Tensor) -> Tensor:
    """Return an adaptive instance norm as this library offers it."""
    from fastgan.ops import instance_norm_act

    weight, bias = both.chunk(2, 1)
    return instance_norm_act(x, weight=weight, bias=bias, activation="tanh")


FORMULAS: dict[str, Callable[..., Tensor]] = {"batch": by_batch, "instance": by_instance}
OURS_BY_KIND: dict[str, Callable[..., Tensor]] = {"batch": ours_by_batch, "instance": ours_by_instance}


def with_gradients(forward: Callable[..., Tensor]) -> Contender:
    """Return a contender: the output, and the gradients of images and rows."""

    def call(x: Tensor, both: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        y = forward(x, both)
        return (y, *torch.autograd.grad(y, (x, both), grad))

    return call


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        yield from summary(name, list(speedups(rows, name)))


SUITE = Suite(
    "sample-norms",
    "conditional batch norms and adaptive instance norms with their gradients, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
