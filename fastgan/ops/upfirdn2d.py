"""upfirdn2d: images up-sampled, padded or cropped, filtered and down-sampled; filters, and what is made of the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastgan.errors import UserError
from fastgan.ops.backend import KERNEL_DTYPES, by_reference, register
from fastgan.ops.conv_compute import format_of
from fastgan.ops.registration import batched, below_autograd, register_op, traced, transformed

OP = register("upfirdn2d")
Factor = int | Sequence[int]
Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # x before, x behind, y before, y behind
FARTHEST = 2**31 - 2**16  # coordinate that the kernel reaches


def setup_filter(
    filter: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Return a filter for ``upfirdn2d``: float32, (height, width), or (taps) of a separable one.

    Args:
        filter: (height, width), (taps), a number, or None for 1: a tensor, an array or a list.
        device: where it shall be.
        normalize: whether its sum becomes 1.
        flip_filter: whether it is turned around.
        gain: what the whole filter is multiplied by (a separable one's taps by its root).
        separable: whether taps stay as they are, to be applied along each axis; None: from 8 taps on. Fewer become
            their outer product.

    Raises:
        UserError: for no taps, for more than two dimensions, and for a separable filter of two.
    """
    taps = torch.as_tensor(1 if filter is None else filter, dtype=torch.float32)
    if taps.dim() > 2 or not taps.numel():
        raise UserError(f"a filter is (height, width), (taps) or a number, not {tuple(taps.shape)}")
    taps = taps.reshape(1) if taps.dim() == 0 else taps
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= 8
    if separable and taps.dim() == 2:
        raise UserError("a separable filter is given by its taps along one axis, not as (height, width)")
    if taps.dim() == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.dim())))
    return (taps * gain ** (taps.dim() / 2)).to(device)


