"""The tables of docs/quality.md, from the records under ``benchmarks/results/quality/``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastgan.benchmarks.quality_tables import TABLES, Table
from fastgan.benchmarks.reading import read
from fastgan.benchmarks.record import Scored

NOT_MEASURED = "not measured"


def rows_in(folder: Path) -> list[tuple[Scored, str]]:
    """Read the rows of every record in a folder, smoke forms left out, each with the record that it comes from."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = read(path)
        where = f"`{path.name}`: {record.device}, {str(record.environment['date'])[:10]}"
        found += [(row, where) for row in record.rows if isinstance(row, Scored) and not record.smoke]
    return found


def page(folder: Path) -> Iterator[str]:
    """Yield the marked part of the page."""
    known = rows_in(folder)
    for table in TABLES.values():
        mine = [(row, where) for row, where in known if row.table == table.name]
        yield f"### {table.title}"
        yield ""
        yield from markdown(table, [row for row, _ in mine])
        yield ""
        if mine:
            yield from protocols([row for row, _ in mine])
            yield f"From {'; '.join(dict.fromkeys(where for _, where in mine))}."
        yield f"In brackets: {table.source}, {table.steps:,} steps."
        yield ""


def protocols(rows: Sequence[Scored]) -> Iterator[str]:
    """Yield how it was measured, a line for each protocol, with its systems where there are several."""
    systems: dict[str, list[str]] = {}
    for row in rows:
        systems.setdefault(row.protocol, []).append(row.system)
    for protocol, names in systems.items():
        whose = f"{', '.join(dict.fromkeys(names))}: " if len(systems) > 1 else ""
        yield f"{whose}{protocol}."


def markdown(table: Table, rows: Sequence[Scored]) -> Iterator[str]:
    """Yield one table: a row for each system and number of steps, the published figure behind ours in brackets."""
    yield "| " + " | ".join(["system", "steps", "runs", *table.values]) + " |"
    yield "|---|" + "---:|" * (2 + len(table.values))
    for system in table.systems:
        by_steps: dict[int, list[Scored]] = {}
        for row in rows:
            if row.system == system.name:
                by_steps.setdefault(row.steps, []).append(row)
        for steps, mine in sorted(by_steps.items()) or [(0, [])]:
            cells = [system.name, f"{steps:,}" if mine else "", str(len(mine) or "")]
            for name in table.values:
                published = f" ({system.published[name]})" if name in system.published else ""
                cells.append(spread(mine, name) + published)
            yield "| " + " | ".join(cells) + " |"


def spread(rows: Sequence[Scored], name: str) -> str:
    """Return mean and standard deviation over runs of one value, and of how many runs where it is not that of all."""
    values = [row.values[name] for row in rows if name in row.values]
    if not values:
        return NOT_MEASURED
    mean = statistics.fmean(values)
    digits = 2 if abs(mean) < 3 else 1
    some = f", {len(values)} runs" if len(values) < len(rows) else ""
    if len(values) == 1:
        return f"{mean:.{digits}f}{some}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}{some}"


def lines(rows: Sequence[Scored]) -> Iterable[str]:
    """Yield the tables of a record's rows."""
    for table in TABLES.values():
        if mine := [row for row in rows if row.table == table.name]:
            yield table.title
            yield from markdown(table, mine)
