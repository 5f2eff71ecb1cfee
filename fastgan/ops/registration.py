"""What every op needs of PyTorch: to be seen as one opaque operator, and to know who is looking and what they want."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("fastgan", "FRAGMENT")
Function = TypeVar("Function", bound=Callable[..., Any])
_PLAIN = (Tensor, torch.nn.Parameter)
_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def known_when_compiled(function: Function) -> Function:
    """Have torch.compile call the function while it traces, and take the result for a constant.

    As torch.compiler.assume_constant_result, which would import the whole compiler here and now.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def register_op(
    schema: str, *, compute: Callable[..., Any], fake: Callable[..., Any], autograd: Callable[..., Any]
) -> Any:
    """Define ``fastgan::<schema>``, which torch.compile, torch.export and fake tensors then know, and return it.

    Args:
        schema: such as ``"scale(Tensor input, float by) -> Tensor"``; its outputs alias nothing. One that
            writes to an operand, ``Tensor(a!)``, moves its version in ``autograd``.
        compute: runs it on the CPU or on a GPU, below autograd.
        fake: returns empty outputs of the right shape, dtype and strides.
        autograd: runs it where a gradient may be asked for; calls the op again inside ``below_autograd()``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CPU")
    _LIBRARY.impl(name, compute, "CUDA")
    _LIBRARY.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastgan, name).default


def below_autograd() -> Any:
    """Return a context in which a registered op computes and records nothing."""
    return torch._C._AutoDispatchBelowAutograd()


def traced(*tensors: Tensor | None) -> bool:
    """Whether someone must see the op as one operator: a compiler, a dispatch mode, a tensor subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if torch._C._get_tracing_state() is not None:
        return True
    for tensor in tensors:  # noqa: SIM110 -- a generator would cost as much again as all the rest
        if tensor is not None and type(tensor) not in _PLAIN:
            return True
    return False


@known_when_compiled
def transformed() -> bool:
    """Whether a functional transform (vmap, grad, jvp) or forward-mode differentiation is under way."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(*gradients: Tensor | None) -> bool:
    """Whether gradients are batches of gradients: by vmap, or by ``torch.autograd.grad(is_grads_batched=True)``."""
    return transformed() or any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in gradients)


def autocast(input: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Cast floating tensors on the input's device, other than float64, as autocast does for a matrix product there."""
    dtype, kind = autocast_dtype(input), input.device.type
    if dtype is None:
        return input, *others
    return tuple(t.to(dtype) if t is not None and eligible(t, kind) else t for t in (input, *others))


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast wants of operands on the input's device; None where it is off."""
    if not _any_autocast():
        return None
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def eligible(tensor: Tensor, kind: str) -> bool:
    """Whether autocast for that kind of device casts the tensor."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == kind


def asked_for(ctx: Any) -> tuple[bool, ...]:
    """Return, for each argument of an ``autograd.Function``, whether this backward pass will use its gradient.

    ``ctx.needs_input_grad`` stays True for a leaf that ``torch.autograd.grad`` was not asked about (a critic's weights
    while its gradient penalty is formed); the engine knows better.
    """
    nodes = iter([node for node, _ in ctx.next_functions if node is not None])
    return tuple(needed and _will_run(next(nodes, None)) for needed in ctx.needs_input_grad)


def _will_run(node: Any) -> bool:
    try:
        return node is None or torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that torch.autograd.grad was asked about: the engine only captures its gradient
        return True
