"""What a run leaves behind: rows, ceilings, environment, as one JSON file that keeps to ``schema.json``.

Nothing that was not measured is filled in: it is ``None`` here and ``null`` there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

FORMAT = "fastgan-benchmark/2"


@dataclass(frozen=True)
class Spread:
    """Microseconds: the median of ``n`` samples, with their 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise samples; at least one is needed."""
        p20, median, p80 = np.percentile(np.asarray(samples, dtype=np.float64), (20, 50, 80))
        return cls(float(median), float(p20), float(p80), len(samples))

    def differs(self, other: Spread, band: float = 0.1) -> bool:
        """Tell whether two spreads differ beyond noise: [p20, p80] are disjoint and the medians are ``band`` apart."""
        disjoint = self.p80 < other.p20 or other.p80 < self.p20
        return disjoint and abs(self.median - other.median) > band * min(self.median, other.median)


@dataclass(frozen=True)
class Check:
    """The verdict that gates a row: ``error`` <= ``bound``, both relative to the largest reference value."""

    passed: bool
    error: float | None = None
    bound: float | None = None
    why: str | None = None  # what failed, where it did


@dataclass
class Timed:
    """A workload done by one variant. Times are microseconds for one call (of a ladder: one training step)."""

    kind: ClassVar[str] = "timed"

    workload: str
    variant: str
    shape: str
    dtype: str
    check: Check | None = None  # None: not run, hence not checked
    baseline: str | None = None  # the variant that a speed-up is counted from
    wall_us: Spread | None = None  # by the host's clock, launches and synchronisation included
    device_us: Spread | None = None  # by CUDA events, the queue kept full
    graph_us: Spread | None = None  # by CUDA events around a graph's replay
    kernel_us: float | None = None  # the sum of kernel time
    launches: float | None = None
    tflops: float | None = None
    gbs: float | None = None
    roofline: float | None = None  # the share of the roofline, 1.0 = all of it, by this run's ceilings
    peak_bytes: int | None = None  # device memory above what was taken before
    l2: str | None = None  # "resident": the same inputs each time; "rotated": copies that together exceed the L2 twice
    note: str | None = None
    parts: dict[str, float] | None = None  # kernel time by the kernel's name, of whole steps
    suite: str | None = None  # as the runner says
    task: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the row; one that was not run has no times and does not count."""
        return self.check is None or self.check.passed

    @property
    def best(self) -> Spread | None:
        """The time nearest to the device's own: graph replay, else events, else the wall."""
        return self.graph_us or self.device_us or self.wall_us


@dataclass
class Compiled:
    """One compiled form of one kernel on one architecture, as the compiler left it."""

    kind: ClassVar[str] = "compiled"

    op: str
    kernel: str
    variant: str
    arch: int
    problems: list[str] = field(default_factory=list)
    warps: int | None = None
    registers: int | None = None
    max_registers: int | None = None  # what the kernel's file promises
    stack_bytes: int | None = None  # stack frame and local memory of one thread
    spill_bytes: int | None = None  # spill stores and loads
    shared_bytes: int | None = None
    shared_limit_bytes: int | None = None  # what a block may ask for on this architecture
    tensor_memory_columns: int | None = None
    instructions: dict[str, int] = field(default_factory=dict)  # wgmma, mma, tcgen05, tma, async_copy, ...
    blocks_per_sm: int | None = None
    limiter: str | None = None  # the resource that keeps a further block out
    seconds: float | None = None  # compilation and inspection
    suite: str | None = None  # as the runner says
    task: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems


@dataclass
class Scored:
    """What one trained system is worth by one metric."""

    kind: ClassVar[str] = "scored"

    table: str
    system: str
    preset: str
    seed: int
    steps: int
    published_steps: int  # of the figures that it is held against
    values: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    train_seconds: float | None = None
    suite: str | None = None  # as the runner says
    task: str | None = None

    @property
    def passed(self) -> bool:
        """Nothing gates it: whatever came of the run is the result."""
        return True


Row = Timed | Compiled | Scored


def said(error: BaseException) -> str:
    """Return an error in one line: its type and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['(no text)'])[0]}"


@dataclass
class Ceilings:
    """What this machine can do, measured in the same run; ``None`` and absent keys were not measured."""

    copy_gbs: float | None = None  # bytes read and written
    tflops: dict[str, float] = field(default_factory=dict)  # by dtype: bfloat16, float16, tf32, float32
    launch_us: dict[str, float] = field(default_factory=dict)  # eager, triton, graph_node, graph_replay

    def floor_us(self, dtype: str, flops: float | None, moved: float | None) -> float | None:
        """Return the shortest time for ``flops`` operations and ``moved`` bytes; None where a ceiling is unknown."""
        floors: list[float] = []
        if flops:
            if dtype not in self.tflops:
                return None
            floors.append(flops / self.tflops[dtype] / 1e6)
        if moved:
            if self.copy_gbs is None:
                return None
            floors.append(moved / self.copy_gbs / 1e3)
        return max(floors, default=None)


@dataclass
class Record:
    """One run of one suite."""

    suite: str
    command: list[str]
    smoke: bool
    budget_s: float | None
    environment: dict[str, Any]
    ceilings: Ceilings = field(default_factory=Ceilings)
    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)  # name and why
    seconds: float = 0.0  # of all sessions
    sessions: list[dict[str, Any]] = field(default_factory=list)  # one, and one more each time that it was resumed

    @property
    def passed(self) -> bool:
        """Whether every row passed its check."""
        return all(row.passed for row in self.rows)

    def leave_out(self, name: str, why: str) -> None:
        """Say that a task gave no row, and why."""
        self.left_out.append({"name": name, "why": why})

    @property
    def device(self) -> str:
        """The GPU's name, or CPU."""
        return str(self.environment["device"])

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        body = asdict(replace(self, rows=[]))
        body["rows"] = [{"kind": row.kind, **asdict(row)} for row in self.rows]
        return {"format": FORMAT, **body}


def validate(body: dict[str, Any]) -> None:
    """Check a record against ``schema.json``; needs jsonschema."""
    import jsonschema

    schema = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(body, schema)


def write(record: Record, path: Path, checked: bool = True) -> None:
    """Write a record whole or not at all; ``checked``: validated where jsonschema is installed."""
    body = record.to_json()
    if checked and importlib.util.find_spec("jsonschema") is not None:
        validate(body)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(body, file, indent=1, allow_nan=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
