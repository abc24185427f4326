"""Signals that ask this process to stop, sent to it for real."""

import os
import signal

import pytest

from gr_sweep.train.signals import SIGNALS, Stopped, StopSignals


@pytest.fixture(autouse=True)
def handlers():
    """Those of before stay, whatever a test does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_ends_the_run_at_once_where_nothing_defers_it():
    after = []
    with pytest.raises(Stopped, match="stopped by SIGTERM"), StopSignals().listening():
        send(signal.SIGTERM)
        after.append("more work")
    assert not after


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_until_it_is_obeyed(number, capfd):
    signals, after = StopSignals(), []
    with pytest.raises(Stopped) as stopped, signals.listening(), signals.deferred():
        assert not signals.are_there
        send(number)
        assert signals.are_there
        after.append("saved")
        signals.obey()
    assert after == ["saved"] and stopped.value.signum == number
    assert ("Ctrl-C again" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_deferral_ends_with_its_block_or_with_a_second_ctrl_c():
    signals, after = StopSignals(), []
    with pytest.raises(Stopped), signals.listening():
        with signals.deferred():
            send(signal.SIGTERM)
            after.append("the step ends")
        after.append("evaluation")
    assert after == ["the step ends"]
    signals, after = StopSignals(), []
    with pytest.raises(Stopped), signals.listening(), signals.deferred():
        send(signal.SIGINT)
        after.append("the step ends")
        send(signal.SIGINT)
        after.append("saved")
    assert after == ["the step ends"]


def test_an_error_does_not_make_a_signal_forgotten():
    """Or else the sweep would go on with its next job."""
    signals = StopSignals()
    with pytest.raises(Stopped) as stop, signals.listening(), signals.deferred():
        send(signal.SIGTERM)
        raise ZeroDivisionError
    assert isinstance(stop.value.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError), signals.listening(), signals.deferred():
        raise ZeroDivisionError


def test_what_a_signal_did_before_is_done_by_hand_on_and_its_handler_is_put_back():
    calls = []

    def launcher(signum, frame):
        calls.append(signum)

    signal.signal(signal.SIGUSR2, launcher)
    with pytest.raises(Stopped) as stopped, StopSignals().listening():
        assert signal.getsignal(signal.SIGUSR2) != launcher
        send(signal.SIGUSR2)
    assert calls == [], "not before the run has saved"
    stopped.value.hand_on()
    assert calls == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR2) is launcher


def test_of_sigterm_and_sigusr2_the_launcher_gets_the_one_it_waits_for():
    """SLURM sends SIGTERM to every process of a step that it preempts, and then the signal that
    submitit asked for."""
    calls = []
    signal.signal(signal.SIGTERM, lambda signum, frame: calls.append("SIGTERM"))
    signal.signal(signal.SIGUSR2, lambda signum, frame: calls.append("SIGUSR2"))
    signals = StopSignals()
    with pytest.raises(Stopped) as stopped, signals.listening(), signals.deferred():
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        signals.obey()
    stopped.value.hand_on()
    assert calls == ["SIGUSR2"] and str(stopped.value) == "stopped by SIGUSR2"


def test_what_is_ignored_stays_ignored():
    """As Ctrl-C is for a job in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals().listening():
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
