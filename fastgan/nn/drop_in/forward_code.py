"""What the code of a forward method does that a trace of it would not do again: read before anything is traced."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

CONSTANTS = (
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout
)  # fmt: skip
PURE = ("torch", "math", "operator", "functools", "itertools", "typing", "collections", "fastgan")
HARMLESS = {
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "getattr", "int", "len", "list",
    "map", "max", "min", "pow", "range", "reversed", "round", "set", "slice", "sorted", "str", "sum", "super", "tuple",
    "zip", "AssertionError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError",
}  # fmt: skip
STATE = {  # names of attributes whose value depends on when they are read, and of what a trace would not do again
    "training", "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_tensor", "is_available",
    "is_scripting", "is_tracing", "is_compiling", "get_default_dtype", "__class__", "__dict__", "parameters",
    "named_parameters", "buffers", "named_buffers", "state_dict", "modules", "named_modules",
    "manual_seed", "set_grad_enabled", "set_default_dtype", "checkpoint", "checkpoint_sequential",
}  # fmt: skip
INSTRUCTIONS = {
    "STORE_ATTR": "it keeps values in attributes",
    "DELETE_ATTR": "it deletes attributes",
    "STORE_GLOBAL": "it writes to globals",
    "IMPORT_NAME": "it imports modules",
    "BEFORE_WITH": "it works inside a with block",
    "LOAD_SPECIAL": "it works inside a with block",
    "PUSH_EXC_INFO": "it handles exceptions",
    "YIELD_VALUE": "it yields",
}
MISSING, PRESENT = object(), object()


class RefusedError(Exception):
    """A forward method that is not traced; its text says why."""


class Guard(NamedTuple):
    """A value that the trace was made with: where it stands, for a module's its path, and what it was."""

    place: Mapping[str, Any] | str
    name: str
    value: Any

    def holds(self, module: Any) -> bool:
        """Whether it is still so."""
        if isinstance(self.place, str):
            for name in self.place.split(".") if self.place else ():
                module = getattr(module, name)
            found = getattr(module, self.name, MISSING)
            found = getattr(found, "__func__", found)
        else:
            found = self.place.get(self.name, MISSING)
        if self.value is PRESENT:
            return found is not None and found is not MISSING
        return found is self.value or (type(found) is type(self.value) and same(found, self.value))


def same(one: Any, other: Any) -> bool:
    """Whether two values of constants are equal; a NaN is equal to nothing."""
    return constant(one) and bool(one == other)


def constant(value: Any) -> bool:
    """Whether a value is made of plain constants alone."""
    if isinstance(value, dict):
        return all(constant(key) and constant(item) for key, item in value.items())
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(constant(item) for item in value)
    return isinstance(value, CONSTANTS)


def guard_of(place: Mapping[str, Any] | str, name: str, value: Any) -> Guard | None:
    """Return what to watch of a value that the code reads; None where nothing can become of it. Refuse state."""
    if isinstance(value, types.ModuleType):
        return None
    if constant(value):
        return Guard(place, name, copy.deepcopy(value))
    if _always_the_same(value):
        return Guard(place, name, value)
    raise RefusedError(f"it reads {name}, a {type(value).__name__}")


def _always_the_same(value: Any) -> bool:
    """Whether a callable is code to be read, or one that keeps nothing between calls; no objects of somebody's."""
    if isinstance(value, functools.partial):
        return constant(value.args) and constant(value.keywords) and _always_the_same(value.func)
    if isinstance(value, types.FunctionType):
        return True
    owner = getattr(value, "__self__", None)
    if isinstance(owner, types.ModuleType):
        home = owner.__name__
    elif owner is None or isinstance(owner, type):
        home = (owner or value).__module__ or "" if hasattr(owner or value, "__module__") else ""
    else:
        return False
    return callable(value) and home.partition(".")[0] in (*PURE, "builtins", "_operator")


