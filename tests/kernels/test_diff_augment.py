"""The DiffAugment kernel by itself: every order of steps, layout and size against fp64, and what is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.baselines import diff_augment as published
from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.diff_augment import POLICY, STEPS, drawn

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import diff_augment as kernels
from fastgan.kernels import launch
from fastgan.kernels.diff_augment import elements

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "last", "steps", "expanded", "turned")
ORDERS = [",".join(steps) for count in (1, 2, 3) for steps in itertools.permutations(STEPS, count)]
on_devices = pytest.mark.parametrize("device", DEVICES)
Laid = Callable[[Tensor, str], Tensor]
Numbers = Callable[..., Tensor]


def seeded(device: str, seed: int = 0) -> Tensor:
    return torch.tensor([2**33 + 11 * seed + 1, 2**40 + seed], device=device)


def judge(x: Tensor, rng: Tensor, order: str, channels_last: bool = False) -> str | None:
    """Say what is wrong with the kernel's images, its gradient of them and the gradient of that; None if nothing is.

    The right ones are autograd's in fp64 of the composition as published, of the same draws.
    """
    with Poisoned():
        got = [
            kernels.diff_augment(x, rng, order, transposed=transposed, lifted=lifted, channels_last=channels_last)
            for transposed, lifted in ((False, True), (True, False), (False, False))
        ]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not all(result.is_contiguous(memory_format=layout) for result in got):
        return "another layout"
    return check(got, by_torch(x, rng, order), by_torch(x.double(), rng, order)).why


def by_torch(x: Tensor, rng: Tensor, order: str) -> list[Tensor]:
    """The images, the gradient where x is the output's gradient, and what x becomes without brightness."""
    draws = drawn(rng, x.shape, torch.promote_types(x.dtype, torch.float32))
    leaf, grad = (x.detach().clone().requires_grad_() for _ in range(2))
    y = published.eager(order)(leaf, *draws)
    (gradient,) = torch.autograd.grad(y, leaf, grad, create_graph=True)
    (again,) = torch.autograd.grad(gradient, grad, x)
    return [y.detach(), gradient.detach(), again]


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, laid: Laid, numbers: Numbers, data: st.DataObject) -> None:
    N, C = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    H, W = data.draw(st.sampled_from(((1, 70), (66, 2))) | st.tuples(*[st.integers(1, 20)] * 2))
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    x = laid(numbers(H * W, N, C, H, W, dtype=dtype, device=device), data.draw(st.sampled_from(LAYOUTS)))
    rng, order = seeded(device, data.draw(st.integers(0, 99))), data.draw(st.sampled_from(ORDERS))
    assert judge(x, rng, order, data.draw(st.booleans())) is None


@on_devices
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_steps(device: str, numbers: Numbers, order: str) -> None:
    assert judge(numbers(1, 2, 3, 21, 20, device=device), seeded(device), order) is None


@on_devices
@pytest.mark.parametrize("size", [(2, 64, 5, 6), (1, 33, 3, 3), (1, 3, 35, 100)])
def test_many_channels_and_many_tiles(device: str, numbers: Numbers, size: tuple[int, ...]) -> None:
    assert judge(numbers(1, *size, device=device), seeded(device), POLICY) is None


