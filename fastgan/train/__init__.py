"""The engine: batches, step, loop, checkpoints, run folders and the pictures that a run leaves."""

from fastgan.train.trainer import Trainer

__all__ = ["Trainer"]
