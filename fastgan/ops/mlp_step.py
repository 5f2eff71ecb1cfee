"""mlp_step: whole training iterations of a fully connected GAN from one table of phases."""

from __future__ import annotations

import random

from fastgan.ops.mlp_step_interpreter import Interpreter
from fastgan.ops.mlp_step_plan import Recipe, Side, Writer


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

    def run(self, iterations: int = 1, order: random.Random | None = None) -> None:
        """Perform iterations by plain PyTorch. ``order`` shuffles what may run side by side."""
        self.interpreter.run(iterations, order)
