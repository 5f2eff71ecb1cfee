"""Where an iteration in one launch was measured to be faster than a replayed graph: a small table for each card.

    {"format": "fastgan-one-launch/1", "gpu": "nvidia-h200",
     "entries": [{"weights": 3000000, "batch": 64, "passes": 2, "members": 0, "us": ..., "graph_us": ...}]}

``python -m fastgan.benchmarks.mlp_step_measure`` writes it into the cache (FASTGAN_CACHE). A training takes the entry
whose weights and batch are nearest, within a factor of 2 each; ``members`` 0 is one GAN on the whole grid.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

FORMAT = "fastgan-one-launch/1"
NEAR = 1.0  # factors of 2
MEASURE = "python -m fastgan.benchmarks.mlp_step_measure measures"


class Size(NamedTuple):
    """What an iteration's time depends on."""

    weights: int  # of both networks
    batch: int
    passes: int  # through the generator
    members: int = 0


@dataclass(frozen=True)
class Entry:
    """What was measured for a size: microseconds an iteration by either way."""

    weights: int
    batch: int
    passes: int
    members: int
    us: float
    graph_us: float


def faster(device: torch.device, size: Size) -> tuple[bool, str]:
    """Return whether one launch was measured to be the faster way on a device, and what to say of it."""
    if device.type != "cuda":
        return False, "it needs a GPU"
    name = torch.cuda.get_device_name(device)
    entry = nearest(read(name), size)
    if entry is None:
        return False, f"not measured on {name}: {MEASURE}"
    return entry.us < entry.graph_us, f"measured on {name}: {entry.us:.1f} us, a replayed graph {entry.graph_us:.1f} us"


def told(gpu: str) -> str:
    """Return in words what was measured on a card."""
    entries = read(gpu)
    if not entries:
        return f"not taken by one_launch=auto: not measured: {MEASURE}"
    ahead = sum(entry.us < entry.graph_us for entry in entries)
    return f"taken by one_launch=auto where measured to be faster: {ahead} of {len(entries)} sizes in {place(gpu)}"


def nearest(entries: Sequence[Entry], size: Size) -> Entry | None:
    """Return the entry that tells of a size; None where none is near enough."""

    def apart(entry: Entry) -> float:
        pairs = (entry.weights, size.weights), (entry.batch, size.batch), (max(1, entry.members), max(1, size.members))
        return max(abs(math.log2(one / other)) for one, other in pairs)

    alike = [e for e in entries if e.passes == size.passes and bool(e.members) == bool(size.members)]
    found = min(alike, key=apart, default=None)
    return found if found is not None and apart(found) <= NEAR else None


def place(gpu: str) -> Path:
    """Return where a card's table lies, by the card's name."""
    from fastgan.kernels import problem, tables

    slug = problem.slug(gpu)
    return tables.local_path(slug).parents[1] / "one_launch" / f"{slug}.json"


def read(gpu: str) -> list[Entry]:
    """Return a card's entries; none where there is no table, or one of another form."""
    try:
        body = json.loads(place(gpu).read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            return []
        entries = [Entry(**entry) for entry in body["entries"]]
        return [e for e in entries if e.us > 0 and e.graph_us > 0 and e.weights > 0 and e.batch > 0]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write(gpu: str, entries: Sequence[Entry]) -> Path:
    """Put entries into a card's table, in the place of those of the same sizes."""
    own = {(e.weights, e.batch, e.passes, e.members): e for e in [*read(gpu), *entries]}
    path = place(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"format": FORMAT, "gpu": path.stem, "entries": [asdict(entry) for entry in own.values()]}
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return unfinished.replace(path)
