"""What to watch while two networks train: norms of gradients and of weights, on the device in a few launches.

The norm of a critic's gradient at samples stands beside every penalty (``Penalty.norm``); without one,
``with torch.no_grad(): r1(critic, samples).norm`` forms no graph.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients taken together, those of a network: a float32 scalar on their device.

    Args:
        parameters: those without a gradient count nothing.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return norm(gradients) if gradients else norm([parameter.detach()[:0] for parameter in parameters[:1]])


def weight_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all parameters taken together: a float32 scalar on their device."""
    return norm(parameters)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all elements of some tensors: detached, float32 (float64 if one is), on their device.

    Sums are in float32 for 16-bit tensors too. Nothing waits for the device. One launch or two for 100 tensors, and two
    more. NaN and infinity come through. No tensors give 0 on the CPU.

    Args:
        tensors: on one device, of any floating dtypes and shapes.
    """
    tensors = [tensor.detach() for tensor in tensors]
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    if not tensors:
        return torch.zeros((), dtype=wide)
    parts = torch._foreach_norm(tensors, 2, dtype=wide)
    return torch.linalg.vector_norm(torch.stack(parts))
