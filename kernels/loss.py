"""A GAN's loss in one launch: both batches, the mean, the slope of every logit, and what one watches.

    loss = sum_i w_i term(x_i, t) / n  +  sum_j v_j term(y_j, u) / m       real logits x [n], fake logits y [m]
    paired:   sum_i w_i softplus(-(a_i - b_i)) / n                         a, b: the batch to be raised, the other one
    average:  sum_i w_i softplus(-(a_i - mean b)) / n  +  sum_j v_j softplus(b_j - mean a) / m

Terms are in ``kernels/loss_terms.py``. Either batch may be missing, and a label may be flipped with a probability: the
bits of ``kernels/philox.py`` by the logit's place, a fake one's behind the real ones. The slopes are those of the loss,
to be multiplied by its incoming gradient; where they are not given none is formed.

What one watches, fp32 [4], of batches that are there: the mean score of the real and of the fake logits, then the share
of each that the discriminator tells rightly. A score is s(x) for cross entropies, s(a_i - b_i) or s(a_i - mean b) for
relativistic ones, else x. Right is a real one above the bound (1/2 for least squares, else 0) and a fake one not above,
of pairs both where a_i > b_i for a the real batch; NaN is never right.

Contract: logits and weights bf16, fp16 or fp32, each of its own dtype, in one dimension of any stride; everything is
formed in fp32, slopes are rounded once to the dtype of what takes them, and lie contiguous. n or m may be 0: the loss
is NaN, the mean of nothing. Addresses are int64. No atomic adds a float: of several programs the last to arrive adds
the sums in a fixed order. ``average`` needs means first and passes thrice over the logits, in one program.

Bytes, for items of s bytes: s (n + m) read and as much written, a weight read beside; average reads thrice, from cache.
FLOPs: about 40 for each logit of a cross entropy, 10 of which are for what one watches.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): loss 168,
average 123; nothing spilled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.loss_average import average_loss_kernel
from fastgan.kernels.loss_terms import blocks_of, sigmoid, term
from fastgan.kernels.philox import kept
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

BLOCK = 1024
PROGRAMS = 256  # that share a loss: few enough for the last one to add what they stored at once
LARGE = 4096  # logits of a batch from which the one program of ``average`` has as many threads as there may be
REGISTERS = 168  # the cap


@triton.jit
def batch_sums(
    x, minus, weight, slopes, minus_slopes, rng, N, x_n, minus_n, weight_n, factor, label, other, threshold, bound,
    first, program, programs,
    TERM: tl.constexpr, WATCHED: tl.constexpr, ABOVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of loss, score and those ABOVE the bound (or not above) over every programs-th block; slopes are stored."""
    losses = tl.zeros([BLOCK], tl.float32)
    scores = tl.zeros([BLOCK], tl.float32)
    right = tl.zeros([BLOCK], tl.float32)
    for block in range(program, blocks_of(N, BLOCK), programs):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        inside = at < N
        logit = tl.load(x + at * x_n, mask=inside, other=0.0).to(tl.float32)
        if minus is not None:
            logit -= tl.load(minus + at * minus_n, mask=inside, other=0.0).to(tl.float32)
        target = label
        if rng is not None:
            target = tl.where(kept(rng, first + at, threshold), label, other)
        loss, slope = term(logit, target, TERM)
        if weight is not None:
            scale = tl.load(weight + at * weight_n, mask=inside, other=0.0).to(tl.float32)
            loss *= scale
            slope *= scale
        losses += tl.where(inside, loss, 0.0)
        slope *= factor
        if slopes is not None:
            tl.store(slopes + at, slope.to(slopes.dtype.element_ty), mask=inside)
        if minus_slopes is not None:
            tl.store(minus_slopes + at, (-slope).to(minus_slopes.dtype.element_ty), mask=inside)
        if WATCHED:
            score = sigmoid(logit) if TERM == "cross_entropy" else logit
            scores += tl.where(inside, score, 0.0)
            right += tl.where(inside & ((logit > bound) if ABOVE else (logit <= bound)), 1.0, 0.0)
    return tl.sum(losses, axis=0), tl.sum(scores, axis=0), tl.sum(right, axis=0)


