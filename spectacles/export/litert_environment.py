"""The environment that TFLite files are converted in: its packages do not go with those of this one."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_write

log = logging.getLogger("spectacles")

ROOT = Path(__file__).parents[2]
LOCK, FOLDER = ROOT / "requirements-tflite.lock", ROOT / ".venv-tflite"
CONVERT = Path(__file__).with_name("litert_convert.py")


def convert(program: Path, target: Path) -> None:
    """A saved program of torch.export -> a .tflite file. Raises UserError."""
    # None of what converts may ask a hub for anything.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    _run([_interpreter(), str(CONVERT), str(program), str(target)], "the network cannot be converted", environment)


def _interpreter() -> str:
    """Of the environment, which is made, or made anew, unless it is there as the lock has it."""
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(torch.__file__).parents[1]
    state = hashlib.sha256(f"{packages} {torch.__version__} {sys.version}".encode() + LOCK.read_bytes()).hexdigest()
    finished = FOLDER / "finished"
    if finished.is_file() and finished.read_text(encoding="utf-8") == state:
        return str(python)
    log.info("  making %s for TFLite, once: minutes, and a gigabyte", FOLDER)
    why = f"{FOLDER} cannot be made"
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(FOLDER)], why)
    install = ["install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)]
    _run([sys.executable, "-m", "pip", "--python", str(python), *install], why)
    [site] = FOLDER.glob("**/site-packages")
    # torch, and what the lock lacks because it is torch's, come from here, after all that is installed there.
    atomic_write(site / "torch_of.pth", f"{packages}\n")
    atomic_write(finished, state)
    return str(python)


def _run(command: list[str], why: str, environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        last = (getattr(error, "stderr", "") or str(error)).strip().rpartition("\n")[2]
        raise UserError(
            f"--formats tflite: {why} ({last}); use --formats onnx_photo, which Android's ONNX Runtime takes."
        ) from None
