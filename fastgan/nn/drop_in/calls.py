"""How a forward is called: which of its arguments are tensors, and what the others are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

TENSOR = "a tensor"
PLAIN = (type(None), bool, int, float, str)
Key = tuple[tuple[type, Any], ...]  # of each argument its type and, where it is no tensor, its value


class Signature(NamedTuple):
    """The arguments of a forward, all of which may be given by place."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]

    def bound(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Return a call's arguments in order, defaults included; None where they do not fit."""
        if len(args) == len(self.names) and not named:
            return args
        names = self.names[len(args) :]
        if len(args) > len(self.names) or any(name not in names for name in named):
            return None
        told = {**self.defaults, **named}
        return (*args, *(told[name] for name in names)) if all(name in told for name in names) else None

    @property
    def usual(self) -> Key:
        """What it is called with where only what must be given is given: tensors."""
        values = (self.defaults.get(name, TENSOR) for name in self.names)
        return tuple((Tensor, None) if value is TENSOR else (type(value), value) for value in values)

    @property
    def full(self) -> Key:
        """What it is called with where all that may be given is given."""
        return ((Tensor, None),) * len(self.names)


@functools.lru_cache(maxsize=512)
def signature_of(function: Callable[..., Any]) -> Signature | None:
    """Return a forward's signature; None of one that takes arguments by * or by name alone, or none."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if not parameters or any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
        return None
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if not all(isinstance(value, PLAIN) for value in defaults.values()):
        return None
    return Signature(tuple(p.name for p in parameters), defaults)


def key_of(values: tuple[Any, ...]) -> Key | None:
    """Return what kind of call these arguments make; None where one is neither a tensor nor a plain value."""
    key: list[tuple[type, Any]] = []
    for value in values:
        if isinstance(value, Tensor):
            key.append((Tensor, None))
        elif isinstance(value, PLAIN):
            key.append((type(value), value))
        else:
            return None
    return tuple(key)


def one_tensor(key: Key) -> bool:
    """Whether a call brings one tensor, first, and otherwise nothing."""
    kinds = [kind for kind, _ in key]
    return kinds[0] is Tensor and all(kind is type(None) for kind in kinds[1:])


def given(names: tuple[str, ...], key: Key) -> list[str]:
    """Return the names of the arguments that are tensors."""
    return [name for name, (kind, _) in zip(names, key, strict=True) if kind is Tensor]
