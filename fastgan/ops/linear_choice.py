"""Who makes a linear layer's product, and where a normalised operand is formed: asked once for each kind of product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.backend import only_ours

MOST_KEPT = 4096  # answers
ROOM = (128, 64, 32)  # accumulators of a thread where nothing, one thing or more is done beside the product

_answers: dict[tuple[Any, ...], bool] = {}


def room(*things: object) -> int:
    """Return how many accumulators a thread has room for beside the things that are there."""
    return ROOM[min(sum(thing is not None for thing in things), 2)]


def by_library(
    op: str, rows: int, cols: int, depth: int, operand: Tensor, masked: bool = False, room: int = ROOM[0]
) -> bool:
    """Whether cuBLAS makes a product of that size, rows x cols sums over depth, on the operand's device.

    Args:
        op: the launch that it would be instead.
        rows, cols, depth: of the product.
        operand: of its dtype, on its device.
        masked: the incoming gradient has yet to go through something.
        room: accumulators of a thread in that launch.
    """
    if only_ours() or not rows * cols * depth:
        return False

    def ask() -> bool:
        from fastgan.kernels.tile import prefers_library

        return prefers_library(_problem(op, rows, cols, depth, operand, masked, room))

    return _answer((op, rows, cols, depth, masked, room), operand, ask)


def in_load(
    op: str, rows: int, cols: int, depth: int, operand: Tensor, masked: bool, room: int, plain_room: int
) -> bool:
    """Whether an operand is normalised where the launch ``op`` loads it, rather than by a pass of its own before.

    ``room``: accumulators of a thread in that launch; ``plain_room``: where the operand comes normalised.
    """
    if not rows * cols * depth:
        return True

    def ask() -> bool:
        from fastgan.kernels.tile import in_load

        ours = _problem(f"{op}_norm", rows, cols, depth, operand, masked, room)
        return in_load(ours, _problem(op, rows, cols, depth, operand, masked, plain_room))

    return _answer((f"{op}_norm", rows, cols, depth, masked, room, plain_room), operand, ask)


def forget() -> None:
    """Ask anew from now on: tables have been written."""
    _answers.clear()


def _answer(about: tuple[Any, ...], operand: Tensor, ask: Callable[[], bool]) -> bool:
    exact = operand.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision
    key = (*about, operand.dtype, operand.device, exact)
    answer = _answers.get(key)
    if answer is None:
        if len(_answers) >= MOST_KEPT:
            _answers.clear()
        answer = _answers[key] = ask()
    return answer


def _problem(op: str, rows: int, cols: int, depth: int, operand: Tensor, masked: bool, room: int) -> Any:
    from fastgan.kernels.tile import Problem, Target

    vectors = depth % 16 == 0 and cols % 16 == 0
    size = rows, cols, depth, operand.dtype.itemsize
    return Problem(op, *size, Target.of(operand), masked, vectors, splits=True, accumulators=room)
