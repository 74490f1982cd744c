"""Columns and dtypes of the CSV files that stages hand to each other: all of them are written and read through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectacles.core.csv_cells import original, protect, write_csv
from spectacles.core.results import DatasetReport
from spectacles.core.run_dir import RunDir

if TYPE_CHECKING:
    import pandas as pd

SLICE_PREFIX = "slice_"
"""Before the name of a column of --slice_columns."""
PROBABILITY_PREFIX, LOGIT_PREFIX = "p_", "z_"
"""Before the name of a class."""


@dataclass(frozen=True)
class Schema:
    """One kind of table: its columns in file order, each str, int, float or bool."""

    columns: Mapping[str, type]
    prefixes: Mapping[str, type] = field(default_factory=dict)
    """First part of the name -> dtype, of columns that depend on the data; they follow after the others."""
    optional: frozenset[str] = frozenset()
    """Columns that not every such table has."""

    @property
    def names(self) -> list[str]:
        """The columns that every such table has."""
        return [name for name in self.columns if name not in self.optional]

    def dtype_of(self, name: str) -> type | None:
        """None for a column that does not belong to the table."""
        by_prefix = (dtype for prefix, dtype in self.prefixes.items() if name.startswith(prefix))
        return self.columns.get(name) or next(by_prefix, None)

    def empty(self) -> pd.DataFrame:
        """Without rows, as text."""
        import pandas as pd

        return pd.DataFrame(columns=self.names, dtype=str)

    def select(self, table: pd.DataFrame) -> pd.DataFrame:
        """The schema's columns, in its order; all others are left out. Raises KeyError for a missing one."""
        fixed = [name for name in self.columns if name not in self.optional or name in table]
        others = [name for name in table.columns if name not in self.columns and self.dtype_of(name) is not None]
        return table[[*fixed, *others]]

    def write(self, path: Path, table: pd.DataFrame, spreadsheet_safe: bool = False) -> None:
        """See `select`, `protect` and `write_csv`; `read` gives the table as it was."""
        write_csv(path, protect(self.select(table), spreadsheet_safe))

    def read(self, path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The schema's columns that the file has, or those of `columns` among them. Text is '' where there is none (a
        class may be called "NA"), a missing number is NaN."""
        types = {name: dtype for name, dtype in self._types(path).items() if columns is None or name in columns}
        numbers = {name: [""] for name, dtype in types.items() if dtype is float}
        table = _read_csv(path, usecols=list(types), dtype=types, keep_default_na=False, na_values=numbers)
        return original(table)

    def read_text(self, path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """As `read`, but every cell as the text in the file; an empty table where there is no file."""
        if not path.is_file():
            return self.empty()
        wanted = [name for name in self._types(path) if columns is None or name in columns]
        return original(_read_csv(path, usecols=wanted, dtype=str, keep_default_na=False))

    def _types(self, path: Path) -> dict[str, type]:
        """Of the columns that the file has, in its order."""
        types = {str(name): self.dtype_of(str(name)) for name in _read_csv(path, nrows=0).columns}
        return {name: dtype for name, dtype in types.items() if dtype is not None}


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd  # not for predictions of files, which name their columns by the prefixes above

    table: pd.DataFrame = pd.read_csv(path, **options)
    return table


GIVEN = {"source": str, "row": int, "file": str, "path": str, "label": str, "group": str, "id": str, "given_split": str}
"""What the user's tables and folders hold of each row; `source` is train or test, `row` counts from 0 in it."""
MEASURES = dict.fromkeys(
    ("brightness", "contrast", "sharpness", "red", "green", "blue", "border_red", "border_green", "border_blue",
     "saturation", "quantisation"), float
)  # fmt: skip
FILE_FACTS = {
    "status": str, "reason": str, "sha256": str, "phash": str, "phash_mirrored": str, "format": str, "mode": str,
    "width": int, "height": int, "bytes": int, "modified": int, **MEASURES,
}  # fmt: skip
"""See file_index.FileFacts."""
PREDICTED_ROW = {"file": str, "path": str, "split": str, "label": str, "cluster": int}