@triton.jit(do_not_specialize=["programs", "threshold"])
def loss_kernel(
    real, fake, real_weight, fake_weight, rng, real_slopes, fake_slopes, loss, watched, part, ticket,
    N, M, real_n, fake_n, real_weight_n, fake_weight_n, real_share, fake_share, sign, real_label, fake_label, threshold,
    bound, programs,
    TERM: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Every ``programs``-th block of both batches; the last program writes the loss and what one watches."""
    program = tl.program_id(0)
    WATCHED: tl.constexpr = watched is not None
    real_factor, fake_factor = sign * real_share, sign * fake_share
    if PAIRED:  # both batches are one, of differences
        loss_0, score_0, right_0 = batch_sums(
            real, fake, real_weight, real_slopes, fake_slopes, None, N, real_n, fake_n, real_weight_n,
            real_factor, real_label, fake_label, threshold, bound, 0, program, programs, TERM, WATCHED, True, BLOCK,
        )  # fmt: skip
    elif real is not None:
        loss_0, score_0, right_0 = batch_sums(
            real, None, real_weight, real_slopes, None, rng, N, real_n, 0, real_weight_n,
            real_factor, real_label, fake_label, threshold, bound, 0, program, programs, TERM, WATCHED, True, BLOCK,
        )  # fmt: skip
    else:
        loss_0, score_0, right_0 = 0.0, 0.0, 0.0
        real_factor = 0.0
    if fake is not None and not PAIRED:
        loss_1, score_1, right_1 = batch_sums(
            fake, None, fake_weight, fake_slopes, None, rng, M, fake_n, 0, fake_weight_n,
            fake_factor, fake_label, real_label, threshold, bound, N, program, programs, TERM, WATCHED, False, BLOCK,
        )  # fmt: skip
    else:
        loss_1, score_1, right_1 = 0.0, 0.0, 0.0
        fake_factor = 0.0

    last = True
    if part is not None:
        mine = part + program
        tl.store(mine, loss_0)
        tl.store(mine + programs, loss_1)
        if WATCHED:
            tl.store(mine + 2 * programs, score_0)
            tl.store(mine + 3 * programs, score_1)
            tl.store(mine + 4 * programs, right_0)
            tl.store(mine + 5 * programs, right_1)
        last = arrives_last(ticket, programs)
    if last:
        if part is not None:
            loss_0 = total(part, 0, programs, PARTS)
            loss_1 = total(part, 1, programs, PARTS)
            if WATCHED:
                score_0 = total(part, 2, programs, PARTS)
                score_1 = total(part, 3, programs, PARTS)
                right_0 = total(part, 4, programs, PARTS)
                right_1 = total(part, 5, programs, PARTS)
        tl.store(loss, loss_0 * real_factor + loss_1 * fake_factor)
        if WATCHED:
            if PAIRED:
                tl.store(watched, score_0 * real_share)
                tl.store(watched + 1, 1.0 - score_0 * real_share)
                tl.store(watched + 2, right_0 * real_share)
                tl.store(watched + 3, right_0 * real_share)
            else:
                if real is not None:
                    tl.store(watched, score_0 * real_share)
                    tl.store(watched + 2, right_0 * real_share)
                if fake is not None:
                    tl.store(watched + 1, score_1 * fake_share)
                    tl.store(watched + 3, right_1 * fake_share)


@triton.jit
def total(part, which, programs, PARTS: tl.constexpr):
    """The sum of what all programs have stored, in their order."""
    at = tl.arange(0, PARTS)
    return tl.sum(tl.load(part + which * programs + at, mask=at < programs, other=0.0, cache_modifier=".cg"), axis=0)


@dataclass(frozen=True)
class Form:
    """What a launch computes: the terms of both batches, or the relation between them."""

    term: str  # cross_entropy, least_squares, hinge or linear
    relation: str = "none"  # none, pairs, or average
    raised: str = "real"  # of a relation: the batch that the loss wants above the other
    labels: tuple[float, float] = (1.0, 0.0)  # of the real and of the fake logits
    sign: float = 1.0  # of the loss
    threshold: int = 0  # a label is flipped with probability threshold / 2^32, where there is an rng


_CROSS_ENTROPY = Form("cross_entropy")


def launch(
    real: Tensor | None,
    fake: Tensor | None,
    real_weight: Tensor | None,
    fake_weight: Tensor | None,
    rng: Tensor | None,
    real_slopes: Tensor | None,
    fake_slopes: Tensor | None,
    loss: Tensor,
    watched: Tensor | None,
    form: Form,
) -> Launch:
    """Prepare one loss of logits [n] and [m]."""
    arguments: dict[str, object] = {"real": real, "fake": fake, "real_weight": real_weight, "fake_weight": fake_weight}
    arguments |= {"real_slopes": real_slopes, "fake_slopes": fake_slopes, "loss": loss, "watched": watched}
    sizes = [0 if logits is None else logits.numel() for logits in (real, fake)]
    shares = [1 / size if size else math.nan for size in sizes]  # a mean of nothing is NaN
    arguments |= {"N": sizes[0], "M": sizes[1], "real_share": shares[0], "fake_share": shares[1]}
    for name, tensor in list(arguments.items())[:4]:
        arguments[f"{name}_n"] = 0 if tensor is None else tensor.stride(0)  # type: ignore[attr-defined]
    most = max(sizes)
    if form.relation == "average":
        tile = Config(1, 2048, 1, 16, 128, stages=1) if most >= LARGE else Config(1, BLOCK, 1, 8, REGISTERS, stages=1)
        return Launch(average_loss_kernel, arguments, {"RAISED": form.raised, "BLOCK": tile.cols}, 1, tile)
    tile = Config(1, BLOCK, 1, 4, REGISTERS, stages=1)
    programs = max(1, min(-(-most // BLOCK), PROGRAMS))
    alone = programs == 1
    arguments |= {"part": None, "ticket": None} if alone else {"part": Workspace(6 * programs), "ticket": Tickets(1)}
    labels = (float(form.raised == "real"), 0.0) if form.relation == "pairs" else form.labels
    arguments |= {"rng": rng, "real_label": labels[0], "fake_label": labels[1], "sign": form.sign}
    arguments |= {"threshold": form.threshold, "bound": 0.5 if form.term == "least_squares" else 0.0}
    arguments["programs"] = programs
    constexprs = {"TERM": form.term, "PAIRED": form.relation == "pairs", "BLOCK": BLOCK, "PARTS": PROGRAMS}
    return Launch(loss_kernel, arguments, constexprs, programs, tile)


def gan_loss(
    real: Tensor | None,
    fake: Tensor | None,
    real_weight: Tensor | None,
    fake_weight: Tensor | None,
    rng: Tensor | None,
    real_slopes: Tensor | None,
    fake_slopes: Tensor | None,
    watched: Tensor | None,
    form: Form,
) -> Tensor:
    """Return the loss, fp32 (), and fill the slopes and what one watches, where they are given.

    Args:
        real, fake: logits, in one dimension; one of them may be None where the form relates nothing. Not one object.
        real_weight, fake_weight: of the same sizes, or None. A pair has the real one's.
        rng: int64 [2] on the device, seed and offset of the labels that are flipped; None: none is.
        real_slopes, fake_slopes: as large as the logits, contiguous, or None.
        watched: fp32 [4], contiguous, or None.
        form: what to compute.
    """
    operand = fake if real is None else real
    assert operand is not None
    loss = torch.empty((), dtype=torch.float32, device=operand.device)
    outputs = (real_slopes, fake_slopes, loss, watched)
    if real is None:
        submit(_of_fakes, (fake, fake_weight), outputs[1:], form)
    else:
        submit(launch, (real, fake, real_weight, fake_weight, rng), outputs, form)
    return loss


def _of_fakes(
    fake: Tensor, weight: Tensor | None, slopes: Tensor | None, loss: Tensor, watched: Tensor | None, form: Form
) -> Launch:
    return launch(None, fake, None, weight, None, None, slopes, loss, watched, form)


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own."""

    form: Form = _CROSS_ENTROPY
    n: int = 2048
    m: int = 2048
    step: int = 1
    weighted: bool = False
    flips: bool = False
    watched: bool = True
    sloped: str = "both"  # which batches' slopes are stored
    real: bool = True  # both batches are there

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.form.term, self.form.relation, *(text for text in told if text not in usual)])


