"""LinearAct: torch.nn.Linear with the activation and the dropout that follow it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.ops import linear_act
from fastgan.ops.activation import check
from fastgan.ops.dropout import check as check_probability


class LinearAct(nn.Linear):
    """``nn.Linear`` followed by an activation, as one op: same parameters, same initial values, same ``state_dict``.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.
        dropout: the probability to drop an output in training, as torch.nn.Dropout's ``p``.
        dropout_first: drop before the activation instead of after it.

    Shape: (..., in_features) -> (..., out_features). Gradients of any order; see ``fastgan.ops.linear_act``.

    Raises:
        UserError: for an unknown activation, or a probability outside [0, 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        dropout_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = check(activation)
        self.negative_slope = negative_slope
        self.dropout = check_probability(dropout)
        self.dropout_first = dropout_first

    def forward(self, input: Tensor) -> Tensor:
        """Return dropout(activation(input @ weight.T + bias)), dropping in training only."""
        how, slope = self.activation, self.negative_slope
        if not (self.dropout and self.training):
            return linear_act(input, self.weight, self.bias, activation=how, negative_slope=slope)
        drop, first = self.dropout, self.dropout_first
        return linear_act(
            input, self.weight, self.bias, activation=how, negative_slope=slope, dropout=drop, dropout_first=first
        )

    def extra_repr(self) -> str:
        """Show the activation behind what torch.nn.Linear shows."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        order = ", dropout_first=True" if self.dropout_first else ""
        drop = f", dropout={self.dropout:g}{order}" if self.dropout else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}{drop}"
