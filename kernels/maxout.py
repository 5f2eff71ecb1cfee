"""A maxout layer (Goodfellow et al. 2013) in one launch, and the two launches of its backward pass.

    z     [M, N, P] = x [M, K] W [N P, K]^T + b [N P]       row u P + j of W and b is piece j of unit u
    y     [M, N]    = max over P of z,  index [M, N] its piece
    z is never stored, nor is its gradient gz [M, N, P] = gy [M, N] where index = j, else 0:
    gx [M, K]   = gz W
    gW [N P, K] = gz^T x,   gb [N P] = sum over M of gz     by the programs of the first K tile, in the same pass

With an index given, the first kernel returns the products of those pieces instead of the largest ones: the gradient
with respect to gy. Of equal pieces the first is taken; NaN is larger than any number, as in torch.max.

Contract: bf16, fp16 or fp32, one dtype for all operands; x, W and gy by any strides, ``index`` int8 and contiguous, so
P is at most 127; outputs are contiguous, in the operands' dtype (gW and gb in fp32, too), accumulated in fp32. Pieces
are compared in fp32, before rounding. fp32 operands are multiplied as PyTorch's TF32 setting says. Any of M, N, K may
be 0. Sums run in a fixed order, without atomics: the same operands give the same bits. Addresses are int64 from the
program's number on, so operands may have more than 2^31 elements.

Work, in elements and multiply-adds; the index is a byte each:
    forward       reads MK + NPK + NP,            writes MN + MN bytes    MNPK
    select        reads MK + NPK + NP, MN bytes,  writes MN               MNPK
    input grad    reads MN + NPK, MN bytes,       writes MK               MNPK
    weight grad   reads MN + MK, MN bytes,        writes NPK + NP         MNPK
Operands are read once per tile across, gy and index once for each piece too; programs run in groups, so that the
rereads come from L2.

Registers a thread, the most of a sample of the variants on sm_80, 86, 90, 100 and 120 (Triton 3.7.1), nothing spilled:
    tile (half as wide forward)    forward   input grad   weight grad
    128x128, 16-bit / TF32       248 / 225    242 / 188     220 / 220
    128x64 (99 KB, or before sm_90)      -    162 / 116     202 / 168
    64x64, 32x32                 180 / 214    226 / 186     230 / 139
    64x64, 32x32 in IEEE         226 / 124    226 / 186     255 / 200
wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.tile import GROUP, Config, Problem, Target, candidates, choose, regular, tile_of
from fastgan.kernels.variant import Variant

MOST_PIECES = 127  # that an int8 can number
LEAST_COLS = 32  # of a forward tile


@triton.jit(do_not_specialize=["M", "pieces"])
def maxout_fwd_kernel(
    x, w, bias, index, y, M, N, K, pieces, x_m, x_k, w_n, w_k,
    SELECT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y and, where ``index`` is given, of the index; SELECT: of the pieces that index names."""
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    m = tile_m.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tl.arange(0, BK).to(tl.int64)  # [BK]
    x_row = x + tl.minimum(m, M - 1) * x_m  # [BM]: past the end the last row again, rather than a mask to keep
    n_in = tl.minimum(n, N - 1)  # [BN]
    depth = tl.cast(BK, tl.int64)
    chosen = tl.zeros([BM, BN], tl.int8)
    best = tl.full([BM, BN], float("-inf"), tl.float32)

    for piece in range(0, pieces):
        row = n_in * pieces + piece  # [BN]
        x_tile = x_row[:, None] + k[None, :] * x_k  # [BM, BK]
        w_tile = w + k[:, None] * w_k + row[None, :] * w_n  # [BK, BN]
        total = tl.zeros([BM, BN], tl.float32)
        for done in range(0, K, BK):
            left = k < K - done
            a = tl.load(x_tile, mask=left[None, :], other=0.0)
            b = tl.load(w_tile, mask=left[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
            x_tile += depth * x_k
            w_tile += depth * w_k
        if bias is not None:
            total += tl.load(bias + row).to(tl.float32)[None, :]
        if SELECT:  # each element is stored once, when its piece's turn comes
            at = m[:, None] * N + n[None, :]
            named = tl.load(index + at, mask=(m[:, None] < M) & (n[None, :] < N), other=-1)
            tl.store(y + at, total.to(y.dtype.element_ty), mask=named == piece)
        else:
            larger = (total > best) | ((total != total) & (best == best))  # the first of equals; the first NaN stays
            chosen = tl.where(larger, tl.cast(piece, tl.int8), chosen)
            best = tl.where(larger, total, best)

    if not SELECT:
        at = m[:, None] * N + n[None, :]
        inside = (m[:, None] < M) & (n[None, :] < N)
        tl.store(y + at, best.to(y.dtype.element_ty), mask=inside)
        if index is not None:
            tl.store(index + at, chosen, mask=inside)


@triton.jit(do_not_specialize=["M", "pieces"])
def maxout_bwd_input_kernel(
    gy, index, w, gx, M, N, K, pieces, g_m, g_n, w_n, w_k,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BK] tile of gx: BN units of one piece at a step, the pieces of the same units one after the other."""
    tile_m, tile_k = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(K, BK), GROUP)
    m = tile_m.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    units = tl.arange(0, BN).to(tl.int64)  # [BN]

    total = tl.zeros([BM, BK], tl.float32)
    for step in range(0, tl.cdiv(N, BN) * pieces):
        piece = step % pieces
        n = units + tl.cast(step // pieces, tl.int64) * BN
        live = (m[:, None] < M) & (n[None, :] < N)
        g = tl.load(gy + m[:, None] * g_m + n[None, :] * g_n, mask=live, other=0.0)  # [BM, BN]
        chosen = tl.load(index + m[:, None] * N + n[None, :], mask=live, other=-1)
        g = tl.where(chosen == piece, g, 0.0).to(g.dtype)
        row = n[:, None] * pieces + piece
        b = tl.load(w + row * w_n + k[None, :] * w_k, mask=(n[:, None] < N) & (k[None, :] < K), other=0.0)  # [BN, BK]
        total = tl.dot(g, b, total, input_precision=PRECISION)

    inside = (m[:, None] < M) & (k[None, :] < K)
    tl.store(gx + m[:, None] * K + k[None, :], total.to(gx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "pieces"])
def maxout_bwd_weight_kernel(
    gy, index, x, gw, gb, M, N, K, pieces, g_m, g_n, x_m, x_k,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BN, BK] tile of one piece's rows of gW; the first tile of a row also writes its BN elements of gb."""
    tiles_k = tl.maximum(tl.cdiv(K, BK), 1)  # with K = 0 there is still a bias gradient to write
    tile_n, tile_k = tile_of(tl.program_id(0), tl.cdiv(N, BN) * pieces, tiles_k, GROUP)
    piece = tile_n % pieces
    n = (tile_n // pieces).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    m = tl.arange(0, BM).to(tl.int64)  # [BM]
    g_tile = gy + m[:, None] * g_m + n[None, :] * g_n  # [BM, BN]
    i_tile = index + m[:, None] * N + n[None, :]  # [BM, BN]
    x_tile = x + m[:, None] * x_m + k[None, :] * x_k  # [BM, BK]
    depth = tl.cast(BM, tl.int64)

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    for done in range(0, M, BM):
        left = m < M - done
        live = left[:, None] & (n[None, :] < N)
        g = tl.load(g_tile, mask=live, other=0.0)
        g = tl.where(tl.load(i_tile, mask=live, other=-1) == piece, g, 0.0).to(g.dtype)
        if gb is not None and tile_k == 0:
            column += tl.sum(g.to(tl.float32), axis=0)
        b = tl.load(x_tile, mask=left[:, None] & (k[None, :] < K), other=0.0)
        total = tl.dot(tl.trans(g), b, total, input_precision=PRECISION)
        g_tile += depth * g_m
        i_tile += depth * N
        x_tile += depth * x_m

    row = n * pieces + piece  # [BN]
    inside = (n[:, None] < N) & (k[None, :] < K)
    tl.store(gw + row[:, None] * K + k[None, :], total.to(gw.dtype.element_ty), mask=inside)
    if gb is not None and tile_k == 0:
        tl.store(gb + row, column.to(gb.dtype.element_ty), mask=n < N)


def fwd_problem(x: Tensor, w: Tensor, y: Tensor, target: Target) -> Problem:
    """Describe the forward products to the choice of a tile: a sum over each piece, one after the other."""
    depth = w.numel() // max(1, y.shape[1])
    return Problem("maxout_fwd", y.shape[0], y.shape[1], depth, x.dtype.itemsize, target, vectors=regular(x, w, y))


def bwd_input_problem(gy: Tensor, w: Tensor, target: Target) -> Problem:
    """Describe the product of the input's gradient to the choice of a tile."""
    size = gy.shape[0], w.shape[1], w.shape[0]
    return Problem("maxout_bwd_input", *size, gy.dtype.itemsize, target, True, regular(gy, w))


def bwd_weight_problem(gy: Tensor, x: Tensor, pieces: int, target: Target) -> Problem:
    """Describe the product of the weight's gradient: before sm_90 the largest tile would spill."""
    size, room = (gy.shape[1] * pieces, x.shape[1], gy.shape[0]), 64 if target.arch >= 90 else 32
    vectors = regular(gy, x)
    return Problem("maxout_bwd_weight", *size, gy.dtype.itemsize, target, True, vectors, accumulators=room)


def _forward_tile(tile: Config) -> Config:
    """Halve the columns: the best value and its piece stand in registers beside the sum."""
    return replace(tile, cols=max(LEAST_COLS, tile.cols // 2), registers=255)


def fwd_launch(
    x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor | None, y: Tensor, pieces: int, select: bool,
    target: Target, config: Config | None = None,
) -> Launch:  # fmt: skip
    """Prepare y [M, N] from x [M, K], w [N P, K] and bias [N P]; ``index`` [M, N] is written, or read to select."""
    (M, K), N = x.shape, y.shape[1]
    tile = _forward_tile(config or choose(fwd_problem(x, w, y, target)))
    arguments: dict[str, object] = {"x": x, "w": w, "bias": bias, "index": index, "y": y}
    arguments |= {"M": M, "N": N, "K": K, "pieces": pieces}
    arguments |= {"x_m": x.stride(0), "x_k": x.stride(1), "w_n": w.stride(0), "w_k": w.stride(1)}
    constexprs: dict[str, object] = {"SELECT": select, "PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BN": tile.cols, "BK": tile.depth}
    return Launch(maxout_fwd_kernel, arguments, constexprs, tile.programs(M, N), tile)


def bwd_input_launch(
    gy: Tensor, index: Tensor, w: Tensor, gx: Tensor, pieces: int, target: Target, config: Config | None = None
) -> Launch:
    """Prepare gx [M, K] from gy [M, N], index [M, N] and w [N P, K]."""
    (M, N), K = gy.shape, w.shape[1]
    tile = config or choose(bwd_input_problem(gy, w, target))
    arguments: dict[str, object] = {"gy": gy, "index": index, "w": w, "gx": gx}
    arguments |= {"M": M, "N": N, "K": K, "pieces": pieces}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1), "w_n": w.stride(0), "w_k": w.stride(1)}
    constexprs: dict[str, object] = {"PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BK": tile.cols, "BN": tile.depth}
    return Launch(maxout_bwd_input_kernel, arguments, constexprs, tile.programs(M, K), tile)


def bwd_weight_launch(
    gy: Tensor, index: Tensor, x: Tensor, gw: Tensor, gb: Tensor | None, pieces: int, target: Target,
    config: Config | None = None,
) -> Launch:  # fmt: skip
    """Prepare gw [N P, K] from gy [M, N], index [M, N] and x [M, K], and gb [N P] where it is given."""
    (M, N), K = gy.shape, x.shape[1]
    tile = config or choose(bwd_weight_problem(gy, x, pieces, target))
    arguments: dict[str, object] = {"gy": gy, "index": index, "x": x, "gw": gw, "gb": gb}
    arguments |= {"M": M, "N": N, "K": K, "pieces": pieces}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1), "x_m": x.stride(0), "x_k": x.stride(1)}
    constexprs: dict[str, object] = {"PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BN": tile.rows, "BK": tile.cols, "BM": tile.depth}
    return Launch(maxout_bwd_weight_kernel, arguments, constexprs, tile.programs(N, K) * pieces, tile)


def maxout_fwd(
    x: Tensor, w: Tensor, bias: Tensor | None, pieces: int, with_index: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return the largest piece of each unit [M, N] and, where it is asked for, which it was: int8 [M, N]."""
    y = x.new_empty(x.shape[0], w.shape[0] // pieces)
    index = y.new_empty(y.shape, dtype=torch.int8) if with_index else None
    if y.numel():
        submit(fwd_launch, (x, w, _dense(bias)), (index, y), pieces, False, Target.of(x))
    return y, index


def maxout_select(x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, pieces: int) -> Tensor:
    """Return the pieces [M, N] that the contiguous int8 ``index`` [M, N] names."""
    y = x.new_empty(index.shape)
    if y.numel():
        submit(fwd_launch, (x, w, _dense(bias), index), (y,), pieces, True, Target.of(x))
    return y


def _dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def maxout_bwd_input(gy: Tensor, index: Tensor, w: Tensor, pieces: int) -> Tensor:
    """Return the gradient of x [M, K] from gy [M, N] and the contiguous int8 index [M, N]."""
    gx = gy.new_empty(gy.shape[0], w.shape[1])
    if gx.numel():
        submit(bwd_input_launch, (gy, index, w), (gx,), pieces, Target.of(gy))
    return gx


def maxout_bwd_weight(
    gy: Tensor, index: Tensor, x: Tensor, pieces: int, with_bias: bool,
    *, gw: Tensor | None = None, gb: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of w [N P, K], and of the bias [N P] where it is asked for; in ``gw``, ``gb`` if given."""
    rows = gy.shape[1] * pieces
    gw = gy.new_empty(rows, x.shape[1]) if gw is None else gw
    gb = gy.new_empty(rows) if gb is None and with_bias else gb
    if rows:  # with K = 0 there may still be a bias gradient
        submit(bwd_weight_launch, (gy, index, x), (gw, gb), pieces, Target.of(gy))
    return gw, gb


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    bias: bool = True
    x: str = "rows"
    w: str = "rows"
    gy: str = "rows"
    N: int = 256
    K: int = 512

    def __str__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        usual = {field.name: field.default for field in fields(self)}
        return " ".join(f"{name}={value}" for name, value in told.items() if value != usual[name])


_CASES = (
    _Case(),
    _Case(bias=False),
    *(_Case(x=x, w=w, gy=x) for x, w in product(("rows", "columns"), repeat=2)),
    _Case(x="steps", w="steps", gy="steps"),
    _Case(gy="expanded"),
    *(_Case(N=N, K=K) for N, K in ((1, 512), (256, 1), (255, 512), (256, 511), (255, 511))),
)
_FORMS = (
    (torch.bfloat16, "tf32", _CASES),
    (torch.float32, "tf32", _CASES[:5]),
    (torch.float16, "tf32", _CASES[:1]),
    (torch.float32, "ieee", _CASES[:5]),
)


def _meta(rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Build an operand without storage: contiguous along rows or columns, in steps of 2, or one element for all."""
    strides = {"rows": (cols, 1), "columns": (1, rows), "steps": (4 * cols, 2), "expanded": (0, 0)}[layout]
    return torch.empty_strided((rows, cols), strides, dtype=dtype, device="meta")


def _launches(case: _Case, dtype: torch.dtype, target: Target) -> Iterator[tuple[str, Launch]]:
    """Yield what the dispatcher launches for such operands, in each tile that it may choose, with its form's name."""
    M, N, K, pieces = 1024, case.N, case.K, 5
    x, w, gy = _meta(M, K, case.x, dtype), _meta(N * pieces, K, case.w, dtype), _meta(M, N, case.gy, dtype)
    y, gx = _meta(M, N, "rows", dtype), _meta(M, K, "rows", dtype)
    bias, index = torch.empty(N * pieces, dtype=dtype, device="meta") if case.bias else None, y.to(torch.int8)
    for tile in candidates(fwd_problem(x, w, y, target)):
        yield "", fwd_launch(x, w, bias, index, y, pieces, False, target, tile)
        yield "no index", fwd_launch(x, w, bias, None, y, pieces, False, target, tile)
        yield "select", fwd_launch(x, w, bias, index, y, pieces, True, target, tile)
    for tile in candidates(bwd_input_problem(gy, w, target)):
        yield "", bwd_input_launch(gy, index, w, gx, pieces, target, tile)
    for kind in dict.fromkeys((torch.float32, dtype) if case == _CASES[0] else (torch.float32,)):
        gw, gb = _meta(N * pieces, K, "rows", kind), None if bias is None else bias.to(kind)
        for tile in candidates(bwd_weight_problem(gy, x, pieces, target)):
            yield "", bwd_weight_launch(gy, index, x, gw, gb, pieces, target, tile)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that the dispatcher can choose on compute capability arch / 10, each once."""
    seen = set()
    for dtype, precision, case in ((dtype, precision, case) for dtype, precision, cases in _FORMS for case in cases):
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for form, launch in _launches(case, dtype, Target(arch, precision)):
            rows = 0 if precision == "ieee" else launch.config.rows
            label = " ".join(part for part in (kind, form, str(case), str(launch.config)) if part)
            variant = launch.variant("maxout", label, rows)
            key = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible, launch.config))
            if key not in seen:
                seen.add(key)
                yield variant
