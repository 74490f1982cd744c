"""The server's log: one JSON object a line on stdout. No file name, no picture, no key, no address."""

import json
import sys
from datetime import UTC, datetime
from typing import Any


def write(event: str, **facts: Any) -> None:
    """Straight to the stream: what passes through `logging` takes three times as long, for each image."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
