"""The resampling kernel by itself: factors, filters, paddings and layouts against fp64, by zeros and a convolution."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check

pytest.importorskip("triton")
from fastgan.kernels import upfirdn2d as kernels

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "last", "steps", "expanded", "turned")
on_devices = pytest.mark.parametrize("device", DEVICES)
Laid = Callable[[Tensor, str], Tensor]
Numbers = Callable[..., Tensor]
Pair = tuple[int, int]


def by_torch(x: Tensor, f: Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, turned: bool, gain: float) -> Tensor:
    """Zeros written between the pixels of a wide canvas, and a convolution of it at each channel."""
    N, C, H, W = x.shape
    far = 64
    canvas = x.new_zeros(N, C, 2 * far + H * up[1], 2 * far + W * up[0])
    canvas[:, :, far : far + H * up[1] : up[1], far : far + W * up[0] : up[0]] = x
    (top, left), (R, S) = (far - pad[1], far - pad[0]), f.shape
    part = canvas[:, :, top : top + (size[0] - 1) * down[1] + R, left : left + (size[1] - 1) * down[0] + S]
    taps = (f.flip([0, 1]) if turned else f).to(x.dtype).expand(C, 1, R, S)
    return F.conv2d(part, taps, stride=down[::-1], groups=C) * gain


def judge(x: Tensor, f: Tensor, *how: Any, last: bool = False) -> str | None:
    """Say what is wrong with the kernel's images, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got = kernels.upfirdn2d(x, f, *how, last)
    if not got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format):
        return "another layout"
    return check(got, by_torch(x, f, *how), by_torch(x.double(), f.double(), *how)).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, laid: Laid, numbers: Numbers, data: st.DataObject) -> None:
    N, C = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    H, W = data.draw(st.tuples(*[st.integers(1, 12)] * 2))
    up, down = (data.draw(st.tuples(*[st.sampled_from((1, 1, 2, 3, 4))] * 2)) for _ in range(2))
    f = numbers(1, *data.draw(st.tuples(*[st.sampled_from((1, 2, 3, 4, 6, 12))] * 2)), device=device)
    pad = data.draw(st.tuples(*[st.integers(-6, 9)] * 2))
    size = data.draw(st.tuples(st.integers(1, 18), st.integers(1, 18)))
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    x = laid(numbers(H * W, N, C, H, W, dtype=dtype, device=device), data.draw(st.sampled_from(LAYOUTS)))
    how = (up, down, pad, size, data.draw(st.booleans()), data.draw(st.sampled_from((1.0, 4.0, -0.3))))
    assert judge(x, f, *how, last=data.draw(st.booleans())) is None


