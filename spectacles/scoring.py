"""Metrics and intervals of scored images, whichever kind of labels they have."""

from typing import Any

from spectacles import intervals, label_intervals, label_metrics, metrics
from spectacles.intervals import Scored
from spectacles.metrics import Float64s, Floats


def metrics_of(scored: Scored) -> dict[str, float | None]:
    if scored.multi_label:
        return label_metrics.multi_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return metrics.classification_metrics(scored.labels, scored.probabilities, scored.predicted, scored.num_classes)


def intervals_of(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high]."""
    of_metrics = label_intervals.of_metrics if scored.multi_label else intervals.of_metrics
    return of_metrics(scored, seed, resamples)


def bootstrap(scored: Scored, seed: int, resamples: int) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample; without areas under curves."""
    draw = label_intervals.bootstrap if scored.multi_label else intervals.bootstrap
    return draw(scored, seed, resamples, areas=False)


def per_class(scored: Scored) -> list[dict[str, Any]]:
    """Of each class or label."""
    if scored.multi_label:
        return label_metrics.per_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return metrics.per_class_metrics(scored.labels, scored.predicted, scored.num_classes)


def calibration(scored: Scored, probabilities: Floats) -> dict[str, float | None]:
    """What other probabilities of the same images are worth."""
    measure = label_metrics.calibration_metrics if scored.multi_label else metrics.calibration_metrics
    return measure(scored.labels, probabilities)
