"""The products that a convolution is made of, as its launches describe them to the choice of a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.workloads import Convolution

if TYPE_CHECKING:
    from fastgan.kernels.norm import Norm
    from fastgan.kernels.problem import Problem, Target
    from fastgan.ops.conv_form import Form

GRADIENTS = ("input", "weight")


def form_of(layer: Convolution) -> Form:
    """Return what a convolution is told beside its operands; a signal has a height of 1."""
    from fastgan.ops.conv_form import Form

    flat = layer.dims == 1
    return Form(
        stride=(1 if flat else layer.stride, layer.stride),
        padding=(0 if flat else layer.padding, layer.padding),
        dilation=(1 if flat else layer.dilation, layer.dilation),
        transposed=layer.transposed,
        output_padding=(0 if flat else layer.output_padding, layer.output_padding),
        upsample=layer.upsample,
    )


def problem_of(
    layer: Convolution,
    batch: int,
    dtype: torch.dtype,
    direction: str,
    target: Target,
    *,
    raw: bool = False,
    measured: bool = False,
    pending: bool = False,
) -> Problem:
    """Return the product of one direction: forward, input (its gradient) or weight.

    Args:
        layer, batch, dtype: of the operands, images channels_last.
        direction: which.
        target: the card.
        raw: the input has yet to go through a norm (backward: its gradient goes back through it).
        measured: a norm follows: forward takes statistics, backward corrects the incoming gradient by them.
        pending: the incoming gradient has yet to go through an activation.
    """
    from fastgan.kernels.conv import fwd_problem
    from fastgan.kernels.conv_bwd_input import bwd_input_problem
    from fastgan.kernels.conv_bwd_weight import bwd_weight_problem
    from fastgan.kernels.norm import Correction, Statistics

    x, weight, y = operands_of(layer, batch, dtype)
    form = form_of(layer)
    geometry, (forward, backward) = form.geometry(x.shape, weight.shape), form.maps()
    norm = norm_of(x) if raw else None
    vector = y.new_empty(1, y.shape[1], dtype=torch.float32)
    if direction == "forward":
        statistics = Statistics(vector, vector, None, None, None, 0.0) if measured else None
        return fwd_problem(x, weight, geometry, forward, target, norm, statistics)
    saved = y if measured or pending else None
    correction = Correction(vector, vector, vector) if measured else None
    if direction == "input":
        return bwd_input_problem(y, saved, weight, geometry, backward, target, correction, None, norm)
    return bwd_weight_problem(y, saved, x, weight, geometry, target, correction, norm)


def operands_of(layer: Convolution, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and y without values."""

    def shape(size: int) -> tuple[int, int]:
        return (1, size) if layer.dims == 1 else (size, size)

    sizes = (
        (batch, layer.in_channels, *shape(layer.size)),
        (*layer.weight_shape[:2], *shape(layer.kernel)),
        (batch, layer.out_channels, *shape(layer.out_size)),
    )
    place = {"device": "meta", "memory_format": torch.channels_last}
    x, weight, y = (torch.empty(size, dtype=dtype, **place) for size in sizes)  # type: ignore[call-overload]
    return x, weight, y


def norm_of(raw: Tensor) -> Norm:
    """Return a norm of that many channels."""
    from fastgan.kernels.norm import Norm

    vector = raw.new_empty(1, raw.shape[1], dtype=torch.float32)
    return Norm(vector, vector, vector[0], vector[0], 1e-5, "relu", 0.0)


def by_ours(layer: Convolution, batch: int, dtype: str, direction: str, device: torch.device) -> bool:
    """Whether ``auto`` lets our kernels compute one direction of a layer, as measured or expected on this card."""
    from fastgan.kernels.conv_product import conv_target
    from fastgan.kernels.tile import prefers_library

    target = conv_target(torch.empty(0, dtype=MATRIX[dtype], device=device))
    pending = layer.activation != "none" and direction in GRADIENTS
    return not prefers_library(problem_of(layer, batch, MATRIX[dtype], direction, target, pending=pending))
