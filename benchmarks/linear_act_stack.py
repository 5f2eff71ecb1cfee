"""Suite ``linear-act-stack``: the layers of several small networks at once, forward alone or with all gradients.

Contenders: a loop over the members as people write it, PyTorch's batched product, and ours.
"""

from __future__ import annotations

import functools
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
DIRECTIONS = ("forward", "forward+backward")
LAYERS = ((100, 400, 400), (200, 200, 200), (64, 256, 256), (100, 400, 2))  # batch, in, out: ring8's G and D first
MEMBERS = (10, 100)
SLOPE = 0.2


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--members", nargs="+", type=int, metavar="E", help="so many at once")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each number of members, layer, dtype and direction."""
    options = vars(setting.options)
    counts = options.get("members") or ((3,) if setting.smoke else MEMBERS)
    if min(counts) < 1:
        raise UserError("--members must be at least 1")
    layers = ((5, 8, 6),) if setting.smoke else LAYERS
    plan = [
        ((members, *layer), dtype, direction)
        for members in counts
        for layer in layers
        for dtype in options.get("dtype") or DTYPES
        for direction in options.get("direction") or DIRECTIONS
    ]
    return [
        Task(f"linear_act_stack {named(of[0])} {of[1]} {of[2]}", functools.partial(measure, setting, *of), priority=at)
        for at, of in enumerate(plan)
    ]


def named(shape: Sequence[int]) -> str:
    """Name members, batch, inputs and outputs."""
    return "x".join(map(str, shape))


def measure(setting: Setting, shape: tuple[int, int, int, int], dtype: str, direction: str) -> Iterator[Row]:
    """Race one stack in one direction; contenders that this machine cannot run say why not."""
    members, batch, inputs, outputs = shape
    operands = functools.partial(operands_of, shape, dtype, direction)
    way = functools.partial(directed, direction)
    plain = {"eager": one_by_one, "batched": batched}
    contenders, absent = field(setting, "linear_act_stack", dtype, operands, plain, whole(batched), ours, way)
    backward = direction != "forward"
    elements = members * (batch * inputs + outputs * inputs + outputs + batch * outputs)
    workload = Workload(
        f"linear_act_stack {direction}",
        named(shape),
        dtype,
        operands,
        contenders,
        way(one_by_one),
        flops=2.0 * members * batch * inputs * outputs * (3 if backward else 1),
        moved=float(elements * (3 if backward else 1) * MATRIX[dtype].itemsize),
    )
    yield from raced(workload, setting, absent, nothing_more)


def operands_of(
    shape: tuple[int, int, int, int], dtype: str, direction: str, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return random inputs, weights, biases and gradients of the outputs."""
    members, batch, inputs, outputs = shape
    sizes = (members, batch, inputs), (members, outputs, inputs), (members, outputs), (members, batch, outputs)
    place = {"device": generator.device, "generator": generator}
    x, weight, bias, grad = (torch.randn(size, **place).to(MATRIX[dtype]) for size in sizes)  # type: ignore[call-overload]
    backward = direction != "forward"
    return *(tensor.requires_grad_(backward) for tensor in (x, weight, bias)), grad


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return layers of x (E, B, in), weight (E, out, in), bias (E, out) as people write them, one after the other."""
    layers = zip(x.unbind(), weight.unbind(), bias.unbind(), strict=True)
    return torch.stack([F.leaky_relu(F.linear(*layer), SLOPE) for layer in layers])


def batched(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layers by PyTorch's batched product."""
    return F.leaky_relu(torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2)), SLOPE)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the layers as this library offers them."""
    from fastgan.ops import linear_act_stack

    return linear_act_stack(x, weight, bias, negative_slope=SLOPE)


def directed(direction: str, layers: Callable[..., Tensor]) -> Contender:
    """Return a function of the operands that goes forward, or forward and back to all of them."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Tensor:
        with torch.no_grad():
            return layers(x, weight, bias)

    def both(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        output = layers(x, weight, bias)
        return (output.detach(), *torch.autograd.grad(output, (x, weight, bias), grad))

    return forward if direction == "forward" else both


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how many times faster ours is than the best of the others."""
    yield from warned(rows)
    for name in OURS:
        yield from summary(name, list(speedups(rows, name)))


SUITE = Suite(
    "linear-act-stack",
    "linear layers of several small networks at once, against a loop over them and PyTorch's batched product",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
