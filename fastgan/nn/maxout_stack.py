"""MaxoutStack: several maxout layers of one size as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.nn.maxout import Maxout
from fastgan.ops import linear_act_stack


class MaxoutStack(nn.Module):
    """Copies of ``layers``, maxout layers of one size that know nothing of each other, as one.

    ``weight`` is (members, out_features * pieces, in_features), ``bias`` (members, out_features * pieces): member i's
    are slice i.

    Shape: (members, n, in_features) -> (members, n, out_features). Gradients of any order.

    Raises:
        UserError: where the layers differ.
    """

    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[Maxout]) -> None:
        super().__init__()
        if len({(layer.weight.shape, layer.pieces, layer.bias is None, layer.weight.dtype) for layer in layers}) > 1:
            raise UserError("maxout layers of one size can be stacked")
        self.pieces = layers[0].pieces
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.register_parameter("bias", nn.Parameter(torch.stack(biases)) if biases else None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the largest piece of each unit, for each member."""
        pieces = linear_act_stack(input, self.weight, self.bias, activation="none")
        return pieces.unflatten(-1, (-1, self.pieces)).max(-1)[0]

    def extra_repr(self) -> str:
        """Show the members and the pieces."""
        return f"{len(self.weight)} members, pieces={self.pieces}"
