"""Values from YAML or a command line, turned into the type that a configuration's key declares."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from fastgan.errors import UserError, unknown
from fastgan.presets import plain


def parse(text: str) -> Any:
    """The value that ``text`` spells in YAML: ``3``, ``[128, 256]``, ``true``, ``digits``."""
    try:
        return plain.loaded(text, why="reading configuration values")
    except plain.NotPlainError as error:
        raise UserError(f"{_shown(text)} is not a value: write it as YAML, such as 3, [128, 256] or digits") from error


def coerce(key: str, value: Any, hint: Any) -> Any:
    """Check ``value`` against the type of ``key``; numbers are converted where nothing is lost. Raises UserError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(key, value, next(choice for choice in arguments if choice is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise unknown(f"value of {key}", value if isinstance(value, str) else _shown(value), map(str, arguments))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise UserError(f"{key} takes {len(arguments)} values, such as [0.5, 0.999], not {_shown(value)}")
        return tuple(coerce(key, item, kind) for item, kind in zip(value, arguments, strict=True))
    if origin is Sequence:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key} takes a list, such as [128, 256], not {_shown(value)}")
        return tuple(coerce(key, item, arguments[0]) for item in value)
    if hint is bool and not isinstance(value, bool):
        raise UserError(f"{key} takes true or false, not {_shown(value)}")
    if hint is float:
        return _number(key, value)
    if hint is int:
        return _whole(key, value)
    if hint is str and not isinstance(value, str):
        raise UserError(f"{key} takes a text, not {_shown(value)}: put it in quotes if it is one")
    return value


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)  # YAML reads 2e-4 as text: it wants 2.0e-4
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{key} takes a number, not {_shown(value)}") from error
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(f"{key} takes a finite number, not {_shown(value)}")
    return number


def _whole(key: str, value: Any) -> int:
    number = _number(key, value)
    if number != int(number):
        raise UserError(f"{key} takes a whole number, not {_shown(value)}")
    return int(number)


def _shown(value: Any) -> str:
    return reprlib.repr(value)  # short, even where YAML aliases unfold into millions of items
