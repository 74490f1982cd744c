"""Metrics and intervals of scored images, whichever kind of labels they have."""

from typing import Any

from spectacles.metrics import bootstrap, classification, multilabel, multilabel_bootstrap
from spectacles.metrics.bootstrap import Scored
from spectacles.metrics.classification import Float64s, Floats


def metrics_of(scored: Scored) -> dict[str, float | None]:
    if scored.multi_label:
        return multilabel.multi_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return classification.classification_metrics(
        scored.labels, scored.probabilities, scored.predicted, scored.num_classes
    )


def intervals_of(scored: Scored, seed: int, resamples: int) -> dict[str, list[float]]:
    """Metric -> [low, high]."""
    of_metrics = multilabel_bootstrap.of_metrics if scored.multi_label else bootstrap.of_metrics
    return of_metrics(scored, seed, resamples)


def resampled(scored: Scored, seed: int, resamples: int) -> dict[str, Float64s]:
    """Metric -> (R,) its value in each resample; without areas under curves."""
    draw = multilabel_bootstrap.intervals if scored.multi_label else bootstrap.intervals
    return draw(scored, seed, resamples, areas=False)


def per_class(scored: Scored) -> list[dict[str, Any]]:
    """Of each class or label."""
    if scored.multi_label:
        return multilabel.per_label_metrics(scored.labels, scored.probabilities, scored.predicted)
    return classification.per_class_metrics(scored.labels, scored.predicted, scored.num_classes)


def calibration(scored: Scored, probabilities: Floats) -> dict[str, float | None]:
    """What other probabilities of the same images are worth."""
    measure = multilabel.calibration_metrics if scored.multi_label else classification.calibration_metrics
    return measure(scored.labels, probabilities)
