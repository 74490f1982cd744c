"""Signals, in real processes: the first one is heard where it may be, the second one at once."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.process

BEGIN = """
import sys, time
from spectacles.core import signals
def say(text):
    print(text, flush=True)
def stay():
    say("ready")
    while True:
        time.sleep(0.01)
try:
    with signals.handled():
"""
END = """
except KeyboardInterrupt as stop:
    say("kept")
    sys.exit(stop.code)
"""
PLAIN = "        stay()"
STUBBORN = """
        try:
            stay()
        finally:
            say("stopping")
            time.sleep(3600)
"""
DEFERRED = """
        with signals.deferred():
            say("ready")
            sys.stdin.readline()
            say("step finished")
            signals.check()
            say("never")
"""


@contextmanager
def process(body: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BEGIN + body + END]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


def rest(started: subprocess.Popen[str], tell: str = "") -> tuple[str, int]:
    output, _ = started.communicate(tell, timeout=60)
    return output, started.returncode


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_its_own_status(number: signal.Signals, status: int) -> None:
    with process(PLAIN) as started:
        started.send_signal(number)
        assert rest(started) == ("kept\n", status)


def test_work_that_must_not_be_left_in_the_middle_is_finished_first() -> None:
    with process(DEFERRED) as started:
        started.send_signal(signal.SIGTERM)
        assert rest(started, "go on\n") == ("step finished\nkept\n", 143)


def test_a_second_signal_ends_at_once() -> None:
    with process(STUBBORN) as started:
        started.send_signal(signal.SIGTERM)
        assert started.stdout is not None
        assert started.stdout.readline() == "stopping\n"
        started.send_signal(signal.SIGINT)
        assert rest(started) == ("", 143)


def test_whatever_does_not_end_is_ended() -> None:
    with process("        signals.SECONDS_TO_STOP = 0.1\n" + STUBBORN) as started:
        started.send_signal(signal.SIGTERM)
        assert rest(started) == ("stopping\n", 143)
