"""conv2d_resample and filtered_lrelu: each shortcut is the definition, step by step, to second order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops.conv2d_resample import conv2d_resample
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.upfirdn2d import setup_filter, upfirdn2d


def numbers(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def by_steps(
    x: Tensor, w: Tensor, f: Tensor | None, up: int, down: int, padding: Any, groups: int, flip_w: bool, flip_f: bool
) -> Tensor:
    """Padded and up-sampled, convolved, down-sampled: what the shortcuts stand for."""
    rows, columns = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    left, right, above, below = [padding] * 4 if isinstance(padding, int) else padding
    for taps, at in ((columns, 0), (rows, 2)):
        before = behind = 0
        if up > 1:
            before, behind = (taps + up - 1) // 2, (taps - up) // 2
        if down > 1:
            before, behind = before + (taps - down + 1) // 2, behind + (taps - down) // 2
        if at == 0:
            left, right = left + before, right + behind
        else:
            above, below = above + before, below + behind
    x = upfirdn2d(x, f if up > 1 else None, up, 1, [left, right, above, below], flip_f, up**2)
    x = F.conv2d(x, w if flip_w else w.flip([2, 3]), groups=groups)
    return x if down == 1 else upfirdn2d(x, f, 1, down, 0, flip_f)


@given(data=st.data())
def test_every_shortcut_is_the_definition(data: st.DataObject) -> None:
    draw = data.draw
    up, down = draw(st.sampled_from((1, 1, 2, 3))), draw(st.sampled_from((1, 1, 2)))
    groups, rows, columns = draw(st.sampled_from((1, 1, 2))), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    if draw(st.booleans()):
        rows = columns = 1
    padding = draw(st.integers(0, 3) | st.lists(st.integers(-1, 4), min_size=4, max_size=4))
    taps = draw(st.sampled_from((None, (4, 4), (3, 2), (5,))))
    f = None if taps is None else numbers(*taps).detach()
    x, w = numbers(2, 2 * groups, 9, 8).detach(), numbers(3 * groups, 2, rows, columns).detach()
    how = (f, up, down, padding, groups, draw(st.booleans()), draw(st.booleans()))
    torch.testing.assert_close(conv2d_resample(x, w, *how), by_steps(x, w, *how))


@pytest.mark.parametrize(("kernel", "up", "down"), list(itertools.product((1, 3), (1, 2), (1, 2))))
def test_gradients_in_fp64(kernel: int, up: int, down: int) -> None:
    operands, f = (numbers(1, 2, 4, 4), numbers(2, 2, kernel, kernel)), setup_filter([1, 3, 3, 1])

    def op(x: Tensor, w: Tensor) -> Tensor:
        return conv2d_resample(x, w, f, up, down, kernel // 2, flip_weight=up == 1)

    assert torch.autograd.gradcheck(op, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, operands, fast_mode=True)


def test_sizes_and_layouts() -> None:
    f = setup_filter([1, 3, 3, 1])
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    for kernel, (up, down, size) in itertools.product((1, 3), ((1, 1, 8), (2, 1, 16), (1, 2, 4))):
        y = conv2d_resample(x, torch.randn(5, 4, kernel, kernel), f, up, down, kernel // 2)
        assert y.shape == (2, 5, size, size) and y.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="at least 1"):
        conv2d_resample(x, torch.randn(5, 4, 1, 1), up=0)


def test_filtered_lrelu_is_its_steps() -> None:
    x, b = numbers(2, 3, 7, 6), numbers(3)
    up_filter, down_filter = numbers(6).detach(), numbers(4, 4).detach()
    how: Any = {"up": 2, "down": 2, "padding": [5, 4, 3, 2], "gain": 1.5, "negative_slope": 0.1, "clamp": 2.0}

    def by_hand(x: Tensor, b: Tensor) -> Tensor:
        x = x + b[:, None, None]
        x = upfirdn2d(x, torch.outer(up_filter, up_filter), up=2, padding=[5, 4, 3, 2], gain=4)
        x = (F.leaky_relu(x, 0.1) * 1.5).clamp(-2, 2)
        return upfirdn2d(x, down_filter, down=2)

    def op(x: Tensor, b: Tensor) -> Tensor:
        return filtered_lrelu(x, up_filter, down_filter, b, **how)

    torch.testing.assert_close(op(x, b), by_hand(x, b))
    assert torch.autograd.gradcheck(op, (x, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (x, b), fast_mode=True)
    plain = filtered_lrelu(x.detach())
    torch.testing.assert_close(plain, F.leaky_relu(x.detach(), 0.2) * 2**0.5)
