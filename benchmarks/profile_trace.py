"""Reads a Chrome trace of torch.profiler: which range every moment of the host, or every kernel, belongs to.

On a CPU each moment of a step belongs to the innermost range that is under way on the step's thread. On a GPU each
kernel belongs to the innermost range around its launch: by the thread that launched it, which in a backward pass is
autograd's, else by the thread that waits for it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.benchmarks.profile_ranges import STEP, Range

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
OF_THE_HOST = ("user_annotation", "cpu_op")
LAUNCHING = ("cuda_runtime", "cuda_driver")


class Piece(NamedTuple):
    """What a range did, without a break: on the host, or as one kernel. Microseconds of the trace's clock."""

    range: Range
    step: int
    start: float
    end: float
    name: str = ""  # of the kernel

    @property
    def us(self) -> float:
        """How long it took."""
        return self.end - self.start


class Span(NamedTuple):
    """One range that was under way on one thread."""

    range: Range
    thread: Any
    start: float
    end: float


def events(path: Path) -> list[dict[str, Any]]:
    """Return a trace's events that last."""
    body = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return [event for event in body["traceEvents"] if event.get("ph") == "X"]


def spans(found: Iterable[Mapping[str, Any]], known: Mapping[str, Range]) -> list[Span]:
    """Return our ranges among a trace's events, in their order, an outer one before those in it."""
    ours = [
        Span(known[event["name"]], event["tid"], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in found
        if event.get("cat") in OF_THE_HOST and event.get("name") in known
    ]
    return sorted(ours, key=lambda span: (span.start, -span.end))


def steps(ours: Sequence[Span]) -> list[Span]:
    """Return the spans that are whole steps."""
    return [span for span in ours if span.range is STEP]


def on_host(ours: Sequence[Span]) -> list[Piece]:
    """Cut each step up into pieces of its innermost ranges; together they are the steps, without a gap."""
    whole = steps(ours)
    begins, pieces = [step.start for step in whole], []
    for thread in dict.fromkeys(step.thread for step in whole):
        for start, end, range in innermost(span for span in ours if span.thread == thread):
            at = bisect_right(begins, start) - 1
            if at >= 0 and whole[at].thread == thread and end <= whole[at].end:
                pieces.append(Piece(range, at, start, end))
    return pieces


def innermost(nested: Iterable[Span]) -> Iterator[tuple[float, float, Range]]:
    """Yield from when to when each range of one thread, an outer one before those in it, is the innermost."""
    under_way: list[Span] = []
    at = 0.0
    for span in (*nested, None):
        until = float("inf") if span is None else span.start
        while under_way and under_way[-1].end <= until:
            last = under_way.pop()
            if last.end > at:
                yield at, last.end, last.range
                at = last.end
        if span is not None:
            if under_way and until > at:
                yield at, until, under_way[-1].range
            at = until
            under_way.append(span)


class Threads:
    """What each thread was at, by the moment."""

    def __init__(self, ours: Sequence[Span]) -> None:
        threads = dict.fromkeys(span.thread for span in ours)
        self._flat = {thread: list(innermost(s for s in ours if s.thread == thread)) for thread in threads}
        self._begins = {thread: [start for start, *_ in flat] for thread, flat in self._flat.items()}

    def at(self, thread: Any, moment: float) -> Range | None:
        """Return a thread's innermost range at a moment; None outside of all."""
        place = bisect_right(self._begins.get(thread, ()), moment) - 1
        if place < 0:
            return None
        _, end, range = self._flat[thread][place]
        return range if moment < end else None


def on_device(found: Sequence[Mapping[str, Any]], ours: Sequence[Span]) -> list[Piece]:
    """Return the kernels, copies and fills that steps have launched, each with the range that its launch was in."""
    launched = {
        event["args"]["correlation"]: event
        for event in found
        if event.get("cat") in LAUNCHING and "correlation" in event.get("args", {})
    }
    whole, threads = steps(ours), Threads(ours)
    begins = [step.start for step in whole]
    pieces = []
    for event in found:
        if event.get("cat") not in ON_DEVICE:
            continue
        cause = launched.get(event.get("args", {}).get("correlation"))
        moment = float(cause["ts"]) if cause is not None else -1.0
        at = bisect_right(begins, moment) - 1
        if cause is None or at < 0 or moment >= whole[at].end:
            continue  # what the profile itself has launched
        range = threads.at(cause["tid"], moment) or threads.at(whole[at].thread, moment) or STEP
        start = float(event["ts"])
        pieces.append(Piece(range, at, start, start + float(event["dur"]), event["name"]))
    return pieces


def kernels(found: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """Return the sum of kernel time in microseconds and the number of kernels, copies and fills, whoever launched."""
    own = [float(event["dur"]) for event in found if event.get("cat") in ON_DEVICE]
    return sum(own), len(own)
