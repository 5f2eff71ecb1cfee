"""Alarms: what a person at the curves would notice, said in one line when it begins, and when it is over.

Each is judged by the whole rows of the metrics alone, so that a resumed run knows where it stood. One row may be
chance: an alarm begins with the ROWS-th row in a row beyond its threshold, and ends with the ROWS-th back beyond the
other, which lies further: what wavers between the two changes nothing. The first GRACE steps are nobody's fault.

| alarm | begins | ends |
|---|---|---|
| discriminator too strong | loss_d below 2% of what guessing costs, or norm of G's gradient below 1e-7 | 10%, 1e-6 |
| generator too strong | D(x) and D(G(z)) above 0.8 | either below 0.7 |
| collapse | diversity below 0.1 | 0.2 |

Guessing costs what logits of 0 do (2 log 2 with the original objective), or outputs of 1/2 by least squares, whose
D(x) is the output itself. A critic's loss has no such level, the logits of critics and relativistic discriminators have
none, and of an objective of the user's nobody knows: what cannot be judged is left out. Diversity is the spread of a
fake batch divided by that of a real one (fastgan.train.diversity).
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path

import torch

from fastgan.errors import require
from fastgan.objectives import OBJECTIVES, Objective
from fastgan.train.files import append, plainly, replacing
from fastgan.train.metrics import Row

ROWS, GRACE = 3, 300
ROLLBACK = "rollback"
SATURATED, UNSATURATED = 0.02, 0.10
VANISHED, ALIVE = 1e-7, 1e-6
FOOLED, WARY = 0.8, 0.7
COLLAPSED, DIVERSE = 0.1, 0.2
ADVICE = {
    "discriminator too strong": "lower its learning rate, add a penalty or noise, or set balance=auto",
    "generator too strong": "raise the discriminator's learning rate or width, or set n_critic=2",
    "collapse": "lower the generator's learning rate, or add a penalty (penalty=r1)",
}


@dataclass(frozen=True)
class Alarm:
    """One line of ``alarms.csv``: at ``step`` an ``alarm`` begins or ends (``event``), or the run was rolled back."""

    step: int
    alarm: str
    event: str
    text: str


HEAD = ",".join(field.name for field in fields(Alarm)) + "\n"


@dataclass
class _Rule:
    """``wrong`` and ``right`` judge a row; ``since`` counts the rows in a row that contradict what is ``on``."""

    alarm: str
    shows: Sequence[str]
    wrong: Callable[[Row], bool]
    right: Callable[[Row], bool]
    on: bool = False
    since: int = 0

    def turns(self, row: Row) -> bool:
        """Whether the alarm begins or ends with this row."""
        self.since = self.since + 1 if (self.right if self.on else self.wrong)(row) else 0
        if self.since < ROWS:
            return False
        self.on, self.since = not self.on, 0
        return True


class Alarms:
    """The alarms of a run, in ``raised`` and, where it has a folder, in ``alarms.csv`` there; ``aloud`` prints them.

    Without an ``objective`` there are no adversaries to judge.
    """

    def __init__(self, objective: Objective | None) -> None:
        self.raised: list[Alarm] = []
        self.out: Path | None = None
        self.aloud = False
        self._objective = objective
        self._rules = _rules(objective)

    def see(self, row: Row) -> None:
        """Judge a whole row."""
        for alarm in self._judged(row):
            self.note(alarm)

    def note(self, alarm: Alarm) -> None:
        """Keep, write and print."""
        self.raised.append(alarm)
        if self.out:
            append(self.out / "alarms.csv", _lines([alarm]), head=HEAD)
        if self.aloud and sys.stderr is not None:
            line = f"fastgan: step {alarm.step}: {alarm.alarm} {alarm.event}: {alarm.text}"
            require("tqdm.auto", why="the progress bar").tqdm.write(line, file=sys.stderr)

    def rewind(self, rows: Sequence[Row], step: int, rollbacks: int = 0) -> None:
        """Go back to ``step``: where the alarms stood after these whole rows; what was raised later is dropped.

        A rollback goes back to a step before it: only the first ``rollbacks`` had been by then.
        """
        self._rules = _rules(self._objective)
        for row in rows:
            list(self._judged(row))
        path = self.out / "alarms.csv" if self.out else None
        if path and path.exists():
            self.raised = read(path)
        known = [alarm for alarm in self.raised if alarm.step <= step]
        later = [alarm for alarm in known if alarm.alarm == ROLLBACK][rollbacks:]
        self.raised = [alarm for alarm in known if alarm not in later]
        if path and path.exists():
            with replacing(path) as temporary:
                temporary.write_text(HEAD + _lines(self.raised), encoding="utf-8", newline="")

    def _judged(self, row: Row) -> list[Alarm]:
        step = int(row["step"] or 0)
        if step < GRACE:
            return []
        turned = [rule for rule in self._rules if rule.turns(row)]
        return [Alarm(step, rule.alarm, "begins" if rule.on else "ends", _told(rule, row)) for rule in turned]


def _lines(alarms: Iterable[Alarm]) -> str:
    file = StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(astuple, alarms))  # as metrics.csv has it
    return file.getvalue()


def read(path: Path) -> list[Alarm]:
    """The alarms that a run has written; a line that a crash cut short, or that is none, is left out."""
    with plainly(path, "read"):
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")  # what no line break ends was cut
    return [alarm for alarm in map(_parsed, lines) if alarm]


def _parsed(line: str) -> Alarm | None:
    try:
        ((step, alarm, event, text),) = csv.reader([line])
        return Alarm(int(step), alarm, event, text)
    except (ValueError, csv.Error):
        return None


def _told(rule: _Rule, row: Row) -> str:
    numbers = ", ".join(f"{name} {row[name]:.3g}" for name in rule.shows if row.get(name) is not None)
    return f"{numbers}; {ADVICE[rule.alarm]}" if rule.on else numbers


def _rules(objective: Objective | None) -> list[_Rule]:
    if objective is None:
        return []
    guess = _cost_of_guessing(objective)
    names = ("loss_d", "d_real", "d_fake", "gradient_g")
    rules = [
        _Rule(
            "discriminator too strong",
            names,
            lambda row: _below(row, "loss_d", SATURATED * guess) or _below(row, "gradient_g", VANISHED),
            lambda row: not (_below(row, "loss_d", UNSATURATED * guess) or _below(row, "gradient_g", ALIVE)),
        ),
        _Rule(
            "collapse",
            ("diversity",),
            lambda row: _below(row, "diversity", COLLAPSED),
            lambda row: not _below(row, "diversity", DIVERSE),
        ),
    ]
    if _known(objective) and not objective.needs_real and objective.name != "wasserstein":
        rules.append(
            _Rule(
                "generator too strong",
                ("d_real", "d_fake", "loss_d"),
                lambda row: _above(row, "d_real", FOOLED) and _above(row, "d_fake", FOOLED),
                lambda row: not (_above(row, "d_real", WARY) and _above(row, "d_fake", WARY)),
            )
        )
    return rules


def _below(row: Row, name: str, level: float) -> bool:
    value = row.get(name)
    return value is not None and value < level


def _above(row: Row, name: str, level: float) -> bool:
    value = row.get(name)
    return value is not None and value > level


def _cost_of_guessing(objective: Objective) -> float:
    """The discriminator's loss where it only guesses; minus infinity where no loss is low by that measure."""
    if not _known(objective) or objective.name == "wasserstein":
        return -math.inf
    guess = torch.full((4,), 0.5 if objective.name == "least_squares" else 0.0)
    return float(objective.discriminator(guess, guess))


def _known(objective: Objective) -> bool:
    return OBJECTIVES.get(objective.name) is objective
