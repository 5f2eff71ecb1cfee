"""Binary cross entropy of logits or of probabilities in one launch: the loss, its mean and every input's slope.

    logits:          w (p t softplus(-x) + (1 - t) softplus(x))                  p: pos_weight
    probabilities:   w (-t max(log x, -100) - (1 - t) max(log(1 - x), -100))     slope clamped as PyTorch's

Their sum over the input times ``share`` is the loss, or each by itself where EACH; terms and slopes stand in
``kernels/loss_terms.py``. The slopes are those of what is returned, to be multiplied by its incoming gradient.

Contract: input, target and weights bf16, fp16 or fp32, each of its own dtype, in one dimension of any stride and of one
size, 0 allowed; everything is formed in fp32, the loss and the slopes are rounded once to the dtype of what takes them
and lie contiguous. Addresses are int64. No atomic adds a float: of several programs the last to arrive adds the sums in
a fixed order. A probability outside [0, 1] gives NaN or nonsense: nobody stops the device for it.

Bytes, for n inputs of s bytes: 2 s n read (s n for each weight) and s n written, for EACH 2 s n. FLOPs: about 40 n.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 127, capped
at 168; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.loss_terms import blocks_of, probability, weighted_cross_entropy
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

BLOCK, WARPS, REGISTERS = 1024, 4, 168
PROGRAMS = 256  # that share a sum: few enough for the last one to add what they stored at once


@triton.jit(do_not_specialize=["programs"])
def bce_kernel(
    x, target, weight, pos_weight, loss, slopes, part, ticket,
    N, x_n, target_n, weight_n, pos_n, share, programs,
    LOGITS: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Every ``programs``-th block of the input; the last program writes the loss, unless EACH has one of its own."""
    program = tl.program_id(0)
    losses = tl.zeros([BLOCK], tl.float32)
    for block in range(program, blocks_of(N, BLOCK), programs):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        inside = at < N
        value = tl.load(x + at * x_n, mask=inside, other=0.0).to(tl.float32)
        label = tl.load(target + at * target_n, mask=inside, other=0.0).to(tl.float32)
        if LOGITS:
            real = label
            if pos_weight is not None:
                real *= tl.load(pos_weight + at * pos_n, mask=inside, other=0.0).to(tl.float32)
            each, slope = weighted_cross_entropy(value, real, 1.0 - label)
        else:
            each, slope = probability(value, label)
        if weight is not None:
            scale = tl.load(weight + at * weight_n, mask=inside, other=0.0).to(tl.float32)
            each *= scale
            slope *= scale
        if slopes is not None:
            tl.store(slopes + at, (slope * share).to(slopes.dtype.element_ty), mask=inside)
        if EACH:
            tl.store(loss + at, each.to(loss.dtype.element_ty), mask=inside)
        else:
            losses += tl.where(inside, each, 0.0)

    if not EACH:
        whole = tl.sum(losses, axis=0)
        last = True
        if part is not None:
            tl.store(part + program, whole)
            last = arrives_last(ticket, programs)
        if last:
            if part is not None:
                which = tl.arange(0, PARTS)
                parts = tl.load(part + which, mask=which < programs, other=0.0, cache_modifier=".cg")
                whole = tl.sum(parts, axis=0)
            tl.store(loss, (whole * share).to(loss.dtype.element_ty))


def launch(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    loss: Tensor,
    slopes: Tensor | None,
    logits: bool,
    reduction: str,
) -> Launch:
    """Prepare one loss of inputs [n]: (), or [n] without a reduction."""
    N, each = x.numel(), reduction == "none"
    blocks = -(-N // BLOCK)
    programs = blocks if each else max(1, min(blocks, PROGRAMS))
    alone = each or programs == 1
    operands = {"x": x, "target": target, "weight": weight, "pos": pos_weight}
    arguments: dict[str, object] = {
        f"{name}_n": 0 if tensor is None else tensor.stride(0) for name, tensor in operands.items()
    }
    arguments |= {"x": x, "target": target, "weight": weight, "pos_weight": pos_weight, "loss": loss, "slopes": slopes}
    arguments |= {"part": None, "ticket": None} if alone else {"part": Workspace(programs), "ticket": Tickets(1)}
    share = 1.0 if reduction != "mean" else 1 / N if N else float("nan")
    arguments |= {"N": N, "share": share, "programs": programs}
    constexprs = {"LOGITS": logits, "EACH": each, "BLOCK": BLOCK, "PARTS": PROGRAMS}
    return Launch(bce_kernel, arguments, constexprs, programs, Config(1, BLOCK, 1, WARPS, REGISTERS, stages=1))


def bce(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    slopes: Tensor | None,
    *,
    logits: bool,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return the loss in ``dtype``, () or as large as the input, and fill the slopes where they are given.

    Args:
        x: logits or probabilities, in one dimension.
        target, weight, pos_weight: of the same size, weights or None; a pos_weight for logits only. No object twice.
        slopes: as large, contiguous, or None.
        logits: whether x holds logits.
        reduction: ``none``, ``mean`` or ``sum``.
        dtype: of the loss.
    """
    loss = torch.empty(x.shape if reduction == "none" else (), dtype=dtype, device=x.device)
    if x.numel() or reduction != "none":
        submit(launch, (x, target, weight, pos_weight), (loss, slopes), logits, reduction)
    return loss


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms that can be launched, each once; the same on every architecture."""
    seen = set()
    kinds = product((torch.bfloat16, torch.float32, torch.float16), (True, False), ("none", "mean"), _LAYOUTS)
    for dtype, logits, reduction, (n, step, weighted) in kinds:
        x = torch.empty_strided((n,), (step,), dtype=dtype, device="meta")
        weight = x if weighted else None
        loss = torch.empty(n if reduction == "none" else (), dtype=torch.float32, device="meta")
        slopes = torch.empty(n, dtype=dtype, device="meta")
        prepared = launch(x, x, weight, weight if logits else None, loss, slopes, logits, reduction)
        kind = f"{str(dtype).removeprefix('torch.')} {'logits' if logits else 'probabilities'} {reduction}"
        variant = prepared.variant("bce", f"{kind} n={n} step={step}{' weighted' if weighted else ''}", 0)
        form = repr((variant.signature, variant.constexprs, variant.divisible))
        if form not in seen:
            seen.add(form)
            yield variant


_LAYOUTS = ((4096, 1, False), (64, 1, False), (4096, 1, True), (4095, 1, False), (4096, 3, True), (1, 1, False))
