"""Convolutions whose weight a style scales for each sample: StyleGAN2's and StyleGAN3's."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops.conv2d_resample import conv2d_resample
from fastgan.ops.upfirdn2d import Factor


def modulated_conv2d(
    input: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> Tensor:
    """Return each sample's convolution by weight * style, scaled so that the outputs' second moment is 1, plus noise.

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 2.2. A style scales input
    channels, the demodulation output channels: so both are done to the images, and one convolution serves the batch.

    Args:
        input: (n, in_channels, height, width).
        weight: (out_channels, in_channels, kernel height, kernel width), floating; cast to the input's dtype.
        styles: (n, in_channels), floating.
        noise: what is added, of a shape that broadcasts to the result; None: nothing.
        up, down, padding, resample_filter, flip_weight: as of ``conv2d_resample``.
        demodulate: whether output channels are scaled by 1 / sqrt(1e-8 + sum of (weight * style)^2), formed in fp32.

    Returns:
        (n, out_channels, ...) in the input's dtype. fp16 does not overflow where weights or styles are large: of
        demodulated ones only the ratios count, so both are normalised first. Gradient order: any, with respect to
        input, weight, styles and noise.

    Raises:
        UserError: for operands that do not go together.
    """
    _check(input, weight, styles)
    if input.dtype == torch.float16 and demodulate:
        largest = weight.abs().amax([1, 2, 3], keepdim=True)
        weight = weight / (largest * weight[0].numel() ** 0.5)
        styles = styles / styles.abs().amax(1, keepdim=True)
    x = input * _column(styles, input)
    x = conv2d_resample(x, weight.to(x.dtype), resample_filter, up, down, padding, 1, flip_weight)
    if demodulate:
        factor = _column(_demodulation(weight, styles), x)
        return x * factor if noise is None else torch.addcmul(noise.to(x.dtype), x, factor)
    return x if noise is None else x + noise.to(x.dtype)


def normalized_modulated_conv2d(
    input: Tensor,
    weight: Tensor,
    styles: Tensor,
    demodulate: bool = True,
    padding: Factor = 0,
    input_gain: Tensor | None = None,
) -> Tensor:
    """Return StyleGAN3's modulated convolution: weight and styles normalised in any dtype, then a gain of the input.

    Karras et al. 2021, "Alias-Free Generative Adversarial Networks".

    Args:
        input, weight, styles, padding: as of ``modulated_conv2d``.
        demodulate: whether each output channel's weight and all styles together are brought to a second moment of 1,
            and output channels then scaled as in ``modulated_conv2d``.
        input_gain: a factor of the input behind all that, which broadcasts to (n, in_channels); None: 1.

    Returns:
        (n, out_channels, ...) in the input's dtype. Gradient order: any.

    Raises:
        UserError: for operands that do not go together.
    """
    _check(input, weight, styles)
    if demodulate:
        weight = weight * weight.square().mean([1, 2, 3], keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
    scale = styles if input_gain is None else styles * input_gain.expand(styles.shape)
    x = conv2d_resample(input * _column(scale, input), weight.to(input.dtype), padding=padding)
    return x * _column(_demodulation(weight, styles), x) if demodulate else x


def _check(input: Tensor, weight: Tensor, styles: Tensor) -> None:
    if input.dim() != 4 or weight.dim() != 4 or weight.shape[1] != input.shape[1] or styles.shape != input.shape[:2]:
        shapes = ", ".join(str(tuple(operand.shape)) for operand in (input, weight, styles))
        needed = "images (n, in_channels, height, width), a weight (out_channels, in_channels, height, width)"
        raise UserError(f"a modulated convolution needs {needed} and styles (n, in_channels), not {shapes}")


def _column(factors: Tensor, images: Tensor) -> Tensor:
    """Return factors (n, channels) in the images' dtype and shape."""
    return factors.to(images.dtype)[:, :, None, None]


def _demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return what brings the outputs to a second moment of 1, (n, out_channels), from sums in fp32 at the least."""
    dtype = torch.promote_types(torch.promote_types(weight.dtype, styles.dtype), torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        energy = weight.to(dtype).square().sum([2, 3])  # (out_channels, in_channels)
        return (styles.to(dtype).square() @ energy.t() + 1e-8).rsqrt()
