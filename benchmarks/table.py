"""Rows as a table that people read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from fastgan.benchmarks.record import Compiled, Record, Scored, Spread, Timed

NOTHING = ""
WORDS = {"workload", "variant", "shape", "dtype", "L2", "check", "note", "kernel", "arch", "limited by", "verdict"} | {
    *("phase", "layer", "direction", "bound", "backend", "why", "clock", "table", "system"),
}

R = TypeVar("R")

MOST_ROWS = 60  # of variants, that a person reads one by one


def render(record: Record) -> str:
    """Return the record's rows as text: one table for timed rows, one for compiled ones, then what was left out."""
    timed = [row for row in record.rows if isinstance(row, Timed)]
    compiled = [row for row in record.rows if isinstance(row, Compiled)]
    scored = [row for row in record.rows if isinstance(row, Scored)]
    parts = []
    if timed:
        parts.append(table(timed_columns(timed), timed))
    if compiled:
        parts.append(table(COMPILED, compiled) if len(compiled) <= MOST_ROWS else summary(compiled))
    if scored:
        parts.append(table(scored_columns(scored), scored))
    by_reason: dict[str, list[str]] = {}
    for entry in record.left_out:
        by_reason.setdefault(entry["why"], []).append(entry["name"])
    parts += [f"left out ({why}): {enumerate_names(names)}" for why, names in by_reason.items()]
    return "\n".join(parts)


def summary(rows: Sequence[Compiled]) -> str:
    """Return one line for each kernel and architecture, least to most; the record keeps each variant."""
    groups: dict[tuple[str, int], list[Compiled]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.arch), []).append(row)
    return table(SUMMARY, list(groups.values()))


