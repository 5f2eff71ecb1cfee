"""concat_linear_act: a linear layer of several inputs side by side, with its bias and activation, as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops import activation as act
from fastgan.ops.backend import by_reference
from fastgan.ops.concat_linear_autograd import apply
from fastgan.ops.concat_linear_compute import MOST, OP, Part, fits, formed, plain
from fastgan.ops.concat_linear_compute import Embedded as Embedded
from fastgan.ops.linear import linear_act
from fastgan.ops.registration import autocast, traced, transformed
from fastgan.ops.shadow import NEITHER, Pair, stand_ins, used


def concat_linear_act(
    inputs: Sequence[Tensor | Embedded],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """Return activation(cat(inputs, -1) @ weight.T + bias), the inputs read where they lie by our kernels.

    The first layer of conditional networks: ``[x, embedding(label)]``, ``[z, c]`` with one c for the whole batch.

    Args:
        inputs: parts of shape (..., k_i) with the same leading dimensions and any strides (``c.expand(...)`` costs no
            memory), or ``Embedded(index, table)`` of an index (...) and a table (V, k_i). bf16, fp16 or fp32, or any
            other dtype by plain PyTorch. The kernels take up to 3; what is beyond is concatenated into the third.
        weight: (out_features, sum of all k_i), any strides, of the same dtype: the columns in the parts' order.
        bias: (out_features) or None.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        negative_slope: of the leaky ReLU; 0 and negative ones are allowed.

    Returns:
        (..., out_features), in the parts' dtype, accumulated in fp32; under autocast as torch.nn.functional.linear.

    Gradient order: any, with respect to every part, table, weight and bias, each formed only if it is asked for. A
    table's gradient is dense and deterministic. Functional transforms (``torch.func``) go by plain PyTorch.

    Raises:
        UserError: for an unknown activation, and for a tensor in the place of the sequence.
        RuntimeError: for shapes, dtypes and devices that do not go together, as torch.cat and
            torch.nn.functional.linear raise it.
        IndexError: for an index outside its table, by plain PyTorch on the CPU. Our kernels read nothing outside the
            table: that row of the output is NaN, whatever the activation. Parts beyond the third, and products that
            ``auto`` leaves to cuBLAS, are looked up by torch.nn.functional.embedding, which stops the device.
    """
    if isinstance(inputs, Tensor):  # type: ignore[unreachable]  # so it should be
        raise UserError("concat_linear_act takes a sequence of inputs: write [x, c], or [x] for one alone")
    if by_reference(OP, weight):
        gathered = [F.embedding(*part) if isinstance(part, Embedded) else part for part in inputs]
        return act.activate(F.linear(torch.cat(gathered, -1), weight, bias), activation, negative_slope)
    if len(inputs) == 1 and isinstance(inputs[0], Tensor):
        return linear_act(inputs[0], weight, bias, activation=activation, negative_slope=negative_slope)
    indices = [part.index if isinstance(part, Embedded) else None for part in inputs]
    given = [part.table if isinstance(part, Embedded) else part for part in inputs]
    shades: Pair = NEITHER
    if direct := not traced(*given, *indices, weight, bias):
        shades = stand_ins(weight, weight, bias)  # type: ignore[assignment]
    else:
        weight, bias = autocast(weight, bias)
    _, *values = autocast(used(weight, bias, shades)[0], *given)
    parts: list[Part] = list(zip(values, indices, strict=True))
    if not fits(parts, *used(weight, bias, shades)) or transformed():
        return plain(parts, weight, bias, activation, negative_slope)
    if len(parts) > MOST:
        parts[MOST - 1 :] = [(formed(parts[MOST - 1 :]), None)]
    return apply(parts, weight, bias, (act.check(activation), negative_slope, direct), shades)
