"""A profile as rows, by phase and by layer, with shares of the roofline, and the largest losses in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fastgan.benchmarks.profile_ranges import STEP, Range
from fastgan.benchmarks.profile_rates import floor_us
from fastgan.benchmarks.profile_step import Profile, usual
from fastgan.benchmarks.profile_trace import Piece

FORMAT = "fastgan-profile/1"
PHASES = (
    *("data", "G forward", "D forward", "loss", "penalty", "backward", "D backward", "G backward"),
    *("optimisers", "metrics", STEP.phase),
)
LOSSES = 3
MOSTLY = 0.5  # from this share on, something is what a time is mostly made of


@dataclass
class Row:
    """What a phase, or a layer in one direction, does in a step; times in microseconds."""

    phase: str
    layer: str = ""
    what: str = ""
    us: float = 0.0
    share: float = 0.0  # of the step
    launches: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor_us: float = 0.0  # what its launches would take at the rates, one after the other
    bound: str = ""  # what most of the floor is made of: "matrix rate" or "copy bandwidth"
    backend: str = ""
    why: str = ""
    names: dict[str, float] = field(default_factory=dict)  # of its launches

    @property
    def roofline(self) -> float | None:
        """The share of the roofline: 1 is as fast as the rates allow. None where nothing was counted."""
        return self.floor_us / self.us if self.floor_us and self.us else None

    @property
    def name(self) -> str:
        """How it is called."""
        return f"{self.layer} {self.what}".strip() or self.phase

    @property
    def lost_us(self) -> float:
        """Time above the floor."""
        return max(0.0, self.us - self.floor_us)


@dataclass
class Report:
    """A profile as it is shown: the same numbers on the screen and in the file."""

    profile: Profile
    phases: list[Row]
    layers: list[Row]  # longest first
    total_us: float  # of a step: of the host, or of all its kernels

    @property
    def losses(self) -> list[str]:
        """The largest losses, in words."""
        worst = sorted(self.layers, key=lambda row: -row.lost_us)[:LOSSES]
        return [said(row, self.profile) for row in worst]


def report(profile: Profile) -> Report:
    """Sum a profile up."""
    layers = by_range(profile)
    total = sum(row.us for row in layers)
    phases = [summed(phase, own) for phase in PHASES if (own := [row for row in layers if row.phase == phase])]
    for row in (*layers, *phases):
        row.share = row.us / total if total else 0.0
    return Report(profile, phases, sorted(layers, key=lambda row: -row.us), total)


def by_range(profile: Profile) -> list[Row]:
    """Return a row for each range that took time or launched something."""
    found: dict[Range, Row] = {}

    def row_of(range: Range) -> Row:
        return found.setdefault(range, Row(*range))

    pieces: defaultdict[Range, list[Piece]] = defaultdict(list)
    for piece in profile.pieces:
        pieces[piece.range].append(piece)
    for range, own in pieces.items():
        row = row_of(range)
        row.us = usual(own, profile.kinds, every=profile.on_gpu)
        row.launches = len(own) / profile.steps if profile.on_gpu else 0.0
    floors: defaultdict[Range, Counter[str]] = defaultdict(Counter)
    for counts, weight in profile.counts:
        for range, counted in counts.items():
            row = row_of(range)
            row.flops += weight * counted.flops
            row.bytes += weight * counted.bytes
            row.launches += 0.0 if profile.on_gpu else weight * counted.launches
            for name, times in counted.names.items():
                row.names[name] = row.names.get(name, 0.0) + weight * times
            for dtype, flops, moved in counted.pieces:
                us, bound = floor_us(profile.rates, dtype, flops, moved)
                floors[range][bound] += weight * us  # type: ignore[assignment]
            row.why = row.why or ", ".join(counted.choices)
    for range, row in found.items():
        row.floor_us = float(sum(floors[range].values()))
        row.bound = max(floors[range], key=lambda bound: floors[range][bound], default="")
        told = row.why
        row.backend, row.why = taken(row, profile)
        row.why = told or row.why
    return [row for row in found.values() if row.us or row.launches]


def taken(row: Row, profile: Profile) -> tuple[str, str]:
    """Return what made a row's launches, and why."""
    ours = [name for name in row.names if not name.startswith("aten.")]
    if not row.names:
        return ("", "")
    if ours:
        return "triton" if len(ours) == len(row.names) else "triton and PyTorch", ""
    if not row.what:  # no layer of the networks
        return "PyTorch", ""
    from fastgan.ops import backend

    choice = backend.choose("chain", profile.device, torch.float32)
    if choice.backend == "reference":
        return "reference", choice.why
    return "PyTorch", "no Chain took it in"


def summed(name: str, rows: Iterable[Row]) -> Row:
    """Add rows up to a phase."""
    own = list(rows)
    total = Row(name)
    for key in ("us", "launches", "flops", "bytes", "floor_us"):
        setattr(total, key, sum(getattr(row, key) for row in own))
    bounds: Counter[str] = Counter()
    for row in own:
        bounds[row.bound] += row.floor_us  # type: ignore[assignment]
    total.bound = max(bounds, key=lambda bound: bounds[bound], default="")
    kinds = {row.backend for row in own if row.backend}
    total.backend = ", ".join(sorted(kinds))
    return total


def said(row: Row, profile: Profile) -> str:
    """Return what a row loses, and what the numbers say of it."""
    words = [f"{row.name}: {row.share:.0%} of the step"]
    if row.roofline is not None:
        words.append(f"{row.roofline:.0%} of the {row.bound}")
    words.append(cause(row, profile))
    return ", ".join(words)


def cause(row: Row, profile: Profile) -> str:
    """Return what a row's time is mostly made of, as far as its numbers tell."""
    launch_us = profile.rates.launch_us.get("eager")
    if not row.launches:
        return "no operator in it: Python"
    few = "launch" if row.launches == 1 else "launches"
    each = f"{row.launches:.3g} {few} of {duration(row.us / row.launches)}"
    if (row.roofline or 0.0) >= MOSTLY:
        return f"bound by the {row.bound}"
    if not profile.on_gpu and launch_us and row.launches * launch_us >= MOSTLY * row.us:
        return f"bound by launches: {each}, an empty one takes {launch_us:.3g} us"
    beside = f", an empty one takes {launch_us:.3g} us" if launch_us and not profile.on_gpu else ""
    return f"bound by neither rate: {each}{beside}"


def duration(us: float) -> str:
    """Format a time."""
    return f"{us:.3g} us" if us < 999.5 else f"{us / 1e3:.4g} ms"


def body(report: Report, about: dict[str, Any]) -> dict[str, Any]:
    """Return a report as plain JSON values, ``about`` what was profiled first."""
    profile = report.profile
    return {
        "format": FORMAT,
        **about,
        "steps": profile.steps,
        "step": {
            "time": "kernels" if profile.on_gpu else "host",
            "us": report.total_us,
            "plain_us": profile.plain_us,
            "profiled_us": profile.profiled_us,
            "profiler_us": profile.own_us,
            "graph": profile.replay or None,
        },
        "rates": {"from": "measured in this run", **asdict(profile.rates)},
        "losses": report.losses,
        "phases": [plain(row) for row in report.phases],
        "layers": [plain(row) for row in report.layers],
        "fused": {layer: list(members) for layer, members in profile.fused.items() if members},
    }


def plain(row: Row) -> dict[str, Any]:
    """Return a row as plain JSON values."""
    return {**asdict(row), "roofline": row.roofline}
