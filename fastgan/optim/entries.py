"""What belongs to one parameter in an optimiser's ``state``, in the form in which the kernels take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.optimizer_table import Entry, laid_as


def entry(
    p: Tensor, state: dict[str, Any], names: Sequence[str], needed: Sequence[bool], averages: bool, **more: Any
) -> Entry:
    """Return a parameter and its tensors; what is not in ``state`` begins there as torch.optim begins it.

    Args:
        p: dense, on the optimiser's device.
        state: the parameter's own.
        names: of the three columns of states.
        needed: which of them the rule has.
        averages: keep an average too; it begins with the weights as they are now.
        more: ``shadow`` and ``group`` of the entry.
    """
    begun = state.get(names[0]) is not None
    average = None
    if averages:
        average = state["ema"] = laid_as(state["ema"], p.float()) if "ema" in state else wide(p)
    states: list[Tensor | None] = [None, None, None]
    for at, name in enumerate(names):
        if needed[at]:
            known = state.get(name)
            states[at] = state[name] = torch.zeros_like(p) if known is None else laid_as(known, p)
    step = None
    if any(needed):
        count = state.get("step", 1.0 if begun else 0.0)  # torch.optim.SGD counts none
        if not isinstance(count, Tensor):
            count = torch.full((), count, device=p.device)  # sent by no copy: a step that is watched may be the first
        step = state["step"] = count.to(p.device, torch.float32).reshape(())
    return Entry(p, (states[0], states[1], states[2]), step, average, **more)


def tensors_of(entry: Entry, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield an entry's tensors by their names in ``state``."""
    for name, tensor in zip((*names, "step", "ema"), (*entry.states, entry.step, entry.average), strict=True):
        if tensor is not None:
            yield name, tensor


@torch.no_grad()
def in_place(former: Any, loaded: Any) -> Any:
    """Return what was loaded: in the former tensor where there was one of its size, for whoever else reads that."""
    if isinstance(former, tuple) and isinstance(loaded, Sequence) and len(former) == len(loaded):
        return tuple(map(in_place, former, loaded))
    if isinstance(former, Tensor) and isinstance(loaded, (Tensor, float, int)):
        value = torch.as_tensor(loaded)
        return former.copy_(value) if value.shape == former.shape else loaded
    return loaded


def wide(p: Tensor) -> Tensor:
    """Return a copy of a weight in which small changes do not get lost."""
    return p.detach().to(wide_dtype(p), copy=True)


def wide_dtype(p: Tensor) -> torch.dtype:
    """Return the dtype of a weight's average."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32
