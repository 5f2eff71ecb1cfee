"""Suite ``upfirdn2d``: StyleGAN's resampling, against zeros and a convolution of each channel in PyTorch.

Forward (under no_grad), and forward with the gradient of the images. The filter is [1, 3, 3, 1] along both axes, or
12 taps along one and then the other.
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

FORMS = ("up", "down", "filter", "up separable", "down separable")
DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("both", "forward")
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
SHAPES = ((128, 128, 128), (512, 32, 32), (3, 256, 256), (512, 4, 4))  # of StyleGAN2 at 256


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    parser.add_argument("--form", nargs="+", choices=FORMS, help="only these")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--batch", type=int, metavar="N", help="images")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each form, direction, dtype, shape and layout."""
    options = vars(setting.options)
    batch = options.get("batch") or (2 if setting.smoke else 16)
    if batch < 1:
        raise UserError("--batch must be at least 1")
    plan = [
        (form, dtype, direction, (batch, *shape), layout)
        for form in options.get("form") or FORMS
        for direction in options.get("direction") or DIRECTIONS
        for dtype in options.get("dtype") or DTYPES
        for shape in (((3, 6, 6),) if setting.smoke else SHAPES)
        for layout in FORMATS
    ]
    return [
        Task(f"{form} {direction} {named(shape)} {dtype} {layout}", run, priority=at)
        for at, (form, dtype, direction, shape, layout) in enumerate(plan)
        for run in [functools.partial(measure, setting, form, dtype, direction, shape, layout)]
    ]


def named(shape: Sequence[int]) -> str:
    """Name a shape."""
    return "x".join(map(str, shape))


def measure(
    setting: Setting, form: str, dtype: str, direction: str, shape: tuple[int, ...], layout: str
) -> Iterator[Row]:
    """Race one shape; contenders that this machine cannot run say why not."""
    inputs = functools.partial(operands, form, dtype, direction, shape, layout)
    turned = functools.partial(directed, direction)
    plain = eager(form)
    contenders, absent = field(setting, "upfirdn2d", dtype, inputs, {"eager": plain}, whole(plain), ours(form), turned)
    pixels = shape[0] * shape[1] * shape[2] * shape[3]
    larger = {"up": 4.0, "down": 0.25}.get(form.split()[0], 1.0)
    passes = 1 if direction == "forward" else 2
    workload = Workload(
        f"{form} {direction}",
        f"{named(shape)} {layout}",
        dtype,
        inputs,
        contenders,
        directed(direction, plain),
        moved=int(passes * (1 + larger) * pixels) * MATRIX[dtype].itemsize,
    )
    yield from raced(workload, setting, absent, nothing_more)


def operands(
    form: str, dtype: str, direction: str, shape: tuple[int, ...], layout: str, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return random images and a filter, and but for forward the gradient of the result."""

    def random(*size: int) -> Tensor:
        place = {"device": generator.device, "generator": generator}
        values = torch.randn(size, **place).to(MATRIX[dtype])  # type: ignore[call-overload]
        return values.contiguous(memory_format=FORMATS[layout])

    images = random(*shape).requires_grad_(direction != "forward")
    taps = torch.rand(12, device=generator.device, generator=generator) + 0.5
    f = taps / taps.sum() if "separable" in form else torch.outer(taps[:4], taps[:4]) / taps[:4].sum() ** 2
    if direction == "forward":
        return images, f
    with torch.no_grad():
        return images, f, random(*ours(form)(images, f).shape)


def ours(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the op."""
    from fastgan.ops.upfirdn2d import downsample2d, filter2d, upsample2d

    ops: dict[str, Callable[..., Tensor]] = {"up": upsample2d, "down": downsample2d, "filter": filter2d}
    return ops[form.split()[0]]


def eager(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return zeros between the pixels, padding and a convolution of each channel, as people write it."""
    kind = form.split()[0]

    def forward(x: Tensor, f: Tensor) -> Tensor:
        N, C, H, W = x.shape
        taps = f.shape[-1]
        if kind == "up":
            x = F.pad(x[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1)).reshape(N, C, 2 * H, 2 * W)
            x = F.pad(x, [(taps + 1) // 2, (taps - 2) // 2] * 2)
        else:
            behind = taps - (2 if kind == "down" else 1)
            x = F.pad(x, [(behind + 1) // 2, behind // 2] * 2)
        f = f.flip(list(range(f.dim()))).to(x.dtype)
        for each in (f[None, :], f[:, None]) if f.dim() == 1 else (f,):
            x = F.conv2d(x, each.expand(C, 1, *each.shape), groups=C)
        return x * 4 if kind == "up" else x[:, :, ::2, ::2] if kind == "down" else x

    return forward


def directed(direction: str, forward: Callable[..., Tensor]) -> Contender:
    """Return a contender that runs ``forward``, with the gradient of the images where it is asked for."""
    if direction == "forward":
        return torch.no_grad()(forward)

    def both(x: Tensor, f: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        y = forward(x, f)
        return y, torch.autograd.grad(y, x, cotangent)[0]

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
    "upfirdn2d",
    "StyleGAN's up- and down-sampling with a filter, against zeros and a depthwise convolution, and torch.compile",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
