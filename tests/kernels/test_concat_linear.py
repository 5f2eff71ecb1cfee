"""The kernels of concatenated inputs by themselves: parts of every kind against fp64, tiles, bounds, addresses."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import concat_linear as kernels
from fastgan.kernels.tile import Config, Problem, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "columns", "steps", "one row")
KINDS = (*LAYOUTS, "embedded", "embedded by int32 steps", "embedded, one for all")
on_devices = pytest.mark.parametrize("device", DEVICES)

Part = tuple[Tensor, Tensor | None]
Case = tuple[list[Part], Tensor, Tensor | None, Tensor, str, float]  # parts, w, bias, gy, activation, slope


def operand(rows: int, cols: int, layout: str, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random numbers in one of the layouts that people pass."""
    generator = torch.Generator().manual_seed(seed)
    size = {"columns": (cols, rows), "steps": (2 * rows, 3 * cols), "one row": (1, cols)}.get(layout, (rows, cols))
    values = torch.randn(size, generator=generator).to(dtype).to(device)
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "one row": lambda v: v.expand(rows, cols)}
    return views.get(layout, lambda v: v)(values)


def part(rows: int, cols: int, kind: str, dtype: torch.dtype, device: str, seed: int) -> Part:
    """A part in one of the layouts, or a table of 5 rows and an index in one of three."""
    if kind in LAYOUTS:
        return operand(rows, cols, kind, dtype, device, seed), None
    index = torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(seed)).to(device)
    if kind == "embedded by int32 steps":
        index = index.int().repeat_interleave(2)[::2]
    elif kind == "embedded, one for all":
        index = torch.full((1,), 4, device=device).expand(rows)
    return operand(5, cols, LAYOUTS[seed % 3], dtype, device, seed), index


def formed(parts: list[Part]) -> Tensor:
    return torch.cat([values if index is None else F.embedding(index, values) for values, index in parts], 1)


def make(
    device: str, dtype: torch.dtype, M: int, N: int, sizes: tuple[int, ...], kinds: tuple[str, ...],
    activation: str = "leaky_relu", slope: float = 0.2, bias: bool = True, layouts: tuple[str, str] = ("rows", "rows"),
) -> Case:  # fmt: skip
    parts = [part(M, k, kind, dtype, device, seed) for seed, (k, kind) in enumerate(zip(sizes, kinds, strict=True))]
    return (
        parts,
        operand(N, sum(sizes), layouts[0], dtype, device, 10),
        operand(1, N, "rows", dtype, device, 11)[0] if bias else None,
        operand(M, N, layouts[1], dtype, device, 12),
        activation,
        slope,
    )


def plain(case: Case, saved: Tensor | None) -> list[Tensor]:
    """Forward and the gradients of W and b in the operands' own dtype, by torch."""
    parts, w, bias, gy, activation, slope = case
    x = formed(parts)
    g = times_derivative(gy, saved, activation, slope)
    return [activate(F.linear(x, w, bias), activation, slope), g.t() @ x, g.sum(0)]


def double(case: Case) -> Any:
    parts, *rest = case
    wide = [(values.double(), index) for values, index in parts]
    return wide, *(t.double() if isinstance(t, Tensor) else t for t in rest)


def by_kernels(case: Case) -> tuple[list[Tensor], Tensor | None]:
    parts, w, bias, gy, activation, slope = case
    y, pre = kernels.concat_linear_fwd(parts, w, bias, activation, slope, slope < 0)
    saved = None if activation == "none" else y if pre is None else pre
    gw, gb = kernels.concat_linear_bwd_weight(gy, saved, parts, activation, slope, True)
    assert gb is not None
    return [y, gw, gb], saved


def judge(case: Case) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got, saved = by_kernels(case)
    exact = plain(double(case), None if saved is None else saved.double())
    return check(got, plain(case, saved), exact).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    size = st.integers(1, 40) | st.sampled_from((1, 2, 16, 32, 64))
    M, N = data.draw(size | st.just(128)), data.draw(size)
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    sizes = [data.draw(st.sampled_from((0, 1)) | size) for _ in kinds]
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    slope = data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    layouts = data.draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 2))
    how = (activation, slope, data.draw(st.booleans()), layouts)
    case = make(device, data.draw(st.sampled_from(DTYPES[device])), M, N, tuple(sizes), tuple(kinds), *how)
    assert judge(case) is None


@on_devices
@pytest.mark.filterwarnings("error:divide by zero")  # the interpreter gets 0 where a GPU gets anything
@pytest.mark.parametrize("sizes", [size for size in itertools.product((0, 5), repeat=4) if 0 in size])
def test_sizes_of_zero(device: str, sizes: tuple[int, int, int, int]) -> None:
    M, N, *k = sizes
    for kinds in (("rows", "embedded"), ("embedded", "rows")):
        assert judge(make(device, torch.float32, M, N, tuple(k), kinds, "sigmoid")) is None


