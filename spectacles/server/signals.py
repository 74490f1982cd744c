"""Signals of a running app, whichever server runs it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from spectacles.core.errors import UserError
from spectacles.server.service import Service

ENDS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handled(service: Service) -> Iterator[None]:
    """SIGHUP loads the bundle anew. SIGTERM and Ctrl-C first make the service not ready, so that load balancers send no
    more, and reach the handler that they had `drain` seconds later; a second one reaches it at once.

    Does nothing outside the main thread, where Python sets no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        pass_on = partial(before[number], number, frame)
        if asked:
            pass_on()
        else:  # from the event loop, which the signal may have interrupted anywhere, or while it sleeps
            asked = True
            service.loop.call_soon_threadsafe(drain, pass_on)

    def drain(then: Callable[[], None]) -> None:
        service.drain()
        service.loop.call_later(service.settings.drain, then)

    def reload(number: int, frame: FrameType | None) -> None:
        asyncio.run_coroutine_threadsafe(_reload(service), service.loop)

    handlers = {number: end for number in ENDS if callable(signal.getsignal(number))}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = reload
    for number, handler in handlers.items():
        before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


async def _reload(service: Service) -> None:
    with suppress(UserError):  # swap has logged it
        await service.swap()
