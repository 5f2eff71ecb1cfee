"""What a run says of itself: how it runs, and a progress bar."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from fastgan.errors import require
from fastgan.ops import backend
from fastgan.presets import Config
from fastgan.train import build
from fastgan.train.replays import Eagerly, Replays

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, done: int, shown: bool) -> tqdm[Any]:
    """A bar on standard error, iterations a second beside it; in a notebook, one of its own."""
    seen = sys.stderr is not None  # it is None where the process was started with stderr closed
    pause = 0.2 if seen and sys.stderr.isatty() else 10.0  # a log file wants few lines
    module = require("tqdm.auto", why="the progress bar")
    bar: tqdm[Any] = module.tqdm(
        total=total,
        initial=min(done, total),
        disable=not (shown and seen),
        dynamic_ncols=True,
        mininterval=pause,
        unit="it",
    )
    return bar


def describe(device: torch.device, config: Config, runner: Replays | Eagerly) -> str:
    """The device, its precision, the backend that the fused ops take there and why, and how steps run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    number = "bf16" if build.bf16(config, device) else "fp32"
    ways: dict[str, list[str]] = {}
    for choice in backend.explain(device):
        ways.setdefault(f"{choice.backend} ({choice.why})", []).append(choice.op)
    ops = "; ".join(f"{', '.join(ops) if len(ways) > 1 else 'fused ops'}: {way}" for way, ops in ways.items())
    return f"{name} in {number}; {ops}; steps: {_how(device, config, runner)}"


def _how(device: torch.device, config: Config, runner: Replays | Eagerly) -> str:
    """How steps run, and why so where they are not replayed."""
    if isinstance(runner, Replays):
        return f"{config.unroll} in one CUDA graph replay" if config.unroll > 1 else "one CUDA graph replay"
    if device.type != "cuda":
        return "eagerly, because a CUDA graph needs a GPU"
    return "eagerly, because " + ("the data lie in host memory" if config.graph else "graph=false")
