"""Marks in a configuration for parts that were given as objects: no name builds them again."""

from __future__ import annotations

from fastgan.errors import UserError

MARK = "own: "


def mark(kind: str) -> str:
    """The name in a configuration of a part that is an object of the user's, of that ``kind``."""
    return f"{MARK}{kind}"


def refuse(part: str, name: str) -> None:
    """Raise UserError where ``name`` is such a mark. ``part`` is Trainer's argument: generator, data, objective, ..."""
    if name.startswith(MARK):
        weights = f" its weights are the checkpoint's {part}.safetensors;" if part.endswith("ator") else ""
        raise UserError(
            f"the run has a {part} of its own ({name.removeprefix(MARK)}), which no configuration builds:{weights}"
            f" make it in Python, and go on with Trainer({part}=...)"
        )
