"""What one logit adds to a loss, and its slope: device functions in fp32 that the kernels of losses share.

| term          | loss of a logit x and its label t, 1 for real    | slope in x                 |
|---------------|--------------------------------------------------|----------------------------|
| cross_entropy | t softplus(-x) + (1 - t) softplus(x)             | (1 - t) s(x) - t s(-x)     |
| least_squares | (x - t)^2 / 2                                    | x - t                      |
| hinge         | max(0, 1 - x) for t = 1, max(0, 1 + x) for t = 0 | -1, 1, or 0 where it is 0  |
| linear        | -x for t = 1, x for t = 0                        | -1, 1                      |
| probability   | -t max(log x, -100) - (1 - t) max(log(1 - x), -100) | (x - t) / max(x (1 - x), 1e-12) |

with s the logistic sigmoid. Nothing overflows and no two large numbers cancel, however large a logit is: softplus(x) is
max(x, 0) + log(1 + e^-|x|). NaN in gives NaN out, save in the slopes of hinge and linear, as in PyTorch.
"""

import triton
import triton.language as tl

LOG_2_HIGH, LOG_2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)  # their sum is log 2 (Cephes)
TINY, LIFT, LOWERED = tl.constexpr(1e-30), tl.constexpr(2.0**64), tl.constexpr(44.36141955583650)  # 64 log 2


@triton.jit
def blocks_of(N, BLOCK: tl.constexpr):
    """How many blocks hold N elements, one for none: ``cdiv`` would leave int32 where N nearly does."""
    return (N - 1) // BLOCK + 1


@triton.jit
def tails(x):
    """log(1 + e^-|x|), s(-|x|) and s(|x|), each to a few ulp: what hardware's exp alone loses where |x| is large."""
    size = tl.abs(x)
    size = tl.where(size > 104.0, 104.0, size)  # e^-104 is 0 in fp32
    whole = tl.floor(size * 1.4426950408889634 + 0.5)
    rest = (size - whole * LOG_2_HIGH) - whole * LOG_2_LOW
    z = tl.exp2(-whole) * tl.exp(-rest)
    large = 1.0 / (1.0 + z)
    ratio = z / (2.0 + z)  # log(1 + z) = 2 atanh(z / (2 + z)), at most 1/3
    square = ratio * ratio
    series = 1.0 / 15.0
    series = series * square + 1.0 / 13.0
    series = series * square + 1.0 / 11.0
    series = series * square + 1.0 / 9.0
    series = series * square + 1.0 / 7.0
    series = series * square + 1.0 / 5.0
    series = series * square + 1.0 / 3.0
    return 2.0 * ratio + 2.0 * ratio * square * series, z * large, large


@triton.jit
def sigmoid(x):
    """s(x) without overflow."""
    _, small, large = tails(x)
    return tl.where(x > 0, large, small)


@triton.jit
def weighted_cross_entropy(x, real, fake):
    """Loss and slope of real softplus(-x) + fake softplus(x)."""
    tail, small, large = tails(x)
    lean = tl.where(x > 0, fake, -real)
    loss = tl.where(lean == 0, 0.0, lean * x) + (real + fake) * tail
    slope = fake * tl.where(x > 0, large, small) - real * tl.where(x > 0, small, large)
    return loss, slope


@triton.jit
def log_at_least(x, least):
    """max(log x, least), of subnormal x too, which the logarithm takes for 0."""
    tiny = x < TINY
    value = tl.log(tl.where(tiny, x * LIFT, x)) - tl.where(tiny, LOWERED, 0.0)
    return tl.where(value < least, least, value)


@triton.jit
def probability(x, label):
    """Loss and slope of a probability, clamped as in PyTorch."""
    other = 1.0 - x
    lost = 1.0 - other  # what of x is left in 1 - x: log(1 - x) = log(other) x / lost (Kahan)
    beside = tl.where(lost == 0, -x, tl.log(other) * (x / lost))
    beside = tl.where(beside < -100.0, -100.0, beside)
    loss = (label - 1.0) * beside - label * log_at_least(x, -100.0)
    spread = other * x
    return loss, (x - label) / tl.where(spread < 1e-12, 1e-12, spread)


@triton.jit
def term(x, label, TERM: tl.constexpr):
    """Loss and slope of fp32 logits of any shape; the label is a number or of that shape."""
    if TERM == "cross_entropy":
        loss, slope = weighted_cross_entropy(x, label, 1.0 - label)
    elif TERM == "least_squares":
        slope = x - label
        loss = 0.5 * slope * slope
    elif TERM == "hinge":
        side = 1.0 - 2.0 * label  # -1 for real
        loss = 1.0 + side * x
        slope = tl.where(loss <= 0, 0.0, side + tl.zeros_like(x))
        loss = tl.where(loss <= 0, 0.0, loss)
    elif TERM == "linear":
        side = 1.0 - 2.0 * label
        loss = side * x
        slope = side + tl.zeros_like(x)
    else:
        loss, slope = probability(x, label)
    return loss, slope
