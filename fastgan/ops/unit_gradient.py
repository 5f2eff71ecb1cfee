"""The constant 1 from which backward may start, known by what it is and not by what it holds."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.registration import traced, transformed

_ones: dict[torch.device, Tensor] = {}


def unit_gradient(loss: Tensor) -> Tensor:
    """Return the constant 1 in the loss's dtype and on its device: ``loss.backward(unit_gradient(loss))``.

    What ``loss.backward()`` means, two launches cheaper: no 1 is filled in, and a loss of this library that is handed
    this very tensor, through a sum with others too, gives its slopes as they are instead of multiplying by it. It is
    shared: do not write to it, nor, with ``retain_graph``, to the logits' gradients, which are then what is kept.
    """
    if loss.dtype != torch.float32 or traced(loss) or transformed():
        return torch.ones_like(loss, memory_format=torch.contiguous_format)
    one = _ones.get(loss.device)
    if one is None:
        with torch.inference_mode(False):
            one = torch.ones((), device=loss.device)
        if not (loss.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph's memory is the graph's
            _ones[loss.device] = one
    return one


def times(slopes: Tensor, grad: Tensor) -> Tensor:
    """Return the slopes times an incoming gradient; as they are where it is that very constant."""
    return slopes if grad is _ones.get(grad.device) else slopes * grad
