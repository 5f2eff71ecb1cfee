"""Every compiled form of the linear kernels that the dispatcher can choose, for the audit.

Triton folds sizes and strides of 1 and notes what 16 divides, so layouts and odd sizes are forms of their own. bf16
and TF32 go through all of them, each in every tile of the heuristic. What differs by one instruction is not crossed
with everything: fp16 and IEEE fp32 go through the first of them, and programs share a tile in the cases that say so.
The gradient of 16-bit weights is formed in 16 bits, and in fp32 where they stand in for such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.launch import Launch
from fastgan.kernels.linear import Dropout, fwd_launch, fwd_problem
from fastgan.kernels.linear_bwd_input import Below, bwd_input_launch, bwd_input_problem
from fastgan.kernels.linear_bwd_weight import bwd_weight_launch, bwd_weight_problem
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.tile import Config, Problem, Target, candidates
from fastgan.kernels.variant import Variant

GROUPS = 2


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own."""

    activation: str = "leaky_relu"
    slope: float = 0.2
    bias: bool = True
    x: str = "rows"
    w: str = "rows"
    gy: str = "rows"
    M: int = 4096
    N: int = 256
    K: int = 512
    below: str = "none"  # the activation that the input came out of, where its gradient goes on through it
    norm: str = ""  # "in": the input is a raw output; "out": the output's statistics are wanted; "both"
    drop: str = ""  # "last" or "first": dropout after or before the activation
    split: bool = False  # also with programs that share a tile

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)} | {"split=True"}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    _Case(split=True),
    _Case(M=100, split=True),
    *(_Case(activation) for activation in ("none", "relu", "tanh", "sigmoid")),
    _Case(slope=-0.2),
    _Case("none", below="leaky_relu", norm="both", split=True),
    _Case(bias=False),
    *(_Case(x=x, w=w, gy=x, split=True) for x, w in (("rows", "columns"), ("columns", "rows"), ("columns", "columns"))),
    _Case(x="steps", w="steps", gy="steps"),
    _Case(gy="expanded", split=True),
    *(_Case(N=N, K=K, split=True) for N, K in ((1, 512), (256, 1), (255, 511))),
    *(_Case(N=N, K=K) for N, K in ((255, 512), (256, 511))),
    *(_Case(activation, M=100) for activation in ("none", "relu", "tanh", "sigmoid")),
    _Case(M=100, N=255, K=511),
    *(_Case(below=below) for below in ("relu", "leaky_relu", "tanh", "sigmoid")),
    *(_Case(name, drop=drop) for name, drop in (("leaky_relu", "last"), ("tanh", "last"), ("tanh", "first"))),
    *(_Case("none", below=below, norm=norm) for below in ("relu", "leaky_relu") for norm in ("in", "out")),
    _Case("tanh", below="leaky_relu", norm="in"),
    _Case("none", below="relu", norm="both"),
    _Case("none", below="leaky_relu", norm="both", N=255, K=511),
)
_FEW, _MANY = 8, 24  # of them, for fp16
_FORMS = (
    (torch.bfloat16, "tf32", _CASES),
    (torch.float16, "tf32", _CASES[:_FEW]),
    (torch.float32, "tf32", _CASES),
    (torch.float32, "ieee", _CASES[:_MANY]),
)


def _meta(rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Build an operand without storage: contiguous along rows or columns, in steps of 2, or one element for all."""
    strides = {"rows": (cols, 1), "columns": (1, rows), "steps": (4 * cols, 2), "expanded": (0, 0)}[layout]
    return torch.empty_strided((rows, cols), strides, dtype=dtype, device="meta")


def _vector(*size: int) -> Tensor:
    return torch.empty(size, device="meta")


def _launches(case: _Case, dtype: torch.dtype, target: Target) -> Iterator[Launch]:
    """Yield what is launched for such operands, in each tile that may be chosen."""
    M, N, K, how = case.M, case.N, case.K, (case.activation, case.slope, target)
    x, w, gy = _meta(M, K, case.x, dtype), _meta(N, K, case.w, dtype), _meta(M, N, case.gy, dtype)
    y, gx = (_meta(*size, "rows", dtype) for size in ((M, N), (M, K)))
    bias = torch.empty(N, dtype=dtype, device="meta") if case.bias else None
    measured = case.norm in ("out", "both")
    saved = y if measured or case.activation != "none" else None
    drop = (
        Dropout(torch.empty(2, dtype=torch.int64, device="meta"), 2**31, 2.0, case.drop == "first")
        if case.drop
        else None
    )
    norm = None
    forward: dict[str, Any] = {"dropout": drop}
    inward: dict[str, Any] = {}
    weight: dict[str, Any] = {}
    if case.norm in ("in", "both"):
        norm = Norm(_vector(GROUPS, K), _vector(GROUPS, K), _vector(K), _vector(K), 1e-5, case.below, 0.2)
        forward["norm"] = weight["norm"] = inward["norm"] = norm
        inward |= {"raw": gx, "to": NormGradients(_vector(GROUPS, K), _vector(GROUPS, K), _vector(K), _vector(K))}
    elif case.below != "none":
        inward["below"] = Below(gx, case.below, 0.2)
    if drop:
        inward["below"] = Below(gx, case.activation, 0.2, drop)
    if measured:
        vectors = (_vector(GROUPS, N), _vector(GROUPS, N), _vector(N), _vector(N))
        forward["statistics"] = Statistics(*vectors, None, 0.1)
        inward["correction"] = weight["correction"] = Correction(*(_vector(GROUPS, N) for _ in range(3)))
    pre = y if case.slope < 0 else None
    beside = inward.get("correction"), inward.get("below"), norm
    for tile in _tiles(case, fwd_problem(x, w, target, pre, **forward)):
        yield fwd_launch(x, w, bias, y, pre, *how, **forward, config=tile)
    for tile in _tiles(case, bwd_input_problem(gy, saved, w, target, *beside)):
        yield bwd_input_launch(gy, saved, w, gx, *how, **inward, config=tile)
    for kind in {dtype: None, torch.float32: None}:
        gw, gb = _meta(N, K, "rows", kind), None if bias is None else bias.to(kind)
        for tile in _tiles(case, bwd_weight_problem(gy, saved, x, target, **weight)):
            yield bwd_weight_launch(gy, saved, x, gw, gb, *how, **weight, config=tile)


def _tiles(case: _Case, problem: Problem) -> Iterator[Config]:
    """Yield the tiles that may be chosen; however many programs share one, it is one form."""
    yield from (tile for tile in candidates(problem) if tile.split == 1 or case.split)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that the dispatcher can choose on compute capability arch / 10, each once."""
    seen = set()
    for dtype, precision, case in ((dtype, precision, case) for dtype, precision, cases in _FORMS for case in cases):
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype, Target(arch, precision)):
            rows = 0 if precision == "ieee" else launch.config.rows
            variant = launch.variant("linear", f"{kind} {case} {launch.config}", rows)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible, launch.config))
            if form not in seen:
                seen.add(form)
                yield variant
