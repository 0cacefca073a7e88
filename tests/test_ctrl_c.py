"""Ctrl-C while models are trained: Ray Train takes the signal for itself."""

import signal
import sys

import pytest

from tasks.training import ctrl_c


def test_what_ray_train_makes_of_ctrl_c_is_a_ctrl_c_again_and_the_signal_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ctrl_c():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as Ray Train does
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_after_a_training_the_signal_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before
