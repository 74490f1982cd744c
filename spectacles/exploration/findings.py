"""What the explore stage finds, in one record: its tables, galleries, warnings and suggestions are made from it."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from spectacles.core.results import DatasetReport
from spectacles.exploration.outliers import MAX_Z
from spectacles.exploration.shortcuts import Shortcut


@dataclass(frozen=True)
class Findings:
    data: DatasetReport
    index: pd.DataFrame
    """Every row that was given."""
    used: pd.DataFrame
    """The rows of the index that are not rejected."""
    pairs: pd.DataFrame
    """schemas.DUPLICATE_PAIRS: first those in two splits, then those with different labels."""
    file_outliers: pd.DataFrame
    by_distance: pd.DataFrame
    """Every used image, the least like the others first; empty without features."""
    shortcuts: list[Shortcut]
    """Rules that give a class away, the strongest first, about the rows of `labelled`."""
    separation: float | None
    """Highest balanced accuracy that properties of the files reach; None where there are too few images."""
    baseline: dict[str, Any] | None
    """See baseline.measure; None without features."""
    why_no_baseline: str

    @property
    def labelled(self) -> pd.DataFrame:
        """The labelled rows of `used` outside the test split."""
        return self.used[(self.used["label"] != "") & (self.used["split"] != "test")]

    @property
    def outliers(self) -> pd.DataFrame:
        """Of files and of features, a row for each finding."""
        if not len(self.by_distance):
            return self.file_outliers
        distant = self.by_distance[self.by_distance["z"] > MAX_Z]
        return pd.concat([self.file_outliers, distant], ignore_index=True)
