"""How a kernel file states the compiled forms that its dispatcher can choose, to be audited without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One compiled form of one kernel, specialised as the launcher would specialise it.

    ``signature`` maps each runtime argument to its Triton type (``"*bf16"``, ``"i32"``, ``"fp32"``); arguments that the
    launcher folds because they equal 1 stand in ``constexprs`` instead, as the ``tl.constexpr`` parameters do.
    """

    op: str  # the op's file name on every floor: "linear"
    kernel: str  # the kernel's own name: "linear_fwd_kernel"
    fn: Any  # the @triton.jit function
    label: str  # what tells this variant from its sisters: "bf16 leaky_relu 128x128x64"
    signature: Mapping[str, str]
    constexprs: Mapping[str, object]
    divisible: frozenset[str] = field(default_factory=frozenset)  # arguments that the launcher finds divisible by 16
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int = 255  # what the kernel's file promises
    register_cap: int | None = None  # what the launcher hands to the compiler as maxnreg
    matrix_rows: int = 0  # rows of the tile of its matrix product; 0: it has none
