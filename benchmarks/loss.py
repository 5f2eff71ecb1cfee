"""Suite ``loss``: what each player of each objective minimises, with its gradient, against PyTorch at its best.

Forward and backward from logits (batch, 1), for the discriminator's side of a real and a fake batch. Every contender is
seeded with the same constant 1, ``fastgan.ops.unit_gradient``, so that nobody is charged for filling one in.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.contenders import field, nothing_more, raced, warned, whole
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.objectives import OBJECTIVES

OP = "gan_loss"
BATCHES = (64, 128, 1024, 8192, 65536)
DTYPES = ("bfloat16", "float32")
SIDES = ("discriminator", "generator")
DISTANCE = 1.0  # of both batches' means from 0: no loss is a small difference of large terms
Loss = Callable[[Tensor, Tensor], Tensor]  # of real and of fake logits


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Return D's loss of the original GAN as formulas have it."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def by_labels(logits: Tensor, label: float) -> Tensor:
    """Return the cross entropy as most people write it, with a tensor of labels."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def average(real: Tensor, fake: Tensor) -> Tensor:
    """Return the relativistic average loss that raises the first batch."""
    return F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean()


EAGER: dict[tuple[str, str], Loss] = {
    ("minimax", "discriminator"): cross_entropy,
    ("minimax", "generator"): lambda real, fake: -F.softplus(fake).mean(),
    ("non_saturating", "discriminator"): cross_entropy,
    ("non_saturating", "generator"): lambda real, fake: F.softplus(-fake).mean(),
    ("least_squares", "discriminator"): lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
    ("least_squares", "generator"): lambda real, fake: 0.5 * (fake - 1).square().mean(),
    ("hinge", "discriminator"): lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    ("hinge", "generator"): lambda real, fake: -fake.mean(),
    ("wasserstein", "discriminator"): lambda real, fake: fake.mean() - real.mean(),
    ("wasserstein", "generator"): lambda real, fake: -fake.mean(),
    ("relativistic", "discriminator"): lambda real, fake: F.softplus(fake - real).mean(),
    ("relativistic", "generator"): lambda real, fake: F.softplus(real - fake).mean(),
    ("relativistic_average", "discriminator"): average,
    ("relativistic_average", "generator"): lambda real, fake: average(fake, real),
}
LABELS: dict[tuple[str, str], Loss] = {
    ("minimax", "discriminator"): lambda real, fake: by_labels(real, 1.0) + by_labels(fake, 0.0),
    ("minimax", "generator"): lambda real, fake: -by_labels(fake, 0.0),
    ("non_saturating", "discriminator"): lambda real, fake: by_labels(real, 1.0) + by_labels(fake, 0.0),
    ("non_saturating", "generator"): lambda real, fake: by_labels(fake, 1.0),
    ("relativistic", "discriminator"): lambda real, fake: by_labels(real - fake, 1.0),
    ("relativistic", "generator"): lambda real, fake: by_labels(fake - real, 1.0),
}


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--objective", nargs="+", choices=list(OBJECTIVES), help="only these")
    parser.add_argument("--side", nargs="+", choices=SIDES, help="only these")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each objective, side, batch and dtype; small batches in bf16 come first."""
    options = vars(setting.options)
    dtypes = options.get("dtype") or (DTYPES[1:] if setting.smoke else DTYPES)
    plan = [
        (f"{name} {side} batch {batch} {dtype}", functools.partial(measure, setting, name, side, batch, dtype))
        for dtype in dtypes
        for batch in options.get("batch") or (BATCHES[:1] if setting.smoke else BATCHES)
        for name in options.get("objective") or OBJECTIVES
        for side in options.get("side") or SIDES
    ]
    return [Task(title, run, at) for at, (title, run) in enumerate(plan)]


def measure(setting: Setting, name: str, side: str, batch: int, dtype: str) -> Iterator[Row]:
    """Race one side of one objective; contenders that this machine cannot run say why not."""
    both = side == "discriminator" or OBJECTIVES[name].needs_real
    inputs = functools.partial(logits, batch, dtype, both)
    plain = {"eager": in_fp32(EAGER[name, side])}
    plain |= {"bce_with_logits": in_fp32(LABELS[name, side])} if (name, side) in LABELS else {}
    compiled = whole(plain["eager"])
    contenders, absent = field(setting, OP, dtype, inputs, plain, compiled, ours(name, side), with_gradient)
    workload = Workload(
        f"{name} {side}",
        f"{batch}x1",
        dtype,
        inputs,
        contenders,
        with_gradient(EAGER[name, side]),
        moved=2.0 * (1 + both) * batch * MATRIX[dtype].itemsize,
    )
    yield from raced(workload, setting, absent, nothing_more)


def logits(batch: int, dtype: str, both: bool, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return random logits (batch, 1) of real and of fake samples; where it sees fakes only, ``both`` is false."""
    real, fake = (
        (torch.randn(batch, 1, device=generator.device, generator=generator) * 2 + shift).to(MATRIX[dtype])
        for shift in (DISTANCE, -DISTANCE)
    )
    return real.requires_grad_(both), fake.requires_grad_()


def ours(name: str, side: str) -> Loss:
    """Return the loss as this library offers it."""
    from fastgan.ops import gan_loss

    return functools.partial(gan_loss, name, side=side)


def in_fp32(loss: Loss) -> Loss:
    """Return a loss of logits that are cast first, as autocast casts them for a loss."""

    def call(real: Tensor, fake: Tensor) -> Tensor:
        if real.dtype not in (torch.float32, torch.float64):
            real, fake = real.float(), fake.float()
        return loss(real, fake)

    return call


def with_gradient(loss: Loss) -> Contender:
    """Return a contender: the loss and the gradients of the logits that it sees."""
    from fastgan.ops import unit_gradient

    def call(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
        value = loss(real, fake)
        leaves = [tensor for tensor in (real, fake) if tensor.requires_grad]
        return (value, *torch.autograd.grad(value, leaves, unit_gradient(value)))

    return call


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster ours is than the best of the others."""
    yield from warned(rows)
    for variant in OURS:
        found = list(speedups(rows, variant))
        for side in SIDES:
            yield from summary(f"{variant}, {side}", [its for its in found if its.row.workload.endswith(side)])


SUITE = Suite(
    "loss",
    "both players' losses of every objective with their gradients, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
