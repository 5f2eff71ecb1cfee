"""The relativistic average loss: each batch against the other's mean, by one program that passes thrice over both.

    sum_i w_i softplus(-(a_i - mean b)) / n  +  sum_j v_j softplus(b_j - mean a) / m      a: the batch to be raised

Its contract, its bytes and what one watches: ``kernels/loss.py``, which launches it. A mean is kept as a logit and the
mean distance from it: the differences of large logits that are near each other lose nothing.
"""

import triton
import triton.language as tl

from fastgan.kernels.loss_terms import blocks_of, sigmoid, weighted_cross_entropy


@triton.jit
def shifted_mean(x, N, x_n, share, BLOCK: tl.constexpr):
    """The mean of a batch as a sum of two: of equal ones nothing is lost, however large they are."""
    origin = tl.load(x, mask=N > 0, other=0.0).to(tl.float32)
    origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)
    rest = tl.zeros([BLOCK], tl.float32)
    for block in range(0, blocks_of(N, BLOCK)):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        logit = tl.load(x + at * x_n, mask=at < N, other=0.0).to(tl.float32)
        rest += tl.where(at < N, logit - origin, 0.0)
    return origin, tl.sum(rest, axis=0) * share


@triton.jit
def against_mean(
    x, weight, N, x_n, weight_n, origin, rest, side, WATCHED: tl.constexpr, ABOVE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums over a batch of softplus(side (x - mean)), its slope, the scores and those above the mean, or not above."""
    losses = tl.zeros([BLOCK], tl.float32)
    pulls = tl.zeros([BLOCK], tl.float32)
    scores = tl.zeros([BLOCK], tl.float32)
    right = tl.zeros([BLOCK], tl.float32)
    for block in range(0, blocks_of(N, BLOCK)):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        inside = at < N
        logit = tl.load(x + at * x_n, mask=inside, other=0.0).to(tl.float32)
        logit = (logit - origin) - rest
        loss, slope = weighted_cross_entropy(side * logit, 0.0, 1.0)
        if weight is not None:
            scale = tl.load(weight + at * weight_n, mask=inside, other=0.0).to(tl.float32)
            loss *= scale
            slope *= scale
        losses += tl.where(inside, loss, 0.0)
        pulls += tl.where(inside, slope, 0.0)
        if WATCHED:
            scores += tl.where(inside, sigmoid(logit), 0.0)
            right += tl.where(inside & ((logit > 0) if ABOVE else (logit <= 0)), 1.0, 0.0)
    return tl.sum(losses, axis=0), tl.sum(pulls, axis=0), tl.sum(scores, axis=0), tl.sum(right, axis=0)


@triton.jit
def store_against_mean(x, weight, slopes, N, x_n, weight_n, origin, rest, side, share, pull, BLOCK: tl.constexpr):
    """Store side s(side (x - mean)) / n of a batch, and in each the part of the other batch's pull on this mean."""
    for block in range(0, blocks_of(N, BLOCK)):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        inside = at < N
        logit = tl.load(x + at * x_n, mask=inside, other=0.0).to(tl.float32)
        _, slope = weighted_cross_entropy(side * ((logit - origin) - rest), 0.0, 1.0)
        if weight is not None:
            slope *= tl.load(weight + at * weight_n, mask=inside, other=0.0).to(tl.float32)
        tl.store(slopes + at, ((side * slope + pull) * share).to(slopes.dtype.element_ty), mask=inside)


@triton.jit
def average_loss_kernel(
    real, fake, real_weight, fake_weight, real_slopes, fake_slopes, loss, watched,
    N, M, real_n, fake_n, real_weight_n, fake_weight_n, real_share, fake_share,
    RAISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each batch against the other's mean, by one program; RAISED: the batch that the loss wants above the other."""
    WATCHED: tl.constexpr = watched is not None
    real_side: tl.constexpr = -1.0 if RAISED == "real" else 1.0
    fake_side: tl.constexpr = 1.0 if RAISED == "real" else -1.0
    real_origin, real_rest = shifted_mean(real, N, real_n, real_share, BLOCK)
    fake_origin, fake_rest = shifted_mean(fake, M, fake_n, fake_share, BLOCK)
    loss_0, pull_0, score_0, right_0 = against_mean(
        real, real_weight, N, real_n, real_weight_n, fake_origin, fake_rest, real_side, WATCHED, True, BLOCK
    )
    loss_1, pull_1, score_1, right_1 = against_mean(
        fake, fake_weight, M, fake_n, fake_weight_n, real_origin, real_rest, fake_side, WATCHED, False, BLOCK
    )
    tl.store(loss, loss_0 * real_share + loss_1 * fake_share)
    if real_slopes is not None:
        store_against_mean(
            real, real_weight, real_slopes, N, real_n, real_weight_n, fake_origin, fake_rest, real_side, real_share,
            -fake_side * pull_1 * fake_share, BLOCK,
        )  # fmt: skip
    if fake_slopes is not None:
        store_against_mean(
            fake, fake_weight, fake_slopes, M, fake_n, fake_weight_n, real_origin, real_rest, fake_side, fake_share,
            -real_side * pull_0 * real_share, BLOCK,
        )  # fmt: skip
    if WATCHED:
        tl.store(watched, score_0 * real_share)
        tl.store(watched + 1, score_1 * fake_share)
        tl.store(watched + 2, right_0 * real_share)
        tl.store(watched + 3, right_1 * fake_share)
