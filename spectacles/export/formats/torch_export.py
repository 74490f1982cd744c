"""torch.export: what torch, and what is built on it, such as ExecuTorch, loads without our code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectacles.core.fileio import atomic_path
from spectacles.export.formats.base import Format, Run
from spectacles.export.shipped import PROBABILITIES, Shipped

METADATA = "metadata.json"


def write(shipped: Shipped, precision: str, path: Path) -> None:
    facts = json.dumps(shipped.metadata(precision), indent=2)
    with atomic_path(path) as temporary:
        torch.export.save(shipped.program, temporary, extra_files={METADATA: facts})


def load(path: Path) -> Run:
    return run_of(torch.export.load(path).module())


def run_of(module: Any) -> Run:
    """A loaded module as the gate calls it."""

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = module(torch.from_numpy(pixels))[PROBABILITIES].numpy()
        return probabilities

    return run


FORMAT = Format((".pt2",), write, load)
