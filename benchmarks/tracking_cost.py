"""What tracking costs a training step, with an MLflow store that works, is down, slow or locked.

`python -m benchmarks.tracking_cost`
Each case trains a small network in a process of its own, in short blocks of steps. In every other block four metrics
are logged every tenth step and the sender runs; in the rest nothing is logged and the sender is stopped. Other load on
the machine affects both kinds alike, which the case "none", without any tracking, verifies. Prints milliseconds per
step, the ratio of the two kinds with the 95 % bootstrap interval over the pairs of blocks, and the seconds that the
command waited for the delivery at its end.
"""

import argparse
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from spectacles.core.run_dir import create_run
from spectacles.tracking import tracking

CASES = ("none", "healthy", "dead", "slow", "locked")
BLOCK, EVERY = 20, 10
"""Steps in a block, and from one that is logged to the next."""
START_SECONDS = 15.0
"""Not measured: the sender starts, which costs once and not by the step."""


def train(pairs: int, sender: int | None) -> list[tuple[float, float]]:
    """Seconds a step, (tracked, not tracked), of each pair of blocks. `sender`: its process id."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters())
    images, labels = torch.rand(32, 3, 96, 96), torch.randint(2, (32,))
    done = 0

    def block(tracked: bool) -> float:
        nonlocal done
        if sender:
            os.kill(sender, signal.SIGCONT if tracked else signal.SIGSTOP)
        started = time.perf_counter()
        for step in range(done, done + BLOCK):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if sender and tracked and step % EVERY == 0:
                names = ("train_loss", "val_loss", "accuracy", "rate")
                tracking.log_metrics({name: loss.item() for name in names}, step)
        done += BLOCK
        return (time.perf_counter() - started) / BLOCK

    began = time.monotonic()
    while time.monotonic() < began + START_SECONDS:
        block(tracked=True)
    found = []
    for pair in range(pairs):
        first = block(tracked=pair % 2 == 0)  # neither kind is always the first
        second = block(tracked=pair % 2 == 1)
        found.append((second, first) if pair % 2 else (first, second))
    if sender:
        os.kill(sender, signal.SIGCONT)
    return found


def command(output_dir: Path, pairs: int, tracked: bool) -> None:
    """One case's process: prints what `train` finds, and seconds at the end of the command."""
    if not tracked:
        print(json.dumps([train(pairs, None), 0.0]))
        return
    run_dir = create_run(output_dir, "run")
    with tracking.parent_run(run_dir) as sender:
        found = train(pairs, sender.pid if sender else None)
        ended = time.perf_counter()
    print(json.dumps([found, time.perf_counter() - ended]))


@contextmanager
def store(case: str, output_dir: Path, delay: float) -> Iterator[str | None]:
    """The address that the case's process is given; None: the database of its output folder."""
    output_dir.mkdir()
    if case == "locked":
        lock = sqlite3.connect(output_dir / "mlflow.db")
        lock.execute("BEGIN EXCLUSIVE")
        yield None
        lock.close()
    elif case in ("dead", "slow"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            if case == "slow":
                threading.Thread(target=answer_late, args=(listener, delay), daemon=True).start()
            else:
                listener.close()
            yield address
    else:
        yield None


def answer_late(listener: socket.socket, delay: float) -> None:
    """Every request gets an answer, after `delay`."""

    def reply(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(65536)
            time.sleep(delay)
            connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with suppress(OSError):
        while True:
            threading.Thread(target=reply, args=(listener.accept()[0],), daemon=True).start()


def measure(case: str, pairs: int, delay: float) -> tuple[np.ndarray, float]:
    """Seconds a step (pairs, 2), tracked and not, and seconds that the end waited for the delivery."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "out"
        with store(case, home, delay) as to:
            arguments = ["--case", case, "--pairs", str(pairs), "--output_dir", str(home)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.tracking_cost", *arguments],
                text=True, check=True, stdout=subprocess.PIPE,
                env=clean | ({} if to is None else {"MLFLOW_TRACKING_URI": to}),
            )  # fmt: skip
    found, end = json.loads(done.stdout)
    return np.array(found), end


def interval(found: np.ndarray) -> tuple[float, float, float]:
    """The ratio of both kinds' sums, and the 95 % interval of a bootstrap over pairs."""
    again = np.random.default_rng(0).integers(len(found), size=(10_000, len(found)))
    sums = found[again].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return found[:, 0].sum() / found[:, 1].sum(), low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="pairs of blocks a case")
    parser.add_argument("--delay", type=float, default=30, help="seconds after which the slow server answers")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        command(args.output_dir, args.pairs, args.case != "none")
        return
    print(f"{'store':<10}{'ms a step':>10}{'untracked':>10}{'ratio':>8}{'95 %':>16}{'end, s':>8}")
    for case in CASES:
        found, end = measure(case, args.pairs, args.delay)
        ratio, low, high = interval(found)
        tracked, untracked = 1000 * found.mean(axis=0)
        print(f"{case:<10}{tracked:>10.2f}{untracked:>10.2f}{ratio:>8.3f}{f'{low:.3f} - {high:.3f}':>16}{end:>8.1f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
