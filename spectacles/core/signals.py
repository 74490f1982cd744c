"""SIGTERM and Ctrl-C: what is at hand is kept, then the command ends; a second signal ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace

SECONDS = 9.0
"""From the first signal to the end in any case: whoever stops machines (Docker, SLURM) kills after 10 s or more."""

_state = SimpleNamespace(asked=0, deferred=False, watchdog=None)


class Stopped(KeyboardInterrupt):
    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def handled() -> Iterator[None]:
    """From here on a signal raises Stopped, at once or, inside `deferred`, at the next `check`. Outside the main thread
    signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.asked, _state.deferred, _state.watchdog = 0, False, None

    def ask(number: int, frame: FrameType | None) -> None:
        if _state.asked:
            _end()
        _state.asked = number
        _state.watchdog = threading.Timer(SECONDS, _end)
        _state.watchdog.daemon = True
        _state.watchdog.start()
        if not _state.deferred:
            raise Stopped(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if _state.watchdog:
            _state.watchdog.cancel()


def _end() -> None:
    os._exit(128 + _state.asked)


@contextmanager
def deferred() -> Iterator[None]:
    """Work that must not be left in the middle; it calls `check` where it may be."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False
    check()


def asked() -> bool:
    return bool(_state.asked)


def join_in() -> None:
    """As if the signal that another process was sent had come here."""
    _state.asked = _state.asked or signal.SIGTERM


def check() -> None:
    """Raises Stopped where a signal has come."""
    if _state.asked:
        raise Stopped(_state.asked)
