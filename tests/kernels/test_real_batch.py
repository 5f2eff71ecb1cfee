"""Batches by the kernel against the reference: the same bits, but for the rounding of normal numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import check
from fastgan.ops import streams
from fastgan.ops.permutation import permuted
from fastgan.ops.real_batch import chosen, mirrored, noises, normalised

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import real_batch as kernels
from fastgan.kernels import streams as device_streams
from fastgan.kernels.permutation import permuted as permuted_there

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)
SIGMA = 0.25


@triton.jit
def permuted_kernel(position, out, n, seed_low, seed_high, epoch, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, permuted_there(tl.load(position + at).to(tl.int32), n, seed_low, seed_high, tl.load(epoch)))


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 9) | st.integers(1, 2**31 - 1) | st.sampled_from((2**30, 2**31 - 1)),
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**56 - 1),
)
def test_the_same_order(device: str, n: int, seed: int, epoch: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**60)
    position = torch.randint(0, n, (16,), generator=generator).to(device)
    position[:2] = torch.tensor([0, n - 1])
    out, at = torch.full_like(position, -1), torch.tensor(epoch, device=device)
    permuted_kernel[(1,)](position, out, n, *device_streams.halves(seed), at, 16)
    assert torch.equal(out, permuted(position, n, seed, at))


def test_purposes_have_one_number_on_both_floors() -> None:
    for name in ("ORDER", "FLIP", "NOISE", "LATENT", "LABEL", "COUNT_BITS"):
        assert getattr(device_streams, name).value == getattr(streams, name)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**32 - 1, -(2**31) - 1, -(2**63), 2**63 - 1])
def test_halves_of_a_seed(seed: int) -> None:
    low, high = device_streams.halves(seed)
    assert (high << 32) + (low & 0xFFFFFFFF) == seed
    assert all(-(2**31) <= half < 2**31 for half in (low, high))


def samples(shape: tuple[int, ...], stored: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if stored == torch.uint8:
        return torch.randint(0, 256, shape, dtype=stored, generator=generator).to(device)
    return torch.randn(shape, generator=generator).to(stored).to(device)


def room(shape: tuple[int, ...], dtype: torch.dtype, device: str, last: bool) -> Tensor:
    """Every other row of NaN, dense within a row."""
    layout = torch.channels_last if last else torch.contiguous_format
    poisoned = torch.full((2 * shape[0], *shape[1:]), float("nan"), dtype=dtype, device=device)
    return poisoned.contiguous(memory_format=layout)[::2]


def wanted(
    images: Tensor, clock: Tensor, rows: int, seed: int, site: tuple[int, int], flip: bool, noise: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The batch by the formula, noise formed in ``dtype``."""
    batch = images[chosen(clock, n=len(images), batch_size=rows, seed=seed, site=site)]
    batch = normalised(batch) if batch.dtype == torch.uint8 else batch.float()
    count = streams.count(clock, site)
    if flip:
        turned = mirrored(rows, streams.rng(streams.FLIP, count, seed)).view(-1, 1, 1, 1)
        batch = torch.where(turned, batch.flip(-1), batch)
    if noise is None:
        return batch.to(dtype)
    return batch.to(dtype) + noise * noises(batch.shape, streams.rng(streams.NOISE, count, seed), dtype)


