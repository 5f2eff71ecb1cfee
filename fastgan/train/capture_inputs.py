"""A step's arguments as memory that stays where it is: each call copies its own into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from fastgan.errors import UserError


class Inputs:
    """Copies of the first call's tensors, and its other arguments, which are constants.

    Args:
        step: whose parameters' names are told in errors.
        args, kwargs: of the first call.
        device: where the step runs.

    Raises:
        UserError: for a tensor elsewhere, and for a numpy array.
    """

    def __init__(
        self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
    ) -> None:
        leaves, self._structure = tree_flatten((args, kwargs))
        self._names = _names(step, args, kwargs)
        for name, leaf in zip(self._names, leaves, strict=True):
            if isinstance(leaf, np.ndarray):
                raise UserError(f"input {name} is a numpy array, which a graph would keep for ever: give a tensor")
            if isinstance(leaf, Tensor) and leaf.device.type != device.type:
                raise UserError(f"input {name} lies on {leaf.device} and the step runs on {device}: move it there")
        self._own = [_static(leaf) for leaf in leaves]
        self.tensors = [own for own in self._own if isinstance(own, Tensor)]
        self._kinds = [_kind(own) if isinstance(own, Tensor) else None for own in self._own]
        self._memory = [tensor.detach() for tensor in self.tensors]
        self._plain = not any(tensor.requires_grad for tensor in self.tensors)  # then copying records nothing
        self._flat = not kwargs and all(a is b for a, b in zip(args, leaves, strict=False)) and len(args) == len(leaves)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The step's arguments, as static as they are. Gradients of an earlier run are gone."""
        for tensor in self.tensors:
            tensor.grad = None
        args, kwargs = tree_unflatten(self._own, self._structure)
        return args, kwargs

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy a call's tensors in. Raises ``UserError``, with nothing copied, where they are of another kind."""
        if self._flat and not kwargs and len(args) == len(self._own):
            leaves: Any = args
        else:
            leaves, structure = tree_flatten((args, kwargs))
            if structure != self._structure:
                raise UserError(
                    f"the inputs' structure has changed, from {_shown(self._structure)} to {_shown(structure)}:"
                    " a captured step has one; capture the step once more for another"
                )
        given = []
        for at, leaf in enumerate(leaves):
            kind = self._kinds[at]
            if kind is None:
                self._compare(at, leaf)
            elif not isinstance(leaf, Tensor) or leaf.shape != kind[0] or _rest(leaf) != kind[1]:
                raise UserError(
                    f"input {self._names[at]} has changed, from {_told(self._own[at])} to {_told(leaf)}: a captured"
                    " step has fixed shapes; leave out a last, smaller batch, or capture the step once more for it"
                )
            else:
                given.append(leaf)
        if given:
            with nullcontext() if self._plain else torch.no_grad():
                torch._foreach_copy_(self._memory, given)

    def _compare(self, at: int, leaf: Any) -> None:
        own = self._own[at]
        if leaf is not own and (type(leaf) is not type(own) or not bool(leaf == own)):
            raise UserError(
                f"input {self._names[at]} has changed, from {_told(own)} to {_told(leaf)}: what is no tensor is a"
                " constant of a captured step; make it a tensor, or capture the step once more for it"
            )


def _static(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _kind(tensor: Tensor) -> tuple[torch.Size, tuple[object, ...]]:
    return tensor.shape, _rest(tensor)


def _rest(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tensor.requires_grad


def _told(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return f"{leaf!r:.60}"
    gradient = ", requiring a gradient" if leaf.requires_grad else ""
    return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}{gradient}"


def _shown(structure: Any) -> str:
    """A structure as its arguments would be written: ``(x, [x, x])``."""
    args, kwargs = tree_unflatten([_Leaf()] * structure.num_leaves, structure)
    return str(args) + (f" and {kwargs}" if kwargs else "")


class _Leaf:
    def __repr__(self) -> str:
        return "x"


def _names(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Name each leaf by the step's parameter and the way from there: ``'batch'['image']``."""
    try:
        bound = inspect.signature(step).bind(*args, **kwargs).arguments
        parameters = inspect.signature(step).parameters
        positional = [name for name in bound if parameters[name].kind in _BY_PLACE]
    except (TypeError, ValueError):
        positional = []
    names = []
    for path, _ in tree_flatten_with_path((args, kwargs))[0]:
        first, at, *rest = path
        if first.idx == 0:  # type: ignore[attr-defined]
            place = at.idx  # type: ignore[attr-defined]
            name = repr(positional[place]) if place < len(positional) else f"number {place}"
        else:
            name = repr(at.key)  # type: ignore[attr-defined]
        names.append(name + keystr(tuple(rest)))
    return names


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
