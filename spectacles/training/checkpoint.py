"""What training needs to resume exactly where it was: tensors as safetensors, the rest as JSON in their metadata.

Each save is a new file, named by its number and its content, and the previous one is kept: a crash, a full disk or a
damaged file costs at most the time between two saves. Beside them rows.csv lists the images of the training, to explain
why a run on other images cannot be resumed.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from spectacles.core.csv_cells import write_csv
from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path

log = logging.getLogger("spectacles")

State = dict[str, torch.Tensor]
FILES_KEPT = 2
PATTERN = "checkpoint-*.safetensors"
ROWS_FILE = "rows.csv"
ROW_COLUMNS = ["file", "sha256", "label", "split"]


@dataclass
class Checkpoint:
    values: dict[str, Any]
    """JSON-ready."""
    states: dict[str, State]
    """Tensors by the part of training they belong to, such as the model."""
    optimizer: dict[int, State] = field(default_factory=dict)
    """The optimiser's state of each parameter, by its number."""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Raises UserError for a tensor that is not finite: training could not resume from it."""
    optimizer = {f"optimizer/{number}": state for number, state in checkpoint.optimizer.items()}
    tensors = {
        f"{part}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for part, state in (checkpoint.states | optimizer).items()
        for name, value in state.items()
    }
    check_finite(tensors)
    earlier = _files(folder)
    number = _number(earlier[-1]) + 1 if earlier else 1
    content = to_bytes(tensors, metadata={"values": json.dumps({**checkpoint.values, "number": number})})
    path = folder / f"checkpoint-{number:06d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    for old in _files(folder)[:-FILES_KEPT]:
        old.unlink()
    return path


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None where there is none. Raises UserError where all of them are damaged, or
    where an undamaged file is not a checkpoint."""
    files = _files(folder)
    for path in reversed(files):
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != hashlib.sha256(content).hexdigest():
            log.info("  %s is damaged: the one before it is used", path)
            continue
        try:
            return _parse(content)
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"cannot resume: the sha256 of {path} is right, but it is not a checkpoint ({type(error).__name__}). "
                "Remove it, or train without --resume."
            ) from error
    if files:
        raise UserError(
            f"cannot resume: every checkpoint in {folder} is damaged. Train without --resume from the start."
        )
    return None


def discard(folder: Path) -> None:
    for path in _files(folder):
        path.unlink()


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} is no longer finite and is not saved: lower --lr, or use --mixed_precision off. The "
                "checkpoint before it remains."
            )


def _parse(content: bytes) -> Checkpoint:
    length = int.from_bytes(content[:8], "little")
    values = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["values"])
    checkpoint = Checkpoint(values, {})
    for key, tensor in from_bytes(content).items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            number, _, name = name.partition("/")
            checkpoint.optimizer.setdefault(int(number), {})[name] = tensor
        else:
            checkpoint.states.setdefault(part, {})[name] = tensor
    return checkpoint


def _files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(PATTERN), key=_number)


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])


def rows_fingerprint(rows: pd.DataFrame) -> str:
    """sha256 of the rows in their order: the augmentation of an image depends on its position."""
    return hashlib.sha256(rows[ROW_COLUMNS].to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()


def save_rows(folder: Path, rows: pd.DataFrame) -> None:
    write_csv(folder / ROWS_FILE, rows[ROW_COLUMNS])


def describe_changed_rows(folder: Path, rows: pd.DataFrame) -> str:
    """How `rows` differ from the saved ones, as the main clause of a sentence."""
    path = folder / ROWS_FILE
    if not path.is_file():
        return "the images or their labels have changed since training began"
    before = pd.read_csv(path, dtype=str, keep_default_na=False).drop_duplicates("file").set_index("file")
    now = rows[ROW_COLUMNS].astype(str).drop_duplicates("file").set_index("file")
    both = before.index.intersection(now.index)
    counts = {
        "added": len(now.index.difference(before.index)),
        "removed": len(before.index.difference(now.index)),
        "changed": int((before.loc[both, "sha256"] != now.loc[both, "sha256"]).sum()),
        "relabelled": int((before.loc[both, "label"] != now.loc[both, "label"]).sum()),
        "moved to the other split": int((before.loc[both, "split"] != now.loc[both, "split"]).sum()),
    }
    changes = ", ".join(f"{count} {change}" for change, count in counts.items() if count)
    if not changes:
        return "the order of the images has changed since training began"
    return f"the images have changed since training began: {changes}"
