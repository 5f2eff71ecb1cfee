"""Arguments of a verb: a dataclass that tyro turns into a parser. A mistake is one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from fastgan.errors import UserError
from fastgan.presets.values import parse as parse_value

T = TypeVar("T")


def shown(metavar: str, name: str | None = None) -> object:
    """How ``--help`` shows an option; of one that may be left out, its text says what happens then."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=_default)


def _default(value: str) -> str:
    return "" if value == "None" else f"(default: {value})"


Text = Annotated[str | None, shown("TEXT")]
Whole = Annotated[str | None, shown("N")]  # read by presets.values, which knows 1e6 too
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def parse(kind: type[T], verb: str, arguments: Sequence[str]) -> T:
    """Parse ``arguments`` of ``fastgan VERB`` into the dataclass ``kind``. ``--help`` prints and exits with 0."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"fastgan {verb}", args=list(arguments))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_message(said.getvalue())} ('fastgan {verb} --help' lists the options)") from None


def folder(option: str, text: str | None) -> Path | None:
    """The path that an option names, ``~`` expanded; None where it was not given. Raises UserError on an empty one."""
    if text is None:
        return None
    if not text.strip():
        raise UserError(f"{option} is empty: name a path, or leave {option} out")
    return Path(text).expanduser()


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The keys that ``--set KEY=VALUE`` names, and their values. Raises UserError where there is no ``=``."""
    keys = {}
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--set {assignment}: write it as key=value, such as --set log_every=10")
        keys[key.strip()] = parse_value(value)
    return keys


def home(run: Path) -> Path:
    """Where what is made of ``run`` goes by itself: beside a file, else into the run's folder.

    So it does where ``run`` is a checkpoint within, whose own files it would replace, and with which it would go.
    """
    if run.is_file():
        return run.parent
    within = [folder.parent for folder in (run, *run.parents) if folder.name == "checkpoints"]
    return within[0] if within and not (run / "config.yaml").is_file() else run


def _message(box: str) -> str:
    """The first paragraph of tyro's framed error, and the option that it thinks was meant, in one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │|╭╮╰╯─-\t") for line in plain.splitlines()]
    rules = [index for index, line in enumerate(plain.splitlines()) if re.search(r"[─-]{8}", line)]
    first = rules[0] + 1 if rules else 0
    end = next((index for index in range(first, len(lines)) if index in rules or not lines[index]), len(lines))
    message = " ".join(lines[first:end]) or "the arguments cannot be read"
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", plain)
    return f"{message}; did you mean {meant[1]}?" if meant else message
