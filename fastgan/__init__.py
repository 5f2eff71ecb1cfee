"""fastgan: a GAN engine whose hot path is its own kernels. Everything is imported at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgan.nn.drop_in import convert as convert
    from fastgan.nn.drop_in import revert as revert
    from fastgan.ops.backend import backend as backend
    from fastgan.train.capture import capture as capture
    from fastgan.train.ensemble import Ensemble as Ensemble
    from fastgan.train.generate import load as load
    from fastgan.train.trainer import Trainer as Trainer

__version__ = "0.1.0"

FLOORS = (
    "errors",
    "kernels",
    "ops",
    "nn",
    "optim",
    "stylegan",
    "objectives",
    "models",
    "data",
    "presets",
    "evaluate",
    "train",
    "benchmarks",
    "cli",
)
NAMES = {
    "backend": "fastgan.ops.backend",
    "capture": "fastgan.train.capture",
    "convert": "fastgan.nn.drop_in",
    "Ensemble": "fastgan.train.ensemble",
    "load": "fastgan.train.generate",
    "revert": "fastgan.nn.drop_in",
    "Trainer": "fastgan.train.trainer",
}

__all__ = ["__version__", *FLOORS, *NAMES]


def __getattr__(name: str) -> Any:
    if name in FLOORS:
        return importlib.import_module(f"fastgan.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
