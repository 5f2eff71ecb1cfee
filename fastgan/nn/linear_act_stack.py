"""LinearActStack: several linear layers of one size, each with its activation, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.nn.linear import LinearAct
from fastgan.ops import linear_act_stack
from fastgan.ops.activation import check


class LinearActStack(nn.Module):
    """``members`` layers ``fastgan.nn.LinearAct`` of one size, which know nothing of each other, as one op.

    ``weight`` is (members, out_features, in_features), ``bias`` (members, out_features): member i's are slice i.

    Args:
        members: how many, 1 or more.
        in_features, out_features, bias, device, dtype: of each, as torch.nn.Linear.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Initial values are those of ``members`` layers ``torch.nn.Linear`` made one after the other.

    Shape: (members, n, in_features) -> (members, n, out_features). Gradients of any order; see
    ``fastgan.ops.linear_act_stack``.

    Raises:
        UserError: for an unknown activation, and fewer than 1 member.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        members: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if members < 1:
            raise UserError(f"a stack has 1 or more members, not {members}")
        self.members, self.in_features, self.out_features = members, in_features, out_features
        self.activation = check(activation)
        self.negative_slope = negative_slope
        where = {"device": device, "dtype": dtype}
        self._take([nn.Linear(in_features, out_features, bias, **where) for _ in range(members)])

    @classmethod
    def of(cls, layers: Sequence[LinearAct]) -> LinearActStack:
        """Stack copies of layers of one size, activation and kind. Raises UserError where they differ, or drop."""
        first = layers[0]
        if len({_form(layer) for layer in layers}) > 1 or first.dropout:
            raise UserError("layers of one size and activation can be stacked, and none that drops")
        stack = cls.__new__(cls)
        nn.Module.__init__(stack)
        stack.members, stack.in_features, stack.out_features = len(layers), first.in_features, first.out_features
        stack.activation, stack.negative_slope = first.activation, first.negative_slope
        stack._take(layers)
        return stack

    def _take(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.register_parameter("bias", nn.Parameter(torch.stack(biases)) if biases else None)

    def forward(self, input: Tensor) -> Tensor:
        """Return activation(input[i] @ weight[i].T + bias[i]) for each member i."""
        return linear_act_stack(
            input, self.weight, self.bias, activation=self.activation, negative_slope=self.negative_slope
        )

    def extra_repr(self) -> str:
        """Show the sizes as torch.nn.Linear does, the members first."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        sizes = f"{self.members} x (in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}), activation={self.activation}{slope}"


def _form(layer: LinearAct) -> tuple[object, ...]:
    sizes = layer.in_features, layer.out_features, layer.bias is None
    return *sizes, layer.activation, layer.negative_slope, layer.dropout, layer.weight.dtype, layer.weight.device
