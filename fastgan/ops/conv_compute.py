"""How a convolution is computed: by plain PyTorch, by our kernels, or by cuDNN with passes of ours around it.

As ops/linear_compute.py for matrix products. Results of the kernels are channels_last; ``rows`` sees such a tensor as
[n height width, channels], which is what the elementwise kernels take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgan.ops import activation as act
from fastgan.ops.backend import register
from fastgan.ops.batch_norm_act_compute import measure, through_norm
from fastgan.ops.conv_choice import by_library, in_load, thin
from fastgan.ops.conv_form import Form
from fastgan.ops.destination import Owners, laid
from fastgan.ops.linear_compute import NOBODY, Incoming, summed

if TYPE_CHECKING:
    from fastgan.kernels.linear_bwd_input import Below
    from fastgan.kernels.norm import Norm, NormGradients, Statistics

OP = register("conv_act")
FEW = 16  # channels: fewer are read element by element anyhow
NOTHING = ("none", 0.0)  # what has no activation


def fits(input: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> bool:
    """Whether the kernels take these operands; PyTorch computes what they do not, or refuses it in its own words."""
    if not (form.mapped and form.sound) or weight.dim() != 4 or input.dim() != 4:
        return False
    (depth, cols), dtype, device = form.channels(weight), input.dtype, input.device
    return (
        input.shape[1] == depth
        and weight.dtype == dtype
        and weight.device == device
        and input.layout is weight.layout is torch.strided
        and (bias is None or (bias.dtype == dtype and bias.device == device and bias.shape == (cols,)))
        and min(weight.numel(), *input.shape[1:], *form.size(input.shape, weight.shape)) > 0
    )


def rows(tensor: Tensor) -> Tensor:
    """See (n, channels, height, width) as [n height width, channels]: without a copy where it is channels_last."""
    return tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1])


def images(values: Tensor, like: Tensor) -> Tensor:
    """See rows as images again, of the size of ``like``."""
    n, c, h, w = like.shape
    return values.view(n, h, w, c).permute(0, 3, 1, 2)


def inner(tensor: Tensor) -> Tensor:
    """Return the tensor with its channels innermost, where there are enough of them to be read together."""
    if tensor.shape[1] < FEW or tensor.stride(1) in (0, 1):
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def format_of(*tensors: Tensor) -> torch.memory_format:
    """Return the layout that PyTorch's convolution of such tensors has: channels_last where one of them has it."""
    return torch.channels_last if any(map(_channels_last, tensors)) else torch.contiguous_format


def _channels_last(tensor: Tensor) -> bool:
    size, stride = tensor.shape, tensor.stride()
    least = 0
    for axis in (1, 3, 2, 0):
        if stride[axis] < least or size[axis] == 0 or (axis == 0 and least == stride[1]):
            return False
        least = stride[axis] * max(size[axis], 1)
    return stride[1] != 0


