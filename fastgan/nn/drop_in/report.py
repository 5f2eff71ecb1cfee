"""What a conversion did and what it left alone, as a table for people."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastgan.nn.drop_in import program
from fastgan.ops.backend import backend


@dataclass(frozen=True)
class Entry:
    """One line of a report: where, what it is, and why it was replaced or kept."""

    path: str
    what: str
    why: str


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`fastgan.convert` did. ``print(report)`` shows it as a table.

    Attributes:
        replaced: groups of layers that go together now, and layers that run alone.
        kept: modules that stay as they were, with the reason.
    """

    module: nn.Module = field(repr=False)
    replaced: tuple[Entry, ...]
    kept: tuple[Entry, ...]

    def covered(self, *inputs: Any, **more: Any) -> float:
        """Return the share, 0 to 1, of a forward pass's matrix and convolution FLOPs that run in what was replaced.

        Runs the module once on the reference, without gradients; buffers and the random state stay as they were.
        Inputs and module may be on the ``meta`` device, where nothing is computed.
        """
        tally = program.Tally()
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        devices = sorted({b.get_device() for b in self.module.parameters() if b.is_cuda})
        program.tally, former = tally, program.tally
        try:
            with torch.no_grad(), torch.random.fork_rng(devices), backend("reference"), tally.counter:
                self.module(*inputs, **more)
        finally:
            program.tally = former
            for buffer, value in buffers:
                with torch.no_grad():
                    buffer.copy_(value)
        total = tally.counter.get_total_flops()
        return tally.covered / total if total else 0.0

    def __str__(self) -> str:
        parts = [_table("replaced", self.replaced), _table("kept as it was", self.kept)]
        return "\n\n".join(part for part in parts if part) or "nothing here is a layer that fastgan replaces"


def _table(title: str, entries: tuple[Entry, ...]) -> str:
    """Lay entries out, those in one row whose paths differ by numbers or depth, and what is long in several lines."""
    if not entries:
        return ""
    count: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        shape = re.sub(r"((?:\.[^.]+)+?)\1+", r"\1...", re.sub(r"\d+", "*", entry.path))
        count.setdefault((shape, entry.what, entry.why), []).append(entry.path)
    rows = []
    for (shape, what, why), paths in count.items():
        path = (paths[0] or "(itself)") if len(paths) == 1 else f"{shape} ({len(paths)})"
        first, *rest = what.split(", ")
        rows += [(path, first, why), *(("", part, "") for part in rest)]
    wide = [max(len(row[at]) for row in rows) for at in (0, 1)]
    lines = ("  ".join([path.ljust(wide[0]), what.ljust(wide[1]), why]).rstrip() for path, what, why in rows)
    return "\n".join([f"{title}: {len(entries)}", *(f"  {line}" for line in lines)])
