"""Index maps of convolutions against a list of every product, position, source and tap; and how parts are merged."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels.conv_map import (
    GATHER,
    PHASE,
    SPREAD,
    Axis,
    Geometry,
    axis_of,
    placed,
    placed_of_few,
    quotient,
    quotient_of_few,
    reciprocal,
    tap_of,
    within,
)
from fastgan.kernels.conv_norm import merged, room, summed
from fastgan.kernels.conv_product import row_step
from fastgan.kernels.norm import LANES

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
LANE = 64  # positions that the kernel below looks at: more than any phase here has


@triton.jit
def listing_kernel(
    out, most, source, size, kernel, stride, padding, dilation, common, inverse,
    MAP: tl.constexpr, UP: tl.constexpr, LANE: tl.constexpr,
):  # fmt: skip
    """Of one phase: its positions and taps; where each position is, and what it reads at each tap, by which."""
    SCALE: tl.constexpr = UP if MAP == "gather" else 1  # of the source
    phase = tl.program_id(0)
    positions, taps, first, spacing, step, base, jump = axis_of(
        phase, size, kernel, stride, padding, dilation, common, inverse, MAP, UP
    )
    own = out + phase * (2 + LANE + most * (1 + LANE))
    tl.store(own, positions)
    tl.store(own + 1, taps)
    i = tl.arange(0, LANE)
    place = i
    if MAP == "phase":
        place = phase + i * stride
    tl.store(own + 2 + i, tl.where(i < positions, place, -1))
    for j in range(taps):
        far, tap = tap_of(j, first, spacing, jump, MAP, UP)
        inside, at = within(i * step + base + far, source, SCALE)
        line = own + 2 + LANE + j * (1 + LANE)
        tl.store(line, tap)
        tl.store(line + 1 + i, tl.where(inside & (i < positions), at, -1))


def products(axis: Axis, map: str) -> Counter[tuple[int, int, int]]:
    """Every (place in the output, source, tap), from the definition of a convolution."""
    found: Counter[tuple[int, int, int]] = Counter()
    for p, r in itertools.product(range(axis.grid), range(axis.kernel)):
        h = p * axis.stride - axis.padding + r * axis.dilation
        if 0 <= h < axis.image * axis.up:
            found[(p, h // axis.up, r) if map == GATHER else (h // axis.up, p, r)] += 1
    return found


def listed(axis: Axis, map: str, device: str) -> tuple[list[int], Counter[tuple[int, int, int]]]:
    """Every place in the output, and every (place, source, tap), by the kernels' own index map."""
    values, phases, most = axis.arguments("a", map), axis.phases(map), axis.taps(map)
    out = torch.full((phases, 2 + LANE + most * (1 + LANE)), -1, dtype=torch.int32, device=device)
    source, size, *rest = values.values()
    listing_kernel[(phases,)](out, most, source, size, *rest, MAP=map, UP=axis.up, LANE=LANE)
    places: list[int] = []
    found: Counter[tuple[int, int, int]] = Counter()
    for positions, taps, *line in out.tolist():
        assert positions <= axis.positions(map) and taps <= most
        place, trips = line[:positions], line[LANE:]
        places += place
        for j in range(taps):
            tap, *read = trips[j * (1 + LANE) : (j + 1) * (1 + LANE)]
            found.update((at, of, tap) for at, of in zip(place, read, strict=False) if of >= 0)
    return places, found


def judge(axis: Axis, map: str, device: str) -> None:
    places, found = listed(axis, map, device)
    assert sorted(places) == list(range(axis.grid if map == GATHER else axis.image)), "each output once"
    assert found == products(axis, map), "each product once"


@st.composite
def axes(draw: st.DrawFn, up: int) -> Axis:
    """Also such as no convolution has: any grid with any image."""
    kernel, stride = draw(st.integers(1, 16)), draw(st.integers(1, 8)) if up == 1 else 1
    sizes = draw(st.integers(1, 25)), draw(st.integers(1, 12))
    return Axis(*sizes, kernel, stride, draw(st.integers(0, 9)), draw(st.integers(1, 8)), up)


@on_devices
@given(axis=axes(1), map=st.sampled_from([GATHER, PHASE]))
def test_each_product_once(device: str, axis: Axis, map: str) -> None:
    judge(axis, map, device)
    judge(Geometry(axis, axis).lone().w._replace(image=axis.image), map, device)


