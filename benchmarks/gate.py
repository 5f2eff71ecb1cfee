"""The gate in front of the clock: a result that is wrong is never timed.

A result passes where |result - reference| <= 2 |torch - reference| + 4 ulp max|reference|, in the largest error and in
the 2-norm of each channel; the reference is in fp64, "torch" is the baseline of the same dtype. Outputs are filled with
NaN first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastgan.benchmarks.record import Check

BASELINE_ERROR = 0.1  # a baseline that errs by more, of the largest value, is none

ALLOCATIONS = {torch: ("empty", "empty_like", "empty_strided"), Tensor: ("new_empty", "new_empty_strided")}


class Poisoned(contextlib.ExitStack):
    """Fills what Python allocates inside with NaN: an element that a kernel forgets to write is seen.

    The functions themselves are replaced: under a dispatch mode ops take the way of tracers, where nobody sees inside.
    """

    def __enter__(self) -> Poisoned:
        """Begin."""
        for owner, names in ALLOCATIONS.items():
            for name in names:
                self.enter_context(mock.patch.object(owner, name, poisoning(getattr(owner, name))))
        return self


def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an allocation that is filled with NaN."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        result = allocate(*args, **kwargs)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    return call


def tensors(result: object) -> list[Tensor]:
    """Return the tensors of a result: one, or those of a tuple in which some may be None."""
    if isinstance(result, Tensor):
        return [result.detach()]
    if isinstance(result, Sequence):
        return [tensor for part in result if part is not None for tensor in tensors(part)]
    raise TypeError(f"a contender returns tensors, not {type(result).__name__}")


def check(got: object, baseline: object, reference: object, ulp: float | None = None) -> Check:
    """Judge a result by the rule above; ``ulp`` where it is not the result's dtype's own (TF32)."""
    outputs, bases, wanted = tensors(got), tensors(baseline), tensors(reference)
    if [tuple(part.shape) for part in outputs] != [tuple(part.shape) for part in wanted]:
        return Check(False, why=f"shapes {shapes(outputs)} instead of {shapes(wanted)}")
    if [part.dtype for part in outputs] != [part.dtype for part in bases]:
        return Check(False, why=f"dtypes {dtypes(outputs)} instead of {dtypes(bases)}")
    worst = Check(True, 0.0, 0.0)
    for parts in zip(outputs, bases, wanted, strict=True):
        verdict = check_tensor(*parts, ulp)
        if not verdict.passed:
            return verdict
        if (verdict.error or 0.0) > (worst.error or 0.0):
            worst = verdict
    return worst


def check_tensor(got: Tensor, base: Tensor, reference: Tensor, ulp: float | None) -> Check:
    """Judge one tensor."""
    if not got.is_floating_point():
        same = torch.equal(got, reference.to(got.dtype))
        return Check(same, 0.0 if same else None, 0.0, None if same else "not the reference's values")
    if not bool(torch.isfinite(got).all()):
        return Check(False, why="not finite, or not written everywhere")
    wanted = reference.double()
    ulp = torch.finfo(got.dtype).eps if ulp is None else ulp
    scale = largest(wanted)
    error, torch_error = largest(got.double() - wanted), largest(base.double() - wanted)
    bound = 2 * torch_error + 4 * ulp * scale
    shown = (error / scale, bound / scale) if scale else (error, bound)
    if error > bound:
        return Check(False, *shown, why=f"error {shown[0]:.2e} above {shown[1]:.2e}")
    if got.dim() > 1 and got.numel():
        norms = channels(got.double() - wanted)
        allowed = 2 * channels(base.double() - wanted) + 4 * ulp * channels(wanted).max()
        if bool((norms > allowed).any()):
            return Check(False, *shown, why=f"channel {int((norms - allowed).argmax())} is off in 2-norm")
    return Check(True, *shown)


def check_baseline(got: object, reference: object, ulp: float | None = None) -> Check:
    """Judge the baseline, which has only the reference above it."""
    verdict = check(got, got, reference, ulp)
    if verdict.passed and verdict.error is not None and verdict.error > BASELINE_ERROR:
        return Check(False, verdict.error, BASELINE_ERROR, "the baseline itself is wrong")
    return verdict


def largest(values: Tensor) -> float:
    """Return the largest absolute value; 0 of nothing."""
    return float(values.abs().max()) if values.numel() else 0.0


def channels(values: Tensor) -> Tensor:
    """Return the 2-norm of each channel, dimension 1: shape (C,)."""
    return values.transpose(0, 1).flatten(1).norm(dim=1)


def shapes(parts: Sequence[Tensor]) -> str:
    """Name the shapes of some tensors."""
    return ", ".join("x".join(map(str, part.shape)) or "scalar" for part in parts) or "nothing"


def dtypes(parts: Sequence[Tensor]) -> str:
    """Name the dtypes of some tensors."""
    return ", ".join(str(part.dtype).removeprefix("torch.") for part in parts) or "nothing"
