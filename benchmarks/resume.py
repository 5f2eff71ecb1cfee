"""Goes on with a run that was stopped: rows that the same code has measured on the same machine are not taken again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgan.benchmarks.reading import read
from fastgan.benchmarks.record import Ceilings, Record, Row
from fastgan.errors import UserError

SAME = ("device", "capability", "driver", "cpu", "threads", "torch", "triton", "cuda", "python", "code")
PASSING = {"--json": 1, "--resume": 1, "--budget": 1, "--jobs": 1}  # words of a command that change no row

Key = tuple[str | None, str | None]  # suite and task


@dataclass
class Former:
    """What earlier sessions have left."""

    rows: dict[Key, list[Row]] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def former(path: Path, record: Record) -> Former:
    """Return what ``path`` holds for the run that ``record`` begins; a record of another run is refused in a line."""
    old = read(path)
    if (theirs := words(old.command)) != (ours := words(record.command)):
        raise UserError(f"--resume {path}: it was made by `{' '.join(theirs)}`, not by `{' '.join(ours)}`")
    for name in SAME:
        if old.environment[name] != record.environment[name]:
            raise UserError(
                f"--resume {path}: its {name} was {old.environment[name]}, here it is {record.environment[name]}:"
                " begin anew with --json"
            )
    found = Former(ceilings=old.ceilings, sessions=old.sessions, seconds=old.seconds)
    again = {entry["name"] for entry in old.left_out}  # what the budget has cut short is measured as a whole
    for row in old.rows:
        label = row.task if row.suite == old.suite else f"{row.suite}: {row.task}"
        if label not in again:
            found.rows.setdefault((row.suite, row.task), []).append(row)
    return found


def ceilings(found: Former, wanted: Sequence[str]) -> list[Row] | None:
    """Return the rows of the ceilings where all that are wanted were measured, and None where they were not."""
    keys = [("ceilings", name) for name in wanted]
    if found.ceilings is None or not all(key in found.rows for key in keys):
        return None
    return [row for key in keys for row in found.rows[key]]


def words(command: Sequence[str]) -> list[str]:
    """Return a command without what may differ between sessions."""
    return list(_lasting(iter(command)))


def _lasting(command: Iterator[str]) -> Iterator[str]:
    for word in command:
        name, given, _ = word.partition("=")
        if name not in PASSING:
            yield word
        elif not given:
            next(command, None)
