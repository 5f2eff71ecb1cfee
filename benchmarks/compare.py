"""``fastgan bench compare A B``: the same rows of two records side by side, and what became slower beyond noise.

Rows are the same by suite, workload, variant, shape and dtype. Their times are those of the clock nearest to the device
that timed both. B is slower (or faster) where the ranges from the 20th to the 80th percentile are disjoint and the
medians further apart than ``--band``. A row that was right in A and is wrong in B is a regression as well, and so is a
compiled variant that has new problems. What trained systems are worth may differ in either direction: it is shown only.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgan.benchmarks.reading import read
from fastgan.benchmarks.record import Compiled, Record, Row, Scored, Spread, Timed
from fastgan.benchmarks.speedups import CLOCKS
from fastgan.benchmarks.table import enumerate_names, spread, table
from fastgan.errors import UserError

BAND = 0.1
SLOWER, FASTER, SAME, BROKEN, DIFFERS = "SLOWER", "faster", "the same", "BROKEN", "differs"
Identity = tuple[object, ...]


@dataclass(frozen=True)
class Pair:
    """A row of A and the same row of B, by one clock."""

    row: Row
    clock: str = ""
    before: Spread | None = None
    after: Spread | None = None
    verdict: str = SAME
    why: str = ""

    @property
    def regression(self) -> bool:
        """Whether B is worse."""
        return self.verdict in (SLOWER, BROKEN)

    @property
    def times(self) -> float:
        """How many times as long B takes."""
        return self.after.median / self.before.median if self.before and self.after else float("inf")


def identities(record: Record) -> dict[Identity, Row]:
    """Return rows by what makes them the same; a second one of the same kind is told apart by its number."""
    seen: Counter[Identity] = Counter()
    found: dict[Identity, Row] = {}
    for row in record.rows:
        if isinstance(row, Timed):
            kind: Identity = (row.suite, row.workload, row.variant, row.shape, row.dtype)
        elif isinstance(row, Scored):
            kind = (row.suite, row.table, row.system, str(row.steps), row.seed)
        else:
            kind = (row.suite, row.op, row.kernel, row.variant, row.arch)
        seen[kind] += 1
        found[(*kind, seen[kind])] = row
    return found


def pairs(a: Record, b: Record, band: float = BAND) -> Iterator[Pair]:
    """Yield the rows that both have, in B's order."""
    known = identities(a)
    for identity, row in identities(b).items():
        if identity in known and (pair := paired(known[identity], row, band)) is not None:
            yield pair


def paired(before: Row, after: Row, band: float) -> Pair | None:
    """Return the verdict on one row; None where there is nothing to compare."""
    if isinstance(before, Timed) and isinstance(after, Timed):
        if after.check is not None and not after.check.passed:
            return Pair(after, verdict=BROKEN, why=after.check.why or "") if before.passed and before.check else None
        for clock in CLOCKS:
            one, other = getattr(before, clock), getattr(after, clock)
            if one is not None and other is not None:
                slower = other.median > one.median
                verdict = (SLOWER if slower else FASTER) if one.differs(other, band) else SAME
                return Pair(after, clock.removesuffix("_us"), one, other, verdict)
    if isinstance(before, Compiled) and isinstance(after, Compiled):
        new = [problem for problem in after.problems if problem not in before.problems]
        return Pair(after, verdict=BROKEN if new else SAME, why="; ".join(new))
    if isinstance(before, Scored) and isinstance(after, Scored):
        changed = [
            f"{name} {before.values[name]:.4g} -> {value:.4g}"
            for name, value in after.values.items()
            if before.values.get(name, value) != value
        ]
        return Pair(after, verdict=DIFFERS if changed else SAME, why=", ".join(changed))
    return None


def missing(a: Record, b: Record) -> list[str]:
    """Return the measured rows of A that B has not measured."""
    theirs = {identity for identity, row in identities(b).items() if measured(row)}
    return [" ".join(named(row)) for identity, row in identities(a).items() if measured(row) and identity not in theirs]


def measured(row: Row) -> bool:
    """Whether a row says something."""
    return row.check is not None if isinstance(row, Timed) else True


def named(row: Row) -> tuple[str, ...]:
    """Return what a reader tells a row by."""
    if isinstance(row, Timed):
        return row.workload, row.variant, row.shape, row.dtype
    if isinstance(row, Scored):
        return row.table, row.system, f"{row.steps} steps", f"seed {row.seed}"
    return row.kernel, row.variant, f"sm_{row.arch}", ""


COLUMNS = {
    "workload": lambda pair: named(pair.row)[0],
    "variant": lambda pair: named(pair.row)[1],
    "shape": lambda pair: named(pair.row)[2],
    "dtype": lambda pair: named(pair.row)[3],
    "clock": lambda pair: pair.clock,
    "A us": lambda pair: spread(pair.before),
    "B us": lambda pair: spread(pair.after),
    "B/A": lambda pair: f"{pair.times:.2f}x" if pair.before else "",
    "verdict": lambda pair: f"{pair.verdict} {pair.why}".strip(),
}


def main(arguments: Sequence[str]) -> int:
    """Compare two records. Returns 0, or 1 where B is worse beyond noise; mistakes are raised."""
    options = parse(arguments)
    a, b = read(options.a), read(options.b)
    if a.device != b.device and not options.across:
        raise UserError(f"A was measured on {a.device}, B on {b.device}: --across compares them all the same")
    found = list(pairs(a, b, options.band))
    if not found:
        raise UserError(f"{options.a} and {options.b} have no row in common")
    shown = found if options.all else [pair for pair in found if pair.verdict != SAME]
    ordered = sorted(shown, key=lambda pair: -pair.times)
    for name, record, path in (("A", a, options.a), ("B", b, options.b)):
        print(f"{name}: {path}, {described(record)}")
    if ordered:
        print(table(COLUMNS, ordered))
    counts = Counter(pair.verdict for pair in found)
    wrong = [pair for pair in found if pair.regression]
    print(
        f"{len(found)} rows in common: "
        + ", ".join(
            f"{counts[name]} {name}" for name in (SLOWER, BROKEN, FASTER, SAME, *([DIFFERS] * (DIFFERS in counts)))
        )
    )
    if absent := missing(a, b):
        print(f"{len(absent)} rows of A were not measured in B: {enumerate_names(absent, 4)}")
    if a.smoke or b.smoke:
        print("a smoke form is among them, whose times say nothing")
    return 1 if wrong else 0


def described(record: Record) -> str:
    """Return where a record comes from, in a line."""
    where = record.environment
    commit = (
        f"commit {where['commit'][:10]}{' and changes' if where['dirty'] else ''}" if where["commit"] else "no commit"
    )
    return f"{record.suite} on {record.device}, torch {where['torch']}, {commit}, {where['date']}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command's own words."""
    from fastgan.benchmarks.command import Parser

    parser = Parser(prog="fastgan bench compare", description="Find what became slower from one record to another.")
    parser.add_argument("a", type=Path, metavar="A", help="the record before, as --json writes it")
    parser.add_argument("b", type=Path, metavar="B", help="the record after")
    parser.add_argument("--band", type=float, default=BAND, help="medians this far apart may be noise (0.1)")
    parser.add_argument("--all", action="store_true", help="show rows that are the same as well")
    parser.add_argument("--across", action="store_true", help="compare records of different devices")
    options = parser.parse_args(arguments)
    if not 0 <= options.band < float("inf"):
        raise UserError("--band is a share of the median, 0 or more")
    return options
