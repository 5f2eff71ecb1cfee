"""linear_act_stack: linear layers of several members, each with its own weight, as one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference, register
from fastgan.ops.linear_choice import by_library
from fastgan.ops.registration import asked_for, autocast, batched, traced, transformed

OP = register("linear_act_stack")
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of input, weight and bias, where they are wanted


def linear_act_stack(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(input[i] @ weight[i].T + bias[i]) for each member i: one launch, and two backward.

    Args:
        input: (members, n, in_features), any strides; bf16, fp16 or fp32, or any other dtype by plain PyTorch. The
            kernels copy what does not lie as (members * n, in_features).
        weight: (members, out_features, in_features), any strides, of the same dtype.
        bias: (members, out_features) or None.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.

    Returns:
        (members, n, out_features), in the input's dtype, accumulated in fp32; under autocast as torch.bmm. No member
        sees another's numbers: a NaN stays with its own.

    Gradient order: any, with respect to input, weight and bias; the second and further ones by plain PyTorch, and so
    does the whole op under torch.compile and functional transforms. What is saved for it: input, weight, and the output
    (the pre-activation for a negative slope).

    Raises:
        UserError: for an unknown activation.
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.baddbmm raises it.
    """
    act.check(activation)
    if by_reference(OP, input) or traced(input, weight, bias) or transformed():
        return _plain(input, weight, bias, activation, negative_slope)
    x, weight, bias = autocast(input, weight, bias)
    if by_reference(OP, x) or not _fits(x, weight, bias) or _by_library(x, weight):
        return _plain(x, weight, bias, activation, negative_slope)
    output: Tensor = _LinearActStack.apply(x, weight, bias, activation, negative_slope)
    return output


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Compute by plain PyTorch: the definition of right."""
    across = weight.transpose(-1, -2)
    pre = torch.bmm(input, across) if bias is None else torch.baddbmm(bias.unsqueeze(1), input, across)
    return act.activate(pre, activation, negative_slope)


def _by_library(x: Tensor, weight: Tensor) -> bool:
    """Whether the products are surely faster by cuBLAS, whose batches are these."""
    return by_library("linear_fwd", x.shape[0] * x.shape[1], weight.shape[1], weight.shape[2], x)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    return (
        x.dim() == weight.dim() == 3
        and x.layout == weight.layout == torch.strided
        and x.shape[0] == weight.shape[0]
        and x.shape[2] == weight.shape[2]
        and (bias is None or bias.shape == weight.shape[:2])
        and all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in (weight, bias))
    )


class _LinearActStack(Function):
    """y = phi(x W^T + b) by member. Saves x, W, and the output or the pre-activation, each only where it is needed."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
    ) -> Tensor:
        from fastgan.kernels.linear_act_stack import linear_act_stack_fwd

        ctx.set_materialize_grads(False)
        how = activation, negative_slope
        output, pre = linear_act_stack_fwd(input, weight, bias, *how, act.saves_pre_activation(*how))
        saved = None if activation == "none" else output if pre is None else pre
        to_input, to_weight, _ = ctx.needs_input_grad[:3]
        ctx.save_for_backward(input if to_weight else None, weight if to_input else None, saved)
        ctx.how = how
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        input, weight, saved = ctx.saved_tensors
        form = _formulas if torch.is_grad_enabled() or batched(grad) else _kernels
        return (*form(grad, input, weight, saved, asked_for(ctx)[:3], *ctx.how), None, None)


def _formulas(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, wanted: Sequence[bool], activation: str,
    negative_slope: float,
) -> Gradients:  # fmt: skip
    """Form the gradients by arithmetic that can be differentiated itself: g = gy phi'; g W, g^T x, the sum of g."""
    if saved is not None and activation not in act.SMOOTH:
        saved = saved.detach()
    g = act.times_derivative(grad, saved, activation, negative_slope)
    return (
        torch.matmul(g, weight) if wanted[0] else None,
        torch.matmul(g.transpose(-1, -2), input) if wanted[1] else None,
        g.sum(-2) if wanted[2] else None,
    )


def _kernels(
    grad: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, wanted: Sequence[bool], activation: str,
    negative_slope: float,
) -> Gradients:  # fmt: skip
    from fastgan.kernels.linear_act_stack import linear_act_stack_bwd_input, linear_act_stack_bwd_weight

    how = activation, negative_slope
    gx = linear_act_stack_bwd_input(grad, saved, weight, *how) if wanted[0] else None
    if wanted[1]:
        return gx, *linear_act_stack_bwd_weight(grad, saved, input, *how, wanted[2])
    column = act.times_derivative(grad, saved, *how).sum(1) if wanted[2] else None
    return gx, None, column
