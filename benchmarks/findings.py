"""What the records of a folder say together, by device: the newest right row of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastgan.benchmarks import ladder
from fastgan.benchmarks.reading import read
from fastgan.benchmarks.record import Ceilings, Record, Timed
from fastgan.benchmarks.speedups import CLOCKS, OURS
from fastgan.benchmarks.step_workloads import workloads

RESULTS = Path(__file__).resolve().parent / "results"
EAGER = "1 eager"
FILLERS = ("ladder",)  # whose rows count only where no other suite has them: they did not race against ours

Kind = tuple[str, str, str, str]


@dataclass
class Findings:
    """Everything that is known of one device."""

    device: str
    files: list[tuple[str, Record]] = field(default_factory=list)
    rows: dict[Kind, Timed] = field(default_factory=dict)  # by workload, variant, shape and dtype

    @property
    def ceilings(self) -> Ceilings:
        """The newest."""
        known = [record.ceilings for _, record in self.files if record.ceilings.copy_gbs is not None]
        return known[-1] if known else Ceilings()

    @property
    def slug(self) -> str:
        """The device in a file's name."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.device.lower()).split())

    def of(self, suite: str) -> list[Timed]:
        """Return the rows of a suite, in the order in which it measured them."""
        return [row for row in self.rows.values() if row.suite == suite]


@dataclass(frozen=True)
class Step:
    """One training step at one batch: a row for each variant that was measured."""

    workload: str
    batch: int
    published: bool  # whether that is the batch of the published code
    rows: dict[str, Timed] = field(default_factory=dict)

    def row(self, variant: str) -> Timed | None:
        """Return a variant's row where it has a time."""
        found = self.rows.get(variant)
        return found if found is not None and found.passed and found.wall_us is not None else None

    @property
    def best(self) -> Timed | None:
        """The fastest of rungs 2 to 5."""
        return ladder.best([row for name, row in self.rows.items() if name not in OURS])


def collect(folder: Path) -> list[Findings]:
    """Read all records of a folder, smoke forms left out; GPUs come before a CPU."""
    records = [(path.name, read(path)) for path in sorted(folder.glob("*.json"))]
    records = [entry for entry in records if not entry[1].smoke]
    records.sort(key=lambda entry: str(entry[1].environment["date"]))
    found: dict[str, Findings] = {}
    for name, record in records:
        mine = found.setdefault(record.device, Findings(record.device))
        mine.files.append((name, record))
    for mine in found.values():
        fill(mine)
    return sorted(found.values(), key=lambda one: (one.device == "CPU", one.device))


def fill(mine: Findings) -> None:
    """Take the rows of the records, oldest first: what was not run displaces nothing."""
    rows = [row for _, record in mine.files for row in record.rows if isinstance(row, Timed) and row.check is not None]
    for filling in (True, False):
        for row in rows:
            if (row.suite in FILLERS) == filling:
                mine.rows[row.workload, row.variant, row.shape, row.dtype] = row


def steps(mine: Findings | None) -> list[Step]:
    """Return the training steps: those of published batches whether measured or not, others where they were."""
    found: dict[tuple[str, int], Step] = {}
    known = {workload.name: workload for workload in workloads()}
    for workload in known.values():
        found[workload.name, workload.batch] = Step(workload.name, workload.batch, True)
    for (name, variant, shape, _), row in (mine.rows if mine else {}).items():
        if name in known and shape.startswith("batch "):
            batch = int(shape.removeprefix("batch "))
            found.setdefault((name, batch), Step(name, batch, False)).rows[variant] = row
    order = {name: at for at, name in enumerate(known)}
    return sorted(found.values(), key=lambda step: (order[step.workload], step.batch))


def works(rows: Sequence[Timed]) -> dict[tuple[str, str, str], dict[str, Timed]]:
    """Return the rows of each piece of work, by variant."""
    found: dict[tuple[str, str, str], dict[str, Timed]] = {}
    for row in rows:
        found.setdefault((row.workload, row.shape, row.dtype), {})[row.variant] = row
    return found


def clock_of(rows: Sequence[Timed]) -> str:
    """Return the clock nearest to the device that timed all of them; else the wall."""
    return next((clock for clock in CLOCKS if all(getattr(row, clock) is not None for row in rows)), CLOCKS[-1])