def judge(images: Tensor, clock: Tensor, out: Tensor, last: bool, wrong: dict[str, Any], **how: Any) -> str | None:
    """Say what is wrong with a batch in ``out``, which the kernel forms with ``wrong``; None if nothing is."""
    rows, noise = len(out), how.get("noise")
    labels = torch.arange(len(images), device=images.device) * 3
    given = {"clock": clock, "channels_last": last, **how, **wrong}
    picked = kernels.real_batch(images, out=out, labels=labels, **given)
    index = chosen(clock, n=len(images), batch_size=rows, seed=how["seed"], site=how["site"])
    if not torch.equal(picked, labels[index]):
        return "labels of other samples"
    base = wanted(images, clock, rows, how["seed"], how["site"], how["flip"], noise, torch.float32)
    if noise is None:
        return None if torch.equal(out, base.to(out.dtype)) else "other bits"
    exact = wanted(images, clock, rows, how["seed"], how["site"], how["flip"], noise, torch.float64)
    return check(out.contiguous(), base.to(out.dtype), exact).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_the_reference(device: str, data: st.DataObject) -> None:
    points = data.draw(st.booleans())
    size = st.integers(1, 9)
    each = (data.draw(st.integers(1, 70)),) if points else tuple(data.draw(st.tuples(st.integers(1, 5), size, size)))
    n, last = data.draw(st.integers(1, 40)), not points and data.draw(st.booleans())
    stored = data.draw(st.sampled_from((torch.uint8, torch.uint8, *DTYPES[device])))
    images = samples((n, *each), stored, device)
    noise = torch.tensor(SIGMA, device=device) if data.draw(st.booleans()) else None
    per_step = data.draw(st.integers(1, 3))
    how = {"seed": data.draw(st.integers(-(2**63), 2**63 - 1)), "noise": noise}
    how |= {
        "site": (per_step, data.draw(st.integers(0, per_step - 1))),
        "flip": not points and data.draw(st.booleans()),
    }
    clock = torch.tensor(data.draw(st.integers(0, 50) | st.integers(0, 2**40)), device=device)
    out = room((data.draw(st.integers(1, n)), *each), data.draw(st.sampled_from(DTYPES[device])), device, last)
    assert judge(images, clock, out, last, {}, **how) is None
    assert out._base is not None and out._base[1::2].isnan().all()  # nothing beside it


@on_devices
def test_a_ring_of_batches_is_read_in_its_order(device: str) -> None:
    images, sigma = samples((40, 3, 5, 6), torch.uint8, device), torch.tensor(SIGMA, device=device)
    labels, ring = torch.arange(40, device=device), torch.zeros(3 * 8, 3, 5, 6, dtype=torch.uint8, device=device)
    marks, how = labels.new_zeros(3 * 8), {"seed": 2, "site": (2, 1), "flip": True, "noise": sigma}
    for ticks in (0, 1, 3, 2**40):
        clock, at = torch.tensor(ticks, device=device), (2 * ticks + 1) % 3 * 8
        index = chosen(clock, n=40, batch_size=8, seed=2, site=(2, 1))
        ring[at : at + 8], marks[at : at + 8] = images[index], index
        drawn, wanted = (room((8, 3, 5, 6), torch.float32, device, True) for _ in range(2))
        assert torch.equal(kernels.real_batch(ring, clock, drawn, labels=marks, in_order=True, **how), index)
        kernels.real_batch(images, clock, wanted, labels=labels, **how)
        assert torch.equal(drawn, wanted)


@on_devices
def test_a_ring_of_parts_is_read_in_its_order(device: str) -> None:
    images, sigma = samples((40, 3, 5, 6), torch.uint8, device), torch.tensor(SIGMA, device=device)
    labels, how = torch.arange(40, device=device), {"seed": 2, "site": (2, 1), "flip": True, "noise": sigma}
    for first, rows in ((0, 3), (3, 5)):
        ring, marks = images.new_zeros(3 * rows, 3, 5, 6), labels.new_zeros(3 * rows)
        for ticks in (0, 1, 2**40):
            clock, at = torch.tensor(ticks, device=device), (2 * ticks + 1) % 3 * rows
            index = chosen(clock, n=40, batch_size=8, seed=2, site=(2, 1))[first:][:rows]
            ring[at : at + rows], marks[at : at + rows] = images[index], index
            drawn, wanted = (room((rows, 3, 5, 6), torch.float32, device, True) for _ in range(2))
            its = kernels.real_batch(ring, clock, drawn, labels=marks, in_order=True, part=(8, first), **how)
            kernels.real_batch(images, clock, wanted, labels=labels, part=(8, first), **how)
            assert torch.equal(drawn, wanted) and torch.equal(its, index)


@on_devices
@pytest.mark.parametrize("last, noisy", [(True, True), (True, False), (False, True), (False, False)])
def test_samples_of_several_tiles(device: str, last: bool, noisy: bool) -> None:
    images, clock = samples((7, 3, 33, 31), torch.uint8, device), torch.tensor(4, device=device)
    noise = torch.tensor(SIGMA, device=device) if noisy else None
    out = room((3, 3, 33, 31), torch.float32, device, last)
    assert judge(images, clock, out, last, {}, seed=2, site=(1, 0), flip=True, noise=noise) is None


