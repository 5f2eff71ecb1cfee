"""The members that a module is made of, where calling it is calling them one after another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fastgan.nn.chain import Chain
from fastgan.nn.chain_members import kind_of, plain

Step = str | nn.Module  # a module's path, or a module that stands for a function
NOTE = "_fastgan_drop_in"  # under which a converted instance keeps what it runs
IN_ORDER = (nn.Sequential.forward, Chain.forward)


def rebased(module: nn.Module, base: type[nn.Module]) -> type[nn.Module]:
    """Return a class that makes a module a ``base``: of one with parametrizations, a class like its own on top."""
    kind: Any = type(module)
    if "parametrizations" not in module._modules:
        return base
    space = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    made: type[nn.Module] = type(kind)(kind.__name__, (base,), space)
    return made


def sequential(module: nn.Module) -> bool:
    """Whether a module's forward is to call its members in order."""
    return kind_of(module).forward in IN_ORDER and "forward" not in vars(module)


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
