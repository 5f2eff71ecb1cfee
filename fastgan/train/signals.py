"""Ctrl-C, SIGTERM and SIGUSR1 end a run at the next step, with everything saved; a second one ends it at once.

SIGUSR1 is what a batch system sends before it takes the machine away: its exit code says that the run may go on.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from fastgan.train.distributed import Team

CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    CODES[signal.SIGUSR1] = 128 + signal.SIGUSR1
ECHO = 2.0  # seconds in which a launcher and a batch system may pass one signal on to the same process of several


class Interrupts:
    """Context in which the first signal only sets ``exit_code``. Outside the main thread it changes nothing.

    ``echoes``: for so many seconds further signals are taken for the first.
    """

    def __init__(self, echoes: float = 0.0) -> None:
        self.exit_code = 0
        self._echoes, self._since = echoes, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._first) for number in CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def stops(self, team: Team, row: bool) -> bool:
        """Whether the run ends here, for a signal to any of the team: asked by all, on a GPU where a ``row`` ends."""
        if not team.many:
            return bool(self.exit_code)
        if not row and team.device.type != "cpu":
            return False
        agreed = team.most(self.exit_code)
        self.exit_code = agreed or self.exit_code  # a signal may have come meanwhile: it counts the next time
        return bool(agreed)

    def _first(self, number: int, frame: FrameType | None) -> None:
        if not self.exit_code:
            self.exit_code, self._since = CODES[number], time.monotonic()
            if not self._echoes:
                self._restore()
        elif time.monotonic() - self._since > self._echoes:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python