class _Cells(Mapping[str, Any]):
    """What a function has closed over, as it is now."""

    def __init__(self, function: types.FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.cells = {name: cell for name, cell in cells if name != "__class__"}

    def __getitem__(self, name: str) -> Any:
        try:
            return self.cells[name].cell_contents
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


def check(function: Callable[..., Any]) -> list[Guard]:
    """Return the global constants that a method of a module, and functions it calls, go by; refuse what traces lose."""
    guards: list[Guard] = []
    seen: set[types.CodeType] = set()
    pending = [function]
    while pending:
        subject = pending.pop()
        if hasattr(subject, "__wrapped__"):
            raise RefusedError(f"{subject.__name__} is decorated")
        if not isinstance(subject, types.FunctionType) or subject.__code__ in seen:
            continue
        seen.add(subject.__code__)
        _check_code(subject.__code__)
        closed = _Cells(subject)
        for name in closed:
            pending += _judge(name, closed.get(name, MISSING), closed, guards)
        for name in _global_names(subject.__code__):
            space = subject.__globals__ if name in subject.__globals__ else vars(builtins)
            pending += _judge(name, space.get(name, MISSING), space, guards)
    return guards


def works_in_place(function: Callable[..., Any]) -> bool:
    """Whether the code, or helpers that it calls, may change tensors that its callees returned; True where there is no
    code to read."""
    pending, seen = [inspect.unwrap(function)], set[types.CodeType]()
    while pending:
        subject = pending.pop()
        code = getattr(subject, "__code__", None)
        if code is None or (code not in seen and _changes(code)):
            return True
        if code not in seen and isinstance(subject, types.FunctionType):
            seen.add(code)
            told = (*(subject.__globals__.get(name) for name in _global_names(code)), *_Cells(subject).values())
            pending += [inspect.unwrap(value) for value in told if _helper(value)]
    return False


def _helper(value: Any) -> bool:
    home = (getattr(value, "__module__", None) or "").partition(".")[0]
    return isinstance(value, types.FunctionType) and home not in PURE


def _changes(code: types.CodeType) -> bool:
    for part in _parts(code):
        for step in dis.get_instructions(part):
            if step.opname == "BINARY_OP" and step.argrepr.endswith("="):
                return True
            if step.opname in ("STORE_SUBSCR", "STORE_SLICE"):
                return True
        if any((name.endswith("_") and not name.startswith("_")) or name == "inplace" for name in _words(part)):
            return True
    return False


def _words(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, tuple):
            yield from (word for word in value if isinstance(word, str))


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _parts(value)


def _check_code(code: types.CodeType) -> None:
    for part in _parts(code):
        for step in dis.get_instructions(part):
            if step.opname in INSTRUCTIONS and not (step.opname == "YIELD_VALUE" and part.co_name == "<genexpr>"):
                raise RefusedError(INSTRUCTIONS[step.opname])
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in STATE:
                whose = "self." if step.argval == "training" else ""
                raise RefusedError(f"it asks for {whose}{step.argval}")


def _global_names(code: types.CodeType) -> list[str]:
    steps = (step for part in _parts(code) for step in dis.get_instructions(part))
    return list(dict.fromkeys(step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")))


def _judge(name: str, value: Any, space: Mapping[str, Any], guards: list[Guard]) -> list[Callable[..., Any]]:
    """Guard a value that code reads by name; return it to be read in turn, where it is a function of somebody's."""
    if value is MISSING:
        raise RefusedError(f"{name} is not defined")
    if isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] not in PURE:
            raise RefusedError(f"it uses {value.__name__}")
        return []
    if space is vars(builtins):
        if name not in HARMLESS:
            raise RefusedError(f"it calls {name}")
        return []
    if constant(value) and not isinstance(value, (list, dict, set)):
        guards.append(Guard(space, name, copy.deepcopy(value)))
        return []
    home = (getattr(value, "__module__", None) or "").partition(".")[0]
    if getattr(value, "__module__", None) == "torch.utils.checkpoint":
        raise RefusedError(f"it uses {name}")
    if isinstance(value, type) and home not in (*PURE, "builtins") and not _record(value):
        raise RefusedError(f"it uses {name}, a class")
    if isinstance(value, type) or (callable(value) and home in PURE):
        return []
    if isinstance(value, types.FunctionType):
        guards.append(Guard(space, name, value))
        return [value]
    if callable(value) and home in ("", "_operator", "math"):
        return []
    raise RefusedError(f"it uses {name}, a {type(value).__name__}")


def _record(kind: type) -> bool:
    """Whether a class is one of results with names, and nothing else."""
    if dataclasses.is_dataclass(kind):
        told = any(field.name in vars(kind) for field in dataclasses.fields(kind))
        return not told and not hasattr(kind, "__post_init__")
    return issubclass(kind, BaseException) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
