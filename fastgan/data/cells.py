"""What the text in a cell of a table says: a number, nothing, or a word."""

from __future__ import annotations

import re

MISSING = frozenset(("", "?", "na", "n/a", "nan", "null"))  # in lower case
LARGEST = 3e38  # float32's own is a little above
MOST_EXACT = 2**53  # integers below it are exact in float64

# 007 is a code, not a number
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18})(?:\.0*)?")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)


def is_missing(text: str) -> bool:
    """Whether a cell, spaces stripped, says that there is nothing."""
    return len(text) < 5 and text.lower() in MISSING


def is_integer(text: str) -> bool:
    """Whether it is a whole number that float64 holds exactly; 3.0 is one, too."""
    return _INTEGER.fullmatch(text) is not None and abs(float(text)) < MOST_EXACT


def number(text: str) -> float | None:
    """Its value, which may be infinite; None where it is a word."""
    if _NUMBER.fullmatch(text) is not None:
        value = float(text)
        return value if abs(value) <= LARGEST else float("inf")
    return float("inf") if _INFINITE.fullmatch(text) is not None else None
