"""The list of finished epochs, and everything that can be told from it alone: best epoch, early stop, gains."""

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
    """Of the validation data, in `metric`."""
    val_accuracy: float
    val_balanced_accuracy: float
    learning_rate: float
    """Of the head, at the end of the epoch."""
    seconds: float


def gains(history: list[Epoch]) -> list[bool]:
    """For each epoch: was it better than all before it? Of equal values the lower loss is better: metrics that count
    images are soon equal, and of two models that make the same errors one is surer where it is right."""
    best_epoch: tuple[float, float] | None = None
    result = []
    for epoch in history:
        value = (-epoch.value if epoch.metric in LOWER_IS_BETTER else epoch.value, -epoch.val_loss)
        result.append(best_epoch is None or value > best_epoch)
        best_epoch = value if best_epoch is None else max(best_epoch, value)
    return result


def best_epoch(history: list[Epoch]) -> Epoch:
    """Over both phases."""
    return [epoch for epoch, gain in zip(history, gains(history), strict=True) if gain][-1]


def of_phase(history: list[Epoch], phase: str) -> list[Epoch]:
    return [epoch for epoch in history if epoch.phase == phase]


def phase_over(history: list[Epoch], phase: str, epochs: int, patience: int) -> bool:
    """All epochs done, or none of the last `patience` of this phase was the best of the phase so far."""
    own = gains(of_phase(history, phase))
    return len(own) >= epochs or (len(own) > patience and not any(own[-patience:]))


def history_frame(history: list[Epoch]) -> pd.DataFrame:
    """One row an epoch; `value` under the name of its metric."""
    rows = [asdict(epoch) for epoch in history]
    return pd.DataFrame([{**row, f"val_{row.pop('metric')}": row.pop("value")} for row in rows])


def from_json(values: list[dict[str, Any]]) -> list[Epoch]:
    return [Epoch(**value) for value in values]
