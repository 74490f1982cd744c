"""SIGTERM and Ctrl-C: what is in memory is saved, then the command ends; a second signal ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

SECONDS_TO_STOP = 9.0
"""From the first signal until the process is ended in any case: Docker and SLURM kill after 10 s or more."""


class Stopped(KeyboardInterrupt):
    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class _Handler:
    """Handles the signals of a command: raises Stopped at once or, while `deferred`, leaves that to `check`."""

    def __init__(self) -> None:
        self.requested = 0
        """The first signal's number; 0 where none has come."""
        self.deferred = False
        self._watchdog: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._end()
        self.requested = number
        self._watchdog = threading.Timer(SECONDS_TO_STOP, self._end)
        self._watchdog.daemon = True
        self._watchdog.start()
        if not self.deferred:
            raise Stopped(number)

    def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _end(self) -> None:
        os._exit(128 + self.requested)


_active: ContextVar[_Handler | None] = ContextVar("signal_handler", default=None)


@contextmanager
def handled() -> Iterator[None]:
    """From here on a signal raises Stopped, at once or, inside `deferred`, at the next `check`. Outside the main thread
    signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    token = _active.set(handler)
    try:
        yield
    finally:
        _active.reset(token)
        for number, previous in before.items():
            signal.signal(number, previous)
        handler.close()


@contextmanager
def deferred() -> Iterator[None]:
    """Work that must not be interrupted at any point; it calls `check` where it may be, and after it."""
    handler = _active.get()
    if handler is None:
        yield
        return
    handler.deferred = True
    try:
        yield
    finally:
        handler.deferred = False


def stop_requested() -> bool:
    handler = _active.get()
    return handler is not None and handler.requested != 0


def request_stop() -> None:
    """As if the signal that another process has received had come here."""
    handler = _active.get()
    if handler is not None and not handler.requested:
        handler.requested = signal.SIGTERM


def check() -> None:
    """Raises Stopped where a signal has come."""
    handler = _active.get()
    if handler is not None and handler.requested:
        raise Stopped(handler.requested)
