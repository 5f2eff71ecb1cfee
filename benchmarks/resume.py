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
PASSING = frozenset(("--json", "--resume", "--budget", "--jobs"))  # words of a command that change no row
GROWING = frozenset(("--seeds",))  # words whose number may have grown since: more rows beside those that are there

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
    if words(old.command) != words(record.command) or _fewer(old.command, record.command):
        made, asked = (" ".join(_without(PASSING, command)) for command in (old.command, record.command))
        raise UserError(f"--resume {path}: it was made by `{made}`, not by `{asked}`")
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
    return _without(PASSING | GROWING, command)


def _without(names: frozenset[str], command: Sequence[str]) -> list[str]:
    return [word for name, said in _options(command) if name not in names for word in said]


def _fewer(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether a number that may grow has shrunk, or stands in one command alone."""
    numbers = [{name: said[-1].partition("=")[2] or said[-1] for name, said in _options(one)} for one in (old, new)]
    pairs = [(numbers[0].get(name), numbers[1].get(name)) for name in GROWING]
    return any(before != now and not _grown(before, now) for before, now in pairs)


def _grown(before: str | None, now: str | None) -> bool:
    return bool(before and now and before.isdigit() and now.isdigit() and int(before) <= int(now))


def _options(command: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a command's words, each of ours that takes a value together with it, beside the word's name."""
    rest = iter(command)
    for word in rest:
        name, given, _ = word.partition("=")
        takes = name in PASSING | GROWING and not given
        yield name, [word, *([value] if takes and (value := next(rest, None)) is not None else [])]