@on_devices
@pytest.mark.parametrize("programs", [1, 2, 5, 64])
def test_however_many_programs_share_an_image(
    device: str, numbers: Numbers, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums are the same bits in each of them, and so are the images."""
    x, rng = numbers(1, 2, 3, 40, 66, device=device), seeded(device)
    usual = kernels.diff_augment(x, rng, POLICY)
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    monkeypatch.setattr(launch, "_replays", {})
    assert torch.equal(kernels.diff_augment(x, rng, POLICY), usual)


@on_devices
@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_sizes_of_zero(device: str, size: tuple[int, ...]) -> None:
    x = torch.empty(size, device=device)
    assert kernels.diff_augment(x, seeded(device), POLICY).shape == x.shape


@on_devices
def test_what_is_drawn_is_word_for_word_the_references(device: str) -> None:
    """A translation of numbered pixels and a cutout of ones show what was drawn, for many images."""
    N, H, W = 24, 12, 14  # an eighth of 12 is 1.5: 2
    rng, x = seeded(device), torch.arange(1.0, H * W + 1, device=device).view(1, 1, H, W).expand(N, 1, H, W)
    draws = drawn(rng, x.shape)
    moved = kernels.diff_augment(x, rng, "translation")[:, 0, 4, 7] - 1
    assert torch.equal(moved.long(), (4 + draws.down) * W + 7 + draws.right)
    held = kernels.diff_augment(torch.ones_like(x), rng, "cutout")[:, 0] == 0
    bounds = [(held.any(2).float().argmax(1), draws.top.clamp(min=0)), (held.any(1).float().argmax(1), draws.left)]
    for first, wanted in bounds:
        assert torch.equal(first, wanted.clamp(min=0))


@on_devices
def test_nothing_comes_of_what_is_not_finite_where_it_is_not_seen(device: str) -> None:
    """Cut out or pushed over the border: 0. Where it is seen, color spreads NaN over its image and no other."""
    rng = seeded(device)
    x = torch.full((6, 3, 8, 8), float("nan"), device=device)
    y = kernels.diff_augment(x, rng, "translation,cutout")
    unseen = kernels.diff_augment(torch.ones_like(x), rng, "translation,cutout") == 0
    assert unseen.any() and torch.equal(torch.isnan(y), ~unseen)
    assert bool((y[unseen] == 0).all())
    x = torch.randn(3, 3, 8, 8, device=device)
    x[1, 2, 3, 4] = float("nan")
    assert kernels.diff_augment(x, rng, "color").isnan().flatten(1).any(1).tolist() == [False, True, False]


@on_devices
def test_same_bits_twice(device: str, numbers: Numbers) -> None:
    x, rng = numbers(3, 4, 3, 33, 20, device=device), seeded(device)
    assert torch.equal(kernels.diff_augment(x, rng, POLICY), kernels.diff_augment(x, rng, POLICY))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("size", [(64, 3, 64, 64), (16, 3, 256, 256), (300, 3, 128, 128), (64, 1, 28, 28)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_larger_sizes(numbers: Numbers, dtype: torch.dtype, size: tuple[int, ...], channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = numbers(5, *size, dtype=dtype, device="cuda").contiguous(memory_format=layout)
    for order in (POLICY, "translation,color", "cutout,color,translation"):
        assert judge(x, seeded("cuda"), order, channels_last) is None


FAR = 2**31 + 64  # elements from one image, or one row, to the next


@pytest.mark.interpret
@pytest.mark.parametrize("dim", [0, 2])
def test_addresses_beyond_2_31_elements(sparse: Callable[..., Tensor], numbers: Numbers, dim: int) -> None:
    """Fails where an offset is formed in int32: it would wrap around, to elsewhere in the file with holes."""
    size = tuple(3 if at == dim else 2 for at in range(4))
    near = numbers(7, *size, dtype=torch.float16)
    strides = tuple(FAR if at == dim else step for at, step in enumerate((12, 6, 3, 1)))
    far = sparse(torch.float16).as_strided(size, strides, 64).copy_(near)
    for transposed in (False, True):
        results = [kernels.diff_augment(x, seeded("cpu"), POLICY, transposed=transposed) for x in (far, near)]
        assert torch.equal(*results)


@triton.jit
def count_kernel(to, C, H, W):
    tl.store(to, elements(C, H, W))


@on_devices
def test_an_image_may_have_more_than_2_31_elements(device: str) -> None:
    """Fails where they are counted in int32: the mean would have another sign."""
    for size in ((3, 2**15, 2**15), (64, 2**20, 2**20), (1, 1, 1)):
        count = torch.empty(1, device=device)
        count_kernel[(1,)](count, *size)
        assert count.item() == math.prod(size)


@on_devices
@pytest.mark.parametrize("planted", ["another image's draws", "brightness in a gradient", "translated the other way"])
def test_a_planted_error_is_caught(
    device: str, numbers: Numbers, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, rng = numbers(1, 4, 3, 16, 24, device=device), seeded(device)
    assert judge(x, rng, POLICY) is None
    right = kernels.diff_augment

    def wrong(x: Tensor, rng: Tensor, order: str, *, transposed: bool, lifted: bool, channels_last: bool) -> Tensor:
        if planted == "another image's draws":
            return right(x.roll(1, 0), rng, order, transposed=transposed, lifted=lifted).roll(-1, 0)
        if planted == "brightness in a gradient" and not transposed:
            return right(x, rng, order, lifted=True)
        if planted == "translated the other way" and transposed:
            return right(x, rng, ",".join(order.split(",")[::-1]), lifted=False)
        return right(x, rng, order, transposed=transposed, lifted=lifted)

    monkeypatch.setattr(kernels, "diff_augment", wrong)
    assert judge(x, rng, POLICY) is not None
