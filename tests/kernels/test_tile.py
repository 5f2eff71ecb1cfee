"""The choice of a tile: what a card can run, what the heuristic takes, and that its estimates make sense."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")
from fastgan.kernels import cost, tile
from fastgan.kernels.problem import LEAST_SHARED_BYTES, REGISTERS, SHARED_BYTES, refusal, slug, useful
from fastgan.kernels.tile import Config, Problem, Target, candidates, choose, prefers_library, regular

CARDS = (80, 86, 89, 90, 100, 120)
KINDS = [("tf32", 2), ("tf32", 4), ("ieee", 4)]
WORKLOADS = {  # features of the linear layers, in -> out
    "mlp": [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784), (784, 512), (512, 256), (256, 1)],
    "cgan": [(110, 128), (1034, 512), (512, 512), (512, 1)],
    "goodfellow-mnist": [(100, 1200), (1200, 1200), (1200, 784), (784, 1200), (240, 1200), (240, 1)],
}
LAYERS = [(name, *layer) for name, layers in WORKLOADS.items() for layer in layers]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rows, cols, depth = draw(st.tuples(st.integers(0, 70_000), st.integers(0, 5_000), st.integers(0, 70_000)))
    precision, item_bytes = draw(st.sampled_from(KINDS))
    sms = draw(st.sampled_from([None, 20, 132]))
    target = Target(draw(st.sampled_from((*CARDS, 87, 103, 121))), precision, None, sms)
    op = draw(st.sampled_from(["linear_fwd", "linear_bwd_input", "linear_bwd_weight"]))
    how = draw(st.tuples(*[st.booleans()] * 3, st.sampled_from([32, 64, 128])))
    return Problem(op, rows, cols, depth, item_bytes, target, *how)


def audited(config: Config) -> Config:
    """What stands for a tile in the short list: shared by any number of programs, it is one compiled form."""
    return replace(config, split=1 if config.split == 1 else tile.SHARED)


def every_way(problem: Problem) -> list[Config]:
    """The short list's useful tiles, shared by each number of programs."""
    alone = [config for config in candidates(problem) if config.split == 1]
    tiles = [replace(config, split=split) for config in alone for split in tile.SPLITS]
    return [config for config in tiles if refusal(problem, config) is None and useful(problem, config)]


def directions(batch: int, fan_in: int, fan_out: int, target: Target, item_bytes: int = 2) -> list[Problem]:
    """The three products of a layer, as its launches describe them."""
    vectors = fan_in % 16 == fan_out % 16 == 0
    return [
        Problem("linear_fwd", batch, fan_out, fan_in, item_bytes, target, False, vectors, True, 128),
        Problem("linear_bwd_input", batch, fan_in, fan_out, item_bytes, target, True, vectors, True, 128),
        Problem("linear_bwd_weight", fan_out, fan_in, batch, item_bytes, target, True, vectors, True, 128),
    ]


@given(problem=problems(), wide=st.booleans())
def test_every_candidate_can_be_run(problem: Problem, wide: bool) -> None:
    tiles = candidates(problem, wide)
    limit = SHARED_BYTES.get(problem.target.arch, LEAST_SHARED_BYTES)
    assert tiles and len(set(tiles)) == len(tiles)
    for config in tiles:
        assert config.shared_bytes(problem.item_bytes, problem.masked) <= limit
        assert config.registers * 32 * config.warps <= REGISTERS
        assert config.split == 1 or problem.splits
        assert not wide or useful(problem, config)


@given(problem=problems())
def test_the_choice_is_a_short_lists_useful_member_and_always_the_same(problem: Problem) -> None:
    config = tile.heuristic(problem)
    assert audited(config) in candidates(problem)
    assert useful(problem, config)
    assert config == tile.heuristic(replace(problem)) == choose(problem)
    assert isinstance(prefers_library(problem), bool)


