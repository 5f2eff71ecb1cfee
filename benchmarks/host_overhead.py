"""Suite ``host-overhead``: what an eager call of our layers costs the host, beside the plain pair of torch functions.

The tensors are tiny, so that the host's work is all there is to see. Rows called "python side of a launch" run nothing
at all: the launcher in C is left out, so that any machine can tell what Python costs in front of it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.benchmarks.measure import WallClock, interleave
from fastgan.benchmarks.race import Workload, race
from fastgan.benchmarks.record import Check, Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task

BATCH, FEATURES = 4, 16
SLOPE = 0.2
LAUNCH = "python side of a launch"

Forward = Callable[..., object]  # of x, weight and bias


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The pair of torch functions that ``linear_act`` stands for: (batch, in) -> (batch, out)."""
    return F.leaky_relu(F.linear(x, weight, bias), SLOPE)


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each way of calling."""
    from fastgan.ops import linear_act

    ours = functools.partial(linear_act, activation="leaky_relu", negative_slope=SLOPE)
    ways: dict[str, tuple[Forward, Forward]] = {
        "forward": (plain, ours),
        "forward + backward": (with_backward(plain), with_backward(ours)),
        "no_grad": (without_gradient(plain), without_gradient(ours)),
        "module": (plain_module(), our_module()),
    }
    calls = [
        Task(name, functools.partial(measure, setting, name, theirs, own), at)
        for at, (name, (theirs, own)) in enumerate(ways.items())
    ]
    return [*calls, Task(LAUNCH, functools.partial(measure_launch, setting), len(calls))] if compiles() else calls


def measure(setting: Setting, name: str, theirs: Forward, own: Forward) -> Iterator[Row]:
    """Race the pair against ours, on the backend that ``auto`` or the user chooses."""
    from fastgan.ops.backend import choose

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        shapes = ((BATCH, FEATURES), (FEATURES, FEATURES), (FEATURES,))
        return tuple(
            torch.randn(shape, device=setting.device, generator=generator).requires_grad_() for shape in shapes
        )

    contenders = {"torch": theirs, "fastgan": own}
    reference = with_backward(plain) if "backward" in name else plain
    shape = f"{BATCH}x{FEATURES}x{FEATURES}"
    workload = Workload(name, shape, "float32", inputs, contenders, reference, resident=True, host_only=True)
    for row in race(workload, setting):
        if row.variant == "fastgan":
            row.note = f"backend {choose('linear_act', setting.device, torch.float32).backend}"
        yield row


def compiles() -> bool:
    """Whether Triton is there and compiles kernels instead of interpreting them."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    return not knobs.runtime.interpret


def measure_launch(setting: Setting) -> Iterator[Row]:
    """Time a forward launch up to the launcher in C: built anew and through Triton, and repeated by ``submit``."""
    from fastgan.benchmarks.unlaunched import unlaunched
    from fastgan.kernels.launch import submit
    from fastgan.kernels.linear import fwd_launch, linear_fwd_kernel
    from fastgan.kernels.tile import Target

    generator = torch.Generator().manual_seed(setting.seed)
    shapes = ((64, 512), (256, 512), (256,), (64, 256))
    x, weight, bias, y = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    how = ("leaky_relu", SLOPE, Target(90, "tf32"))
    calls = {
        "triton": [lambda: fwd_launch(x, weight, bias, y, None, *how).run()],
        "submit": [lambda: submit(fwd_launch, (x, weight, bias), (y, None), *how)],
    }
    with unlaunched(linear_fwd_kernel) as driver:
        told = {name: driver.told(ways[0]) for name, ways in calls.items() for _ in range(2)}  # the second is repeated
        if told["submit"] != told["triton"]:
            failed = Check(False, why="submit does not hand over what Triton does")
            yield Timed(LAUNCH, "submit", "64x256x512", "bfloat16", failed, "triton")
            return
        spreads = interleave(calls, WallClock(torch.device("cpu")), setting.effort)
    for name, spread in spreads.items():
        note = "no kernel ran: the launcher in C was left out"
        yield Timed(LAUNCH, name, "64x256x512", "bfloat16", Check(True), "triton", wall_us=spread, note=note)


def with_backward(forward: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that runs ``forward`` and forms the gradients of x, weight and bias."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y = forward(x, weight, bias)
        return (y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y)))

    return call


def without_gradient(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``forward`` under ``torch.no_grad()``."""
    return torch.no_grad()(forward)


def plain_module() -> Callable[..., Tensor]:
    """Return the pair of torch modules, on whatever weights it is given."""
    linear = torch.nn.Linear(FEATURES, FEATURES)
    return on_given_weights(linear, torch.nn.Sequential(linear, torch.nn.LeakyReLU(SLOPE)))


def our_module() -> Callable[..., Tensor]:
    """Return ``LinearAct``, on whatever weights it is given."""
    from fastgan.nn import LinearAct

    layer = LinearAct(FEATURES, FEATURES, activation="leaky_relu", negative_slope=SLOPE)
    return on_given_weights(layer, layer)


def on_given_weights(owner: torch.nn.Linear, module: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a call of ``module`` that first hangs the weights into ``owner`` where they are not there yet."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if seen[0] is not weight:
            owner.weight, owner.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
            seen[0] = weight
        return module(x)

    seen: list[Tensor | None] = [None]
    return call


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say what a call of ours costs above the pair's."""
    timed = [row for row in rows if isinstance(row, Timed) and row.wall_us is not None]
    pairs = {row.workload: row.wall_us.median for row in timed if row.variant == "torch" and row.wall_us}
    for row in timed:
        if row.variant != "torch" and row.wall_us and row.workload in pairs:
            yield f"{row.workload}: {row.wall_us.median - pairs[row.workload]:+.1f} us a call over torch"
    launch = {row.variant: row.wall_us.median for row in timed if row.workload == LAUNCH and row.wall_us}
    if len(launch) == 2:
        yield f"{LAUNCH}: {launch['submit']:.1f} us, {launch['triton']:.1f} us through Triton in full; no kernel ran"


SUITE = Suite(
    "host-overhead", "what an eager call of linear_act costs the host, beside torch's pair", tasks, closing=closing
)
