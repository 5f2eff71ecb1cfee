"""One step of an optimiser over all its parameters: by kernels in one launch, or what PyTorch's own step leaves to do.

The reference is torch.optim's own step, between :func:`judged` (scale, norm, guard) and :func:`follow` (average).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastgan.kernels.optimizer_form import Form
from fastgan.kernels.optimizer_form import Rule as Rule
from fastgan.ops.backend import by_reference, register
from fastgan.ops.optimizer_table import Entry, Table, dense, in_turns, lies_as

OP = register("optimizer_step")
Number = float | Tensor
NUMBERS = 11  # of a group, in the order of kernels/optimizer_rules.py
NOTHING = 16  # for the address of an empty gradient, which nobody reads: 0 would say that there is none
COUNTERS = 2  # steps that were skipped, averages that were formed


class Verdict(NamedTuple):
    """What all gradients say together, on the device."""

    norm: Tensor | None  # a scalar
    pair: Tensor  # (2): the factor, and not 0 to skip; fp32, or fp64 of fp64 gradients


def takes(param: Tensor) -> bool:
    """Whether the kernels step such a parameter under the backend that is set."""
    plain = param.layout == torch.strided and param.is_floating_point() and not by_reference(OP, param)
    return plain and dense(param)


class Plan:
    """All launches of a step: one for each rule and dtype, and more where parameters overlap."""

    def __init__(self, rules: Sequence[Rule | None], entries: Sequence[Entry], shadow: torch.dtype | None) -> None:
        """Take entries on one device, the rule of each of their groups, and the shadows' dtype."""
        self.tables: list[tuple[Table, Rule]] = []
        self.shadow = shadow
        self._copies: dict[Tensor, Tensor] = {}
        turns = in_turns(entries)
        self.parted = len(turns) > 1
        for turn in turns:
            kinds: dict[object, list[Entry]] = {}
            for entry in turn:
                kinds.setdefault((rules[entry.group], entry.param.dtype), []).append(entry)
            for own in kinds.values():
                rule = rules[own[0].group]
                assert rule is not None
                self.tables.append((Table(own), rule))

    def laid(self, param: Tensor, gradient: Tensor) -> Tensor:
        """Return a gradient in its parameter's memory order: itself, else a copy that is always in the same place."""
        if lies_as(gradient, param):
            return gradient
        if param not in self._copies:
            self._copies[param] = torch.empty_like(param)
        return self._copies[param].copy_(gradient)

    def send(self, gradients: dict[Tensor, Tensor], bits: Any) -> list[Tensor]:
        """Put the gradients' addresses and the groups' numbers beside each table."""

        def address(entry: Entry) -> int:
            gradient = gradients.get(entry.param) if entry.moves else None
            return 0 if gradient is None else gradient.data_ptr() or NOTHING

        return [table.moving([address(entry) for entry in table.entries], bits) for table, _ in self.tables]

    def judge(self, moving: Tensor, **how: Any) -> Verdict:
        """Return the verdict by one launch; there is one table, which has all the gradients."""
        from fastgan.kernels.optimizer_norm import optimizer_norm

        ((table, _),) = self.tables
        dtype = table.entries[0].param.dtype
        pair, norm = optimizer_norm(table.table, table.blocks, moving, dtype, rounds=table.rounds, **how)
        return Verdict(norm[0], pair)

    def step(
        self,
        moving: Sequence[Tensor],
        counters: Tensor,
        *,
        averages: bool,
        clips: bool,
        scalars: bool,
        verdict: Tensor | None,
        unscale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Step every entry in place; who has no gradient is clipped, averaged and copied only."""
        from fastgan.kernels.optimizer_step import optimizer_step

        there = {"verdict": verdict, "unscale": unscale, "found_inf": found_inf}
        for at, (table, rule) in enumerate(self.tables):
            first, last = table.entries[0], at + 1 == len(self.tables)
            averaged = any(entry.average is not None for entry in table.entries) or (last and averages)
            ends = not self.parted or not first.moves
            shadow = self.shadow if ends else None
            form = Form(rule, first.param.dtype, averaged, shadow, table.turned, clips and ends, scalars, last)
            optimizer_step(table.table, table.blocks, moving[at], counters, form, rounds=table.rounds, **there)
            for entry in table.late:
                assert entry.shadow is not None
                entry.shadow.copy_(entry.param)
        entries = [entry for table, _ in self.tables for entry in table.entries]
        increment_version([t for entry in entries for t in (entry.param, entry.shadow) if t is not None])


def bits_of(groups: Sequence[Sequence[Number]], device: torch.device) -> tuple[Any, list[Tensor]]:
    """Return the groups' numbers as the kernels read them, and the scalars on the device among them.

    A tensor on the host is read now; one on the device is read by the kernels, when they run.
    """
    pairs = np.zeros((len(groups), NUMBERS, 2), dtype=np.int64)
    values = pairs.view(np.float64)
    scalars = []
    for i, group in enumerate(groups):
        for j, value in enumerate(group):
            if isinstance(value, Tensor) and value.device == device:
                scalars.append(value if value.dtype == torch.float32 else value.float())
                pairs[i, j, 1] = scalars[-1].data_ptr()
            else:
                values[i, j, 0] = float(value)
    return pairs.reshape(-1), scalars


def judged(
    gradients: Sequence[Tensor], unscale: Tensor | None, found_inf: Tensor | None, most: float | None, guards: bool
) -> Verdict:
    """Return the verdict in plain PyTorch, on the first gradient's device."""
    device = gradients[0].device
    norm, factor = None, torch.ones((), device=device)
    skip = torch.zeros((), device=device)
    if most is not None:
        norm = torch.nn.utils.get_total_norm([scaled(gradient, unscale, None) for gradient in gradients])
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
    if guards:
        for gradient in gradients:
            skip = torch.maximum(skip, (~torch.isfinite(gradient)).any().to(skip))
    if found_inf is not None:
        skip = torch.maximum(skip, (found_inf != 0).reshape(()).to(skip))
    return Verdict(norm, torch.stack([factor, skip.to(factor)]))


def scaled(gradient: Tensor, unscale: Tensor | None, pair: Tensor | None) -> Tensor:
    """Return a gradient divided by a scalar and multiplied by a verdict's factor; itself where there is neither."""
    result = gradient
    if unscale is not None:
        result = result / unscale.to(result.device).reshape(())
    if pair is not None:
        result = result * pair[0].to(result.device)
    return result.to(gradient.dtype)  # scalars of 16 bits have become fp32


def follow(average: Tensor, param: Tensor, decay: Number, warmup: float, formed: Tensor) -> None:
    """Move an average towards its parameter: by 1 - decay, or further while few were ``formed``."""
    rest: Any = 1 - decay
    if warmup > 0:
        least = rest if isinstance(rest, Tensor) else torch.full((), rest, device=formed.device)  # sent by no copy
        rest = torch.maximum(least, (warmup - 1) / (warmup + formed.double()))
    weight = rest.to(average) if isinstance(rest, Tensor) else rest
    average.lerp_(param.detach().to(average.dtype), weight)
