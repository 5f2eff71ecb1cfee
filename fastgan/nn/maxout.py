"""Maxout: the layer of Goodfellow et al. 2013, of which each unit is the largest of several linear functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.ops.maxout import check_pieces, maxout


class Maxout(nn.Linear):
    """An ``nn.Linear`` of out_features * pieces rows, of which each unit keeps its largest piece, as one op.

    Parameters, initial values and ``state_dict`` are those of ``nn.Linear(in_features, out_features * pieces)``: weight
    (out_features * pieces, in_features) and bias (out_features * pieces), row u * pieces + j being piece j of unit u.
    As everywhere in torch.nn, ``out_features`` is the size of the output, here not the number of rows.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        pieces: linear functions for each unit, 1 or more.

    Shape: (..., in_features) -> (..., out_features). Gradients of any order; see ``fastgan.ops.maxout``.

    Raises:
        UserError: for fewer than 1 piece.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features * check_pieces(pieces), bias, device=device, dtype=dtype)
        self.out_features = out_features
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:
        """Return the largest piece of each unit."""
        return maxout(input, self.weight, self.bias, pieces=self.pieces)

    def extra_repr(self) -> str:
        """Show the pieces behind what torch.nn.Linear shows."""
        return f"{super().extra_repr()}, pieces={self.pieces}"
