"""Metrics and intervals of scored images, whichever kind of labels they have."""

from typing import Any

from spectacles.metrics import classification, classification_bootstrap, multilabel, multilabel_bootstrap
from spectacles.metrics.basics import Float64s, Floats
from spectacles.metrics.decisions import Scored
from spectacles.metrics.probability_scores import calibration_metrics


def metrics_of(scored: Scored) -> dict[str, float | None]:
    """All scalar metrics by name, in the order they are reported."""
    if scored.multi_label:
        return multilabel.multi_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return classification.classification_metrics(
        scored.labels, scored.probabilities, scored.predicted, scored.num_classes
    )


def intervals_of(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high], 95 %."""
    intervals = (
        multilabel_bootstrap.metric_intervals if scored.multi_label else classification_bootstrap.metric_intervals
    )
    return intervals(scored, seed, resamples)


def resampled(scored: Scored, seed: int, resamples: int) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample; without areas under curves."""
    if scored.multi_label:
        return multilabel_bootstrap.resampled_metrics(scored, seed, resamples, areas=False)
    return classification_bootstrap.resampled_metrics(scored, seed, resamples, areas=False)


def per_class(scored: Scored) -> list[dict[str, Any]]:
    """One dict per class or label, in their order."""
    if scored.multi_label:
        return multilabel.per_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return classification.per_class_metrics(scored.labels, scored.predicted, scored.num_classes)


def calibration(scored: Scored, probabilities: Floats) -> dict[str, float | None]:
    """Calibration metrics of other probabilities for the same images."""
    measure = multilabel.calibration_metrics if scored.multi_label else calibration_metrics
    return measure(scored.labels, probabilities)
