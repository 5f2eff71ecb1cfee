"""Suite ``gained-act``: bias, activation, gain and clamp of StyleGAN's layers, against the same in PyTorch.

Forward (under no_grad), forward with the gradients of input and bias, and with those of a penalty on the input's.
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
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("both", "penalty", "forward")
ACTIVATIONS = ("lrelu", "swish")
LAYOUTS = ("channels_last", "contiguous")
SHAPES = ((512, 64, 64), (128, 256, 256), (512, 8, 8), (512,))  # of StyleGAN2 at 256 and its mapping network
MOVED = {"forward": 2, "both": 5, "penalty": 8}  # times the input: each operand and result of each launch, of lrelu
CLAMP = 256.0


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--activation", nargs="+", choices=ACTIVATIONS, help="only these")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--batch", type=int, metavar="N", help="samples")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each activation, dtype, direction, shape and layout."""
    options = vars(setting.options)
    batch = options.get("batch") or (3 if setting.smoke else 16)
    if batch < 1:
        raise UserError("--batch must be at least 1")
    shapes = ((5, 3, 3),) if setting.smoke else SHAPES
    plan = [
        (activation, dtype, direction, (batch, *shape), layout)
        for activation in options.get("activation") or ACTIVATIONS
        for direction in options.get("direction") or DIRECTIONS
        for dtype in options.get("dtype") or DTYPES
        for shape in shapes
        for layout in LAYOUTS[: 1 if len(shape) == 1 else 2]
    ]
    return [
        Task(f"{title(activation, direction)} {named(shape)} {dtype} {layout}", run, priority=at)
        for at, (activation, dtype, direction, shape, layout) in enumerate(plan)
        for run in [functools.partial(measure, setting, activation, dtype, direction, shape, layout)]
    ]


def title(activation: str, direction: str) -> str:
    """Name what a row measures."""
    return f"{activation} {direction}"


def named(shape: Sequence[int]) -> str:
    """Name a shape."""
    return "x".join(map(str, shape))


def measure(
    setting: Setting, activation: str, dtype: str, direction: str, shape: tuple[int, ...], layout: str
) -> Iterator[Row]:
    """Race one shape; contenders that this machine cannot run say why not."""
    inputs = functools.partial(operands, dtype, direction, shape, layout)
    plain = eager(activation)
    turned = functools.partial(directed, direction)
    contenders, absent = field(
        setting, "gained_act", dtype, inputs, {"eager": plain}, whole(plain), ours(activation), turned
    )
    workload = Workload(
        title(activation, direction),
        f"{named(shape)} {layout}" if len(shape) > 1 else named(shape),
        dtype,
        inputs,
        contenders,
        directed(direction, plain),
        moved=MOVED[direction] * math.prod(shape) * MATRIX[dtype].itemsize,
    )
    yield from raced(workload, setting, absent, nothing_more)


def operands(
    dtype: str, direction: str, shape: tuple[int, ...], layout: str, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return a random input and bias, and but for forward the gradient of the result."""

    def random(*size: int) -> Tensor:
        place = {"device": generator.device, "generator": generator}
        values = torch.randn(size, **place).to(MATRIX[dtype])  # type: ignore[call-overload]
        last = layout == "channels_last" and len(size) == 4
        return values.contiguous(memory_format=torch.channels_last) if last else values

    parts = [random(*shape).requires_grad_(direction != "forward"), random(shape[1]).requires_grad_()]
    return tuple(parts if direction == "forward" else [*parts, random(*shape)])


def eager(activation: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the composition in PyTorch, as people write it where no kernel is to be had."""

    def forward(x: Tensor, b: Tensor) -> Tensor:
        x = x + b.view(1, -1, *[1] * (x.dim() - 2))
        x = F.leaky_relu(x, 0.2) if activation == "lrelu" else torch.sigmoid(x) * x
        return (x * math.sqrt(2)).clamp(-CLAMP, CLAMP)

    return forward


def ours(activation: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the op."""
    from fastgan.ops.gained_act import gained_act

    return lambda x, b: gained_act(x, b, 1, activation, clamp=CLAMP)


def directed(direction: str, forward: Callable[..., Tensor]) -> Contender:
    """Return a contender that runs ``forward``, with the gradients that are asked for."""
    if direction == "forward":
        return torch.no_grad()(forward)

    def both(x: Tensor, b: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        y = forward(x, b)
        return y, *torch.autograd.grad(y, (x, b), cotangent)

    def penalty(x: Tensor, b: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        grad = cotangent.detach().requires_grad_()
        y = forward(x, b)
        (slope,) = torch.autograd.grad(y, x, grad, create_graph=True)
        return slope, *torch.autograd.grad(slope, (grad, x), cotangent, allow_unused=True, materialize_grads=True)

    return both if direction == "both" else penalty


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        found = list(speedups(rows, name))
        for direction in DIRECTIONS:
            of_direction = [entry for entry in found if entry.row.workload.endswith(f" {direction}")]
            yield from summary(f"{name}, {direction}", of_direction)


SUITE = Suite(
    "gained-act",
    "StyleGAN's bias, activation, gain and clamp, with first and second gradients, against PyTorch and torch.compile",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
