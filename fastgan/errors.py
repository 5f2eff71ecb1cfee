"""What a user did wrong, said in one line: what happened and how to mend it. The command line exits with 2 on it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, then what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Build the error for an unknown ``kind`` (preset, key, ...) called ``name``, with the nearest known name."""
    names, given = sorted(known), str(name)
    given = given if len(given) <= 100 else f"{given[:97]}..."
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {given!r}: {hint}known: {', '.join(names)}")


def require(module: str, *, extra: str | None = None, why: str) -> ModuleType:
    """Import a dependency at its place of use; a missing one is named in one line with the command that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        command = f"pip install 'fastgan[{extra}]'" if extra else f"pip install {package}"
        raise UserError(f"{why} needs the package {package!r}, which is not installed here: {command}") from error


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity and stopped. The command line exits with 3 on it."""


class LostPeersError(RuntimeError):
    """Another process of the job is gone, or did not answer in time. The command line exits with 1 on it."""

    def __init__(self, cause: object) -> None:
        self.reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        super().__init__(
            "another process of the job has ended or does not answer: its own message says why, and --resume goes on"
            f" from the last checkpoint ({self.reason})"
        )
