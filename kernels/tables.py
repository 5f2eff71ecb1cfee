"""Tuned tables: which tile was measured fastest for which product, one JSON file for each card.

    {"format": "fastgan-tuned/1", "gpu": "nvidia-h200",
     "environment": {...},                      where the newest entries were measured, as benchmark records have it
     "entries": [{"op": "linear_fwd", "kind": "16-bit", "masked": false, "vectors": true,
                  "rows": 64, "cols": 512, "depth": 784,             the problem
                  "config": {"rows": ..., "cols": ..., "depth": ..., "warps": ..., "registers": ..., "stages": ...,
                             "split": ...},                          its fastest tile
                  "us": ...,                                         that tile's time
                  "library_us": ...,                                 cuBLAS and elementwise kernels; null: not measured
                  "by": "torch 2.13.0, triton 3.7.1"}]}              what measured it

``fastgan bench tune`` writes ``tuned/<gpu>.json`` in the cache (FASTGAN_CACHE); tables that come with the package lie
in ``kernels/tuned``. A problem takes the nearest entry of its op, kind, masked and vectors, else of its ``kin``, of the
cache's table before the package's: nearest by the sum of |log2| of the three sizes' ratios, at most ``NEAR``, and only
with a tile that can be run for the problem itself. A table that cannot be read is named in one warning and passed over.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastgan.kernels.problem import Config, Problem, refusal, useful

FORMAT = "fastgan-tuned/1"
NEAR = 2.0  # one size 4 times as large, or two twice as large
PACKAGED = Path(__file__).with_name("tuned")

Group = tuple[str, str, bool, bool]


@dataclass(frozen=True)
class Entry:
    """What was measured for one problem."""

    op: str
    kind: str
    masked: bool
    vectors: bool
    rows: int
    cols: int
    depth: int
    config: Config
    us: float
    library_us: float | None
    by: str

    @classmethod
    def of(cls, problem: Problem, config: Config, us: float, library_us: float | None, by: str) -> Entry:
        """Return what was measured for a problem."""
        return cls(*problem.group, *problem.sizes, config, us, library_us, by)

    @property
    def group(self) -> Group:
        """Return what a problem must share, as :class:`Problem` has it."""
        return self.op, self.kind, self.masked, self.vectors

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return the problem's sizes."""
        return self.rows, self.cols, self.depth


class TableError(ValueError):
    """A table that is none; the text says why."""


def nearest(problem: Problem) -> Entry | None:
    """Return the entry that tells most about a problem, on the card that it is for; None where none is near enough."""
    if problem.target.gpu is None:
        return None
    for table, group in itertools.product(load(problem.target.gpu), kin(problem)):
        fit = (
            entry
            for entry in table.get(group, ())
            if distance(problem, entry) <= NEAR
            and refusal(problem, entry.config) is None
            and useful(problem, entry.config)
        )
        entry = min(fit, key=lambda entry: (distance(problem, entry), entry.sizes), default=None)
        if entry is not None:
            return entry
    return None


def kin(problem: Problem) -> list[Group]:
    """Return the groups whose entries tell of a problem: its own first, then with or without a mask, then plain."""
    op, kind, masked, vectors = problem.group
    names = dict.fromkeys((op, op.removesuffix("_norm")))
    return [(name, kind, mask, vectors) for name in names for mask in (masked, not masked)]


def distance(problem: Problem, entry: Entry) -> float:
    """Return how far apart two problems' sizes are, in factors of 2."""
    pairs = zip(problem.sizes, entry.sizes, strict=True)
    return sum(abs(math.log2(max(1, own) / other)) for own, other in pairs)


@functools.cache
def load(gpu: str) -> tuple[Mapping[Group, list[Entry]], ...]:
    """Return a card's tables by group, the one to ask first first; one that is broken is said, once."""
    tables = []
    for path in (local_path(gpu), PACKAGED / f"{gpu}.json"):
        try:
            entries = read(path, gpu)
        except (OSError, TableError) as error:
            why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            warnings.warn(f"tuned table {path} is passed over: {why}", RuntimeWarning, stacklevel=2)
            continue
        table: defaultdict[Group, list[Entry]] = defaultdict(list)
        for entry in entries:
            table[entry.group].append(entry)
        tables.append(table)
    return tuple(tables)


def local_path(gpu: str) -> Path:
    """Return where a card's locally tuned table lies: FASTGAN_CACHE, else the platform's own place for such files."""
    chosen = os.environ.get("FASTGAN_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "tuned" / f"{gpu}.json"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastgan" / "tuned" / f"{gpu}.json"


def read(path: Path, gpu: str) -> list[Entry]:
    """Return a table's entries, none where there is no such file; raises :class:`TableError`, OSError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"it is not JSON ({type(error).__name__})") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise TableError(f"its format is not {FORMAT}")
    if body.get("gpu") != gpu:
        raise TableError(f"it is for {body.get('gpu')!r}, not for {gpu!r}")
    entries = body.get("entries")
    if not isinstance(entries, list):
        raise TableError("it has no list of entries")
    return [_entry(at, entry) for at, entry in enumerate(entries)]


def _entry(at: int, body: Any) -> Entry:
    """Check one entry, field by field."""
    where = f"entry {at}"
    values = _fields(where, body, Entry)
    values["config"] = Config(**_fields(f"{where}, config", values["config"], Config))
    entry = Entry(**values)
    config = entry.config
    for name, size in (("rows", config.rows), ("cols", config.cols), ("depth", config.depth)):
        if size < 16 or size & (size - 1):
            raise TableError(f"{where}: a tile's {name} are a power of 2 from 16 on, not {size}")
    if config.warps not in (1, 2, 4, 8, 16):
        raise TableError(f"{where}: {config.warps} warps")
    for name, time in (("us", entry.us), ("library_us", entry.library_us)):
        if time is not None and not 0 < time < math.inf:
            raise TableError(f"{where}: {name} is {time}")
    return entry


KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "Config": (dict,),
}


def _fields(where: str, body: Any, shape: type[Entry] | type[Config]) -> dict[str, Any]:
    """Return a dataclass's fields out of JSON: all of them, each of its type, counts of at least one."""
    if not isinstance(body, dict):
        raise TableError(f"{where} is not an object")
    values: dict[str, Any] = {}
    for field in fields(shape):
        value: Any = body.get(field.name)
        allowed = KINDS[str(field.type)]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TableError(f"{where}: {field.name} is {value!r}")
        if allowed == (int,) and isinstance(value, int) and value < 1:
            raise TableError(f"{where}: {field.name} is {value}")
        values[field.name] = value
    return values


def merged(old: Iterable[Entry], new: Iterable[Entry]) -> list[Entry]:
    """Return the entries of both, in a fixed order; where both know a problem, the new one's."""
    known = {(*entry.group, *entry.sizes): entry for entry in (*old, *new)}
    return [known[key] for key in sorted(known)]


def write(path: Path, gpu: str, environment: Mapping[str, Any], entries: Iterable[Entry]) -> None:
    """Write a table whole or not at all; raises OSError."""
    lines = ",\n  ".join(json.dumps(asdict(entry), allow_nan=False) for entry in entries)
    head = json.dumps({"format": FORMAT, "gpu": gpu, "environment": dict(environment)}, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'{head[:-2]},\n "entries": [\n  {lines}\n ]\n}}\n')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
