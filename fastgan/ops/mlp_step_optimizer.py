"""The optimisers' part of an iteration in plain PyTorch: what a parameter's elements share, and a step of each.

Formulas and numbers are those of ``kernels/optimizer_rules.py``: a group's eleven numbers are lr, weight_decay, eps,
beta1, beta2, momentum, dampening, sign, decay (of the average), warmup and clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgan.ops.mlp_step_form import CENTERED, DECOUPLED, MOMENTUM, NESTEROV, RATES, RULES, Param

RATE, DECAY, SHRINK, EPS, REST1, KEPT, REST2, ROOT, SPEED, FOLLOW, CLIP, FACTOR, SKIP = range(RATES)


def rate(param: Param, numbers: Sequence[float], steps: float, formed: int, factor: float) -> list[float]:
    """Return what all elements of a parameter share in a step, in fp64; SKIP is 0.

    Args:
        numbers: the group's.
        steps: how many the parameter has made, this one too.
        formed: averages before.
        factor: that gradients are multiplied by.
    """
    lr, decay, eps, beta1, beta2, momentum, dampening, sign, average, warmup, clip = numbers
    pace, rest1, root = lr, 1 - beta1, 1.0
    if RULES[param.rule] == "adam":
        steps = max(steps, 1)  # 0 where the first is skipped
        pace, root = lr / (1 - beta1**steps), (1 - beta2**steps) ** 0.5
    elif RULES[param.rule] == "sgd":  # the first gradient becomes the momentum as it is
        rest1 = 1.0 if steps <= 1 else 1 - dampening
    shrink = 1 - lr * decay if param.form & DECOUPLED else 1.0
    follow = max(1 - average, (warmup - 1) / (warmup + formed)) if warmup > 0 else 1 - average
    return [pace, decay, shrink, eps, rest1, beta2, 1 - beta2, root, momentum, follow, clip, factor * sign, 0.0]


def advance(param: Param, slots: Sequence[Tensor], rates: Tensor, gradient: Tensor) -> None:
    """Step a parameter by its gradient, in place: value, states, average and shadow."""
    own = rates.tolist()
    if own[SKIP]:
        return
    value = slots[param.value]
    g = gradient.to(value.dtype).view(value.shape) * own[FACTOR]
    first, second, third = (slots[at] if at >= 0 else value for at in (param.first, param.second, param.third))
    if param.form & DECOUPLED:
        value.mul_(own[SHRINK])
    elif own[DECAY]:
        g = g + own[DECAY] * value
    if RULES[param.rule] == "adam":
        first.lerp_(g, own[REST1])
        second.mul_(own[KEPT]).addcmul_(g, g, value=own[REST2])
        value.addcdiv_(first, (second.sqrt() / own[ROOT]).add_(own[EPS]), value=-own[RATE])
    elif RULES[param.rule] == "rmsprop":
        first.mul_(own[KEPT]).addcmul_(g, g, value=own[REST2])
        spread = first
        if param.form & CENTERED:
            third.lerp_(g, own[REST2])
            spread = first.addcmul(third, third, value=-1)
        towards = g / spread.sqrt().add_(own[EPS])
        if param.form & MOMENTUM:
            towards = second.mul_(own[SPEED]).add_(towards)
        value.add_(towards, alpha=-own[RATE])
    else:
        towards = g
        if param.form & MOMENTUM:
            first.mul_(own[SPEED]).add_(g, alpha=own[REST1])
            towards = g.add(first, alpha=own[SPEED]) if param.form & NESTEROV else first
        value.add_(towards, alpha=-own[RATE])
    if own[CLIP]:
        value.clamp_(-own[CLIP], own[CLIP])
    if param.average >= 0:
        slots[param.average].lerp_(value.to(slots[param.average].dtype), own[FOLLOW])
    if param.shadow >= 0:
        slots[param.shadow].copy_(value)
