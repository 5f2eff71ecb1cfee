"""ConcatLinearAct: torch.nn.Linear of several inputs side by side, with the activation that follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.ops.activation import check
from fastgan.ops.concat_linear import Embedded, concat_linear_act


class ConcatLinearAct(nn.Linear):
    """``nn.Linear`` of ``torch.cat(inputs, -1)`` and an activation, as one op; its kernels concatenate nothing.

    Parameters, initial values and ``state_dict`` are those of ``nn.Linear(sum(in_features), out_features)``.

    Args:
        in_features: the last dimension of each input, in the order in which ``forward`` takes them.
        out_features, bias, device, dtype: as torch.nn.Linear.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU.

    Shape: (..., in_features[0]), (..., in_features[1]), ... -> (..., out_features), the leading dimensions being the
    same: one condition for the whole batch is ``c.expand(batch, -1)``. An input may be ``Embedded(index, table)``,
    which stands for ``table[index]``: ``layer(x, fastgan.nn.Embedded(labels, embedding.weight))``. Gradients of any
    order; see ``fastgan.ops.concat_linear_act``.

    Raises:
        UserError: for an unknown activation, no ``in_features``, and inputs that do not fit them or each other.
    """

    def __init__(
        self,
        in_features: Sequence[int],
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(in_features, int) or not in_features:
            raise UserError(f"in_features={in_features!r}: give the size of each input, as in (784, 10)")
        super().__init__(sum(in_features), out_features, bias, device=device, dtype=dtype)
        self.sizes = tuple(in_features)
        self.activation = check(activation)
        self.negative_slope = negative_slope

    def forward(self, *inputs: Tensor | Embedded) -> Tensor:
        """Return activation(cat(inputs, -1) @ weight.T + bias)."""
        if len(inputs) != len(self.sizes):
            raise self._misfit(inputs)
        for part, size in zip(inputs, self.sizes, strict=True):
            values = part.table if isinstance(part, Embedded) else part
            if not values.dim() or values.shape[-1] != size:
                raise self._misfit(inputs)
        try:
            return concat_linear_act(
                inputs, self.weight, self.bias, activation=self.activation, negative_slope=self.negative_slope
            )
        except RuntimeError as error:  # what torch.cat and torch.nn.functional.linear refuse
            shapes = [_shape(part) for part in inputs]
            if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
                why = "differ before the last dimension: expand or index them"
                raise UserError(f"inputs of shapes {_named(shapes)} {why}") from error
            raise

    def _misfit(self, inputs: Sequence[Tensor | Embedded]) -> UserError:
        shapes = _named([_shape(part) for part in inputs])
        return UserError(f"inputs of shapes {shapes} do not end in {self.sizes}, this layer's in_features")

    def extra_repr(self) -> str:
        """Show each input's size, and the activation behind what torch.nn.Linear shows."""
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        told = f"in_features={self.sizes}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{told}, activation={self.activation}{slope}"


def _shape(part: Tensor | Embedded) -> tuple[int, ...]:
    """Return the shape that a part has once it is looked up."""
    return (*part.index.shape, *part.table.shape[1:]) if isinstance(part, Embedded) else tuple(part.shape)


def _named(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(shape) for shape in shapes) or "()"