def room(input: Tensor, weight: Tensor, form: Form, format: torch.memory_format = torch.channels_last) -> Tensor:
    """Make room for the output."""
    size = (input.shape[0], form.channels(weight)[1], *form.size(input.shape, weight.shape))
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=format)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    activation: str = "none",
    slope: float = 0.0,
    *,
    norm: Norm | None = None,
    before: tuple[str, float] = NOTHING,
    statistics: Statistics | None = None,
    format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Return phi(conv(u, weight) + bias) in that layout; u is x, x through ``before``, or x through its ``norm``.

    ``statistics``: where those of the result are written.
    """
    from fastgan.kernels import conv as kernels
    from fastgan.kernels.conv_product import conv_target

    x, weight = inner(x), _filters(weight)
    geometry, map = form.geometry(x.shape, weight.shape), form.maps()[0]
    asked = (x, weight, geometry, map, conv_target(x), norm, statistics)
    library = by_library(kernels.fwd_problem, *asked)
    lean = thin(norm or statistics, len(x), geometry, map)
    if norm is not None:
        depth = form.channels(weight)[0]
        if library or lean or not in_load(kernels.fwd_problem, *asked, norm=5, of=x, depth=depth, columns=False):
            x, norm = normalised(x, norm), None
    if library:
        y = _by_library(_through(x, before), weight, bias, form, activation, slope, statistics)
        return y.contiguous(memory_format=format)
    straight = form.channels(weight)[1] < FEW or form.size(x.shape, weight.shape) == (1, 1)  # written as they stay
    y = room(x, weight, form, format if straight else torch.channels_last)
    how = geometry, map, activation, slope
    kernels.conv_fwd(x, weight, bias, y, *how, norm=norm, before=before, statistics=None if lean else statistics)
    if statistics is not None and lean:
        measure(rows(y), statistics, len(y))
    return y.contiguous(memory_format=format)


def _by_library(
    x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, activation: str, slope: float, statistics: Any
) -> Tensor:
    from fastgan.kernels.bias_act import bias_act_fwd

    if activation == "none":
        y = form.plain(x, weight, bias).contiguous(memory_format=torch.channels_last)
    else:
        v = form.plain(x, weight, None).contiguous(memory_format=torch.channels_last)
        y = images(bias_act_fwd(rows(v), bias, activation, slope, in_place=True)[0], v)
    if statistics is not None:
        measure(rows(y), statistics, len(y))
    return y


def settled(
    incoming: Incoming,
    weight: Tensor,
    x: Tensor | None,
    form: Form,
    shape: Sequence[int],
    inward: bool,
    below: Below | None = None,
    norm: Norm | None = None,
    gb: Tensor | None = None,
) -> Incoming:
    """Form g once where the library will read it, or who sums up the bias's gradient; that gradient with it.

    Args:
        incoming: what comes from above; its tensors get their channels innermost.
        weight: of the convolution; ``x``: its input, where the weight's gradient is wanted.
        form: of the convolution; ``shape``: of its input.
        inward: whether the input's gradient is wanted.
        below, norm: what the input came out of.
        gb: where the bias's gradient is to be written, if it is wanted.
    """
    incoming = _aligned(incoming)
    to_input = inward and _input_by_library(incoming, weight, form, shape, below, norm)
    to_weight = x is not None and _weight_by_library(incoming, x, weight, form, norm)
    apart = gb is not None and (form.transposed or x is None)
    place = gb if apart or to_weight else None
    if incoming.saved is None:
        return incoming if place is None else incoming._replace(column=summed(rows(incoming.grad), place))
    lean = thin(incoming.correction, shape[0], form.geometry(shape, weight.shape), form.maps()[1])
    if not (to_input or to_weight or apart or lean):
        return incoming
    if incoming.correction is not None:
        g = formed(incoming)
        return Incoming(g, column=None if place is None else summed(rows(g), place))
    from fastgan.kernels.bias_act import bias_act_bwd

    g, saved, activation, slope, *_ = incoming
    assert saved is not None
    values, column = bias_act_bwd(rows(g), rows(saved).contiguous(), activation, slope, with_bias=place is not None)
    return Incoming(images(values, g), column=None if place is None or column is None else place.copy_(column))


def to_input(
    incoming: Incoming,
    weight: Tensor,
    form: Form,
    shape: Sequence[int],
    *,
    below: Below | None = None,
    norm: Norm | None = None,
    raw: Tensor | None = None,
    to: NormGradients | None = None,
) -> Tensor:
    """Return the input's gradient, gone through the activation below, or through the norm of the output ``raw``."""
    if _input_by_library(incoming, weight, form, shape, below, norm):
        return _to_input_by_library(incoming, weight, form, shape, below, norm, raw, to)
    from fastgan.kernels.conv_bwd_input import conv_bwd_input

    geometry, map = form.geometry(shape, weight.shape), form.maps()[1]
    if norm is not None and raw is not None and thin(norm, shape[0], geometry, map):
        gx = to_input(incoming, weight, form, shape)
        return images(through_norm(rows(gx), rows(raw), norm, to, len(gx)), gx)
    g, saved, activation, slope, correction, _ = incoming
    gx = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
    if below is not None:
        below = below._replace(saved=_as(below.saved, gx))
    raw = None if raw is None else _as(raw, gx)
    how = geometry, map, activation, slope
    more: dict[str, Any] = {"correction": correction, "below": below, "norm": norm, "raw": raw, "to": to}
    return conv_bwd_input(g, saved, _filters(weight), gx, *how, **more)


def _to_input_by_library(
    incoming: Incoming, weight: Tensor, form: Form, shape: Sequence[int], below: Any, norm: Any, raw: Any, to: Any
) -> Tensor:
    from fastgan.kernels.bias_act import bias_act_bwd

    g = formed(incoming)
    like = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)  # whose shape matters
    gx = form.plain_backward(g, like, weight, (True, False))[0]
    assert gx is not None
    gx = gx.contiguous(memory_format=torch.channels_last)
    if norm is not None and raw is not None:
        return images(through_norm(rows(gx), rows(raw), norm, to, len(gx)), gx)
    if below is not None:
        saved = rows(below.saved).contiguous()
        return images(bias_act_bwd(rows(gx), saved, below.activation, below.slope)[0], gx)
    return gx


