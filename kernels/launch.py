"""What the matrix kernels share: the choice of a tile, and a launch that can be run, or described without being run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.variant import Variant

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

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}x{self.depth}"

    def shared_bytes(self, item_bytes: int, masked: bool) -> int:
        """Bound the shared memory of one block from above. ``masked``: a saved output rides along with the rows.

        On sm_100, where there is plenty, the compiler may add 2 KB to it.
        """
        operands = (self.rows * (2 if masked else 1) + self.cols) * self.depth * item_bytes * self.stages
        return max(operands, self.rows * self.cols * 4) + BARRIER_BYTES

    def fits(self, arch: int, item_bytes: int, masked: bool) -> bool:
        """Whether a block may have that much on this architecture: the compiler does not refuse more."""
        return self.shared_bytes(item_bytes, masked) <= SHARED_BYTES.get(arch, LEAST_SHARED_BYTES)

    def programs(self, rows: int, cols: int) -> int:
        """Count the programs for an output of that size: at least one, which may have a bias gradient to write."""
        return max(1, -(-rows // self.rows) * -(-cols // self.cols))


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


@functools.cache
def candidates(target: Target, item_bytes: int, masked: bool, vectors: bool) -> tuple[Config, ...]:
    """List the valid tiles, largest first."""
    line = 128 // item_bytes
    large = Config(128, 128, line, 8, 255)
    if not large.fits(target.arch, item_bytes, masked):
        large = Config(128, 64, line, 8, 255, stages=2)
    if target.precision == "ieee":  # plain FMA: an operand's whole depth stands in registers
        tiles = [Config(64, 64, 16, 8, 255), Config(32, 32, 16, 4, 255)]
    elif not vectors:  # an address for each element: fewer elements for each thread
        tiles = [Config(64, 64, 32, 8, 255), Config(32, 32, 32, 4, 168)]
    else:
        tiles = [large, Config(64, 64, line, 4, 255), Config(32, 32, line, 4, 128)]
    return tuple(tile for tile in tiles if tile.fits(target.arch, item_bytes, masked))


@functools.lru_cache(maxsize=4096)
def choose(target: Target, item_bytes: int, masked: bool, vectors: bool, rows: int, cols: int) -> Config:
    """Take the largest valid tile that makes enough programs and is not mostly outside the output, or the smallest."""
    tiles = candidates(target, item_bytes, masked, vectors)
    useful = (tile for tile in tiles if tile.rows < 2 * rows and tile.cols < 2 * cols)
    return next((tile for tile in useful if tile.programs(rows, cols) >= ENOUGH), tiles[-1])


@triton.jit
def tile_of(program, tile_rows, tile_cols, GROUP: tl.constexpr):
    """Which tile (row, column) a program computes: down GROUP tile rows, then on to the next column."""
    in_group = GROUP * tile_cols
    first = program // in_group * GROUP
    height = tl.minimum(tile_rows - first, GROUP)
    return first + program % in_group % height, program % in_group // height


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel: its runtime arguments and its constexprs by name, its grid and its tile."""

    kernel: Any
    arguments: Mapping[str, object]
    constexprs: Mapping[str, object]
    programs: int
    config: Config

    def run(self) -> None:
        """Launch on the device and the current stream of the operands."""
        operand = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(operand):
            self.kernel[(self.programs,)](
                **self.arguments,
                **self.constexprs,
                num_warps=self.config.warps,
                num_stages=self.config.stages,
                maxnreg=self.config.registers,
            )

    def variant(self, op: str, label: str, matrix_rows: int) -> Variant:
        """Describe the compiled form that Triton's launcher would make of these arguments (on the meta device too)."""
        from triton._C.libtriton import native_specialize_impl
        from triton.backends.compiler import BaseBackend

        signature: dict[str, str] = {}
        constexprs = dict(self.constexprs)
        divisible = set()
        for parameter in self.kernel.params:
            name = parameter.name
            if name in constexprs:
                continue
            value, specialised = self.arguments[name], not parameter.do_not_specialize
            kind, key = native_specialize_impl(BaseBackend, value, False, specialised, True)
            if kind == "constexpr":
                constexprs[name] = value
            else:
                signature[name] = kind
                if key and "D" in key:
                    divisible.add(name)
        return Variant(
            op=op,
            kernel=self.kernel.__name__,
            fn=self.kernel,
            label=label,
            signature=signature,
            constexprs=constexprs,
            divisible=frozenset(divisible),
            num_warps=self.config.warps,
            num_stages=self.config.stages,
            max_registers=self.config.registers,
            register_cap=self.config.registers,
            matrix_rows=matrix_rows,
        )
