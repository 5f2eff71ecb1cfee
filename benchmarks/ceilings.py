"""Suite ``ceilings``: what this machine can do at most; shares of the roofline are counted from the same run's.

Copy bandwidth counts the bytes read and written; matrix rates are of square products of random numbers (zeros would run
at higher clocks); launch costs are of a kernel that has next to nothing to do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.benchmarks.gate import check_baseline
from fastgan.benchmarks.measure import MOST_QUEUED, DeviceClock, WallClock, graph_of, interleave, scaled
from fastgan.benchmarks.race import Workload, race
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task

MATRIX = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
TF32_ULP = 2.0**-10  # 10 bits of mantissa in each factor
RATES = 10  # priorities below it are of rates
NODES = 400  # of the graph whose replay is divided among them


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each ceiling that the device has."""
    plan = [Task("copy", functools.partial(copy, setting), 0)]
    for at, dtype in enumerate(MATRIX):
        if dtype != "tf32" or setting.on_gpu:  # a CPU has no TF32
            plan.append(Task(f"matrix {dtype}", functools.partial(matrix, setting, dtype), 1 + at))
    plan.append(Task("launch", functools.partial(launch, setting), RATES))
    if setting.on_gpu:
        plan.append(Task("graph", functools.partial(graph, setting), RATES + 1))
    return plan


def measure(setting: Setting) -> list[Row]:
    """Measure the ceilings that shares of the roofline need, for suites that show them."""
    rows: list[Row] = []
    for task in tasks(setting):
        if task.priority < RATES:
            rows += told(task.run(), SUITE.name, task.name)
    return rows


def told(rows: Iterable[Row], suite: str, task: str) -> Iterator[Row]:
    """Write into rows where they come from."""
    for row in rows:
        row.suite, row.task = suite, task
        yield row


def copy(setting: Setting) -> Iterator[Row]:
    """Measure the copy bandwidth."""
    size = 2**16 if setting.smoke else 2**28 if setting.on_gpu else 2**24  # fp32 elements

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        source = torch.randn(size, device=setting.device, generator=generator)
        return source, torch.full_like(source, float("nan"))

    workload = Workload(
        "copy",
        f"{size * 4 / 2**20:g} MiB",
        "float32",
        inputs,
        {"torch": lambda source, target: target.copy_(source)},
        lambda source, target: source,
        moved=8.0 * size,
    )
    for row in race(workload, setting):
        setting.ceilings.copy_gbs = row.gbs
        yield row


def matrix(setting: Setting, dtype: str) -> Iterator[Row]:
    """Measure the matrix rate of one dtype."""
    size = 64 if setting.smoke else 8192 if setting.on_gpu else 512

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        shape, place = (size, size), {"device": setting.device, "generator": generator}
        return tuple(torch.randn(shape, **place).to(MATRIX[dtype]) for _ in range(2))  # type: ignore[call-overload]

    workload = Workload(
        f"matrix {dtype}",
        f"{size}x{size}x{size}",
        dtype,
        inputs,
        {"torch": torch.mm},
        torch.mm,
        flops=2.0 * size**3,
        ulp=TF32_ULP if dtype == "tf32" else None,
    )
    with fp32_products("high" if dtype == "tf32" else "highest"):
        for row in race(workload, setting):
            if row.tflops is not None:
                setting.ceilings.tflops[dtype] = row.tflops
            yield row


@contextlib.contextmanager
def fp32_products(precision: str) -> Iterator[None]:
    """Set how fp32 matrices are multiplied: ``high`` is TF32, ``highest`` IEEE."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def launch(setting: Setting) -> Iterator[Row]:
    """Measure what the host pays for one call of a kernel on one element."""
    contenders: dict[str, Callable[..., object]] = {"eager": lambda source, target: torch.add(source, 1, out=target)}
    if setting.on_gpu and (kernel := triton_kernel()) is not None:
        contenders["triton"] = functools.partial(triton_add, kernel)
    workload = Workload(
        "launch",
        "1",
        "float32",
        functools.partial(one_element, setting.device),
        contenders,
        lambda source, target: source + 1,
        resident=True,
        host_only=True,
    )
    for row in race(workload, setting):
        if row.wall_us is not None:
            setting.ceilings.launch_us[row.variant] = row.wall_us.median
        yield row


def one_element(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return a random number and a place to write to."""
    return torch.randn(1, device=device, generator=generator), torch.full((1,), float("nan"), device=device)


def triton_kernel() -> Any:
    """Return a Triton kernel that adds one to one element; None without Triton."""
    try:
        import triton
        from triton import language as tl
    except ImportError:
        return None

    @triton.jit
    def add_one_kernel(source, target):  # type: ignore[no-untyped-def]
        tl.store(target, tl.load(source) + 1)

    return add_one_kernel


def triton_add(kernel: Any, source: Tensor, target: Tensor) -> Tensor:
    """Launch the kernel."""
    kernel[(1,)](source, target)
    return target


def graph(setting: Setting) -> Iterator[Row]:
    """Measure what one node of a replayed graph costs, and what a replay costs the host."""
    source, target = one_element(setting.device, setting.generator())

    def add() -> Tensor:
        return torch.add(source, 1, out=target)

    long, short = graph_of([add] * NODES, setting.device), graph_of([add], setting.device)
    target.fill_(float("nan"))
    short.replay()
    checked = check_baseline(target, source.double() + 1)
    node = Timed("graph", "node", f"{NODES} nodes", "float32", checked, l2="resident")
    replay = Timed("graph", "replay", "1 node", "float32", checked, l2="resident")
    if checked.passed:
        clock = DeviceClock(setting.device)
        spread = interleave({"node": [long.replay]}, clock, setting.effort, MOST_QUEUED)["node"]
        node.graph_us = scaled(spread, NODES)
        replay.wall_us = interleave({"replay": [short.replay]}, WallClock(setting.device), setting.effort)["replay"]
        setting.ceilings.launch_us["graph_node"] = node.graph_us.median
        setting.ceilings.launch_us["graph_replay"] = replay.wall_us.median
    yield from (node, replay)


SUITE = Suite("ceilings", "copy bandwidth, matrix rates, launch and graph-replay cost of this machine", tasks)
