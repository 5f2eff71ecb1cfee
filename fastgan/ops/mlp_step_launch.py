"""Launching phase tables by the CUDA C++ extension: one GAN on the whole grid, or one on each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops import extension
from fastgan.ops.mlp_step import Operands, Program
from fastgan.ops.mlp_step_form import RATES

LEAST_CAPABILITY = (8, 0)
BLOCKS = 0  # of a launch; 0: as many as are resident together, or one to a member


def refusal(device: torch.device) -> str | None:
    """Why nothing can be launched on a device; None where something can."""
    why = extension.absent()
    if device.type != "cuda" and (why is not None or not extension.runs_on(device)):
        return "it needs a GPU"
    if why is not None:
        return f"there is no CUDA C++ extension: {why}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def unfit(program: Program) -> str | None:
    """Why the kernel cannot run a table that others could; None where it can."""
    slots, device = program.written.slots, program.written.table.device
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)  # its stub has not all of them
        most = properties.shared_memory_per_block_optin
        if shared_bytes(program.panel_rows) > most:
            return (
                f"a batch of {program.panel_rows} behind a norm needs more shared memory than this GPU's {most} bytes"
            )
    for param in program.interpreter.params:
        value = slots[param.value]
        if value.dtype != torch.float32:
            return "a weight is not fp32"
        if value.dim() == 2 and (param.shadow < 0 or slots[param.shadow].dtype != torch.bfloat16):
            return "an optimiser keeps no bf16 copies of the weights: give it shadow=torch.bfloat16"
    for numbers in program.written.numbers():
        for number in numbers:
            if isinstance(number, Tensor) and number.device == slots[0].device and number.dtype != torch.float32:
                return "a number of an optimiser on the device is not fp32"
    return None


def shared_bytes(panel_rows: int) -> int:
    """Return a little more than the shared memory of a block, by the head of csrc/mlp_step.cu."""
    return 48 * 1024 + 64 * max(256, -(-panel_rows // 64) * 64)


class Launch:
    """One GAN's iterations, each call a cooperative launch on the current stream.

    Numbers that lie on the host are those of the moment when this was made.
    """

    def __init__(self, program: Program) -> None:
        self._operands = program.operands()
        self._program = program  # whose memory the tables point to
        self._barrier = torch.zeros(1, dtype=torch.int32, device=self._operands.table.device)

    def __call__(self, iterations: int) -> None:
        """Perform so many iterations."""
        extension.mlp_step(self._operands, self._barrier, BLOCKS, iterations)


class Members:
    """Many GANs' iterations, one to a block: no barrier of the grid, and nothing of one reaches another."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._kept = programs, [program.operands() for program in programs]
        rows = [_row(operands) for operands in self._kept[1]]
        self._programs = torch.tensor(rows, device=self._kept[1][0].table.device)
        (self._widths,) = {operands.widths for operands in self._kept[1]}
        self._panel = max(operands.panel_rows for operands in self._kept[1])

    def __call__(self, iterations: int) -> None:
        """Perform so many iterations of each."""
        extension.mlp_step_members(self._programs, self._widths, self._panel, BLOCKS, iterations)


def _row(operands: Operands) -> list[int]:
    """A Program as csrc/mlp_step_table.cuh has it; slots are addresses as they are, counted from 0."""
    assert operands.rates.shape[1] == RATES
    tensors = operands.table, operands.parameters, operands.slots, operands.numbers, operands.rates
    return [*(tensor.data_ptr() for tensor in tensors), 0, len(operands.table)]
