"""What a verb says on standard output."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print ``text`` at once. A reader who has left (``fastgan train ... | head``) ends no training."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave()


def leave() -> None:
    """Send the rest of standard output nowhere, so that nothing complains at the end either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
