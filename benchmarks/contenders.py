"""Who races: PyTorch as people write it, compiled, and ours; and why somebody is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX
from fastgan.benchmarks.race import Contender, Workload, race
from fastgan.benchmarks.record import Row, Timed, said
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def field(
    setting: Setting,
    op: str,
    dtype: str,
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]],
    plain: Mapping[str, Callable[..., Tensor]],
    compiled: Callable[[str | None], Callable[..., Tensor]],
    ours: Callable[..., Tensor],
    directed: Callable[[Callable[..., Tensor]], Contender],
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders, the baseline first, and why others are absent.

    ``plain`` ones run as they are, the baseline first; ``compiled`` makes one for a mode of torch.compile; ``ours`` is
    the ``op`` as this library offers it, on both of its backends. ``directed`` makes contenders of them.
    """
    found = dict(plain)
    absent: dict[str, str] = {}
    for name, mode in compilations(setting).items():
        if setting.smoke:
            absent[name] = "not measured: the smoke form compiles nothing"
            continue
        try:
            forward = compiled(mode)
            directed(forward)(*inputs(setting.generator()))
            found[name] = forward
        except Exception as error:  # no compiler on this machine, or one that fails
            absent[name] = f"not measured: {said(error)}"
    found["fastgan auto"] = under("auto", ours)
    if (why := obstacle(setting, op, dtype)) is None:
        found["fastgan triton"] = under("triton", ours)
    else:
        absent["fastgan triton"] = f"not measured: {why}"
    return {name: directed(forward) for name, forward in found.items()}, absent


def raced(
    workload: Workload, setting: Setting, absent: Mapping[str, str], remarks: Callable[[str], Iterable[str]]
) -> list[Timed]:
    """Race, and return a row for each contender and each absent one, with what a reader of its variant must know."""
    rows = race(workload, setting)
    rows += [
        Timed(workload.name, name, workload.shape, workload.dtype, baseline="eager", note=why)
        for name, why in absent.items()
    ]
    for row in rows:
        row.note = "; ".join(filter(None, (row.note, *where(setting), *remarks(row.variant)))) or None
    return rows


def nothing_more(variant: str) -> Iterable[str]:
    """Remarks of a row that explains itself."""
    return ()


def where(setting: Setting) -> Iterator[str]:
    """Yield the remark that a row was not measured on a GPU."""
    if not setting.on_gpu:
        yield "CPU"


def warned(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a warning where rows are those of a CPU."""
    if any(isinstance(row, Timed) and "CPU" in (row.note or "").split("; ") for row in rows):
        yield "these are rows of a CPU, where auto is plain PyTorch: they say nothing about a GPU"


def whole(forward: Callable[..., Tensor]) -> Callable[[str | None], Callable[..., Tensor]]:
    """Return what compiles a function for a mode, for itself alone."""

    def compiled(mode: str | None) -> Callable[..., Tensor]:
        torch._dynamo.reset()
        made: Callable[..., Tensor] = torch.compile(forward, mode=mode, dynamic=False, fullgraph=True)
        return made

    return compiled


def compilations(setting: Setting) -> dict[str, str | None]:
    """Return the modes of ``torch.compile`` that are asked for, by the names of their rows."""
    longer = {"compiled max-autotune": "max-autotune-no-cudagraphs"}
    return {"compiled": None} | (longer if vars(setting.options).get("max_autotune") else {})


def obstacle(setting: Setting, op: str, dtype: str) -> str | None:
    """Say why our kernels cannot run an op here by themselves; None where they can."""
    from fastgan.ops.backend import backend, choose

    try:
        with backend("triton"):
            choice = choose(op, setting.device, MATRIX[dtype])
    except UserError as error:
        return str(error)
    return None if choice.backend == "triton" else choice.why


def under(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``forward`` on the backend of that name."""
    from fastgan.ops.backend import backend

    def call(*operands: Tensor) -> Tensor:
        with backend(name):
            return forward(*operands)

    return call