def _cases() -> Iterator[_Case]:
    relations = [
        Form("cross_entropy", "pairs"),
        *(Form("cross_entropy", "average", raised) for raised in ("real", "fake")),
    ]
    for form in (*(Form(name) for name in ("cross_entropy", "least_squares", "hinge", "linear")), *relations):
        yield _Case(form)
        yield _Case(form, weighted=True, sloped="fake", watched=False)
        if form.relation == "none":
            yield _Case(form, real=False)
            yield _Case(form, real=False, watched=False, n=64, m=64)
            yield _Case(form, flips=True)
    yield _Case(Form("cross_entropy", threshold=3 * 2**30), flips=True)  # beyond int32
    for form in (_CROSS_ENTROPY, *relations):
        yield _Case(form, n=64, m=64)
        yield _Case(form, n=64, m=64, watched=False)
        yield _Case(form, n=4095, m=4095, step=3, weighted=True)
        yield _Case(form, n=1, m=1)
        yield _Case(form, n=65536, m=65536, sloped="none")
        yield _Case(form, n=65535, m=65535, step=3, weighted=True)


def _prepared(case: _Case, dtype: torch.dtype) -> Launch:
    """Return what is launched for such operands, built without storage."""

    def batch(size: int, kind: torch.dtype, step: int = 1) -> Tensor:
        return torch.empty_strided((size,), (step,), dtype=kind, device="meta")

    real, fake = batch(case.n, dtype, case.step), batch(case.m, dtype, case.step)
    real_weight = real if case.weighted else None
    fake_weight = fake if case.weighted and case.form.relation != "pairs" else None
    rng = batch(2, torch.int64) if case.flips else None
    real_slopes = batch(case.n, dtype) if case.sloped in ("real", "both") else None
    fake_slopes = batch(case.m, dtype) if case.sloped in ("fake", "both") else None
    loss, watched = torch.empty((), device="meta"), batch(4, torch.float32) if case.watched else None
    if case.real:
        return launch(real, fake, real_weight, fake_weight, rng, real_slopes, fake_slopes, loss, watched, case.form)
    return _of_fakes(fake, fake_weight, fake_slopes, loss, watched, case.form)


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype in (torch.bfloat16, torch.float32):  # float16 differs by its casts
        for case in _cases():
            variant = _prepared(case, dtype).variant("loss", f"{str(dtype).removeprefix('torch.')} {case}", 0)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible, variant.num_warps))
            if form not in seen:
                seen.add(form)
                yield variant
