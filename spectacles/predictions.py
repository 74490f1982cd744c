"""The table of predictions that evaluate writes and error analysis and the report read: a probability a class."""

from pathlib import Path

import numpy as np
import pandas as pd

from spectacles.inference import Predictor
from spectacles.progress import progress

PREFIX, LOGIT_PREFIX = "p_", "z_"
TEXT = ("file", "path", "split", "label", "predicted", "status", "cluster", "verdict")


def predict_rows(predictor: Predictor, rows: pd.DataFrame, num_workers: int | None) -> pd.DataFrame:
    """`rows` (file, path, split, label, cluster) with predicted, confidence, correct, status, familiarity, verdict, and
    for each class its probability p_<class> and its logit z_<class>.

    `predicted` is the best guess, also where the verdict is not ''. A file that became unreadable keeps its row: status
    says why, its numbers are NaN.
    """
    outcomes = predictor.predict((Path(path) for path in rows["path"]), num_workers)
    outcomes_list = list(progress(outcomes, "predicting", len(rows)))
    classes = predictor.info.classes
    table = rows[["file", "path", "split", "label", "cluster"]].reset_index(drop=True)
    table["predicted"] = [p.label for p in outcomes_list]
    table["confidence"] = [p.confidence for p in outcomes_list]
    table["correct"] = table["predicted"] == table["label"]
    table["status"] = ["refused: " + p.reason if p.reason else "predicted" for p in outcomes_list]
    table["familiarity"] = np.array([p.familiarity for p in outcomes_list], dtype=np.float64)
    table["verdict"] = [p.verdict for p in outcomes_list]
    missing = (float("nan"),) * len(classes)
    numbers = np.array(
        [(p.probabilities or missing) + (p.logits or missing) for p in outcomes_list], dtype=np.float64
    ).reshape(-1, 2 * len(classes))
    names = [prefix + name for prefix in (PREFIX, LOGIT_PREFIX) for name in classes]
    return pd.concat([table, pd.DataFrame(numbers, columns=names)], axis=1)


def load(path: Path) -> pd.DataFrame:
    """Text columns as text ('' for missing), probabilities as float64."""
    columns = pd.read_csv(path, nrows=0).columns
    numbers = {name: [""] for name in columns if name not in TEXT}  # a class may be called "NA": text is never missing
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=numbers)


def probabilities(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """(N, K) float64 in the order of `classes`."""
    return table[[PREFIX + name for name in classes]].to_numpy(dtype=np.float64)
