"""Suite ``diff-augment``: color, translation and cutout of images in one launch, against the composition as published.

Forward (under no_grad), and forward with the gradient of the images. The others are handed what they would draw, but
for a cast to the images' dtype; ours draws it from a seed and an offset. Images are contiguous, as the published code
makes them.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastgan.benchmarks.baselines import diff_augment as torchs
from fastgan.benchmarks.baselines.diff_augment import Forward
from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.contenders import field, nothing_more, raced, warned
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

POLICIES = ("color,translation,cutout", "translation,cutout", "color")  # the first is the paper's own
DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("both", "forward")
SIZES = (64, 128, 256)
BATCHES = (64, 16, 256)
CHANNELS = 3
TINY = {"batch": 3, "size": 8}  # of the smoke form


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--policy", nargs="+", choices=POLICIES, help="only these")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--size", nargs="+", type=int, metavar="PIXELS", help="these sides of the images")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each policy, dtype, direction, batch and size; the paper's policy comes first."""
    options = vars(setting.options)
    sizes = options.get("size") or ((TINY["size"],) if setting.smoke else SIZES)
    batches = options.get("batch") or ((TINY["batch"],) if setting.smoke else BATCHES)
    if min(*sizes, *batches, 1) < 1:
        raise UserError("--size and --batch must be at least 1")
    plan: list[Task] = []
    for policy in options.get("policy") or POLICIES:
        for dtype in options.get("dtype") or DTYPES:
            for direction in options.get("direction") or DIRECTIONS:
                for batch in batches:
                    for size in sizes:
                        run = functools.partial(measure, setting, policy, dtype, direction, batch, size)
                        name = f"{title(policy, direction)} {shape(batch, size)} {dtype}"
                        plan.append(Task(name, run, priority=len(plan)))
    return plan


def title(policy: str, direction: str) -> str:
    """Name what a row measures."""
    return f"{policy} {direction}"


def shape(batch: int, size: int) -> str:
    """Name the sizes."""
    return f"{batch}x{CHANNELS}x{size}x{size}"


def measure(setting: Setting, policy: str, dtype: str, direction: str, batch: int, size: int) -> Iterator[Row]:
    """Race one policy at one size; contenders that this machine cannot run say why not."""
    inputs = functools.partial(operands, dtype, direction, batch, size)
    contenders, absent = field(
        setting,
        "diff_augment",
        dtype,
        inputs,
        {"eager": handed(torchs.eager(policy))},
        lambda mode: handed(torchs.compiled(policy, mode)),
        ours(policy),
        functools.partial(directed, direction),
    )
    image = batch * CHANNELS * size * size * MATRIX[dtype].itemsize
    workload = Workload(
        title(policy, direction),
        shape(batch, size),
        dtype,
        inputs,
        contenders,
        directed(direction, handed(torchs.eager(policy))),
        moved=(2 if direction == "forward" else 4) * image,
    )
    yield from raced(workload, setting, absent, nothing_more)


def operands(dtype: str, direction: str, batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random images, a seed and an offset, what these draw, and but for forward the gradient of the result."""
    from fastgan.ops.diff_augment import drawn

    def random() -> Tensor:
        place = {"device": generator.device, "generator": generator}
        return torch.randn(batch, CHANNELS, size, size, **place).to(MATRIX[dtype])  # type: ignore[call-overload]

    images = random()
    rng = torch.randint(2**62, (2,), device=generator.device, generator=generator)
    parts = [images.requires_grad_(direction != "forward"), rng, *drawn(rng, images.shape)]
    return tuple(parts if direction == "forward" else [*parts, random()])


def ours(policy: str) -> Forward:
    """Return the op, which draws for itself."""
    from fastgan.ops.diff_augment import diff_augment

    return lambda x, rng, *drawn: diff_augment(x, policy, rng=rng)


def handed(forward: Forward) -> Forward:
    """Return a composition that is handed what is drawn."""
    return lambda x, rng, *drawn: forward(x, *drawn)


def directed(direction: str, forward: Forward) -> Contender:
    """Return a contender that runs ``forward``, with the gradient of the images where it is asked for."""
    if direction == "forward":
        return torch.no_grad()(forward)

    def both(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *parts, cotangent = inputs
        y = forward(*parts)
        return y, torch.autograd.grad(y, parts[0], cotangent)[0]

    return both


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        found = list(speedups(rows, name))
        for direction in DIRECTIONS:
            of_direction = [entry for entry in found if entry.row.workload.endswith(f" {direction}")]
            yield from summary(f"{name}, {direction}", of_direction)


SUITE = Suite(
    "diff-augment",
    "DiffAugment by the size and number of images, against the composition as published and torch.compile",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