@on_devices
@given(data=st.data(), up=st.sampled_from([2, 3]), map=st.sampled_from([GATHER, SPREAD]))
def test_each_product_once_scaled_up(device: str, data: st.DataObject, up: int, map: str) -> None:
    judge(data.draw(axes(up)), map, device)


@triton.jit
def placed_kernel(out, tiles, samples, high, wide, BM: tl.constexpr):
    """Sample and position of each row of a tile, -1 where there is none; how many there are."""
    n, i, j, live, count = placed(tl.program_id(0), samples, high, wide, BM)
    own = out + tl.program_id(0) * (BM + 1)
    tl.store(own, count)
    tl.store(own + 1 + tl.arange(0, BM), tl.where(live, (n * high + i) * wide + j, -1).to(tl.int32))


@on_devices
@given(samples=st.integers(0, 5), high=st.integers(0, 7), wide=st.integers(0, 7))
def test_each_row_once(device: str, samples: int, high: int, wide: int) -> None:
    """In their order, tile after tile; none of a phase that is empty."""
    rows = samples * high * wide
    tiles = -(-rows // 16) + 2
    out = torch.full((tiles, 17), -2, dtype=torch.int32, device=device)
    placed_kernel[(tiles,)](out, tiles, samples, high, wide, BM=16)
    assert [row for _, *tile in out.tolist() for row in tile] == [*range(rows), *[-1] * (16 * tiles - rows)]
    assert [count for count, *_ in out.tolist()] == [min(max(rows - 16 * t, 0), 16) for t in range(tiles)]


@triton.jit
def placed_of_few_kernel(out, rows, area, wide, area_factor, area_shift, wide_factor, wide_shift, BM: tl.constexpr):
    """Row, sample and position of each row of a tile, -1 where there is none."""
    row, n, p, q, live = placed_of_few(
        tl.program_id(0), rows, area, wide, area_factor, area_shift, wide_factor, wide_shift, BM
    )
    place = (n * area + p * wide + q).to(tl.int32)
    tl.store(out + row, tl.where(live & (place == row) & (q < wide), row, -1))


@on_devices
@given(samples=st.integers(0, 5), high=st.integers(1, 7), wide=st.integers(1, 7))
def test_each_row_once_by_multiplication(device: str, samples: int, high: int, wide: int) -> None:
    rows = samples * high * wide
    tiles = -(-rows // 16) + 1
    out = torch.full((tiles * 16,), -2, dtype=torch.int32, device=device)
    factors = *reciprocal(high * wide), *reciprocal(wide)
    placed_of_few_kernel[(tiles,)](out, rows, high * wide, wide, *factors, BM=16)
    assert out.tolist() == [*range(rows), *[-1] * (16 * tiles - rows)]


@triton.jit
def dividing_kernel(x, out, divisor, factor, shift, FEW: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    value = tl.load(x + at)
    tl.store(out + at, quotient_of_few(value, divisor) if FEW else quotient(value, divisor, factor, shift))


@on_devices
@pytest.mark.parametrize("few", [True, False])
@given(
    divisor=st.one_of(
        st.integers(1, 300),
        st.integers(1, 2**22),
        st.sampled_from([2**k + d for k in range(2, 22) for d in (-1, 0, 1)]),
    ),
    data=st.data(),
)
def test_division_without_one(device: str, few: bool, divisor: int, data: st.DataObject) -> None:
    """About multiples of the divisor, where a rounding would tell, up to the largest that it is for."""
    most = 2**22 - 1 if few else 2**31 - 1
    near = [min(max(data.draw(st.integers(0, most // divisor)) * divisor + d, 0), most) for d in (-1, 0, 1)]
    x = torch.tensor([0, *near, most - 1, most, data.draw(st.integers(0, most)), 1], dtype=torch.int32, device=device)
    out = torch.full_like(x, -1)
    dividing_kernel[(1,)](x, out, divisor, *reciprocal(divisor), FEW=few, COUNT=8)
    assert out.tolist() == [value // divisor for value in x.tolist()]


def test_the_step_from_row_to_row() -> None:
    """One for all rows of a tensor whose channels are innermost, or that is a part of its channels; None else."""
    image = torch.empty(3, 8, 4, 5).to(memory_format=torch.channels_last)
    assert row_step(image) == 8 and row_step(image[:, :3]) == 8
    assert row_step(torch.empty(3, 8, 4, 5)) is None
    assert row_step(image[:, :, :, :4]) is None and row_step(image[:, :, :3]) is None and row_step(image[::2]) is None
    assert row_step(image[:, :, :1, :1]) == 8 * 20 and row_step(image[:1, :, 1:2, 2:3]) == 0
    assert row_step(torch.empty(1, 8, 1, 1).expand(3, 8, 4, 5)) == 0


@given(axis=axes(1))
def test_a_phase_has_as_many_taps_as_is_said(axis: Axis) -> None:
    """The most of any phase; and phases of a lone position have one at most."""
    taps = Counter((h, r) for h, _, r in products(axis._replace(image=300, padding=0, grid=300), PHASE))
    by_place = Counter(h for h, _ in taps)
    assert max(by_place.values()) == axis.taps(PHASE)
    lone = Geometry(axis._replace(grid=1), axis._replace(grid=1)).lone()
    assert lone.taps(PHASE) == 1 and lone.h.phases(PHASE) == (axis.kernel - 1) * axis.dilation + 1
    assert Geometry(axis._replace(grid=2), axis._replace(grid=2)).lone().h.stride == axis.stride


def test_sizes_of_a_geometry() -> None:
    geometry = Geometry(Axis(9, 5, 3, 2, 1), Axis(7, 7, 4, 1, 2))
    assert [geometry.phases(map) for map in (GATHER, PHASE, SPREAD)] == [1, 2, 1]
    assert [geometry.positions(map) for map in (GATHER, PHASE)] == [35, 5 * 7]
    assert [geometry.taps(map) for map in (GATHER, PHASE)] == [12, 2 * 4]
    assert [geometry.out(map) for map in (GATHER, PHASE)] == [(5, 7), (9, 7)]


def test_room_for_the_parts_of_many_tiles() -> None:
    """A part for each tile and each block of them; a ticket for each block, and one for all, of every column."""
    assert room(1, 1, 1) == (2, 2)
    assert room(2, LANES, 3) == (2 * LANES + 2, 3 * 3)
    assert room(2, LANES + 1, 3) == (2 * (LANES + 1) + 4, 3 * 5)


@triton.jit
def merging_kernel(parts, sums, out, tiles, C, BC: tl.constexpr, LANES: tl.constexpr):
    c = tl.arange(0, BC)
    inside = c < C
    seen, mean, squares = merged(parts, tiles, c, inside, C, BC, LANES)
    shift, scale = summed(sums, tiles, c, inside, C, BC, LANES)
    tl.store(out + c, seen, mask=inside)
    tl.store(out + C + c, mean, mask=inside)
    tl.store(out + 2 * C + c, squares / tl.maximum(seen, 1.0), mask=inside)
    tl.store(out + 3 * C + c, shift, mask=inside)
    tl.store(out + 4 * C + c, scale, mask=inside)


@on_devices
@pytest.mark.parametrize("tiles", [1, LANES, 3 * LANES + 5])
def test_parts_of_any_size_are_merged(device: str, tiles: int) -> None:
    """More than are taken at once, of 0 to 16 rows each, about a mean of 1000."""
    generator = torch.Generator().manual_seed(tiles)
    counts = [7, *torch.randint(0, 17, (tiles - 1,), generator=generator).tolist()]
    rows = [1000 + torch.randn(count, 5, generator=generator) for count in counts]
    parts = torch.stack(
        [
            torch.stack([torch.full((5,), float(len(r))), m := r.sum(0) / max(len(r), 1), (r - m).square().sum(0)])
            for r in rows
        ]
    )
    out, every = torch.full((5, 5), float("nan"), device=device), torch.cat(rows).double()
    merging_kernel[(1,)](parts.to(device), parts[:, 1:].contiguous().to(device), out, tiles, 5, BC=8, LANES=LANES)
    exact = [torch.full((5,), float(len(every))), every.mean(0), every.var(0, unbiased=False)]
    wanted = torch.stack([*(part.double() for part in exact), *parts[:, 1:].double().sum(0)])
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=1e-4, atol=0)
