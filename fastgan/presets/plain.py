"""YAML as plain data. Nobody vouches for a file: none unfolds into more than a configuration can be."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastgan.errors import require

LONGEST = 1 << 17  # characters of a text
MOST, DEEPEST, ALIASES = 10_000, 20, 100  # values that aliases unfold into, values within values, aliases


class NotPlainError(ValueError):
    """A text that is no YAML, holds more than a configuration can, or what none has."""


def loaded(text: str, why: str) -> Any:
    """The value that a YAML text spells. Raises NotPlainError; ``why`` says what needs PyYAML where it is missing."""
    yaml = require("yaml", why=why)
    if len(text) > LONGEST:
        raise NotPlainError(f"it has {len(text)} characters, and no configuration has more than {LONGEST}")
    try:
        value = yaml.load(text, Loader=_loader())
    except Exception as error:  # of a foreign tag or date PyYAML makes whatever its code stumbles over
        raise NotPlainError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    _check(value)
    return value


def _check(value: Any) -> None:
    """Raise NotPlainError for a value that is not plain, or unfolds into too many: aliases of aliases, or of itself."""
    left, seen = [(value, 0)], 0
    while left:
        node, depth = left.pop()
        seen += 1
        if seen > MOST or depth > DEEPEST:
            raise NotPlainError("it unfolds into more values than a configuration has")
        if isinstance(node, dict):
            left += [(item, depth + 1) for pair in node.items() for item in pair]
            if not all(isinstance(key, str) for key in node):
                raise NotPlainError("it has a key that is no text")
        elif isinstance(node, list):
            left += [(item, depth + 1) for item in node]
        elif not isinstance(node, str | int | float | None):
            raise NotPlainError(
                f"it holds a {type(node).__name__}, which no key takes: put it in quotes if it is a text"
            )


@cache
def _loader() -> Any:
    """PyYAML's safe loader, which builds plain data only, with bounds on what an alias or a merge may multiply."""
    yaml = require("yaml", why="reading YAML")

    class Bounded(yaml.SafeLoader):  # type: ignore[name-defined]
        aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                self.aliases += 1
                if self.aliases > ALIASES:
                    raise NotPlainError(f"it has more than {ALIASES} aliases")
            return super().compose_node(parent, index)

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MOST:
                raise NotPlainError("it merges more keys than a configuration has")

    return Bounded
