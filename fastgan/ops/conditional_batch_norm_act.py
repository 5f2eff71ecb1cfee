"""conditional_batch_norm_act: a batch norm with each sample's own scale and shift, and the activation, as one op."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops import peers
from fastgan.ops.backend import register
from fastgan.ops.batch_norm_act import merged, normalised
from fastgan.ops.batch_norm_act_autograd import by_kernels
from fastgan.ops.batch_norm_act_compute import Form, Running, affine

OP = register("conditional_batch_norm_act")


def conditional_batch_norm_act(
    input: Tensor,
    scale: Tensor,
    shift: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Return activation(scale normalised(input) + shift): two launches forward and two backward on the kernels.

    Conditional batch normalisation (de Vries et al. 2017), as SNGAN's and BigGAN's generators have it: the batch's
    statistics, and for each sample the scale and shift that its class or its latent asks for. With statistics of each
    sample it is ``instance_norm_act`` with a weight (N, C).

    Args:
        input: (N, C) or (N, C, ...); dtypes and layouts as in ``batch_norm_act``.
        scale: (N, C), in the input's dtype or fp32; halves of one row, as an embedding's, are read as they lie.
        shift: (N, C), of the same dtype.
        running_mean, running_var, training, momentum, eps, activation, negative_slope, num_batches_tracked: as in
            ``batch_norm_act``.

    Returns:
        As the input in shape, dtype and, as from torch.nn.functional.batch_norm, layout.

    Gradient order: any, with respect to input, scale and shift, as in ``batch_norm_act``.

    Raises:
        UserError: for an unknown activation.
        ValueError: for one value per channel in training, as torch.nn.functional.batch_norm.
        RuntimeError: for shapes, dtypes and devices that do not go together, as PyTorch's own operations.
    """
    form = Form(training, eps, activation, negative_slope)
    state = Running(running_mean, running_var, num_batches_tracked, momentum)
    if scale.dim() == shift.dim() == 2:
        output = by_kernels(OP, input, scale, shift, form, state)
        if output is not None:
            return output
    if training and peers.current() is not None:
        return merged(input, scale, shift, form, state)
    normal = normalised(input, None, None, form, state)
    return act.activate(affine(normal, scale, shift).to(input.dtype), activation, negative_slope)
