"""upfirdn2d as people call it: the definition, filters, any order of gradients, layouts, crops, mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
FORMS = [
    ((4, 4), {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}),
    ((4, 4), {"down": 2, "padding": 1}),
    ((3, 2), {"up": [2, 1], "down": [1, 3], "padding": [-1, 2, 3, -2], "flip_filter": True}),
    ((6,), {"up": 2, "padding": 4, "gain": 4.0}),
    ((5,), {"up": [1, 3], "down": 2, "padding": [3, -1, 0, 4], "flip_filter": True, "gain": -0.5}),
    (None, {"padding": [1, -2, 0, 3]}),
    (None, {"down": [2, 1]}),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def filtering(taps: tuple[int, ...] | None, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor | None:
    return None if taps is None else numbers(*taps, device=device, dtype=dtype, seed=3).detach()


def by_hand(x: Tensor, f: Tensor | None, up: Any, down: Any, padding: Any, flip_filter: bool, gain: float) -> Tensor:
    """The definition in fp64: zeros by a matrix, padding or a crop of a canvas, scalar sums of taps."""
    (ux, uy), (dx, dy) = ([n, n] if isinstance(n, int) else n for n in (up, down))
    left, right, above, below = [padding] * 4 if isinstance(padding, int) else padding
    f = torch.ones(1, 1, dtype=x.dtype) if f is None else f
    f = torch.outer(f, f) if f.dim() == 1 else f
    f = f if flip_filter else f.flip([0, 1])
    N, C, H, W = x.shape
    far = 40
    canvas = x.new_zeros(N, C, H * uy + 2 * far, W * ux + 2 * far)
    canvas[:, :, far : far + H * uy : uy, far : far + W * ux : ux] = x
    canvas = canvas[:, :, far - above : far + H * uy + below, far - left : far + W * ux + right]
    (R, S), (rows, columns) = f.shape, canvas.shape[2:]
    y = x.new_zeros(N, C, rows - R + 1, columns - S + 1)
    for r in range(R):
        for s in range(S):
            y += f[r, s] * canvas[:, :, r : r + rows - R + 1, s : s + columns - S + 1]
    return gain * y[:, :, ::dy, ::dx]


@given(data=st.data())
def test_the_reference_is_the_definition(data: st.DataObject) -> None:
    draw = data.draw
    factor = st.sampled_from((1, 1, 2, 3)) | st.lists(st.integers(1, 4), min_size=2, max_size=2)
    up, down = draw(factor), draw(factor)
    padding = draw(st.integers(0, 8) | st.lists(st.integers(-2, 9), min_size=4, max_size=4))
    taps = draw(st.sampled_from((None, (1,), (3,), (4, 4), (2, 5), (7, 1))))
    x = numbers(draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    how = (up, down, padding, draw(st.booleans()), draw(st.sampled_from((1.0, 4.0, -0.5))))
    x, f = x.detach(), filtering(taps)
    try:
        wanted = by_hand(x, f, *how)
    except RuntimeError:  # the filter is larger than what it is to filter
        wanted = x.new_empty(0)
    if min(wanted.shape[2:], default=0) < 1:
        with pytest.raises(UserError, match="no pixel is left"):
            upfirdn2d(x, f, *how)
    else:
        torch.testing.assert_close(upfirdn2d(x, f, *how), wanted)


@pytest.mark.parametrize(("taps", "how"), FORMS)
def test_gradients_in_fp64(taps: tuple[int, ...] | None, how: dict[str, Any]) -> None:
    x, f = numbers(1, 2, 5, 6), filtering(taps)
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, f, **how), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, f, **how).pow(2), x, fast_mode=True)


def test_a_filter_may_want_a_gradient() -> None:
    x, f = numbers(1, 2, 5, 6), numbers(3, 2)
    assert torch.autograd.gradcheck(lambda x, f: upfirdn2d(x, f, up=2, padding=2), (x, f))
    assert torch.autograd.gradcheck(lambda f: upfirdn2d(x.detach(), f, up=2, padding=3), numbers(4))


@pytest.mark.parametrize(("taps", "how"), FORMS)
@pytest.mark.parametrize("layout", ["rows", "crop"])
def test_kernels_gradients_of_any_order_are_the_references(
    device: str, taps: tuple[int, ...] | None, how: dict[str, Any], layout: str
) -> None:
    x = numbers(1, 3, 4, 5, device=device, dtype=torch.float32).detach()
    if layout == "crop":
        x = F.pad(x.contiguous(memory_format=torch.channels_last), (1, 2, 1, 1))[:, :, 1:-1, 1:-2]

    def results(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        y = upfirdn2d(x, filtering(taps, device, x.dtype), **how)
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return [y, first, *torch.autograd.grad(first.square().sum(), x)]

    got = results(x)
    with fastgan.backend("reference"):
        wanted = results(x.double())
    last = torch.contiguous_format if layout == "rows" else torch.channels_last
    for part, right in zip(got, wanted, strict=True):
        assert part.is_contiguous(memory_format=last)
        scale = float(right.detach().abs().max())
        torch.testing.assert_close(part.double(), right, rtol=1e-4, atol=1e-5 * scale)


def test_odd_gradients(device: str) -> None:
    """Expanded ones, of another layout, batches of them; and nothing is kept but the filter."""
    x, f = numbers(2, 3, 4, 5, device=device, dtype=torch.float32), setup_filter([1, 3, 3, 1], device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = upsample2d(x, f)
    assert len(kept) == 1 and kept[0].data_ptr() == f.data_ptr()
    with fastgan.backend("reference"):
        plain = upsample2d(x, f)
    many = torch.randn(3, *y.shape, device=device)
    for grad in (torch.ones((), device=device).expand_as(y), many[0].contiguous(memory_format=torch.channels_last)):
        wanted = torch.autograd.grad(plain, x, grad, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(y, x, grad, retain_graph=True), wanted)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    alone = torch.stack([torch.autograd.grad(plain, x, one, retain_graph=True)[0] for one in many])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 1], [1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1]])
def test_sizes_are_kept_doubled_and_halved(taps: list[int]) -> None:
    """And a constant keeps its value away from the borders."""
    f, x = setup_filter(taps), torch.ones(1, 1, 40, 48)
    for y, times in ((filter2d(x, f), 1), (upsample2d(x, f), 2), (downsample2d(x, f), 0.5)):
        assert y.shape == (1, 1, 40 * times, 48 * times)
        inner = y[:, :, 9:-9, 9:-9] if times == 0.5 else y[:, :, 14:-14, 14:-14]
        torch.testing.assert_close(inner, torch.ones_like(inner))
    assert upsample2d(x, f, up=[1, 3]).shape == (1, 1, 120, 48)
    assert downsample2d(x, f, down=[4, 1], padding=[0, 0, 1, -1]).shape == (1, 1, 40, 12)


def test_filters_are_set_up_as_stylegan_does() -> None:
    f = setup_filter([1, 3, 3, 1])
    assert f.shape == (4, 4) and f.dtype == torch.float32 and float(f.sum()) == 1.0
    assert torch.equal(f, torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 64)
    assert setup_filter(list(range(8))).shape == (8,) and setup_filter([1, 2], separable=True).shape == (2,)
    assert setup_filter(list(range(8)), separable=False).shape == (8, 8)
    assert setup_filter(None).tolist() == [[1.0]] and setup_filter(5.0, normalize=False).tolist() == [[25.0]]
    assert torch.equal(
        setup_filter(np.array([[1, 2], [3, 4]]), flip_filter=True), torch.tensor([[4.0, 3], [2, 1]]) / 10
    )
    torch.testing.assert_close(setup_filter([1, 1], gain=4), torch.ones(2, 2))
    torch.testing.assert_close(setup_filter([1, 1], gain=4, separable=True), torch.ones(2))
    taps = torch.tensor([1.0, 2.0, 3.0])
    setup_filter(taps, separable=True)
    assert taps.tolist() == [1.0, 2.0, 3.0]  # not normalised in its place


def test_a_separable_filter_is_its_outer_product() -> None:
    x, f = numbers(1, 2, 6, 5), filtering((5,))
    assert f is not None
    how: dict[str, Any] = {"up": [2, 3], "down": [3, 2], "padding": [4, 1, 2, 5], "gain": 6.0}
    torch.testing.assert_close(upfirdn2d(x, f, **how), upfirdn2d(x, torch.outer(f, f), **how))


def test_numbers_of_numpy_are_numbers(device: str) -> None:
    x, one, two = torch.randn(1, 2, 4, 4, device=device), np.int64(1), np.int32(2)
    f = setup_filter([1, 2, 1], device)
    wanted = upfirdn2d(x, f, 2, 1, [1, 2, 1, 2], gain=0.5)
    torch.testing.assert_close(upfirdn2d(x, f, two, [one, one], [one, two, one, two], gain=np.float32(0.5)), wanted)
    torch.testing.assert_close(filter2d(x, f, one), filter2d(x, f, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 6, 6).to(dtype)
    y = upsample2d(x, setup_filter([1, 3, 3, 1]))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), upsample2d(x.float(), setup_filter([1, 3, 3, 1])), rtol=2e-2, atol=2e-2)


def test_mistakes_are_named() -> None:
    x = torch.randn(1, 2, 4, 4)
    wrong: list[tuple[Any, str]] = [
        (lambda: upfirdn2d(x, torch.ones(5, 5)), "no pixel is left"),
        (lambda: upfirdn2d(x, None, up=0), "up must be at least 1"),
        (lambda: upfirdn2d(x, None, padding=[1, 2, 3]), "padding is"),
        (lambda: upfirdn2d(x[0], None), "needs floating images"),
        (lambda: upfirdn2d(x, torch.ones(1, 1, 1)), "a filter is"),
        (lambda: upfirdn2d(x, torch.ones(2, 2, dtype=torch.int32)), "a filter is"),
        (lambda: setup_filter(torch.ones(2, 2), separable=True), "separable"),
        (lambda: setup_filter([]), "a filter is"),
    ]
    for call, words in wrong:
        with pytest.raises(UserError, match=words):
            call()


def test_zero_sizes(device: str) -> None:
    f = setup_filter([1, 3, 3, 1], device)
    for size in ((0, 3, 4, 4), (2, 0, 4, 4)):
        x = torch.empty(size, device=device, requires_grad=True)
        y = upsample2d(x, f)
        assert y.shape == (*size[:2], 8, 8)
        assert torch.autograd.grad(y.sum(), x)[0].shape == size
    assert not upfirdn2d(torch.empty(1, 2, 0, 3, device=device), f, padding=3).any()


@pytest.mark.gpu
def test_a_graph_replays_with_the_filter_of_the_hour() -> None:
    """The filter is read at each replay: it is no constant of the launch."""
    x, f = torch.randn(2, 8, 16, 16, device="cuda", requires_grad=True), setup_filter([1, 3, 3, 1], "cuda")

    def run() -> list[Tensor]:
        y = upsample2d(x, f)
        return [y, *torch.autograd.grad(y.square().sum(), x)]

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.normal_()
        f.normal_()
    graph.replay()
    torch.testing.assert_close(captured, run())
