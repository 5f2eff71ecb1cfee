"""The choice of a tile for a product: by what was measured on this card, else by estimate among a few.

``candidates`` lists the tiles of the heuristic: few, because each is compiled and audited for every layout and dtype.
``candidates(problem, wide=True)`` lists what a tuned table may name beside them; those shapes compiled without a
spill for sm_80, 86, 90, 100 and 120, forward and backward through an activation (Triton 3.7.1), and the tuner compiles
each that it means to time. ``refusal`` takes out what a card cannot run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import triton
import triton.language as tl

from fastgan.kernels import cost, tables
from fastgan.kernels.problem import GROUP, LEAST_SHARED_BYTES, WGMMA, Config, Problem, Target, refusal, regular, useful

__all__ = [
    "GROUP",
    "LEAST_SHARED_BYTES",
    "WGMMA",
    "Config",
    "Problem",
    "Target",
    "candidates",
    "choose",
    "in_load",
    "prefers_library",
    "refusal",
    "refused",
    "regular",
    "tile_of",
]

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARED = 4  # programs to a tile that stand for any number: kernels have one form for all but 1
SHARING = 1.05  # how much faster a shared tile must be expected to be


@functools.lru_cache(maxsize=4096)
def candidates(problem: Problem, wide: bool = False) -> tuple[Config, ...]:
    """List the tiles that can be run for a problem, largest first; all of its kind and layout, whatever its sizes.

    Each comes alone and, where the launch can, shared. ``wide``: those too that only a tuned table may choose, shared
    by each number of programs, but none that the sizes make useless.
    """
    shapes = dict.fromkeys((*_core(problem), *(_wide(problem) if wide else ())))
    splits = (SPLITS if wide else (1, SHARED)) if problem.splits else (1,)
    tiles = (replace(tile, split=split) for tile in shapes for split in splits)
    return tuple(tile for tile in tiles if refusal(problem, tile) is None and (not wide or useful(problem, tile)))


def refused(problem: Problem) -> list[tuple[Config, str]]:
    """List the tiles that a problem's card or launch does not take, each with the reason."""
    shapes = dict.fromkeys((*_core(problem), *_wide(problem)))
    return [(tile, why) for tile in shapes if (why := refusal(problem, tile)) is not None]


def _core(problem: Problem) -> list[Config]:
    """Return the tiles of the heuristic, largest first, those that do not fit included."""
    arch, masked, item_bytes = problem.target.arch, problem.masked, problem.item_bytes
    line = 128 // item_bytes
    plain = problem.accumulators >= 64  # the more a kernel does beside the product, the more registers it takes
    if problem.kind == "ieee":  # plain FMA: an operand's whole depth stands in registers
        return [Config(64, 64, 16, 8, 255), Config(32, 32, 16, 4, 255)]
    if not problem.vectors:  # an address for each element: fewer elements for each thread
        small = Config(32, 32, 32, 4, 168 if plain and item_bytes == 2 else 255)
        return [small] if problem.accumulators < 32 and item_bytes == 4 else [Config(64, 64, 32, 8, 255), small]
    large = [Config(128, 256, line, 8, 255)] if arch in WGMMA else []
    large.append(Config(128, 128, line, 8, 255))
    if refusal(problem, large[-1]) is not None:
        stages = 3 if Config(128, 64, line, 8, 255).fits(arch, item_bytes, masked) else 2
        large = [Config(128, 64, line, 8, 255, stages)]
    middle = Config(64, 64, line, 4 if problem.accumulators >= 32 else 8, 255)
    return [*large, middle, Config(32, 32, line, 4, 128 if plain else 255)]


