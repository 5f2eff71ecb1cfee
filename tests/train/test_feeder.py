"""The feeder by itself: each batch at its time, whole while it is lent, and no wait that need not be."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
import torch

from fastgan.data import Dataset
from fastgan.train import feed
from fastgan.train.feed import Feeder

CPU = torch.device("cpu")
DICE = random.Random(0)


class Sent:
    """Samples that say which they are: sample i holds i."""

    def __init__(self, n=1000, size=5, **more):
        self.numbers = torch.arange(n, dtype=torch.float32).repeat_interleave(3).view(n, 3).contiguous()
        self.feeder = Feeder(Dataset("numbers", self.numbers), CPU, self.rows, size, **more)
        self.size = size

    def rows(self, number):
        return (torch.arange(self.size) * 7 + number * self.size) % len(self.numbers)

    def right(self, number):
        return torch.equal(self.feeder.batch(number), self.numbers[self.rows(number)])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("threads", [1, 2, 5, 20])
def test_every_batch_is_there_whole_at_its_time_and_for_as_long_as_it_is_lent(threads, count, slow, reading):
    sent = Sent(at_once=count, readers=threads)
    with slow(lambda: DICE.random() * 0.001), sent.feeder.running(11):
        for turn in range(40):
            with sent.feeder.lent(count) as first:
                assert first == 11 + turn * count
                if turn % 10 == 3:
                    time.sleep(0.005)  # the readers run as far ahead as they may
                assert all(sent.right(number) for number in range(first, first + count))
    assert not reading()


def test_readers_do_not_run_ahead_without_end():
    taken, sent = [], Sent(readers=3)
    rows = sent.feeder.rows
    sent.feeder.rows = lambda number: taken.append(number) or rows(number)
    with sent.feeder.running(0):
        time.sleep(0.2)
        assert max(taken) < sent.feeder.places + 3
    assert sorted(taken) == list(range(len(taken)))


def test_what_a_reader_cannot_do_is_not_hidden(reading):
    """A fault of ours is no mistake of the user's: it comes with its traceback."""
    sent = Sent(readers=2)
    sent.feeder.rows = lambda number: [][number]
    with pytest.raises(IndexError), sent.feeder.running(0), sent.feeder.lent(1):
        pass
    assert not reading()


def test_a_read_that_hangs_can_be_interrupted_and_reaches_no_later_run(monkeypatch, reading):
    """Its reader is waited for, but not for ever; when the disk comes back, it ends and leaves the ring alone."""
    sent, hangs = Sent(readers=1), threading.Event()
    rows = sent.feeder.rows
    sent.feeder.rows = lambda number: hangs.wait() and rows(number + 500)
    monkeypatch.setattr(feed, "PATIENCE", 0.05)
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), sent.feeder.running(0), sent.feeder.lent(1):
        pass
    (stuck,) = reading()
    sent.feeder.rows = rows
    with sent.feeder.running(0):
        with sent.feeder.lent(1):
            hangs.set()
            stuck.join()
        for number in range(1, 20):
            with sent.feeder.lent(1):
                assert sent.right(number)
    assert not reading()


def test_steps_that_are_slower_than_the_readers_do_not_wait(slow):
    """Even where a batch now and then takes far longer than a step."""
    sent = Sent(readers=2)
    delays = iter([0.05 if number % 10 == 9 else 0.001 for number in range(1000)])
    with slow(lambda: next(delays)), sent.feeder.running(0):
        for turn in range(40):
            with sent.feeder.lent(1):
                time.sleep(0.02)
            if not turn:
                sent.feeder.stalled()  # the first batch is waited for
        assert sent.feeder.stalled() < 0.1


@pytest.mark.gpu
def test_a_busy_gpu_is_not_said_to_wait():
    """Where each step takes long, the host waits for room in the ring, and that is no stall."""
    size, place = 64, torch.device("cuda")
    data = Dataset("numbers", torch.rand(1000, 30_000))
    feeder = Feeder(data, place, lambda number: torch.arange(size) + number % 900, size, readers=4)
    with feeder.running(0):
        for turn in range(30):
            with feeder.lent(1) as number:
                assert number == turn
                torch.cuda._sleep(100_000_000)  # some 50 ms
                got = feeder.batch(number)[:, 0].clone()
            if turn == 5:
                feeder.stalled()
            if turn % 7 == 0:
                assert torch.equal(got.cpu(), data.images[torch.arange(size) + number % 900, 0])
        assert feeder.stalled() < 0.1


@pytest.mark.gpu
def test_batches_of_a_gpu_are_not_overwritten_before_they_are_used():
    """The device lags far behind the host, which does not wait for it."""
    size, place = 16, torch.device("cuda")
    data = Dataset("numbers", torch.rand(1000, 1000))
    feeder = Feeder(data, place, lambda number: (torch.arange(size) * 3 + number) % 1000, size, readers=4)
    kept = torch.empty(60, size, 1000, device=place)
    with feeder.running(0):
        for _ in range(60):
            with feeder.lent(1) as number:
                torch.cuda._sleep(5_000_000)
                kept[number].copy_(feeder.batch(number))
    for number in range(60):
        assert torch.equal(kept[number].cpu(), data.images[(torch.arange(size) * 3 + number) % 1000])
