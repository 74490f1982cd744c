"""Runs the root scripts through the real command line."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from spectacles.core.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--image_size", "32", "--batch_size", "16", "--device", "cpu", "--gallery_size", "4")


@dataclass(frozen=True)
class Finished:
    run_dir: RunDir
    sample: Path
    output: str


def run_script(
    script: str, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A root script as a person runs it; MLflow goes to the database under --output_dir unless told otherwise."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SPECTACLES_", "MLFLOW_"))}
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=clean | (environment or {}), capture_output=True, text=True, timeout=300, check=False
    )


def data_flags(sample: Path) -> tuple[object, ...]:
    return ("--train_csv", sample / "train.csv", "--image_dir", sample / "dataset", "--test_csv", sample / "test.csv",
            "--test_fraction", 0.2)  # fmt: skip
