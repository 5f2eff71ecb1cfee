"""Marks in a configuration for parts that were given as objects: no name builds them again."""

from __future__ import annotations

from fastgan.errors import UserError

MARK = "own: "


def mark(kind: str) -> str:
    """The name in a configuration of a part that is an object of the user's, of that ``kind``."""
    return f"{MARK}{kind}"


def is_marked(name: str) -> bool:
    """Whether a name in a configuration is such a mark."""
    return name.startswith(MARK)


def refuse(part: str, name: str) -> None:
    """Raise UserError where ``name`` is a mark. ``part`` is Trainer's argument: generator, data, objective, ..."""
    if is_marked(name):
        weights = f" its weights are the checkpoint's {part}.safetensors;" if part.endswith("ator") else ""
        raise UserError(
            f"the run has a {part} of its own ({name.removeprefix(MARK)}), which no configuration builds:{weights}"
            f" make it in Python, and go on with Trainer({part}=...)"
        )
