"""How long a convolution is expected to take by each choice, from kernels/cost.py: predicted, not measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastgan.benchmarks.chains import AROUND, DTYPE, FORWARD, INPUT, WEIGHT, Place, Run
from fastgan.benchmarks.conv_problems import problem_of
from fastgan.kernels import cost
from fastgan.kernels.problem import Config, Problem, Target


class Times(NamedTuple):
    """Microseconds by where an operand is formed: in the load, once for our kernel, once for cuDNN."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[Times]) -> Times:
        """Add times up."""
        return cls(*(sum(column) for column in zip(cls(), *parts, strict=True)))


def predicted(run: Run, place: Place, direction: str, arch: int) -> Times:
    """Return what one direction of one layer is expected to take on a card of that architecture."""
    layer, n, target = place.layer, run.batch, Target(arch, "tf32")
    x, y = n * layer.inputs, n * layer.outputs
    if direction == AROUND:
        ends = place.last and place.normed  # the incoming gradient has no load of ours behind it
        pass_us = cost.pass_us(problem_of(layer, n, DTYPE, FORWARD, target), 1.5 * y) if ends else 0.0
        return Times(pass_us, pass_us, pass_us)
    statistics, through = direction == FORWARD and place.normed, direction == INPUT and place.raw
    formed = problem_of(layer, n, DTYPE, direction, target, raw=through, measured=statistics)
    in_load = problem_of(
        layer, n, DTYPE, direction, target, raw=place.raw, measured=place.normed, pending=place.pending
    )
    passes = passes_us(run, place, direction, formed, x, y)
    return Times(
        estimate(place, direction, in_load) + forming_us(place, direction, in_load),
        estimate(place, direction, formed) + passes,
        cudnn_us(place, direction, formed, x, y) + passes,
    )


def tile_of(place: Place, direction: str, problem: Problem) -> Config:
    """Return the tile that a launch would take."""
    from fastgan.kernels.conv_product import tile_for, weight_tile
    from fastgan.kernels.tile import choose

    if direction == WEIGHT:
        return weight_tile(choose(problem), place.layer.weight_shape[1])
    return tile_for(problem, place.layer.in_channels if direction == FORWARD else place.layer.out_channels)


def estimate(place: Place, direction: str, problem: Problem) -> float:
    """Return what our launch is expected to take."""
    return cost.estimate(problem, tile_of(place, direction, problem))


def forming_us(place: Place, direction: str, problem: Problem) -> float:
    """Return what forming operands in the load is expected to take: anew for each tap and each tile that meets them."""
    tile = tile_of(place, direction, problem)
    rows = problem.rows * problem.depth * -(-problem.cols // tile.cols)
    cols = problem.cols * problem.depth * -(-problem.rows // tile.rows)
    if direction == FORWARD:
        return cost.forming_us(problem, tile, rows * place.raw)
    if direction == INPUT:
        return cost.forming_us(problem, tile, rows * place.normed)
    u, g = (rows, cols) if place.layer.transposed else (cols, rows)
    return cost.forming_us(problem, tile, u * place.raw + g * place.normed)


def passes_us(run: Run, place: Place, direction: str, problem: Problem, x: int, y: int) -> float:
    """Return what forming operands once takes. A gradient serves two products so, and counts with the input's."""
    us = 0.0
    if direction != INPUT and place.raw:
        us += cost.pass_us(problem, x)
    first = direction == INPUT or (direction == WEIGHT and INPUT not in run.directions_of(place))
    if first and (place.normed or place.pending):
        us += cost.pass_us(problem, 1.5 * y)
    return us


def cudnn_us(place: Place, direction: str, problem: Problem, x: int, y: int) -> float:
    """Return what cuDNN is expected to take, with a pass for what our epilogue does."""
    library = cost.library_estimate(problem)
    if direction != FORWARD:
        return library + (cost.pass_us(problem, 1.5 * x) if direction == INPUT and place.activated else 0.0)
    product = library - cost.pass_us(problem, problem.rows * problem.cols)
    if place.normed:
        return product + cost.pass_us(problem, 0.5 * y)  # statistics read, and write next to nothing
    return library if place.layer.activation != "none" or place.layer.bias else product
