"""batch_norm_act: batch normalisation and the activation behind it as one op, differentiable as often as asked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import peers
from fastgan.ops.batch_norm_act_autograd import by_kernels
from fastgan.ops.batch_norm_act_compute import OP, Form, Running, by_sample, plain_forward, track


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Return activation(batch_norm(input)): two launches forward and two backward, where the kernels run.

    Ioffe & Szegedy 2015, algorithm 1: y = phi(s (x - mean) + bias) with s = weight / sqrt(var + eps), mean and biased
    variance of each channel taken over all else. In training they are the batch's, and the running ones move towards
    them: running += momentum (batch - running), the variance by its unbiased estimate. Else the running ones serve.

    Args:
        input: (N, C) or (N, C, ...); bf16, fp16 or fp32, or any other dtype by plain PyTorch. The kernels read
            channels_last images and (N, C) as they lie; what lies otherwise goes by plain PyTorch under ``auto`` and is
            copied under ``triton``.
        running_mean: (C), moved in place in training, or None in training.
        running_var: (C), as ``running_mean``.
        weight: (C), or None for 1. All four vectors have one dtype: the input's, or fp32.
        bias: (C), or None for 0.
        training: normalise by the batch's statistics.
        momentum: how far the running statistics move, in [0, 1].
        eps: added to the variance; above 0 in training.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.
        num_batches_tracked: () integer, batches seen before this one: the running statistics are then plain averages
            over batches and ``momentum`` says nothing. It is read on the device, and not counted up.

    Returns:
        As the input in shape, dtype (under autocast too) and, as from torch.nn.functional.batch_norm, layout.

    Gradient order: any, with respect to input, weight and bias; the second and further ones by plain arithmetic. What
    is saved for it: input, weight, bias, and mean and variance; nothing normalised. Functional transforms
    (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown activation.
        ValueError: for one value per channel in training and for such an ``eps``, as torch.nn.functional.batch_norm.
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.nn.functional.batch_norm.
    """
    form = Form(training, eps, activation, negative_slope)
    state = Running(running_mean, running_var, num_batches_tracked, momentum)
    output = None if by_sample(weight, bias) else by_kernels(OP, input, weight, bias, form, state)
    return _plain(input, weight, bias, form, state) if output is None else output


def _plain(input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, state: Running) -> Tensor:
    """Normalise and activate by plain PyTorch."""
    if form.training and peers.current() is not None:
        return merged(input, weight, bias, form, state)
    output = normalised(input, weight, bias, form, state)
    return act.activate(output, form.activation, form.slope)


def merged(input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, state: Running) -> Tensor:
    """Normalise by the statistics of all peers' parts, in plain arithmetic."""
    if input.numel() * peers.share() <= input.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)}")
    output, mean, var = plain_forward(input, weight, bias, None, None, form)
    track(state, mean, var, input.numel() // input.shape[1])
    return output


def normalised(input: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, state: Running) -> Tensor:
    """Normalise by plain PyTorch; averages over batches without asking the device how many there were."""
    if not form.training or state.tracked is None or state.mean is None or state.var is None:
        return F.batch_norm(input, state.mean, state.var, weight, bias, form.training, state.momentum, form.eps)
    mean, var = torch.zeros_like(state.mean), torch.zeros_like(state.var)
    output = F.batch_norm(input, mean, var, weight, bias, True, 1.0, form.eps)
    step = (1 / (state.tracked + 1)).to(mean.dtype)
    state.mean.lerp_(mean, step)
    state.var.lerp_(var, step)
    return output
