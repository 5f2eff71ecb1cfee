"""A matrix product to compute, a tile to compute it by, and whether the one can be run for the other.

``refusal`` is the one predicate: the heuristic, the tuned tables and the tuner all ask it, and it costs no GPU time. It
does not depend on sizes, ``useful`` does.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import torch
from torch import Tensor

SHARED_BYTES = {80: 166_912, 87: 166_912, 90: 232_448, 100: 232_448, 103: 232_448}  # a block's opt-in limit
LEAST_SHARED_BYTES = 101_376  # 99 KB: sm_86, sm_89, sm_120, and whatever is not listed
BARRIER_BYTES = 2_048  # what a pipeline needs beside its tiles, rounded up
VECTOR_BYTES = 2_048  # what the vectors of a normalised operand may add
REGISTERS = 65_536  # of a multiprocessor
WGMMA = (90, 100, 103)  # whose tensor cores read the columns' operand, and accumulate on sm_100, beside the registers
TENSOR_MEMORY = (100, 103)
MOST_REGISTERS = 232  # there, by ``Config.registers_needed``: above it, compiled kernels were seen to spill
MOST_REGISTERS_ELSEWHERE = 140  # where the columns' operand passes through registers as well
MOST_ACCUMULATORS_WIDE = 64  # of a thread, where operands or the parts that are added up are of 32 bits
LEAST_SIDE = 32  # of a tile that every problem may take
GROUP = 8  # tile rows that run side by side, so that their programs find each other's operands in L2


@dataclass(frozen=True)
class Config:
    """The tile of one program's output (rows x cols) and the depth of one trip through the reduction."""

    rows: int
    cols: int
    depth: int
    warps: int
    registers: int  # cap per thread; having one also keeps ptxas from spilling a few bytes to fit one block more
    stages: int = 3
    split: int = 1  # programs that share one tile, each with its part of the reduction

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}x{self.depth}" + (f"/{self.split}" if self.split > 1 else "")

    def shared_bytes(self, item_bytes: int, masked: bool) -> int:
        """Bound the shared memory of one block from above. ``masked``: a saved output rides along with the rows.

        On sm_100, where there is plenty, the compiler may add 2 KB to it.
        """
        operands = (self.rows * (2 if masked else 1) + self.cols) * self.depth * item_bytes * self.stages
        return max(operands, self.rows * self.cols * 4) + BARRIER_BYTES

    def fits(self, arch: int, item_bytes: int, masked: bool) -> bool:
        """Whether a block may have that much on this architecture: the compiler does not refuse more."""
        return self.shared_bytes(item_bytes, masked) <= SHARED_BYTES.get(arch, LEAST_SHARED_BYTES)

    def registers_needed(self, item_bytes: int, masked: bool) -> int:
        """Estimate a thread's registers: accumulators, the rows' operand (twice where masked), and the rest."""
        threads = 32 * self.warps
        held = self.rows * self.depth * item_bytes // 4 * (2 if masked else 1)
        return self.rows * self.cols // threads + held // threads + 48

    def trips(self, depth: int) -> int:
        """Count the trips that one program makes through a reduction of that depth."""
        return -(-depth // (self.depth * self.split))

    def tiles(self, rows: int, cols: int) -> int:
        """Count the tiles of an output of that size: at least one, which may have a bias gradient to write."""
        return max(1, -(-rows // self.rows)) * max(1, -(-cols // self.cols))

    def programs(self, rows: int, cols: int) -> int:
        """Count the programs: as many for each tile as share its reduction."""
        return self.tiles(rows, cols) * self.split


@dataclass(frozen=True)
class Target:
    """What the choice of a tile depends on beside the operands' sizes."""

    arch: int  # 90 for compute capability 9.0
    precision: str  # how fp32 operands are multiplied: "ieee" or "tf32" (16-bit operands have one way only: "tf32")
    gpu: str | None = None  # the card's name as its tuned table has it: "nvidia-h200"; None: whatever has the arch
    multiprocessors: int | None = None  # of this very card

    @property
    def tensor_memory(self) -> bool:
        """Whether accumulators stand apart from registers, and come back through them all at once at the end."""
        return self.arch in TENSOR_MEMORY

    @classmethod
    def of(cls, operand: Tensor, exact: bool | None = None) -> Target:
        """Return the device that holds the operand, with PyTorch's own TF32 setting for matrix products, or another."""
        if exact is None:
            exact = operand.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
        return _targets(operand.device)[exact]


@dataclass(frozen=True)
class Problem:
    """One matrix product to choose a tile for: rows x cols outputs, each a sum over depth."""

    op: str  # the launch: "linear_fwd", "linear_bwd_input", ...
    rows: int
    cols: int
    depth: int
    item_bytes: int
    target: Target
    masked: bool = False  # a saved output rides along with the rows' operand
    vectors: bool = True  # operands load by whole vectors
    splits: bool = False  # several programs may share a tile
    accumulators: int = 64  # of a thread, at most: the more a kernel does beside the product, the fewer it has room for
    repeats: tuple[float, float] = (1.0, 1.0)  # how often each element stands in the rows' and the columns' operand

    @property
    def kind(self) -> str:
        """How operands are multiplied: ``16-bit``, ``tf32`` or ``ieee``. What one kind measured holds for no other."""
        return "16-bit" if self.item_bytes == 2 else self.target.precision

    @property
    def group(self) -> tuple[str, str, bool, bool]:
        """Return what must be the same for one problem to tell anything about another."""
        return self.op, self.kind, self.masked, self.vectors

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return what may differ a little."""
        return self.rows, self.cols, self.depth


def refusal(problem: Problem, config: Config) -> str | None:
    """Say why a tile cannot be run for a problem; None where it can."""
    arch, item_bytes, masked = problem.target.arch, problem.item_bytes, problem.masked
    shared = config.shared_bytes(item_bytes, masked) + (VECTOR_BYTES if problem.op.endswith("_norm") else 0)
    if shared > (limit := SHARED_BYTES.get(arch, LEAST_SHARED_BYTES)):
        return f"{shared} bytes of shared memory: a block may have {limit}"
    needed = config.registers_needed(item_bytes, masked)
    most = MOST_REGISTERS if arch in WGMMA else MOST_REGISTERS_ELSEWHERE
    if needed > most and problem.kind != "ieee" and problem.vectors:
        return f"at least {needed} registers a thread for its tiles alone: above {most} it would spill"
    accumulators = config.rows * config.cols // (32 * config.warps)
    room = problem.accumulators if problem.kind == "16-bit" else min(problem.accumulators, MOST_ACCUMULATORS_WIDE)
    if accumulators > room:
        return f"{accumulators} accumulators a thread: this launch has room for {room}"
    if config.registers * 32 * config.warps > REGISTERS:
        return f"{config.warps} warps of {config.registers} registers: a multiprocessor has {REGISTERS}"
    if config.split > 1 and not problem.splits:
        return "this launch does not share tiles"
    if config.split > 1 and problem.accumulators < 32 and accumulators >= problem.accumulators:
        return f"{accumulators} accumulators a thread: with so much beside the product a shared tile would spill"
    if config.split > 1 and accumulators > MOST_ACCUMULATORS_WIDE:
        return f"{accumulators} accumulators a thread: above {MOST_ACCUMULATORS_WIDE} a shared tile would spill"
    return None


def useful(problem: Problem, config: Config) -> bool:
    """Whether no side of a tile is mostly outside the output, and every program that shares one has a trip to make."""
    sides = ((config.rows, problem.rows), (config.cols, problem.cols))
    shared = config.split == 1 or config.split * config.depth <= problem.depth
    return shared and all(side <= LEAST_SIDE or side < 2 * size for side, size in sides)


def regular(*operands: Tensor) -> bool:
    """Whether whole vectors can be loaded along the rows: contiguous rows of 16 n elements that start on 16 bytes."""
    return all(
        t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.shape[1] % 16 == 0 and t.data_ptr() % 16 == 0 for t in operands
    )


@functools.cache
def _targets(device: torch.device) -> tuple[Target, Target]:
    """Return a device as a target for products by tensor cores and for exact ones."""
    if device.type != "cuda":
        return Target(80, "tf32"), Target(80, "ieee")  # the interpreter passes for the least that is supported
    properties = torch.cuda.get_device_properties(device)
    card = 10 * properties.major + properties.minor, slug(properties.name), properties.multi_processor_count
    return Target(card[0], "tf32", *card[1:]), Target(card[0], "ieee", *card[1:])


def slug(name: str) -> str:
    """Turn a card's name into a file's: ``NVIDIA H200`` is ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