def upfirdn2d(
    input: Tensor,
    filter: Tensor | None,
    up: Factor = 1,
    down: Factor = 1,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Return images up-sampled by zeros, padded or cropped, filtered and down-sampled: one launch, two if separable.

    Each pixel is followed by up - 1 zeros; the padding is in such pixels. The filter stays within what is padded, and
    of its results each down-th is kept. Only what falls on a pixel of the input is multiplied.

    Args:
        input: (n, channels, height, width), any strides; bf16, fp16 or fp32, or another dtype by plain PyTorch.
        filter: (height, width), or (taps) along each axis, floating; None: 1. One that wants a gradient goes by plain
            PyTorch.
        up, down: an int or (x, y), at least 1.
        padding: an int, (x, y) or (x before, x behind, y before, y behind); negative: what is cropped.
        flip_filter: False: convolution; True: correlation, as torch.nn.functional.conv2d does it.
        gain: a factor of the result.

    Returns:
        (n, channels, (height * up_y + padding - filter's height) // down_y + 1, ...) in the input's dtype,
        channels_last where the input is, else contiguous; summed in fp32.

    Gradient order: any, with respect to the input: backward is the op itself with up and down exchanged. Nothing but
    the filter is kept.

    Raises:
        UserError: for operands of other shapes, factors below 1, and where no pixel would be left.
    """
    ups, downs, (left, right, above, below) = pair(up, "up"), pair(down, "down"), sides(padding)
    if input.dim() != 4 or not input.is_floating_point():
        raise UserError(f"upfirdn2d needs floating images (n, channels, height, width), not {tuple(input.shape)}")
    width, height = filter_size(filter)
    H, W = input.shape[2:]
    size = (
        (H * ups[1] + above + below - height) // downs[1] + 1,
        (W * ups[0] + left + right - width) // downs[0] + 1,
    )
    if min(size) < 1:
        raise UserError(f"no pixel is left of images {H}x{W}: a filter {height}x{width} needs more padding")
    taps = torch.ones(1, 1, device=input.device) if filter is None else filter
    last = format_of(input) == torch.channels_last and not input.is_contiguous()
    if taps.dim() == 2:
        return _resampled(input, taps, ups, downs, (left, above), size, not flip_filter, float(gain), last)
    along = (H, size[1])
    wide = _resampled(input, taps[None], (ups[0], 1), (downs[0], 1), (left, 0), along, not flip_filter, 1.0, last)
    factors = (1, ups[1]), (1, downs[1]), (0, above)
    return _resampled(wide, taps[:, None], *factors, size, not flip_filter, float(gain), last)


def filter2d(
    input: Tensor, filter: Tensor | None, padding: Factor = 0, flip_filter: bool = False, gain: float = 1.0
) -> Tensor:
    """Return images filtered, of the input's size but for ``padding``; otherwise as ``upfirdn2d``."""
    return upfirdn2d(input, filter, 1, 1, around(filter, padding), flip_filter, gain)


def upsample2d(
    input: Tensor,
    filter: Tensor | None,
    up: Factor = 2,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Return images of ``up`` times the size but for ``padding``, as bright as before; otherwise as ``upfirdn2d``."""
    x, y = pair(up, "up")
    return upfirdn2d(input, filter, up, 1, around(filter, padding, up=(x, y)), flip_filter, gain * x * y)


def downsample2d(
    input: Tensor,
    filter: Tensor | None,
    down: Factor = 2,
    padding: Factor = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Return images of a ``down``-th of the size but for ``padding``; otherwise as ``upfirdn2d``."""
    return upfirdn2d(input, filter, 1, down, around(filter, padding, down=pair(down, "down")), flip_filter, gain)


def around(filter: Tensor | None, padding: Factor, up: Pair = (1, 1), down: Pair = (1, 1)) -> Sides:
    """Return the padding (x before, x behind, y before, y behind) that keeps a filter's middle on the pixels.

    One of up and down is 1: images become so many times larger, or smaller.
    """
    left, right, above, below = sides(padding)
    (x_before, x_behind), (y_before, y_behind) = (
        ((taps + u - d) // 2, (taps - u - d + 1) // 2) for taps, u, d in zip(filter_size(filter), up, down, strict=True)
    )
    return left + x_before, right + x_behind, above + y_before, below + y_behind


def pair(factor: Factor, name: str) -> Pair:
    """Return a factor as (x, y); raise a ``UserError`` for what is none."""
    x, y = map(_whole, factor if isinstance(factor, Sequence) else (factor, factor))
    if min(x, y) < 1:
        raise UserError(f"{name} must be at least 1 along both axes, not {factor}")
    return x, y


def sides(padding: Factor) -> Sides:
    """Return a padding as (x before, x behind, y before, y behind); raise a ``UserError`` for what is none."""
    parts = list(map(_whole, padding if isinstance(padding, Sequence) else (padding, padding)))
    if len(parts) == 2:
        parts = [parts[0], parts[0], parts[1], parts[1]]
    if len(parts) != 4:
        raise UserError(f"padding is an int, (x, y) or (x before, x behind, y before, y behind), not {padding}")
    left, right, above, below = parts
    return left, right, above, below


def _whole(number: int) -> int:
    """Return an int of numpy's as one of Python's; a symbolic one stays."""
    return number if isinstance(number, (int, torch.SymInt)) else int(number)


def filter_size(filter: Tensor | None) -> Pair:
    """Return a filter's width and height; raise a ``UserError`` for what is none."""
    if filter is None:
        return 1, 1
    if filter.dim() not in (1, 2) or not filter.numel() or not filter.is_floating_point():
        raise UserError(f"a filter is floating, (height, width) or (taps), not {filter.dtype} {tuple(filter.shape)}")
    return filter.shape[-1], filter.shape[0]


def _resampled(
    x: Tensor, f: Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, turned: bool, gain: float, last: bool
) -> Tensor:
    """Return images (n, channels, *size) filtered by f (height, width), with a graph where one is being recorded."""
    how: Any = (up, down, pad, size, turned, gain, last)
    if not _fits(x, f, up, down, pad, size) or transformed():
        return _plainly(x, f, *how)
    if traced(x, f):
        result: Tensor = _upfirdn2d(x, f, *how)
        return result
    if torch.is_grad_enabled() and x.requires_grad:
        return _Upfirdn2d.apply(x, f, *how, True)
    return _launched(x, f, *how)


def _fits(
    x: Tensor, f: Tensor, up: Sequence[int], pad: Sequence[int], size: Sequence[int], down: Sequence[int]
) -> bool:
    """Whether the kernel takes these operands; PyTorch computes what it does not."""
    if by_reference(OP, x) or f.requires_grad or f.dtype not in KERNEL_DTYPES or f.device != x.device:
        return False
    ends = [
        *(factor * length + abs(side) for factor, length, side in zip(up, (x.shape[3], x.shape[2]), pad, strict=True)),
        *(factor * length + taps for factor, length, taps in zip(down, size[::-1], f.shape[::-1], strict=True)),
    ]
    return x.layout == torch.strided and max(ends) < FARTHEST


def _plainly(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], pad: Sequence[int], size: Sequence[int],
    turned: bool, gain: float, last: bool,
) -> Tensor:  # fmt: skip
    """Return the same by plain PyTorch, step by step: zeros between the pixels, padding, a convolution, every n-th."""
    N, C, H, W = x.shape
    spread = F.pad(x[:, :, :, None, :, None], (0, up[0] - 1, 0, 0, 0, up[1] - 1)).reshape(N, C, H * up[1], W * up[0])
    reach = [(size[1 - at] - 1) * down[at] + f.shape[1 - at] for at in (0, 1)]  # of the filter, along x and y
    behind = [reach[at] - spread.shape[3 - at] - pad[at] for at in (0, 1)]
    padded = F.pad(spread, [max(side, 0) for side in (pad[0], behind[0], pad[1], behind[1])])
    images = padded.narrow(2, max(-pad[1], 0), reach[1]).narrow(3, max(-pad[0], 0), reach[0])
    taps = (f.flip([0, 1]) if turned else f).to(x.dtype) * gain
    filtered = F.conv2d(images.reshape(N * C, 1, reach[1], reach[0]), taps[None, None], stride=(down[1], down[0]))
    return filtered.view(N, C, *size).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _launched(
    x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], pad: Sequence[int], size: Sequence[int],
    turned: bool, gain: float, last: bool,
) -> Tensor:  # fmt: skip
    from fastgan.kernels import upfirdn2d as kernels

    how: Any = (*(tuple(each) for each in (up, down, pad, size)), turned, gain, last)
    return kernels.upfirdn2d(x, f, *how)


class _Upfirdn2d(Function):
    """The resampled images. Keeps the filter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, turned: bool, gain: float,
        last: bool, direct: bool,
    ) -> Tensor:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(f)
        before = f.shape[1] - 1 - pad[0], f.shape[0] - 1 - pad[1]
        ctx.how, ctx.direct = (down, up, before, tuple(x.shape[2:]), not turned, gain, last), direct
        if direct:
            return _launched(x, f, up, down, pad, size, turned, gain, last)
        with below_autograd():
            result: Tensor = _upfirdn2d(x, f, up, down, pad, size, turned, gain, last)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or not ctx.needs_input_grad[0]:
            return (None,) * 10
        f = ctx.saved_tensors[0]
        if not ctx.direct:
            gradient = _upfirdn2d(grad, f, *ctx.how)
        elif batched(grad):
            gradient = _plainly(grad, f, *ctx.how)
        elif torch.is_grad_enabled():
            gradient = _Upfirdn2d.apply(grad, f, *ctx.how, True)
        else:
            gradient = _launched(grad, f, *ctx.how)
        return gradient, *(None,) * 9


def _compute(x: Tensor, f: Tensor, up: Any, down: Any, pad: Any, size: Any, *rest: Any) -> Tensor:
    form = _launched if _fits(x, f, up, down, pad, size) else _plainly
    return form(x, f, up, down, pad, size, *rest)


def _fake(
    x: Tensor, f: Tensor, up: Any, down: Any, pad: Any, size: Any, turned: bool, gain: float, last: bool
) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)


def _autograd(x: Tensor, f: Tensor, *how: Any) -> Tensor:
    if transformed() or f.requires_grad:
        return _plainly(x, f, *how)
    result: Tensor = _Upfirdn2d.apply(x, f, *how, False)
    return result


_upfirdn2d = register_op(
    "upfirdn2d(Tensor x, Tensor f, int[2] up, int[2] down, SymInt[2] pad, SymInt[2] size, bool turned, float gain, "
    "bool last) -> Tensor",
    compute=_compute,
    fake=_fake,
    autograd=_autograd,
)