def to_weight(
    incoming: Incoming,
    x: Tensor,
    weight: Tensor,
    form: Form,
    gb: Tensor | None,
    *,
    norm: Norm | None = None,
    before: tuple[str, float] = NOTHING,
    owners: Owners = NOBODY,
) -> Tensor:
    """Return the gradient of the weights, and write the sum of g to gb, where it is given and not written yet."""
    from fastgan.kernels import conv_bwd_weight as kernels
    from fastgan.kernels.conv_product import conv_target

    x = inner(x)
    g, saved, activation, slope, correction, column = incoming
    library = _weight_by_library(incoming, x, weight, form, norm)
    geometry = form.geometry(x.shape, weight.shape)
    if norm is not None:
        asked = g, saved, x, weight, geometry, conv_target(g), correction, norm
        more: dict[str, Any] = {"norm": 7, "of": x, "depth": weight.shape[1], "columns": not form.transposed}
        lean = thin(norm, x.shape[0], geometry, "gather")
        if library or lean or not in_load(kernels.bwd_weight_problem, *asked, **more):
            x, norm = normalised(x, norm), None
    if library:
        g = formed(incoming)
        whole = form.plain_backward(g, _through(x, before), weight, (False, True))[1]
        assert whole is not None
        if gb is not None and column is None:
            summed(rows(g), gb)
        as_it_is = owners.weight is None or owners.weight.dtype == whole.dtype
        return whole if as_it_is else laid(owners.weight, weight, owners.lands).copy_(whole)
    gw = laid(owners.weight, weight, owners.lands)
    gb = gb if column is None else None
    how = geometry, form.transposed, activation, slope
    kernels.conv_bwd_weight(g, saved, x, gw, gb, *how, correction=correction, norm=norm, before=before)
    return gw


def to_bias(incoming: Incoming, gb: Tensor) -> None:
    """Write the sum of g over samples and positions to gb, where it is not written yet."""
    if incoming.column is None:
        summed(rows(formed(incoming)), gb)


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """Return what a raw output becomes, channels_last."""
    from fastgan.kernels.batch_norm_act import batch_norm_act_fwd

    return images(batch_norm_act_fwd(rows(x), norm), x)


def formed(incoming: Incoming) -> Tensor:
    """Return g by a pass of its own."""
    g, saved, activation, slope, correction, _ = incoming
    if saved is None:
        return g
    if correction is not None:
        from fastgan.kernels.batch_norm_act import batch_norm_correct

        return images(batch_norm_correct(rows(g), rows(saved), correction), g)
    from fastgan.kernels.bias_act import bias_act_bwd

    return images(bias_act_bwd(rows(g), rows(saved).contiguous(), activation, slope)[0], g)


def _aligned(incoming: Incoming) -> Incoming:
    """Give the gradient the layout of what was saved, and both their channels innermost."""
    g, saved = inner(incoming.grad), incoming.saved
    if saved is None:
        return incoming._replace(grad=g)
    saved = inner(saved)
    return incoming._replace(grad=_as(g, saved), saved=saved)


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in the layout of another."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)


def _filters(weight: Tensor) -> Tensor:
    """Return weights that are read by whole vectors: a copy for this call alone, where they are not so laid out."""
    if min(weight.shape[:2]) < FEW or 1 in weight.stride()[:2]:
        return weight
    return weight.contiguous(memory_format=torch.channels_last)


def _through(x: Tensor, before: tuple[str, float]) -> Tensor:
    return x if before == NOTHING else act.activate(x, *before)


def _input_by_library(
    incoming: Incoming, weight: Tensor, form: Form, shape: Sequence[int], below: Below | None, norm: Norm | None
) -> bool:
    from fastgan.kernels import conv_bwd_input as kernels
    from fastgan.kernels.conv_product import conv_target

    g, saved, *_, correction, _ = incoming
    more = form.geometry(shape, weight.shape), form.maps()[1], conv_target(g), correction, below, norm
    return by_library(kernels.bwd_input_problem, g, saved, weight, *more)


def _weight_by_library(incoming: Incoming, x: Tensor, weight: Tensor, form: Form, norm: Norm | None) -> bool:
    from fastgan.kernels import conv_bwd_weight as kernels
    from fastgan.kernels.conv_product import conv_target

    g, saved, *_, correction, _ = incoming
    more = form.geometry(x.shape, weight.shape), conv_target(g), correction, norm
    return by_library(kernels.bwd_weight_problem, g, saved, x, weight, *more)
