"""A forward method as a graph, by torch.fx, one level deep: the modules that it calls are leaves.

Only a forward whose every run does the same is traced: no control flow by tensors or by ``self.training``, no state
kept, no tensors of its own making. The plain Python values that it reads (a slope, a flag, a list of sizes) are noted,
and the graph is used only while they stay as they were.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.nn.chain_members import kind_of
from fastgan.nn.drop_in.calls import Key, given, signature_of
from fastgan.nn.drop_in.forward_code import PRESENT, Guard, RefusedError, check, constant, guard_of
from fastgan.nn.drop_in.members import rebased

OWN = frozenset(vars(nn.Module())) - {"training"}  # what torch keeps of every module
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Traced:
    """A forward method, and what has to hold for the graph to be it."""

    graph: fx.Graph
    guards: tuple[Guard, ...]
    lists: tuple[tuple[str, tuple[str, ...]], ...]  # containers and the names of their members

    def holds(self, module: nn.Module) -> bool:
        """Whether the values that it was made with are still the module's."""
        try:
            return all(_members(module.get_submodule(path)) == names for path, names in self.lists) and all(
                guard.holds(module) for guard in self.guards
            )
        except AttributeError:  # a part that it knew is gone
            return False


def trace(module: nn.Module, key: Key | None = None) -> Traced:
    """Trace a module's forward for a kind of call; raise :class:`RefusedError` where a trace would not be it.

    The graph takes the call's tensors; what else it brings is in the graph. No ``key``: the usual call.
    """
    now = type(module)
    kind = rebased(module, kind_of(module))
    forward = kind.forward
    if "forward" in vars(module):
        raise RefusedError("its forward was replaced on the instance")
    signature = signature_of(forward)
    if signature is None:
        raise RefusedError("it takes arguments by * or by name alone, or none")
    written = [vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)]
    seen = _Seen(module, [guard for function in written if _foreign(function) for guard in check(function)])
    told = _called(forward, signature.names, key or signature.usual)
    try:
        with _watching(module, seen), _Nothing():
            object.__setattr__(module, "__class__", _watched(kind, seen, forward=told))
            graph = _Tracer().trace(module)
    except RefusedError:
        raise
    except fx.proxy.TraceError:
        raise RefusedError("it decides by its input") from None
    except Exception as error:
        raise RefusedError(f"it cannot be traced: {_line(error)}") from None
    finally:
        object.__setattr__(module, "__class__", now)
        for value, copied in seen.containers:
            if not (constant(value) and value == copied):
                _restore(value, copied)
                seen.changed = True
    if seen.changed:
        raise RefusedError("it keeps values in lists")
    return Traced(graph, tuple(seen.guards.values()), tuple(seen.lists.items()))


class _Nothing(TorchDispatchMode):
    """Lets no tensor be made or looked into: what comes of one is another at every call."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RefusedError("it makes tensors of its own")


class _Seen:
    """What plain values of a module and its parts a forward method has read so far."""

    def __init__(self, module: nn.Module, guards: list[Guard]) -> None:
        self.root = module
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.lists = {path: _members(part) for path, part in [("", module), *_containers(module)]}
        self.guards: dict[tuple[Any, str], Guard] = {(id(guard.place), guard.name): guard for guard in guards}
        self.containers: list[tuple[Any, Any]] = []
        self.changed = False

    def note(self, owner: nn.Module, name: str, value: Any) -> None:
        if name == "training":
            raise RefusedError("it asks for self.training")
        for function in _code_of(owner, name, value):
            self.guards.update(((id(more.place), more.name), more) for more in check(function))
        path = self.paths[id(owner)]
        if isinstance(value, nn.Module):
            self.lists.setdefault(path, _members(owner))
            return
        if isinstance(value, (Tensor, fx.Proxy)):
            self.guards[(path, name)] = Guard(path, name, PRESENT)
            return
        if isinstance(value, types.MethodType) and value.__self__ is owner:
            if owner is not self.root and _foreign(value.__func__):
                self.guards[(path, name)] = Guard(path, name, value.__func__)
            return
        guard = guard_of(path, name, value)
        if guard is None:
            return
        self.guards[(path, name)] = guard
        if isinstance(value, (list, dict, set)):
            self.containers.append((value, guard.value))


def _foreign(function: Any) -> bool:
    return not (getattr(function, "__module__", None) or "").startswith("torch.")


def _code_of(owner: nn.Module, name: str, value: Any) -> Iterator[types.FunctionType]:
    """Yield what of somebody's runs where an attribute is read, and where it is called: what a class inherits, too."""
    found = [vars(base)[name] for base in type(owner).__mro__ if name in vars(base)]
    while isinstance(value, functools.partial):
        value = value.func
    for each in (*found, value) if isinstance(value, types.FunctionType) else found:
        each = getattr(each, "fget", None) or getattr(each, "func", None) or getattr(each, "__func__", each)
        if isinstance(each, types.FunctionType) and _foreign(each):
            yield each


