"""Predictions that were written down, beside what was measured since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastgan.benchmarks.findings import Findings, steps
from fastgan.errors import UserError

NAMES = ("h200", "h100", "a100", "rtx4090")
FORMAT = "fastgan-prediction/1"
PREDICTED = Path(__file__).resolve().parent / "predicted"
VARIANTS = {"triton": "fastgan triton", "auto": "fastgan auto"}  # of a backend
NONE = "not measured"


@dataclass(frozen=True)
class Forecast:
    """One training step on one card, predicted: microseconds, as a graph's replay would take them."""

    gpu: str  # h200, h100, a100, rtx4090
    workload: str
    batch: int
    backend: str
    launches: int
    gflop: float
    gbytes: float
    floor_us: float  # by the card's rates alone
    predicted_us: float
    lines: list[dict[str, Any]] = field(default_factory=list)  # launches of a kind, the longest first
    origin: str = ""  # when and by what


def load(folder: Path) -> list[Forecast]:
    """Return the predictions of a folder's files, by card and workload."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body["format"] != FORMAT:
                raise ValueError(f"its format is {body['format']!r}")
            if body["gpu"] not in NAMES:
                raise ValueError(f"its card is {body['gpu']!r}")
            origin = f"{str(body['date'])[:10]}, commit {str(body['commit'])[:10]}, Triton {body['triton']}"
            found += [Forecast(gpu=body["gpu"], origin=origin, **entry) for entry in body["steps"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no prediction: {error}; `fastgan bench predict --json` writes one") from error
    return sorted(found, key=lambda one: NAMES.index(one.gpu))


def dump(gpu: str, entries: Sequence[Forecast], **about: Any) -> dict[str, Any]:
    """Return a file's content."""
    lines = [
        {name: value for name, value in asdict(entry).items() if name not in ("gpu", "origin")} for entry in entries
    ]
    return {"format": FORMAT, "gpu": gpu, **about, "steps": lines}


def beside(known: Sequence[Forecast], found: Sequence[Findings]) -> Iterator[str]:
    """Yield the predictions as a table, with the replay that was measured and the prediction's error."""
    origins = "; ".join(dict.fromkeys(one.origin for one in known if one.origin)) or "none yet"
    yield f"Predictions, which rest on [stated assumptions](#predictions), not on any measurement ({origins})."
    yield ""
    yield "| card | step | batch | backend | launches | floor us | predicted us | measured us | error |"
    yield "|---|---|---|---|---:|---:|---:|---:|---:|"
    for one in known:
        us = measured(one, found)
        error = NONE if us is None else f"{one.predicted_us / us - 1:+.0%}"
        figures = [f"{one.floor_us:,.0f}", f"{one.predicted_us:,.0f}", NONE if us is None else f"{us:,.0f}", error]
        cells = [one.gpu, f"`{one.workload}`", str(one.batch), f"`{one.backend}`", str(one.launches), *figures]
        yield f"| {' | '.join(cells)} |"


def measured(one: Forecast, found: Sequence[Findings]) -> float | None:
    """Return the replay of that step on a device of that name, in microseconds."""
    for mine in found:
        if one.gpu in mine.device.lower().replace(" ", ""):
            for step in steps(mine):
                row = step.row(VARIANTS[one.backend])
                if (step.workload, step.batch) == (one.workload, one.batch) and row is not None and row.graph_us:
                    return row.graph_us.median
    return None
