"""What an evaluation found, in sentences and in numbers to compare runs by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spectacles.evaluation import corruptions, slices, split_scores
from spectacles.metrics import basics, selective

FEW = 100
NAMES = {"precision": "precision of {}", "recall": "recall of {}", "label_accuracy": "accuracy of each label",
         "balanced_accuracy": "balanced accuracy", "micro_f1": "micro F1",
         "macro_f1": "macro F1", "mean_average_precision": "mAP", "hter": "HTER", "roc_auc": "ROC-AUC",
         "log_loss": "log loss", "brier": "Brier score", "ece": "ECE"}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, dict[str, Any]]
    """By split: the contents of metrics.json."""
    scored_on: str
    """The split whose scores count: test, or val without labelled test images."""
    analyses: dict[str, Any]
    """`slices`, and if asked for `comparison` and `corruptions`: the contents of these JSON files."""

    @property
    def headline(self) -> dict[str, Any]:
        return self.scores[self.scored_on]


def sentences(evaluation: Evaluation) -> list[str]:
    """Scores, analyses and cautions, most important first."""
    analyses = evaluation.analyses
    lines = _scores(evaluation.headline, evaluation.scored_on)
    if "comparison" in analyses:
        lines.append(analyses["comparison"]["sentence"])
    if sentence := slices.sentence(analyses["slices"]):
        lines.append(sentence)
    if "corruptions" in analyses:
        lines += corruptions.sentences(analyses["corruptions"])
    return lines + _cautions(evaluation.headline, evaluation.scored_on)


def _scores(values: dict[str, Any], split: str) -> list[str]:
    def with_interval(name: str) -> str:
        low, high = values["intervals"].get(name, (None, None))
        interval = f" ({low:.4f}-{high:.4f})" if low is not None else ""
        over = f" {over}" if (over := basics.over_classes(name, values)) else ""
        return f"{NAMES[name].format(repr(values.get('positive_class')))} {values[name]:.4f}{interval}{over}"

    low, high = values["accuracy_interval"]
    what = "all labels correct" if "label_accuracy" in values else "accuracy"
    names = [name for name in NAMES if values.get(name) is not None]
    lines = [
        f"{split}: {what} {values['accuracy']:.4f} ({low:.4f}-{high:.4f}, 95 %), {values['images']} images",
        f"{split}: {', '.join(map(with_interval, names[: len(names) // 2]))}",
        f"{split}: {', '.join(map(with_interval, names[len(names) // 2 :]))}",
    ]
    if "calibration" in values:
        before, after = values["calibration"]["before"], values["calibration"]["after"]
        pairs = (f"{label} {before[key]:.4f} -> {after[key]:.4f}" for key, label in
                 (("log_loss", "log loss"), ("ece", "ECE"), ("classwise_ece", "class-wise ECE")))  # fmt: skip
        lines.append(f"{split}: calibration changed {', '.join(pairs)}")
    if "answered" in values and values["answered"]["images"] < values["images"]:
        lines.append(f"{split}: {selective.sentence(values)}")
    return lines


def _cautions(values: dict[str, Any], split: str) -> list[str]:
    lines = []
    if absent := basics.absent_classes(values):
        lines.append(f"{split} has {absent}: their metrics are undefined, and means over classes leave them out")
    if split == "val":
        lines.append(
            "the best epoch was chosen on validation data, so these scores are optimistic: give labelled test data or "
            "--test_fraction"
        )
    if values["images"] < FEW:
        lines.append(f"{values['images']} images are few: mind the interval")
    if len(values["per_class"]) > split_scores.MATRIX_CLASSES and "label_accuracy" not in values:
        lines.append(
            f"no confusion matrix of more than {split_scores.MATRIX_CLASSES:,} classes: predictions.csv has every "
            "decision, and error_analysis.py names the classes that are most often confused"
        )
    return lines


def numbers(evaluation: Evaluation) -> dict[str, float | None]:
    """Every scalar as <split>_<metric>, with _low and _high for its interval, and those of the analyses."""
    scalars: dict[str, float | None] = {}
    for split, values in evaluation.scores.items():
        scalars |= {f"{split}_{name}": value for name, value in _numbers_of_split(values).items()}
    of_analyses = _numbers_of_analyses(evaluation.analyses)
    return scalars | {f"{evaluation.scored_on}_{name}": value for name, value in of_analyses.items()}


def _numbers_of_split(values: dict[str, Any]) -> dict[str, float | None]:
    scalars = {name: value for name, value in values.items() if value is None or isinstance(value, int | float)}
    scalars["aurc"] = values["selective"]["aurc"]
    for name, (low, high) in values["intervals"].items():
        scalars |= {f"{name}_low": low, f"{name}_high": high}
    return {name: None if value is None else float(value) for name, value in scalars.items()}


def _numbers_of_analyses(analyses: dict[str, Any]) -> dict[str, float]:
    """The gap of the weakest slice, the mean accuracy under each corruption, and under attack."""
    worst = analyses["slices"]["worst_gap"]
    scalars = {"worst_gap": worst["gap"]} if worst else {}
    measured = analyses.get("corruptions", {})
    scalars |= {f"accuracy_{name}": float(np.mean(each)) for name, each in measured.get("accuracies", {}).items()}
    for name, each in (measured.get("attacks") or {}).items():
        scalars |= {f"accuracy_{name}_{level.split('/')[0]}": value for level, value in each.items()}
    return scalars
