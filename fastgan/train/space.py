"""Whether the disk has room for a checkpoint, asked before it is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fastgan.errors import UserError

if TYPE_CHECKING:
    from fastgan.train.checkpoint import Checkpoint

HEADERS = 256  # bytes: more than a tensor's entry in a header, or a value's in the manifest, takes
MARGIN = 1 << 16  # bytes for the folder itself


def size(checkpoint: Checkpoint) -> int:
    """Bytes that a checkpoint takes, or a little more."""
    tensors = [tensor for named in checkpoint.tensors.values() for tensor in named.values()]
    entries = len(tensors) + len(checkpoint.values.get("optimizer_scalars", ()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + HEADERS * entries + MARGIN


def check(folder: Path, needed: int) -> None:
    """Raise UserError where the disk of ``folder``, which is there, has fewer than ``needed`` bytes left."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # a file system that does not tell: writing will
        return
    if free < needed:
        raise UserError(
            f"a checkpoint in {folder} takes {_megabytes(needed)}, and {_megabytes(free)} of that disk are free: make"
            " room, then go on with --resume"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
