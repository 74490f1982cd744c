"""Bundles of the model registry: `models:/NAME@champion` or `models:/NAME/VERSION` in the place of a folder."""

import os
import subprocess
import sys
from pathlib import Path

from spectacles.core.errors import UserError

SECONDS = 600.0
"""For a download."""


def folder_of(bundle: Path, output_dir: Path) -> Path:
    """`bundle` itself where it is a folder, else the one that the registry's bundle was downloaded to.

    MLflow is asked in a process of its own: importing it takes seconds, and memory that a server would keep. Raises
    UserError.
    """
    address = str(bundle)
    if not address.startswith("models:"):
        return bundle
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectacles" / "models"
    command = [sys.executable, "-m", "spectacles.tracking.registry", "fetch", address]
    command += ["--output_dir", str(output_dir), "--cache", str(cache)]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS,
                              env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{address} was not downloaded within {SECONDS:.0f} s: is the registry reachable?") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason is known"])[-1]
        raise UserError(f"{address}: {reason.removeprefix('error: ')}")
    return Path(done.stdout.strip().splitlines()[-1])
