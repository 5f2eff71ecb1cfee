"""What each launch of an iteration is for, and whether it could go: rules by phase and name, the first that fits."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from fastgan.benchmarks.launch_count import ADDRESSES, METRICS, PRODUCTS


class Reason(NamedTuple):
    """Why there is a launch, and what would spare it; an empty ``goes``: nothing known would."""

    phase: str  # a pattern, as a shell has them
    name: str
    what: str
    goes: str = ""


NO_CASTS = "the optimiser could keep bf16 shadows of the weights, written in its own launch"
FP32_GRADIENTS = "weight gradients are fp32 inside their kernel and could leave it so"
ONE_BATCH = "both could be written into halves of one batch"
CHANNELS = "the linear layer could read or write that order"
MASKS = "the first pass's kernels have an epilogue for them"

REASONS: tuple[Reason, ...] = (
    Reason("latents", "latent_kernel", "latents, from the seed and the clock", "G's first layer could draw them"),
    Reason("real batch", "real_batch_kernel", "real samples: gathered, normalised, mirrored, with noise, cast"),
    Reason("noise", "*", "instance noise on what D sees"),
    Reason("*", "interpolate_kernel", "a random point between each real and fake sample, drawn there"),
    Reason("*", "norm_penalty_fwd_kernel", "norms of the critic's gradients, and their penalty"),
    Reason("*", "norm_penalty_bwd_kernel", "slope of the penalty, times its weight"),
    Reason("*", "linear_fwd_kernel", "a linear layer: bias, activation, statistics of the norm behind it"),
    Reason("*", "conv_fwd_kernel", "a convolution: bias, activation, statistics of the norm behind it"),
    Reason("*", "*_bwd_weight_kernel", "gradients of a weight and its bias"),
    Reason("*", "*_bwd_input_kernel", "gradient of an input, through activation and norm"),
    Reason("*", "batch_norm_act_fwd_kernel", "an operand normalised once, where loads would do it too often"),
    Reason("*", "batch_norm_stats_kernel", "statistics behind a product of the library's"),
    Reason("*", "batch_norm_act_bwd_kernel", "sums of a norm's backward, where no product forms them"),
    Reason("*", "batch_norm_correct_kernel", "a gradient corrected once for the norm's statistics"),
    Reason("*", "bias_act*_kernel", "bias and activation, where no product forms them"),
    Reason("*", "loss_kernel", "a loss, its mean and the slope of every logit"),
    Reason("*optimiser", ADDRESSES, "the gradients' addresses", "gradients could lie where they always lie"),
    Reason("*optimiser", "optimizer_step_kernel", "all parameters and their moments"),
    Reason(METRICS, "tick_kernel", "the metrics' sums, the schedules, the clock"),
    *(Reason("*", f"aten.{name}", "a product by cuBLAS or cuDNN") for name in PRODUCTS),
    Reason("*forward", "aten._to_copy", "weights to bf16, as autocast casts them", NO_CASTS),
    Reason("*forward", "aten._foreach_add_", "the norms' counts of batches", "the clock knows them"),
    Reason("*", "aten.clone", "channels_last features flattened as torch.nn does, or back", CHANNELS),
    Reason("between", "aten.cat", "real and fake samples into one batch", ONE_BATCH),
    Reason("between", "aten._to_copy", "logits to fp32; slopes to bf16", "loss and layers take either"),
    Reason("between", "aten.abs", "is a logit's slope too small to divide by?", "a kernel of a few lines for all five"),
    Reason("between", "aten.lt", "the same", "with it"),
    Reason("between", "aten.scalar_tensor", "the same", "with it"),
    Reason("between", "aten.where", "the same", "with it"),
    Reason("between", "aten.div", "from D's slope to G's, sample by sample", "with it"),
    Reason(
        "between",
        "aten.mul",
        "D's gradient at the fakes becomes G's",
        "what follows could",
    ),
    Reason("penalty", "aten.random_", "the seed of the points", "the clock could be their seed"),
    Reason("penalty", "aten.ones_like", "what backward begins from", "a constant that is kept"),
    Reason("backward", "aten.cat", "slopes of both halves of the logits", "the loss could write them as one"),
    Reason("backward", "aten._to_copy", "slopes to bf16", "the loss could write them so"),
    Reason("backward", "aten.leaky_relu_backward", "masks of activations, second order", MASKS),
    Reason("*backward", "aten.add*", "gradients of a weight from two passes", "the second could add to the first"),
    Reason("[GD] backward", "aten._to_copy", "gradients to fp32", FP32_GRADIENTS),
    Reason("*backward", "aten.sum", "gradient of a bias beside a product of the library's", "an epilogue"),
    Reason(
        "*",
        "aten._foreach_copy_",
        "gradients of weights used twice, to their places",
        "the second could add to the first",
    ),
    Reason("*backward", "aten.copy_", "a result of the library's, to its place", "the library could write it there"),
    Reason("*backward", "aten.zero*", "a bias in front of a norm: its gradient is 0", "it could have none"),
)


def reason(phase: str, name: str, rules: Sequence[Reason] = REASONS) -> Reason | None:
    """Return the first rule that fits a launch."""
    return next((rule for rule in rules if fnmatchcase(phase, rule.phase) and fnmatchcase(name, rule.name)), None)
