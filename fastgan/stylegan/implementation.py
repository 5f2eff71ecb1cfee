"""``impl``, which every call of these operations may name: which implementation it takes."""

from __future__ import annotations

import contextlib
from typing import Any

from fastgan.errors import unknown
from fastgan.ops.backend import backend

IMPLEMENTATIONS = ("cuda", "ref")


def implementation(impl: str) -> Any:
    """Return a context for a call: "ref" is plain PyTorch, "cuda" what ``fastgan.backend`` says.

    Raises:
        UserError: for another name.
    """
    if impl not in IMPLEMENTATIONS:
        raise unknown("impl", impl, IMPLEMENTATIONS)
    return backend("reference") if impl == "ref" else contextlib.nullcontext()