@on_devices
def test_every_pixel_has_the_data_sets_bits(device: str) -> None:
    images = torch.arange(256, dtype=torch.uint8, device=device)[None]
    out = torch.full((1, 256), float("nan"), device=device)
    kernels.real_batch(images, torch.tensor(0, device=device), out, seed=0, site=(1, 0))
    assert torch.equal(out.cpu(), (torch.arange(256).float() / torch.tensor(127.5) - 1)[None])


@on_devices
@pytest.mark.parametrize("bug", ["seed", "site", "clock", "flip", "noise", "layout"])
def test_a_wrong_batch_is_caught(device: str, bug: str) -> None:
    """The proof has teeth."""
    clock, sigma = torch.tensor(4, device=device), torch.tensor(SIGMA, device=device)
    how = {"seed": 2, "site": (2, 1), "flip": True, "noise": sigma}
    wrong: dict[str, Any] = {
        "seed": {"seed": 3},
        "site": {"site": (2, 0)},
        "clock": {"clock": clock + 1},
        "flip": {"flip": False},
        "noise": {"noise": sigma * 1.00001},
        "layout": {"channels_last": True},
    }[bug]
    images = samples((40, 3, 5, 6), torch.uint8, device)
    for changed in (wrong, {}):
        out = room((8, 3, 5, 6), torch.float32, device, False)
        assert (judge(images, clock, out, False, changed, **how) is not None) == bool(changed)


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Callable[..., Tensor]) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    memory, clock, how = sparse(torch.uint8), torch.tensor(0), {"seed": 1, "site": (1, 0)}
    each, n = 2**12, 2**20
    images = memory[: n * each].view(n, each)
    index = chosen(clock, n=n, batch_size=4, **how)
    assert index.max() >= n // 2
    images[index] = samples((4, each), torch.uint8, "cpu")
    out = torch.full((4, each), float("nan"))
    kernels.real_batch(images, clock, out, **how)
    assert torch.equal(out, normalised(images[index]))
    images[index] = 0

    few = samples((9, 6), torch.uint8, "cpu")
    far = memory.view(torch.float16).as_strided((9, 6), (2**28, 1))  # row 8 begins 2^31 elements on
    kernels.real_batch(few, clock, far, **how)
    near = torch.empty(9, 6, dtype=torch.float16)
    kernels.real_batch(few, clock, near, **how)
    assert torch.equal(far, near)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(60000, 1, 28, 28), (5000, 3, 64, 64), (3000, 3, 65, 63), (100000, 2)])
def test_larger_sizes(shape: tuple[int, ...]) -> None:
    images, clock, image = samples(shape, torch.uint8, "cuda"), torch.tensor(77, device="cuda"), len(shape) == 4
    for dtype in DTYPES["cuda"]:
        for noise in (None, torch.tensor(SIGMA, device="cuda")):
            out = room((128, *shape[1:]), dtype, "cuda", image)
            assert judge(images, clock, out, image, {}, seed=9, site=(1, 0), flip=image, noise=noise) is None


@on_devices
@pytest.mark.parametrize("last", [True, False])
def test_a_part_of_a_batch_has_its_bits(device: str, last: bool) -> None:
    images, clock = samples((23, 3, 5, 6), torch.uint8, device), torch.tensor(7, device=device)
    how = {"seed": 2, "site": (2, 1), "flip": True, "noise": torch.tensor(SIGMA, device=device), "channels_last": last}
    labels, whole = torch.arange(23, device=device), room((9, 3, 5, 6), torch.float32, device, last)
    its = kernels.real_batch(images, clock, whole, labels=labels, **how)
    for first, rows in ((0, 4), (4, 5), (8, 1)):
        out = room((rows, 3, 5, 6), torch.float32, device, last)
        picked = kernels.real_batch(images, clock, out, labels=labels, part=(9, first), **how)
        assert torch.equal(out, whole[first:][:rows]) and torch.equal(picked, its[first:][:rows])
