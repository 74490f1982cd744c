"""Runs the root scripts through the real command line."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import warm

from spectacles.core.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--image_size", "32", "--batch_size", "16", "--device", "cpu", "--gallery_size", "4")
PATIENCE = 900.0
"""Seconds after which a command hangs, on however busy a machine."""


@dataclass(frozen=True)
class Finished:
    run_dir: RunDir
    sample: Path
    output: str


def run_command(
    script: str, *arguments: object, environment: dict[str, str] | None = None, tracer: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A root script as a person runs it; MLflow uses the database under --output_dir unless configured otherwise."""
    command = [*tracer, sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment() | (environment or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_script(
    script: str, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same, seconds sooner: forked from a warm process, and nothing is delivered to MLflow."""
    command = [str(ROOT / script), *map(str, arguments)]
    return warm.run(command, ROOT, clean_environment() | (environment or {}), timeout=PATIENCE)


def run_together(script: str | Path, *arguments: object, probe: str = "") -> subprocess.CompletedProcess[str]:
    """A script, relative to the root, in two processes as torchrun would start them; `probe` as in together.py."""
    launcher = Path(__file__).with_name("together.py")
    command = [str(launcher), probe, str(ROOT / script), *map(str, arguments)]
    return warm.run(command, ROOT, clean_environment(), timeout=PATIENCE)


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("SPECTACLES_", "MLFLOW_"))}


def data_flags(sample: Path) -> tuple[object, ...]:
    return ("--train_csv", sample / "train.csv", "--image_dir", sample / "dataset", "--test_csv", sample / "test.csv",
            "--test_fraction", 0.2)  # fmt: skip
