"""Who makes a convolution, and where a normalised operand is formed: asked once for each kind of convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastgan.ops.backend import only_ours

if TYPE_CHECKING:
    from fastgan.kernels.conv_map import Geometry
    from fastgan.kernels.norm import Correction, Norm, Statistics

MOST_KEPT = 4096  # answers
THIN = 128  # positions of a sample with vectors of its own: no tile has two samples, and would be empty for the most

_answers: dict[tuple[Any, ...], bool] = {}


def by_library(problem: Callable[..., Any], *operands: Any) -> bool:
    """Whether cuDNN computes what ``problem(*operands)`` describes, a function of a kernels' file; once a kind."""
    if only_ours():
        return False

    def ask() -> bool:
        from fastgan.kernels.tile import prefers_library

        return prefers_library(problem(*operands))

    return _answer("library", problem, operands, ask)


def in_load(problem: Callable[..., Any], *operands: Any, norm: int, of: Tensor, depth: int, columns: bool) -> bool:
    """Whether an operand is normalised where the launch loads it, rather than by a pass of its own before.

    Args:
        problem, operands: as ``by_library`` takes them.
        norm: the place of the norm among the operands; where the pass has run, there is none.
        of: the operand to normalise.
        depth: the channels that a tap sums over.
        columns: whether it is the operand of the columns.
    """

    def ask() -> bool:
        from fastgan.kernels.conv_product import in_load

        after = [*operands[:norm], None, *operands[norm + 1 :]]
        return in_load(problem(*operands), problem(*after), depth, of.numel(), columns)

    return _answer("load", problem, operands, ask)


def thin(vectors: Norm | Statistics | Correction | None, samples: int, geometry: Geometry, map: str) -> bool:
    """Whether each sample has vectors of its own, and fewer positions than a launch that takes them along is for."""
    groups = 1 if vectors is None else len(vectors.mean)
    return groups == samples > 1 and geometry.positions(map) < THIN


def forget() -> None:
    """Ask anew from now on: tables have been written."""
    _answers.clear()


def _answer(about: str, problem: Callable[..., Any], operands: tuple[Any, ...], ask: Callable[[], bool]) -> bool:
    key = (about, problem, *(_kind(operand) for operand in operands))
    answer = _answers.get(key)
    if answer is None:
        if len(_answers) >= MOST_KEPT:
            _answers.clear()
        answer = _answers[key] = ask()
    return answer


def _kind(operand: Any) -> Any:
    """Return what an answer may depend on: shape, strides, dtype and device of a tensor; of vectors, that they are."""
    if isinstance(operand, Tensor):
        return operand.shape, operand.stride(), operand.dtype, operand.device, operand.data_ptr() & 15
    if isinstance(operand, tuple) and any(isinstance(part, Tensor) for part in operand):
        return type(operand)
    return operand