@on_devices
@pytest.mark.parametrize(("up", "down"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((3, 1), (1, 2))])
@pytest.mark.parametrize("last", [False, True])
def test_many_tiles_and_many_taps(device: str, numbers: Numbers, up: Pair, down: Pair, last: bool) -> None:
    """More columns than a tile has, more channels, and more taps of a row than are unrolled."""
    wide = (1, 66, 2, 10) if last else (1, 2, 3, 70)
    for size, taps in ((wide, (2, 4)), ((2, 5, 2, 6), (1, 17))):
        x, f = numbers(1, *size, device=device), numbers(2, *taps, device=device)
        out = (-(-size[2] * up[1] // down[1]), -(-size[3] * up[0] // down[0]))
        assert judge(x, f, up, down, (taps[1] // 2, taps[0] // 2), out, True, 1.0, last=last) is None


@on_devices
def test_filters_of_any_dtype_and_strides(device: str, numbers: Numbers) -> None:
    x = numbers(1, 2, 3, 7, 6, device=device)
    wide = numbers(2, 8, 9, device=device)
    cut = wide.new_full((9, 9), float("nan"))[2:6, 3:6].copy_(wide[:4, :3])  # what lies around is not read
    for f in (cut, wide[::2, ::3], wide[:4, :3].t(), wide[:1, :1].expand(4, 3), wide[:4, :3].half()):
        assert judge(x, f, (2, 3), (1, 2), (2, 3), (9, 11), False, 1.0) is None


@on_devices
def test_sizes_of_zero(device: str) -> None:
    f = torch.ones(2, 2, device=device)
    how: Any = ((1, 1), (1, 1), (1, 1), (4, 5), True, 1.0, False)
    for size in ((0, 3, 3, 4), (2, 0, 3, 4)):
        assert kernels.upfirdn2d(torch.empty(size, device=device), f, *how).shape == (*size[:2], 4, 5)
    assert not kernels.upfirdn2d(torch.empty(2, 3, 0, 4, device=device), f, *how).any()  # padding alone


@on_devices
def test_what_is_cropped_or_skipped_does_not_count(device: str) -> None:
    """NaN beyond a crop, or where no output's tap falls, reaches nothing."""
    x = torch.ones(1, 1, 6, 6, device=device)
    x[..., 0, :] = x[..., :, 5] = float("nan")
    f = torch.ones(1, 1, device=device)
    assert torch.equal(kernels.upfirdn2d(x, f, (1, 1), (1, 1), (0, -1), (5, 5), True, 1.0, False), x[..., 1:, :5])
    assert torch.equal(kernels.upfirdn2d(x, f, (1, 1), (2, 2), (0, -1), (3, 3), True, 1.0, False), x[..., 1::2, ::2])


@on_devices
@pytest.mark.parametrize("planted", ["another phase", "a tap less", "not turned", "another axis"])
def test_a_planted_error_is_caught(
    device: str, numbers: Numbers, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, f = numbers(1, 2, 3, 6, 7, device=device), numbers(2, 4, 3, device=device)
    how: Any = ((2, 3), (1, 2), (2, 1), (8, 13), True, 1.0)
    right = kernels.upfirdn2d
    assert judge(x, f, *how) is None

    def wrong(
        x: Tensor, f: Tensor, up: Pair, down: Pair, pad: Pair, size: Pair, turned: bool, gain: float, last: bool
    ) -> Tensor:
        if planted == "another phase":
            return right(x, f, up, down, (pad[0] + 1, pad[1]), size, turned, gain, last)
        if planted == "a tap less":
            return right(x, f[:-1], up, down, pad, size, turned, gain, last)
        if planted == "not turned":
            return right(x, f, up, down, pad, size, False, gain, last)
        return right(x, f, up[::-1], down, pad, size, turned, gain, last)

    monkeypatch.setattr(kernels, "upfirdn2d", wrong)
    assert judge(x, f, *how) is not None


FAR = 2**30 + 64  # times 2


@pytest.mark.interpret
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_addresses_beyond_2_31_elements(sparse: Callable[..., Tensor], numbers: Numbers, dim: int) -> None:
    """Fails where an offset is formed in int32: it would wrap around, to elsewhere in the file with holes."""
    size = tuple(3 if at == dim else 2 for at in range(4))
    near = numbers(7, *size, dtype=torch.float16)
    strides = tuple(FAR if at == dim else step for at, step in enumerate((27, 9, 3, 1)))
    far = sparse(torch.float16).as_strided(size, strides, 64).copy_(near)
    how: Any = ((2, 2), (1, 1), (1, 1), (5, 5), True, 1.0, False)
    f = numbers(1, 3, 3)
    assert torch.equal(*[kernels.upfirdn2d(x, f, *how) for x in (far, near)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_larger_sizes(laid: Laid, numbers: Numbers, dtype: torch.dtype) -> None:
    resampled = (((2, 2), (1, 1)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), ((4, 1), (1, 1)))
    for size, (up, down), last in product(((8, 3, 256, 256), (4, 512, 16, 16), (2, 65, 33, 130)), resampled, (0, 1)):
        x = laid(numbers(1, *size, dtype=dtype, device="cuda"), "last" if last else "rows")
        out = (size[2] * up[1] // down[1], size[3] * up[0] // down[0])
        for taps in ((4, 4), (1, 12)):
            f = numbers(2, *taps, device="cuda")
            assert judge(x, f, up, down, (taps[1] // 2, taps[0] // 2), out, True, 1.0, last=bool(last)) is None
