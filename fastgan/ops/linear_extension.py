"""Backward of a linear layer by the CUDA C++ extension: which gradients its one launch forms, and where they go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import extension
from fastgan.ops.destination import Owners, memory


def gradients(
    g: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
    gb: Tensor | None,
    activation: str,
    slope: float,
    wanted: Sequence[bool],
    owners: Owners,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weight by one launch, which writes the bias's too where it has a weight's."""
    x, w = x if wanted[1] else None, weight if wanted[0] else None
    gw = None if x is None else memory(owners.weight, (g.shape[1], x.shape[1]), g, owners.lands)
    beside = None if x is None else gb
    if gb is not None and beside is None:
        torch.sum(act.times_derivative(g, mask, activation, slope), 0, dtype=gb.dtype, out=gb)
    if x is None and w is None:
        return None, None
    gx = extension.linear_act_backward(g, mask, x, w, gw, beside, activation, slope)
    return gx if w is not None else None, gw