@given(problem=problems(), factor=st.integers(2, 9))
def test_the_short_list_does_not_depend_on_sizes(problem: Problem, factor: int) -> None:
    """What is audited for one size is what other sizes take."""
    other = replace(problem, rows=problem.rows * factor, cols=problem.cols // factor, depth=problem.depth + factor)
    assert candidates(problem) == candidates(other)


def test_the_wide_list_holds_the_short_one_and_skinny_tiles() -> None:
    problem = Problem("linear_fwd", 4096, 4096, 4096, 2, Target(90, "tf32"), accumulators=128)
    assert set(candidates(problem)) < set(candidates(problem, wide=True))
    skinny = candidates(replace(problem, cols=1), wide=True)
    assert {config.cols for config in skinny} == {16, 32}
    assert {config.rows for config in skinny} >= {64, 128}
    shared = candidates(replace(problem, depth=512, splits=True), wide=True)
    assert {config.split for config in shared if config.depth == 64} == {1, 2, 4, 8}


def test_large_tiles_are_for_launches_with_room_in_their_registers() -> None:
    for arch in CARDS:
        for masked in (True, False):
            problem = Problem("linear_fwd", 4096, 4096, 4096, 2, Target(arch, "tf32"), masked)
            areas = [
                max(tile.rows * tile.cols for tile in candidates(replace(problem, accumulators=most), wide=True))
                for most in (32, 64, 128)
            ]
            assert all(
                config.rows * config.cols <= 128 * 128
                for config in candidates(replace(problem, item_bytes=4, accumulators=128), wide=True)
            )
            large = {90: 128 * 256, 100: 128 * 256}.get(arch, 128 * 64 if masked else 128 * 128)
            assert areas == [128 * 64, min(large, 128 * 128), large]


@pytest.mark.parametrize(
    "config, problem, why",
    [
        (
            Config(128, 256, 64, 8, 255, 4),
            Problem("f", 1, 1, 1, 2, Target(86, "tf32"), accumulators=128),
            "bytes of shared memory",
        ),
        (
            Config(256, 128, 64, 8, 255, 2),
            Problem("f", 1, 1, 1, 2, Target(90, "tf32"), masked=True, accumulators=128),
            "would spill",
        ),
        (
            Config(128, 128, 64, 4, 255, 2),
            Problem("f", 1, 1, 1, 2, Target(90, "tf32"), masked=True, accumulators=128),
            "would spill",
        ),
        (Config(128, 256, 64, 8, 255, 2), Problem("f", 1, 1, 1, 2, Target(90, "tf32")), "128 accumulators a thread"),
        (Config(128, 128, 64, 8, 255, 2), Problem("f", 1, 1, 1, 2, Target(80, "tf32"), masked=True), "would spill"),
        (
            Config(128, 256, 64, 8, 255, 2, 4),
            Problem("f", 1, 1, 1, 2, Target(90, "tf32"), splits=True, accumulators=128),
            "a shared tile would spill",
        ),
        (Config(64, 64, 32, 16, 255), Problem("f", 1, 1, 1, 2, Target(90, "tf32")), "16 warps of 255 registers"),
        (Config(64, 64, 32, 4, 255, split=4), Problem("f", 1, 1, 1, 2, Target(90, "tf32")), "does not share"),
    ],
)
def test_what_a_card_cannot_run_is_refused_in_words(config: Config, problem: Problem, why: str) -> None:
    assert why in (refusal(problem, config) or "")
    assert refusal(problem, Config(32, 32, 32, 4, 168)) is None


@pytest.mark.parametrize("arch", CARDS)
@pytest.mark.parametrize("batch", [64, 256, 1024, 4096, 16384, 65536])
def test_the_pick_for_each_layer_of_the_workloads_keeps_the_card_busy(arch: int, batch: int) -> None:
    """Programs for a quarter of the multiprocessors at least, unless each has little to do or no tile makes more."""
    target = Target(arch, "tf32")
    card = cost.CARDS[arch]
    for _, fan_in, fan_out in LAYERS:
        for problem in directions(batch, fan_in, fan_out, target):
            config = choose(problem)
            assert refusal(problem, config) is None
            programs = config.programs(problem.rows, problem.cols)
            finer = every_way(problem)
            most = max(other.programs(problem.rows, problem.cols) for other in finer)
            assert programs >= min(card.multiprocessors / 4, most / 4) or config.trips(problem.depth) <= 16, problem
            least = min(cost.estimate(problem, other) for other in finer)
            assert cost.estimate(problem, config) <= tile.SHARING * least


@pytest.mark.parametrize("precision, item_bytes", KINDS)
@pytest.mark.parametrize("arch", [80, 86, 90, 120])
def test_no_cliff_from_one_size_to_the_next(arch: int, precision: str, item_bytes: int) -> None:
    """One row, column or product more than a round number costs less than twice as much; twice the work, thrice."""
    target = Target(arch, precision)

    def best(rows: int, cols: int, depth: int) -> float:
        problem = Problem("linear_fwd", rows, cols, depth, item_bytes, target, splits=True)
        return cost.estimate(problem, choose(problem))

    for size in (16, 32, 64, 128, 1024, 4096):
        for other in (1, 16, 512, 2048):
            base = best(size, other, 512), best(other, size, 512), best(512, other, size)
            more = best(size + 1, other, 512), best(other, size + 1, 512), best(512, other, size + 1)
            twice = best(2 * size, other, 512), best(other, 2 * size, 512), best(512, other, 2 * size)
            for before, after, doubled in zip(base, more, twice, strict=True):
                assert after < 2 * before
                assert 0.7 * before < doubled < 3 * before


@given(problem=problems())
def test_estimates_are_times(problem: Problem) -> None:
    """Finite, above the floors of bytes and products, and less on a card with more multiprocessors."""
    card = cost.CARDS[cost.known(problem.target.arch)]
    target = replace(problem.target, multiprocessors=card.multiprocessors)
    rate = {"16-bit": card.half, "tf32": card.tf32, "ieee": card.ieee}[problem.kind] * 1e6
    floor = max(
        2 * problem.rows * problem.cols * problem.depth / rate,
        problem.rows * problem.cols * problem.item_bytes / card.gbs / 1e3,
    )
    for config in candidates(problem):
        time = cost.estimate(replace(problem, target=target), config)
        assert math.isfinite(time) and time > floor
        assert cost.estimate(replace(problem, target=replace(target, multiprocessors=2000)), config) <= time
    assert math.isfinite(cost.library_estimate(problem))


def test_launch_bound_layers_are_ours_and_an_elementwise_launch_counts() -> None:
    target = Target(90, "tf32")
    for _, fan_in, fan_out in LAYERS:
        if fan_in % 16 == fan_out % 16 == 0:
            assert not any(prefers_library(problem) for problem in directions(64, fan_in, fan_out, target))
    masked = Problem("linear_bwd_input", 8192, 8192, 8192, 2, target, masked=True)
    assert prefers_library(masked)  # the mask is loaded with every tile, and cuBLAS's own loop is the better one
    assert cost.library_estimate(masked) > cost.library_estimate(replace(masked, masked=False))


def test_regular_operands_are_those_that_load_by_whole_vectors() -> None:
    square = torch.empty(32, 32)
    assert regular(square, square[:, 16:], square[::2])
    for odd in (square.t(), square[:, 1:17], square[:, ::2], square[:, :15], square[:1, :1].expand(32, 32)):
        assert not regular(odd)


def test_a_cards_name_becomes_a_files() -> None:
    assert slug("NVIDIA H200") == "nvidia-h200"
    assert slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert slug("NVIDIA GeForce RTX 4090 (x/..)") == "nvidia-geforce-rtx-4090-x"


def test_a_cpu_is_no_card_that_was_measured() -> None:
    target = Target.of(torch.empty(1))
    assert target == Target(80, "ieee") and target.gpu is None
