"""Charts of an evaluation, each written atomically as a PNG to `path`.

Labels, probabilities and class indices are as in `metrics`, whose numbers these charts show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from spectacles.core.wording import noun_of, plural
from spectacles.metrics import curves, probability_scores
from spectacles.metrics.basics import Bools, Float64s, Floats, Ints
from spectacles.report.style import (
    COLOURS,
    INK,
    MUTED,
    Panel,
    add_legend,
    draw_matrix,
    draw_placeholder,
    label_rows,
    new_figure,
    nth_colour,
    save,
    shorten,
    tick_integers,
)

MAX_CLASSES = 40  # nobody reads more rows than this
MAX_CURVES = 10


def confusion_matrix(matrix: NDArray[np.integer[Any]], class_names: Sequence[str], path: Path) -> Path:
    """Counts `(K, K)`, rows true, coloured by their share of the row.

    Up to 20 classes each cell shows its count and share; beyond 40 classes only the 40 most confused are shown.
    """
    matrix = np.asarray(matrix)
    title = "Confusion matrix"
    if not len(matrix):
        figure, [axes] = new_figure(title, 5.4, 4.3)
        draw_placeholder(axes)
        return save(figure, path)
    if len(matrix) > MAX_CLASSES:
        title += f": the {MAX_CLASSES} most confused of {len(matrix)} classes"
    chosen = _most_confused(matrix)
    counts = matrix[np.ix_(chosen, chosen)]
    # Shares are of all images of a class, also of those predicted as a class that is not shown.
    shares = 100 * counts / np.maximum(matrix.sum(axis=1)[chosen, None], 1)
    names = [shorten(class_names[index], 18) for index in chosen]
    cells = zip(counts.ravel(), shares.ravel(), strict=True)
    texts = np.array([f"{count:,}\n{share:.0f} %" if count else "0" for count, share in cells]).reshape(counts.shape)
    figure, axes = draw_matrix(title, shares, texts, names, names, "of the true class")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return save(figure, path)


def roc_curves(labels: Ints, probabilities: Floats, class_names: Sequence[str], path: Path) -> Path:
    """ROC of class 1 of two; with more classes one-vs-rest of the (at most 10) classes with the lowest AUC."""
    worst = _worst_classes(curves.roc_auc, labels, probabilities)
    title = _curves_title("ROC", "AUC", len(worst), class_names, labels)
    figure, [axes] = new_figure(title, 6 if len(worst) < 2 else 8.5, 5)
    for rank, (area, index) in enumerate(worst[:MAX_CURVES]):
        positive = _positive(labels, index)
        false_positive_rate, true_positive_rate, _ = curves.roc_curve(positive, probabilities[:, index])
        _curve(axes, rank, false_positive_rate, true_positive_rate, f"{shorten(class_names[index])}  {area:.3f}")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    add_legend(axes, "AUC", "lower right" if len(worst) < 2 else "beside")
    if not worst:
        draw_placeholder(axes, "undefined: needs positive and negative images")
    return save(figure, path)


def precision_recall_curves(labels: Ints, probabilities: Floats, class_names: Sequence[str], path: Path) -> Path:
    """Precision over recall of class 1 of two, or of the (at most 10) classes with the lowest average precision."""
    worst = _worst_classes(curves.average_precision, labels, probabilities)
    title = _curves_title("Precision and recall", "AP", len(worst), class_names, labels)
    figure, [axes] = new_figure(title, 6 if len(worst) < 2 else 8.5, 5)
    for rank, (area, index) in enumerate(worst[:MAX_CURVES]):
        precision, recall, _ = precision_recall_curve(_positive(labels, index), probabilities[:, index])
        _curve(axes, rank, recall, precision, f"{shorten(class_names[index])}  {area:.3f}")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    add_legend(axes, "average precision", "lower left" if len(worst) < 2 else "beside")
    if not worst:
        draw_placeholder(axes, "undefined: needs positive and negative images")
    return save(figure, path)


def reliability(labels: Ints, probabilities: Floats, path: Path, before: Floats | None = None) -> Path:
    """Accuracy by top-1 confidence against the diagonal of perfect calibration, and the number of images in each bin.

    `before`: the probabilities (N, K) without calibration, drawn for comparison.
    """
    error = probability_scores.expected_calibration_error(labels, probabilities)
    if error is None:
        figure, [axes] = new_figure("Reliability", 6, 2)
        draw_placeholder(axes)
        return save(figure, path)
    raw_error = None if before is None else probability_scores.expected_calibration_error(labels, before)
    title = f"Reliability (ECE {error:.3f}" + ("" if raw_error is None else f", {raw_error:.3f} before calibration")
    figure, [upper, lower] = new_figure(f"{title})", 6, 6, (3, 1))
    counts, confidence, accuracy = probability_scores.reliability_bins(labels, probabilities)
    used = counts > 0
    bins = len(counts)
    centres = (np.arange(bins) + 0.5) / bins
    upper.bar(centres[used], accuracy[used], 0.92 / bins, color=COLOURS[0], alpha=0.85, label="accuracy")
    upper.plot(confidence[used], accuracy[used], "o", color=COLOURS[1], markersize=5, label="at the mean confidence")
    if before is not None:
        raw_counts, raw_confidence, raw_accuracy = probability_scores.reliability_bins(labels, before)
        raw = raw_counts > 0
        upper.plot(
            raw_confidence[raw], raw_accuracy[raw], "--s", color=MUTED, markersize=4, lw=1, label="before calibration"
        )
        lower.step(
            centres, raw_counts, where="mid", color=INK, linewidth=0.9, linestyle=":", label="before calibration"
        )
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    add_legend(upper, loc="upper left")
    bars = lower.bar(centres, counts, 0.92 / bins, color=MUTED)
    lower.bar_label(bars, labels=[f"{count:,}" if count else "" for count in counts], fontsize=7, padding=1)
    lower.margins(y=0.25)
    add_legend(lower, loc="upper left")
    lower.set_xlabel("confidence of the predicted class")
    lower.set_ylabel("images")
    return save(figure, path)


def confidence_histograms(confidence: Floats, correct: Bools, path: Path) -> Path:
    """Confidence `(N,)` of correct and of wrong predictions, on separate scales: wrong ones are usually few."""
    confidence, correct = np.asarray(confidence), np.asarray(correct, dtype=bool)
    figure, panels = new_figure("Confidence of correct and wrong predictions", 7, 5, (1, 1))
    edges = np.linspace(0, 1, 41)
    rows = (("correct", correct, COLOURS[0]), ("wrong", ~correct, COLOURS[1]))
    for axes, (name, chosen, colour) in zip(panels, rows, strict=True):
        axes.stairs(np.histogram(confidence[chosen], edges)[0], edges, fill=True, color=colour, alpha=0.85)
        axes.set_title(f"{name} ({chosen.sum():,})", loc="left", fontsize=10, color=colour)
        axes.set_ylabel("images")
        axes.set_ylim(bottom=0, top=None if chosen.any() else 1)
        tick_integers(axes.yaxis)
    panels[-1].set_xlim(0, 1)
    panels[-1].set_xlabel("confidence")
    return save(figure, path)


def per_class_accuracy(
    class_names: Sequence[str], recall: Sequence[float | None], support: Sequence[int], path: Path
) -> Path:
    """Recall per class as bars, the lowest on top (at most 40); classes without images (recall None) are left out."""
    triples = zip(class_names, recall, support, strict=True)
    rows = sorted(((value, name, count) for name, value, count in triples if value is not None), key=lambda row: row[0])
    title = "Accuracy per class"
    if len(rows) > MAX_CLASSES:
        title += f": the {MAX_CLASSES} lowest of {len(rows)}"
    rows = rows[:MAX_CLASSES]
    figure, [axes] = new_figure(title, 7, 1.2 + 0.28 * max(3, len(rows)))
    if not rows:
        draw_placeholder(axes)
        return save(figure, path)
    bars = axes.barh(range(len(rows)), [value for value, _, _ in rows], 0.72, color=COLOURS[0])
    texts = [f"{100 * value:.1f} % of {count:,}" for value, _, count in rows]
    axes.bar_label(bars, labels=texts, padding=3, fontsize=8, color=INK)
    label_rows(axes, [name for _, name, _ in rows])
    axes.set_xlim(0, 1.22)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("share of the images of the class that are predicted correctly")
    return save(figure, path)


def label_errors(class_names: Sequence[str], scores: Sequence[Mapping[str, Any]], images: int, path: Path) -> Path:
    """For each label (`multilabel.per_label_metrics`), the share of the images with it that were missed and of those
    without it that were given it; the worst on top (at most 40)."""
    rows = sorted(zip(class_names, scores, strict=True), key=lambda row: -row[1]["missed"] - row[1]["added"])
    title = "Labels missed and labels added wrongly"
    if len(rows) > MAX_CLASSES:
        title += f": the {MAX_CLASSES} most often wrong of {len(rows)}"
    rows = rows[:MAX_CLASSES]
    figure, [axes] = new_figure(title, 7.5, 1.6 + 0.42 * max(3, len(rows)))
    kinds = (
        ("missed", "of the images with it", -0.19, COLOURS[0]),
        ("added", "of the images without it", 0.19, COLOURS[1]),
    )
    for kind, of_what, offset, colour in kinds:
        totals = [s["support"] if kind == "missed" else images - s["support"] for _, s in rows]
        shares = [100 * s[kind] / max(1, total) for (_, s), total in zip(rows, totals, strict=True)]
        places = np.arange(len(rows)) + offset
        bars = axes.barh(places, shares, 0.36, color=colour, label=f"{kind}, % {of_what}")
        texts = [f"{s[kind]:,} of {total:,}" for (_, s), total in zip(rows, totals, strict=True)]
        axes.bar_label(bars, labels=texts, padding=3, fontsize=8, color=INK)
    label_rows(axes, [name for name, _ in rows])
    axes.set_xlim(0, max(5.0, axes.get_xlim()[1]) * 1.25)
    axes.set_xlabel("% of the images with, or without, the label")
    add_legend(axes, loc="lower right")
    return save(figure, path)


def _most_confused(matrix: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Indices, in class order, of the classes with the most wrong predictions from or to them."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:MAX_CLASSES])


def _worst_classes(
    score: Callable[[Bools, Floats], float | None], labels: Ints, probabilities: Floats
) -> list[tuple[float, int]]:
    """(score, class) of each class whose score is defined, the lowest first; of two classes only class 1."""
    num_classes = probabilities.shape[1]
    candidates = [1] if num_classes == 2 and labels.ndim == 1 else range(num_classes)
    scores = [(score(_positive(labels, index), probabilities[:, index]), index) for index in candidates]
    return sorted((value, index) for value, index in scores if value is not None)


def _positive(labels: Ints, index: int) -> Bools:
    """(N,): which images are of the class (`labels` (N,)), or have the label (`labels` (N, K))."""
    return np.asarray(labels[:, index] == 1 if labels.ndim == 2 else labels == index)


def _curves_title(name: str, score: str, curves: int, class_names: Sequence[str], labels: Ints) -> str:
    if len(class_names) == 2 and labels.ndim == 1:
        return f"{name} of {shorten(class_names[1], 40)}"
    one = noun_of(labels.ndim == 2)
    many = plural(one)
    if curves > MAX_CURVES:
        return f"{name}: the {MAX_CURVES} {many} of {curves} with the lowest {score}"
    return f"{name}, each {one} against the rest"


def _curve(axes: Panel, rank: int, x: Float64s, y: Float64s, name: str) -> None:
    """Colour and dash together stay distinct for more curves than there are colours."""
    dash = ("-", "--")[rank // len(COLOURS) % 2]
    axes.step(x, y, where="post", color=nth_colour(rank), linestyle=dash, linewidth=1.6, label=name)
    axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.02))
