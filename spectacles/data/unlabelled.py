"""Photos without labels for training: which files of a folder can be used, and why the others cannot."""

from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.core.csv_cells import write_csv
from spectacles.core.errors import UserError
from spectacles.core.wording import count_of
from spectacles.data import duplicates
from spectacles.data.file_index import inspect_files
from spectacles.data.folders import as_text, files_below, is_text

SPLIT = "unlabelled"
HELD_OUT = ("val", "test")
LIKE_HELD_OUT = "it is a validation or test photo, or looks like one"
DISTANCE = 6
"""Bits in which the perceptual hashes of photos differ at most that count as the same photo."""


def read_folder(folder: Path, index: pd.DataFrame, num_workers: int, table: Path) -> pd.DataFrame:
    """The usable files below `folder`, with the facts of schemas.FILE_FACTS, in natural order. All files, and why some
    are rejected, stand in `table`, a CSV file.

    A photo is rejected that is (nearly) one of the validation or test photos of `index` (schemas.INDEX), by its hash:
    a model would be measured on what it was trained with. Raises UserError for a folder without usable photos.
    """
    paths = [str(path) for path in files_below(folder)]
    facts, _, _ = inspect_files(paths, num_workers)
    facts.insert(0, "path", [as_text(path) for path in paths])
    _reject(facts, ~pd.Series(map(is_text, paths), facts.index, dtype=bool), "its path is not UTF-8 text: rename it")
    used = index[index["split"] != ""]
    held_out = used[used["split"].isin(HELD_OUT)]
    _reject(facts, facts["sha256"].isin(held_out["sha256"]), LIKE_HELD_OUT)
    _reject(facts, facts["sha256"].isin(used["sha256"]), "it is a training photo with a label")
    _reject(facts, facts["sha256"].duplicated(), "the same file under another name comes before it")
    _reject(facts, _near(facts, held_out), LIKE_HELD_OUT)
    write_csv(table, facts[["path", "status", "reason"]])
    usable = facts[facts["status"] != "rejected"].reset_index(drop=True)
    if usable.empty:
        raise UserError(
            f"--unlabelled {as_text(str(folder))} holds no photo that can be used: {table} has the reasons."
        )
    return usable.assign(file=usable["path"], label="", split=SPLIT, cluster=-1)


def describe(table: Path) -> str:
    """What became of the files, from the table that `read_folder` wrote."""
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rejected = rows[rows["status"] == "rejected"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected["reason"].value_counts().items())
    used = len(rows) - len(rejected)
    return f"{count_of(len(rows), 'unlabelled file')} = {used} used + {len(rejected)} rejected" + (
        f" ({reasons})" if reasons else ""
    )


def _reject(facts: pd.DataFrame, rows: "pd.Series[bool]", reason: str) -> None:
    facts.loc[rows & (facts["status"] != "rejected"), ["status", "reason"]] = ["rejected", reason]


def _near(facts: pd.DataFrame, held_out: pd.DataFrame) -> "pd.Series[bool]":
    """Which readable photos are duplicates of held-out ones."""
    readable = facts[facts["status"] != "rejected"]
    both = pd.concat([held_out, readable], ignore_index=True)
    pairs = duplicates.find(both, None, DISTANCE, 1.0)[["a", "b"]].to_numpy()
    crossing = pairs[(pairs[:, 0] < len(held_out)) & (pairs[:, 1] >= len(held_out))]
    near = readable.index[np.unique(crossing[:, 1]) - len(held_out)]
    return pd.Series(facts.index.isin(near), facts.index)
