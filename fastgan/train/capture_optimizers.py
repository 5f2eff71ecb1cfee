"""Which optimisers a graph can step: those that ask the host for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.errors import UserError
from fastgan.ops.optimizer_step import takes
from fastgan.optim.one_launch import OneLaunch

_NEVER = ("Adafactor", "Adagrad", "LBFGS", "Muon", "SparseAdam")  # torch.optim's that read the device
_OURS = ("Adam", "AdamW", "RMSprop", "SGD")


def refuse(state: Sequence[object], device: torch.device) -> None:
    """Raise a ``UserError`` for an optimiser that cannot be captured on that device, with the line to write instead."""
    for optimizer in _optimizers(state):
        for group in optimizer.param_groups:
            said = _what_is_wrong(optimizer, group, device)
            if said is not None:
                mend = _instead(optimizer, group, device)
                raise UserError(f"{type(optimizer).__name__} {said}: write {mend}")


def _optimizers(state: Any) -> Iterator[Optimizer]:
    for entry in state.values() if isinstance(state, dict) else state:
        if isinstance(entry, Optimizer):
            yield entry
        elif isinstance(entry, (list, tuple, dict)):
            yield from _optimizers(entry)


def _what_is_wrong(optimizer: Optimizer, group: dict[str, Any], device: torch.device) -> str | None:
    name, lr = type(optimizer).__name__, group.get("lr")
    if type(optimizer) is getattr(torch.optim, name, None) and name in _NEVER:
        return "reads the device at each step, so that no graph can hold it"
    if lr is not None and not isinstance(lr, Tensor):
        return f"has the number {lr:g} for a learning rate, which a graph would keep for ever"
    if lr is not None and lr.device.type != device.type:
        return f"has a learning rate on {lr.device}, which replays would not read again"
    if device.type != "cuda" or _by_kernels(optimizer, group):
        return None
    if "capturable" in group and not group["capturable"]:
        return "has capturable=False and would count its steps on the host"
    if isinstance(optimizer, torch.optim.SGD) and not group["fused"]:
        return "reads its learning rate on the host unless it is fused"
    return None


def _by_kernels(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether our kernels step all of a group, which a graph can hold whatever ``capturable`` says."""
    if not isinstance(optimizer, OneLaunch) or group["differentiable"]:
        return False
    return optimizer._rule(group) is not None and all(takes(p) for p in group["params"])


def _instead(optimizer: Optimizer, group: dict[str, Any], device: torch.device) -> str:
    name, lr = type(optimizer).__name__, group.get("lr", 1e-3)
    if isinstance(lr, Tensor) and lr.device.type == "cuda":
        rate = "lr=lr"  # as it is
    else:
        rate = f'lr=torch.tensor({float(lr):g}, device="{device.type}")'
    known = type(optimizer) is getattr(torch.optim, name, None)
    if known and name in _NEVER:
        return f"fastgan.optim.Adam(parameters, {rate}), or torch.optim.Adam(parameters, {rate}, capturable=True)"
    more = ", capturable=True" if "capturable" in group else ", fused=True" if "fused" in group else ""
    if device.type != "cuda" or _by_kernels(optimizer, group):
        more = ""
    if isinstance(optimizer, OneLaunch):
        return f"fastgan.optim.{name}(parameters, {rate}{more})"
    line = f"{'torch.optim.' if known else ''}{name}(parameters, {rate}{more})"
    return f"{line}, or fastgan.optim.{name}(parameters, {rate})" if known and name in _OURS else line