@contextlib.contextmanager
def _watching(module: nn.Module, seen: _Seen) -> Iterator[None]:
    """Watch what is read of the parts of a module as well."""
    parts = [part for part in module.modules() if part is not module and not isinstance(part, torch.jit.ScriptModule)]
    classes = [type(part) for part in parts]
    made: dict[type[nn.Module], type[nn.Module]] = {}
    try:
        for part, kind in zip(parts, classes, strict=True):
            if kind not in made:
                made[kind] = _watched(kind, seen)
            object.__setattr__(part, "__class__", made[kind])
        yield
    finally:
        for part, kind in zip(parts, classes, strict=True):
            object.__setattr__(part, "__class__", kind)


def _by_name(*args: Any, **kwargs: Any) -> Any:
    raise RefusedError("it calls a forward by name")


def _members(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, member in module._modules.items() if member is not None)


class _Unregistered:
    """Keeps classes that keep a list of their subclasses from hearing of one that is made for a moment."""

    def __init_subclass__(cls, **more: Any) -> None:
        pass


def _called(forward: Callable[..., Any], names: tuple[str, ...], key: Key) -> Callable[..., Any]:
    """Return a forward that takes tensors alone, the other arguments being what they are in that kind of call."""
    fixed = {f"fixed_{at}": value for at, (kind, value) in enumerate(key) if kind is not Tensor}
    kinds = zip(names, (kind for kind, _ in key), strict=True)
    told = (name if kind is Tensor else f"fixed_{at}" for at, (name, kind) in enumerate(kinds))
    text = f"lambda self, {', '.join(given(names, key))}: fastgan_forward(self, {', '.join(told)})"
    made: Callable[..., Any] = eval(text, {"fastgan_forward": forward, **fixed})  # noqa: S307 -- names that we made
    return made


def _watched(kind: type[nn.Module], seen: _Seen, **space: Any) -> type[nn.Module]:
    """Make a subclass for the time of a trace, that tells which plain values are read and lets none be written."""

    def read(self: nn.Module, name: str) -> Any:
        if name == "forward" and self is not seen.root:
            return _by_name  # torch.fx looks at it, and does not call it
        value = kind.__getattribute__(self, name)
        if not (name.startswith("__") or name in OWN):
            seen.note(self, name, value)
        return value

    def fetch(self: nn.Module, name: str) -> Any:
        value = kind.__getattr__(self, name)  # as torch.fx has it now, which gives parameters out as proxies
        seen.note(self, name, value)
        return value

    def refuse(self: nn.Module, name: str, *_: Any) -> None:
        raise RefusedError("it keeps values in attributes")

    space |= {
        "__getattribute__": read,
        "__getattr__": fetch,
        "__setattr__": refuse,
        "__delattr__": refuse,
    }
    return new_class(kind, _Unregistered, **space)


def new_class(kind: type[nn.Module], mixed: type, **space: Any) -> type[nn.Module]:
    """Make a subclass of a class that goes by the same name, with something mixed in in front."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    meta: Any = type(kind)
    made: type[nn.Module] = meta(kind.__name__, (mixed, kind), {**names, **space})
    return made


class _Proxy(fx.Proxy):
    """A proxy that tells ``a += b``, which others may see, from ``a = a + b``."""


def _in_place(name: str) -> Any:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is own for own in self._own()):
            raise RefusedError("it makes tensors of its own")
        kind = type(a)
        own = kind in (dict, list, tuple) or kind.__module__.startswith("torch.fx") or hasattr(a, "_fields")
        if isinstance(a, (dict, list, tuple)) and not own:
            raise RefusedError(f"it makes {kind.__name__}s")
        return super().create_arg(a)

    def _own(self) -> list[Tensor]:
        told = [value for m in self.root.modules() for value in vars(m).values() if isinstance(value, Tensor)]
        return [*self.root.parameters(), *self.root.buffers(), *told]


def _containers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the lists of modules that a forward method can walk through without calling them, by path."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module._modules.items():
        if isinstance(child, CONTAINERS):
            found.append((name, child))
            found += [(f"{name}.{path}", inner) for path, inner in _containers(child)]
    return found


def _restore(value: Any, copied: Any) -> None:
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(copied)


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:120] if text else type(error).__name__
