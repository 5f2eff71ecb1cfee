"""conv2d_resample: a convolution of images that are up-sampled before or down-sampled behind, each with a filter."""

from __future__ import annotations

from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops.conv import conv2d_act, conv_transpose2d_act
from fastgan.ops.upfirdn2d import Factor, around, sides, upfirdn2d


def conv2d_resample(
    input: Tensor,
    weight: Tensor,
    filter: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factor = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Return down(conv2d(up(input), weight)): padded once, before everything, and up and down each with the filter.

    What is computed is cheaper: a 1x1 convolution where there are fewer pixels, a strided one, or a transposed one,
    the filter behind it.

    Args:
        input: (n, in_channels, height, width).
        weight: (out_channels, in_channels / groups, kernel height, kernel width), in the input's dtype.
        filter: as of ``upfirdn2d``; None: 1.
        up, down: at least 1.
        padding: of the up-sampled images, beside what keeps their size: an int, (x, y) or (x before, x behind,
            y before, y behind).
        groups: of channels; above 1 the convolution is PyTorch's.
        flip_weight: True: correlation, as torch.nn.functional.conv2d does it; False: convolution.
        flip_filter: likewise, of the filter.

    Returns:
        (n, out_channels, ...), in the input's dtype. Gradient order: any, with respect to input and weight.

    Raises:
        UserError: for factors below 1, and as ``upfirdn2d`` does.
    """
    if min(up, down) < 1:
        raise UserError(f"up and down must be at least 1, not {up} and {down}")
    pad = sides(padding)
    if up > 1:
        pad = around(filter, pad, up=(up, up))
    if down > 1:
        pad = around(filter, pad, down=(down, down))
    left, right, above, below = pad
    single = tuple(weight.shape[2:]) == (1, 1)
    if up > 1 and not (single and down == 1):
        inward = weight.flip([2, 3]) if flip_weight else weight
        higher = _spread(input, inward, filter, up, pad, groups, flip_filter)
        return higher if down == 1 else upfirdn2d(higher, filter, 1, down, 0, flip_filter)
    if not flip_weight:
        weight = weight.flip([2, 3])
    if up > 1:
        return upfirdn2d(_conv(input, weight, groups=groups), filter, up, 1, pad, flip_filter, up**2)
    if down > 1:
        skipped = down if single else 1  # by the filter; else by the convolution's stride
        low = upfirdn2d(input, filter, 1, skipped, pad, flip_filter)
        return _conv(low, weight, down // skipped, groups=groups)
    if left != right or above != below or min(left, above) < 0:
        return _conv(upfirdn2d(input, None, padding=pad), weight, groups=groups)
    return _conv(input, weight, 1, (above, left), groups)


def _conv(input: Tensor, weight: Tensor, stride: int = 1, padding: tuple[int, int] = (0, 0), groups: int = 1) -> Tensor:
    return conv2d_act(input, weight, None, stride, padding, 1, groups, activation="none")


def _spread(
    input: Tensor, weight: Tensor, filter: Tensor | None, up: int, padding: tuple[int, int, int, int], groups: int,
    flip_filter: bool,
) -> Tensor:  # fmt: skip
    """Return the convolution of images with zeros between their pixels, and the filter behind it.

    That is a transposed convolution, which is padded by its kernel less one at both ends and lacks the up - 1 zeros
    behind the last pixel. The rest of the padding is the filter's.
    """
    rows, columns = weight.shape[2:]
    inward = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    left, right, above, below = padding
    left, right = left - (columns - 1), right - (columns - up)
    above, below = above - (rows - 1), below - (rows - up)
    cut_y, cut_x = max(min(-above, -below), 0), max(min(-left, -right), 0)  # need not be made in the first place
    made = conv_transpose2d_act(input, inward, None, up, (cut_y, cut_x), 0, groups, activation="none")
    rest = left + cut_x, right + cut_x, above + cut_y, below + cut_y
    return upfirdn2d(made, filter, 1, 1, rest, flip_filter, up**2)
