"""Which images a training learns and is chosen from, in what order: the same ones must be there when it goes on."""

import hashlib
from pathlib import Path

import pandas as pd

from spectacles.run_dir import write_csv

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
