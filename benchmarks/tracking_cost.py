"""What tracking costs a step of training: no tracking, then a store that is well, dead, slow or locked.

`python -m benchmarks.tracking_cost`. Each case trains the same small net in a process of its own, which logs four
metrics every tenth step; the cases take turns, and each is compared with the case without tracking.
"""

import argparse
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from spectacles import run_dir as runs
from spectacles import tracking

CASES = ("none", "healthy", "dead", "slow", "locked")
WARM_UP, EVERY = 20, 10


def train(output_dir: Path, steps: int, tracked: bool) -> float:
    """Seconds that a step takes on average, its logging included."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters())
    images, labels = torch.rand(32, 3, 96, 96), torch.randint(2, (32,))
    started = 0.0
    for step in range(-WARM_UP, steps):
        if step == 0:
            started = time.perf_counter()
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if tracked and step % EVERY == 0:
            tracking.log_metrics({name: loss.item() for name in ("train_loss", "val_loss", "accuracy", "rate")}, step)
    return (time.perf_counter() - started) / steps


def command(output_dir: Path, steps: int, tracked: bool) -> None:
    """One case's process: prints seconds a step and seconds at the end of the command."""
    if not tracked:
        print(train(output_dir, steps, tracked), 0.0)
        return
    run_dir = runs.create(output_dir, "run")
    with tracking.parent_run(run_dir):
        seconds, ended = train(output_dir, steps, tracked), time.perf_counter()
    print(seconds, time.perf_counter() - ended)


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


def measure(case: str, steps: int, delay: float) -> tuple[float, float]:
    """Seconds a step, and seconds that the end waited for the delivery."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "out"
        with store(case, home, delay) as to:
            return run(case, steps, home, clean | ({} if to is None else {"MLFLOW_TRACKING_URI": to}))


def run(case: str, steps: int, home: Path, environment: dict[str, str]) -> tuple[float, float]:
    arguments = ["--case", case, "--steps", str(steps), "--output_dir", str(home)]
    command = [sys.executable, "-m", "benchmarks.tracking_cost", *arguments]
    done = subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE, env=environment)
    seconds, end = map(float, done.stdout.split())
    print(f"  {case}: {1000 * seconds:.2f} ms a step, {end:.1f} s at the end", flush=True)
    return seconds, end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=30, help="seconds after which the slow server answers")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        command(args.output_dir, args.steps, args.case != "none")
        return
    taken: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    for _ in range(args.rounds):
        for case in CASES:
            taken[case].append(measure(case, args.steps, args.delay))
    print(f"{'store':<10}{'ms a step':>10}{'of none':>10}{'spread':>16}{'end, s':>10}")
    for case, values in taken.items():
        ratios = [value / none for (value, _), (none, _) in zip(values, taken["none"], strict=True)]
        print(f"{case:<10}{1000 * statistics.median(value for value, _ in values):>10.2f}"
              f"{statistics.median(ratios):>10.3f}{f'{min(ratios):.3f} - {max(ratios):.3f}':>16}"
              f"{statistics.median(end for _, end in values):>10.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
