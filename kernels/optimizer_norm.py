"""What all gradients of a network say together: how far to clip their norm, and whether to skip the step.

    norm    = sqrt(sum of (g / unscale)^2)          verdict = (min(1, most / (norm + 1e-6)), some g is not finite)

Contract: ``table``, ``blocks`` and ``moving`` are those of ``kernels/optimizer_step.py``; gradients of one dtype (bf16,
fp16, fp32) by any addresses; those of address 0 are left out. ``verdict`` is fp32 [2], the factor and 0 or 1; the norm
goes to ``norm``, fp32 [1]. Sums are fp32; each program stores its part and the last to arrive adds them in their order:
the same gradients give the same bits. As in PyTorch, squares that overflow fp32 make the norm infinite and the factor
0; whether a gradient is finite is asked of itself, not of the norm.

Bytes of an element: those of its gradient. Registers a thread, the most of the variants on sm_80 ... 120: 40,
of a cap of 64; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.optimizer_step import BLOCK, COLUMNS, SIZE, TYPES, WARPS
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

REGISTERS = 64
TINY = tl.constexpr(1e-6)  # that torch.nn.utils.clip_grad_norm_ adds to the norm


@triton.jit
def _part(total, wrong, grad, at, inside, scale, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Add the squares of the elements ``at`` [BLOCK], and note those that are not finite."""
    pointer = grad.to(tl.pointer_type(TYPE))
    pointer = tl.multiple_of(pointer, 16) if ALIGNED else pointer
    g = tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    endless = tl.where(tl.abs(g) < float("inf"), 0, 1)
    g = g / scale
    return tl.fma(g, g, total), tl.maximum(wrong, endless)


@triton.jit(do_not_specialize=["programs", "rounds", "most"])
def optimizer_norm_kernel(
    table, blocks, moving, unscale, parts, verdict, norm, ticket, programs, rounds, most,
    TYPE: tl.constexpr, CLIPS: tl.constexpr, GUARDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The squares of ``rounds`` blocks of one gradient; the last program to end sums up."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    chunk = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64)
    grad, size = tl.load(moving + tensor), tl.load(table + tensor * COLUMNS + SIZE)
    size = tl.where(grad == 0, 0, size)
    scale = 1.0
    if unscale is not None:
        scale = tl.load(unscale)
    total, wrong = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for turn in range(rounds):
        start = (chunk * rounds + turn) * BLOCK
        at = start + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
        if (start + BLOCK <= size) & (grad % 16 == 0):
            total, wrong = _part(total, wrong, grad, at, tl.full([BLOCK], True, tl.int1), scale, TYPE, True)
        elif start < size:
            total, wrong = _part(total, wrong, grad, at, at < size, scale, TYPE, False)
    tl.store(parts + tl.program_id(0), tl.sum(total, axis=0))
    tl.store(parts + programs + tl.program_id(0), tl.max(wrong, axis=0).to(tl.float32))

    if arrives_last(ticket, programs):
        total, flags = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for done in range(0, programs, BLOCK):
            which = done + tl.arange(0, BLOCK)  # [BLOCK]
            there = which < programs
            total += tl.load(parts + which, mask=there, other=0.0, cache_modifier=".cg")
            flag = tl.load(parts + programs + which, mask=there, other=0.0, cache_modifier=".cg")
            flags = tl.maximum(flags, flag)
        length = tl.sqrt_rn(tl.sum(total, axis=0))
        tl.store(norm, length)
        factor = 1.0
        if CLIPS:  # a NaN stays one
            ratio = most / (length + TINY)
            factor = tl.where(ratio > 1, 1.0, ratio)
        tl.store(verdict, factor)
        tl.store(verdict + 1, tl.max(flags, axis=0) if GUARDS else 0.0)


def norm_launch(
    table: Tensor,
    blocks: Tensor,
    moving: Tensor,
    unscale: Tensor | None,
    verdict: Tensor,
    norm: Tensor,
    rounds: int,
    dtype: torch.dtype,
    most: float | None,
    guards: bool,
) -> Launch:
    """Prepare the verdict on the gradients of all tensors of the table."""
    programs = blocks.shape[0]
    arguments: dict[str, object] = {"table": table, "blocks": blocks, "moving": moving, "unscale": unscale}
    arguments |= {"parts": Workspace(2 * programs), "verdict": verdict, "norm": norm, "ticket": Tickets(1)}
    arguments |= {"programs": programs, "rounds": rounds, "most": 0.0 if most is None else float(most)}
    constexprs = {"TYPE": TYPES[dtype], "CLIPS": most is not None, "GUARDS": guards, "BLOCK": BLOCK}
    return Launch(optimizer_norm_kernel, arguments, constexprs, programs, Config(1, BLOCK, 1, WARPS, REGISTERS, 1))


def optimizer_norm(
    table: Tensor,
    blocks: Tensor,
    moving: Tensor,
    dtype: torch.dtype,
    *,
    rounds: int,
    unscale: Tensor | None = None,
    most: float | None = None,
    guards: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the verdict, fp32 [2], and the gradients' norm, fp32 [1], on the device.

    Args:
        table, blocks, moving, rounds, unscale: as for ``optimizer_step``.
        dtype: of the gradients.
        most: the norm that is not to be exceeded; None: gradients stay as long as they are.
        guards: ask to skip a step with a gradient that is not finite.
    """
    verdict, norm = (torch.empty(size, dtype=torch.float32, device=table.device) for size in (2, 1))
    submit(norm_launch, (table, blocks, moving, unscale), (verdict, norm), rounds, dtype, most, guards)
    return verdict, norm


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form; the same on every architecture."""
    table = torch.empty(16, COLUMNS.value, dtype=torch.int64, device="meta")
    blocks = torch.empty(64, 2, dtype=torch.int32, device="meta")
    moving = torch.empty(64, dtype=torch.int64, device="meta")
    verdict, scalar = torch.empty(2, device="meta"), torch.empty(1, device="meta")
    for dtype in TYPES:
        for most, guards in ((None, True), (1.0, False), (1.0, True)):
            for unscale in (None, scalar):
                launch = norm_launch(table, blocks, moving, unscale, verdict, scalar, 4, dtype, most, guards)
                switches = {"clip": most is not None, "guard": guards, "unscale": unscale is not None}
                told = (str(dtype).removeprefix("torch."), *(name for name, on in switches.items() if on))
                yield launch.variant("optimizer_norm", " ".join(told), 0)
