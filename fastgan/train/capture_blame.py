"""Which line of the user's code it was: the innermost one that is neither PyTorch's nor ours."""

from __future__ import annotations

import functools
import linecache
import os
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

import numpy as np
import torch

_OWN = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_FLOORS = [_OWN / floor for floor in ("ops", "nn", "kernels", "optim")]
_LIBRARIES = tuple(
    f"{folder}{os.sep}" for folder in (_TORCH, Path(np.__file__).parent, *_FLOORS, *(f.resolve() for f in _FLOORS))
)
_HERE = str(_OWN / "train" / "capture")
_STANDARD = sysconfig.get_path("stdlib")
_OPTIMIZERS = (f"{_TORCH / 'optim'}{os.sep}", f"{_OWN / 'optim'}{os.sep}")


def line() -> str:
    """The user's line that is being executed, and what it says: ``train.py:12 (`loss.item()`)``.

    Backward runs on a thread of PyTorch's own on a GPU; where nobody's line is on it, the main thread's is.
    """
    found = _innermost(_outwards(sys._getframe(1)))
    if found is None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        found = _innermost(_outwards(frame))
    return "the step" if found is None else _told(*found)


def line_of(error: BaseException) -> str:
    """The user's line that an exception passed."""
    frames = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    found = _innermost(reversed(frames))
    return "the step" if found is None else _told(*found)


def in_optimizer() -> bool:
    """Whether an optimiser's own code is being executed."""
    return any(code.co_filename.startswith(_OPTIMIZERS) for code, _ in _outwards(sys._getframe(1)))


def line_that_draws(run: Callable[[], object]) -> str:
    """Run once more, and find the line after which Python's or numpy's global random stream has moved."""
    state = _host_streams()
    at: tuple[CodeType, int] | None = None
    found: tuple[CodeType, int] | None = None

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal at, found
        if found is not None or _library(frame.f_code.co_filename):
            return None
        if event in ("line", "return") and _host_streams() != state:
            found = at
        at = frame.f_code, frame.f_lineno
        return follow

    former = sys.gettrace()
    sys.settrace(follow)
    try:
        run()
    finally:
        sys.settrace(former)
    return "the step" if found is None else _told(*found)


def _host_streams() -> tuple[object, ...]:
    _, key, *rest = np.random.get_state()
    return random.getstate(), np.asarray(key).tobytes(), *rest


def _outwards(frame: FrameType | None) -> Iterable[tuple[CodeType, int]]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _innermost(frames: Iterable[tuple[CodeType, int]]) -> tuple[CodeType, int] | None:
    return next((found for found in frames if not _library(found[0].co_filename)), None)


@functools.lru_cache(maxsize=4096)
def _library(file: str) -> bool:
    """Whether a file is PyTorch's, numpy's, Python's, or of those floors of ours that a step calls."""
    if file.startswith(("<", _HERE, *_LIBRARIES)):
        return True
    return file.startswith(_STANDARD) and "-packages" not in file


def _told(code: CodeType, number: int) -> str:
    text = linecache.getline(code.co_filename, number).strip()
    return f"{code.co_filename}:{number}" + (f" (`{text}`)" if text else "")
