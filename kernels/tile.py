"""The choice of a tile: what a program computes at once, which tiles a card can run, and which one a product takes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 8  # tile rows that run side by side, so that their programs find each other's operands in L2
ENOUGH = 96  # programs that keep a card busy: smaller tiles are taken until there are as many
SHARED_BYTES = {80: 166_912, 87: 166_912, 90: 232_448, 100: 232_448, 103: 232_448}  # a block's opt-in limit
LEAST_SHARED_BYTES = 101_376  # 99 KB: sm_86, sm_89, sm_120, and whatever is not listed
BARRIER_BYTES = 2_048  # what a pipeline needs beside its tiles, rounded up


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

    def tiles(self, rows: int, cols: int) -> int:
        """Count the tiles of an output of that size: at least one, which may have a bias gradient to write."""
        return max(1, -(-rows // self.rows) * -(-cols // self.cols))

    def programs(self, rows: int, cols: int) -> int:
        """Count the programs: as many for each tile as share its reduction."""
        return self.tiles(rows, cols) * self.split


@dataclass(frozen=True)
class Target:
    """What the choice of a tile depends on beside the operands' sizes."""

    arch: int  # 90 for compute capability 9.0
    precision: str  # how fp32 operands are multiplied: "ieee" or "tf32" (16-bit operands have one way only: "tf32")

    @classmethod
    def of(cls, operand: Tensor) -> Target:
        """Return the device that holds the operand, with PyTorch's own TF32 setting."""
        exact = operand.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
        return cls(_arch(operand.device), "ieee" if exact else "tf32")


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


@functools.cache
def _arch(device: torch.device) -> int:
    if device.type != "cuda":
        return 80  # the interpreter passes for the least that is supported
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def regular(*operands: Tensor) -> bool:
    """Whether whole vectors can be loaded along the rows: contiguous rows of 16 n elements that start on 16 bytes."""
    return all(
        t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.shape[1] % 16 == 0 and t.data_ptr() % 16 == 0 for t in operands
    )


@functools.lru_cache(maxsize=4096)
def candidates(problem: Problem) -> tuple[Config, ...]:
    """List the valid tiles, largest first."""
    target, item_bytes, masked = problem.target, problem.item_bytes, problem.masked
    line = 128 // item_bytes
    large = Config(128, 128, line, 8, 255)
    if not large.fits(target.arch, item_bytes, masked):
        large = Config(128, 64, line, 8, 255, stages=2)
    if target.precision == "ieee":  # plain FMA: an operand's whole depth stands in registers
        tiles = [Config(64, 64, 16, 8, 255), Config(32, 32, 16, 4, 255)]
    elif not problem.vectors:  # an address for each element: fewer elements for each thread
        tiles = [Config(64, 64, 32, 8, 255), Config(32, 32, 32, 4, 168)]
    else:
        tiles = [large, Config(64, 64, line, 4, 255), Config(32, 32, line, 4, 128)]
    return tuple(tile for tile in tiles if tile.fits(target.arch, item_bytes, masked))


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem) -> Config:
    """Take the largest valid tile that makes enough programs and is not mostly outside the output, or the smallest."""
    tiles = candidates(problem)
    rows, cols = problem.rows, problem.cols
    useful = (tile for tile in tiles if tile.rows < 2 * rows and tile.cols < 2 * cols)
    return next((tile for tile in useful if tile.programs(rows, cols) >= ENOUGH), tiles[-1])


@triton.jit
def tile_of(program, tile_rows, tile_cols, GROUP: tl.constexpr):
    """Which tile (row, column) a program computes: down GROUP tile rows, then on to the next column."""
    in_group = GROUP * tile_cols
    first = program // in_group * GROUP
    height = tl.minimum(tile_rows - first, GROUP)
    return first + program % in_group % height, program % in_group // height
