"""The members that a module is made of, where calling it is calling them one after another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fastgan.nn.chain import Chain
from fastgan.nn.chain_members import plain

Step = str | nn.Module  # a module's path, or a module that stands for a function
NOTE = "_fastgan_drop_in"  # under which a converted instance keeps what it runs
IN_ORDER = (nn.Sequential.forward, Chain.forward)


def original(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module had before it was converted."""
    return getattr(kind, "converted_from", kind)


def sequential(module: nn.Module) -> bool:
    """Whether a module's forward is to call its members in order."""
    return original(type(module)).forward in IN_ORDER and "forward" not in vars(module)


def flat(module: nn.Module) -> list[nn.Module]:
    """Return a module, or its members where it calls them in order and nobody listens to it."""
    if not plain(module):
        return [module]
    if sequential(module):
        return [member for child in module for member in flat(child)]  # type: ignore[attr-defined]
    note = vars(module).get(NOTE)
    made = None if note is None else note.usual(module)
    return [module] if made is None or made.steps is None else members_of(made.steps, module)


def at(module: nn.Module, path: str) -> nn.Module:
    """Return what stands at a path now."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def members_of(steps: Iterable[Step], module: nn.Module) -> list[nn.Module]:
    """Return the members that steps through a module stand for."""
    return [m for step in steps for m in (flat(at(module, step)) if isinstance(step, str) else [step])]
