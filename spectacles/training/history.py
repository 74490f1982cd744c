"""The finished epochs, and what follows from them alone: improvements, the best epoch, early stopping."""

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from spectacles.metrics.basics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Epoch:
    epoch: int
    """1-based, counted over both phases."""
    phase: str
    train_loss: float
    val_loss: float
    """Mean negative log-likelihood of the validation data, unweighted and unsmoothed."""
    metric: str
    value: float
    """Of `metric` on the validation data."""
    val_accuracy: float
    val_balanced_accuracy: float
    learning_rate: float
    """Of the head, at the end of the epoch."""
    seconds: float


def improvements(history: list[Epoch]) -> list[bool]:
    """For each epoch, whether it was better than all before it. Of equal values the one with the lower loss is better:
    metrics that count images soon tie, and of two models with the same errors one is more confident where it is
    right."""
    best: tuple[float, float] | None = None
    result = []
    for epoch in history:
        value = (-epoch.value if epoch.metric in LOWER_IS_BETTER else epoch.value, -epoch.val_loss)
        result.append(best is None or value > best)
        best = value if best is None else max(best, value)
    return result


def best_epoch(history: list[Epoch]) -> Epoch:
    """Over both phases."""
    return [epoch for epoch, improved in zip(history, improvements(history), strict=True) if improved][-1]


def epochs_of(history: list[Epoch], phase: str) -> list[Epoch]:
    return [epoch for epoch in history if epoch.phase == phase]


def phase_finished(history: list[Epoch], phase: str, epochs: int, patience: int) -> bool:
    """All epochs are done, or none of the last `patience` ones improved on the earlier ones of the phase."""
    improved = improvements(epochs_of(history, phase))
    return len(improved) >= epochs or (len(improved) > patience and not any(improved[-patience:]))


def history_frame(history: list[Epoch]) -> pd.DataFrame:
    """One row per epoch, with `value` under the name of its metric."""
    rows = [asdict(epoch) for epoch in history]
    return pd.DataFrame([{**row, f"val_{row.pop('metric')}": row.pop("value")} for row in rows])


def from_json(values: list[dict[str, Any]]) -> list[Epoch]:
    return [Epoch(**value) for value in values]
