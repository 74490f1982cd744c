"""TorchScript: for LibTorch in C++ and older versions of torch. Deprecated by torch in favour of torch.export."""

import json
import warnings
from pathlib import Path

import torch

from spectacles.core.fileio import atomic_path
from spectacles.export.formats.base import Format, Run
from spectacles.export.formats.torch_export import METADATA, run_of
from spectacles.export.shipped import Shipped


def write(shipped: Shipped, precision: str, path: Path) -> None:
    facts = json.dumps(shipped.metadata(precision), indent=2)
    with warnings.catch_warnings(), torch.no_grad(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore")  # that it is deprecated
        traced = torch.jit.trace(shipped.module, (shipped.example,), strict=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(temporary), _extra_files={METADATA: facts})


def load(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_of(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


FORMAT = Format((".ts",), write, load)
