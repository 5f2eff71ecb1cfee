"""Data that do not lie on the device, read ahead of the steps so that no step waits if the disk keeps up.

    readers (threads)    take the numbers of the next batches, gather each into a staging buffer (pinned on a GPU)
      │                  and send it, by a stream of its own, to the ring once its place there is free
      ▼
    ring (the device)    batch ``count`` lies at place ``count % places``: where a step looks for it by the clock alone,
      │                  so that a captured graph finds each replay's batches, and none is copied a second time
      ▼
    steps                wait on the host for batches that are not there yet, and say when they are done with theirs

The order of batches is given by a function from a batch's number to its samples: whoever trains on a part of each batch
gives a function that returns that part. A reader that fails is heard of when a step needs what it was to read.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.data.gather import Array, Gather, gathering
from fastgan.errors import UserError

LEAST_PLACES = 8  # of the ring: a hiccup of the disk as long as these batches' steps is not felt
MOST_READERS = 8  # that are taken by themselves
PATIENCE = 10.0  # seconds for a reader to end, which may hang in a read
GLANCE = 0.0005  # seconds between two looks at whether the device has run dry

Rows = Callable[[int], Tensor]  # from a batch's number to its samples, int64 on the CPU


class Feeder:
    """Reads batches of ``data`` ahead, in the order of their numbers, into ``ring`` (places * size, *sample_shape).

    Args:
        data: samples on the host.
        device: where the steps run.
        rows: which samples a batch has, by its number: ``size`` of them.
        size: samples of a batch.
        at_once: batches that are needed at the same time, at most.
        readers: threads; 0: 8 from a disk, for which they wait, and from memory half as many as there are processors,
            2 to 8.

    Raises:
        UserError: for a batch larger than the data set.
    """

    def __init__(
        self, data: Dataset, device: torch.device, rows: Rows, size: int, *, at_once: int = 1, readers: int = 0
    ) -> None:
        if size > len(data):
            raise UserError(f"batch_size {size} is larger than the data set ({len(data)} samples): set a smaller one")
        self.data, self.device, self.size = data, device, size
        self.rows, self.readers = rows, readers or (MOST_READERS if data.file else _few())
        self.places = max(LEAST_PLACES, 2 * at_once)
        self.ring = torch.empty((self.places * size, *data.sample_shape), dtype=data.images.dtype, device=device)
        self._session: _Session | None = None
        self._stalled = self._told = 0.0

    @contextmanager
    def running(self, first: int) -> Iterator[None]:
        """Context in which batches from number ``first`` on are read; afterwards no thread and no buffer is left.

        Raises UserError where the data cannot be read.
        """
        with gathering(self.data) as gather:
            self._session = session = _Session(self, gather, first)
            try:
                session.start()
                yield
            finally:
                self._session = None
                session.end()
                self._stalled += session.stalled

    @contextmanager
    def lent(self, count: int) -> Iterator[int]:
        """Context in which the next ``count`` batches lie in the ring, the first of which has the number given.

        On a GPU they may be read by whatever is queued in it on the current stream. Raises UserError where they could
        not be read.
        """
        session = self._session
        assert session is not None, "batches are lent while the feeder is running"
        yield session.await_(count)
        session.release(count)

    def lying(self) -> Tensor:
        """The ring, in which steps find the batches that are lent: each at the place of its number."""
        assert self._session is not None, "steps are fed while the feeder is running"
        return self.ring

    def batch(self, number: int) -> Tensor:
        """A batch that is lent, as it lies."""
        self.lying()
        return self.place(number)

    def place(self, number: int) -> Tensor:
        """The place of a batch in the ring."""
        place = number % self.places
        return self.ring[place * self.size : (place + 1) * self.size]

    def stalled(self, *, keeps: bool = False) -> float:
        """Seconds that steps have waited for batches, with nothing to do, since the last reading that did not keep."""
        total = self._stalled + (self._session.stalled if self._session else 0.0)
        new, self._told = total - self._told, self._told if keeps else total
        return new


class _UnwantedError(Exception):
    """Nobody waits for what a reader reads."""


class _Release(NamedTuple):
    """Batches below ``upto`` are done with when ``event`` has come: None: now."""

    upto: int
    event: Any


class _Session:
    """The readers from one start to its end, and what they and the steps tell each other, under ``_changed``."""

    def __init__(self, feeder: Feeder, gather: Gather, first: int) -> None:
        self.stalled = 0.0
        self._feeder, self._gather = feeder, gather
        self._order, self._next = threading.Lock(), first  # of the numbers that readers take
        self._changed = threading.Condition()
        self._there: set[int] = set()
        self._released = deque([_Release(first, _now(feeder.device))])
        self._failed: BaseException | None = None
        self._over = False
        names = [f"fastgan-reader-{at}" for at in range(feeder.readers)]
        self._threads = [threading.Thread(target=self._read, name=name, daemon=True) for name in names]

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Have the readers end."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._failed is not None:
            traceback.clear_frames(self._failed.__traceback__)  # whoever keeps the error keeps no buffers

    def await_(self, count: int) -> int:
        """Wait for the next ``count`` batches; return the first one's number."""
        first = self._released[-1].upto
        assert count <= self._feeder.places, "more batches at once than was said"
        wanted = set(range(first, first + count))
        with self._changed:
            if not wanted <= self._there:
                self._stall(wanted)
            self._there -= wanted
        return first

    def _stall(self, wanted: set[int]) -> None:
        """Wait under the lock, and count the time that the device had nothing to do."""
        idle: float | None = None
        while not wanted <= self._there:
            if self._failed is not None:
                raise self._failed
            if idle is None and _has_come(self._released[-1].event):
                idle = time.perf_counter()
            self._changed.wait(GLANCE if idle is None else 1.0)
        if idle is not None:
            self.stalled += time.perf_counter() - idle

    def release(self, count: int) -> None:
        """Let the readers overwrite the oldest ``count`` batches once the device has come as far as this."""
        event = _now(self._feeder.device)
        with self._changed:
            upto = self._released[-1].upto + count
            self._released.append(_Release(upto, event))
            while self._released[0].upto <= upto - self._feeder.places:
                self._released.popleft()  # whatever is read now follows a later one
            self._changed.notify_all()

    def _read(self) -> None:
        """What a reader does."""
        try:
            lane = _lane(self._feeder)
            with lane.running():
                while True:
                    number, rows = self._take()
                    self._gather(rows, lane.staging)
                    lane.send(self._feeder.place(number), after=self._freed(number))
                    with self._changed:
                        self._there.add(number)
                        self._changed.notify_all()
        except _UnwantedError:
            pass
        except BaseException as error:
            with self._changed:
                self._failed = self._failed or error
                self._changed.notify_all()

    def _take(self) -> tuple[int, Tensor]:
        """The number of the next batch and its samples. One reader at a time: orders are formed epoch by epoch."""
        with self._order:
            if self._over:
                raise _UnwantedError
            number = self._next
            self._next += 1
            return number, self._feeder.rows(number)

    def _freed(self, number: int) -> Any:
        """Wait until steps are queued that use the last of a batch's place; return the event of their end."""
        former = number - self._feeder.places
        with self._changed:
            while not self._over and self._released[-1].upto <= former:
                self._changed.wait()
            if self._over:
                raise _UnwantedError
            return next(release.event for release in self._released if release.upto > former)


