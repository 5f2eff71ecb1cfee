"""instance_norm_act: each sample normalised by itself, and the activation behind it, as one op."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops.backend import register
from fastgan.ops.batch_norm_act_autograd import by_kernels
from fastgan.ops.batch_norm_act_compute import Form, Running, affine, by_sample

OP = register("instance_norm_act")


def instance_norm_act(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(instance_norm(input)): two launches forward and two backward, where the kernels run.

    Ulyanov et al. 2016, equation 4: y = phi(s (x - mean) + bias) with s = weight / sqrt(var + eps), mean and biased
    variance of each channel taken over the positions of one sample. With a weight and a bias of each sample it is
    adaptive instance normalisation (Huang & Belongie 2017, equation 8). Other processes change nothing.

    Args:
        input: (N, C, ...) with at least one axis of positions; dtypes and layouts as in ``batch_norm_act``.
        running_mean: (C), moved in place towards the mean over samples where ``use_input_stats``; or None.
        running_var: (C), likewise, by the unbiased estimates.
        weight: (C), or (N, C) for one of each sample, or None for 1. In the input's dtype or fp32.
        bias: as ``weight``, or None for 0.
        use_input_stats: normalise by the samples' own statistics; else by the running ones.
        momentum: how far the running statistics move, in [0, 1].
        eps: added to the variance.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.

    Returns:
        As the input in shape and dtype (under autocast too); by the kernels in layout too: channels_last stays
        channels_last, where PyTorch's output is always contiguous.

    Gradient order: any, with respect to input, weight and bias, as in ``batch_norm_act``.

    Raises:
        UserError: for an unknown activation.
        ValueError: for one position a sample, as torch.nn.functional.instance_norm.
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.nn.functional.instance_norm.
    """
    form = Form(use_input_stats, eps, activation, negative_slope, use_input_stats)
    output = by_kernels(OP, input, weight, bias, form, Running(running_mean, running_var, None, momentum))
    if output is not None:
        return output
    own = by_sample(weight, bias)
    vectors = (None, None) if own else (weight, bias)
    output = F.instance_norm(input, running_mean, running_var, *vectors, use_input_stats, momentum, eps)
    if own:
        output = affine(output, weight, bias).to(input.dtype)
    return act.activate(output, activation, negative_slope)
