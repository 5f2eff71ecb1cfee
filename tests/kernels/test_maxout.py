"""The maxout kernels by themselves: every tile, layout, size and number of pieces against fp64, and their addresses."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check

pytest.importorskip("triton")
from fastgan.kernels import maxout as kernels
from fastgan.kernels.tile import Problem, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("rows", "columns", "steps", "expanded")
on_devices = pytest.mark.parametrize("device", DEVICES)
Case = tuple[Tensor, Tensor, Tensor | None, Tensor, int]  # x, w, bias, gy, pieces


def operand(rows: int, cols: int, layout: str, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random numbers in one of the layouts that people pass."""
    generator = torch.Generator().manual_seed(seed)
    size = {"rows": (rows, cols), "columns": (cols, rows), "steps": (2 * rows, 3 * cols), "expanded": (1, 1)}[layout]
    values = torch.randn(size, generator=generator).to(dtype).to(device)
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "expanded": lambda v: v.expand(rows, cols)}
    return views.get(layout, lambda v: v)(values)


def make(
    device: str, dtype: torch.dtype, sizes: tuple[int, int, int, int], layouts: tuple[str, str, str], bias: bool = True
) -> Case:
    (M, N, K, pieces), (x, w, gy) = sizes, layouts
    return (
        operand(M, K, x, dtype, device, 0),
        operand(N * pieces, K, w, dtype, device, 1),
        operand(1, N * pieces, "rows", dtype, device, 2)[0] if bias else None,
        operand(M, N, gy, dtype, device, 3),
        pieces,
    )


def plain(case: Case, index: Tensor) -> list[Tensor]:
    """Largest pieces, named pieces and the three gradients through them in the operands' own dtype, by torch."""
    x, w, bias, gy, pieces = case
    every = F.linear(x, w, bias).view(*gy.shape, pieces)
    at = index.long().unsqueeze(-1)
    g = torch.zeros_like(every).scatter(-1, at, gy.unsqueeze(-1)).view(gy.shape[0], w.shape[0])
    return [every.amax(-1), every.gather(-1, at).squeeze(-1), g @ w, g.t() @ x, g.sum(0)]


def double(case: Case) -> Case:
    x, w, bias, gy, pieces = case
    return x.double(), w.double(), None if bias is None else bias.double(), gy.double(), pieces


def by_kernels(case: Case) -> tuple[list[Tensor], Tensor]:
    x, w, bias, gy, pieces = case
    y, index = kernels.maxout_fwd(x, w, bias, pieces)
    assert index is not None
    named = kernels.maxout_select(x, w, bias, index, pieces)
    gx = kernels.maxout_bwd_input(gy, index, w, pieces)
    gw, gb = kernels.maxout_bwd_weight(gy, index, x, pieces, True)
    assert gb is not None
    return [y, named, gx, gw, gb], index


