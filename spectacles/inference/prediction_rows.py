"""One prediction as a row of a table or as a record, the same wherever it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectacles.core.errors import UserError
from spectacles.core.progress import progress
from spectacles.data.schemas import LOGIT_PREFIX, PROBABILITY_PREFIX
from spectacles.inference.predictor import Prediction, Predictor
from spectacles.models.bundle import BundleInfo

if TYPE_CHECKING:
    import pandas as pd

OVERLAY_FOLDER = "explanations"
"""Beside the predictions."""
Cell = str | float | bool | None


def check_top_k(top_k: int, info: BundleInfo) -> None:
    """Raises UserError."""
    if not 1 <= top_k <= len(info.classes):
        raise UserError(f"--top_k {top_k} is out of range: the model knows {len(info.classes)} classes.")


def header(info: BundleInfo, top_k: int, with_ids: bool) -> dict[str, type]:
    """Column -> str, float or bool."""
    columns: dict[str, type] = {"id": str} if with_ids else {}
    columns |= {"file": str, "label": str, "confidence": float}
    columns |= {PROBABILITY_PREFIX + name: float for name in info.classes}
    columns |= {"ood_score": float, "abstained": bool, "abstain_reason": str, "status": str}
    for rank in range(2, top_k + 1):
        columns |= {f"label_{rank}": str, f"confidence_{rank}": float}
    return columns


def row(name: str, identity: str | None, outcome: Prediction, info: BundleInfo, top_k: int) -> list[Cell]:
    """In the order of `header`; None for a missing number. `identity` None: without ids."""
    numbers = outcome.probabilities or (None,) * len(info.classes)
    confidence = None if outcome.reason else outcome.confidence
    cells: list[Cell] = [] if identity is None else [identity]
    cells += [name, outcome.label, confidence, *numbers]
    cells += [outcome.ood_score, outcome.abstained, outcome.abstain_reason or "", status(outcome)]
    if outcome.reason:
        return cells + ["", None] * (top_k - 1)
    for label, probability in ranked(outcome, info, top_k)[1:]:
        cells += [label, probability]
    return cells


def record(
    name: str, identity: str | None, outcome: Prediction, overlay: str, info: BundleInfo, top_k: int
) -> dict[str, Any]:
    """For a line of JSON lines; `overlay` '' for none."""
    found: dict[str, Any] = {"id": identity} if identity else {}
    found |= {"file": name, "status": status(outcome)}
    if not outcome.reason:
        found |= {"label": outcome.label, "confidence": outcome.confidence, "ood_score": outcome.ood_score}
        found |= {"abstained": outcome.abstained, "abstain_reason": outcome.abstain_reason}
        found["probabilities"] = dict(zip(info.classes, outcome.probabilities, strict=True))
        if top_k > 1:
            found["top"] = [{"label": label, "confidence": p} for label, p in ranked(outcome, info, top_k)]
    if overlay:
        found["explanation"] = overlay
    return found


def status(outcome: Prediction) -> str:
    if outcome.reason:
        return f"rejected: {outcome.reason}"
    return f"converted: {'; '.join(outcome.conversions)}" if outcome.conversions else "predicted"


def outcome_kind(outcome: Prediction) -> str:
    """rejected, low_confidence, out_of_distribution or answered."""
    return "rejected" if outcome.reason else outcome.abstain_reason or "answered"


def ranked(outcome: Prediction, info: BundleInfo, top_k: int) -> list[tuple[str, float]]:
    """(label, probability), the decision first, then by probability; empty for a rejected file."""
    order = np.argsort(-np.asarray(outcome.probabilities), kind="stable")
    by_rank = [(info.classes[index], outcome.probabilities[index]) for index in order]
    decided = [(outcome.label, outcome.confidence)] if by_rank else []
    return (decided + [pair for pair in by_rank if pair[0] != outcome.label])[:top_k]


def predict_rows(predictor: Predictor, rows: pd.DataFrame, num_workers: int | None) -> pd.DataFrame:
    """`rows` (file, path, split, label, cluster) with predicted, confidence, correct, status, ood_score, abstained,
    abstain_reason, and for each class its probability p_<class> and its logit z_<class>.

    `predicted` is the class, also where the model abstains. A file that became unreadable keeps its row: status
    says why, its numbers are NaN.
    """
    import pandas as pd  # not for predictions of files

    outcomes = predictor.predict((Path(path) for path in rows["path"]), num_workers)
    outcomes_list = list(progress(outcomes, "predicting", len(rows)))
    classes = predictor.info.classes
    table = rows[["file", "path", "split", "label", "cluster"]].reset_index(drop=True)
    table["predicted"] = [p.label for p in outcomes_list]
    table["confidence"] = [p.confidence for p in outcomes_list]
    table["correct"] = table["predicted"] == table["label"]
    table["status"] = ["rejected: " + p.reason if p.reason else "predicted" for p in outcomes_list]
    table["ood_score"] = np.array([p.ood_score for p in outcomes_list], dtype=np.float64)
    table["abstained"] = [p.abstained for p in outcomes_list]
    table["abstain_reason"] = [p.abstain_reason or "" for p in outcomes_list]
    missing = (float("nan"),) * len(classes)
    numbers = np.array(
        [(p.probabilities or missing) + (p.logits or missing) for p in outcomes_list], dtype=np.float64
    ).reshape(-1, 2 * len(classes))
    names = [prefix + name for prefix in (PROBABILITY_PREFIX, LOGIT_PREFIX) for name in classes]
    return pd.concat([table, pd.DataFrame(numbers, columns=names)], axis=1)