def span(values: Iterable[int | None]) -> str:
    """Format the least and the most of some counts."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    return str(known[0]) if len(set(known)) == 1 else f"{min(known)}-{max(known)}"


def enumerate_names(names: Sequence[str], most: int = 8) -> str:
    """List some names and count the others."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def table(columns: Mapping[str, Callable[[R], str]], rows: Sequence[R]) -> str:
    """Lay out rows, words to the left and numbers to the right; columns that say nothing in any row are left away."""
    padded: list[list[str]] = []
    for title, show in columns.items():
        cells: list[str] = [show(row) for row in rows]
        if any(cells):
            width = max(len(text) for text in (title, *cells))
            align = str.ljust if title in WORDS else str.rjust
            padded.append([align(text, width) for text in (title, "-" * width, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def scored_columns(rows: Sequence[Scored]) -> dict[str, Callable[[Scored], str]]:
    """Return the columns of scored rows: one for each value that any of them has."""

    def valued(name: str) -> Callable[[Scored], str]:
        return lambda row: f"{row.values[name]:.4g}" if name in row.values else NOTHING

    known: dict[str, Callable[[Scored], str]] = {
        "table": lambda row: row.table,
        "system": lambda row: row.system,
        "seed": lambda row: str(row.seed),
        "steps": lambda row: str(row.steps),
    }
    return known | {name: valued(name) for row in rows for name in row.values}


def timed_columns(rows: Sequence[Timed]) -> dict[str, Callable[[Timed], str]]:
    """Return the columns of timed rows; the speed-up needs the baselines among ``rows``."""
    baselines = {(row.workload, row.shape, row.dtype, row.variant): row for row in rows if row.passed}

    def speedup(row: Timed) -> str:
        base = baselines.get((row.workload, row.shape, row.dtype, row.baseline or ""))
        return ratio(base, row) if base is not None and base is not row else NOTHING

    return {
        "workload": lambda row: row.workload,
        "variant": lambda row: row.variant,
        "shape": lambda row: row.shape,
        "dtype": lambda row: row.dtype,
        "wall us": lambda row: spread(row.wall_us),
        "device us": lambda row: spread(row.device_us),
        "graph us": lambda row: spread(row.graph_us),
        "n": lambda row: str(row.best.n) if row.best else NOTHING,
        "kernels us": lambda row: number(row.kernel_us),
        "launches": lambda row: number(row.launches),
        "TFLOP/s": lambda row: number(row.tflops),
        "GB/s": lambda row: number(row.gbs),
        "roofline": lambda row: NOTHING if row.roofline is None else f"{row.roofline:.0%}",
        "peak MB": lambda row: NOTHING if row.peak_bytes is None else number(row.peak_bytes / 1e6),
        "L2": lambda row: row.l2 or NOTHING,
        "speed-up": speedup,
        "check": lambda row: verdict(row),
        "note": lambda row: row.note or NOTHING,
    }


def ratio(base: Timed, row: Timed) -> str:
    """Return how many times faster ``row`` is; ``~`` marks what noise may explain. Nothing for a row that failed."""
    for clock in ("graph_us", "device_us", "wall_us"):
        before, after = getattr(base, clock), getattr(row, clock)
        if row.passed and before is not None and after is not None:
            return f"{before.median / after.median:.2f}x{NOTHING if before.differs(after) else ' ~'}"
    return NOTHING


def verdict(row: Timed) -> str:
    """Return the check's result in a word or a line."""
    if row.check is None:
        return NOTHING
    if not row.check.passed:
        return f"FAILED: {row.check.why}"
    return "ok" if row.check.error is None else f"ok {row.check.error:.1e}"


def spread(value: Spread | None) -> str:
    """Format a time as ``median (p20-p80)``."""
    return NOTHING if value is None else f"{number(value.median)} ({number(value.p20)}-{number(value.p80)})"


def number(value: float | None) -> str:
    """Format a number with three or four digits that matter."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def count(name: str) -> Callable[[Compiled], str]:
    """Return the column of one kind of instruction."""
    return lambda row: str(row.instructions[name]) if row.instructions.get(name) else NOTHING


COMPILED: dict[str, Callable[[Compiled], str]] = {
    "kernel": lambda row: row.kernel,
    "variant": lambda row: row.variant,
    "arch": lambda row: f"sm_{row.arch}",
    "warps": lambda row: number(row.warps),
    "registers": lambda row: NOTHING if row.registers is None else f"{row.registers}/{row.max_registers}",
    "spill B": lambda row: number(row.spill_bytes),
    "local B": lambda row: number(row.stack_bytes),
    "shared B": lambda row: number(row.shared_bytes),
    "wgmma": count("wgmma"),
    "tcgen05": count("tcgen05"),
    "mma": count("mma"),
    "TMA": count("tma"),
    "cp.async": count("async_copy"),
    "atomics": count("atomic"),
    "blocks/SM": lambda row: number(row.blocks_per_sm),
    "limited by": lambda row: row.limiter or NOTHING,
    "verdict": lambda row: "ok" if row.passed else "FAILED",
}

SUMMARY: dict[str, Callable[[Sequence[Compiled]], str]] = {
    "kernel": lambda rows: rows[0].kernel,
    "arch": lambda rows: f"sm_{rows[0].arch}",
    "variants": lambda rows: str(len(rows)),
    "failed": lambda rows: str(sum(not row.passed for row in rows)),
    "registers": lambda rows: span(row.registers for row in rows),
    "spill B": lambda rows: span(row.spill_bytes for row in rows),
    "local B": lambda rows: span(row.stack_bytes for row in rows),
    "shared B": lambda rows: span(row.shared_bytes for row in rows),
    "wgmma": lambda rows: span(row.instructions.get("wgmma") for row in rows),
    "tcgen05": lambda rows: span(row.instructions.get("tcgen05") for row in rows),
    "mma": lambda rows: span(row.instructions.get("mma") for row in rows),
    "TMA": lambda rows: span(row.instructions.get("tma") for row in rows),
    "blocks/SM": lambda rows: span(row.blocks_per_sm for row in rows),
}
