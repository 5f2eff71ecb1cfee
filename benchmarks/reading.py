"""Reads a record back; what is not one is answered in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from fastgan.benchmarks.record import FORMAT, Ceilings, Check, Compiled, Record, Row, Scored, Spread, Timed, validate
from fastgan.errors import UserError

SPREADS = ("wall_us", "device_us", "graph_us")


def read(path: Path) -> Record:
    """Return the record of a file; raises :class:`~fastgan.errors.UserError`."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no record at {path}: `fastgan bench SUITE --json {path}` writes one") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a record: {one_line(error)}") from error
    form = body.get("format") if isinstance(body, dict) else None
    if form != FORMAT:
        said = f"its format is {form!r}, not {FORMAT!r}" if form else "it has no format"
        raise UserError(f"{path} is not a record of this version: {said}")
    if importlib.util.find_spec("jsonschema") is not None:
        import jsonschema

        try:
            validate(body)
        except jsonschema.ValidationError as error:
            raise UserError(f"{path} is not a record: {error.json_path}: {one_line(error)}") from error
    try:
        return record_of(body)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a record: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the first line of an error's text, not too long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def record_of(body: dict[str, Any]) -> Record:
    """Return what :meth:`Record.to_json` was made of."""
    fields = {name: value for name, value in body.items() if name != "format"}
    return Record(**{**fields, "ceilings": Ceilings(**body["ceilings"]), "rows": [row_of(row) for row in body["rows"]]})


def row_of(body: dict[str, Any]) -> Row:
    """Return one row."""
    fields = {name: value for name, value in body.items() if name != "kind"}
    if body["kind"] == Compiled.kind:
        return Compiled(**fields)
    if body["kind"] == Scored.kind:
        return Scored(**fields)
    for name in SPREADS:
        fields[name] = Spread(**body[name]) if body[name] else None
    fields["check"] = Check(**body["check"]) if body["check"] else None
    return Timed(**fields)
