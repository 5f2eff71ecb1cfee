"""Benchmarks: what compiles, what it costs, how fast it is. Run them by ``python -m fastgan.benchmarks SUITE``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one suite, or list them. Returns 0, 1 (a check failed), 2 (a user's mistake), 130 or 143 (stopped)."""
    from fastgan.benchmarks.command import main as run

    return run(argv)