def _wide(problem: Problem) -> Iterator[Config]:
    """Yield what a tuned table may choose beside, with as many stages as the card has room for."""
    line = 128 // problem.item_bytes
    if problem.kind == "ieee":
        for rows, cols in ((128, 128), (128, 64), (64, 128)):
            yield Config(rows, cols, 16, 8, 255)
        for rows, cols in ((64, 32), (32, 64), (64, 16), (16, 64)):
            yield Config(rows, cols, 16, 4, 255)
        return
    if not problem.vectors:
        for rows, cols in ((64, 32), (32, 64), (64, 16), (16, 64)):
            yield Config(rows, cols, 32, 4, 255)
        return
    tall = ((256, 128), (128, 256), (256, 64), (64, 256)) if problem.target.arch in WGMMA else ()
    for rows, cols in (*tall, (128, 128), (128, 64), (64, 128)):
        yield from (Config(rows, cols, line, 8, 255, stages) for stages in (4, 3, 2))
    for rows, cols in ((64, 64), (64, 32), (32, 64), (128, 16), (64, 16), (16, 128), (16, 64)):
        yield from (Config(rows, cols, line, 4, 255, stages) for stages in (4, 3, 2))
    for rows, cols, warps in ((128, 128, 8), (64, 64, 4), (32, 32, 4)):  # fewer, deeper trips
        yield Config(rows, cols, 2 * line, warps, 255, 2)
    yield from (Config(32, 32, line, 4, 168, stages) for stages in (4, 2))


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem) -> Config:
    """Return the tile of the nearest problem that was measured on this card, else the heuristic's."""
    entry = tables.nearest(problem)
    return heuristic(problem) if entry is None else entry.config


def heuristic(problem: Problem) -> Config:
    """Return the candidate with the least estimate; of equal ones the first. Sharing a tile must be worth its memory.

    What decides: enough programs to keep every multiprocessor busy (smaller tiles, or programs that share one), against
    the operands read anew by every tile and the parts that sharing has to add up.
    """

    def price(tile: Config) -> float:
        return cost.estimate(problem, tile) * (SHARING if tile.split > 1 else 1.0)

    alone = (tile for tile in candidates(problem) if tile.split == 1)
    tiles = (replace(tile, split=split) for tile in alone for split in SPLITS)
    return min((tile for tile in tiles if refusal(problem, tile) is None and useful(problem, tile)), key=price)


@functools.lru_cache(maxsize=4096)
def prefers_library(problem: Problem) -> bool:
    """Whether cuBLAS with an elementwise kernel is faster than this launch: as measured, else where surely expected.

    Only ``auto`` asks. Without measurements our kernel is taken wherever the two may be near.
    """
    entry = tables.nearest(problem)
    if entry is not None and entry.library_us is not None:
        return entry.library_us < entry.us
    return cost.SURELY * cost.library_estimate(problem) < cost.estimate(problem, choose(problem))


@functools.lru_cache(maxsize=4096)
def in_load(problem: Problem, plain: Problem) -> bool:
    """Whether an operand is normalised where ``problem`` loads it, rather than once, stored, for ``plain`` to load.

    Every tile across loads it anew, and the vectors leave less room for accumulators; a pass takes a launch and memory.
    """
    tile = choose(problem)
    if "weight" in problem.op:  # the columns' operand
        elements, times = problem.cols * problem.depth, -(-problem.rows // tile.rows)
    else:
        elements, times = problem.rows * problem.depth, -(-problem.cols // tile.cols)
    here = cost.estimate(problem, tile) + cost.forming_us(problem, tile, elements * times)
    return here <= cost.estimate(plain, choose(plain)) + cost.pass_us(plain, elements)


def forget() -> None:
    """Choose anew from now on: tables have been written."""
    for cached in (choose, prefers_library, in_load, tables.load):
        cached.cache_clear()


@triton.jit
def tile_of(program, tile_rows, tile_cols, GROUP: tl.constexpr):
    """Which tile (row, column) a program computes: down GROUP tile rows, then on to the next column."""
    in_group = GROUP * tile_cols
    first = program // in_group * GROUP
    height = tl.minimum(tile_rows - first, GROUP)
    return first + program % in_group % height, program % in_group // height
