"""Reads a Chrome trace of torch.profiler: which range every moment of the host, or every kernel, belongs to.

On a CPU each moment of a step belongs to the innermost range that is under way on the step's thread. On a GPU each
kernel belongs to the innermost range around its launch: by the thread that launched it, which in a backward pass is
autograd's, else by the thread that waits for it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.benchmarks.profile_ranges import STEP, Range

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
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
        if event.get("cat") == "user_annotation" and event.get("name") in known
    ]
    return sorted(ours, key=lambda span: (span.start, -span.end))


def steps(ours: Sequence[Span]) -> list[Span]:
    """Return the spans that are whole steps."""
    return [span for span in ours if span.range is STEP]


def on_host(ours: Sequence[Span]) -> list[Piece]:
    """Cut each step up into pieces of its innermost ranges; together they are the steps, without a gap."""
    pieces = []
    for number, step in enumerate(steps(ours)):
        inner = [span for span in ours if span.thread == step.thread and step.start <= span.start < step.end]
        open_: list[Span] = []
        at = step.start
        for span in inner:
            while open_ and open_[-1].end <= span.start:
                last = open_.pop()
                pieces.append(Piece(last.range, number, at, last.end))
                at = last.end
            if open_:
                pieces.append(Piece(open_[-1].range, number, at, span.start))
            at = span.start
            open_.append(span)
        for last in reversed(open_):
            pieces.append(Piece(last.range, number, at, last.end))
            at = last.end
    return [piece for piece in pieces if piece.us > 0]


def on_device(found: Sequence[Mapping[str, Any]], ours: Sequence[Span]) -> list[Piece]:
    """Return the kernels, copies and fills that steps have launched, each with the range that its launch was in."""
    launched = {
        event["args"]["correlation"]: event
        for event in found
        if event.get("cat") in LAUNCHING and "correlation" in event.get("args", {})
    }
    whole = steps(ours)
    begins = [step.start for step in whole]
    pieces = []
    for event in found:
        if event.get("cat") not in ON_DEVICE:
            continue
        cause = launched.get(event.get("args", {}).get("correlation"))
        at = bisect_right(begins, float(cause["ts"])) - 1 if cause is not None else -1
        if cause is None or at < 0 or float(cause["ts"]) >= whole[at].end:
            continue  # what the profile itself has launched
        range = around(ours, whole[at], cause["tid"], float(cause["ts"]))
        start = float(event["ts"])
        pieces.append(Piece(range, at, start, start + float(event["dur"]), event["name"]))
    return pieces


def around(ours: Sequence[Span], step: Span, thread: Any, moment: float) -> Range:
    """Return the innermost range at a moment: on that thread, else on the step's own."""
    under_way = [span for span in ours if span.start <= moment < span.end]
    for where in (thread, step.thread):
        own = [span for span in under_way if span.thread == where]
        if own:
            return own[-1].range
    return STEP


def kernels(found: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """Return the sum of kernel time in microseconds and the number of kernels, copies and fills, whoever launched."""
    own = [float(event["dur"]) for event in found if event.get("cat") in ON_DEVICE]
    return sum(own), len(own)
