"""Whether a run that is killed again and again ends as one that was never killed.

`python -m benchmarks.crash --output_dir FOLDER [--kills 100] [--seed 0]`
Trains on drawn faces, both phases: once undisturbed, then again with SIGKILL at random moments, each followed by
--resume, in as many runs as that takes. Counts lost checkpoints (training resumed from an older one than the newest),
unreadable ones, runs that MLflow still shows as running, leftover files, and different weights: all should be 0.
"""

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pandas as pd

from benchmarks import common
from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.models.bundle import load_bundle
from spectacles.sample_data import generate
from spectacles.training import checkpoint

NAME = "run"
FLAGS = (
    "--stages", "dataset,train", "--image_size", "32", "--batch_size", "8", "--epochs", "3", "--device", "cpu",
    "--engine", "torch", "--fine_tune", "always", "--ema", "0.9", "--mixup", "0.2", "--grad_accum_steps", "2",
    "--checkpoint_every", "0", "--run_name", NAME,
)  # fmt: skip
IMAGES = 60
MOST_CHECKPOINTS = 12
"""Between two kills; sometimes the first comes before there is any."""
EARLY = 0.1
"""Share of the kills at any time after the start instead: while it imports, looks at images or computes features."""
EARLY_SECONDS = 8.0


@dataclass
class Outcome:
    kills: int = 0
    runs: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    """Kills by where the run stood."""
    lost: int = 0
    unloadable: int = 0
    orphans: int = 0
    left_over: int = 0
    different: int = 0

    def faults(self) -> int:
        return self.lost + self.unloadable + self.orphans + self.left_over + self.different


class Process(Protocol):
    """What is used of subprocess.Popen."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


def popen(command: list[str], output: IO[bytes]) -> Process:
    return subprocess.Popen([sys.executable, *command], cwd=common.ROOT, stdout=output, stderr=output)


def run(output_dir: Path, kills: int, seed: int, launch: Callable[[list[str], IO[bytes]], Process] = popen) -> Outcome:
    random.seed(seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    sample = generate.draw(output_dir / "sample", images=IMAGES)
    whole = _folder(output_dir / "whole")
    launcher = partial(_start, launch, sample)
    if launcher(whole).wait() != 0:
        raise UserError(f"the run without a disturbance failed: see {whole.output_dir / 'printed.txt'}.")
    outcome = Outcome()
    while outcome.kills < kills:
        outcome.runs += 1
        killed = _folder(output_dir / f"killed-{outcome.runs}")
        end = _kill_until_done(launcher, killed, outcome, kills)
        _judge(whole, killed, end, outcome)
    return outcome


def _folder(output_dir: Path) -> RunDir:
    output_dir.mkdir(parents=True)
    return RunDir(output_dir / NAME)


def _start(launch: Callable[[list[str], IO[bytes]], Process], sample: Path, run_dir: RunDir) -> Process:
    """Goes on with what stands in the run folder already."""
    resume = ["--resume"] if run_dir.path.is_dir() else []
    command = ["run_pipeline.py", "--train_csv", sample / "train.csv", "--image_dir", sample / "dataset",
               "--output_dir", run_dir.output_dir, *FLAGS, *resume]  # fmt: skip
    with (run_dir.output_dir / "printed.txt").open("ab") as printed:
        return launch(list(map(str, command)), printed)


def _kill_until_done(launcher: Callable[[RunDir], Process], run_dir: RunDir, outcome: Outcome, kills: int) -> int:
    """The exit status of the last process, which was left in peace."""
    while True:
        process = launcher(run_dir)
        if outcome.kills == kills or not _reached_its_end(process, run_dir):
            return process.wait()
        before = _newest(run_dir)
        process.send_signal(signal.SIGKILL)
        process.wait()
        outcome.kills += 1
        outcome.stages[_where(run_dir)] += 1
        try:
            found = checkpoint.load_newest(run_dir.path / "train")
        except UserError:
            outcome.unloadable += 1
            continue
        finished = run_dir.done("train")
        outcome.lost += not finished and before is not None and (found is None or found.values["number"] < before)


def _reached_its_end(process: Process, run_dir: RunDir) -> bool:
    """Waits for a random moment; False where the process has ended before it."""
    until = time.monotonic() + random.uniform(0, EARLY_SECONDS) if random.random() < EARLY else float("inf")
    wanted, last, seen = random.randint(0, MOST_CHECKPOINTS), _newest(run_dir), 0
    while process.poll() is None and time.monotonic() < until:
        newest = _newest(run_dir)
        seen, last = seen + (newest != last), newest
        if seen > wanted:
            time.sleep(random.uniform(0, 0.05))
            break
        time.sleep(0.002)
    return process.poll() is None


def _newest(run_dir: RunDir) -> int | None:
    """The number of the newest checkpoint."""
    numbers = [int(path.name.split("-")[1]) for path in (run_dir.path / "train").glob(checkpoint.PATTERN)]
    return max(numbers, default=None)


def _where(run_dir: RunDir) -> str:
    if not run_dir.config.is_file():
        return "before the run folder"
    if not run_dir.done("dataset"):
        return "dataset"
    return "training" if _newest(run_dir) else "after training" if run_dir.done("train") else "before a checkpoint"


def _judge(whole: RunDir, killed: RunDir, status: int, outcome: Outcome) -> None:
    outcome.orphans += _running(killed.output_dir)
    outcome.left_over += len([*killed.path.rglob(".tmp*"), *killed.path.rglob(checkpoint.PATTERN)])
    expected = load_bundle(whole.bundle).tensors()
    found = load_bundle(killed.bundle).tensors() if status == 0 else {}
    same = expected.keys() == found.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)
    outcome.different += not same


def _running(output_dir: Path) -> int:
    """Runs that MLflow takes for running though nothing runs."""
    with sqlite3.connect(output_dir / "mlflow.db") as database:
        return int(database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="must not hold an earlier outcome")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with common.exit_codes():
        outcome = run(args.output_dir, args.kills, args.seed)
    table = pd.Series(
        {"kills": outcome.kills, "runs": outcome.runs, **{f"  {name}": count for name, count in outcome.stages.items()},
         "lost checkpoints": outcome.lost, "unloadable states": outcome.unloadable, "orphan runs": outcome.orphans,
         "files left over": outcome.left_over, "weights that differ": outcome.different}
    )  # fmt: skip
    print(table.to_string())
    sys.exit(outcome.faults() > 0)


if __name__ == "__main__":
    main()
