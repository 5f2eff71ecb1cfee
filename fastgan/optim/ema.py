"""Averages of weights over the steps of an optimiser: what to average by, and the averages themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.errors import UserError


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of the weights: after each step, average = d * average + (1 - d) * weight.

    Args:
        decay: d, from 0 to 1, or a scalar tensor, which is read at each step: on the device, no step waits for it.
        warmup: d rises as min(decay, (1 + t) / (warmup + t)) over the t averages formed before; 10 is usual. 0: d is
            the decay from the first step on.
    """

    decay: float | Tensor = 0.999
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.decay, Tensor) and not 0 <= self.decay <= 1:
            raise UserError(f"ema decay {self.decay}: it has to be between 0 and 1, such as 0.999")
        if self.warmup != 0 and self.warmup < 1:
            raise UserError(f"ema warmup {self.warmup}: 0 for none, else at least 1, such as 10")


class Averages(Mapping[Tensor, Tensor]):
    """The averages of an optimiser's weights, by parameter, in its order.

    They are fp32 (fp64 of fp64), in the parameters' memory order, and move in place. A parameter that has had no
    gradient yet is its own average.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterable[Tensor]],
        find: Callable[[Tensor], Tensor | None],
        moved: Callable[[], None],
    ) -> None:
        self._parameters, self._find, self._moved = parameters, find, moved

    def __getitem__(self, parameter: Tensor) -> Tensor:
        if not any(parameter is own for own in self._parameters()):
            raise KeyError("not a parameter of this optimiser")
        average = self._find(parameter)
        return parameter.detach() if average is None else average

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._parameters())

    def __len__(self) -> int:
        return sum(1 for _ in self._parameters())

    @torch.no_grad()
    def copy_to(self, target: nn.Module | Iterable[Tensor]) -> None:
        """Copy the averages into a module of the same parameters in the same order, such as a copy of the generator.

        Raises:
            UserError: where their number or shapes differ; nothing is copied then.
        """
        into = list(target.parameters() if isinstance(target, nn.Module) else target)
        own = list(self.values())
        if [tensor.shape for tensor in into] != [average.shape for average in own]:
            raise UserError(
                f"the target's {len(into)} parameters are not the optimiser's {len(own)} in number and shapes:"
                " pass those that the optimiser was given, in its order"
            )
        for tensor, average in zip(into, own, strict=True):
            tensor.copy_(average)

    @contextmanager
    @torch.no_grad()
    def swap(self) -> Iterator[None]:
        """Context in which the parameters have the averages' values, to sample or to evaluate; make no step inside.

        Their shadows, which stand in for them under autocast, have them too.
        """
        parameters = list(self)
        weights = [parameter.detach().clone() for parameter in parameters]
        self.copy_to(parameters)
        self._moved()
        try:
            yield
        finally:
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.data.copy_(weight)
            self._moved()
