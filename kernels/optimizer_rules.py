"""What one step of Adam, RMSprop or SGD does to an element, and the numbers of a step that all elements share.

Formulas and the order of roundings are those of torch.optim: what a state accumulates over hundreds of steps has the
same bits, or nearly. Sums are single fused multiply-adds by name, so that the compiler has nothing to contract on its
own. Everything is fp32 but the differences 1 - beta, which are taken in fp64: 1 - 0.999 in fp32 is off by 1e-5.
"""

from __future__ import annotations

import triton
import triton.language as tl

# a group's numbers, as they lie side by side: fp64 bits, and where it is not 0 the address of an fp32 scalar instead
LR, WEIGHT_DECAY, EPS, BETA1, BETA2, MOMENTUM, DAMPENING, SIGN, DECAY, WARMUP, CLIP = map(tl.constexpr, range(11))
SLOTS = tl.constexpr(11)


@triton.jit
def number(group, SLOT: tl.constexpr, SCALARS: tl.constexpr):
    """One number of a group, in fp64; ``SCALARS``: some may stand elsewhere on the device."""
    value = tl.load(group + 2 * SLOT).to(tl.float64, bitcast=True)
    if SCALARS:
        address = tl.load(group + 2 * SLOT + 1)
        given = tl.load(address.to(tl.pointer_type(tl.float32)), mask=address != 0, other=0.0)
        value = tl.where(address != 0, given.to(tl.float64), value)
    return value


@triton.jit
def lerp(start, end, weight):
    """start + weight (end - start), from the nearer end, as torch.lerp: all of ``end`` where the weight is 1."""
    near = weight < 0.5
    return tl.fma(tl.where(near, weight, weight - 1), end - start, tl.where(near, start, end))


@triton.jit
def one_minus_power(beta, rest, steps):
    """1 - beta^steps, to a few ulp of itself; ``rest`` is 1 - beta, which beta alone no longer tells."""
    s = rest / (2 - rest)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    log = tl.where(rest <= 0.5, -2 * s * series, tl.log(tl.maximum(beta, 1e-30)))
    x = log * steps
    n = tl.maximum(x, -1.0)  # where the series is taken
    small = 1 + n / 5 * (1 + n / 6 * (1 + n / 7 * (1 + n / 8)))
    small = n * (1 + n / 2 * (1 + n / 3 * (1 + n / 4 * small)))
    return -tl.where(x > -0.5, small, tl.exp(x) - 1)


@triton.jit
def shared(group, steps, RULE: tl.constexpr, DECOUPLED: tl.constexpr, SCALARS: tl.constexpr):
    """The numbers of a step that all elements of a parameter share; ``steps``: how many it has made, this one too."""
    lr = number(group, LR, SCALARS)
    decay = number(group, WEIGHT_DECAY, SCALARS)
    momentum = number(group, MOMENTUM, SCALARS).to(tl.float32)
    eps = number(group, EPS, SCALARS).to(tl.float32)
    beta1, beta2 = number(group, BETA1, SCALARS), number(group, BETA2, SCALARS)
    kept, rest1, rest2 = beta2.to(tl.float32), (1 - beta1).to(tl.float32), (1 - beta2).to(tl.float32)
    rate, root = lr.to(tl.float32), steps * 0 + 1
    if RULE == "adam":
        rate = rate / one_minus_power(beta1.to(tl.float32), rest1, steps)
        root = tl.sqrt_rn(one_minus_power(kept, rest2, steps))
    if RULE == "sgd":  # the first gradient becomes the momentum as it is
        rest1 = tl.where(steps <= 1, 1.0, (1 - number(group, DAMPENING, SCALARS)).to(tl.float32))
    shrink = (1 - lr * decay).to(tl.float32) if DECOUPLED else 1.0
    return rate, decay.to(tl.float32), shrink, eps, rest1, kept, rest2, root, momentum


@triton.jit
def advance(
    p, g, first, second, third, numbers,
    RULE: tl.constexpr, DECOUPLED: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """The parameter and its states after a step, all fp32."""
    rate, decay, shrink, eps, rest1, kept, rest2, root, momentum = numbers
    if DECOUPLED:
        p = p * shrink
    else:
        g = tl.where(decay != 0, tl.fma(decay, p, g), g)
    if RULE == "adam":  # first and second moment
        first = lerp(first, g, rest1)
        second = tl.fma(rest2 * g, g, second * kept)
        p = tl.fma(-rate, tl.div_rn(first, tl.div_rn(tl.sqrt_rn(second), root) + eps), p)
    elif RULE == "rmsprop":  # mean square, momentum, mean
        first = tl.fma(rest2 * g, g, first * kept)
        spread = first
        if CENTERED:
            third = lerp(third, g, rest2)
            spread = tl.fma(-third, third, first)
        towards = tl.div_rn(g, tl.sqrt_rn(spread) + eps)
        if MOMENTUM:
            second = tl.fma(second, momentum, towards)
            towards = second
        p = tl.fma(-rate, towards, p)
    else:
        towards = g
        if MOMENTUM:
            first = tl.fma(rest1, g, first * momentum)
            towards = tl.fma(momentum, first, g) if NESTEROV else first
        p = tl.fma(-rate, towards, p)
    return p, first, second, third
