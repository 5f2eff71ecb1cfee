"""How long a step's launches are expected to take on a card: an estimate from what each computes, moves and occupies.

The launches are those that a captured step would make; the kernels among them are compiled for the card's architecture,
and how many of their programs a multiprocessor holds follows from the registers and the shared memory that the compiler
gave them. A launch takes its start and end, and the longest of three:

- its matrix products and operands, trip by trip, in as many waves as its programs need (kernels/cost.py's formulas,
  with the compiled kernel's occupancy in place of their guess);
- for other kernels, a start and an end for each wave of programs;
- its tensors, each once, over the memory's bandwidth, or over the L2's where they fit into it.

An operator of PyTorch has no program of ours to compile: a product takes ``LIBRARY`` of the matrix rate, anything else
its bytes. All constants are assumptions, here and in cost.py, in round numbers; none was measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastgan.benchmarks.launch_count import PRODUCTS, Watch
from fastgan.benchmarks.prediction_cards import Gpu
from fastgan.kernels import cost
from fastgan.kernels.problem import Problem

if TYPE_CHECKING:
    from fastgan.kernels.launch import Launch

LIBRARY = 0.6  # of the matrix rate, by a product of cuBLAS or cuDNN
STREAM = 0.9  # of the memory's bandwidth, by a kernel that does nothing but move
ADAM_BYTES = 28  # of a parameter: weight, gradient and two moments read, all but the gradient written
AVERAGE_BYTES, SHADOW_BYTES = 8, 2
CHOOSERS = ("linear", "linear_bwd_input", "linear_bwd_weight", "concat_linear", "conv_product", "conv_bwd_weight")


@dataclass
class Work:
    """What one launch has to do."""

    flops: float = 0.0
    moved: float = 0.0  # bytes of its tensors, each once
    launch: Launch | None = None  # of ours; its tensors have no memory
    problem: Problem | None = None  # where it is a matrix product of ours


class Recorder(Watch):
    """Keeps the work of each launch, in their order."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def kernel(self, build: Callable[[], Any]) -> Any:
        """Note a kernel of ours, with the product that its tile was chosen for."""
        asked: list[Problem] = []
        with ExitStack() as stack:
            for name in CHOOSERS:
                module = importlib.import_module(f"fastgan.kernels.{name}")
                stack.enter_context(patch.object(module, "choose", noting(module.choose, asked)))
            launch: Launch = build()
        arguments = {name: without_memory(value) for name, value in launch.arguments.items()}
        problem = asked[-1] if asked else None
        flops = 2.0 * problem.rows * problem.cols * problem.depth if problem else 0.0
        kept = replace(launch, arguments=arguments)
        self.works.append(Work(flops, moved_by(launch), kept, problem))
        return launch

    def operator(self, name: str, call: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note an operator of PyTorch."""
        formula = flop_registry.get(call._overloadpacket) if name in PRODUCTS else None
        flops = float(formula(*args, **kwargs, out_val=result)) if formula is not None else 0.0
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        self.works.append(Work(flops, float(sum(map(extent, tensors)))))

    def copy(self) -> None:
        """Note a copy from the host: a few addresses."""
        self.works.append(Work())

    def forget(self) -> None:
        """Begin again."""
        self.works.clear()


def noting(choose: Callable[[Problem], Any], asked: list[Problem]) -> Callable[[Problem], Any]:
    """Return the choice of a tile that keeps what was asked."""

    def choice(problem: Problem) -> Any:
        asked.append(problem)
        return choose(problem)

    return choice


def without_memory(value: object) -> object:
    """Return a tensor of the same size, strides and dtype that holds nothing."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def extent(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements, those that several stand for once."""
    count = 1
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if step or size == 0 else 1
    return count * tensor.element_size()


def moved_by(launch: Launch) -> float:
    """Return the bytes that a kernel of ours reads and writes."""
    from fastgan.kernels.launch import Workspace

    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    name = launch.kernel.__name__
    if name == "real_batch_kernel":  # of the data set it reads a batch
        out = tensors["out"]
        return float(out.numel() * (out.element_size() + tensors["images"].element_size()))
    if name == "optimizer_step_kernel":  # which has addresses; its programs count in blocks of elements
        elements = float(launch.programs) * int(launch.arguments["rounds"]) * launch.config.cols  # type: ignore[call-overload]
        beside = AVERAGE_BYTES * bool(launch.constexprs["AVERAGE"]) + SHADOW_BYTES * bool(launch.constexprs["SHADE"])
        return elements * (ADAM_BYTES + beside)
    seen = {(value.data_ptr(), value.shape): value for value in tensors.values()}
    rooms = [value for value in launch.arguments.values() if isinstance(value, Workspace)]
    return float(sum(map(extent, seen.values())) + sum(2 * room.elements * room.dtype.itemsize for room in rooms))


@dataclass(frozen=True)
class Guess:
    """How long one launch is expected to take, and what decides it."""

    us: float
    bound: str  # products, memory, waves, launch
    waves: int = 0


def guess(work: Work, gpu: Gpu, blocks: int) -> Guess:
    """Return the estimate for a launch of which a multiprocessor holds ``blocks`` programs."""
    card = gpu.offers
    parts = {"memory": memory_us(work.moved, card)}
    waves = 0
    if work.launch is not None:
        waves = -(-work.launch.programs // (card.multiprocessors * max(1, blocks)))
    if work.problem is not None and work.launch is not None:
        parts["products"] = product_us(work.problem, work.launch, card, max(1, blocks))
    elif work.launch is not None:
        parts["waves"] = waves * cost.EDGE
    elif work.flops:
        parts["products"] = work.flops / (card.half * LIBRARY * 1e6)
    bound = max(parts, key=lambda part: parts[part])
    us = cost.LAUNCH + parts[bound]
    return Guess(us, bound if parts[bound] > cost.LAUNCH else "launch", waves)


def memory_us(moved: float, card: cost.Card) -> float:
    """Return what moving so many bytes takes: they come from the L2 where they fit."""
    if moved < cost.RESIDENT * card.l2_mb * 1e6:
        return moved / (cost.L2_PACE * card.multiprocessors)
    return moved / (card.gbs * STREAM * 1e3)


def product_us(problem: Problem, launch: Launch, card: cost.Card, blocks: int) -> float:
    """Return what the products of a launch take, with what loading, waiting, storing and adding up take beside them."""
    config, processors = launch.config, card.multiprocessors
    busiest = -(-launch.programs // processors)
    turns, trips = -(-busiest // blocks), config.trips(problem.depth)
    work = max(cost.product_us(problem, config, card), cost.operand_us(problem, config))
    busy = max(busiest * trips * work, turns * trips * cost.pace(problem, config)) + turns * cost.EDGE
    stored = problem.item_bytes if config.split == 1 else 4
    busy += busiest * config.rows * config.cols * stored / cost.L2_PACE
    if problem.op.endswith("_norm"):  # the rows' operand is normalised in each load of it
        across = -(-problem.cols // config.cols)
        busy += problem.rows * problem.depth * across / (cost.FORMED * processors)
    return busy + cost.gathering_us(problem, config, processors)


def floor_us(flops: float, moved: float, card: cost.Card) -> float:
    """Return the least that a step can take: all of its products, or all of its bytes, at the card's rates."""
    return max(flops / (card.half * 1e6), moved / (card.gbs * 1e3))
