"""The products that a linear layer with a leaky ReLU is made of: as our launches, in any tile, and by cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.benchmarks.ceilings import MATRIX, fp32_products
from fastgan.benchmarks.race import Contender

if TYPE_CHECKING:
    from fastgan.kernels.launch import Launch
    from fastgan.kernels.problem import Config, Problem, Target

OPS = ("linear_fwd", "linear_bwd_input", "linear_bwd_weight")
SLOPE = 0.2


@dataclass(frozen=True)
class Product:
    """One direction of a layer with a leaky ReLU."""

    op: str
    batch: int
    fan_in: int
    fan_out: int
    dtype: str

    @property
    def shape(self) -> str:
        """Name the sizes."""
        return f"{self.batch}x{self.fan_in}x{self.fan_out}"

    def __str__(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"


def precision_of(product: Product) -> AbstractContextManager[None]:
    """Set how fp32 operands are multiplied."""
    return fp32_products("high" if product.dtype == "tf32" else "highest")


def problem_of(product: Product, target: Target) -> Problem:
    """Return the product as its launch describes it."""
    from fastgan.kernels.linear import fwd_problem
    from fastgan.kernels.linear_bwd_input import bwd_input_problem
    from fastgan.kernels.linear_bwd_weight import bwd_weight_problem

    x, w, y = (
        torch.empty(size, dtype=MATRIX[product.dtype], device="meta")
        for size in (
            (product.batch, product.fan_in),
            (product.fan_out, product.fan_in),
            (product.batch, product.fan_out),
        )
    )
    if product.op == "linear_fwd":
        return fwd_problem(x, w, target)
    if product.op == "linear_bwd_input":
        return bwd_input_problem(y, y, w, target)
    return bwd_weight_problem(y, y, x, target)


Launcher = Callable[..., tuple["Launch", tuple[Tensor, ...]]]  # of a product's operands and a config
Direction = tuple[tuple[tuple[int, ...], ...], Contender, Launcher]  # operands' shapes, cuBLAS's way, our launch


def run(launched: Launcher, config: Config, *operands: Tensor) -> tuple[Tensor, ...]:
    """Launch a product in a tile; returns what it wrote."""
    launch, results = launched(*operands, config=config)
    launch.run()
    return results


def forward(product: Product, target: Target) -> Direction:
    """y = phi(x W^T + b)."""
    from fastgan.kernels.linear import fwd_launch

    def launched(x: Tensor, w: Tensor, b: Tensor, config: Config) -> tuple[Launch, tuple[Tensor, ...]]:
        y = x.new_empty(product.batch, product.fan_out)
        return fwd_launch(x, w, b, y, None, "leaky_relu", SLOPE, target, config=config), (y,)

    def library(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (F.leaky_relu_(F.linear(x, w, b), SLOPE),)

    shapes = (product.batch, product.fan_in), (product.fan_out, product.fan_in), (product.fan_out,)
    return shapes, library, launched


def backward_input(product: Product, target: Target) -> Direction:
    """gx = (gy phi'(y)) W."""
    from fastgan.kernels.linear_bwd_input import bwd_input_launch

    def launched(gy: Tensor, y: Tensor, w: Tensor, config: Config) -> tuple[Launch, tuple[Tensor, ...]]:
        gx = gy.new_empty(product.batch, product.fan_in)
        return bwd_input_launch(gy, y, w, gx, "leaky_relu", SLOPE, target, config=config), (gx,)

    def library(gy: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (masked(gy, y) @ w,)

    output = (product.batch, product.fan_out)
    return (output, output, (product.fan_out, product.fan_in)), library, launched


def backward_weight(product: Product, target: Target) -> Direction:
    """gW = (gy phi'(y))^T x, gb = sum of gy phi'(y)."""
    from fastgan.kernels.linear_bwd_weight import bwd_weight_launch

    def launched(gy: Tensor, y: Tensor, x: Tensor, config: Config) -> tuple[Launch, tuple[Tensor, ...]]:
        gw, gb = gy.new_empty(product.fan_out, product.fan_in), gy.new_empty(product.fan_out)
        return bwd_weight_launch(gy, y, x, gw, gb, "leaky_relu", SLOPE, target, config=config), (gw, gb)

    def library(gy: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        g = masked(gy, y)
        return g.t() @ x, g.sum(0)

    output = (product.batch, product.fan_out)
    return (output, output, (product.batch, product.fan_in)), library, launched


def masked(gy: Tensor, y: Tensor) -> Tensor:
    """Return gy phi'(y) by one kernel."""
    return torch.ops.aten.leaky_relu_backward(gy, y, SLOPE, True)


DIRECTIONS: dict[str, Callable[[Product, Target], Direction]] = dict(
    zip(OPS, (forward, backward_input, backward_weight), strict=True)
)