INDEX = Schema({**GIVEN, **FILE_FACTS, "split": str, "cluster": int}, {SLICE_PREFIX: str})
"""dataset/index.csv: every row that was given; rejected ones have no split and the cluster -1."""
SPLIT_ROWS = Schema(
    {"file": str, "path": str, "label": str, "split": str, "group": str, "cluster": int, "id": str, "sha256": str,
     **MEASURES, "width": int, "height": int, "bytes": int, "modified": int, "format": str},
    {SLICE_PREFIX: str},
)  # fmt: skip
"""dataset/splits.csv: the rows that are used."""
DUPLICATE_PAIRS = Schema(
    {
        "kind": str, "distance": int, "similarity": float,
        "file_a": str, "label_a": str, "split_a": str, "path_a": str,
        "file_b": str, "label_b": str, "split_b": str, "path_b": str,
        "conflict": bool, "crosses_split": bool,
    }
)  # fmt: skip
"""dataset/duplicates.csv, and those with different labels in explore/conflicting_duplicates.csv."""
ISSUES = Schema({"file": str, "kind": str, "detail": str})
"""dataset/issues.csv."""
OUTLIERS = Schema({"file": str, "label": str, "split": str, "what": str, "value": float, "z": float})
"""explore/outliers.csv."""
PREDICTIONS = Schema(
    {**PREDICTED_ROW, "predicted": str, "confidence": float, "correct": bool, "status": str, "ood_score": float,
     "abstained": bool, "abstain_reason": str},
    {PROBABILITY_PREFIX: float, LOGIT_PREFIX: float},
)  # fmt: skip
"""evaluate/predictions.csv: `status` is 'predicted', or why the file became unreadable; then its numbers are NaN."""
MISCLASSIFIED = Schema({"file": str, "split": str, "label": str, "predicted": str, "confidence": float})
"""error_analysis/misclassified.csv."""
NEAREST = Schema({"file": str, "rank": int, "neighbour": str, "neighbour_label": str, "similarity": float})
"""error_analysis/nearest.csv: of each misclassified image the training images most like it, `rank` from 1."""
NOISY_LABELS = Schema(
    {"file": str, "label": str, "suggested_label": str, "doubtful_label": str, "score": float,
     "probability_given": float, "probability_suggested": float, "suspected": bool, "split": str},
    optional=frozenset({"doubtful_label"}),
)  # fmt: skip
"""error_analysis/noisy_labels.csv; with several labels per image `doubtful_label` is the least credible one."""
LABEL_FIXES = Schema({"file": str, "given_label": str, "fixed_label": str, "decision": str, "run": str})
"""label_fixes.csv, as review.html saves it."""


def probabilities(table: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(N, K) float64 of PREDICTIONS, in the order of `classes`."""
    return table[[PROBABILITY_PREFIX + name for name in classes]].to_numpy(dtype=np.float64)


def load_index(run_dir: RunDir) -> pd.DataFrame:
    """Every row that was given, rejected ones too. Raises UserError before the dataset stage has finished."""
    run_dir.load_result("dataset", DatasetReport)
    return INDEX.read(run_dir.index)


def load_split(run_dir: RunDir, *splits: str) -> pd.DataFrame:
    """The used rows of these splits. Raises UserError before the dataset stage has finished.

    The test split is closed to the train stage: asking for it there is a programming error (PermissionError).
    """
    if run_dir.stage == "train" and "test" in splits:
        raise PermissionError("training must not see the test split")
    run_dir.load_result("dataset", DatasetReport)
    frame = SPLIT_ROWS.read(run_dir.splits)
    return frame[frame["split"].isin(splits)].reset_index(drop=True)


def load_labelled(run_dir: RunDir, split: str, most: int) -> pd.DataFrame:
    """At most so many rows of a split, evenly spaced, that have a label."""
    rows = load_split(run_dir, split)
    rows = rows[rows["label"] != ""]
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]
