"""What the competitors share: the split table, the clock that stops while they are scored, and the result file.

The fastai peer runs in an environment without our requirements: only code that needs numpy, pandas and torch belongs
here.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spectacles.core.device import cpu_count
from spectacles.core.errors import UserError
from spectacles.metrics import classification

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["file", "label", "split"]
SPLITS = ("train", "val", "test")
BATCH_SIZE = 32
NATIVE_SIZE = 224
"""Pixels a side that the starting weights were made for."""


class Clock:
    """Seconds of training. What happens inside `stopped()` does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.paused = 0.0
        self.started = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or work that is still queued would be booked on the other account
        return time.perf_counter()

    def seconds(self) -> float:
        return self._now() - self.started - self.paused

    @contextmanager
    def stopped(self) -> Iterator[None]:
        since = self._now()
        yield
        self.paused += self._now() - since


@contextmanager
def exit_codes() -> Iterator[None]:
    """A user's mistake: one sentence, exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def competitor_arguments(description: str, image_size: int | None = NATIVE_SIZE) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--splits", type=Path, required=True, help="table written by benchmarks.make_splits")
    parser.add_argument("--image_size", type=int, default=image_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser


def workers(device: str) -> int:
    """Decoding processes of the peers: where there are few cores and no GPU they only slow the arithmetic down."""
    cores = cpu_count()
    return cores // 4 if device == "cpu" else min(16, cores - 1)


def read_splits(path: Path) -> pd.DataFrame:
    """The split table as text, checked. Raises UserError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--splits {path} cannot be read: {error}.") from error
    if list(table.columns) != COLUMNS:
        raise UserError(f"--splits {path} must have the columns {', '.join(COLUMNS)}: write it with make_splits.")
    if set(table["split"]) != set(SPLITS):
        raise UserError(f"--splits {path} must name train, val and test, and nothing else, in its split column.")
    return table


def files_and_targets(table: pd.DataFrame, split: str) -> tuple[list[str], np.ndarray]:
    """One split's files and class indices (N,), classes in the order of their names over the whole table."""
    part = table[table["split"] == split]
    classes = sorted(table["label"].unique())
    return part["file"].tolist(), np.array([classes.index(label) for label in part["label"]], dtype=np.int64)


def score(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """accuracy, balanced accuracy and, of two classes, HTER of class indices (N,)."""
    certain = np.eye(num_classes)[predicted]
    values = classification.classification_metrics(targets, certain, predicted, num_classes)
    return {name: values.get(name) for name in ("accuracy", "balanced_accuracy", "hter")}


def fine_tuning_rate(curve: list[dict[str, float]], head_epochs: int, train_images: int) -> float:
    """Training images a second in the epochs that train all layers, their validation pass included."""
    return train_images * (len(curve) - head_epochs) / (curve[-1]["seconds"] - curve[head_epochs - 1]["seconds"])


def peak_memory_gb() -> float:
    """Peak resident memory of the largest process: this one or one below it that has ended. Linux counts in KiB."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) * 1024 / 1e9


def process_seconds() -> float:
    """Age of this process: what the person who started it has waited."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime of proc_pid_stat(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def asked(splits: Path, image_size: int | None, device: str, flags: list[str]) -> dict[str, Any]:
    """What a result depends on besides competitor and seed: two results with the same can be compared."""
    digest = hashlib.sha256(splits.read_bytes()).hexdigest()[:16]
    return {"splits": digest, "image_size": image_size, "device": device, "flags": flags}


def write_result(
    args: argparse.Namespace, name: str, table: pd.DataFrame, values: dict[str, Any], flags: list[str] | None = None
) -> None:
    """`values` go on top of what is known of every competitor; NaN is rejected."""
    sizes = table["split"].value_counts()
    result = {
        "name": name,
        "seed": args.seed,
        "image_size": args.image_size,
        "train_images": int(sizes["train"]),
        "val_images": int(sizes["val"]),
        "test_images": int(sizes["test"]),
        "peak_memory_gb": peak_memory_gb(),
        "wall_seconds": process_seconds(),
        **values,
        "asked": asked(args.splits, args.image_size, args.device, flags or []),
    }
    write_json(args.output, result)


def write_json(path: Path, value: object) -> None:
    """Strict JSON, whole or not at all: a result that exists is never computed again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
