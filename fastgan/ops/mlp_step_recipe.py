"""What a phase table is written from: two players as plain layers with their optimisers, and how an iteration goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.ops.optimizer_step import Number, Rule
from fastgan.ops.optimizer_table import Entry


@dataclass(frozen=True)
class Norm:
    """A batch norm in training; scale and shift, and the running statistics, may be missing."""

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None
    momentum: float
    eps: float


@dataclass(frozen=True)
class Layer:
    """dropout(activation(norm(linear))), or the dropout in front of the activation."""

    weight: Tensor
    bias: Tensor | None
    activation: str = "none"
    negative_slope: float = 0.0
    norm: Norm | None = None
    dropout: float = 0.0
    dropout_first: bool = False

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """Weight, bias, and the norm's scale and shift."""
        norm = self.norm
        return (self.weight, self.bias, norm.gamma if norm else None, norm.beta if norm else None)


@dataclass(frozen=True)
class Side:
    """A player: its layers, its parameters' entries, its optimiser."""

    layers: Sequence[Layer]
    entries: Sequence[Entry]
    rules: Sequence[Rule]  # by group
    numbers: Callable[[], Sequence[Sequence[Number]]]  # by group, eleven each
    counters: Tensor  # skipped steps, averages formed
    max_norm: float | None = None
    guards: bool = False

    @property
    def judged(self) -> bool:
        """Whether no step is made before all gradients are there."""
        return self.guards or self.max_norm is not None


@dataclass(frozen=True)
class Recipe:
    """How an iteration goes."""

    images: Tensor  # (n, ...), uint8 or fp32
    clock: Tensor
    objective: str
    updates: str
    n_critic: int
    batch_size: int
    z_dim: int
    seed: int
    latent_seed: int
    latent: str = "normal"
    flip: bool = False
    critic: bool = False
    finite: bool = False  # what is seen and not finite is left out of sums
    table: Tensor | None = None
    values: Tensor | None = None
    sums: Tensor | None = None
    counts: Tensor | None = None
    mended: Sequence[tuple[Tensor, Tensor]] = ()
    serves_both: bool = False  # one pass through the discriminator, of updates "generator_first"
    dtype: torch.dtype = torch.float32  # of activations and operands
