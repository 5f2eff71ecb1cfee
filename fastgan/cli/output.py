"""What a verb says on standard output."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def say(text: str) -> None:
    """Print ``text`` at once. A reader who has left (``fastgan train ... | head``) ends no training."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Context in which warnings of this package are a line of text each, without a place in its source."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
            if category is UserWarning and "fastgan" in Path(filename).parts:
                print(f"fastgan: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                others(message, category, filename, *rest)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def leave() -> None:
    """Send the rest of standard output nowhere, so that nothing complains at the end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