@on_devices
@pytest.mark.parametrize(
    "target, dtype",
    [(Target(80, "tf32"), torch.float16), (Target(86, "tf32"), torch.float16), (Target(80, "ieee"), torch.float32)],
)
def test_every_tile(device: str, target: Target, dtype: torch.dtype) -> None:
    """Each tile that a GPU's dispatcher may choose, whatever these sizes would make it choose."""
    case = make(device, dtype, 35, 33, (18, 34, 3), ("rows", "embedded", "one row"))
    parts, w, bias, gy, *how = case
    (y, *_), saved = by_kernels(case)
    base, exact = plain(case, saved), plain(double(case), y.double())
    empty = [torch.empty(size, dtype=dtype, device=device) for size in (y.shape, w.shape, (33,))]
    for vectors in (True, False):
        forward = Problem("", 35, 33, 55, dtype.itemsize, target, False, vectors, splits=True)
        for tile in fewer(candidates(forward), device):
            out = empty[0].fill_(float("nan"))
            kernels.fwd_launch(w, bias, out, None, *how, target, parts=parts, config=tile).run()
            assert check(out, base[0], exact[0]).why is None, tile
        backward = Problem("", 33, 55, 35, dtype.itemsize, target, True, vectors, splits=True)
        for tile in fewer(candidates(backward), device):
            gw, gb = (t.fill_(float("nan")) for t in empty[1:])
            kernels.bwd_weight_launch(gy, saved, gw, gb, *how, target, parts=parts, config=tile).run()
            assert check([gw, gb], base[1:], exact[1:]).why is None, tile


def fewer(tiles: tuple[Config, ...], device: str) -> list[Config]:
    """Leave out on the CPU those that take the interpreter many programs and try nothing that others do not."""
    return [tile for tile in tiles if device == "cuda" or tile.split <= 4]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("M, N, sizes", [(4096, 512, (784, 10)), (1000, 1, (1034, 64)), (65536, 3, (2, 10))])
def test_larger_sizes(dtype: torch.dtype, M: int, N: int, sizes: tuple[int, int]) -> None:
    assert judge(make("cuda", dtype, M, N, sizes, ("rows", "embedded"))) is None


@on_devices
def test_same_bits_twice(device: str) -> None:
    case = make(device, torch.float32, 70, 40, (50, 9, 3), ("rows", "embedded", "one row"), "tanh")
    for first, second in zip(by_kernels(case)[0], by_kernels(case)[0], strict=True):
        assert torch.equal(first, second)


@on_devices
@pytest.mark.parametrize("at", range(3))
def test_the_parts_next_door_are_caught(device: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: an index that is off by one in one place, or a part that begins one column late, fails it."""
    case = make(device, torch.float32, 33, 20, (18, 4, 7), ("embedded", "embedded", "embedded"))
    assert judge(case) is None
    right = kernels.described

    def late(parts: list[Part]) -> dict[str, object]:
        told = right(parts)
        told[f"x{at}"] = parts[at][0].roll(1, 1)
        return told

    def wrong(parts: list[Part]) -> dict[str, object]:
        told, (_, index) = right(parts), parts[at]
        assert index is not None
        told[f"index{at}"] = torch.cat([index[:-1], (index[-1:] + 1) % 5])
        return told

    for mistake in (late, wrong):
        monkeypatch.setattr(kernels, "described", mistake)
        assert judge(case) is not None


@on_devices
@pytest.mark.parametrize("wrong", [-1, 5, 2**31, -(2**40)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_index_outside_the_table_is_seen_and_reads_nothing(device: str, wrong: int, activation: str) -> None:
    """Its row of y is NaN; the other rows, and its share of gW, are as if it were not there."""
    parts, w, bias, gy, *how = make(device, torch.float32, 9, 6, (4, 3), ("rows", "embedded"), activation)
    values, (table, index) = parts[0], parts[1]
    assert index is not None
    index[6] = wrong
    y, _ = kernels.concat_linear_fwd(parts, w, bias, *how)
    keep = torch.arange(9, device=device) != 6
    others = [(values[0][keep], None), (table, index[keep])]
    assert y[6].isnan().all()
    assert torch.equal(y[keep], kernels.concat_linear_fwd(others, w, bias, *how)[0])
    gw, _ = kernels.concat_linear_bwd_weight(gy, None, [(table, index)], *how, False)
    expected, _ = kernels.concat_linear_bwd_weight(gy[keep], None, others[1:], *how, False)
    torch.testing.assert_close(gw, expected)


FAR = 2**26  # elements from one row to the next: row 32, the first of the second tile, begins 2^31 elements on


@pytest.fixture
def sparse(tmp_path: Path) -> Tensor:
    """4.3 * 10^9 elements in a file with holes: only the pages that are written take room."""
    size = 2**32 + 3 * FAR
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2 * size)
    return torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.float16)


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Tensor) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    index = torch.arange(33, -1, -1)
    near = [operand(34, cols, "rows", torch.float16, "cpu", seed) for seed, cols in enumerate((3, 2, 5, 34))]
    far = [sparse.as_strided(t.shape, (FAR, 1), 2**31 + 64 * seed).copy_(t) for seed, t in enumerate(near)]
    (x, table, w, gy), (x_far, table_far, w_far, gy_far) = near, far
    expected, _ = by_kernels(([(x, None), (table, index)], w, None, gy, "leaky_relu", 0.2))
    results, _ = by_kernels(([(x_far, None), (table_far, index)], w_far, None, gy_far, "leaky_relu", 0.2))
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.interpret
def test_columns_of_w_beyond_2_31_elements(sparse: Tensor) -> None:
    """The second and third part's first columns of a W that is stored by columns lie far apart too."""
    kinds = ("rows", "rows", "embedded")
    parts, w, _, _, *how = make("cpu", torch.float16, 5, 3, (33, 1, 1), kinds)
    far = sparse.as_strided(w.shape, (1, FAR), 2**31).copy_(w)
    assert torch.equal(*(kernels.concat_linear_fwd(parts, weight, None, *how)[0] for weight in (far, w)))
