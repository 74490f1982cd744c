"""What training needs to go on exactly where it was: tensors as safetensors, the rest as their JSON metadata.

Each save is a new file, named by its number and its content, and the one before is kept: a crash, a full disk or a
damaged file costs at most the time between two saves.
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

from spectacles.core.errors import UserError
from spectacles.core.fileio import atomic_path, write_csv

log = logging.getLogger("spectacles")

State = dict[str, torch.Tensor]
KEPT = 2
PATTERN = "checkpoint-*.safetensors"


@dataclass
class Checkpoint:
    facts: dict[str, Any]
    """JSON-ready."""
    parts: dict[str, State]
    """Tensors by what they belong to, such as a model."""
    slots: dict[int, State] = field(default_factory=dict)
    """Of the optimiser, by number of the parameter."""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Raises UserError for a tensor that is not finite: what is kept must be able to go on."""
    slots = {f"optimizer/{index}": state for index, state in checkpoint.slots.items()}
    tensors = {
        f"{part}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for part, state in (checkpoint.parts | slots).items()
        for name, value in state.items()
    }
    check_finite(tensors)
    known = _files(folder)
    number = _number(known[-1]) + 1 if known else 1
    content = to_bytes(tensors, metadata={"facts": json.dumps({**checkpoint.facts, "number": number})})
    path = folder / f"checkpoint-{number:06d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    for old in _files(folder)[:-KEPT]:
        old.unlink()
    return path


def load(folder: Path) -> Checkpoint | None:
    """The newest that is whole; None where there is none. Raises UserError where all are damaged or it is none."""
    files = _files(folder)
    for path in reversed(files):
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != hashlib.sha256(content).hexdigest():
            log.info("  %s is damaged: the one before it is used", path)
            continue
        try:
            return _read(content)
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"cannot resume: {path} bears its content's sha256 but is no checkpoint ({type(error).__name__}). "
                "Remove it, or train without --resume."
            ) from error
    if files:
        raise UserError(f"cannot resume: no checkpoint in {folder} is whole. Train without --resume from the start.")
    return None


def discard(folder: Path) -> None:
    for path in _files(folder):
        path.unlink()


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises UserError."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} is no longer finite and is not kept: lower --lr, or use --mixed_precision off. What was kept "
                "before stands."
            )


def _read(content: bytes) -> Checkpoint:
    length = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["facts"])
    found = Checkpoint(facts, {})
    for key, value in from_bytes(content).items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            index, _, name = name.partition("/")
            found.slots.setdefault(int(index), {})[name] = value
        else:
            found.parts.setdefault(part, {})[name] = value
    return found


def _files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(PATTERN), key=_number)


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])


COLUMNS = ["file", "sha256", "label", "split"]


def fingerprint(rows: pd.DataFrame) -> str:
    """sha256 of the rows in their order: the augmentation of a picture depends on its place."""
    return hashlib.sha256(rows[COLUMNS].to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()


def remember(folder: Path, rows: pd.DataFrame) -> None:
    write_csv(folder / "rows.csv", rows[COLUMNS])


def difference(folder: Path, rows: pd.DataFrame) -> str:
    """How the remembered rows differ from these, in words."""
    path = folder / "rows.csv"
    if not path.is_file():
        return "the images or their labels are others than when training began"
    before = pd.read_csv(path, dtype=str, keep_default_na=False).drop_duplicates("file").set_index("file")
    now = rows[COLUMNS].astype(str).drop_duplicates("file").set_index("file")
    both = before.index.intersection(now.index)
    counts = {
        "added": len(now.index.difference(before.index)),
        "removed": len(before.index.difference(now.index)),
        "changed": int((before.loc[both, "sha256"] != now.loc[both, "sha256"]).sum()),
        "labelled differently": int((before.loc[both, "label"] != now.loc[both, "label"]).sum()),
        "moved to the other split": int((before.loc[both, "split"] != now.loc[both, "split"]).sum()),
    }
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"since training began, of its images {told}" if told else "the images come in another order than before"
