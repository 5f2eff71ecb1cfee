"""The first signal is noted, the second acts as it always did, and afterwards nothing is left of it."""

import signal
import time

import pytest

from fastgan.train.signals import CODES, Interrupts


@pytest.mark.parametrize("number", CODES)
def test_first_is_noted_second_acts(number):
    def own(*_):
        raise KeyboardInterrupt

    former = {known: signal.signal(known, own) for known in CODES}
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(number)
            assert interrupts.exit_code == CODES[number]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert all(signal.getsignal(known) is own for known in CODES)
        with Interrupts() as undisturbed:
            pass
        assert undisturbed.exit_code == 0
        assert all(signal.getsignal(known) is own for known in CODES)
    finally:
        for known, handler in former.items():
            signal.signal(known, handler)


def test_an_echo_is_no_second_signal(monkeypatch):
    """A launcher and a batch system may both pass a signal on; later it is meant."""

    def own(*_):
        raise KeyboardInterrupt

    former, now = signal.signal(signal.SIGTERM, own), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    try:
        with Interrupts(echoes=2.0) as interrupts:
            signal.raise_signal(signal.SIGTERM)
            now[0] = 101.5
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert interrupts.exit_code == 143
            now[0] = 102.5
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, former)
