"""The activations that ops fuse: their names, and in plain PyTorch their forms and derivatives from what was saved.

The table in ``fastgan/kernels/activation.py`` says what each of them saves for its backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import unknown

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")
SMOOTH = ("tanh", "sigmoid")  # the others are piecewise linear: their second derivative is 0


def check(activation: str) -> str:
    """Return the name if it is known; raise a ``UserError`` with the nearest known name if it is not."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    return activation


def saves_pre_activation(activation: str, negative_slope: float) -> bool:
    """Whether the output's sign does not tell which side of 0 the pre-activation was on."""
    return activation == "leaky_relu" and negative_slope < 0


def activate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Return phi(pre), as torch.nn.functional does."""
    if activation == "leaky_relu":
        return F.leaky_relu(pre, negative_slope)
    if activation == "relu":
        return F.relu(pre)
    if activation == "tanh":
        return torch.tanh(pre)
    if activation == "sigmoid":
        return torch.sigmoid(pre)
    check(activation)
    return pre


def times_derivative(grad: Tensor, saved: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Return grad * phi', from the saved output (the pre-activation for negative slopes)."""
    if saved is None:
        return grad
    if activation == "leaky_relu":  # one launch; it has no second derivative, so what was saved gets none either
        return torch.ops.aten.leaky_relu_backward(grad, saved.detach(), negative_slope, False)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, saved.detach(), 0)
    if activation == "tanh":
        return grad * (1 - saved * saved)
    return grad * (saved * (1 - saved))


def times_second_derivative(grad: Tensor, saved: Tensor, activation: str) -> Tensor:
    """Return grad times the derivative of phi' with respect to the saved output, for a smooth activation."""
    return grad * (-2 * saved if activation == "tanh" else 1 - 2 * saved)
