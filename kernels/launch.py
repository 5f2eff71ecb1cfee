"""A launch of a kernel that can be run, or described without being run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant


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
