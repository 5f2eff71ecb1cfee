"""What a training step may change, kept while the step is tried out, and put back to the bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.errors import UserError

_PASSED = {"_modules", "_parameters", "_buffers"}  # attributes of a module that a name leaves out
_CODE = (FunctionType, MethodType, ModuleType, type)


class Change(NamedTuple):
    """One tensor where another one stood, or other memory under it."""

    name: str
    former: Tensor
    now: Tensor
    memory: int  # that of the former one: see :func:`memory`


class _Kept(NamedTuple):
    """A tensor as it was."""

    name: str
    tensor: Tensor
    value: Tensor | None
    storage: torch.UntypedStorage | None
    requires_grad: bool
    grad: Tensor | None


class Snapshot:
    """Modules, optimisers and whatever hangs on them, as they are now, and every random stream that is the process's.

    Attributes, dicts and lists are kept as they are, tensors with their values and gradients, generators with their
    states. Of other objects, ours and those that are listed themselves are followed into their attributes.

    Args:
        state: modules, optimisers, tensors, generators, objects with attributes, or lists, tuples and dicts of these.
        values: keep a copy of what the tensors hold; without, only what stands where is kept.

    Raises:
        UserError: for an entry that holds nothing of the kind.
    """

    def __init__(self, state: Sequence[object], *, values: bool = True) -> None:
        self.generators: list[torch.Generator] = []
        self._values = values
        self._containers: list[tuple[str, Any, Any]] = []
        self._tensors: list[_Kept] = []
        self._alive: dict[int, object] = {}  # what was met, kept so that no id comes twice
        for at, entry in enumerate(state):
            self._meet(entry, f"state[{at}]", listed=True)
        self._streams = _Streams(self.generators) if values else None

    def tensors(self) -> list[Tensor]:
        """All that hold something, gradients included."""
        return [kept.tensor for kept in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: what is new goes, what was replaced returns, values are copied in place."""
        for _, container, saved in self._containers:
            _refill(container, saved)
        for kept in self._tensors:
            if kept.value is not None:
                kept.tensor.detach().copy_(kept.value)
            if kept.tensor.is_leaf:
                kept.tensor.requires_grad_(kept.requires_grad)
                kept.tensor.grad = kept.grad
        if self._streams is not None:
            self._streams.restore()

    def replaced(self) -> Iterator[Change]:
        """Yield each place that held a tensor and holds another one, or whose tensor lies elsewhere in memory."""
        for name, container, saved in self._containers:
            before = saved.items() if isinstance(saved, dict) else enumerate(saved)
            for key, former in before:
                now = _at(container, key)
                if isinstance(former, Tensor) and isinstance(now, Tensor) and now is not former:
                    yield Change(_named(name, key), former, now, memory(former))
        for kept in self._tensors:
            grad = kept.tensor.grad if kept.tensor.is_leaf else None
            if kept.grad is not None and grad is not None and grad is not kept.grad:
                yield Change(f"{kept.name}.grad", kept.grad, grad, memory(kept.grad))
            if kept.storage is not None and memory(kept.tensor) != kept.storage._cdata:
                yield Change(kept.name, kept.tensor, kept.tensor, kept.storage._cdata)

    def moved_on_host(self) -> list[str]:
        """Names of the host's random streams (Python's and numpy's global ones) that have moved since."""
        return [] if self._streams is None else self._streams.moved_on_host()

    def _meet(self, value: Any, name: str, listed: bool = False) -> None:
        if id(value) in self._alive:
            return
        if isinstance(value, Tensor):
            self._keep(value, name)
        elif isinstance(value, torch.Generator):
            self._alive[id(value)] = value
            self.generators.append(value)
        elif isinstance(value, (dict, list, tuple)):
            self._contents(value, name, listed)
        elif _followed(value) or (listed and hasattr(value, "__dict__") and not isinstance(value, _CODE)):
            self._alive[id(value)] = value
            self._contents(vars(value), name)
        elif listed:
            raise _unfit(name, value)

    def _contents(self, values: Any, name: str, listed: bool = False) -> None:
        self._alive[id(values)] = values
        if isinstance(values, dict):
            self._containers.append((name, values, dict(values)))
            items = list(values.items())
        else:
            if isinstance(values, list):
                self._containers.append((name, values, list(values)))
            items = list(enumerate(values))
        for key, value in items:
            self._meet(value, _named(name, key), listed)

    def _keep(self, tensor: Tensor, name: str) -> None:
        self._alive[id(tensor)] = tensor
        value = tensor.detach().clone() if self._values else None
        grad = tensor.grad if tensor.is_leaf else None
        self._tensors.append(_Kept(name, tensor, value, _storage(tensor), tensor.requires_grad, grad))
        if grad is not None:
            self._meet(grad, f"{name}.grad")


def _followed(value: object) -> bool:
    """Whether an object's attributes belong to what holds it: what an optimiser of ours keeps for its launches does."""
    ours = type(value).__module__.partition(".")[0] == "fastgan" and hasattr(value, "__dict__")
    return isinstance(value, (nn.Module, Optimizer)) or ours


class _Streams:
    """The states of the random streams: PyTorch's, those of ``generators``, Python's and numpy's."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._own = [(generator, generator.get_state()) for generator in generators]
        self._cpu, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def restore(self) -> None:
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)

    def moved_on_host(self) -> list[str]:
        moved = ["random"] if random.getstate() != self._python else []
        same = all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), self._numpy, strict=True))
        return moved if same else [*moved, "numpy.random"]


def _refill(container: Any, saved: Any) -> None:
    """Give a dict or a list what it held, in its order; one that still holds it is not touched."""
    if isinstance(saved, dict):
        pairs = zip(container.items(), saved.items(), strict=False)
        if len(container) != len(saved) or any(k is not i or v is not j for (k, v), (i, j) in pairs):
            container.clear()
            container.update(saved)
    elif len(container) != len(saved) or any(a is not b for a, b in zip(container, saved, strict=True)):
        container[:] = saved


def _at(container: Any, key: Any) -> object:
    if isinstance(container, dict):
        return container.get(key)
    return container[key] if key < len(container) else None


def memory(tensor: Tensor) -> int:
    """A number that tensors over the same memory share while one of them lives; 0 for those without memory."""
    storage = _storage(tensor)
    return 0 if storage is None else int(storage._cdata)


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a sparse tensor's is that of its parts
        return None


def _named(name: str, key: object) -> str:
    if key in _PASSED if isinstance(key, str) else isinstance(key, Tensor):
        return name
    return f"{name}.{key}" if isinstance(key, str) else f"{name}[{key}]"


def _unfit(name: str, value: object) -> UserError:
    kind = value.__name__ if isinstance(value, _CODE) else type(value).__name__
    return UserError(f"{name} is {kind!r}: state takes modules, optimisers, tensors, generators, and lists of these")
