"""The first signal is noted, the second acts as it always did, and afterwards nothing is left of it."""

import signal

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