class _Lane:
    """A staging buffer and the way from it to the ring. In memory of the host, a copy."""

    def __init__(self, feeder: Feeder, pinned: bool = False) -> None:
        shape = (feeder.size, *feeder.data.sample_shape)
        self._buffer = torch.empty(shape, dtype=feeder.ring.dtype, pin_memory=pinned)
        self.staging: Array = self._buffer.numpy()

    def running(self) -> Any:
        """Context for all that a reader does."""
        return nullcontext()

    def send(self, place: Tensor, *, after: Any) -> None:
        """Copy to a place in the ring, whose last batch is done with after an event; return when it is there."""
        np.copyto(place.numpy(), self.staging)


class _CudaLane(_Lane):
    """On a GPU: pinned memory, and a stream of its own, so that copies run beside the steps."""

    def __init__(self, feeder: Feeder) -> None:
        try:
            super().__init__(feeder, pinned=True)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise UserError(f"no pinned memory for {feeder.readers} readers ({said}): set fewer readers") from error
        self._stream = torch.cuda.Stream(feeder.device)
        self._sent = torch.cuda.Event(blocking=True)

    def running(self) -> Any:
        """Context of the lane's stream, and of its device."""
        return torch.cuda.stream(self._stream)

    def send(self, place: Tensor, *, after: Any) -> None:
        """Copy once the event has come, and wait for it."""
        self._stream.wait_event(after)
        place.copy_(self._buffer, non_blocking=True)
        self._sent.record(self._stream)
        self._sent.synchronize()


def _lane(feeder: Feeder) -> _Lane:
    if feeder.device.type != "cuda":
        return _Lane(feeder)
    with torch.cuda.device(feeder.device):
        return _CudaLane(feeder)


def _now(device: torch.device) -> Any:
    """An event of the work that is queued on the current stream; None where nothing is queued."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _has_come(event: Any) -> bool:
    return event is None or event.query()


def _few() -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_READERS, max(2, processors // 2))