def judge(case: Case) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is.

    The largest piece is judged as a value, and the index by the value of the piece that it names: of two that nearly
    tie either may be taken.
    """
    with Poisoned():
        got, index = by_kernels(case)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < case[-1]:
        return "the index names no piece"
    base, exact = plain(case, index), plain(double(case), index)
    return check(got, base, exact).why or check(got[1], base[0], exact[0]).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(*[st.integers(1, 50) | st.sampled_from((16, 32, 64))] * 3, st.integers(1, 6)))
    assume(sizes[0] * sizes[1] >= 8)  # a single output may be a sum that cancels: then there is nothing to measure by
    layouts = data.draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    assert judge(make(device, dtype, sizes, layouts, data.draw(st.booleans()))) is None


@on_devices
@pytest.mark.filterwarnings("error:divide by zero")  # the interpreter gets 0 where a GPU gets anything
@pytest.mark.parametrize("sizes", [(3, 300, 0), *(size for size in itertools.product((0, 5), repeat=3) if 0 in size)])
def test_sizes_of_zero(device: str, sizes: tuple[int, int, int]) -> None:
    assert judge(make(device, torch.float32, (*sizes, 3), ("rows",) * 3)) is None


@on_devices
@pytest.mark.parametrize("pieces", [1, 127])
def test_one_piece_and_as_many_as_there_may_be(device: str, pieces: int) -> None:
    assert judge(make(device, torch.float32, (5, 3, 4, pieces), ("rows",) * 3)) is None


@on_devices
@pytest.mark.parametrize(
    "target, dtype",
    [(Target(80, "tf32"), torch.float16), (Target(86, "tf32"), torch.float16), (Target(80, "ieee"), torch.float32)],
)
def test_every_tile(device: str, target: Target, dtype: torch.dtype) -> None:
    """Each tile that a GPU's dispatcher may choose, whatever these sizes would make it choose."""
    M, N, K, pieces = 133, 70, 35, 2
    case = make(device, dtype, (M, N, K, pieces), ("rows",) * 3)
    x, w, bias, gy, _ = case
    _, index = by_kernels(case)
    base, exact = plain(case, index), plain(double(case), index)
    blank = lambda *size: torch.full(size, float("nan"), dtype=dtype, device=device)  # noqa: E731
    for vectors in (True, False):
        for tile in candidates(Problem("maxout_fwd", M, N, K, dtype.itemsize, target, vectors=vectors)):
            y, named, found = blank(M, N), blank(M, N), torch.full_like(index, -1)
            kernels.fwd_launch(x, w, bias, found, y, pieces, False, target, tile).run()
            kernels.fwd_launch(x, w, bias, index, named, pieces, True, target, tile).run()
            assert check([y, named], base[:2], exact[:2]).why is None, tile
            assert torch.equal(found, index), tile
        for tile in candidates(Problem("maxout_bwd", M, N, K, dtype.itemsize, target, True, vectors)):
            gx, gw, gb = blank(M, K), blank(N * pieces, K), blank(N * pieces)
            kernels.bwd_input_launch(gy, index, w, gx, pieces, target, tile).run()
            kernels.bwd_weight_launch(gy, index, x, gw, gb, pieces, target, tile).run()
            assert check([gx, gw, gb], base[2:], exact[2:]).why is None, tile


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("sizes", [(100, 240, 784, 5), (4096, 256, 512, 4), (65536, 3, 2, 2), (512, 1, 240, 5)])
def test_larger_sizes(dtype: torch.dtype, sizes: tuple[int, int, int, int]) -> None:
    assert judge(make("cuda", dtype, sizes, ("rows",) * 3)) is None


@on_devices
def test_same_bits_twice(device: str) -> None:
    case = make(device, torch.float32, (70, 40, 50, 3), ("rows",) * 3)
    for first, second in zip(by_kernels(case)[0], by_kernels(case)[0], strict=True):
        assert torch.equal(first, second)


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
def test_ties_and_non_finite_pieces_are_torchs(device: str) -> None:
    """The first of equal pieces, the first NaN, and -inf where there is nothing else."""
    nan, inf = float("nan"), float("inf")
    units = [[1, 1, 0], [0, 2, 2], [-1, -1, -1], [nan, 3, nan], [3, nan, inf], [-inf, -inf, -inf], [-inf, inf, inf]]
    bias = torch.tensor(units, device=device)
    x, w = torch.zeros(2, 4, device=device), torch.zeros(bias.numel(), 4, device=device)
    y, index = kernels.maxout_fwd(x, w, bias.flatten(), 3)
    values, first = bias.max(-1)
    torch.testing.assert_close(y, values.expand(2, -1), equal_nan=True, rtol=0, atol=0)
    assert index is not None and torch.equal(index.long(), first.expand(2, -1))


@on_devices
def test_the_index_is_written_only_where_it_is_asked_for(device: str) -> None:
    x, w, bias, _, pieces = make(device, torch.float16, (9, 7, 5, 3), ("rows",) * 3)
    y, index = kernels.maxout_fwd(x, w, bias, pieces, with_index=False)
    assert index is None and torch.equal(y, kernels.maxout_fwd(x, w, bias, pieces)[0])


@on_devices
@pytest.mark.parametrize("name", ["maxout_select", "maxout_bwd_input", "maxout_bwd_weight"])
def test_a_wrong_index_is_caught(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: a choice that is off by one row fails it."""
    case = make(device, torch.float32, (33, 20, 18, 3), ("rows",) * 3)
    assert judge(case) is None
    right, at = getattr(kernels, name), 3 if name == "maxout_select" else 1
    off = lambda *given: right(*given[:at], given[at].roll(1, 0), *given[at + 1 :])  # noqa: E731
    monkeypatch.setattr(kernels, name, off)
    assert judge(case) is not None


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
    sizes = ((34, 3), (34, 3), (34, 17))  # 17 units of 2 pieces: rows 32 and 33 of w belong to the last
    near = [operand(*size, "rows", torch.float16, "cpu", seed) for seed, size in enumerate(sizes)]
    far = [sparse.as_strided(t.shape, (FAR, 1), 2**31 + 64 * seed).copy_(t) for seed, t in enumerate(near)]
    results = [by_kernels((x, w, None, gy, 2)) for x, w, gy in (far, near)]
    for result, wanted in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(result, wanted)
    assert torch.equal(results[0][1], results[1][1])
