"""LinearAct: torch.nn.Linear with the activation that follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.ops import linear_act
from fastgan.ops.activation import check


class LinearAct(nn.Linear):
    """``nn.Linear`` followed by an activation, as one op: same parameters, same initial values, same ``state_dict``.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Shape: (..., in_features) -> (..., out_features). Gradients of any order; see ``fastgan.ops.linear_act``.

    Raises:
        UserError: for an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = check(activation)
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(input @ weight.T + bias)."""
        return linear_act(input, self.weight, self.bias, activation=self.activation, negative_slope=self.negative_slope)

    def extra_repr(self) -> str:
        """Show the activation behind what torch.nn.Linear shows."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"
