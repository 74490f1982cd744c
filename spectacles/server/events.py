"""The server's log: one JSON object a line on stdout. No file name, no picture, no key, no address."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("spectacles.api")


@contextmanager
def on_stdout() -> Iterator[None]:
    """Whatever the program around the server does with its own logs."""
    handler = logging.StreamHandler(sys.stdout)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def write(event: str, **facts: Any) -> None:
    log.info(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}))
