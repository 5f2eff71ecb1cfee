"""Fully connected layers one behind the other, as several networks have them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct


def linear_layers(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    output: str = "none",
) -> Chain:
    """Layers of the widths ``hidden`` with their activations, and a last one: (n, inputs) -> (n, outputs)."""
    if min(hidden, default=1) < 1:
        raise UserError(f"the widths of hidden layers must be at least 1, not {list(hidden)}")
    widths = [inputs, *hidden]
    layers = [
        LinearAct(before, after, activation=activation, negative_slope=negative_slope)
        for before, after in itertools.pairwise(widths)
    ]
    return Chain(*layers, LinearAct(widths[-1], outputs, activation=output))
