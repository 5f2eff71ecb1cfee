"""The launches of a workload's step, what each is for, and which could still go: counted, not measured.

    python -m fastgan.benchmarks.launch_list [--workload mlp] [--batch 64] [--backend triton] [--page docs/engine.md]

An operator of PyTorch counts as one launch; views and allocations as none. ``--page`` writes the lists of all
workloads into that page, between the lines that mark their place.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from fastgan.benchmarks import marks
from fastgan.benchmarks.launch_count import ADDRESSES, METRICS, PRODUCTS, Launched, counting, iteration
from fastgan.benchmarks.launch_reasons import reason
from fastgan.benchmarks.step_workloads import Workload, workloads
from fastgan.errors import require

LISTED = ("mlp", "dcgan-64", "wgan-gp")
MARKED = "launch lists"  # the place in a page
UNKNOWN = "nobody knows"


class Line(NamedTuple):
    """Launches of one name within one stretch of a phase."""

    phase: str
    name: str
    times: int


def launches(workload: Workload, batch: int, backend: str = "triton") -> list[Launched]:
    """Return what an iteration launches on an H200, as a captured graph would hold it."""
    require("triton", why="listing what kernels a step launches")
    from fastgan.ops.backend import backend as on
    from fastgan.train.capture import strict

    threads = torch.get_num_threads()
    with strict(), on(backend), counting() as count:
        trainer = workload.trainer(batch, torch.device("cpu"), precision="bf16")
        found = iteration(trainer, count)
    torch.set_num_threads(threads)
    return found


def lines(found: Sequence[Launched]) -> list[Line]:
    """Sum up launches of one name where phases do not change; those of the metrics come last, all together."""
    summed = []
    ordered = sorted(found, key=lambda launched: launched.phase == METRICS)
    for phase, stretch in groupby(ordered, key=lambda launched: launched.phase):
        counts = Counter(launched.name for launched in stretch)
        summed += [Line(phase, name, times) for name, times in counts.items()]
    return summed


def folded(found: Sequence[Line]) -> tuple[int, list[Line], list[Line]]:
    """Split lines into what is repeated from the beginning, how often, and the rest."""
    for size in range(1, len(found) // 2 + 1):
        times = 1
        while found[times * size : (times + 1) * size] == found[:size]:
            times += 1
        if times > 1:
            return times, [*found[:size]], [*found[times * size :]]
    return 1, [], [*found]


def report(workload: Workload, batch: int, backend: str = "triton") -> Iterator[str]:
    """Yield one step as a table, and what it comes to."""
    found = launches(workload, batch, backend)
    yield "| phase | launch | times | what it is for | what would spare it |"
    yield "|---|---|---:|---|---|"
    times, first, rest = folded(lines(found))
    if first:
        yield f"| **{times} times:** | | | | |"
        yield from map(row, first)
        yield "| **once:** | | | | |"
    yield from map(row, rest)
    yield ""
    yield conclusion(workload, batch, backend, found)


def row(line: Line) -> str:
    """Return a line of the table."""
    why = reason(line.phase, line.name)
    what, goes = (why.what, why.goes) if why else (UNKNOWN, "")
    return f"| {line.phase} | `{line.name}` | {line.times} | {what} | {goes} |"


def conclusion(workload: Workload, batch: int, backend: str, found: Sequence[Launched]) -> str:
    """Sum a step up in a sentence."""
    theirs = [launched for launched in found if launched.name.startswith("aten.")]
    products = sum(launched.name.removeprefix("aten.") in PRODUCTS for launched in theirs)
    copies = sum(launched.name == ADDRESSES for launched in found)
    spared = [why for launched in found if (why := reason(*launched)) is not None and why.goes]
    by_library = f", {products} of these products of cuBLAS or cuDNN" if products else ""
    ours = len(found) - len(theirs) - copies
    return (
        f"- {workload.name}, batch {batch}, bf16, backend `{backend}`: {len(found)} launches a step: {ours} kernels of"
        f" ours, {len(theirs)} operators of PyTorch{by_library}, {copies} copies from the host. {len(spared)} could go."
    )


def page() -> str:
    """Return the lists of all listed workloads: our kernels alone, and what ``auto`` makes of it."""
    parts = []
    for workload in workloads():
        if workload.name in LISTED:
            own = "\n".join(report(workload, workload.batch))
            auto = conclusion(workload, workload.batch, "auto", launches(workload, workload.batch, "auto"))
            parts.append(f"### `{workload.name}`, batch {workload.batch}\n\n{own}\n{auto}\n")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print or place the launch list of a step."""
    known = {workload.name: workload for workload in workloads()}
    parser = argparse.ArgumentParser("python -m fastgan.benchmarks.launch_list", description="List a step's launches.")
    parser.add_argument("--workload", choices=known, default="mlp")
    parser.add_argument("--batch", type=int, help="default: that of the published code")
    parser.add_argument("--backend", choices=("triton", "auto"), default="triton")
    marks.add_option(parser, MARKED)
    options = parser.parse_args(argv)
    if options.batch is not None and options.batch < 2:
        parser.error("--batch must be at least 2")
    workload = known[options.workload]

    def one() -> str:
        return "\n".join(report(workload, options.batch or workload.batch, options.backend))

    return marks.serve(options, MARKED, page, one)


if __name__ == "__main__":
    sys.exit(main())
