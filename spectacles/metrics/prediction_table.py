"""The table of predictions that evaluate writes and error analysis and the report read: a probability a class."""

from pathlib import Path

import numpy as np
import pandas as pd

PREFIX, LOGIT_PREFIX = "p_", "z_"
TEXT = ("file", "path", "split", "label", "predicted", "status", "cluster", "abstain_reason")


def load(path: Path) -> pd.DataFrame:
    """Text columns as text ('' for missing), probabilities as float64."""
    columns = pd.read_csv(path, nrows=0).columns
    numbers = {name: [""] for name in columns if name not in TEXT}  # a class may be called "NA": text is never missing
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=numbers)


def probabilities(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """(N, K) float64 in the order of `classes`."""
    return table[[PREFIX + name for name in classes]].to_numpy(dtype=np.float64)
