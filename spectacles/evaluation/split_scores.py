"""The scores of one split, and the charts of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectacles.core.config import EvaluateConfig
from spectacles.data import label_sets, schemas
from spectacles.metrics import abstention, classification, multilabel, operating_points, scoring, selective
from spectacles.metrics.calibration import Calibration
from spectacles.metrics.decisions import Scored
from spectacles.metrics.operating_points import Positives
from spectacles.models.bundle import BundleInfo
from spectacles.report import evaluation_plots, reliability_plots

MATRIX_CLASSES = 1000
"""Classes up to which there is a confusion matrix: of 10,000 it would be a file of a gigabyte that nobody reads."""


@dataclass(frozen=True)
class ScoredSplit:
    """The labelled, readable images of a split, as rows of predictions.csv."""

    name: str
    rows: pd.DataFrame
    rejected: int
    """Labelled images of the split that could not be read."""
    info: BundleInfo

    @classmethod
    def of(cls, table: pd.DataFrame, split: str, info: BundleInfo) -> ScoredSplit:
        rows = table[table["split"] == split]
        readable = rows["status"] == "predicted"
        return cls(split, rows[readable], int((~readable).sum()), info)

    @cached_property
    def scored(self) -> Scored:
        classes = list(self.info.classes)
        return Scored(
            labels=label_sets.encode(self.rows["label"], classes, self.info.multi_label),
            probabilities=schemas.probabilities(self.rows, classes),
            predicted=label_sets.encode(self.rows["predicted"], classes, self.info.multi_label),
            clusters=pd.factorize(self.rows["cluster"])[0],
        )

    @property
    def uncalibrated(self) -> np.ndarray | None:
        """(N, K) probabilities of the raw logits; None in a table without logits."""
        columns = [schemas.LOGIT_PREFIX + name for name in self.info.classes]
        if not set(columns) <= set(self.rows.columns):
            return None
        logits = self.rows[columns].to_numpy(dtype=np.float64)
        return Calibration(multi_label=self.info.multi_label).probabilities(logits)


def score(split: ScoredSplit, config: EvaluateConfig) -> dict[str, Any]:
    """What metrics.json holds of a split with at least one image."""
    scored, classes = split.scored, list(split.info.classes)
    seed, resamples = config.seed, config.bootstrap_resamples
    intervals = scoring.intervals_of(scored, seed, resamples)
    values: dict[str, Any] = {
        "images": len(split.rows),
        "rejected": split.rejected,
        **scoring.metrics_of(scored),
        "accuracy_interval": intervals["accuracy"],
        "intervals": intervals,
        "classes": len(classes),
        "classes_scored": int((scored.class_support > 0).sum()),
        "per_class": dict(zip(classes, scoring.per_class(scored), strict=True)),
        "selective": selective.selective(scored.correct, abstention.certainty(scored.probabilities, scored.predicted)),
    }
    if (positive := split.info.positive_class) is not None:
        values["positive_class"] = positive
    if not split.info.multi_label and len(classes) <= MATRIX_CLASSES:
        matrix = classification.confusion_matrix(scored.labels, scored.predicted, len(classes))
        values["confusion_matrix"] = matrix.tolist()
    if (uncalibrated := split.uncalibrated) is not None:
        values["calibration"] = {
            "before": scoring.calibration(scored, uncalibrated),
            "after": scoring.calibration(scored, scored.probabilities),
        }
    if "abstain_reason" in split.rows:
        reasons = split.rows["abstain_reason"].to_numpy(dtype=str)
        values |= selective.by_abstention(scored.correct, reasons, scored.clusters, seed, resamples)
    return values


def other_thresholds(split: ScoredSplit, val: ScoredSplit | None, config: EvaluateConfig) -> list[dict[str, Any]]:
    """The `operating_points` of a split for thresholds chosen on `val`; none unless there are two classes."""
    if len(split.info.classes) != 2 or split.info.multi_label:
        return []
    in_use = 0.5 if split.info.threshold is None else split.info.threshold
    positives = _positives((val or split).scored), _positives(split.scored)
    return operating_points.operating_points(*positives, in_use, config.seed, config.bootstrap_resamples)


def _positives(scored: Scored) -> Positives:
    return Positives(scored.labels == 1, scored.probabilities[:, 1], scored.clusters)


def draw(split: ScoredSplit, values: dict[str, Any], folder: Path) -> list[Path]:
    """Charts of a split and its scores; the files written."""
    scored, info = split.scored, split.info
    labels, probabilities, classes = scored.labels, scored.probabilities, list(info.classes)
    confidence = split.rows["confidence"].to_numpy(dtype=np.float64)
    plots = [
        *_draw_errors(values, info, folder),
        evaluation_plots.roc_curves(labels, probabilities, classes, folder / "roc.png"),
        evaluation_plots.precision_recall_curves(labels, probabilities, classes, folder / "precision_recall.png"),
        _draw_reliability(labels, probabilities, split.uncalibrated, folder / "reliability.png"),
        evaluation_plots.confidence_histograms(confidence, scored.correct, folder / "confidence.png"),
        reliability_plots.coverage(
            values["selective"], values.get("answered"), values["images"], folder / "coverage.png"
        ),
    ]
    if info.multi_label:
        return plots
    if len(classes) == 2:
        path = folder / "threshold.png"
        plots.append(reliability_plots.thresholds(labels, probabilities[:, 1], info.threshold, classes[1], path))
    else:
        recall = [score["recall"] for score in values["per_class"].values()]
        support = [int(score["support"] or 0) for score in values["per_class"].values()]
        plots.append(evaluation_plots.per_class_accuracy(classes, recall, support, folder / "per_class.png"))
    return plots


def _draw_errors(values: dict[str, Any], info: BundleInfo, folder: Path) -> list[Path]:
    """Which classes are confused, or which labels are missed and added."""
    if info.multi_label:
        scores = list(values["per_class"].values())
        return [evaluation_plots.label_errors(info.classes, scores, values["images"], folder / "label_errors.png")]
    if "confusion_matrix" not in values:
        return []
    matrix = np.array(values["confusion_matrix"])
    return [evaluation_plots.confusion_matrix(matrix, info.classes, folder / "confusion_matrix.png")]


def _draw_reliability(
    labels: np.ndarray, probabilities: np.ndarray, uncalibrated: np.ndarray | None, path: Path
) -> Path:
    if labels.ndim == 2:
        uncalibrated = None if uncalibrated is None else multilabel.as_binary(labels, uncalibrated)[1]
        labels, probabilities = multilabel.as_binary(labels, probabilities)
    return evaluation_plots.reliability(labels, probabilities, path, uncalibrated)
