"""StyleGAN's activations in plain PyTorch: the op itself, and its derivatives from what was saved for them.

The table in ``fastgan/kernels/gained_act.py`` says what that is and what the derivatives are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")  # the others have no second derivative
SELU, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

PHI: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linear": lambda u, alpha: u,
    "relu": lambda u, alpha: F.relu(u),
    "lrelu": F.leaky_relu,
    "tanh": lambda u, alpha: torch.tanh(u),
    "sigmoid": lambda u, alpha: torch.sigmoid(u),
    "elu": lambda u, alpha: F.elu(u),
    "selu": lambda u, alpha: F.selu(u),
    "softplus": lambda u, alpha: torch.logaddexp(u, u.new_zeros(())),
    "swish": lambda u, alpha: u * torch.sigmoid(u),
}


class Form(NamedTuple):
    """What is done to an input; a negative ``clamp``: none."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float

    def keeps(self) -> str:
        """Say what backward needs: the "output", the "input" (with its bias) or "nothing"."""
        if self.act == "swish":
            return "input"
        return "nothing" if self.act == "linear" and self.clamp < 0 else "output"


def shaped(bias: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return a bias in the dtype of ``like`` and so that it is added along a dimension of it."""
    return bias.to(like.dtype).view([-1 if at == dim else 1 for at in range(like.dim())])


def activated(input: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Return clamp(gain phi(input + bias)); what reaches the clamp has no derivative."""
    u = input if bias is None else input + shaped(bias, input, form.dim)
    y = PHI[form.act](u, form.alpha)
    if form.gain != 1:
        y = y * form.gain
    return y if form.clamp < 0 else torch.where(y.abs() < form.clamp, y, y.detach().clamp(-form.clamp, form.clamp))


def sloped(grad: Tensor, saved: Tensor | None, bias: Tensor | None, form: Form) -> Tensor:
    """Return grad h, differentiable by grad and by what was saved."""
    if saved is None:
        return grad * form.gain
    u = saved if bias is None else saved + shaped(bias, saved, form.dim)
    t, act = u / form.gain, form.act
    if act == "linear":
        h = torch.ones_like(t)
    elif act in ("relu", "lrelu"):
        h = torch.where(t > 0, torch.ones_like(t), form.alpha if act == "lrelu" else 0.0)
    elif act == "tanh":
        h = 1 - t * t
    elif act == "sigmoid":
        h = t * (1 - t)
    elif act == "elu":
        h = torch.where(t > 0, 1.0, 1 + t)
    elif act == "selu":
        h = torch.where(t > 0, SELU, t + SELU * SELU_ALPHA)
    elif act == "softplus":
        h = -torch.expm1(-t)
    else:
        s = torch.sigmoid(u)
        h = s * (1 + u * (1 - s))
    return _held(grad * (h * form.gain), u, form)


def bent(grad: Tensor, other: Tensor, saved: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Return grad other h', of a smooth activation, differentiable by all of them."""
    u = saved if bias is None else saved + shaped(bias, saved, form.dim)
    t, act = u / form.gain, form.act
    if act == "tanh":
        h = -2 * t
    elif act == "sigmoid":
        h = 1 - 2 * t
    elif act in ("elu", "selu"):
        h = (t <= 0).to(t.dtype)
    elif act == "softplus":
        h = torch.exp(-t)
    else:
        s = torch.sigmoid(u)
        h = form.gain * (s * (1 - s) * (2 + u * (1 - 2 * s)))
    return _held(grad * other * h, u, form)


def _held(gradient: Tensor, u: Tensor, form: Form) -> Tensor:
    """Return a gradient, 0 where the output had reached the clamp."""
    if form.clamp < 0:
        return gradient
    y = PHI["swish"](u, 0.0) * form.gain if form.act == "swish" else u
    return torch.where(y.detach().abs() < form.clamp, gradient, 0)
