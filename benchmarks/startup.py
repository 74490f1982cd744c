"""What a start costs: seconds of short commands, seconds until the server is ready, and the memory that it takes.

`python -m benchmarks.startup --bundle BUNDLE --photo photo.jpg [--before CHECKOUT BUNDLE]`
With another checkout of this project, each round measures both, one after the other. Prints medians.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common, http_client, server_process
from spectacles.core.errors import UserError

HELP = ("predict.py", "train.py", "evaluate.py", "run_pipeline.py", "api.py")
PHOTOS = 100
"""Sent one after the other before the memory is read again."""
COLUMNS = ("wall s", "CPU s", "MB", "MB later")


@dataclass(frozen=True)
class Side:
    name: str
    checkout: Path
    bundle: Path

    def command(self, script: str, *arguments: object) -> list[str]:
        return [sys.executable, str(self.checkout / script), *map(str, arguments)]


def command(side: Side, script: str, *arguments: object) -> list[float]:
    """(wall seconds, CPU seconds) of a whole process. Raises UserError where it fails."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(side.command(script, *arguments), cwd=side.checkout, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise UserError(f"{side.name}: {script} failed: {done.stderr.strip()[-300:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return [wall, used]


def server(side: Side, photo: Path) -> list[float]:
    """(wall seconds until it is ready, CPU seconds until then, MB then, MB after PHOTOS), the memory of all its
    processes, shared pages counted once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        started_server = server_process.running(
            side.command("api.py", "--bundle", side.bundle, "--port", port), Path(folder) / "log", port
        )
        with started_server as running:
            wall, used, memory = time.perf_counter() - started, running.cpu_seconds(), running.memory()
            asyncio.run(predict(port, http_client.photo_request(photo.read_bytes())))
            return [wall, used, memory, running.memory()]


async def predict(port: int, request: bytes) -> None:
    """Raises UserError where a photo is not answered."""
    client = http_client.Client(port)
    for _ in range(PHOTOS):
        reply = await client.ask(request)
        if reply.status != 200:
            raise UserError(f"the server answers {reply.status}: {reply.body[:300]!r}")
    client.close()


def measure(sides: Sequence[Side], photo: Path, rounds: int) -> dict[tuple[str, str], list[list[float]]]:
    """(what, side) -> a row for each round. The first round only warms the disk's cache."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(rounds + 1):
        for side in sides:
            rows = {f"{script} --help": command(side, script, "--help") for script in HELP}
            rows["predict.py photo.jpg"] = command(side, "predict.py", photo, "--bundle", side.bundle)
            rows["server ready"] = server(side, photo)
            for what, row in rows.items():
                found.setdefault((what, side.name), []).extend([row] if number else [])
    return found


def report(found: dict[tuple[str, str], list[list[float]]]) -> None:
    print(f"{'':34}" + "".join(f"{column:>10}" for column in COLUMNS))
    for (what, side), rows in sorted(found.items()):
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{what:24}{side:10}" + "".join(f"{value:10.2f}" for value in medians))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--before", type=Path, nargs=2, metavar=("CHECKOUT", "BUNDLE"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sides = [Side("now", common.ROOT, args.bundle.resolve())]
    if args.before:
        sides.append(Side("before", args.before[0].resolve(), args.before[1].resolve()))
    with common.exit_codes():
        report(measure(sides, args.photo.resolve(), args.rounds))


if __name__ == "__main__":
    main()
