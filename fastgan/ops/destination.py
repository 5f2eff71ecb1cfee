"""Where weights' gradients go: into memory that was made for them, such as one flat buffer's views.

``gather(loss, parameters, views)`` is a whole backward pass: each weight's product writes its gradient into the
parameter's view, and what came out elsewhere is copied there by one launch. With ``parameter.grad = view`` for ever an
optimiser finds them in place: nothing is zeroed, and nothing is added to what was there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops.shadow import Pair

ALIGNMENT = 16  # bytes

_places: dict[int, tuple[Tensor, Tensor]] = {}  # by the parameter's id: itself, and the view that is yet to be written


class Owners(NamedTuple):
    """Whose gradients are formed: a layer's weight and bias. None: it has the dtype that is computed in, and no view.

    ``lands``: whether a gradient may be written into its view; not one that has a graph of its own.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    lands: bool = True


def owners(weight: Tensor, bias: Tensor | None, shades: Pair) -> Owners:
    """Return what backward has to know of the operands, beside those that it saves."""
    return Owners(anchor(weight, shades[0]), None if bias is None else anchor(bias, shades[1]))


def anchor(operand: Tensor, shade: Tensor | None) -> Tensor | None:
    """Return an operand to hold on to: a leaf, which lives on anyhow, and one that a stand-in was computed with for."""
    base = operand._base
    held = shade is not None or operand.is_leaf or (base is not None and base.is_leaf)
    return operand if held else None


@contextlib.contextmanager
def into(places: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Have the first gradient that is formed for each parameter written into its view, for one backward pass.

    Args:
        places: for each parameter a view of its shape, strides and dtype, which nothing else reads meanwhile.

    Whoever runs the pass looks where each gradient came out (``landed``): those of parameters that are used twice, that
    have hooks, or that go by PyTorch alone do so elsewhere. The pass is torch.autograd.grad: ``backward()`` would add a
    view that is ``.grad`` to itself. Backward runs on threads of its own: so all threads see it.

    Raises:
        UserError: for a view of another shape, order or dtype.
    """
    for parameter, view in places.items():
        if view.shape != parameter.shape or view.stride() != parameter.stride() or view.dtype != parameter.dtype:
            raise UserError(
                "a gradient's view has its parameter's shape, strides and dtype: flat(parameters) makes some"
            )
    _places.update((id(parameter), (parameter, view)) for parameter, view in places.items())
    try:
        yield
    finally:
        for parameter in places:
            _places.pop(id(parameter), None)


def claim(owner: Tensor | None, contiguous: bool = False) -> Tensor | None:
    """Return the view for an owner's gradient, laid out as the owner, to who asks first; None where there is none.

    The owner is a parameter, or all of one seen in another shape. ``contiguous``: take the view only if it is so.
    """
    if not _places or owner is None:
        return None
    found, base = _places.get(id(owner)), owner._base
    if found is None and base is not None and _elements(owner) == _elements(base):
        found = _places.get(id(base))
    if found is None:
        return None
    parameter, view = found
    if owner is not parameter:
        view = view.as_strided(owner.shape, owner.stride(), view.storage_offset())
    if contiguous and not view.is_contiguous():
        return None
    return view if _places.pop(id(parameter), None) is not None else None


def _elements(tensor: Tensor) -> tuple[object, list[tuple[int, int]]]:
    """Return which elements a tensor has, whatever the order of its dimensions."""
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    return tensor.storage_offset(), sorted(axis for axis in axes if axis[1] != 1)


def memory(owner: Tensor | None, size: Sequence[int], like: Tensor, lands: bool = True) -> Tensor:
    """Return contiguous memory for an owner's gradient: its view, or new memory in its dtype, or in ``like``'s."""
    view = claim(owner, contiguous=True) if lands else None
    return like.new_empty(size, dtype=like.dtype if owner is None else owner.dtype) if view is None else view


def laid(owner: Tensor | None, like: Tensor, lands: bool = True) -> Tensor:
    """Return memory for an owner's gradient in the owner's memory order; without an owner, in that of ``like``."""
    view = claim(owner) if lands else None
    return torch.empty_like(like if owner is None else owner) if view is None else view


def flat(parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a buffer of zeros, and in it for each parameter a view of its shape, strides and dtype.

    Args:
        parameters: of one dtype, on one device, dense in memory by any order of dimensions.

    Returns:
        The buffer, of one dimension, and the views, each beginning at a multiple of 16 bytes.

    Raises:
        UserError: for parameters of several dtypes or devices, with gaps in memory, or none.
    """
    if len({(parameter.dtype, parameter.device) for parameter in parameters}) != 1:
        raise UserError("flat takes parameters of one dtype on one device: call it once for each kind")
    first = parameters[0]
    step = max(1, ALIGNMENT // first.element_size())
    starts, end = [], 0
    for parameter in parameters:
        starts.append(end)
        end += -(-parameter.numel() // step) * step
    buffer = torch.zeros(end, dtype=first.dtype, device=first.device)
    for parameter in parameters:
        if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
            raise UserError(f"flat takes parameters without gaps in memory, not strides {parameter.stride()}")
    views = [buffer.as_strided(p.shape, p.stride(), at) for p, at in zip(parameters, starts, strict=True)]
    return buffer, views


def gather(
    outputs: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    views: Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    inputs: Sequence[Tensor] = (),
) -> tuple[Tensor | None, ...]:
    """Run a backward pass that leaves each parameter's gradient in its view, whatever was there before.

    Returns the gradients of ``inputs``, wherever they are.

    Args:
        outputs, grad_outputs: as torch.autograd.grad takes them.
        parameters: leaves; one that outputs do not depend on gets zeros.
        views: as ``flat(parameters)`` returns them.
        inputs: further tensors to differentiate by.
    """
    with into(dict(zip(parameters, views, strict=True))):
        found: Any = torch.autograd.grad(outputs, [*parameters, *inputs], grad_outputs, allow_unused=True)
    gradients, others = found[: len(parameters)], found[len(parameters) :]
    elsewhere, there, unused = [], [], []
    for gradient, view in zip(gradients, views, strict=True):
        if gradient is None:
            unused.append(view)
        elif not landed(gradient, view):
            elsewhere.append(gradient)
            there.append(view)
    with torch.no_grad():
        if there:
            torch._foreach_copy_(there, elsewhere)
        if unused:
            torch._foreach_zero_(unused)
    return tuple(others)


def landed(gradient: Tensor, view: Tensor) -> bool:
    """Whether a gradient came out in its view."""
    return (
        gradient.data_ptr() == view.data_ptr()
        and gradient.stride() == view.stride()
        and gradient.shape == view.shape
        and gradient.dtype == view.dtype
    )
