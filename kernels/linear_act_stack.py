"""Linear layers of E members, each with a weight of its own, in one launch for each direction.

    y  [E, B, N] = phi(x [E, B, K] W [E, N, K]^T + b [E, N])
    gx [E, B, K] = g W,   gW [E, N, K] = g^T x,   gb [E, N] = sum of g over B;   g = gy phi'(saved)

The kernels are those of linear.py, linear_bwd_input.py and linear_bwd_weight.py, whose rows fall into groups: here a
group is a member's batch, and has its own weight. No tile has rows of two members, so nothing of one reaches another.

Contract: as linear.py. x and gy lie as [E B, K] and [E B, N] by any two strides (else they are copied), W by any three;
the rest is contiguous. E, B, N and K may be 0.

Work, in elements and multiply-adds: E times that of the single kernels.

Registers: as their files say.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.linear import fwd_launch, fwd_problem
from fastgan.kernels.linear_bwd_input import bwd_input_launch, bwd_input_problem
from fastgan.kernels.linear_bwd_weight import bwd_weight_launch, bwd_weight_problem
from fastgan.kernels.tile import Config, Problem, Target, candidates
from fastgan.kernels.variant import Variant

FORMS = (
    (torch.bfloat16, "tf32", ("none", "leaky_relu", "tanh")),
    (torch.float16, "tf32", ("leaky_relu",)),
    (torch.float32, "tf32", ("none", "leaky_relu", "tanh")),
    (torch.float32, "ieee", ("leaky_relu",)),
)
SIZES = (  # members, rows of each, outputs, inputs: whole vectors, and sizes that nothing divides
    (16, 256, 256, 256),
    (10, 100, 255, 511),
)


def linear_act_stack_fwd(
    x: Tensor, w: Tensor, bias: Tensor | None, activation: str, slope: float, store_pre: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return phi(x [E, B, K] w [E, N, K]^T + bias [E, N]), and the pre-activation too where it is asked for."""
    E, B, _ = x.shape
    y = x.new_empty(E, B, w.shape[1])
    pre = torch.empty_like(y) if store_pre else None
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        submit(fwd_launch, (_rows(x), w, bias), (_rows(y), _optional(pre)), activation, slope, Target.of(x))
    return y, pre


def linear_act_stack_bwd_input(gy: Tensor, saved: Tensor | None, w: Tensor, activation: str, slope: float) -> Tensor:
    """Return the gradient of x [E, B, K] from gy and the saved output or pre-activation [E, B, N]."""
    gx = gy.new_empty(*gy.shape[:2], w.shape[2])
    if gx.numel():
        inputs = _rows(gy), _optional(saved), w
        submit(bwd_input_launch, inputs, (_rows(gx),), activation, slope, Target.of(gy))
    return gx


def linear_act_stack_bwd_weight(
    gy: Tensor, saved: Tensor | None, x: Tensor, activation: str, slope: float, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of w [E, N, K], and of the bias [E, N] where it is asked for."""
    E, N = gy.shape[0], gy.shape[2]
    gw = gy.new_empty(E, N, x.shape[2])
    gb = gy.new_empty(E, N) if with_bias else None
    if E * N:  # with K = 0 there may still be a bias gradient
        inputs = _rows(gy), _optional(saved), _rows(x)
        submit(bwd_weight_launch, inputs, (gw, gb), activation, slope, Target.of(gy))
    return gw, gb


def _rows(batches: Tensor) -> Tensor:
    """See [E, B, n] as [E B, n]; copy what does not lie so."""
    return batches.reshape(-1, batches.shape[2]) if batches.numel() else batches.new_empty(_size(batches))


def _size(batches: Tensor) -> tuple[int, int]:
    return batches.shape[0] * batches.shape[1], batches.shape[2]


def _optional(batches: Tensor | None) -> Tensor | None:
    return None if batches is None else _rows(batches.contiguous())


def _launches(sizes: tuple[int, int, int, int], dtype: torch.dtype, target: Target, phi: str) -> Iterator[Launch]:
    """Yield what is launched for such operands, in each tile that may be chosen."""
    E, B, N, K = sizes
    how = phi, 0.2, target

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    x, y, w, bias = empty(E * B, K), empty(E * B, N), empty(E, N, K), empty(E, N)
    saved = None if phi == "none" else y
    for tile in _tiles(fwd_problem(x, w, target)):
        yield fwd_launch(x, w, bias, y, None, *how, config=tile)
    for tile in _tiles(bwd_input_problem(y, saved, w, target)):
        yield bwd_input_launch(y, saved, w, x, *how, config=tile)
    for tile in _tiles(bwd_weight_problem(y, saved, x, target, members=E)):
        yield bwd_weight_launch(y, saved, x, w, bias, *how, config=tile)


def _tiles(problem: Problem) -> Iterator[Config]:
    return iter(candidates(problem))


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms that the dispatcher can choose on compute capability arch / 10 for stacks.

    Layouts and the other activations change no more here than in linear_forms.py, where each is a form.
    """
    for dtype, precision, activations in FORMS:
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for sizes in SIZES:
            for phi in activations:
                for launch in _launches(sizes, dtype, Target(arch, precision), phi):
                    rows = 0 if precision == "ieee" else launch.config.rows
                    yield launch.variant("linear_act_stack", f"{kind} {phi} {sizes} {launch.config}", rows)
