"""linear_act: a linear layer with its bias, activation and dropout as one op, differentiable as often as asked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import dropout as drop
from fastgan.ops.backend import by_reference
from fastgan.ops.linear_autograd import apply
from fastgan.ops.linear_compute import OP, fits
from fastgan.ops.linear_dropout import apply_with_dropout
from fastgan.ops.registration import traced, transformed
from fastgan.ops.shadow import lowered, used


def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    dropout_first: bool = False,
    rng: Tensor | None = None,
) -> Tensor:
    """Return dropout(activation(input @ weight.T + bias)): one launch forward and two backward, where the kernels run.

    Args:
        input: (..., in_features), any strides; bf16, fp16 or fp32, or any other dtype by plain PyTorch.
        weight: (out_features, in_features), any strides, of the same dtype.
        bias: (out_features) or None.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.
        dropout: the probability to drop an output, in [0, 1], as torch.nn.functional.dropout's ``p`` in training.
        dropout_first: drop before the activation instead of after it.
        rng: (2,) int64 on the input's device, a seed and an offset that fix what is dropped: the mask is computed from
            them in forward and again in backward, and never stored. None: they come from PyTorch's generator.

    Returns:
        (..., out_features), in the input's dtype, accumulated in fp32; under autocast as torch.nn.functional.linear.

    Gradient order: any, with respect to input, weight and bias. What is saved for it: input, weight, and the output
    (the pre-activation for a negative slope). Functional transforms (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown activation, or a probability outside [0, 1].
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.nn.functional.linear raises it.
    """
    if dropout:
        return _with_dropout(input, weight, bias, activation, negative_slope, drop.check(dropout), dropout_first, rng)
    if by_reference(OP, input):
        return act.activate(F.linear(input, weight, bias), activation, negative_slope)
    x, weight, bias, shades, direct = lowered(input, weight, bias)
    if (x is not input and by_reference(OP, x)) or not fits(x, *used(weight, bias, shades)) or transformed():
        return act.activate(F.linear(x, weight, bias), activation, negative_slope)
    return apply(x, weight, bias, act.check(activation), negative_slope, direct, shades)


def _with_dropout(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    p: float,
    first: bool,
    rng: Tensor | None,
) -> Tensor:
    """Drop in the kernels' epilogue, or by PyTorch where they do not run or a tracer must see it."""
    act.check(activation)
    rng = None if rng is None else drop.usable(rng, input.device)
    if not by_reference(OP, input) and not transformed() and not traced(input, weight, bias):
        x, weight, bias, shades, _ = lowered(input, weight, bias)
        if not by_reference(OP, x) and fits(x, *used(weight, bias, shades)):
            rng = drop.draw(x.device) if rng is None else rng
            return apply_with_dropout(x, weight, bias, rng, activation, negative_slope, p, first, shades)
    if first:
        return act.activate(
            _dropped(linear_act(input, weight, bias, activation="none"), p, rng), activation, negative_slope
        )
    whole = linear_act(input, weight, bias, activation=activation, negative_slope=negative_slope)
    return _dropped(whole, p, rng)


def _dropped(values: Tensor, p: float, rng: Tensor | None) -> Tensor:
    return F.dropout(values, p) if rng is None else drop.dropped(values, rng, p)
