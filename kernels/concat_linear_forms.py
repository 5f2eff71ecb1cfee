"""The compiled forms of the kernels of concatenated inputs, to be audited without a GPU.

bf16 goes through all cases, TF32 and IEEE fp32 through the activations, fp16, which is as bf16, through one. The
gradient of 16-bit weights is formed in fp32, and in the first case in 16 bits too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastgan.kernels.concat_linear import Part, bwd_weight_launch, bwd_weight_problem, fwd_launch, fwd_problem
from fastgan.kernels.launch import Launch
from fastgan.kernels.tile import Target, candidates
from fastgan.kernels.variant import Variant


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    activation: str = "leaky_relu"
    slope: float = 0.2
    bias: bool = True
    parts: tuple[str, ...] = ("rows", "rows")
    w: str = "rows"
    gy: str = "rows"
    M: int = 1024
    N: int = 256
    K: tuple[int, ...] = (512, 128)

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.activation, *(text for text in told if text not in usual)]).replace("'", "")


_TWO = (("rows", "rows"), ("rows", "embedded"), ("columns", "columns"))
_CASES = (
    *(_Case(activation) for activation in ("none", "relu", "leaky_relu", "tanh", "sigmoid")),
    _Case(slope=-0.2),
    _Case(bias=False),
    *(_Case(parts=("rows", second)) for second in ("embedded", "expanded", "steps")),
    *(_Case(parts=("rows", "embedded"), K=K) for K in ((784, 10), (2, 10), (33, 1))),
    _Case(parts=("embedded",), K=(512,)),
    _Case(parts=("rows", "rows", "rows"), K=(256, 256, 128)),
    _Case(parts=("rows", "embedded", "rows"), K=(256, 33, 95)),
    _Case(parts=("columns", "columns"), w="columns", gy="columns"),
    _Case(gy="expanded"),
    *(_Case(activation, parts=parts, M=1000) for activation in ("leaky_relu", "tanh") for parts in _TWO),
    *(_Case(N=N, K=K) for N, K in ((1, (512, 128)), (255, (511, 10)))),
)
_FORMS = (
    (torch.bfloat16, "tf32", _CASES),
    (torch.float32, "tf32", _CASES[:5]),
    (torch.float16, "tf32", _CASES[:1]),
    (torch.float32, "ieee", _CASES[:5]),
)


def _meta(rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Build an operand without storage: contiguous along rows or columns, in steps of 2, or one row for all."""
    strides = {"columns": (1, rows), "steps": (4 * cols, 2), "expanded": (0, 1)}.get(layout, (cols, 1))
    return torch.empty_strided((rows, cols), strides, dtype=dtype, device="meta")


def _launches(case: _Case, dtype: torch.dtype, target: Target) -> Iterator[Launch]:
    """Yield what the dispatcher launches for such operands, in each tile that it may choose."""
    M, N, K, how = case.M, case.N, sum(case.K), (case.activation, case.slope, target)
    index = torch.empty(M, dtype=torch.int64, device="meta")
    parts: list[Part] = [
        (_meta(M, size, layout, dtype), index if layout == "embedded" else None)
        for size, layout in zip(case.K, case.parts, strict=True)
    ]
    w, gy, y = (_meta(*size, dtype) for size in ((N, K, case.w), (M, N, case.gy), (M, N, "rows")))
    bias = torch.empty(N, dtype=dtype, device="meta") if case.bias else None
    saved = None if case.activation == "none" else y
    for tile in candidates(fwd_problem(parts, w, y, target)):
        yield fwd_launch(w, bias, y, y if case.slope < 0 else None, *how, parts=parts, config=tile)
    for kind in dict.fromkeys((torch.float32, dtype) if case == _CASES[0] else (torch.float32,)):
        gw, gb = _meta(N, K, "rows", kind), None if bias is None else bias.to(kind)
        for tile in candidates(bwd_weight_problem(gy, saved, parts, target)):
            yield bwd_weight_launch(gy, saved, gw, gb, *how, parts=parts, config=tile)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that the dispatcher can choose on compute capability arch / 10, each once."""
    seen = set()
    for dtype, precision, case in ((dtype, precision, case) for dtype, precision, cases in _FORMS for case in cases):
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype, Target(arch, precision)):
            rows = 0 if precision == "ieee" else launch.config.rows
            variant = launch.variant("concat_linear", f"{kind} {case} {launch.config}", rows)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible, launch.config))
            if form not in seen:
                seen.add(form)
                yield variant
