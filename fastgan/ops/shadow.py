"""Shadows of weights: copies in another dtype and in the kernels' own memory order, refreshed by who moves the weights.

Under autocast to a shadow's dtype the ops multiply by the shadow and differentiate by the weight: nothing is cast, and
the weight's gradient comes out of its product in the weight's dtype. Without a shadow a copy is made for the call, and
the gradient comes out likewise. A shadow belongs to its parameter as long as both live; nothing is written on the
parameter, so copies, pickles and ``state_dict`` know nothing of it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops.registration import autocast, autocast_dtype, eligible, traced

Pair = tuple[Tensor | None, Tensor | None]  # of a weight and a bias
NEITHER: Pair = (None, None)

_shadows: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by the parameter's id


def attach(parameter: Tensor, shadow: Tensor) -> None:
    """Have ops that run in the shadow's dtype under autocast compute with it in the parameter's place.

    Args:
        parameter: a leaf, best that of a module.
        shadow: its values in another floating dtype, on its device, of its shape, by any strides; without a gradient of
            its own. Whoever moves the parameter copies it into the shadow again: nobody looks whether they agree.

    Raises:
        UserError: for a shadow that is none.
    """
    _check(parameter, shadow)
    number = id(parameter)

    def forget(gone: weakref.ref[Tensor]) -> None:
        if _shadows.get(number, (None,))[0] is gone:
            del _shadows[number]

    _shadows[number] = (weakref.ref(parameter, forget), shadow)


def detach(parameter: Tensor) -> None:
    """Forget the parameter's shadow, if it has one."""
    if _known(parameter) is not None:
        del _shadows[id(parameter)]


@contextlib.contextmanager
def shadows(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Attach shadows to their parameters, ``(parameter, shadow)``, for a while; then what was there before."""
    pairs = list(pairs)
    for parameter, shadow in pairs:
        _check(parameter, shadow)
    before = [(parameter, _known(parameter)) for parameter, _ in pairs]
    for parameter, shadow in pairs:
        attach(parameter, shadow)
    try:
        yield
    finally:
        for parameter, former in reversed(before):
            if former is None:
                detach(parameter)
            else:
                attach(parameter, former)


def shadow_of(parameter: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the parameter's shadow of that dtype; for a signal's weights as those of an image, the shadow as such."""
    if not _shadows:
        return None
    shadow = _known(parameter)
    if shadow is None and parameter.dim() == 4:
        base = parameter._base
        if base is not None and base.dim() == 3 and parameter.shape == base.unsqueeze(2).shape:
            shadow = _known(base)
            shadow = None if shadow is None else shadow.unsqueeze(2)
    return shadow if shadow is not None and shadow.dtype == dtype else None


def _known(parameter: Tensor) -> Tensor | None:
    found = _shadows.get(id(parameter))
    return found[1] if found is not None and found[0]() is parameter else None


def _check(parameter: Tensor, shadow: Tensor) -> None:
    shape, given = tuple(parameter.shape), tuple(shadow.shape)
    if not parameter.is_leaf:
        raise UserError("a shadow goes with a leaf, such as a module's parameter, not with a computed tensor")
    if shape != given or shadow.device != parameter.device:
        where = f"{given} on {shadow.device}, its parameter {shape} on {parameter.device}"
        raise UserError(f"a shadow has its parameter's shape and device: this one is {where}")
    if shadow.dtype == parameter.dtype or not shadow.is_floating_point() or shadow.requires_grad:
        raise UserError(
            f"a shadow has another floating dtype than its parameter ({parameter.dtype}) and no gradient, not"
            f" {shadow.dtype}{' with one' if shadow.requires_grad else ''}"
        )


def stand_in(operand: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is computed with in an operand's place: its shadow, or a copy in that dtype; None: itself.

    A stand-in has no graph. Filters are copied channels_last, as the kernels read them.
    """
    if operand is None or operand.dtype == dtype:
        return None
    shadow = shadow_of(operand, dtype)
    if shadow is not None:
        return shadow
    order = torch.channels_last if operand.dim() == 4 else torch.preserve_format
    return operand.detach().to(dtype, memory_format=order)


def stand_ins(input: Tensor, *operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return stand-ins for operands that autocast would cast beside such an input; None for the others."""
    dtype = autocast_dtype(input)
    if dtype is None:
        return (None,) * len(operands)
    kind = input.device.type
    return tuple(stand_in(t, dtype) if t is not None and eligible(t, kind) else None for t in operands)


def lowered(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Pair, bool]:
    """Return a layer's operands as autocast has them: input, weight, bias, stand-ins of both, and whether to go direct.

    Where a tracer looks on, weight and bias are cast in its sight; otherwise they stay, and stand-ins have the dtype.
    """
    if traced(input, weight, bias):
        return *autocast(input, weight, bias), NEITHER, False
    (x,) = autocast(input)
    of_weight, of_bias = stand_ins(input, weight, bias)
    return x, weight, bias, (of_weight, of_bias), True


def used(weight: Tensor, bias: Tensor | None, shades: Pair) -> tuple[Tensor, Tensor | None]:
    """Return what is computed with: stand-ins where there are any."""
    return weight if shades[0] is None else shades[0], bias if shades[1] is None else shades[1]
