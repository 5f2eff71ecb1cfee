"""Where a player's gradients go: wherever backward leaves them, or always into the same memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.ops import destination, peers


class Gradients:
    """The gradients of an optimiser's parameters, formed by one backward pass for each step.

    Nothing is zeroed or added to. ``fixed``: each weight's product writes its gradient into a view of one flat buffer,
    so that an optimiser in a captured graph finds them where they always are. Parameters with hooks of their own, such
    as DistributedDataParallel's, are left to PyTorch, as are several dtypes. Within ``peers.together`` gradients are
    averaged over all processes: one reduction of the flat buffer, or one for each dtype.
    """

    def __init__(self, optimizer: Optimizer, *, fixed: bool) -> None:
        self._optimizer = optimizer
        self.buffers: list[Tensor] = []
        self._views: list[Tensor] = []
        parameters = self._parameters()
        if fixed and parameters and _alike(parameters):
            buffer, self._views = destination.flat(parameters)
            self.buffers.append(buffer)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def clear(self) -> None:
        """Let go of gradients that were used: what comes next finds their memory free, and warm."""
        if not self._views:
            for parameter in self._parameters():
                parameter.grad = None

    def form(self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaf: Tensor | None = None) -> Tensor | None:
        """Run backward from ``outputs`` with ``seeds``; return the gradient of ``leaf``, where one is given."""
        parameters = self._parameters()
        if len(self._views) != len(parameters):
            for parameter in parameters:
                parameter.grad = None  # what backward forms is then kept as it is
            torch.autograd.backward(outputs, seeds)
            self._average([parameter.grad for parameter in parameters if parameter.grad is not None])
            return None if leaf is None else leaf.grad
        found = destination.gather(outputs, parameters, self._views, seeds, () if leaf is None else (leaf,))
        if (team := peers.current()) is not None:
            team.average_(self.buffers[0])
        for parameter, view in zip(parameters, self._views, strict=True):
            parameter.grad = view
        return found[0] if found else None

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Average gradients that lie apart over all processes."""
        team = peers.current()
        if team is None:
            return
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            own = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = team.average_(torch.cat([gradient.reshape(-1) for gradient in own]))
            for gradient, part in zip(own, flat.split([gradient.numel() for gradient in own]), strict=True):
                gradient.copy_(part.view(gradient.shape))


def _alike(parameters: Sequence[Tensor]) -> bool:
    """Whether one buffer can hold the gradients of all, formed without calling anybody."""
    first = parameters[0]
    return len({id(parameter) for parameter in parameters}) == len(parameters) and all(
        p.dtype == first.dtype
        and p.device == first.device
        and p.layout == torch.strided
        and torch.empty_like(p, device="meta").stride() == p.stride()
        and not (p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))
        for p in parameters
    )
