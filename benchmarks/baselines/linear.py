"""A linear layer and what follows it, as PyTorch offers it: as people write it, compiled, and by cuBLASLt's epilogues.

A layer's operands, in this order: x (batch, in_features less what is joined); where something is joined, the condition
(batch, joined), or a label's index (batch) and table (classes, joined); weight (rows, in_features), bias (rows); where
there is a norm, its scale and shift (rows), its running mean and variance (rows), and the count of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from fastgan.benchmarks.ceilings import MATRIX, TF32_ULP
from fastgan.benchmarks.gate import largest
from fastgan.benchmarks.race import in_fp64
from fastgan.benchmarks.workloads import Layer

Forward = Callable[..., Tensor]  # of a layer's operands

UNSETTLED = 1e-5  # of the largest pre-activation: fp32 sums tell signs only above it
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda pre: pre,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def pre_activation(layer: Layer) -> Forward:
    """Return what stands in front of the activation: (batch, out_features), of a maxout (batch, out_features, pieces).

    The running statistics of a norm are moved on.
    """

    def call(x: Tensor, *operands: Tensor) -> Tensor:
        if layer.classes:
            index, table, *operands = operands  # type: ignore[assignment]
            x = torch.cat((x, F.embedding(index, table)), 1)
        elif layer.joined:
            condition, *operands = operands  # type: ignore[assignment]
            x = torch.cat((x, condition), 1)
        weight, bias, *norm = operands
        pre = F.linear(x, weight, bias)
        if layer.norm is not None:
            scale, shift, mean, variance, batches = norm
            batches.add_(1)  # as nn.BatchNorm1d does
            pre = F.batch_norm(pre, mean, variance, scale, shift, training=True, eps=layer.norm)
        return pre if layer.pieces == 1 else pre.unflatten(1, (layer.out_features, layer.pieces))

    return call


def eager(layer: Layer) -> Forward:
    """Return the layer as people write it: (batch, out_features)."""
    before = pre_activation(layer)
    if layer.pieces > 1:
        return lambda *operands: before(*operands).max(2).values
    if layer.activation == "leaky_relu":
        return lambda *operands: F.leaky_relu(before(*operands), layer.slope)
    activate = ACTIVATIONS[layer.activation]
    return lambda *operands: activate(before(*operands))


def compiled(layer: Layer, mode: str | None = None) -> Forward:
    """Return the layer behind ``torch.compile``, for fixed shapes."""
    torch._dynamo.reset()  # each layer is compiled for itself alone: none makes another's shapes dynamic
    plain = eager(layer)
    whole: Forward = torch.compile(plain, mode=mode, dynamic=False, fullgraph=True)
    return whole


def cublaslt(layer: Layer) -> Forward | None:
    """Return the layer by the epilogue of cuBLASLt that PyTorch exposes for it; None where it exposes none.

    There is one for a bias (torch.addmm) and one for a bias and a ReLU (torch._addmm_activation, forward only).
    """
    if layer.norm is not None or layer.joined or layer.pieces > 1:
        return None
    epilogues: dict[str, Forward] = {
        "none": lambda x, weight, bias: torch.addmm(bias, x, weight.t()),
        "relu": AddmmRelu.apply,
    }
    return epilogues.get(layer.activation)


class AddmmRelu(Function):
    """y = relu(x W^T + b) in one launch; its backward pass is what autograd does for the pair of functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return y (batch, rows)."""
        y = torch._addmm_activation(bias, x, weight.t())
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weight and bias."""
        x, weight, y = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(grad, y, 0)
        return g.mm(weight), g.t().mm(x), g.sum(0)


def operands_of(layer: Layer, batch: int, dtype: str, direction: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return a layer's random operands and, but for forward, the output's gradient."""

    def random(*shape: int, scale: float = 1.0, precise: bool = False) -> Tensor:
        values = torch.randn(shape, device=generator.device, generator=generator) * scale
        return values if precise else values.to(MATRIX[dtype])

    parts = [random(batch, layer.in_features - layer.joined).requires_grad_()]
    if layer.classes:
        parts.append(torch.randint(layer.classes, (batch,), device=generator.device, generator=generator))
        parts.append(random(layer.classes, layer.joined).requires_grad_())
    elif layer.joined:
        parts.append(random(batch, layer.joined))
    parts.append(random(layer.rows, layer.in_features, scale=layer.in_features**-0.5).requires_grad_())
    parts.append(random(layer.rows).requires_grad_())
    if layer.norm is not None:  # in fp32 beside 16-bit layers, as mixed precision has it
        parts.append((1 + random(layer.rows, scale=0.1, precise=True)).requires_grad_())
        parts.append(random(layer.rows, precise=True).requires_grad_())
        parts += [random(layer.rows, precise=True), 1 + random(layer.rows, precise=True).square()]
        parts.append(torch.zeros((), dtype=torch.int64, device=generator.device))
    if direction != "forward":
        cotangent = random(batch, layer.out_features)
        parts.append(cotangent.masked_fill_(~settled(layer, dtype, parts), 0))
    return tuple(parts)


@torch.no_grad()
def settled(layer: Layer, dtype: str, operands: Sequence[Tensor]) -> Tensor:
    """Return where a piecewise linear activation has one derivative whatever the rounding: (batch, out_features).

    Elsewhere each contender may rightly take another piece: there the output's gradient is 0.
    """
    pre = pre_activation(layer)(*(in_fp64(tensor) for tensor in operands))
    stored = layer.norm is not None or layer.pieces > 1  # rounded before the piece is chosen
    rounding = max(UNSETTLED, TF32_ULP if dtype == "tf32" else 0.0, torch.finfo(MATRIX[dtype]).eps if stored else 0.0)
    margin = rounding * largest(pre)
    if layer.pieces > 1:
        first, second = pre.topk(2, dim=2).values.unbind(2)
        return first - second > margin
    return pre.abs() > margin if "relu" in layer.activation else torch.ones_like(pre, dtype=torch.bool)


def work(layer: Layer, batch: int, direction: str, width: int) -> tuple[float, float]:
    """Return multiply-adds twice and the bytes that must move, ``width`` a number: what is read or written, each once.

    A block's raw output is written and read again between the batch's statistics and its normalisation.
    """
    product = 2.0 * batch * layer.in_features * layer.rows
    operands = batch * layer.in_features + layer.rows * (layer.in_features + 1)
    output = batch * layer.out_features
    raw = output if layer.norm is not None else 0
    saved = output if layer.activation != "none" or layer.pieces > 1 else 0
    forward = (product, width * float(operands + output + 2 * raw))
    backward = (2 * product, width * float(2 * operands + output + saved))
    if direction == "both":
        return forward[0] + backward[0], forward[1] + backward[1]
    return forward if direction == "forward" else backward
