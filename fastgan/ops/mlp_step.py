"""mlp_step: whole training iterations of a fully connected GAN from one table of phases."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops.mlp_step_form import RATES, Param, Phase, bits
from fastgan.ops.mlp_step_interpreter import Interpreter
from fastgan.ops.mlp_step_plan import Writer
from fastgan.ops.mlp_step_recipe import Recipe, Side
from fastgan.ops.optimizer_step import Number


class Operands(NamedTuple):
    """What ``fastgan_mlp_step`` of csrc/mlp_step.cu is given, in its order, between the tables and the grid."""

    table: Tensor
    parameters: Tensor
    slots: Tensor  # addresses
    numbers: Tensor  # (groups, 11, 2): fp64 bits, or the address of an fp32 scalar
    rates: Tensor  # room
    widths: tuple[int, int]  # of the tables' rows
    panel_rows: int  # the most that share a norm's statistics


class Program:
    """The iterations of a training, which move its own tensors: weights, moments, averages, running statistics, clock.

    What an iteration draws, forms and moves is what ``fastgan.train.step`` does, in its order; phases that have nothing
    to do with each other share a stage, and between stages all wait for all. Of dropout alone the draws are others:
    they follow from the clock.

    Args:
        generator, discriminator: the players.
        recipe: how an iteration goes, on which data.
    """

    def __init__(self, generator: Side, discriminator: Side, recipe: Recipe) -> None:
        self.written = Writer(generator, discriminator, recipe).written()
        self.interpreter = Interpreter(
            self.written.table,
            self.written.parameters,
            self.written.slots,
            self.written.rates,
            lambda: [[float(number) for number in group] for group in self.written.numbers()],
        )

    @property
    def stages(self) -> int:
        """How many stages an iteration has: one barrier each."""
        return 1 + max(phase.stage for phase in self.interpreter.phases)

    @property
    def panel_rows(self) -> int:
        """The most rows that share a norm's statistics: a block holds all of them at once."""
        return max((phase.group for phase in self.interpreter.phases if phase.stats >= 0), default=0)

    def run(self, iterations: int = 1, order: random.Random | None = None) -> None:
        """Perform iterations by plain PyTorch. ``order`` shuffles what may run side by side."""
        self.interpreter.run(iterations, order)

    def operands(self, address: Callable[[Tensor], int] = Tensor.data_ptr) -> Operands:
        """Return what the kernel is launched with; numbers that lie on the host are read now.

        Args:
            address: of a tensor on the table's device; 0 where a scalar has none, which is then read now too.
        """
        written = self.written
        device = written.table.device

        def number(value: Number) -> tuple[int, int]:
            if isinstance(value, Tensor) and value.device == device and (place := address(value)):
                assert value.dtype == torch.float32
                return 0, place
            return bits(float(value)), 0

        numbers = [[number(value) for value in group] for group in written.numbers()]
        return Operands(
            written.table,
            written.parameters,
            torch.tensor([address(slot) for slot in written.slots], device=device),
            torch.tensor(numbers, dtype=torch.int64, device=device),
            torch.full((len(written.parameters), RATES), float("nan"), device=device),
            (len(Phase._fields), len(Param._fields)),
            self.panel_rows,
        )
