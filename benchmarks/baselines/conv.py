"""A convolution and what stands around it, as PyTorch offers it: as people write it, and compiled.

A layer's operands, in this order: x (batch, in_channels, size, ...), weight as torch.nn has it; where there is one, the
bias (out_channels); where there is a norm, its scale and shift (out_channels), its running mean and variance
(out_channels), and the count of batches. Images and their weights are channels_last, as cuDNN's tensor cores take them;
signals lie as torch.nn has them, which copies any other layout first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.benchmarks.baselines.linear import ACTIVATIONS, UNSETTLED, Forward
from fastgan.benchmarks.ceilings import MATRIX, TF32_ULP, fp32_products
from fastgan.benchmarks.gate import largest
from fastgan.benchmarks.race import in_fp64
from fastgan.benchmarks.workloads import Convolution

LEAVES = {"input": (0,), "weight": (1, 2)}  # the operands that a single gradient is of; else of all


def activation(name: str, slope: float) -> Callable[[Tensor], Tensor]:
    """Return an activation by its name."""
    return (lambda values: F.leaky_relu(values, slope)) if name == "leaky_relu" else ACTIVATIONS[name]


def convolution(layer: Convolution) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the product alone, of x, weight and bias."""
    if layer.transposed:
        transposed = F.conv_transpose2d if layer.dims == 2 else F.conv_transpose1d
        steps = layer.stride, layer.padding, layer.output_padding, 1, layer.dilation
        return lambda x, weight, bias: transposed(x, weight, bias, *steps)
    plain = F.conv2d if layer.dims == 2 else F.conv1d
    return lambda x, weight, bias: plain(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def pre_activation(layer: Convolution) -> Forward:
    """Return what stands in front of the activation; the running statistics of a norm are moved on."""
    before, product = activation(layer.before, layer.before_slope), convolution(layer)

    def call(x: Tensor, weight: Tensor, *operands: Tensor) -> Tensor:
        bias, norm = (operands[0], operands[1:]) if layer.bias else (None, operands)
        x = before(x)
        if layer.upsample > 1:
            x = F.interpolate(x, scale_factor=float(layer.upsample), mode="nearest")
        pre = product(x, weight, bias)
        if layer.norm is not None:
            scale, shift, mean, variance, batches = norm
            batches.add_(1)  # as nn.BatchNorm2d does
            pre = F.batch_norm(pre, mean, variance, scale, shift, training=True, eps=layer.norm)
        return pre

    return call


def eager(layer: Convolution) -> Forward:
    """Return the layer as people write it."""
    before, after = pre_activation(layer), activation(layer.activation, layer.slope)
    return lambda *operands: after(before(*operands))


def compiled(layer: Convolution, mode: str | None = None) -> Forward:
    """Return the layer behind ``torch.compile``, for fixed shapes."""
    torch._dynamo.reset()  # each layer is compiled for itself alone: none makes another's shapes dynamic
    whole: Forward = torch.compile(eager(layer), mode=mode, dynamic=False, fullgraph=True)
    return whole


@contextlib.contextmanager
def cudnn(dtype: str) -> Iterator[None]:
    """Let cuDNN try its algorithms and keep the fastest; fp32 operands are multiplied as ``dtype`` says."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.allow_tf32
    flags.benchmark, flags.allow_tf32 = True, dtype == "tf32"
    try:
        with fp32_products("high" if dtype == "tf32" else "highest"):
            yield
    finally:
        flags.benchmark, flags.allow_tf32 = before


def operands_of(
    layer: Convolution, batch: int, dtype: str, direction: str, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return a layer's random operands, those with ``requires_grad`` that the direction has gradients of.

    But for forward, the output's gradient comes last.
    """

    def random(*shape: int, scale: float = 1.0, precise: bool = False) -> Tensor:
        values = torch.randn(shape, device=generator.device, generator=generator) * scale
        return laid(values if precise else values.to(MATRIX[dtype]))

    channels, side = layer.out_channels, (layer.size,) * layer.dims
    taps = (layer.kernel / (layer.stride if layer.transposed else 1)) ** layer.dims  # of one output
    parts = [random(batch, layer.in_channels, *side)]
    parts.append(random(*layer.weight_shape, scale=(layer.in_channels * taps) ** -0.5))
    parts += [random(channels)] if layer.bias else []
    if layer.norm is not None:  # in fp32 beside 16-bit layers, as mixed precision has it
        parts += [1 + random(channels, scale=0.1, precise=True), random(channels, precise=True)]
    for leaf in LEAVES.get(direction, range(len(parts))):
        if leaf < len(parts):
            parts[leaf].requires_grad_()
    if layer.norm is not None:
        parts += [random(channels, precise=True), 1 + random(channels, precise=True).square()]
        parts.append(torch.zeros((), dtype=torch.int64, device=generator.device))
    if direction != "forward":
        cotangent = random(batch, channels, *(layer.out_size,) * layer.dims)
        parts.append(cotangent.masked_fill_(~settled(layer, dtype, parts), 0))
    return tuple(parts)


def laid(values: Tensor) -> Tensor:
    """Lay images out as cuDNN takes them."""
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


@torch.no_grad()
def settled(layer: Convolution, dtype: str, operands: Sequence[Tensor]) -> Tensor:
    """Return where a piecewise linear activation has one derivative whatever the rounding, of the output's shape.

    Elsewhere each contender may rightly take another piece: there the output's gradient is 0.
    """
    pre = pre_activation(layer)(*(in_fp64(tensor) for tensor in operands))
    stored = layer.norm is not None  # rounded before the piece is chosen
    rounding = max(UNSETTLED, TF32_ULP if dtype == "tf32" else 0.0, torch.finfo(MATRIX[dtype]).eps if stored else 0.0)
    return pre.abs() > rounding * largest(pre) if "relu" in layer.activation else torch.ones_like(pre, dtype=torch.bool)


def work(layer: Convolution, batch: int, direction: str, width: int) -> tuple[float, float]:
    """Return multiply-adds twice and the bytes that must move, ``width`` a number: what is read or written, each once.

    A block's raw output is written and read again between the batch's statistics and its normalisation.
    """
    product, x, y, w = float(batch * layer.flops), batch * layer.inputs, batch * layer.outputs, layer.weights
    saved = y if layer.activation != "none" else 0
    if direction == "block":
        raw = 2 * y if layer.norm is not None else 0
        return 3 * product, width * float(3 * (x + w + y) + raw + saved)
    return product, width * float(x + w + y + (0 if direction == "forward" else saved))
