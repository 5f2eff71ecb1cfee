"""The five ways in which a PyTorch user may run a training step, as one object that prepares its parts.

A baseline is written once, plainly, and asks its rung for what differs: ``rung.network(module)``,
``rung.adam(parameters)`` and ``with rung.autocast():``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder, on one device. ``precision`` is the autocast dtype; None: the networks' own dtype."""

    number: int
    name: str
    device: torch.device
    precision: torch.dtype | None = None
    tuned: bool = False  # channels_last, cudnn.benchmark, fused capturable Adam
    compile_mode: str | None = None
    captured: bool = False  # the whole step in one CUDA graph

    @property
    def dtype(self) -> str:
        """How a row calls its precision."""
        return str(self.precision or torch.float32).removeprefix("torch.")

    @property
    def obstacle(self) -> str | None:
        """Why the rung cannot be climbed on this device; None where it can."""
        if self.device.type == "cuda":
            return None
        if self.captured:
            return "a whole-step CUDA graph needs a GPU"
        return "max-autotune needs a GPU" if self.compile_mode else None

    def network(self, module: nn.Module) -> nn.Module:
        """Return a network on the rung's device, in its memory format, compiled where the rung compiles."""
        module = module.to(self.device)
        if self.tuned:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_mode is not None:
            module.compile(mode=self.compile_mode)
        return module

    def adam(self, parameters: Iterable[nn.Parameter], **options: Any) -> torch.optim.Adam:
        """Return torch's Adam: plain on the first rung, fused (and capturable on a GPU) above."""
        if self.tuned:
            options |= {"fused": True, "capturable": self.device.type == "cuda"}
        return torch.optim.Adam(parameters, **options)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


@dataclass
class TrainingStep:
    """A training step to be timed: ``run`` does one whole step on fixed inputs and returns its losses."""

    run: Callable[[], tuple[Tensor, ...]]
    networks: tuple[nn.Module, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    inputs: tuple[Tensor, ...] = ()  # latents, real samples and what else is drawn, where every step reads them


def rungs(device: torch.device, precision: torch.dtype | None) -> list[Rung]:
    """Return the ladder, from what people write to the best that PyTorch offers; rungs 2 to 5 at ``precision``."""
    compiled, inside = "max-autotune", "max-autotune-no-cudagraphs"
    return [
        Rung(1, "1 eager", device),
        Rung(2, "2 eager, tuned", device, precision, True),
        Rung(3, "3 tuned, CUDA graph", device, precision, True, captured=True),
        Rung(4, "4 max-autotune", device, precision, True, compiled),
        Rung(5, "5 max-autotune, CUDA graph", device, precision, True, inside, captured=True),
    ]


def our_precision(device: torch.device) -> torch.dtype | None:
    """Return what ``precision: auto`` means: bf16 autocast from compute capability 8.0 on, fp32 elsewhere."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return None
