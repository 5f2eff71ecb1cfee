"""The choice of a tile, and that what is audited is what is launched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan.kernels.variant import Variant
from fastgan.ops.activation import ACTIVATIONS

pytest.importorskip("triton")
from fastgan.kernels import linear as kernels
from fastgan.kernels.launch import Launch
from fastgan.kernels.tile import ENOUGH, LEAST_SHARED_BYTES, Problem, Target, candidates, choose, regular

CARDS = (80, 86, 89, 90, 100, 120)


@given(rows=st.integers(1, 70_000), cols=st.integers(1, 5_000), arch=st.sampled_from(CARDS), masked=st.booleans())
def test_the_chosen_tile_fits_the_card_and_the_output(rows: int, cols: int, arch: int, masked: bool) -> None:
    for precision, item_bytes in (("tf32", 2), ("tf32", 4), ("ieee", 4)):
        for vectors in (True, False):
            problem = Problem("linear_fwd", rows, cols, 512, item_bytes, Target(arch, precision), masked, vectors)
            tiles, tile = candidates(problem), choose(problem)
            assert tile in tiles and tile.fits(arch, item_bytes, masked)
            assert tile == tiles[-1] or (tile.programs(rows, cols) >= ENOUGH and tile.cols < 2 * cols)


def test_no_card_is_asked_for_more_shared_memory_than_it_has() -> None:
    for arch in (86, 89, 120, 121):
        for masked in (True, False):
            for tile in candidates(Problem("linear_fwd", 512, 512, 512, 2, Target(arch, "tf32"), masked)):
                assert tile.shared_bytes(2, masked) <= LEAST_SHARED_BYTES


def test_regular_operands_are_those_that_load_by_whole_vectors() -> None:
    square = torch.empty(32, 32)
    assert regular(square, square[:, 16:], square[::2])
    for odd in (square.t(), square[:, 1:17], square[:, ::2], square[:, :15], square[:1, :1].expand(32, 32)):
        assert not regular(odd)


def form(variant: Variant) -> str:
    facts = sorted(variant.signature.items()), sorted(variant.constexprs.items(), key=str), sorted(variant.divisible)
    return repr((variant.kernel, facts, variant.num_warps, variant.num_stages, variant.max_registers))


@pytest.mark.parametrize("arch", CARDS)
def test_what_a_network_launches_is_among_the_variants(arch: int) -> None:
    """Contiguous operands of any multiple of 16, a logit head, an odd size: each in the tile that is chosen for it."""
    known = {form(variant) for variant in kernels.variants(arch)}
    assert len(known) == len(list(kernels.variants(arch)))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for M, N, K in ((64, 512, 1024), (8192, 1024, 512), (128, 1, 256), (4096, 255, 512), (100, 255, 511)):
            for activation in ACTIVATIONS:
                for launch in launches(M, N, K, dtype, activation, Target(arch, "tf32")):
                    assert form(launch.variant("linear", "", 0)) in known, (launch.kernel, M, N, K, activation)
                if N % 16 or K % 16:
                    break  # odd sizes are listed with leaky_relu alone


def launches(M: int, N: int, K: int, dtype: torch.dtype, activation: str, target: Target) -> list[Launch]:
    if N % 16 or K % 16:
        activation = "leaky_relu"
    x, w, y = (torch.empty(size, dtype=dtype, device="meta") for size in ((M, K), (N, K), (M, N)))
    saved, bias, how = None if activation == "none" else y, y[0], (activation, 0.2, target)
    return [
        kernels.fwd_launch(x, w, bias, y, None, *how),
        kernels.bwd_input_launch(y, saved, w, x, *how),
        kernels.bwd_weight_launch(y, saved, x, w, bias, *how),
    ]
