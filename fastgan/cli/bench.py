"""``fastgan bench [SUITE|compare|predict|report]``: the same as ``python -m fastgan.benchmarks``."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    from fastgan import benchmarks

    return benchmarks.main(list(arguments))
