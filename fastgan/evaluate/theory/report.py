"""What was found out about claims: lines for a terminal, plain data, a picture of each, a page that shows them all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgan.errors import require
from fastgan.evaluate.theory.claim import Claim, Measured

WIDTH, HEIGHT = 5.5, 4.0  # of a panel, in inches
SIGNS = {"equals": "", "at_least": "at least ", "at_most": "at most "}


@dataclass(frozen=True)
class Finding:
    """A claim that was checked, or why it could not be."""

    name: str
    claim: Claim | None
    seconds: float
    why_not: str = ""

    @property
    def verdict(self) -> str:
        """``holds``, ``FAILS`` or ``not checked``."""
        return "not checked" if self.claim is None else "holds" if self.claim.holds else "FAILS"


def lines(finding: Finding) -> str:
    """A finding as a paragraph for a terminal: the statement, its source, and each number beside what is expected."""
    title = f"{finding.verdict}: {finding.name} ({finding.seconds:.1f} s)"
    if finding.claim is None:
        return f"{title}\n  {finding.why_not}\n"
    width = max(len(number.what) for number in finding.claim.measured)
    numbers = [f"    {_row(number, width)}".rstrip() for number in finding.claim.measured]
    return "\n".join([title, f"  {prose(finding.claim)}", f"  [{finding.claim.source}]", *numbers, ""])


def prose(claim: Claim) -> str:
    """The statement of a claim in one line."""
    return " ".join(claim.statement.split())


def expectation(number: Measured) -> str:
    """What the theory says of a number: ``-0.5 +- 0.03``, ``at most 1``; nothing where it says nothing."""
    if number.expected is None:
        return ""
    slack = f" +- {number.tolerance:g}" if number.tolerance else ""
    return f"{SIGNS[number.relation]}{number.expected:.6g}{slack}"


def data(finding: Finding) -> dict[str, Any]:
    """A finding as plain values for JSON, which has no word for infinity: those are text."""
    claim = finding.claim
    plain: dict[str, Any] = {"name": finding.name, "verdict": finding.verdict, "seconds": round(finding.seconds, 3)}
    if claim is None:
        return {**plain, "why_not": finding.why_not}
    numbers = [
        {
            "what": number.what,
            "value": number.value if math.isfinite(number.value) else str(number.value),
            "relation": number.relation,
            "expected": number.expected,
            "tolerance": number.tolerance,
            "holds": number.holds,
        }
        for number in claim.measured
    ]
    return {**plain, "statement": prose(claim), "source": claim.source, "measured": numbers}


def picture(claim: Claim) -> Any:
    """A claim drawn: a matplotlib figure; None where there is nothing to see. Raises UserError without matplotlib."""
    if claim.draw is None:
        return None
    figures = require("matplotlib.figure", why="drawing a claim")
    size = (WIDTH * claim.panels, HEIGHT)
    figure = figures.Figure(figsize=size, dpi=100, layout="constrained")  # no pyplot: no window, no global state
    axes = figure.subplots(1, claim.panels, squeeze=False)[0]
    claim.draw(list(axes))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
        if axis.get_legend():
            axis.get_legend().set_frame_on(False)
    return figure


def page(findings: Sequence[Finding]) -> str:
    """All findings as one Markdown page, beside whose file the pictures ``NAME.png`` lie."""
    parts = ["# The theory, checked", summary(findings)]
    for finding in findings:
        parts.append(f"## {finding.name}: {finding.verdict}")
        if finding.claim is None:
            parts.append(finding.why_not)
            continue
        parts += [_plain(prose(finding.claim)), f"*{_plain(finding.claim.source)}*", _table(finding.claim)]
        if finding.claim.draw is not None:
            parts.append(f"![{finding.name}]({finding.name}.png)")
    return "\n\n".join(parts) + "\n"


def summary(findings: Sequence[Finding]) -> str:
    """How many claims hold, in a line; those that do not are named."""
    verdicts = [finding.verdict for finding in findings]
    text = f"{verdicts.count('holds')} of {len(findings)} claims hold"
    for verdict in ("FAILS", "not checked"):
        names = [finding.name for finding in findings if finding.verdict == verdict]
        text += f"; {verdict}: {', '.join(names)}" if names else ""
    return text


def _row(number: Measured, width: int) -> str:
    return f"{'ok' if number.holds else 'NO'}  {number.what:{width}}  {number.value:<12.6g} {expectation(number)}"


def _table(claim: Claim) -> str:
    rows = ["| | measured | expected | |", "|---|---|---|---|"]
    for number in claim.measured:
        verdict = "yes" if number.holds else "**no**"
        rows.append(f"| {_plain(number.what)} | {number.value:.6g} | {expectation(number)} | {verdict} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Text in which Markdown sees no signs of its own."""
    return re.sub(r"([*_|])", r"\\\1", text)
